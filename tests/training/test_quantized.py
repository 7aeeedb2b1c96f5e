"""Fine-tuning for INT8, from a trained checkpoint to a graph that computes what was trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dyndeploy.blocks import Tape
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.exits import Constraint, calibrate_bundle, store_thresholds
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.nets import load_checkpoint
from dyndeploy.nets.factories import build_network
from dyndeploy.nets.trained import checkpoint_of_run
from dyndeploy.quantization import CalibrationTable, quantize_model
from dyndeploy.runtimes import open_staged
from dyndeploy.runtimes.onnxruntime import OnnxRuntimeSession
from dyndeploy.training import BEST, CALIBRATION, CHECKPOINT, RECIPE, RESULT, Recipe, TrainResult, load_recipe, train
from dyndeploy.training.batches import datasets, held_out_batches
from dyndeploy.training.quantized import QuantizedTraining, convolutions_by_node, freeze_gates
from tests.training.helpers import OWN, own, tiny
from tests.training.test_engine import Recorder, StopError, assert_same_run

SECTION = {"freeze_observers_after": 4, "images": 24, "momentum": 0.2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, bright at the top and at the bottom, of a size that export takes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8)):
        for label in ("down", "up"):
            (folder / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 156, (32, 32, 3), np.uint8)
                pixels[16:] += 100 * (label == "down")
                pixels[:16] += 100 * (label == "up")
                Image.fromarray(pixels).save(folder / part / label / f"{index}.png")
    return folder


def of_images(folder: Path, **changes: Any) -> Recipe:
    """The tiny network on them: four iterations an epoch; a budget that every epoch keeps."""
    content = {
        "model": {**tiny().as_dict()["model"], "input_size": [32, 32]},
        "data": {"dataset": "imagefolder", "folder": str(folder), "augment": False},
        "batch_size": 12,
        "epochs": 2,
        "sparsity": {"target": 1.0},
    }
    return tiny(**content | changes)


@pytest.fixture(scope="module")
def trained(folder_of_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to start from."""
    torch.set_num_threads(1)
    return train(of_images(folder_of_images), tmp_path_factory.mktemp("floats")).checkpoint


def tuned(start: Path, section: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    recipe = load_recipe(start.parent / RECIPE).as_dict()
    recipe["model"]["initial_weights"] = str(start)
    content = recipe | {"optimizer": {"lr": 0.01}, "compute": {"batch_norm": "frozen"}}
    return Recipe.from_dict(content | {"quantization": SECTION | (section or {})} | changes)


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    torch.set_num_threads(1)
    return train(tuned(trained), tmp_path_factory.mktemp("integers"))


def loaded(path: Path) -> torch.nn.Module:
    network = build_network("laud_resnet14_small", {**tiny().model.options, "num_classes": 2}, None)
    load_checkpoint(network, path)
    return network.eval()


def saved(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)["extra"]["training"]
    return content


def test_a_run_ends_with_the_scales_that_it_trained(run: TrainResult, trained: Path) -> None:
    folder = run.checkpoint.parent
    assert run.quantized is not None
    table = CalibrationTable.load(folder / CALIBRATION)
    assert (table.weight_bits, table.method, table.images, table.network) == (7, "mse", 24, "laud_resnet14_small")
    kept = saved(folder)["quantization"]
    assert kept["steps"] == 4
    assert {point: (item.scale, item.zero_point) for point, item in table.tensors.items()} == kept["ranges"]
    assert table.scale("stem/Conv:y") == table.scale("layer1.0/x") and table.scale("layer1.0/y") == table.scale(
        "layer2.0/x"
    )
    start = CalibrationTable.from_json(kept["table"])
    assert table.scale("layer1.0/h1") != start.scale("layer1.0/h1")
    # The gates are those that the run began with, and all else was trained.
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (trained, run.checkpoint))
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (".masker_" in name or "running" in name or "num_b" in name), name
    # The epoch before the scales stood still cannot be the best.
    assert run.best_epoch == 2
    result = json.loads((folder / RESULT).read_text())["quantized"]
    assert result["calibration"] == str(folder / CALIBRATION)
    assert result["accuracy_int8"] == run.evaluation.accuracy == run.history[-1].held_out["accuracy"]
    assert result["mask_bits"] == 16 * (16 * 16 + 8 * 8 + 8 * 8 + 4 * 4)
    assert result["mask_flips"] <= 0.02 * result["mask_bits"]


def test_the_graph_in_int8_computes_what_was_trained(run: TrainResult, tmp_path: Path) -> None:
    folder, recipe = run.checkpoint.parent, run.recipe
    network, table = loaded(folder / BEST), CalibrationTable.load(folder / CALIBRATION)
    bundle = export_model(
        network, tmp_path / "fp32", ExportSettings(input_size=recipe.input_size), preprocessing=recipe.preprocessing
    )
    table.check(bundle)
    inputs, _ = next(iter(held_out_batches(datasets(recipe)[1], recipe, 0, 1)))
    assert recipe.quantization is not None
    integers = QuantizedTraining(network, saved(folder)["quantization"], inputs[:2], recipe.quantization)
    with torch.no_grad(), integers.applied(), Tape(network) as tape:
        expected = network(inputs).logits.numpy()
    flipped, wrong = 0, []
    with OnnxRuntimeSession(quantize_model(bundle.load_model(), table)) as session:
        for row in range(len(inputs)):
            found = session.run({session.inputs[0].name: inputs[row : row + 1].numpy()})
            wrong.append(float(np.abs(found["logits"] - expected[row : row + 1]).max()))
            flipped += sum(int((found[name] != mask[row : row + 1].numpy()).sum()) for name, mask in tape.masks.items())
    assert flipped == 0
    # Sums of floats, in another order, are all that differs; a tie in the first convolution may round the other way.
    assert np.median(wrong) < 1e-5 * np.abs(expected).max()
    assert max(wrong) < 0.02 * np.abs(expected).max()


