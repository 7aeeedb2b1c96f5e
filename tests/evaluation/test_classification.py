"""Accuracy of a deployed bundle, against counting by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import dyndeploy
from dyndeploy.bundle import Bundle, write_manifest
from dyndeploy.cli import run
from dyndeploy.data import DIGITS, LabelledImages, digits
from dyndeploy.errors import InputError, UsageError
from dyndeploy.evaluation import evaluate_bundle
from dyndeploy.inference import Classification, classify_images
from dyndeploy.runtimes import open_staged
from tests.bundles import resealed, tiny_bundle
from tests.digits_bundles import PREPROCESSING, SIZE, digits_bundle

THRESHOLDS = (0.9, 0.95, 0.5)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return digits_bundle(tmp_path_factory.mktemp("evaluate") / "bundle")


def folder(root: Path, classes: int = 10, images: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (root / f"class{label:02d}").mkdir(parents=True)
        for number in range(images):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"class{label:02d}" / f"{number}.png")
    return root


def named(bundle: Bundle, names: tuple[str, ...]) -> Bundle:
    network = replace(bundle.manifest.network, class_names=names)
    write_manifest(bundle.path, replace(bundle.manifest, network=network))
    return Bundle.open(bundle.path)


def test_exits_are_counted_as_they_are_taken(staged: Bundle) -> None:
    found = evaluate_bundle(staged, DIGITS, thresholds=THRESHOLDS)
    held_out = digits(PREPROCESSING, (SIZE, SIZE)).held_out
    with open_staged(staged, thresholds=THRESHOLDS) as session:
        taken, every = session.run(held_out.images), session.run_all(held_out.images)
    right = taken.logits.argmax(1) == held_out.labels
    assert found.images == len(held_out) == 360
    assert found.top1 == right.mean()
    ranks = (taken.logits > taken.logits[np.arange(360), held_out.labels][:, None]).sum(1)
    assert found.top5 == (ranks < 5).mean()
    assert found.thresholds == pytest.approx(THRESHOLDS)
    for entry, logits in zip(found.exits, every, strict=True):
        there = taken.exits == entry.exit
        assert entry.share == there.mean() > 0
        assert entry.accuracy == (logits.argmax(1) == held_out.labels).mean()
        assert entry.accuracy_there == right[there].mean()
    assert sum(e.share * (e.accuracy_there or 0) for e in found.exits) == pytest.approx(found.top1)
    assert found.rates == {} and found.ms > 0 and found.precision == "fp32"
    assert found.operators is None


def test_without_thresholds_every_image_reaches_the_last_exit(staged: Bundle) -> None:
    found = evaluate_bundle(staged, DIGITS, limit=60)
    assert [entry.share for entry in found.exits] == [0, 0, 0, 1]
    assert found.exits[0].accuracy_there is None
    assert found.exits[-1].accuracy == found.exits[-1].accuracy_there == found.top1 > found.exits[0].accuracy > 0.1
    assert any("no thresholds" in note for note in found.notes)
    assert found.images == 60


@pytest.mark.parametrize("batch", [1, 3])
def test_masks_and_classes_are_those_of_run(batch: int, tmp_path: Path) -> None:
    bundle, data = tiny_bundle(tmp_path / "b", batch=batch), folder(tmp_path / "data")
    found = evaluate_bundle(bundle, data, native="off")
    each = [result for result in classify_images(bundle, [data], native="off") if isinstance(result, Classification)]
    assert found.images == len(each) == 20
    assert found.top1 == np.mean([int(Path(e.image).parent.name[-2:]) == e.label for e in each])
    assert found.rates.keys() == {mask.name for mask in bundle.manifest.masks}
    for name, rate in found.rates.items():
        assert rate == pytest.approx(np.mean([result.rates[name] for result in each]), abs=1e-6)
    assert found.operators == "function bodies"
    assert found.exits == () and found.thresholds is None


def test_folders_are_matched_by_name(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", images=1)
    forwards = tuple(f"class{label:02d}" for label in range(10))
    results = [
        evaluate_bundle(named(tiny_bundle(tmp_path / f"b{i}"), names), data).top1
        for i, names in enumerate((forwards, forwards[::-1]))
    ]
    labels = {e.image: e.label for e in classify_images(tmp_path / "b0", [data]) if isinstance(e, Classification)}
    own = [int(Path(image).parent.name[-2:]) for image in labels]
    assert results[0] == np.mean([a == b for a, b in zip(own, labels.values(), strict=True)])
    assert results[1] == np.mean([9 - a == b for a, b in zip(own, labels.values(), strict=True)])
    (data / "class03").rename(data / "other")
    with pytest.raises(InputError, match=r"missing class03; unknown to the network other"):
        evaluate_bundle(tmp_path / "b0", data)


def test_a_damaged_image_is_named_and_the_rest_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, data = tiny_bundle(tmp_path / "b"), folder(tmp_path / "data")
    (data / "class01" / "0.png").write_bytes(b"no image")
    assert run(["evaluate", str(bundle.path), "--data", str(data), "--json"]) == 1
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert value["images"] == 19 and [Path(entry["image"]).name for entry in value["failures"]] == ["0.png"]
    assert "class01/0.png" in err and "1 of 20 images failed" in err
    assert {"top1", "top5", "classes", "exits", "rates", "precision", "operators", "runtime", "ms"} <= set(value)
    assert value["kind"] == "evaluation" and value["ms_is"] == "measured" and value["classes"] == 10
    assert 0 <= value["top1"] <= value["top5"] <= 1
    for path in data.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="None of the 20 images"):
        evaluate_bundle(bundle, data)


def test_the_table(staged: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(staged.path), "--data", DIGITS, "--limit", "30", "--thresholds", "0.9,0.8,0.99"]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "on 30 images of 10 classes" in out and "measured" in out and "accuracy there" in out


def test_what_cannot_be_evaluated_is_refused(staged: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="limit=0"):
        evaluate_bundle(staged, DIGITS, limit=0)
    with pytest.raises(UsageError, match="thresholds"):
        evaluate_bundle(staged, DIGITS, thresholds=(0.5,))
    with pytest.raises(UsageError, match="no exits: leave the thresholds out"):
        evaluate_bundle(tiny_bundle(tmp_path / "b"), folder(tmp_path / "data", images=1), thresholds=(0.5,))
    with pytest.raises(InputError, match="3 classes"):
        evaluate_bundle(tmp_path / "b", folder(tmp_path / "few", classes=3, images=1))


def test_images_in_memory_have_the_networks_own_labels(staged: Bundle) -> None:
    held_out = digits(PREPROCESSING, (SIZE, SIZE)).held_out
    some = LabelledImages(held_out.images[:40], held_out.labels[:40], held_out.classes)
    assert dyndeploy.evaluate_bundle(staged, some).top1 > 0.9
    shifted = LabelledImages(some.images, (some.labels + 1) % 10, some.classes)
    assert evaluate_bundle(staged, shifted).top1 < 0.2


def test_two_bundles_are_compared_image_by_image(tmp_path: Path) -> None:
    first, data = tiny_bundle(tmp_path / "a", batch=2), folder(tmp_path / "data")
    other = tiny_bundle(tmp_path / "b", batch=3)
    model = other.load_model()
    (bias,) = (item for item in model.graph.initializer if item.name == "layer1.0.spatial.b")
    bias.CopyFrom(numpy_helper.from_array(np.full(1, -50, np.float32), bias.name))
    onnx.save(model, other.model)
    other = resealed(other)
    found = evaluate_bundle(first, data, against=other)
    alone, theirs = evaluate_bundle(first, data), evaluate_bundle(other, data)
    assert alone.against is None and (found.top1, found.rates) == (alone.top1, alone.rates)
    against = found.against
    assert against is not None
    assert (against.top1, against.top5, against.precision) == (theirs.top1, theirs.top5, "fp32")
    classes = [
        [result.label for result in classify_images(bundle, sorted(data.rglob("*.png")))] for bundle in (first, other)
    ]
    assert against.changed == int(np.not_equal(*classes).sum())
    counts = (against.both_right, against.only_first_right, against.only_other_right, against.none_right)
    assert sum(counts) == found.images == 20
    assert (against.both_right + against.only_first_right) / 20 == found.top1
    # The other's first mask is all zeros: what this one computes there differs.
    bits = {mask.name: int(np.prod(mask.shape[1:])) * 20 for mask in first.manifest.masks}
    assert against.mask_bits == sum(bits.values()) and against.mask_flips == sum(against.flips.values())
    name = "mask/layer1.0/spatial"
    assert against.flips[name] == round(found.rates[name] * bits[name]) > 0
    assert against.exits_changed is None
    assert json.loads(json.dumps(found.to_json()))["against"]["mask_flips"] == against.mask_flips


def test_exits_of_two_bundles_are_compared(staged: Bundle) -> None:
    found = evaluate_bundle(staged, DIGITS, limit=40, thresholds=THRESHOLDS, against=staged)
    assert found.against is not None
    # The other one has no thresholds: its images go to the last exit.
    assert found.against.exits_changed == round(40 * (1 - found.exits[-1].share)) > 0
    assert any("no thresholds" in note for note in found.notes)


def test_bundles_of_other_images_or_classes_are_not_compared(staged: Bundle, tmp_path: Path) -> None:
    bundle, data = tiny_bundle(tmp_path / "b"), folder(tmp_path / "data")
    with pytest.raises(UsageError, match="takes other images"):
        evaluate_bundle(bundle, data, against=staged)
    renamed = named(tiny_bundle(tmp_path / "c"), tuple(f"other{index}" for index in range(10)))
    first = named(bundle, tuple(f"class{index:02d}" for index in range(10)))
    with pytest.raises(UsageError, match="other classes"):
        evaluate_bundle(first, data, against=renamed)


def test_the_command_says_what_differs(staged: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(staged.path), "--data", "digits", "--limit", "20", "--against", str(staged.path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "0 of 20 images change class" in out and "0 of 20 images leave at another exit" in out


def test_processes_share_the_images(staged: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dyndeploy.chunks.CHUNK", 32)
    data, bundle = folder(tmp_path / "data", images=9), tiny_bundle(tmp_path / "b")
    (data / "class03" / "4.png").write_bytes(b"torn")
    failed: list[str] = []
    options = {"against": bundle, "native": "off", "on_failure": lambda failure: failed.append(failure.image)}
    alone, shared = (
        untimed(evaluate_bundle(bundle, data, workers=workers, state=tmp_path / f"s{workers}", **options).to_json())
        for workers in (1, 3)
    )
    assert alone == shared and alone["images"] == 89 and alone["against"]["mask_bits"] > 0
    assert len(failed) == 2 and failed[0] == failed[1] == alone["failures"][0]["image"]
    assert len(list((tmp_path / "s3").glob("chunk-*.json"))) == 3
    # A network with exits, its images in memory, and thresholds that the state has to agree with.
    some = digits(PREPROCESSING, (SIZE, SIZE)).held_out
    exits = {"thresholds": THRESHOLDS, "state": tmp_path / "exits"}
    first = untimed(evaluate_bundle(staged, some, workers=2, **exits).to_json())
    assert untimed(evaluate_bundle(staged, some, thresholds=THRESHOLDS).to_json()) == first
    assert untimed(evaluate_bundle(staged, some, **exits).to_json()) == first
    with pytest.raises(UsageError, match="differs in bundles"):
        evaluate_bundle(staged, some, state=tmp_path / "exits", thresholds=(0.5, 0.5, 0.5))


def untimed(plain: dict[str, Any]) -> dict[str, Any]:
    """Everything but what a clock said."""
    return {name: untimed(value) if isinstance(value, dict) else value for name, value in plain.items() if name != "ms"}


def test_torchruns_processes_share_the_command(staged: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dyndeploy.cli", "evaluate", str(staged.path), "--data", DIGITS, "--json"]
    command += ["--state", str(tmp_path / "state"), "--limit", "300"]
    both = [
        subprocess.Popen(
            command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}, stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    first, second = (process.communicate(timeout=120)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0] and second == ""
    found = json.loads(first)
    assert untimed(found) == {
        "bundle": str(staged.path),
        **untimed(evaluate_bundle(staged, DIGITS, limit=300, runtime="auto").to_json()),
    }
