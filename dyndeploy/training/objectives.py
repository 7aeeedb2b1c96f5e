"""What a family of networks is trained for: its losses, and how it is evaluated. The engine knows no family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.errors import UsageError
from dyndeploy.nets import (
    DynamicOutput,
    DynPerceiver,
    ExitOutput,
    LaudResNet,
    create_model,
    exit_macs,
    full_flops,
    load_checkpoint,
)
from dyndeploy.training.evaluation import Batches, Evaluation, Gather, evaluate, evaluate_exits
from dyndeploy.training.losses import (
    Bounds,
    block_bounds,
    distillation_loss,
    self_distillation_loss,
    sparsity_loss,
)
from dyndeploy.training.processes import Processes, SharedNoise, share_decisions
from dyndeploy.training.recipe import Recipe
from dyndeploy.training.schedules import scheduled

FLOPS_TOLERANCE = 0.02
"""How far above its target the FLOPs ratio of an epoch may be that counts as the best one."""


class Moment(NamedTuple):
    """Where a run is.

    Attributes:
        epoch: Counted from 0.
        epochs: Of the run.
        done: Fraction of the run's iterations done.
    """

    epoch: int
    epochs: int
    done: float


class Loss(NamedTuple):
    """The loss of one part of a batch.

    Attributes:
        total: What is minimised, 0-d.
        terms: What it consists of, without weights, and what else is logged: 0-d tensors by name.
        logits: (N, classes) of the whole network.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor


class Objective(Protocol):
    """See :class:`MaskObjective` and :class:`ExitObjective`."""

    def settings(self, moment: Moment) -> dict[str, float]:
        """Return what else depends on the moment and is logged, by name."""

    def prepare(self, network: nn.Module, processes: Processes, noise: SharedNoise) -> None:
        """Make the network ready for training on several processes."""

    def loss(self, network: nn.Module, inputs: Tensor, targets: Tensor, moment: Moment, precision: torch.dtype) -> Loss:
        """Return the loss of inputs (N, 3, h, w) for class indices (N,) or probabilities (N, classes)."""

    def evaluate(self, network: nn.Module, batches: Batches, gather: Gather) -> Evaluation:
        """Evaluate the network."""

    def score(self, evaluation: Evaluation) -> float | None:
        """Return what the best epoch has most of; None where an epoch cannot be the best."""


def build(recipe: Recipe, overrides: Mapping[str, object] | None = None) -> nn.Module:
    """Return the recipe's network, with its initial weights.

    Raises:
        CheckpointError: They do not load.
    """
    network = create_model(recipe.model.name, **{**recipe.model.options, **(overrides or {})})
    if recipe.model.initial_weights is not None:
        load_checkpoint(network, recipe.model.initial_weights)
    return network


def objective_of(recipe: Recipe, network: nn.Module, device: torch.device, dtype: torch.dtype) -> Objective:
    """Return the objective of the recipe's family.

    Args:
        recipe: The run.
        network: Made from it, before anything is done to it.
        device: Where the run computes.
        dtype: Type of the weights.

    Raises:
        UsageError: The recipe asks for a teacher and names no weights, or weighs another number of exits.
    """
    if isinstance(network, LaudResNet):
        return MaskObjective(recipe, network, device, dtype)
    assert isinstance(network, DynPerceiver)
    return ExitObjective(recipe, network)


