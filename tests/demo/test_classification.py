from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from dyndeploy.data import digits
from dyndeploy.demo import LEAST_ACCURACY, DemoResult, run_demo
from dyndeploy.errors import UsageError
from dyndeploy.nets import model_info
from dyndeploy.training import BlockEvaluation, Evaluation, MaskStatistics, Recipe, TrainResult
from tests.training.helpers import tiny


def small(**changes: object) -> Recipe:
    model = {
        "name": "laud_resnet14_small",
        "options": {"mode": "spatial", "granularity": [8, 4, 2, 1], "width_mult": 0.17},
        "input_size": [32, 32],
    }
    return tiny(model=model, epochs=1, **changes)


def test_the_whole_way(tmp_path: Path) -> None:
    # One test for all: the way takes seconds, and parallel workers would each walk it for themselves.
    torch.set_num_threads(1)
    steps: list[str] = []
    result = run_demo(tmp_path, recipe=small(), repeats=2, step=steps.append)

    assert list(result.seconds) == ["train", "export", "verify", "profile", "report"]
    assert len(steps) == 5
    written = {"bundle", "demo.json", "images", "profile.json", "report.html", "training"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert result.verification.passed
    assert result.verification.mask_bits > 0
    # The exported graph classifies as PyTorch does; a tie of rounding may flip an image or two.
    assert result.deployed_accuracy == pytest.approx(result.training.evaluation.accuracy, abs=2 / 360)

    # The held-out digits are written as they are fed.
    with (tmp_path / "images" / "index.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    held_out = digits(model_info("laud_resnet14_small").preprocessing, (32, 32), seed=5).held_out
    assert [row["class"] for row in rows] == [str(label) for label in held_out.labels]
    for row, image in zip(rows[::40], held_out.images[::40], strict=True):
        pixels = np.asarray(Image.open(tmp_path / "images" / row["file"]))
        np.testing.assert_allclose(pixels.transpose(2, 0, 1) / 127.5 - 1, image, atol=1e-6)

    # One epoch of a network this small cannot reach 95 %, and that is admitted.
    assert result.training.evaluation.accuracy < LEAST_ACCURACY
    assert any("held-out accuracy" in shortfall for shortfall in result.shortfalls)
    summary = json.loads((tmp_path / "demo.json").read_text())
    assert summary == json.loads(json.dumps(result.to_json()))
    assert summary["realisation"] == pytest.approx(summary["realised_speedup"] / summary["ideal_speedup"])

    assert summary["operators"] == result.profile.operator_code is not None
    assert summary["warnings"] == result.profile.warnings()

    # The report shows the masks of two blocks for ten classes, each as input and overlay.
    page = result.report.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 40
    assert page.index("What the masks choose") < page.index("Latency against rate")
    for text in (
        "ink on paper",
        result.profile.operator_code,
        "computes",
        "different masks among 360 images",
        "MACs of the network",
        "never saw",
    ):
        assert text in page


def test_shortfalls_are_found_one_by_one() -> None:
    def shortfalls(accuracy: float, deployed: float, flops_ratio: float, varying: float) -> tuple[str, ...]:
        mask = MaskStatistics("spatial", 64, 0.5, 0.1, 0.2, varying, 9)
        block = BlockEvaluation("layer1.0", 0.5, 0.5, (mask,))
        evaluation = Evaluation(360, accuracy, 0.1, 1e6, flops_ratio, (block,))
        training = TrainResult(small(), Path("c"), Path("l"), (), evaluation, 0)
        # Neither the verification nor the profile plays a part.
        return DemoResult(Path("r"), training, cast(Any, None), deployed, cast(Any, None), {}).shortfalls

    assert shortfalls(0.96, 0.96, 0.54, 0.1) == ()
    assert shortfalls(0.94, 0.96, 0.5, 0.1)[0].startswith("held-out accuracy 94.00% in PyTorch")
    assert len(shortfalls(0.96, 0.94, 0.5, 0.1)) == 1
    assert shortfalls(0.96, 0.96, 0.56, 0.1)[0].startswith("FLOPs ratio 0.560")
    assert shortfalls(0.96, 0.96, 0.44, 0.1)[0].startswith("FLOPs ratio 0.440")
    assert shortfalls(0.96, 0.96, 0.5, 0.0) == ("every image gets the same masks",)


def test_only_digits(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for imagefolder"):
        run_demo(tmp_path / "demo", recipe=small(data={"dataset": "imagefolder"}))
    assert not (tmp_path / "demo").exists()


def test_kept_tokens_are_shown_in_the_gallery(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = {"name": "ada_vit_small", "options": {"token_with_mlp": True, "layer": True}, "input_size": [32, 32]}
    optimizer = {"name": "adamw", "lr": 0.001}
    result = run_demo(tmp_path, recipe=tiny(model=model, epochs=1, optimizer=optimizer), repeats=2)
    assert result.verification.passed and result.verification.mask_bits > 0
    page = (tmp_path / "report.html").read_text()
    # Two blocks, ten digits, each beside the digit itself; sublayers and heads are no places in an image.
    assert page.count("data:image/png;base64,") == 2 * 2 * 10
    assert "token: " in page and "blocks.0" in page
