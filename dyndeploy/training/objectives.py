"""What a network is trained for: one objective of parts, whatever the network is; and how it is evaluated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks import Tape, dynamic_blocks, named_outputs
from dyndeploy.blocks.block import run_dense
from dyndeploy.blocks.gates import no_noise
from dyndeploy.errors import DyndeployError, NotFiniteError, UsageError
from dyndeploy.finite import listed
from dyndeploy.nets import LoadReport, load_checkpoint
from dyndeploy.nets.factories import build_network, load_function
from dyndeploy.training.evaluation import Batches, Evaluation, LossFunction, evaluate, logits_of
from dyndeploy.training.flops import Costs
from dyndeploy.training.losses import (
    Bounds,
    block_bounds,
    distillation_loss,
    self_distillation_loss,
    sparsity_loss,
)
from dyndeploy.training.processes import Processes, SharedNoise
from dyndeploy.training.recipe import Recipe
from dyndeploy.training.schedules import scheduled
from dyndeploy.training.usage import UsageLoss, usage_losses

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
        logits: (N, classes) of the whole network; None where the first output is none.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None


def build(recipe: Recipe, classes: int) -> tuple[nn.Module, LoadReport | None]:
    """Return the recipe's network with its initial weights, and what the file gave that holds them.

    Args:
        recipe: The run.
        classes: Number of classes of the images; initial weights of another classifier leave a fresh one.

    Raises:
        UsageError: It cannot be built, or neither the recipe nor the file says an option that decides what the initial
            weights compute.
        InputError: What the recipe imports is missing, or raises.
        CheckpointError: The initial weights do not load.
    """
    network = build_network(recipe.model.name, recipe.model.options, recipe.model.imported)
    if recipe.model.initial_weights is None:
        return network, None
    report = load_checkpoint(network, recipe.model.initial_weights, weights=recipe.model.weights, classes=classes)
    for option in report.untold:
        if option not in recipe.model.options:
            raise UsageError(
                f"{recipe.model.initial_weights} does not tell its {option}: give model.options.{option} in the recipe."
            )
    return network, report


def autocast(tensor: Tensor, precision: torch.dtype) -> torch.autocast:
    """Return the context that computes matrix products in a lower precision than the weights'."""
    return torch.autocast(tensor.device.type, dtype=precision, enabled=precision == torch.bfloat16)


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32 at least: losses lose too much in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class GatedObjective:
    """What every objective has: how gates decide, and what they are held to.

    Args:
        recipe: The run.
        network: Made from it.
        processes: Over which the batch's averages are taken; None for one process.
        noise: Of the gates; None leaves them their own.

    Attributes:
        unused: Whether some of the trained parameters do not reach the loss.
        notes: What else one has to know of the run, as sentences.
    """

    unused = False
    notes: tuple[str, ...] = ()

    def __init__(
        self, recipe: Recipe, network: nn.Module, processes: Processes | None = None, noise: SharedNoise | None = None
    ) -> None:
        self.recipe, self.network = recipe, network
        self._mean: Callable[[Tensor], Tensor] = torch.mean if processes is None else processes.mean
        self._noise = noise

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move what it has beside the network to where, and in what, the run computes."""

    def settings(self, moment: Moment) -> dict[str, float]:
        """Return what depends on the moment and is logged: the Gumbel-softmax temperature of networks with gates."""
        recipe = self.recipe.temperature
        if recipe is None:
            return {}
        return {"temperature": scheduled(recipe.schedule, recipe.start, recipe.end, moment.done)}

    def decided(self, moment: Moment) -> bool:
        """Whether gates decide as in evaluation at that moment, and do not sample any more."""
        recipe = self.recipe.temperature
        return recipe is not None and recipe.noise_until < 1 and moment.done >= recipe.noise_until

    def bounds(self, moment: Moment) -> Bounds:
        """Return the bounds on the blocks' FLOPs ratios, which move from epoch to epoch."""
        assert self.recipe.sparsity is not None
        sparsity = self.recipe.sparsity
        return block_bounds(sparsity.target, moment.epoch / moment.epochs, sparsity.bounds_until)

    def tape(self, moment: Moment) -> Tape:
        """Return what records a pass at that moment, and tells the gates how to decide."""
        temperature = self.settings(moment).get("temperature")
        noise = no_noise if self.decided(moment) else self._noise
        return Tape(self.network, temperature=temperature, noise=noise, mean=self._mean)

    def of_batch(self, network: nn.Module, batch: Any, moment: Moment, precision: torch.dtype) -> Loss:
        """Return the loss of a part of a batch.

        Args:
            network: The network, or what spreads it over several processes.
            batch: What the recipe's images come in.
            moment: Where the run is.
            precision: Of the matrix products.
        """
        raise NotImplementedError

    def evaluate(self, batches: Iterable[Any], gather: Any) -> Evaluation:
        """Evaluate the network on held-out images; ``gather`` brings together what several processes found."""
        raise NotImplementedError

    def score(self, evaluation: Evaluation) -> float | None:
        """Return what the best epoch has most of; None where an epoch cannot be the best."""
        raise NotImplementedError

    def _usage(self, tape: Tape) -> dict[str, UsageLoss]:
        return {} if self.recipe.usage is None else usage_losses(self.recipe.usage, tape, self.recipe.model.name)