def autocast(tensor: Tensor, precision: torch.dtype) -> torch.autocast:
    """Return the context that computes matrix products in a lower precision than the weights'."""
    return torch.autocast(tensor.device.type, dtype=precision, enabled=precision == torch.bfloat16)


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32 at least: losses lose too much in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class MaskObjective:
    """Networks with masks (LAUD-ResNet): cross entropy, FLOPs budget, and a static teacher.

    Reference: LAUDNet (Han et al., TPAMI 2024), equations of section 3.5 as its reference code has them.

    Args:
        recipe: The run.
        network: The network, on the CPU.
        device: Where the teacher computes.
        dtype: Type of its weights.
    """

    def __init__(self, recipe: Recipe, network: LaudResNet, device: torch.device, dtype: torch.dtype) -> None:
        assert recipe.sparsity is not None and recipe.temperature is not None
        self.sparsity, self.temperature = recipe.sparsity, recipe.temperature
        self.distillation = recipe.distillation
        self.label_smoothing = recipe.label_smoothing
        self.full_flops = full_flops(network, recipe.input_size)
        self.teacher: nn.Module | None = None
        if recipe.distillation is not None:
            teacher = _teacher(recipe)
            self.teacher = teacher.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def settings(self, moment: Moment) -> dict[str, float]:
        """Return the Gumbel-softmax temperature."""
        recipe = self.temperature
        return {"temperature": scheduled(recipe.schedule, recipe.start, recipe.end, moment.done)}

    def prepare(self, network: nn.Module, processes: Processes, noise: SharedNoise) -> None:
        """Let masks be decided and averaged over the whole batch."""
        share_decisions(network, processes, noise)

    def bounds(self, moment: Moment) -> Bounds:
        """Return the bounds on the blocks, which move from epoch to epoch."""
        return block_bounds(self.sparsity.target, moment.epoch / moment.epochs, self.sparsity.bounds_until)

    def loss(self, network: nn.Module, inputs: Tensor, targets: Tensor, moment: Moment, precision: torch.dtype) -> Loss:
        """Return cross entropy + weight x sparsity + weight x distillation."""
        with autocast(inputs, precision):
            output: DynamicOutput = network(inputs, self.settings(moment)["temperature"])
        logits = wide(output.logits)
        cross_entropy = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        sparsity = sparsity_loss(
            output.flops, self.full_flops, output.flops_ratio, self.sparsity.target, self.bounds(moment)
        )
        total = cross_entropy + self.sparsity.weight * sparsity
        distillation = torch.zeros_like(total)
        if self.teacher is not None and self.distillation is not None:
            with torch.no_grad(), autocast(inputs, precision):
                taught = self.teacher(inputs).logits
            distillation = distillation_loss(logits, wide(taught), self.distillation.temperature)
            total = total + self.distillation.weight * distillation
        terms = {
            "cross_entropy": cross_entropy,
            "sparsity": sparsity,
            "distillation": distillation,
            "flops_ratio": output.flops / self.full_flops,
        }
        return Loss(total, terms, logits)

    def evaluate(self, network: nn.Module, batches: Batches, gather: Gather) -> Evaluation:
        """Evaluate the network and its masks."""
        return evaluate(network, batches, self.full_flops, gather)

    def score(self, evaluation: Evaluation) -> float | None:
        """Return the accuracy, where the budget is kept: early epochs compute, and know, more than they may."""
        within = evaluation.flops_ratio <= self.sparsity.target + FLOPS_TOLERANCE
        return evaluation.accuracy if within else None


class ExitObjective:
    """Networks with early exits (Dyn-Perceiver): cross entropy of every exit, and the last exit as teacher.

    Reference: Dynamic Perceiver (Han et al., ICCV 2023), equation 3, as its reference code has it.

    Args:
        recipe: The run.
        network: The network.

    Raises:
        UsageError: ``exits.weights`` has not one entry per exit.
    """

    def __init__(self, recipe: Recipe, network: DynPerceiver) -> None:
        assert recipe.exits is not None
        if len(recipe.exits.weights) != network.exits:
            raise UsageError(
                f"exits.weights has {len(recipe.exits.weights)} entries and {recipe.model.name} has {network.exits} "
                "exits: give one for each."
            )
        self.exits = recipe.exits
        self.distillation = recipe.distillation
        self.label_smoothing = recipe.label_smoothing
        self.macs = exit_macs(network, recipe.input_size)

    def settings(self, moment: Moment) -> dict[str, float]:
        """Return nothing: the loss is the same all the time."""
        return {}

    def prepare(self, network: nn.Module, processes: Processes, noise: SharedNoise) -> None:
        """Do nothing: an image's exits depend on no other image."""

    def loss(self, network: nn.Module, inputs: Tensor, targets: Tensor, moment: Moment, precision: torch.dtype) -> Loss:
        """Return the weighted cross entropies of the exits + weight x self-distillation."""
        with autocast(inputs, precision):
            output: ExitOutput = network(inputs)
        # The reference code takes the distillation of half precision logits where it computes in half precision.
        logits = [wide(each) for each in output.logits]
        losses = [F.cross_entropy(each, targets, label_smoothing=self.label_smoothing) for each in logits]
        total = torch.stack([weight * loss for weight, loss in zip(self.exits.weights, losses, strict=True)]).sum()
        distillation = torch.zeros_like(total)
        if self.distillation is not None:
            distillation = self_distillation_loss(logits, self.distillation.temperature)
            total = total + self.distillation.weight * distillation
        terms = {f"exit{number}.cross_entropy": loss for number, loss in enumerate(losses, 1)}
        return Loss(total, terms | {"distillation": distillation}, logits[-1])

    def evaluate(self, network: nn.Module, batches: Batches, gather: Gather) -> Evaluation:
        """Evaluate every exit, and early exit under the recipe's thresholds."""
        return evaluate_exits(network, batches, self.macs, self.exits.thresholds, gather)

    def score(self, evaluation: Evaluation) -> float | None:
        """Return the mean accuracy of all exits, or as the reference code does, which ignores the first."""
        accuracies = [entry.accuracy for entry in evaluation.exits]
        return max(accuracies[1:]) if self.exits.best == "reference" else sum(accuracies) / len(accuracies)


def _teacher(recipe: Recipe) -> nn.Module:
    if recipe.model.initial_weights is None:
        raise UsageError(
            f"The recipe {recipe.name} learns from the static network of its initial weights, but names none: "
            "give a checkpoint of the static network (--init FILE, or model.initial_weights in the recipe)"
            + (f". {recipe.checkpoint.note}" if recipe.checkpoint.note else ".")
        )
    return build(recipe, {"mode": "static"}).eval().requires_grad_(False)
