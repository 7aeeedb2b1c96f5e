"""Training: recipes, losses, schedules and the loop that carries a recipe out."""

from __future__ import annotations

from dyndeploy.training.engine import CHECKPOINT, LOG, RECIPE, RESULT, EpochRecord, Progress, TrainResult, train
from dyndeploy.training.evaluation import BlockEvaluation, Evaluation, MaskStatistics, evaluate
from dyndeploy.training.recipe import Recipe, dump_recipe, load_recipe, recipe_names

__all__ = [
    "CHECKPOINT",
    "LOG",
    "RECIPE",
    "RESULT",
    "BlockEvaluation",
    "EpochRecord",
    "Evaluation",
    "MaskStatistics",
    "Progress",
    "Recipe",
    "TrainResult",
    "dump_recipe",
    "evaluate",
    "load_recipe",
    "recipe_names",
    "train",
]
