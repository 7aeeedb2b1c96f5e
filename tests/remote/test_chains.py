"""Detectors in parts on a board: engines of the stand-in for TensorRT, with the host's real programs in between."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import dyndeploy
from dyndeploy import ExportSettings
from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.errors import UsageError, VerificationError
from dyndeploy.graphs.parts import part_of
from dyndeploy.graphs.passes import with_all_bodies
from dyndeploy.graphs.rounding import rounded_model
from dyndeploy.graphs.tensorrt import PrecisionPlan
from dyndeploy.inference import DetectionResult, Failure, detect_images, run_inputs
from dyndeploy.measure import Profile
from dyndeploy.remote import (
    DeviceClient,
    DeviceEntry,
    DeviceReport,
    JobResult,
    LocalTransport,
    detect_on_device,
    profile_on_device,
    run_inputs_on_device,
    save_device,
)
from dyndeploy.runtimes import tensorrt_plan
from dyndeploy.targets import load_device
from dyndeploy.tasks.detection import compare
from tests.detectors import CLASSES, lively_detector, photographs
from tests.remote.test_tensorrt import nano as nano

pytestmark = [pytest.mark.vision("torchvision", "cv2"), pytest.mark.xdist_group("detectors on boards")]

NANO = DeviceEntry("nano", "local:", "nano")
OPTIONS: dict[str, Any] = {"rates": (0.5,), "repeats": 3, "warmup": 1}
_KEPT: list[Any] = []


@functools.cache
def bundle(kind: str, precision: str = "fp32") -> Bundle:
    folder = tempfile.TemporaryDirectory(prefix="dyndeploy-board-parts-")
    _KEPT.append(folder)
    network = lively_detector(kind, "channel" if kind == "retinanet" else "layer")
    settings = ExportSettings(target="nano", precision=precision, static=True)
    return dyndeploy.export_model(network, Path(folder.name) / "b", settings, class_names=CLASSES)


@pytest.fixture
def board(nano: Callable[..., DeviceClient], monkeypatch: pytest.MonkeyPatch) -> Callable[..., DeviceClient]:
    """A Nano that builds no plugins: the stand-in runs function bodies."""
    monkeypatch.setattr(tensorrt_plan, "tensorrt_model", lambda model, *_, **__: with_all_bodies(model))
    for module in ("profiling", "running"):
        monkeypatch.setattr(f"dyndeploy.remote.{module}.plugin_contents", lambda _: {})
    real = DeviceClient.run

    def run_job(self: DeviceClient, kind: str, spec: Any, progress: Any) -> JobResult:
        if kind == "plugins":
            return JobResult("0" * 32, {"files": {}}, True)
        return real(self, kind, {**spec, "plugins": None}, progress)

    monkeypatch.setattr(DeviceClient, "run", run_job)
    return nano


def measure(client: DeviceClient, own: Bundle, **options: Any) -> DeviceReport:
    with client:
        return profile_on_device(own, client, NANO, **{**OPTIONS, **options})


@pytest.mark.parametrize(("kind", "version"), [("retinanet", "10.3.0"), ("mask_rcnn", "8.2.1.8")])
def test_a_chain_is_verified_and_measured_part_by_part(
    kind: str, version: str, board: Callable[..., DeviceClient], tmp_path: Path
) -> None:
    own = bundle(kind)
    report = measure(board(version), own)
    engines = [Path(part.file).stem for part in own.parts if not part.host]
    twins = [Path(part.file).stem for part in own.static_parts if not part.host]
    steps = [*twins, *engines, f"forced {engines[0]}"]
    assert list(report.steps) == ["plugins", *(f"engine {name}" for name in steps), "verify", "profile"]
    checks = {check["name"]: check for check in report.checks}
    assert list(checks) == [
        "masks",
        "detections under equal masks",
        "detections under random masks",
        "static twin: detections",
        "detections as deployed",
    ]
    assert all(check["passed"] for check in report.checks)
    assert "of 200 in 2 images: boxes within" in checks["detections under equal masks"]["detail"]
    assert checks["masks"]["bits"] == 2 * sum(int(np.prod(mask.shape)) for mask in own.manifest.masks)

    profile = report.profile
    assert isinstance(profile, Profile) and Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile
    assert (profile.device, profile.runtime["name"], profile.runtime["version"]) == ("nano", "tensorrt", version)
    assert profile.static.cpu_ms is None and profile.settings["graph_note"] == ""
    for result in (*profile.rates, profile.data):
        assert [(step.name, step.host) for step in result.steps] == [(part.file, part.host) for part in own.parts]
        assert min(min(step.static_ms, step.dynamic_ms) for step in result.steps) > 0
        # Nothing of a run lies outside of its parts.
        assert sum(step.dynamic_ms for step in result.steps) == pytest.approx(result.samples.median, rel=0.5)
        parts = {part.name: part for part in result.parts}
        assert list(parts)[:4] == ["backbone", "neck", "heads", "post-processing"]
        # Every layer of the stand-in takes 0.25 ms, also those inside function bodies; the host's time is its own.
        assert parts["post-processing"].dynamic_ms > 0 and parts["other"].dynamic_ms == 0
        for name in ("backbone", "neck", "heads"):
            for ms in (parts[name].static_ms, parts[name].dynamic_ms):
                assert ms > 0 and ms % 0.25 == pytest.approx(0, abs=1e-9)
        assert parts["neck"].static_ms == parts["neck"].dynamic_ms == 0.25 * nodes_of(own, "neck")


def test_a_chain_in_half_is_verified_by_its_own_limits(
    board: Callable[..., DeviceClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that round what they store: off by more than FP32 may be, and by less than FP16 may."""

    def rounded(model: onnx.ModelProto, plan: PrecisionPlan, *_: object, **__: object) -> onnx.ModelProto:
        assert plan.half and not plan.typed
        return rounded_model(with_all_bodies(model), (), half_maskers=False)

    monkeypatch.setattr(tensorrt_plan, "tensorrt_model", rounded)
    own = bundle("retinanet", "fp16")
    report = measure(board("8.2.1.8"), own)
    checks = {check["name"]: check for check in report.checks}
    assert all(check["passed"] for check in report.checks)
    for name in ("under equal masks", "under random masks", "as deployed"):
        detail = checks[f"detections {name}"]["detail"]
        assert "(limit 0.5)" in detail and "(limit 0.02)" in detail
        assert 0.02 < float(detail.split("boxes within ")[1].split(" px")[0]) < 0.25
    profile = report.profile
    assert isinstance(profile, Profile) and profile.bundle["precision"] == "fp16"
    assert [step.name for step in profile.data.steps] == [part.file for part in own.parts]


