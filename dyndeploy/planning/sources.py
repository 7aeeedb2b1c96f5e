"""What a plan is made from: the user's calibrations and the accuracies that recipes know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dyndeploy.errors import UsageError
from dyndeploy.planning.plan import Plan
from dyndeploy.planning.search import Price
from dyndeploy.prediction.calibrated import (
    CalibratedModel,
    find_calibrations,
    load_calibration,
)


def calibrated_prices(
    device: str, threads: int | None, given: Sequence[Path] = ()
) -> tuple[dict[int, Price], list[str]]:
    """Prices by number of threads, and what a user should know about them.

    Args:
        device: Its name.
        threads: Only this number; None takes every calibration of the device.
        given: Calibration files; none looks in the user's configuration folder.

    Raises:
        UsageError: The device is not calibrated.
        InputError: A file is missing, foreign or damaged.
    """
    calibrations = [load_calibration(path) for path in given or find_calibrations(device)]
    if threads is not None and any(item.threads == threads for item in calibrations):
        calibrations = [item for item in calibrations if item.threads == threads]
    if not calibrations:
        raise UsageError(
            f"'{device}' is not calibrated: run 'dyndeploy calibrate-device --device {device}' there (ten minutes), or "
            "name a file with --calibration."
        )
    prices: dict[int, Price] = {item.threads: CalibratedModel(item).price for item in calibrations}
    return prices, [warning for item in calibrations for warning in item.warnings()] if device == "cpu" else []


def recipe_accuracy(plan: Plan) -> float | None:
    """Accuracy that a recipe states for exactly these settings; None where none does."""
    from dyndeploy.training.recipe import load_recipe, recipe_names

    if plan.dense:
        return None  # Another function than the one that was trained.
    for name in recipe_names():
        recipe = load_recipe(name)
        accuracy, sparsity = recipe.checkpoint.accuracy, recipe.sparsity
        if accuracy is None or sparsity is None or recipe.model.name != plan.network:
            continue
        if abs(sparsity.target - plan.rate) > 0.01:
            continue
        options = recipe.model.options
        wanted = {"mode": plan.mode, "granularity": plan.granularity, "channel_granularity": plan.channel_granularity}
        if all(_stages(options.get(key, value)) == _stages(value) for key, value in wanted.items()):
            return float(accuracy)
    return None


def _stages(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 4
