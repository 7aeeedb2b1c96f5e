"""What a dynamic network is worth on images that it was not trained on: accuracy, FLOPs, and its decisions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks import Tape, confidence_of, named_outputs
from dyndeploy.confidences import confidences
from dyndeploy.errors import NotFiniteError
from dyndeploy.finite import listed
from dyndeploy.tasks.coco import CocoMetrics
from dyndeploy.training.flops import Costs, Flops

Batches = Iterable[tuple[Tensor, Tensor]]
"""Inputs (N, 3, h, w) with class indices (N,)."""

Gather = Callable[[Any], list[Any]]
"""Returns every process's value: see :meth:`dyndeploy.training.processes.Processes.gather`."""


@dataclass(frozen=True)
class MaskStatistics:
    """How the masks of one gate behave over a set of images.

    A position is what one bit decides on: a patch ("spatial"), a channel group ("channel"), a whole block ("layer").

    Attributes:
        kind: Name of the gate's kind; see :data:`dyndeploy.ops.gates.GATE_KINDS`.
        positions: Positions of the mask; the most there were, where images of several sizes have several numbers.
        rate: Fraction of positions computed, averaged over the images.
        rate_std: Standard deviation over the images of each image's own rate.
        variance: Variance of a position over the images, averaged over the positions: 0 where every image has
            the same mask, at most 0.25; None where images have several numbers of positions.
        varying: Fraction of the positions that are computed for some images and skipped for others; None alike.
        distinct: Number of different masks among the images.
    """

    kind: str
    positions: int
    rate: float
    rate_std: float
    variance: float | None
    varying: float | None
    distinct: int


@dataclass(frozen=True)
class BlockEvaluation:
    """One dynamic block over a set of images.

    Attributes:
        name: Dotted module name, e.g. "layer1.0".
        flops_ratio: Computed over dense MACs; maskers are in both where the network counts them itself, else in none.
        rate: Product of the rates of its masks.
        masks: One entry per gate of the block.
    """

    name: str
    flops_ratio: float
    rate: float
    masks: tuple[MaskStatistics, ...]


@dataclass(frozen=True)
class ExitEvaluation:
    """One exit, taken by all images.

    Attributes:
        exit: Its number, from 1.
        accuracy: Top-1, a fraction.
        cross_entropy: Mean over the images.
        macs: MACs per image up to and with this exit, on average where blocks before it skip something. A network that
            cannot be cut at its exits computes all of them for every image.
    """

    exit: int
    accuracy: float
    cross_entropy: float
    macs: float