def nodes_of(own: Bundle, part: str) -> int:
    return sum(part_of(node.name) == part for _, model in own.load_engine_parts() for node in model.graph.node)


def test_what_was_built_is_kept_and_used_by_runs(board: Callable[..., DeviceClient], tmp_path: Path) -> None:
    own = bundle("retinanet")
    measure(board("8.2.1.8"), own)
    again = measure(board("8.2.1.8"), own)
    assert again.uploaded_bytes == 0
    assert [step for step, how in again.steps.items() if how == "done"] == ["profile"]
    jobs = {path.parent.parent.name for path in (tmp_path / "agent" / "jobs").glob("*/out/engine")}
    paths = images(tmp_path)
    with board("8.2.1.8") as client:
        found = list(detect_on_device(own, client, NANO, paths))
    assert {path.parent.parent.name for path in (tmp_path / "agent" / "jobs").glob("*/out/engine")} == jobs
    assert len(found) == len(paths)
    for engine in (tmp_path / "agent" / "jobs").glob("*/out/engine"):
        engine.write_bytes(b"damaged")
    report = measure(board("8.2.1.8"), own)
    assert {step for step, how in report.steps.items() if how == "found"} == {"plugins", "verify"}


def images(folder: Path) -> list[Path]:
    paths = []
    for index, pixels in enumerate(photographs()):
        paths.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_images_give_what_they_give_here(kind: str, board: Callable[..., DeviceClient], tmp_path: Path) -> None:
    own, paths = bundle(kind), images(tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    here = list(detect_images(own, paths))
    with board("8.2.1.8") as client:
        first, failed, second = detect_on_device(own, client, NANO, [paths[0], broken, paths[1]])
        arrays = {name: value[:1] for name, value in own.reference_inputs().items()}
        [outputs] = run_inputs_on_device(own, client, NANO, [arrays])
    assert isinstance(failed, Failure) and failed.image == str(broken)
    for mine, other in zip(here, (first, second), strict=True):
        assert isinstance(mine, DetectionResult) and isinstance(other, DetectionResult)
        difference = compare(other.detections, mine.detections)
        assert (difference.matched, difference.missed, difference.extra) == (100, 0, 0)
        assert difference.box < 0.05 and difference.score < 1e-4
        assert kind == "retinanet" or (difference.mask_iou is not None and difference.mask_iou > 0.97)
        assert (other.rates, other.input_size, other.resized) == (mine.rates, mine.input_size, mine.resized)
        assert other.ms > 0 and list(other.to_json()) == list(mine.to_json())
    [same] = run_inputs(own, [arrays])
    assert list(outputs.outputs) == list(same.outputs) and outputs.rates == same.rates
    assert outputs.outputs["labels"].dtype == same.outputs["labels"].dtype


def test_a_wrong_engine_is_not_timed(board: Callable[..., DeviceClient], monkeypatch: pytest.MonkeyPatch) -> None:
    own = bundle("retinanet")
    maps = [info.name for info in own.parts[1].inputs if info.name != "image_size"]
    monkeypatch.setenv("FAKE_TENSORRT_WRONG", "0.5")
    monkeypatch.setenv("FAKE_TENSORRT_WRONG_OUTPUTS", " ".join(maps))
    with pytest.raises(VerificationError, match=r"detections under equal masks \(.*limit"):
        measure(board("8.2.1.8"), own)


def test_more_than_a_board_can_hold_is_refused_before_anything_is_sent(
    board: Callable[..., DeviceClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nano_device = load_device("nano")
    assert nano_device.memory is not None
    small = dataclasses.replace(nano_device, memory=dataclasses.replace(nano_device.memory, limit_gb=0.05))
    monkeypatch.setattr("dyndeploy.remote.chains.load_device", lambda _: small)
    with pytest.raises(UsageError, match=r"static twin and it with forced masks, does not fit nano: it needs .* MB"):
        measure(board("8.2.1.8"), bundle("retinanet"))
    assert list((tmp_path / "agent" / "store").iterdir()) == []


def test_a_twin_that_is_one_graph_is_refused_before_a_board_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    own = bundle("retinanet")
    monkeypatch.setattr(DeviceClient, "probe", lambda _: pytest.fail("must not ask"))
    detection = dataclasses.replace(own.manifest.detector(), static_parts=())
    old = Bundle(own.path, dataclasses.replace(own.manifest, detection=detection))
    with pytest.raises(UsageError, match="was not written in parts, as nano runs it"):
        profile_on_device(old, DeviceClient(LocalTransport()), NANO)


def test_the_command_prints_and_writes_the_parts(
    board: Callable[..., DeviceClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    own, paths = bundle("mask_rcnn"), images(tmp_path)
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(tmp_path / "devices.json"))
    save_device(DeviceEntry("desk", "local:", "nano", work=str(tmp_path / "agent")))
    board("8.2.1.8")
    written, page = tmp_path / "p.json", tmp_path / "p.html"
    arguments = ["--device", "desk", "--rates", "0.5", "--repeats", "2"]
    assert run(["profile", str(own.path), *arguments, "--json", str(written), "--report", str(page)]) == 0
    out = capsys.readouterr().out
    assert "engines and host programs, measured in the rounds" in out and "post-processing" in out
    rows = [line.replace("│", "").split()[:2] for line in out.splitlines() if ".onnx" in line or ".npz" in line]
    assert rows == [
        [f"part{index}.{'npz' if index % 2 else 'onnx'}", "host" if index % 2 else "engine"] for index in range(6)
    ]
    value = json.loads(written.read_text())
    assert [step["name"] for step in value["data"]["steps"]] == [part.file for part in own.parts]
    assert "Engines and host programs, measured in the rounds" in page.read_text()

    assert run(["run", str(own.path), *map(str, paths), "--device", "desk", "--json", "--score", "0.1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == list(map(str, paths)) and lines[0]["detections"]
    saved = tmp_path / "saved.png"
    assert run(["run", str(own.path), str(paths[0]), "--device", "desk", "--save", str(saved)]) == 0
    assert Image.open(saved).size == Image.open(paths[0]).size
    assert run(["run", str(own.path), str(tmp_path / "clip.mp4"), "--device", "desk"]) == 2
    assert "Videos and cameras run where they are" in capsys.readouterr().err
