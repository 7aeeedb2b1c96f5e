"""Images on a board: the lines of ``dyndeploy run``, from the engines that are profiled. This machine is the board."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from dyndeploy import files
from dyndeploy.bundle import MANIFEST, Bundle, write_manifest
from dyndeploy.cli import run
from dyndeploy.errors import DeviceError, UsageError
from dyndeploy.inference import Classification, Failure, Result, classify
from dyndeploy.remote import (
    DeviceClient,
    DeviceEntry,
    JobResult,
    profile_on_device,
    run_on_device,
    running,
    save_device,
)
from dyndeploy.runtimes.native import FALLBACK_BODIES
from tests.bundles import tiny_bundle
from tests.spoiled import spoiled
from tests.staged_bundles import EXITS, staged_bundle


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    paths = []
    for index in range(5):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize("batch", [1, 2])
def test_the_results_are_those_of_this_machine(
    client: DeviceClient, entry: DeviceEntry, tmp_path: Path, photos: list[Path], batch: int
) -> None:
    bundle = tiny_bundle(tmp_path / "b", mode="both", batch=batch)
    here = classify(bundle, photos, native="off")
    there = list(run_on_device(bundle, client, entry, photos))
    assert [item.image for item in there] == [str(path) for path in photos]
    for mine, other in zip(here, there, strict=True):
        assert isinstance(other, Classification)
        assert (other.label, other.exit, other.rates) == (mine.label, None, mine.rates)
        assert other.confidence == pytest.approx(mine.confidence, abs=1e-6)
        assert other.ms > 0 and other.operators == FALLBACK_BODIES
        assert set(other.to_json()) == set(mine.to_json())


def test_exits_are_taken_there(client: DeviceClient, entry: DeviceEntry, tmp_path: Path, photos: list[Path]) -> None:
    bundle = staged_bundle(tmp_path / "b")
    here = [item.exit for item in classify(bundle, photos)]
    there = list(run_on_device(bundle, client, entry, photos))
    assert [item.exit for item in there if isinstance(item, Classification)] == here
    for index, exit in enumerate(EXITS):
        limits = [2.0] * index + [0.0] * (len(EXITS) - 1 - index)
        forced = list(run_on_device(bundle, client, entry, photos[:1], thresholds=limits))
        assert isinstance(forced[0], Classification) and forced[0].exit == exit
        [same] = classify(bundle, photos[:1], thresholds=limits)
        assert forced[0].confidence == pytest.approx(same.confidence, abs=1e-6)
    bare = staged_bundle(tmp_path / "bare", thresholds=None)
    with pytest.raises(UsageError, match="holds no exit thresholds for fp32"):
        list(run_on_device(bare, client, entry, photos))


def test_engines_of_a_profile_are_used_and_images_are_not_kept(
    client: DeviceClient, entry: DeviceEntry, bundle: Bundle, photos: list[Path], tmp_path: Path
) -> None:
    profile_on_device(bundle, client, entry, rates=(0.5,), repeats=2, warmup=1)
    stored = set((tmp_path / "agent" / "store").iterdir())
    engines = set((tmp_path / "agent" / "jobs").iterdir())
    assert len(list(run_on_device(bundle, client, entry, photos))) == 5
    assert set((tmp_path / "agent" / "store").iterdir()) == stored
    assert set((tmp_path / "agent" / "jobs").iterdir()) == engines


def test_images_are_sent_in_parts_and_one_that_fails_keeps_its_place(
    client: DeviceClient, entry: DeviceEntry, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CHUNK_BYTES", 2 * 3 * 16 * 16 * 4)
    parts: list[int] = []
    real = DeviceClient.run

    def count(self: DeviceClient, kind: str, spec: Any, progress: Any) -> JobResult:
        if kind == "run":
            parts.append(spec["batches"])
        return real(self, kind, spec, progress)

    monkeypatch.setattr(DeviceClient, "run", count)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    order = [*photos[:3], broken, *photos[3:]]
    found = list(run_on_device(tiny_bundle(tmp_path / "b"), client, entry, order))
    assert parts == [2, 1, 2]
    assert [isinstance(item, Failure) for item in found] == [False, False, False, True, False, False]
    assert [item.image for item in found] == [str(path) for path in order]


def test_bad_results(client: DeviceClient, entry: DeviceEntry, tmp_path: Path, photos: list[Path]) -> None:
    bundle = spoiled(tiny_bundle(tmp_path / "b"), "model.onnx", "head.b", float("nan"))
    found = list(run_on_device(bundle, client, entry, photos[:2]))
    assert all(isinstance(item, Failure) and "NaN" in str(item.error) for item in found)
    with pytest.raises(UsageError, match="has no exits"):
        list(run_on_device(bundle, client, entry, photos, thresholds=(0.5,)))


def test_results_that_make_no_sense_are_named(
    client: DeviceClient, entry: DeviceEntry, bundle: Bundle, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DeviceClient.run

    def run_job(self: DeviceClient, kind: str, spec: Any, progress: Any) -> JobResult:
        result = real(self, kind, spec, progress)
        if kind == "run":
            result.value["results"] = "bm90IGEgemlw"
        return result

    monkeypatch.setattr(DeviceClient, "run", run_job)
    with pytest.raises(DeviceError, match=r"result of .* is malformed: .*Run once more"):
        list(run_on_device(bundle, client, entry, photos))


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(tmp_path / "devices.json"))
    save_device(DeviceEntry("desk", "local:", work=str(tmp_path / "agent")))
    return "desk"


def test_the_command_prints_what_it_prints_here(
    device: str, bundle: Bundle, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(bundle.path), *map(str, photos[:2]), "--json"]
    assert run([*arguments, "--native", "off"]) == 0
    here = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert run([*arguments, "--device", device]) == 0
    captured = capsys.readouterr()
    there = [json.loads(line) for line in captured.out.splitlines()]
    assert [list(line) for line in there] == [list(line) for line in here]
    assert [(line["image"], line["label"], line["rates"]) for line in there] == [
        (line["image"], line["label"], line["rates"]) for line in here
    ]
    assert "uploading" in captured.err and "engine dynamic" in captured.err
    assert run([*arguments[:-1], "--device", device]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["class", "confidence", "mean", "rate", "ms", "image"]
    (tmp_path / "no.jpg").write_bytes(b"no")
    assert run(["run", str(bundle.path), str(tmp_path / "no.jpg"), str(photos[0]), "--device", device]) == 1
    assert "1 of 2 images failed" in capsys.readouterr().err
    for more, message in (
        (["--native", "off"], "--native: for this machine"),
        (["--runtime", "tensorrt"], "--runtime: for this machine"),
    ):
        assert run([*arguments, "--device", device, *more]) == 2
        assert message in capsys.readouterr().err
    assert run([*arguments, "--device", "nano"]) == 2
    assert "No address is known" in capsys.readouterr().err


def test_a_network_that_gives_no_classes(
    client: DeviceClient, entry: DeviceEntry, tmp_path: Path, photos: list[Path]
) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    model = bundle.load_model()
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "scores"
    onnx.save(model, bundle.model)
    manifest = dataclasses.replace(
        bundle.manifest,
        outputs=(dataclasses.replace(bundle.manifest.outputs[0], name="scores"),),
        files={
            path.relative_to(bundle.path).as_posix(): files.sha256(path)
            for path in bundle.path.rglob("*")
            if path.is_file() and path.name != MANIFEST
        },
    )
    write_manifest(bundle.path, manifest)
    [result] = run_on_device(Bundle.open(bundle.path), client, entry, photos[:1])
    assert (
        isinstance(result, Result) and list(result.outputs) == ["scores"] and result.outputs["scores"].shape == (1, 10)
    )
