"""From weights of another tool and a folder of images to a bundle that knows its classes; nothing is typed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dyndeploy.bundle import Bundle, PreprocessingInfo
from dyndeploy.cli import run
from dyndeploy.data import load_image
from dyndeploy.inference import classify
from dyndeploy.nets import create_model, load_checkpoint
from tests.training.helpers import OWN

NAMES = ("zebra", "ant", "Bee", "cat", "dog")
SMALL = {"mode": "spatial", "granularity": [4, 4, 2, 1], "width_mult": 0.25}
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes, each a colour with noise: 6 images to train on and 2 others."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        colour = 40 + 45 * np.array([index, 4 - index, (2 * index) % 5])
        for number in range(8):
            noise = generator.integers(-20, 20, (60, 72, 3))
            path = root / ("train" if number < 6 else "val") / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def static_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static network of 1000 classes, as torchvision writes it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(create_model("laud_resnet14_small", width_mult=0.25, mode="static", num_classes=1000).state_dict(), path)
    return path


def write_recipe(path: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "name": "mine",
        "description": "For tests.",
        "model": {"name": "laud_resnet14_small", "options": SMALL, "input_size": [48, 48]},
        "data": {"dataset": "imagefolder", "mean": MEAN, "std": STD, "resize": 50, "interpolation": "bicubic"},
        "epochs": 2,
        "batch_size": 10,
        "optimizer": {"lr": 0.02},
        "sparsity": {"target": 1.0},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(json.loads(json.dumps(content))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finetuned(images: Path, static_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from the static weights."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder / "mine.yaml")
    arguments = ["train", str(recipe), "--data", str(images), "--init", str(static_weights), "--accelerator", "cpu"]
    assert run([*arguments, "-o", str(folder / "mine")]) == 0
    return folder / "mine"


def test_a_bundle_remembers_the_training(finetuned: Path, images: Path, tmp_path: Path) -> None:
    assert run(["export", str(finetuned), "-o", str(tmp_path / "bundle")]) == 0
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.network.class_names == tuple(sorted(NAMES))
    assert (manifest.input_size, manifest.network.num_classes) == ((48, 48), 5)
    assert manifest.preprocessing == PreprocessingInfo(50, MEAN, STD, "bicubic")
    assert manifest.network.checkpoint == "best.pt"
    assert manifest.network.granularity == (4, 4, 2, 1)
    network = create_model("laud_resnet14_small", **SMALL, num_classes=5)
    load_checkpoint(network, finetuned / "best.pt")
    path = images / "val" / "zebra" / "6.png"
    with torch.no_grad():
        pixels = load_image(path, manifest.preprocessing, (48, 48))
        confidence, label = network.eval()(torch.from_numpy(pixels)[None]).logits.softmax(1).max(1)
    (found,) = classify(tmp_path / "bundle", [path])
    assert found.class_name == sorted(NAMES)[int(label)]
    assert found.confidence == pytest.approx(float(confidence), abs=1e-5)


def test_run_prints_the_names(
    finetuned: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(finetuned / "checkpoint.pt")
    assert run(["export", "--checkpoint", checkpoint, "-o", str(tmp_path / "bundle")]) == 0
    capsys.readouterr()
    assert run(["run", str(tmp_path / "bundle"), str(images / "val" / "ant" / "6.png")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] in NAMES


def test_what_is_typed_wins_and_what_contradicts_the_weights_is_refused(
    finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", str(finetuned), "-o", str(tmp_path / "b")]
    (tmp_path / "names.txt").write_text("\n".join("abcde"), encoding="utf-8")
    typed = ["--input-size", "96x96", "--class-names", str(tmp_path / "names.txt"), "--granularity", "2-2-1-1"]
    assert run([*export, *typed]) == 0
    manifest = Bundle.open(tmp_path / "b").manifest
    assert (manifest.input_size, manifest.network.class_names) == ((96, 96), tuple("abcde"))
    assert manifest.preprocessing == PreprocessingInfo(100, MEAN, STD, "bicubic")
    assert manifest.network.granularity == (2, 2, 1, 1)
    capsys.readouterr()
    assert run([*export, "--mode", "layer"]) == 1
    assert "was trained with mode spatial" in capsys.readouterr().err
    assert run([*export, "--num-classes", "7"]) == 1
    assert "num_classes=5" in capsys.readouterr().err
    named = ["export", "laud_resnet50", "--checkpoint", str(finetuned / "best.pt"), "-o", str(tmp_path / "b")]
    assert run(named) == 2
    assert "is of laud_resnet14_small, not of laud_resnet50" in capsys.readouterr().err


def test_a_fresh_classifier_is_said_aloud_and_a_missing_best_epoch_too(
    images: Path, static_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    recipe = write_recipe(tmp_path / "mine.yaml", epochs=1, sparsity={"target": 0.01})
    flat = images / "train"
    arguments = ["train", str(recipe), "--data", str(flat), "--init", str(static_weights), "-o", str(tmp_path / "run")]
    assert run([*arguments, "--accelerator", "cpu", "--json"]) == 0
    assert "classifier of 1000 classes left out; a fresh one for 5" in caplog.text
    result = json.loads(capsys.readouterr().out)
    assert result["best_checkpoint"] is None
    assert "no epoch kept the FLOPs target of 0.01" in result["notes"][0]
    assert result["recipe"]["model"]["options"]["num_classes"] == 5
    assert result["evaluation"]["images"] == 5  # A fifth of every class.
    assert run(["export", str(tmp_path / "run"), "-o", str(tmp_path / "bundle")]) == 0
    assert "has no best.pt" in capsys.readouterr().err
    assert Bundle.open(tmp_path / "bundle").manifest.network.checkpoint == "checkpoint.pt"


def test_a_fresh_classifier_cannot_teach(
    images: Path, static_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "mine.yaml", epochs=1)
    with recipe.open("a", encoding="utf-8") as file:
        file.write("distillation: {weight: 0.5}\n")
    arguments = ["train", str(recipe), "--data", str(images), "--init", str(static_weights), "-o", str(tmp_path / "r")]
    assert run(arguments) == 2
    assert "no classifier for the 5 classes" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_initial_weights_are_chosen_by_name(
    images: Path, static_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = torch.load(static_weights)
    torch.save({"model": weights, "model_ema": weights}, tmp_path / "both.pth")
    recipe = write_recipe(tmp_path / "mine.yaml", epochs=1)
    arguments = ["train", str(recipe), "--data", str(images), "-o", str(tmp_path / "r"), "--accelerator", "cpu"]
    assert run([*arguments, "--weights", "ema"]) == 2
    assert "give model.initial_weights (--init FILE)" in capsys.readouterr().err
    assert run([*arguments, "--init", str(tmp_path / "both.pth"), "--weights", "best"]) == 1
    assert "is called: model, model_ema" in capsys.readouterr().err
    assert run([*arguments, "--init", str(tmp_path / "both.pth"), "--weights", "ema", "--batch", "15", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["recipe"]
    assert (told["model"]["weights"], told["batch_size"]) == ("ema", 15)


def test_maskers_that_were_never_trained_are_warned_of(
    static_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", "laud_resnet14_small", "-O", "width_mult=0.25", "--num-classes", "1000", "--mode", "layer"]
    assert run([*export, "--checkpoint", str(static_weights), "-o", str(tmp_path / "b")]) == 0
    assert "never trained, so that results mean nothing" in " ".join(capsys.readouterr().err.split())
    (note,) = Bundle.open(tmp_path / "b").manifest.notes
    assert note.startswith("resnet.pth lacks layer1.0.masker_spatial")


def test_an_official_file_is_asked_for_its_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = create_model("laud_resnet14_small", width_mult=0.1, mode="layer")
    torch.save({"state_dict": network.state_dict(), "hyper_set": "100eps"}, tmp_path / "checkpoint.pth.tar")
    export = ["export", "laud_resnet14_small", "-O", "width_mult=0.1", "-o", str(tmp_path / "b")]
    export += ["--checkpoint", str(tmp_path / "checkpoint.pth.tar")]
    assert run(export) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "does not tell its mode and granularity" in error and "--mode (spatial or layer)" in error
    assert not (tmp_path / "b").exists()
    assert run([*export, "--mode", "spatial"]) == 2
    assert "does not tell its granularity" in " ".join(capsys.readouterr().err.split())
    assert run([*export, "--mode", "layer"]) == 0
    assert Bundle.open(tmp_path / "b").manifest.network.mode == "layer"


def test_a_network_of_ones_own_is_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"name": "SmallCnn", "import": str(OWN), "options": {"width": 8, "blocks": 1}, "input_size": [32, 32]}
    recipe = {"name": "own", "description": "For tests.", "model": model, "data": {"dataset": "digits", "mean": MEAN}}
    recipe |= {"epochs": 1, "batch_size": 240, "optimizer": {"lr": 0.05}, "sparsity": {"target": 1.0}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))), encoding="utf-8")
    assert run(["train", str(tmp_path / "own.yaml"), "-o", str(tmp_path / "run"), "--accelerator", "cpu"]) == 0
    assert run(["export", str(tmp_path / "run"), "-o", str(tmp_path / "bundle")]) == 0
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.network.name == "SmallCnn" and len(manifest.masks) == 1
    assert manifest.network.class_names == tuple("0123456789")
    assert manifest.preprocessing == PreprocessingInfo(32, MEAN, (0.5, 0.5, 0.5), "bilinear")
    assert not [note for note in manifest.notes if "nobody said" in note]


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(tmp_path), "-o", str(tmp_path / "b")]) == 2
    assert "no training run" in capsys.readouterr().err
    assert run(["export", "-o", str(tmp_path / "b")]) == 2
    assert "Which network?" in capsys.readouterr().err
    torch.save(create_model("laud_resnet14_small", width_mult=0.1).state_dict(), tmp_path / "a.pt")
    assert run(["export", "--checkpoint", str(tmp_path / "a.pt"), "-o", str(tmp_path / "b")]) == 2
    assert "does not tell which network it is of" in capsys.readouterr().err