def test_resuming_equals_never_having_stopped(run: TrainResult, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        train(tuned(trained), tmp_path, progress=Recorder((2, 1)))
    resumed = train(tuned(trained), tmp_path)
    assert resumed.resumed_from == 1
    assert_same_run(run, resumed)
    assert saved(tmp_path)["quantization"] == saved(run.checkpoint.parent)["quantization"]
    assert run.quantized is not None and resumed.quantized is not None
    assert dataclasses.replace(resumed.quantized, calibration=run.quantized.calibration) == run.quantized
    table, other = (CalibrationTable.load(folder / CALIBRATION) for folder in (tmp_path, run.checkpoint.parent))
    assert table.tensors == other.tensors


def test_a_run_can_start_from_a_table(run: TrainResult, tmp_path: Path) -> None:
    folder = run.checkpoint.parent
    section = {"table": str(folder / CALIBRATION), "freeze_observers_after": 0}
    again = train(tuned(folder / BEST, section, epochs=1), tmp_path)
    # With nothing observed the scales are the table's.
    ends = [{p: t.scale for p, t in CalibrationTable.load(f / CALIBRATION).tensors.items()} for f in (folder, tmp_path)]
    assert ends[0] == ends[1]
    assert again.quantized is not None and again.best_epoch == 1


def test_what_cannot_be_fine_tuned_is_refused(run: TrainResult, trained: Path, tmp_path: Path) -> None:
    table = str(run.checkpoint.parent / CALIBRATION)
    for recipe, message in (
        (tuned(trained, {"table": table}), "The calibration table belongs to other weights of laud_resnet14_small"),
        (
            tuned(run.checkpoint, {"table": table, "weight_bits": 8}),
            "is for weights of 7 bits, and .* is 8",
        ),
        (tuned(trained, {"freeze_observers_after": 5}), "freeze_observers_after: 5 is not valid: give at most 4, so"),
        (tuned(trained, {"table": str(tmp_path / "none.json")}), "none.json"),
    ):
        with pytest.raises(DyndeployError, match=message):
            train(recipe, tmp_path / "run")
    unnamed = tuned(trained).as_dict()
    unnamed["model"]["initial_weights"] = None
    with pytest.raises(UsageError, match=r"names none: give its checkpoint \(--init FILE"):
        train(Recipe.from_dict(unnamed), tmp_path / "run")


def test_a_run_that_diverges_says_so_and_keeps_what_it_had(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DyndeployError, match=r"Training diverged.*(Lower optimizer\.lr|nan|NaN)"):
        train(tuned(trained, optimizer={"lr": 1e30}), tmp_path)
    assert not (tmp_path / CALIBRATION).exists()


def test_every_convolution_of_the_graph_is_known_by_its_module() -> None:
    recipe = own("SmallCnn", {})
    network = build_network(recipe.model.name, recipe.model.options, recipe.model.imported)
    nodes = convolutions_by_node(network, (16, 16))
    # What stands in the bodies of skip() is in branches, and stays in floats.
    assert nodes == {"stem/Conv": "stem.0"}


def test_frozen_gates_decide_as_in_evaluation() -> None:
    network = build_network("laud_resnet14_small", tiny().model.options, None).train()
    freeze_gates(network)
    with Tape(network) as tape:
        network(torch.randn(2, 3, 8, 8))
    assert all(torch.equal((tape.margins[name] >= 0).float(), mask) for name, mask in tape.masks.items())
    assert not any(p.requires_grad for name, p in network.named_parameters() if ".masker_" in name)


def test_exits_are_calibrated_again_for_int8(folder_of_images: Path, tmp_path: Path) -> None:
    model = {"name": "three_exits", "options": {"classes": 2}, "input_size": [32, 32], "import": str(OWN)}
    floats = train(of_images(folder_of_images, model=model, epochs=1), tmp_path / "floats")
    run = train(tuned(floats.checkpoint, {"freeze_observers_after": 0}, epochs=1), tmp_path / "integers")
    assert run.quantized is not None and run.quantized.mask_bits == 16 * 16 * 16
    table = CalibrationTable.load(run.quantized.calibration)
    assert table.scale("stages.1.block/x") == table.scale("stages.1.block/y") != table.scale("stages.1.block/h1")
    network = build_network("three_exits", {"classes": 2}, str(OWN))
    load_checkpoint(network, checkpoint_of_run(tmp_path / "integers"))
    settings = ExportSettings(input_size=(32, 32), precision="int8", calibration=run.quantized.calibration)
    bundle = export_model(network, tmp_path / "bundle", settings, preprocessing=run.recipe.preprocessing)
    assert "QuantizedSpatialBottleneck" in {info.op_type for info in bundle.manifest.operators}
    result = calibrate_bundle(bundle, folder_of_images / "val", Constraint(accuracy=0.0))
    assert result.precision == "int8"
    stored = store_thresholds(bundle, result)
    assert set(stored.exits.thresholds) == {"int8"}
    with open_staged(stored) as session:
        # Any accuracy will do: everybody leaves at the first exit.
        assert session.run(np.zeros((2, 3, 32, 32), np.float32)).exits.tolist() == [1, 1]
