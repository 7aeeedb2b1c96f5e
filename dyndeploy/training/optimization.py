"""The optimizer of a recipe: groups of parameters, learning rates and weight decay over the iterations."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from dyndeploy.errors import UsageError
from dyndeploy.training.recipe import LayerRecipe, OptimizerRecipe
from dyndeploy.training.schedules import cosine, stepped, warmed_up, warmed_up_cosine

_PLAIN = LayerRecipe()


def parameter_groups(network: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """Return the network's parameters in groups of equal settings, for a ``torch.optim`` optimizer.

    Each group has "params", their "names", "lr_mult" and "decay_mult" (0 where nothing decays).

    Raises:
        UsageError: A pattern of ``recipe.layers`` fits no parameter.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    used = set()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        pattern = next((pattern for pattern in recipe.layers if fnmatchcase(name, pattern)), None)
        used.add(pattern)
        layer = _PLAIN if pattern is None else recipe.layers[pattern]
        decay = layer.weight_decay_mult if recipe.decay == "all" or _is_matrix(name, parameter) else 0.0
        group = groups.setdefault(
            (layer.lr_mult, decay), {"params": [], "names": [], "lr_mult": layer.lr_mult, "decay_mult": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    for pattern in recipe.layers:
        if pattern not in used:
            names = [name for name, _ in network.named_parameters()]
            raise UsageError(
                f"optimizer.layers: the pattern {pattern!r} fits no parameter, or an earlier one takes all that it "
                f"fits: correct it or leave it out. The parameters are {', '.join(names[:3])}, ... {names[-1]}."
            )
    return list(groups.values())


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and not name.endswith(".bias")


def build_optimizer(network: nn.Module, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over a network's parameters.

    Raises:
        UsageError: See :func:`parameter_groups`.
    """
    groups = parameter_groups(network, recipe)
    if recipe.name == "adamw":
        assert recipe.betas is not None
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)
    assert recipe.momentum is not None
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )


def set_rates(
    optimizer: torch.optim.Optimizer, recipe: OptimizerRecipe, iteration: int, per_epoch: int, epochs: int
) -> float:
    """Set an iteration's learning rates and weight decays; return the learning rate without a factor.

    Args:
        optimizer: From :func:`build_optimizer`.
        recipe: The same.
        iteration: Of the whole run, counted from 0.
        per_epoch: Iterations per epoch.
        epochs: Epochs of the run.
    """
    total = per_epoch * epochs
    if recipe.steps is None:
        lr = warmed_up_cosine(iteration, total, recipe.warmup_epochs * per_epoch, recipe.lr, recipe.lr_end)
    else:
        lr = stepped(iteration, [step * per_epoch for step in recipe.steps], recipe.lr, recipe.step_factor)
        lr *= warmed_up(iteration, recipe.warmup_epochs * per_epoch)
    lr *= warmed_up(iteration, recipe.warmup_iterations, recipe.warmup_start)
    decay = recipe.weight_decay
    if recipe.weight_decay_end is not None:
        decay = cosine(recipe.weight_decay, recipe.weight_decay_end, iteration / total)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
        group["weight_decay"] = decay * group["decay_mult"]
    return lr


def clip_gradients(parameters: Iterable[Tensor], largest: float | None) -> None:
    """Scale all gradients down together where their norm is larger; None leaves them alone."""
    if largest is not None:
        nn.utils.clip_grad_norm_(parameters, largest)