class Objective(GatedObjective):
    """Cross entropy, or a loss function, + what the gates are held to + distillation, each where it is of use.

    Gates are held to a FLOPs budget, to shares of their decisions by kind, or to both.

    With several exits: the weighted cross entropies of all, and the last one as teacher; else the static network of the
    same initial weights teaches. References: LAUDNet (Han et al., TPAMI 2024), equations of section 3.5; Dynamic
    Perceiver (Han et al., ICCV 2023), equation 3; both as their reference codes have them.

    Args:
        recipe: The run.
        network: Made from it, on the CPU, before anything is done to it.
        images: A few of the training images (n, 3, h, w), to try the network on.
        labels: Their class indices (n,).
        classes: Number of classes of the images.
        processes: Over which the batch's averages are taken; None for one process.
        noise: Of the gates; None leaves them their own.

    Attributes:
        costs: What passes of the network cost.
        unused: Whether some of the trained parameters do not reach the loss.

    Raises:
        UsageError: The network cannot be trained as the recipe says: see :meth:`_rehearse`.
        NotFiniteError: Its outputs or its loss are not finite before any training.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        classes: int,
        *,
        processes: Processes | None = None,
        noise: SharedNoise | None = None,
    ) -> None:
        super().__init__(recipe, network, processes, noise)
        self.exits = recipe.model.traits.exits
        self.loss_function: LossFunction | None = None if recipe.loss is None else load_function(recipe.loss)
        if recipe.mixing is not None:
            labels = F.one_hot(labels, classes).to(images.dtype)
        self.costs = self._rehearse(images, labels, classes)
        self.budget = recipe.sparsity if self.costs.varies else None
        self.teacher: nn.Module | None = None
        if recipe.distillation is not None and self.exits <= 1:
            if not self.exits:
                raise UsageError(
                    f"distillation: the first output of {recipe.model.name} is no logits, which a teacher could teach: "
                    "leave the section out."
                )
            self.teacher = _teacher(recipe, classes)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the teacher to where, and in what, the run computes."""
        if self.teacher is not None:
            self.teacher.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(self, network: nn.Module, inputs: Tensor, targets: Tensor, moment: Moment, precision: torch.dtype) -> Loss:
        """Return the loss of a part of a batch.

        Args:
            network: The network, or what spreads it over several processes.
            inputs: (N, 3, h, w).
            targets: Class indices (N,) or probabilities (N, classes).
            moment: Where the run is.
            precision: Of the matrix products.
        """
        tape = self.tape(moment)
        with tape, autocast(inputs, precision):
            output = network(inputs)
        # The reference code takes the distillation of half precision logits where it computes in half precision.
        logits = [wide(each) for each in logits_of(output, self.exits)]
        total, terms = self._task(output, logits, targets)
        if self.budget is not None:
            flops = self.costs.count(output, tape)
            sparsity = sparsity_loss(
                flops.total, self.costs.full, flops.ratios, self.budget.target, self.bounds(moment)
            )
            total = total + self.budget.weight * sparsity
            terms["sparsity"] = sparsity
        for kind, (loss, weight, share) in self._usage(tape).items():
            total = total + weight * loss
            terms |= {f"usage.{kind}": loss, f"share.{kind}": share}
        distillation = self._distillation(inputs, logits, precision)
        terms["distillation"] = torch.zeros_like(total) if distillation is None else distillation
        if distillation is not None:
            assert self.recipe.distillation is not None
            total = total + self.recipe.distillation.weight * distillation
        if self.budget is not None:
            terms["flops_ratio"] = flops.total / self.costs.full
        return Loss(total, terms, logits[-1] if logits else None)

    def of_batch(self, network: nn.Module, batch: Any, moment: Moment, precision: torch.dtype) -> Loss:
        """See :meth:`GatedObjective.of_batch`; images with classes."""
        inputs, targets = batch
        loss = self.loss(network, inputs, targets, moment, precision)
        if loss.logits is None:
            return loss
        wanted = targets if targets.ndim == 1 else targets.argmax(1)
        accuracy = (loss.logits.argmax(1) == wanted).double().mean()
        return loss._replace(terms={**loss.terms, "accuracy": accuracy})

    def evaluate(self, batches: Batches, gather: Any) -> Evaluation:
        """Evaluate the network, its exits and its gates."""
        thresholds = None if self.recipe.exits is None else self.recipe.exits.thresholds
        return evaluate(
            self.network,
            batches,
            self.costs,
            exits=self.exits,
            thresholds=thresholds,
            loss=self.loss_function,
            gather=gather,
        )

    def score(self, evaluation: Evaluation) -> float | None:
        """Return what the best epoch has most of; None where an epoch cannot be the best.

        That is the accuracy, of several exits their mean or as the reference code has it, which ignores the first;
        without logits the negative loss. Where there is a budget it must be kept: early epochs compute, and know, more
        than they may.
        """
        if self.budget is not None and evaluation.flops_ratio > self.budget.target + FLOPS_TOLERANCE:
            return None
        if evaluation.exits:
            accuracies = [entry.accuracy for entry in evaluation.exits]
            assert self.recipe.exits is not None
            best = self.recipe.exits.best == "reference"
            return max(accuracies[1:]) if best else sum(accuracies) / len(accuracies)
        return evaluation.accuracy if evaluation.accuracy is not None else -(evaluation.loss or 0.0)

    def _task(self, output: Any, logits: list[Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss function of the recipe, or the cross entropies of all exits."""
        if self.loss_function is not None:
            task = self.loss_function(output, targets)
            return task, {"task": task}
        smoothing = self.recipe.label_smoothing
        losses = [F.cross_entropy(each, targets, label_smoothing=smoothing) for each in logits]
        if len(losses) == 1:
            return losses[0], {"cross_entropy": losses[0]}
        assert self.recipe.exits is not None and self.recipe.exits.weights is not None
        weights = self.recipe.exits.weights
        total = torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()
        return total, {f"exit{number}.cross_entropy": loss for number, loss in enumerate(losses, 1)}

    def _distillation(self, inputs: Tensor, logits: list[Tensor], precision: torch.dtype) -> Tensor | None:
        recipe = self.recipe.distillation
        if recipe is None:
            return None
        if self.teacher is None:
            return self_distillation_loss(logits, recipe.temperature)
        with torch.no_grad(), autocast(inputs, precision):
            (taught,) = logits_of(self.teacher(inputs))
        return distillation_loss(logits[0], wide(taught), recipe.temperature)

    def _rehearse(self, images: Tensor, targets: Tensor, classes: int) -> Costs:
        """Run a copy of the network both ways on a few images, and refuse what could not be trained.

        Raises:
            UsageError: It does not run on the images; uses a block twice; has a gate that no gradient reaches; gives no
                logits, or of another number of classes, where no loss function is named; or that function gives no
                scalar with a gradient.
            NotFiniteError: Outputs or loss are NaN or infinite.
        """
        name = self.recipe.model.name
        twin = copy.deepcopy(self.network).train()
        if not any(parameter.requires_grad for parameter in twin.parameters()):
            raise UsageError(f"{name} has no parameter that is trained: none has requires_grad.")
        with torch.random.fork_rng(devices=[]), Tape(twin) as tape:
            try:
                output = twin(images)
            except DyndeployError:
                raise
            except Exception as error:
                raise UsageError(
                    f"{name} cannot run on training images {tuple(images.shape)}: {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:200].rstrip('.')}. Check model.options and model.input_size."
                ) from error
        self._usage(tape)
        logits = self._checked_logits(output, classes)
        for decision in tape.decisions.values():
            # For INT8 the gates stay as they are.
            if self.recipe.quantization is None and not decision.margin.requires_grad:
                raise UsageError(
                    f"The gate '{decision.gate}' of {decision.block or 'the network'} gets no gradient: its logits "
                    "depend on no parameter that is trained, or they are detached. Compute them with layers of its own."
                )
        task, _ = self._task(output, [wide(each) for each in logits], targets)
        if not isinstance(task, Tensor) or task.ndim or not task.requires_grad:
            found = f"shape {tuple(task.shape)}" if isinstance(task, Tensor) else type(task).__name__
            raise UsageError(
                f"loss: {self.recipe.loss} gives {found} without a gradient or no scalar: give a 0-d tensor computed "
                "from the network's outputs."
            )
        results = {f"exit {number}": each for number, each in enumerate(logits, 1)} | {"loss": task}
        broken = listed({key: wide(value.detach()).cpu().numpy() for key, value in results.items()})
        if broken:
            raise NotFiniteError(
                f"{name} gives NaN or infinite values before any training: {broken}. Check its initial weights, and "
                "its layers for divisions and logarithms of 0."
            )
        costs = Costs(self.network, (images.shape[2], images.shape[3]), output, tape, max(1, self.exits))
        flops = costs.count(output, tape).total
        (task + 0 * flops if flops.requires_grad else task).backward()  # type: ignore[no-untyped-call]
        self.unused = any(p.grad is None for p in twin.parameters() if p.requires_grad)
        return costs

    def _checked_logits(self, output: Any, classes: int) -> list[Tensor]:
        """The logits of all exits; a network with a loss function of its own need not have any."""
        name, logits = self.recipe.model.name, []
        try:
            logits = logits_of(output, self.exits)
        except UsageError:
            if self.loss_function is None:
                raise
        if self.loss_function is not None:
            if any(each.shape[1] != classes for each in logits) or not logits:
                self.exits = 0
            return logits if self.exits else []
        if not logits:
            first, value = next(iter(named_outputs(output).items()))
            raise UsageError(
                f"The first output of {name} ('{first}', {tuple(value.shape)}) is no logits (N, classes), and the "
                "recipe names no loss: write loss: module:function (or file.py:function), which takes what the network "
                "returns and the targets, and gives a scalar tensor."
            )
        for each in logits:
            if each.shape[1] != classes:
                raise UsageError(
                    f"The images have {classes} classes and the network has {each.shape[1]}: set "
                    f"model.options.num_classes to {classes}, or what {name} calls its number of classes."
                )
        return logits


def _teacher(recipe: Recipe, classes: int) -> nn.Module:
    if recipe.model.initial_weights is None:
        raise UsageError(
            f"The recipe {recipe.name} learns from the static network of its initial weights, but names none: "
            "give a checkpoint of the static network (--init FILE, or model.initial_weights in the recipe)"
            + (f". {recipe.checkpoint.note}" if recipe.checkpoint.note else ".")
        )
    teacher, report = build(recipe, classes)
    if report is not None and report.classes is not None:
        raise UsageError(
            f"{recipe.model.initial_weights} has no classifier for the {classes} classes of the images, so that its "
            "static network can teach nothing (distillation): leave that section out, or train the static network on "
            "these images first (model.options.mode: static) and start from its best.pt."
        )
    run_dense(teacher, [path for path, _, _ in dynamic_blocks(teacher)])
    return teacher.eval().requires_grad_(False)
