"""A board's profile: measured there by the same loop, assembled here; this machine plays the board."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.errors import DeviceError, UsageError, VerificationError
from dyndeploy.measure import Profile, profile_bundle
from dyndeploy.precisions import tolerance_of
from dyndeploy.remote import DeviceClient, DeviceEntry, JobResult, profile_on_device
from tests.bundles import many_bundle
from tests.detectors import detector_bundle, one_worker
from tests.spoiled import spoiled

OPTIONS: dict[str, Any] = {"rates": (0.5,), "repeats": 3, "warmup": 1}


def test_many_inputs_and_outputs_by_name(client: DeviceClient, entry: DeviceEntry, tmp_path: Path) -> None:
    bundle = many_bundle(tmp_path / "b", mode="both", batch=2)
    report = profile_on_device(bundle, client, entry, **OPTIONS)
    names = {check["name"] for check in report.checks}
    assert {"masks", "logits under equal masks", "pooled under random masks", "static twin: pooled"} <= names
    profile = report.profile
    assert Profile.from_json(profile.to_json()) == profile
    assert profile.settings["rounds"] == 3 and "build_plan" not in profile.settings
    assert [block.name for block in profile.rates[0].blocks] == ["layer1.0", "layer2.0"]
    # One thread: the loop there keeps CPU times, as the loop here does.
    assert profile.rates[0].cpu_ratios is not None and len(profile.rates[0].cpu_ratios) == 3
    assert profile.static.cpu_ms is not None


def test_the_board_is_told_the_tolerances(
    client: DeviceClient, entry: DeviceEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}
    real = DeviceClient.run

    def run(self: DeviceClient, kind: str, spec: Any, progress: Any) -> JobResult:
        sent[kind] = copy.deepcopy(spec)
        if kind == "verify":
            spec = {**spec, "tolerance": {**spec["tolerance"], "output": -1.0}}
        return real(self, kind, spec, progress)

    monkeypatch.setattr(DeviceClient, "run", run)
    with pytest.raises(VerificationError, match="logits under equal masks"):
        profile_on_device(many_bundle(tmp_path / "b"), client, entry, **OPTIONS)
    assert sent["verify"]["tolerance"] == vars(tolerance_of("fp32"))
    assert "profile" not in sent


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda value: value.pop("pairs"), "pairs is missing"),
        (lambda value: value["pairs"].pop(), "pairs must be a list of 2"),
        (lambda value: value["pairs"][0].update(ratios=[]), r"pairs\[0\]\.ratios must be a list that is not empty"),
        (lambda value: value["pairs"][1]["visits"][0].__setitem__(1, [0]), r"visits\[0\]\[1\]\[0\] must be a positive"),
        (
            lambda value: value["layers"][0]["static"][0].append([1]),
            r"layers\[0\]\.static\[0\]\[\d+\] must be a list of 2",
        ),
        (lambda value: value["own_masks"][0].update({"mask/layer1.0/spatial": "!"}), "16 packed bits"),
        (lambda value: value.update(rounds="many"), "rounds must be a whole number"),
    ],
)
def test_results_that_make_no_sense_are_named(
    damage: Callable[[Any], Any],
    message: str,
    client: DeviceClient,
    entry: DeviceEntry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = DeviceClient.run

    def run(self: DeviceClient, kind: str, spec: Any, progress: Any) -> JobResult:
        result = real(self, kind, spec, progress)
        if kind == "profile":
            damage(result.value)
        return result

    monkeypatch.setattr(DeviceClient, "run", run)
    with pytest.raises(DeviceError, match=rf"result of .* is malformed: .*{message}.*Measure once more"):
        profile_on_device(many_bundle(tmp_path / "b"), client, entry, **OPTIONS)


@pytest.mark.parametrize(("file", "weight"), [("model.onnx", "head.b"), ("static.onnx", "head.b")])
def test_a_board_that_computes_nan_is_not_timed(
    client: DeviceClient, entry: DeviceEntry, tmp_path: Path, file: str, weight: str
) -> None:
    bundle = spoiled(many_bundle(tmp_path / "b"), file, weight, float("nan"))
    with pytest.raises(VerificationError, match=r"relative error 1e\+30"):
        profile_on_device(bundle, client, entry, repeats=2, warmup=1)


def test_impossible_schedules_are_refused_before_the_board_is_asked(entry: DeviceEntry, tmp_path: Path) -> None:
    client = DeviceClient(entry.transport())
    with pytest.raises(UsageError, match="at least 2"):
        profile_on_device(many_bundle(tmp_path / "b"), client, entry, repeats=1)


@one_worker
@pytest.mark.vision("torchvision", "cv2")
def test_a_cpu_over_the_network_tells_the_parts_of_the_one_graph(client: DeviceClient, entry: DeviceEntry) -> None:
    own = detector_bundle("mask_rcnn")
    report = profile_on_device(own, client, entry, **OPTIONS)
    assert all(check["passed"] for check in report.checks)
    there, here = report.profile, profile_bundle(own, native="off", **OPTIONS)
    assert isinstance(there, Profile)
    for mine, other in zip(here.rates[0].parts, there.rates[0].parts, strict=True):
        assert (mine.name, mine.static_macs, mine.needed_macs) == (other.name, other.static_macs, other.needed_macs)
        assert (mine.static_ms > 0) == (other.static_ms > 0) and (mine.dynamic_ms > 0) == (other.dynamic_ms > 0)
    assert there.rates[0].steps == ()
