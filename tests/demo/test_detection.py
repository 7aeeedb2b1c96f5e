from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from dyndeploy.demo import LEAST_AP50, DetectionDemoResult, run_detection_demo
from dyndeploy.errors import UsageError
from dyndeploy.evaluation import DetectionEvaluation
from dyndeploy.tasks.coco import AveragePrecision, CocoMetrics
from dyndeploy.training import BlockEvaluation, Evaluation, MaskStatistics, Recipe, TrainResult

CLASSIFIER = {
    "name": "tiny-classifier",
    "description": "test",
    "model": {"name": "laud_resnet26_small", "options": {"mode": "static", "width_mult": 0.67, "num_classes": 10},
              "input_size": [32, 32]},
    "data": {"dataset": "digit_scenes", "scenes": [8, 4]},
    "epochs": 1,
    "batch_size": 4,
    "optimizer": {"lr": 0.01},
}  # fmt: skip
DETECTOR = {
    "name": "tiny-detector",
    "description": "test",
    "model": {
        "name": "laud_retinanet_small",
        "options": {"mode": "spatial", "granularity": [4, 4, 2, 1], "num_classes": 10, "size": [64, 64],
                    "pyramid_channels": 16, "tower": 1},
        "input_size": [64, 64],
    },
    "data": {"dataset": "digit_scenes", "scenes": [4, 3]},
    "epochs": 1,
    "batch_size": 4,
    "optimizer": {"lr": 0.001},
}  # fmt: skip


def recipes() -> tuple[Recipe, Recipe]:
    return Recipe.from_dict(CLASSIFIER), Recipe.from_dict(DETECTOR)


@pytest.mark.vision("torchvision", "cv2", "pycocotools")
def test_the_whole_way(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    steps: list[str] = []
    result = run_detection_demo(tmp_path, recipes=recipes(), repeats=2, step=steps.append)

    assert list(result.seconds) == ["classify", "train", "export", "verify", "evaluate", "profile", "report"]
    assert len(steps) == 7
    written = {"bundle", "classifier", "demo.json", "profile.json", "report.html", "scenes", "training"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert result.verification.passed and result.verification.mask_bits > 0
    # The exported graph finds what PyTorch finds.
    assert result.evaluation.images == 3
    assert result.evaluation.boxes.ap == pytest.approx(result.trained.ap, abs=1e-3)
    # One iteration teaches nothing, and that is admitted.
    assert any("AP50" in shortfall for shortfall in result.shortfalls)
    summary = json.loads((tmp_path / "demo.json").read_text())
    assert summary == json.loads(json.dumps(result.to_json()))
    # Nobody is promised more than the dynamic share allows.
    assert 0 < summary["dynamic_share"] < 1
    assert summary["ideal_speedup"] <= summary["speedup_limit"] == pytest.approx(1 / (1 - summary["dynamic_share"]))
    assert {part["name"] for part in summary["parts"]} >= {"backbone", "neck", "heads", "post-processing"}

    page = result.report.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2 * 2 * 3
    for text in ("What it finds", "Average precision", "post-processing", "Dynamic share", "never saw", "classifier"):
        assert text in page
    assert "What each block computes" in page
    decisions = [(block.name, mask) for block in result.training.evaluation.blocks for mask in block.masks]
    assert len(decisions) == 8
    for name, mask in decisions:
        assert re.search(rf"{re.escape(name)}<.*?{mask.rate:.0%}<", page, re.DOTALL)


def test_shortfalls_are_found_one_by_one() -> None:
    def shortfalls(trained: float, deployed: float, flops_ratio: float, distinct: int) -> tuple[str, ...]:
        def precision(ap50: float) -> AveragePrecision:
            return AveragePrecision(ap50, ap50, ap50, None, None, None, ())

        mask = MaskStatistics("spatial", 64, 0.5, 0.1, 0.2, 0.3, distinct)
        metrics = CocoMetrics(precision(trained), None, 200, 900)
        evaluation = Evaluation(
            200, None, 0.1, 1e6, flops_ratio, (BlockEvaluation("layer1.0", 0.5, 0.5, (mask,)),), detection=metrics
        )
        recipe = cast(Any, type("R", (), {"sparsity": type("S", (), {"target": 0.5})}))
        training = TrainResult(recipe, Path("c"), Path("l"), (), evaluation, 0)
        found = cast(DetectionEvaluation, type("E", (), {"boxes": precision(deployed)}))
        nothing = cast(Any, None)
        return DetectionDemoResult(Path("r"), nothing, training, nothing, found, nothing, {}).shortfalls

    assert shortfalls(0.95, LEAST_AP50, 0.54, 9) == ()
    [low] = shortfalls(0.95, 0.69, 0.5, 9)
    assert "0.950 in PyTorch and 0.690 deployed" in low
    [ratio] = shortfalls(0.95, 0.95, 0.56, 9)
    assert "FLOPs ratio 0.560, 0.5 +- 0.05" in ratio
    [same] = shortfalls(0.95, 0.95, 0.5, 1)
    assert "same masks" in same


@pytest.mark.vision("torchvision", "cv2", "pycocotools")
def test_recipes_of_something_else_are_refused(tmp_path: Path) -> None:
    first, second = recipes()
    with pytest.raises(UsageError, match="tiny-classifier is none"):
        run_detection_demo(tmp_path / "demo", recipes=(second, first))
    assert not (tmp_path / "demo").exists()