@dataclass(frozen=True)
class EarlyExitEvaluation:
    """Every image leaves at the first exit that is confident enough.

    Attributes:
        thresholds: Least confidences of all exits but the last.
        accuracy: Top-1, a fraction.
        macs: Mean MACs per image.
        macs_ratio: ``macs`` over those of the last exit.
        shares: Fraction of the images that leaves at each exit.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    macs: float
    macs_ratio: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """A network over a set of images.

    Attributes:
        images: Number of images.
        accuracy: Top-1, a fraction; of the last exit where there are several; None where the first output is no logits.
        cross_entropy: Mean over the images, of the same logits; None without.
        flops: Mean MACs per image: as the network counts them, else as :class:`dyndeploy.training.flops.Costs` does; of
            the last exit where there are several.
        flops_ratio: ``flops`` over those of the network with everything computed.
        blocks: One entry per block, for networks with gates.
        exits: One entry per exit, for networks that have several.
        early_exit: Under the recipe's thresholds, where it has any.
        loss: Mean over the images of the loss function that the recipe names.
        detection: Average precision of a detector; ``flops`` and ``flops_ratio`` are those of its backbone.
    """

    images: int
    accuracy: float | None
    cross_entropy: float | None
    flops: float
    flops_ratio: float
    blocks: tuple[BlockEvaluation, ...] = ()
    exits: tuple[ExitEvaluation, ...] = ()
    early_exit: EarlyExitEvaluation | None = None
    loss: float | None = None
    detection: CocoMetrics | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    def measures(self) -> dict[str, float]:
        """Return what a log shows of every epoch, by name."""
        known = {"accuracy": self.accuracy, "cross_entropy": self.cross_entropy, "loss": self.loss}
        measures = {name: value for name, value in known.items() if value is not None}
        measures |= self._precisions()
        measures["flops_ratio"] = self.flops_ratio
        measures |= {f"exit{entry.exit}.accuracy": entry.accuracy for entry in self.exits}
        if self.early_exit is not None:
            measures["early_exit.accuracy"] = self.early_exit.accuracy
            measures["early_exit.flops_ratio"] = self.early_exit.macs_ratio
        measures |= {f"{block.name}.flops_ratio": block.flops_ratio for block in self.blocks}
        measures |= {f"{block.name}.rate": block.rate for block in self.blocks}
        return measures

    def _precisions(self) -> dict[str, float]:
        found = {}
        for kind in ("boxes", "masks"):
            own = getattr(self.detection, kind, None)
            for name in () if own is None else ("ap", "ap50", "ap75"):
                found[f"{kind}.{name}"] = float(getattr(own, name) or 0.0)
        return found


LossFunction = Callable[[Any, Tensor], Tensor]
"""``(what the network returned, targets) -> scalar``."""


def logits_of(output: Any, exits: int = 1) -> list[Tensor]:
    """Return the logits (N, classes) of all exits of what a network returns; [] where its first outputs are none."""
    if not exits:
        return []
    found = list(named_outputs(output).values())[:exits]
    fitting = len(found) == exits and all(each.ndim == 2 and each.is_floating_point() for each in found)
    return found if fitting else []


def _own(value: Any) -> list[Any]:
    return [value]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    costs: Costs | None = None,
    *,
    exits: int = 1,
    thresholds: Sequence[float] | None = None,
    loss: LossFunction | None = None,
    gather: Gather = _own,
) -> Evaluation:
    """Run a network in evaluation mode; its training mode is restored afterwards.

    Args:
        model: Any network whose first output, or first ``exits`` outputs, are logits; with ``loss`` any network.
        batches: At least one image in all processes together.
        costs: What its passes cost; None finds it out from the first pass.
        exits: Number of its exits; 0 where its outputs are no logits.
        thresholds: Least confidences of all exits but the last, by the network's own measure; None does not evaluate
            early exit.
        loss: What the network is trained for, where that is no cross entropy.
        gather: Brings together what several processes found, each on images of its own.

    Returns:
        Averages over the images. In modes with channel masks LAUD-ResNets' FLOPs are products of batch averages, as in
        the LAUDNet reference code, and depend slightly on the batch size.

    Raises:
        NotFiniteError: An output, a gate's decision or the loss is NaN or infinite; the message names it.
    """
    measure = confidence_of(model)
    found = []
    with evaluating(model):
        for inputs, labels in batches:
            with Tape(model) as tape:
                output = model(inputs)
            if costs is None:
                costs = Costs(model, (inputs.shape[2], inputs.shape[3]), output, tape, exits)
            value = None if loss is None else float(loss(output, labels))
            outputs = named_outputs(output) if exits else {}
            broken = _broken(outputs, tape.margins, value)
            logits, flops = logits_of(output, exits), costs.count(output, tape)
            with np.errstate(invalid="ignore"):  # What is not finite is named below.
                found.append(_batch(logits, labels, flops, tape, measure, value, broken))
    parts = [batch for part in gather(found) for batch in part]
    # Only what all processes know may end one of them: the others would wait for it.
    broken = next((batch.broken for batch in parts if batch.broken), "")
    if broken:
        raise NotFiniteError(
            f"The network gives no usable result in evaluation: {broken}. Its weights, or the statistics of its batch "
            "norms, have gone astray."
        )
    images = sum(batch.images for batch in parts)
    ratios = sum(batch.ratios * batch.images for batch in parts) / images
    flops = sum(batch.flops * batch.images for batch in parts) / images
    assert costs is not None and not isinstance(ratios, float)
    by_block = dict(zip(costs.blocks, ratios.tolist(), strict=True))
    classified = parts[0].correct.size > 0
    correct, confidences = (
        np.concatenate([getattr(batch, name) for batch in parts], axis=1) for name in ("correct", "confidences")
    )
    losses = np.sum([batch.cross_entropy for batch in parts], axis=0) / images
    macs = costs.exits_under(by_block) if exits > 1 else ()
    return Evaluation(
        images=images,
        accuracy=float(correct[-1].sum()) / images if classified else None,
        cross_entropy=float(losses[-1]) if classified else None,
        flops=flops,
        flops_ratio=flops / costs.full,
        blocks=tuple(_block(name, ratio, parts) for name, ratio in by_block.items()),
        exits=tuple(
            ExitEvaluation(i + 1, float(correct[i].mean()), float(losses[i]), cost)
            for i, cost in enumerate(macs if classified else ())
        ),
        early_exit=(
            early_exit(correct, confidences, macs, thresholds) if classified and thresholds is not None else None
        ),
        loss=None if loss is None else sum((batch.loss or 0.0) * batch.images for batch in parts) / images,
    )


def early_exit(
    correct: npt.NDArray[np.bool_],
    confidences: npt.NDArray[np.float32],
    macs: Sequence[float],
    thresholds: Sequence[float],
) -> EarlyExitEvaluation:
    """Let every image leave at the first exit that is confident enough; the last one takes the rest.

    Args:
        correct: Whether each exit classifies each image correctly, (exits, n).
        confidences: How sure each exit is of each image, (exits, n).
        macs: MACs per image up to and with each exit.
        thresholds: Least confidences of all exits but the last.
    """
    limits = np.asarray([*thresholds, -np.inf], np.float32)
    taken = (confidences >= limits[:, None]).argmax(0)
    shares = np.bincount(taken, minlength=len(macs)) / len(taken)
    mean = float(shares @ np.asarray(macs, np.float64))
    return EarlyExitEvaluation(
        thresholds=tuple(thresholds),
        accuracy=float(correct[taken, np.arange(len(taken))].mean()),
        macs=mean,
        macs_ratio=mean / macs[-1],
        shares=tuple(shares.tolist()),
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation, and every module back into the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Batch(NamedTuple):
    """One batch's findings, plain and on the CPU.

    ``correct`` and ``confidences`` are (exits, images), ``cross_entropy`` (exits,) sums over the images, ``masks`` by
    their names (block, kind, booleans (images, positions)), ``broken`` what is not finite, in words.
    """

    images: int
    correct: npt.NDArray[np.bool_]
    confidences: npt.NDArray[np.float32]
    cross_entropy: list[float]
    flops: float
    ratios: npt.NDArray[np.float64]
    masks: dict[str, tuple[str, str, npt.NDArray[np.bool_]]]
    loss: float | None
    broken: str


def _broken(outputs: Mapping[str, Tensor], margins: Mapping[str, Tensor], loss: float | None) -> str:
    """Name what is not finite, in words; empty where all is. An infinite margin is a decision, NaN is none."""
    values = {name: value.double() for name, value in outputs.items() if value.is_floating_point()}
    values |= {
        f"gate {name}": margin.double().nan_to_num(nan=math.nan, posinf=0, neginf=0) for name, margin in margins.items()
    }
    arrays = {name: value.cpu().numpy() for name, value in values.items()}
    return listed(arrays if loss is None else {**arrays, "loss": np.array(loss)})


def _batch(
    logits: list[Tensor],
    labels: Tensor,
    flops: Flops,
    tape: Tape,
    measure: str,
    loss: float | None,
    broken: str,
) -> _Batch:
    wide = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in logits]
    n = len(labels)
    return _Batch(
        images=n,
        correct=np.stack([(each.argmax(1) == labels).cpu().numpy() for each in wide] or [np.zeros(0, np.bool_)]),
        confidences=np.stack(
            [confidences(each.float().cpu().numpy(), measure) for each in wide] or [np.zeros(0, np.float32)]
        ),
        cross_entropy=[float(F.cross_entropy(each, labels, reduction="sum")) for each in wide],
        flops=float(flops.total),
        ratios=flops.ratios.double().cpu().numpy(),
        masks={
            name: (tape.decisions[name].block, tape.decisions[name].kind, mask.flatten(1).bool().cpu().numpy())
            for name, mask in tape.masks.items()
        },
        loss=loss,
        broken=broken,
    )


def _block(name: str, flops_ratio: float, batches: list[_Batch]) -> BlockEvaluation:
    masks = tuple(
        _mask_statistics(kind, np.concatenate([batch.masks[label][2] for batch in batches if label in batch.masks]))
        for label, (block, kind, _) in batches[0].masks.items()
        if block == name
    )
    return BlockEvaluation(name, flops_ratio, math.prod(mask.rate for mask in masks), masks)


def _mask_statistics(kind: str, mask: npt.NDArray[np.bool_]) -> MaskStatistics:
    per_position = mask.mean(0)
    return MaskStatistics(
        kind=kind,
        positions=mask.shape[1],
        rate=float(mask.mean()),
        rate_std=float(mask.mean(1).std()),
        variance=float((per_position * (1 - per_position)).mean()),
        varying=float(((per_position > 0) & (per_position < 1)).mean()),
        distinct=len(np.unique(np.packbits(mask, axis=1), axis=0)),
    )
