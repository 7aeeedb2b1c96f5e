"""Early exits on a board: verified stage by stage there, timed by the loop of the host; this machine is the board."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dyndeploy.blocks import EarlyExits, early_exits
from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.errors import DeviceError, UsageError, VerificationError
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.inference import Classification, classify
from dyndeploy.measure.load_exits import load_exit_profile
from dyndeploy.prediction import predict
from dyndeploy.remote import DeviceClient, DeviceEntry, JobResult, profile_exits_on_device, run_on_device
from tests.export.test_composition import composed
from tests.remote.test_tensorrt import nano as nano
from tests.spoiled import spoiled

OPTIONS: dict[str, Any] = {"repeats": 3, "warmup": 1, "min_seconds": 0.1}


def _head(channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def plain() -> EarlyExits:
    """A user's network with three exits and no masks."""
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
    ]
    network = early_exits(stages, [_head(8), _head(8), _head(16)])
    network.input_size = (32, 32)
    return network.eval()


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("exits") / "bundle"
    return export_model(plain(), folder, ExportSettings(static=True, graph="if"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Exits composed with masks."""
    return export_model(composed(), tmp_path_factory.mktemp("masked") / "bundle", ExportSettings(static=True))


def test_the_users_own_network(exits: Bundle, client: DeviceClient, entry: DeviceEntry) -> None:
    report = profile_exits_on_device(exits, client, entry, mixes=[(50, 30, 20)], thresholds=(0.0, 0.0), **OPTIONS)
    profile = report.profile
    assert [entry.exit for entry in profile.exits] == [1, 2, 3]
    assert [entry.macs for entry in profile.exits] == [stage.macs for stage in exits.exits.stages]
    assert all(len(entry.samples.ms) >= 3 and entry.samples.cpu_ms is not None for entry in profile.exits)
    assert profile.branched is not None and profile.staging.exit == 3
    mix, data = profile.mixes
    relative = [entry.relative for entry in profile.exits]
    assert mix.shares == pytest.approx((0.5, 0.3, 0.2))
    assert mix.realised_speedup == pytest.approx(1 / np.dot(mix.shares, relative))
    assert (data.name, data.shares) == ("data", (1.0, 0.0, 0.0)), "any confidence reaches 0"
    assert (profile.device, profile.runtime["name"], profile.threads) == ("cpu", "onnxruntime", 1)
    names = [check["name"] for check in report.checks]
    assert names == [
        "static twin: logits/exit3",
        "logits/exit1 as deployed",
        "logits/exit2 as deployed",
        "logits/exit3 as deployed",
        "confidence of exit 1",
        "confidence of exit 2",
        "confidence of exit 3",
    ]
    again = profile_exits_on_device(exits, client, entry, **OPTIONS)
    assert again.uploaded_bytes == report.uploaded_bytes, "nothing more"
    assert [step for step, how in again.steps.items() if how == "done"] == ["profile"]


def test_exits_with_masks_are_verified_under_forced_ones(
    masked: Bundle, client: DeviceClient, entry: DeviceEntry
) -> None:
    report = profile_exits_on_device(masked, client, entry, **OPTIONS)
    names = {check["name"] for check in report.checks}
    assert {"masks", "logits/exit1 under equal masks", "logits/exit3 under random masks"} <= names
    assert next(check for check in report.checks if check["name"] == "masks")["bits"] == 4 * 55
    assert {"engine stage1", "engine forced0", "engine static", "engine every"} <= set(report.steps)
    assert report.profile.mixes == () and report.profile.branched is None


def test_a_profile_of_a_board_is_read_back_and_compared(
    exits: Bundle, client: DeviceClient, entry: DeviceEntry, tmp_path: Path
) -> None:
    profile = profile_exits_on_device(exits, client, entry, mixes=[(50, 30, 20)], **OPTIONS).profile
    path, page = tmp_path / "exits.json", tmp_path / "report.html"
    path.write_text(json.dumps(dataclasses.replace(profile, device="nano").to_json()))
    loaded = load_exit_profile(path)
    assert loaded.device == "nano" and loaded.exits == profile.exits
    assert run(["compare", str(path), "-o", str(page), "--predict-device", "nano", "--json"]) == 0
    assert "Measured and predicted for nano" in page.read_text()


@pytest.mark.parametrize(("version", "make"), [("8.2.1.8", composed), ("10.3.0", plain)])
def test_engines_of_stages_hand_their_tensors_on_where_they_lie(
    version: str,
    make: Callable[[], EarlyExits],
    nano: Callable[..., DeviceClient],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = export_model(make(), tmp_path / "bundle", ExportSettings(target="nano", static=True))
    for module in ("exits", "running"):
        monkeypatch.setattr(f"dyndeploy.remote.{module}.plugin_contents", lambda _: {})
    _without_plugins(monkeypatch)
    with nano(version) as client:
        report = profile_exits_on_device(
            bundle, client, DeviceEntry("nano", "local:", "nano"), mixes=[(1, 1, 1)], **OPTIONS
        )
    profile = report.profile
    # Images leave where they leave here, in the engines of the profile.
    image = tmp_path / "image.png"
    Image.fromarray(np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3)).save(image)
    count = len(bundle.exits.stages)
    for leave in range(count):
        limits = [2.0] * leave + [0.0] * (count - 1 - leave)
        with nano(version) as client:
            [found] = run_on_device(bundle, client, DeviceEntry("nano", "local:", "nano"), [image], thresholds=limits)
        [here] = classify(bundle, [image], thresholds=limits, native="off")
        assert isinstance(found, Classification)
        assert (found.label, found.exit) == (here.label, bundle.exits.stages[leave].exit)
        assert found.confidence == pytest.approx(here.confidence, abs=1e-4)
    assert (profile.device, profile.runtime["name"], profile.runtime["version"]) == ("nano", "tensorrt", version)
    assert all(check["passed"] for check in report.checks)
    assert profile.exits[0].samples.cpu_ms is None, "times between two events on the device"
    assert profile.settings["build_plan"]["tensorrt"] == version


def _without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugin library is built: the stand-in runs function bodies."""
    real = DeviceClient.run

    def run(self: DeviceClient, kind: str, spec: Any, progress: Any) -> JobResult:
        if kind == "plugins":
            return JobResult("0" * 32, {"files": {}}, True)
        spec = {**spec, "plugins": None}
        if spec.get("plan"):
            spec["plan"] = {**spec["plan"], "plugins": []}
        return real(self, kind, spec, progress)

    monkeypatch.setattr(DeviceClient, "run", run)


@pytest.mark.parametrize("file", ["stage1.onnx", "static.onnx"])
def test_a_board_that_computes_something_else_is_not_timed(
    file: str, exits: Bundle, client: DeviceClient, entry: DeviceEntry, tmp_path: Path
) -> None:
    bundle = export_model(plain(), tmp_path / "b", ExportSettings(static=True))
    weight = next(item.name for item in _initializers(bundle, file) if item.dims == [5])
    with pytest.raises(VerificationError, match="logits/exit"):
        profile_exits_on_device(spoiled(bundle, file, weight, float("nan")), client, entry, **OPTIONS)


def _initializers(bundle: Bundle, file: str) -> Any:
    import onnx

    return onnx.load(bundle.path / file).graph.initializer


def test_damaged_results_are_named(
    exits: Bundle, client: DeviceClient, entry: DeviceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DeviceClient.run

    def run(self: DeviceClient, kind: str, spec: Any, progress: Any) -> JobResult:
        result = real(self, kind, spec, progress)
        if kind == "profile_exits":
            result.value["confidences"][0].pop()
        return result

    monkeypatch.setattr(DeviceClient, "run", run)
    with pytest.raises(DeviceError, match=r"malformed: confidences\[0\] must be a list of 3.*Measure once more"):
        profile_exits_on_device(exits, client, entry, **OPTIONS)


def test_a_wrong_confidence_is_found(
    exits: Bundle, client: DeviceClient, entry: DeviceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DeviceClient.run

    def run(self: DeviceClient, kind: str, spec: Any, progress: Any) -> JobResult:
        result = real(self, kind, spec, progress)
        if kind == "verify":
            result.value["confidences"][1] = [value + 0.2 for value in result.value["confidences"][1]]
        return result

    monkeypatch.setattr(DeviceClient, "run", run)
    with pytest.raises(VerificationError, match="confidence of exit 2"):
        profile_exits_on_device(exits, client, entry, **OPTIONS)


def test_forced_rates_mean_nothing_for_exits(exits: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", str(exits.path), "--rates", "0.5"]) == 2
    assert "has exits: give --exit-mix" in capsys.readouterr().err


def test_stages_for_a_cpu_are_priced_for_a_board_with_a_note(exits: Bundle, tmp_path: Path) -> None:
    assert any("exported for cpu: an export for nano" in note for note in predict(exits, "nano").notes)
    own = export_model(plain(), tmp_path / "b", ExportSettings(target="nano", precision="fp16"))
    found = predict(own, "nano")
    assert (found.precision, found.notes) == ("fp16", ())


def test_impossible_requests(exits: Bundle, entry: DeviceEntry, tmp_path: Path) -> None:
    client = DeviceClient(entry.transport())
    with pytest.raises(UsageError, match="give 3 shares"):
        profile_exits_on_device(exits, client, entry, mixes=[(1, 1)])
    without = export_model(plain(), tmp_path / "without", ExportSettings())
    with pytest.raises(UsageError, match="--static"):
        profile_exits_on_device(without, client, entry)
    batches = export_model(plain(), tmp_path / "two", ExportSettings(target="nano", static=True, batch=2))
    with pytest.raises(UsageError, match="image by image"):
        profile_exits_on_device(batches, client, entry)
