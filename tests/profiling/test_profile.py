from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.errors import InputError
from dyndeploy.profiling import Profile, load_profile


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
    assert "library" not in " ".join(profile.warnings())


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
