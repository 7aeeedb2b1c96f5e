"""``dyndeploy quantize``: images in, a calibration table out; what fails leaves an earlier table whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.quantization import FP32, CalibrationTable
from tests.quantization.networks import balanced_bundle, pictures

CLASSES = 10


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return balanced_bundle(tmp_path_factory.mktemp("quantize") / "b")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images, four of each class."""
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(pictures(4 * CLASSES, seed=8)):
        path = folder / f"class{index % CLASSES}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rint((image.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)).save(path)
    return folder


def quantize(*arguments: object) -> int:
    # The tiny graph does not describe the shapes that an operator library needs behind function bodies.
    return run(["quantize", *map(str, arguments), "--native", "off"])


def test_a_bundle_and_images_make_a_table(
    bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "t.json"
    assert quantize(bundle.path, "--data", data, "-o", path, "--images", 20, "--seed", 3, "--method", "minmax") == 0
    said = capsys.readouterr().out
    assert f"tiny: 10 scales by minmax from 20 images ({data}); 3 of 3 blocks in INT8." in said.replace("\n", " ")
    table = CalibrationTable.load(path)
    table.check(bundle)
    assert (table.images, table.method, table.settings["seed"], table.sensitivity) == (20, "minmax", 3, None)
    assert table.tensors["layer1.0/x"].histogram is not None
    assert quantize(bundle.path, "--data", data, "-o", path, "--images", 20, "--no-histograms", "--json", "-q") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["table"] == str(path) and told["method"] == "mse" and told["settings"]["seed"] == 0
    small = CalibrationTable.load(path)
    assert small.tensors["layer1.0/x"].histogram is None and small == CalibrationTable.from_json(told)


def test_a_budget_makes_a_plan_and_a_report(
    bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "t.json", tmp_path / "r.html"
    options = ("--images", 20, "--max-output-error", 0, "--report", page)
    assert quantize(bundle.path, "--data", data, "-o", path, *options) == 0
    said = capsys.readouterr().out
    assert "layer2.0" in said and "fp32 (costs most)" in said and "in FP32 stem, layer1.0, layer2.0." in said
    table = CalibrationTable.load(path)
    assert set(table.precision.values()) == {FP32} and table.sensitivity is not None
    assert table.sensitivity.images == 20 and table.sensitivity.labels
    text = page.read_text(encoding="utf-8")
    for part in ("tiny: INT8", "fp32 (costs most)", "layer1.0/h1", "output error at most 0.00%", "Scales"):
        assert part in text


def test_a_bundle_settles_its_network(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    assert quantize(bundle.path, "--data", data, "-o", tmp_path / "t.json", "--mode", "layer") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--images", 10], 1, "10 images are too few to calibrate on: give at least 16"),
        (["--method", "guess"], 2, "Unknown method 'guess'"),
        (["--method", "percentile", "--percentile", "40"], 2, "A percentile lies above 50"),
        (["--method", "percentile", "--percentile", "80"], 2, "more than the limit of 1.00%"),
        (["--weight-bits", 9], 2, "Weights have 7 or 8 bits, not 9"),
        (["--max-accuracy-drop", 3], 2, "share in [0, 1]"),
        (["--data", "nowhere"], 1, "There is no folder nowhere"),
    ],
)
def test_what_fails_leaves_an_earlier_table(
    options: list[object], code: int, said: str, bundle: Bundle, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "t.json"
    path.write_text("earlier")
    assert quantize(bundle.path, "--data", data, "-o", path, *options) == code
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("t.json", "earlier")]


def test_an_interrupt_leaves_an_earlier_table(
    bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dyndeploy.quantization

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dyndeploy.quantization, "measure_sensitivity", stop)
    path = tmp_path / "t.json"
    path.write_text("earlier")
    assert quantize(bundle.path, "--data", data, "-o", path, "--images", 20, "--sensitivity") == 130
    assert "interrupted; nothing half-written was left" in capsys.readouterr().err
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("t.json", "earlier")]


def test_an_output_that_cannot_be_written_is_said_before_the_work(
    bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(bundle.path, "--data", "nowhere", "-o", tmp_path) == 1
    assert f"{tmp_path} is a folder" in capsys.readouterr().err


def test_images_without_classes_do_but_for_accuracy(
    bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "images"
    few.mkdir()
    for index, path in enumerate(sorted(data.rglob("*.png"))[:20]):
        (few / f"{index}.png").write_bytes(path.read_bytes())
    assert quantize(bundle.path, "--data", few, "-o", tmp_path / "t.json", "--sensitivity") == 0
    table = CalibrationTable.load(tmp_path / "t.json")
    assert table.sensitivity is not None and not table.sensitivity.labels and table.sensitivity.accuracy is None
    # Fewer images than were asked for: all are calibrated on, and measured on again.
    assert table.images == table.sensitivity.images == 20
    capsys.readouterr()
    assert quantize(bundle.path, "--data", few, "-o", tmp_path / "u.json", "--max-accuracy-drop", 0.01) == 2
    assert "--max-accuracy-drop needs labelled images" in capsys.readouterr().err.replace("\n", " ")


def test_a_source_and_images_are_needed(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(bundle.path, "-o", tmp_path / "t.json") == 2
    assert "Which images? Give --data DIR, or --data digits." in capsys.readouterr().err
    assert quantize("laud_resnet5", "--data", "digits", "-o", tmp_path / "t.json") == 2
    assert "Did you mean" in capsys.readouterr().err


def test_a_recipe_says_network_images_and_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "network: laud_resnet14_small\noptions: {mode: layer, num_classes: 10}\ndata: digits\nimages: 17\n"
        "method: percentile\npercentile: 99.9\nweight_bits: 8\nper_channel: false\nseed: 4\n"
    )
    assert quantize(recipe, "-o", tmp_path / "t.json", "--images", 16) == 0
    table = CalibrationTable.load(tmp_path / "t.json")
    assert (table.network, table.mode, table.images, table.method) == ("laud_resnet14_small", "layer", 16, "percentile")
    assert (table.settings["percentile"], table.settings["seed"], table.weight_bits) == (99.9, 4, 8)
    assert not table.per_channel and "random" in capsys.readouterr().err
