from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.errors import DyndeployError, InputError
from dyndeploy.measure import Profile, load_profile
from dyndeploy.reporting import compare_profile, predict_profile, render_report
from dyndeploy.runtimes.native import BODIES_NOTE


def test_json_round_trip(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json(), allow_nan=False))
    read = load_profile(path)
    assert read.to_json() == profile.to_json()
    assert read == profile


def test_statistics_are_derived_from_the_samples_when_read(profile: Profile) -> None:
    value = json.loads(json.dumps(profile.to_json()))
    value["static"]["median_ms"] = 1e9
    value["data"]["realisation"] = 77
    read = Profile.from_json(value)
    assert read.static.median == profile.static.median
    assert read.data.realisation == profile.data.realisation


def test_warnings_name_what_is_unstable(profile: Profile) -> None:
    value = json.loads(json.dumps(profile.to_json()))
    entries = (value["static"], *value["rates"], value["data"])
    for entry in entries:
        entry["samples_ms"] = [1.0] * len(entry["samples_ms"])
    calm = Profile.from_json(value)
    assert not any("Unstable" in text for text in calm.warnings())
    value["rates"][0]["samples_ms"][0] = 2.0
    warnings = Profile.from_json(value).warnings()
    assert "rate 0.25 (forced)" in warnings[0]
    assert "static twin" not in warnings[0]


def test_operators_that_a_library_does_not_run_are_named(profile: Profile) -> None:
    native = {"path": "lib.so", "sha256": "0" * 64, "description": "lib.so", "operators": ["SpatialMasker"]}
    warnings = " ".join(replace(profile, native=native).warnings())
    assert "SpatialBottleneck, SpatialBottleneckProjection" in warnings
    assert "SpatialMasker" not in warnings
    assert BODIES_NOTE not in warnings


def test_function_bodies_are_said_with_what_the_library_would_give(profile: Profile) -> None:
    assert BODIES_NOTE in profile.warnings()
    elsewhere = replace(profile, runtime={**profile.runtime, "provider": "CUDAExecutionProvider"})
    assert BODIES_NOTE not in elsewhere.warnings()
    nothing_dynamic = replace(profile, bundle={**profile.bundle, "operators": []})
    assert BODIES_NOTE not in nothing_dynamic.warnings()


def test_the_code_that_ran_has_a_short_name(profile: Profile) -> None:
    assert profile.operator_code == "function bodies"
    native = {"path": "/some/where/libdyndeploy_ort_cpu.so", "sha256": "0" * 64, "instruction_set": "avx2"}
    assert replace(profile, native=native).operator_code == "libdyndeploy_ort_cpu.so (avx2)"
    assert replace(profile, native={"path": "lib.so", "instruction_set": None}).operator_code == "lib.so"
    assert replace(profile, native={}).operator_code is None
    assert replace(profile, bundle={**profile.bundle, "operators": []}).operator_code is None


@pytest.mark.parametrize("text", ["", "{", "not json", '{"kind": "measured"', "\x00\x01"])
def test_corrupt_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"profile\.json"):
        load_profile(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot read"):
        load_profile(tmp_path / "none.json")
    with pytest.raises(InputError, match="Cannot read"):
        load_profile(tmp_path)


@pytest.mark.parametrize("foreign", [[], 3, "x", None, {}, {"kind": "predicted", "schema": 1}, {"static": {}}])
def test_foreign_json(foreign: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(foreign))
    with pytest.raises(InputError, match=r"other\.json: This is no profile"):
        load_profile(path)


def _set(*keys: Any) -> Callable[[Any, Any], None]:
    def change(value: Any, new: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = new

    return change


@pytest.mark.parametrize(
    ("change", "new", "message"),
    [
        (_set("schema_version"), 99, "schema version 99"),
        (_set("static", "samples_ms", 0), float("nan"), r"static\.samples_ms\[0\] is NaN"),
        (_set("rates", 1, "ideal_speedup"), float("inf"), r"rates\[1\]\.ideal_speedup is NaN or inf"),
        (_set("static", "samples_ms"), [], "malformed"),
        (_set("static", "samples_ms", 0), -1.0, "malformed"),
        (_set("static", "samples_ms", 0), "fast", "malformed"),
        (_set("rates"), None, "malformed"),
        (_set("rates", 0, "ideal_speedup"), 0, "malformed"),
        (_set("rates", 0, "masks"), "guessed", "malformed"),
        (_set("rates", 0, "ratios"), [], "malformed"),
        (_set("data"), {}, "malformed"),
        (_set("machine"), "fast one", "malformed"),
        (_set("batch"), 0, "malformed"),
    ],
)
def test_damaged_values(profile: Profile, change: Callable[[Any, Any], None], new: Any, message: str) -> None:
    value = json.loads(json.dumps(profile.to_json()))
    change(value, new)
    with pytest.raises(InputError, match=message):
        Profile.from_json(value)


@pytest.mark.parametrize(
    "key", ["bundle", "machine", "device", "native", "threads", "batch", "static", "rates", "data"]
)
def test_missing_fields(profile: Profile, key: str) -> None:
    value = json.loads(json.dumps(profile.to_json()))
    del value[key]
    with pytest.raises(InputError):
        Profile.from_json(value)


VALUES = (
    None, True, False, 0, -1, 1, 0.5, -0.5, 7, 10**6, 2**40, 10**400, -(10**400), 1e-320, 1e300, 1e308, float("nan"),
    "", "x", "\ud800", "1", [], [1], ["x"], [[]], {}, {"x": 1}, {"x": []},
)  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    keys = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _read_and_report(path: Path) -> None:
    profile = load_profile(path)
    sweep = predict_profile(profile, "tx2")
    render_report(profile, sweep).encode()
    json.dumps([profile.to_json(), compare_profile(profile, sweep).to_json()], allow_nan=False).encode()


def test_mutated_profiles_never_end_in_a_raw_exception(profile: Profile, tmp_path: Path) -> None:
    text = json.dumps(profile.to_json())
    places = range(len(_places(json.loads(text))))
    generator = random.Random(0)
    refused = 0
    for number in range(200):
        value = json.loads(text)
        container, key = _places(value)[generator.choice(places)]
        if generator.random() < 0.15:
            del container[key]
        else:
            container[key] = generator.choice(VALUES)
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(value))
        try:
            _read_and_report(path)
        except DyndeployError:
            refused += 1
    assert 50 < refused < 200


@pytest.mark.parametrize("new", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize(
    "where",
    [
        ("batch",),
        ("threads",),
        ("machine", "isa"),
        ("machine", "load_average"),
        ("machine", "memory_gb"),
        ("machine", "versions"),
        ("settings", "images"),
        ("settings", "images", "count"),
        ("native", "operators"),
        ("bundle", "operators"),
        ("bundle", "tools"),
        ("bundle", "mode"),
        ("bundle", "granularity"),
        ("graph",),
        ("graph", "dynamic"),
        ("graph", "dynamic", "nodes", 0, "op_type"),
        ("graph", "dynamic", "nodes", 1, "inputs"),
        ("graph", "static", "shapes", "input"),
        ("graph", "dynamic", "batch"),
        ("bundle", "masks", 0, "block"),
        ("bundle", "masks", 0, "kind"),
        ("static", "samples_input"),
        ("rates", 0, "mask_rates"),
        ("data", "cpu_ratios"),
    ],
)
def test_likely_damage(profile: Profile, tmp_path: Path, where: tuple[Any, ...], new: Any) -> None:
    value = json.loads(json.dumps(profile.to_json()))
    _set(*where)(value, new)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(value))
    with contextlib.suppress(DyndeployError):
        _read_and_report(path)
