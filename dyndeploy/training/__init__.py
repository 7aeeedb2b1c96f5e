"""Training: recipes, losses, schedules and the loop that carries a recipe out."""

from __future__ import annotations

from dyndeploy.nets.trained import BEST, CHECKPOINT
from dyndeploy.training.engine import (
    EMA,
    LOG,
    RECIPE,
    RESULT,
    TENSORBOARD,
    Progress,
    TrainResult,
    train,
)
from dyndeploy.training.evaluation import (
    BlockEvaluation,
    EarlyExitEvaluation,
    Evaluation,
    ExitEvaluation,
    MaskStatistics,
    evaluate,
)
from dyndeploy.training.logs import EpochRecord
from dyndeploy.training.quantized import CALIBRATION, QuantizedResult
from dyndeploy.training.recipe import Recipe, dump_recipe, load_recipe, recipe_names

__all__ = [
    "BEST",
    "CALIBRATION",
    "CHECKPOINT",
    "EMA",
    "LOG",
    "RECIPE",
    "RESULT",
    "TENSORBOARD",
    "BlockEvaluation",
    "EarlyExitEvaluation",
    "EpochRecord",
    "Evaluation",
    "ExitEvaluation",
    "MaskStatistics",
    "Progress",
    "QuantizedResult",
    "Recipe",
    "TrainResult",
    "dump_recipe",
    "evaluate",
    "load_recipe",
    "recipe_names",
    "train",
]
