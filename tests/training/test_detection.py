from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dyndeploy.nets import create_model, load_checkpoint
from dyndeploy.nets.trained import read_trained
from dyndeploy.training import CHECKPOINT, LOG, RESULT, Recipe, train
from tests.training.test_engine import Recorder, StopError, weights

vision = pytest.mark.vision("torchvision", "cv2", "pycocotools")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(kind: str = "retinanet", **changes: Any) -> Recipe:
    """Four scenes of 48 pixels in batches of two: a second or two for an epoch."""
    content: dict[str, Any] = {
        "name": "tiny",
        "description": "For tests.",
        "model": {
            "name": f"laud_{kind}_small",
            "options": {"mode": "spatial", "size": [48, 48], "pyramid_channels": 8, "tower": 1},
            "input_size": [48, 48],
        },
        "data": {"dataset": "digit_scenes", "scenes": [4, 3]},
        "epochs": 1,
        "batch_size": 2,
        "optimizer": {"name": "adamw", "lr": 0.001},
        "detection": {"proposal_samples": 16, "region_samples": 8},
        "seed": 5,
    }
    return Recipe.from_dict(content | changes)


def without(recipe: Recipe, *names: str) -> dict[str, Any]:
    return {key: value for key, value in recipe.as_dict().items() if key not in names}


# -------------------------------------------------------------------- runs


@vision
@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_a_run_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path, kind: str) -> None:
    recipe = tiny(kind, epochs=2, ema={"decay": 0.5}, compute={"accumulation": 1, "precision": "bfloat16"})
    state = torch.get_rng_state()
    whole = train(recipe, tmp_path / "whole")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(StopError):
        train(recipe, tmp_path / "parts", progress=Recorder((2, 1)))
    torch.rand(7)
    resumed = train(recipe, tmp_path / "parts")
    assert resumed.resumed_from == 1
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [[{**vars(record), "seconds": None} for record in run.history] for run in (whole, resumed)]
    assert rows[0] == rows[1]

    # What is said of it, and what of it was trained.
    evaluation, first = whole.evaluation, whole.history[0]
    assert evaluation.detection is not None
    assert evaluation.detection.images == evaluation.images == 3
    assert (evaluation.detection.masks is None) == (kind == "retinanet")
    losses = {"retinanet": ["classification", "bbox_regression"]}.get(
        kind, ["objectness", "rpn_bbox_regression", "classification", "bbox_regression", "mask"]
    )
    terms = sum(first.training[name] for name in losses)
    assert first.training["loss"] == pytest.approx(terms + first.training["sparsity"], rel=1e-5)
    assert first.training["temperature"] == 0.1
    with (tmp_path / "whole" / LOG).open(newline="") as stream:
        row = list(csv.DictReader(stream))[-1]
    assert float(row["held_out.boxes.ap50"]) == (evaluation.detection.boxes.ap50 or 0)
    assert float(row["held_out.flops_ratio"]) == evaluation.flops_ratio
    assert float(row["held_out.backbone.layer2.0.rate"]) == evaluation.blocks[2].rate
    assert json.loads((tmp_path / "whole" / RESULT).read_text())["evaluation"]["detection"]["images"] == 3
    network = create_model(recipe.model.name, **recipe.model.options)
    fresh = create_model(recipe.model.name, **recipe.model.options)
    assert load_checkpoint(network, tmp_path / "whole" / CHECKPOINT).missing == ()
    trained = read_trained(tmp_path / "whole" / CHECKPOINT)
    assert (trained.name, len(trained.class_names), trained.category_ids) == (
        recipe.model.name,
        10,
        tuple(range(1, 11)),
    )
    # Stem, first stage and batch norm's statistics stay as they were.
    for key, value in a.items():
        if "running" in key or key.startswith(("backbone.conv1", "backbone.layer1")):
            assert "masker" in key or value.shape == fresh.state_dict()[key].shape
    moved = {key for key in a if not torch.equal(a[key], weights_at_start(recipe)[key])}
    assert not any(key.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1.")) for key in moved)
    assert not any("running_" in key for key in moved)
    assert {key.split(".")[0] for key in moved} >= {"backbone", "neck"}
    assert any("masker" in key for key in moved)


def weights_at_start(recipe: Recipe) -> dict[str, torch.Tensor]:
    torch.manual_seed(recipe.seed)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        state: dict[str, torch.Tensor] = create_model(recipe.model.name, **recipe.model.options).state_dict()
    return state
