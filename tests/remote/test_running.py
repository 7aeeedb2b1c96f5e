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
from dyndeploy.errors import DeviceError, InputError, NotFiniteError, UsageError
from dyndeploy.inference import Classification, Failure, Result, classify, run_inputs
from dyndeploy.remote import (
    DeviceClient,
    DeviceEntry,
    JobResult,
    profile_on_device,
    run_inputs_on_device,
    run_on_device,
    running,
    save_device,
)
from dyndeploy.runtimes.native import FALLBACK_BODIES
from tests.bundles import many_bundle, tiny_bundle
from tests.spoiled import spoiled
from tests.staged_bundles import EXITS, staged_bundle
from tests.staged_bundles import images as staged_images


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


@pytest.mark.parametrize("kind", ["masks", "several inputs", "several rows"])
def test_arrays_give_what_they_give_here(client: DeviceClient, entry: DeviceEntry, tmp_path: Path, kind: str) -> None:
    if kind == "several inputs":
        bundle = many_bundle(tmp_path / "b")
    else:
        bundle = tiny_bundle(tmp_path / "b", mode="both", batch=2 if kind == "several rows" else 1)
    generator = np.random.default_rng(3)
    inputs = [
        {info.name: generator.standard_normal(info.shape).astype(info.dtype) for info in bundle.manifest.inputs}
        for _ in range(2)
    ]
    here = run_inputs(bundle, inputs, native="off")
    there = run_inputs_on_device(bundle, client, entry, inputs)
    assert len(there) == 2
    for mine, other in zip(here, there, strict=True):
        assert (other.exit, other.rates, other.image, other.operators) == (None, mine.rates, None, mine.operators)
        assert list(other.outputs) == list(mine.outputs) and other.ms > 0
        for name, value in mine.outputs.items():
            np.testing.assert_allclose(other.outputs[name], value, atol=1e-6)
        assert list(other.to_json()) == list(mine.to_json())


def test_arrays_leave_at_the_exit_that_they_leave_at_here(
    client: DeviceClient, entry: DeviceEntry, tmp_path: Path
) -> None:
    bundle = staged_bundle(tmp_path / "b")
    name, pictures = bundle.manifest.inputs[0].name, staged_images(4)
    alone = [{name: picture[None]} for picture in pictures]
    here = run_inputs(bundle, alone, native="off")
    assert len({result.exit for result in here}) > 1
    there = run_inputs_on_device(bundle, client, entry, [*alone, {name: pictures}])
    assert [result.exit for result in there] == [*(result.exit for result in here), here[0].exit]
    logits = np.concatenate([result.outputs["logits"] for result in here])
    np.testing.assert_allclose(np.concatenate([result.outputs["logits"] for result in there[:4]]), logits, atol=1e-6)
    np.testing.assert_allclose(there[4].outputs["logits"], logits, atol=1e-6)
    last = [2.0] * (len(EXITS) - 1)
    [forced] = run_inputs_on_device(bundle, client, entry, alone[:1], thresholds=last)
    assert forced.exit == EXITS[-1]
    with pytest.raises(InputError, match="There are no images"):
        run_inputs_on_device(bundle, client, entry, [{name: pictures[:0]}])


def test_arrays_that_do_not_fit_are_told_before_a_board_is_asked(
    client: DeviceClient, entry: DeviceEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    right = {name: value[:1] for name, value in bundle.reference_inputs().items()}
    spoiled_bundle = spoiled(tiny_bundle(tmp_path / "nan"), "model.onnx", "head.b", float("nan"))
    with pytest.raises(NotFiniteError, match="NaN"):
        run_inputs_on_device(spoiled_bundle, client, entry, [right])
    monkeypatch.setattr(running, "ask_board", lambda *_, **__: pytest.fail("must not ask"))
    for wrong, message in (
        ({}, "missing input"),
        (right | {"more": right["input"]}, "unknown more"),
        ({"input": right["input"][:, :2]}, r"expected float32 \(1, 3, 16, 16\), got float32 \(1, 2, 16, 16\)"),
        ({"input": right["input"].astype(np.float64)}, "got float64"),
        ({"input": right["input"] * np.nan}, "expected finite numbers"),
    ):
        with pytest.raises(InputError, match=message):
            run_inputs_on_device(bundle, client, entry, [wrong])
    with pytest.raises(UsageError, match="at least one input"):
        run_inputs_on_device(bundle, client, entry, [])
    with pytest.raises(UsageError, match="has no exits"):
        run_inputs_on_device(bundle, client, entry, [right], thresholds=(0.5,))


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


def test_the_command_prints_of_arrays_what_it_prints_here(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "arrays", mode="both")
    np.save(tmp_path / "x.npy", bundle.reference_inputs()["input"][:1])
    arguments = ["run", str(bundle.path), "--input", f"input={tmp_path / 'x.npy'}"]
    assert run([*arguments, "--json", "--native", "off", "-o", str(tmp_path / "here.npz")]) == 0
    here = json.loads(capsys.readouterr().out)
    assert run([*arguments, "--json", "--device", device, "-o", str(tmp_path / "there.npz")]) == 0
    there = json.loads(capsys.readouterr().out)
    assert list(there) == list(here)
    assert (there["image"], there["exit"], there["rates"]) == (None, None, here["rates"])
    assert there["outputs"]["logits"]["shape"] == here["outputs"]["logits"]["shape"] == [1, 10]
    with np.load(tmp_path / "here.npz") as mine, np.load(tmp_path / "there.npz") as other:
        assert set(mine) == set(other) == {"logits"}
        np.testing.assert_allclose(other["logits"], mine["logits"], atol=1e-6)
    assert run([*arguments, "--device", device]) == 0
    out = capsys.readouterr().out
    assert "logits" in out and "(1, 10)" in out
    rates = [f"{mask}: rate {rate:.3f}" for mask, rate in here["rates"].items()]
    assert out.splitlines()[-len(rates) :] == rates
    assert run([*arguments, "--device", device, "--native", "off"]) == 2
    assert "--native: for this machine" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), np.float32))
    assert run([*arguments, "--device", device]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("dyndeploy: Input 'input': expected float32")


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
