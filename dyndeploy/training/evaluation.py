"""What a dynamic network is worth on images that it was not trained on: accuracy, FLOPs, and its decisions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.nets import BlockMasks, Densities, DynamicOutput, ExitOutput

Batches = Iterable[tuple[Tensor, Tensor]]
"""Inputs (N, 3, h, w) with class indices (N,)."""

Gather = Callable[[Any], list[Any]]
"""Returns every process's value: see :meth:`dyndeploy.training.processes.Processes.gather`."""


@dataclass(frozen=True)
class MaskStatistics:
    """How the masks of one masker behave over a set of images.

    A position is one patch (spatial) or one channel group (channel) of the mask.

    Attributes:
        kind: "spatial" or "channel".
        positions: Positions of the mask.
        rate: Fraction of positions computed, averaged over the images.
        rate_std: Standard deviation over the images of each image's own rate.
        variance: Variance of a position over the images, averaged over the positions: 0 where every image has
            the same mask, at most 0.25.
        varying: Fraction of the positions that are computed for some images and skipped for others.
        distinct: Number of different masks among the images.
    """

    kind: str
    positions: int
    rate: float
    rate_std: float
    variance: float
    varying: float
    distinct: int


@dataclass(frozen=True)
class BlockEvaluation:
    """One residual block over a set of images.

    Attributes:
        name: Dotted module name, e.g. "layer1.0".
        flops_ratio: Computed over dense MACs, maskers included in both.
        conv1: Fraction of the input pixels that the first convolution computes.
        conv2: Fraction of the output pixels that the second computes.
        conv3: Fraction of the patches computed.
        channel: Fraction of the channel groups computed.
        masks: One entry per masker of the block.
    """

    name: str
    flops_ratio: float
    conv1: float
    conv2: float
    conv3: float
    channel: float
    masks: tuple[MaskStatistics, ...]


@dataclass(frozen=True)
class ExitEvaluation:
    """One exit, taken by all images.

    Attributes:
        exit: Its number, from 1.
        accuracy: Top-1, a fraction.
        cross_entropy: Mean over the images.
        macs: MACs per image up to and with this exit.
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
        accuracy: Top-1, a fraction; of the last exit where there are several.
        cross_entropy: Mean over the images, of the same logits.
        flops: Mean MACs per image: as :class:`dyndeploy.nets.DynamicOutput` counts them, or of the last exit.
        flops_ratio: ``flops`` over those of the static twin (:func:`dyndeploy.nets.full_flops`); 1 for the last exit.
        blocks: One entry per residual block, for networks with masks.
        exits: One entry per exit, for networks that have several.
        early_exit: Under the recipe's thresholds, where it has any.
    """

    images: int
    accuracy: float
    cross_entropy: float
    flops: float
    flops_ratio: float
    blocks: tuple[BlockEvaluation, ...] = ()
    exits: tuple[ExitEvaluation, ...] = ()
    early_exit: EarlyExitEvaluation | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    def measures(self) -> dict[str, float]:
        """Return what a log shows of every epoch, by name."""
        measures = {"accuracy": self.accuracy, "cross_entropy": self.cross_entropy, "flops_ratio": self.flops_ratio}
        measures |= {f"exit{entry.exit}.accuracy": entry.accuracy for entry in self.exits}
        if self.early_exit is not None:
            measures["early_exit.accuracy"] = self.early_exit.accuracy
            measures["early_exit.flops_ratio"] = self.early_exit.macs_ratio
        measures |= {f"{block.name}.flops_ratio": block.flops_ratio for block in self.blocks}
        measures |= {f"{block.name}.rate": block.conv3 * block.channel for block in self.blocks}
        return measures


def _own(value: Any) -> list[Any]:
    return [value]


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, full_flops: float, gather: Gather = _own) -> Evaluation:
    """Run a network with masks in evaluation mode; its training mode is restored afterwards.

    Args:
        model: A network that returns :class:`dyndeploy.nets.DynamicOutput`.
        batches: At least one image in all processes together.
        full_flops: Of the static network: :func:`dyndeploy.nets.full_flops`.
        gather: Brings together what several processes found, each on images of its own.

    Returns:
        Averages over the images. In modes with channel masks FLOPs are products of batch averages, as in the
        LAUDNet reference code, and depend slightly on the batch size.
    """
    with _evaluating(model):
        found = [_masked_batch(model(inputs), labels) for inputs, labels in batches]
    found = [batch for part in gather(found) for batch in part]
    images = sum(batch.images for batch in found)
    flops = sum(batch.flops * batch.images for batch in found) / images
    rows = sum(batch.per_block * batch.images for batch in found) / images
    assert not isinstance(rows, float)
    blocks = []
    for i, (ratio, conv1, conv2, conv3, channel) in enumerate(rows.T.tolist()):
        statistics = _mask_statistics([batch.masks[i] for batch in found])
        blocks.append(BlockEvaluation(found[0].blocks[i], ratio, conv1, conv2, conv3, channel, statistics))
    return Evaluation(
        images=images,
        accuracy=sum(batch.correct for batch in found) / images,
        cross_entropy=sum(batch.cross_entropy for batch in found) / images,
        flops=flops,
        flops_ratio=flops / full_flops,
        blocks=tuple(blocks),
    )


@torch.no_grad()
def evaluate_exits(
    model: nn.Module,
    batches: Batches,
    macs: Sequence[float],
    thresholds: Sequence[float] | None = None,
    gather: Gather = _own,
) -> Evaluation:
    """Run a network with several exits in evaluation mode; its training mode is restored afterwards.

    Args:
        model: A network that returns :class:`dyndeploy.nets.ExitOutput`.
        batches: At least one image in all processes together.
        macs: MACs per image up to and with each exit.
        thresholds: Least confidences of all exits but the last; None does not evaluate early exit.
        gather: Brings together what several processes found, each on images of its own.
    """
    with _evaluating(model):
        found = [_exits_batch(model(inputs), labels) for inputs, labels in batches]
    parts = [batch for part in gather(found) for batch in part]
    correct, confidences, cross_entropy = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    exits = tuple(
        ExitEvaluation(i + 1, float(correct[i].mean()), float(cross_entropy[i].mean()), float(cost))
        for i, cost in enumerate(macs)
    )
    return Evaluation(
        images=correct.shape[1],
        accuracy=exits[-1].accuracy,
        cross_entropy=exits[-1].cross_entropy,
        flops=exits[-1].macs,
        flops_ratio=1.0,
        exits=exits,
        early_exit=None if thresholds is None else early_exit(correct, confidences, macs, thresholds),
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
        confidences: Largest softmax probabilities, (exits, n).
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
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _MaskedBatch(NamedTuple):
    """One batch's findings, plain and on the CPU: masks as booleans, ``per_block`` of shape (5, blocks)."""

    images: int
    correct: int
    cross_entropy: float
    flops: float
    per_block: npt.NDArray[np.float64]
    blocks: tuple[str, ...]
    masks: tuple[dict[str, npt.NDArray[np.bool_]], ...]


def _masked_batch(output: DynamicOutput, labels: Tensor) -> _MaskedBatch:
    averages = torch.stack([output.flops_ratio.double(), *_per_block(output.densities)])
    return _MaskedBatch(
        images=len(labels),
        correct=int((output.logits.argmax(1) == labels).sum()),
        cross_entropy=float(F.cross_entropy(output.logits, labels, reduction="sum")),
        flops=float(output.flops),
        per_block=averages.cpu().numpy(),
        blocks=tuple(masks.name for masks in output.masks),
        masks=tuple(_positions(masks) for masks in output.masks),
    )


def _positions(masks: BlockMasks) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the block's masks by kind, each (N, positions)."""
    kinds = {"spatial": masks.spatial, "channel": masks.channel}
    return {kind: mask.flatten(1).bool().cpu().numpy() for kind, mask in kinds.items() if mask is not None}


def _exits_batch(
    output: ExitOutput, labels: Tensor
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return for every exit and image: right or wrong, confidence, cross entropy."""
    logits = torch.stack(output.logits).float()
    correct = logits.argmax(2) == labels
    confidences = logits.softmax(2).amax(2)
    losses = torch.stack([F.cross_entropy(each, labels, reduction="none") for each in logits])
    return correct.cpu().numpy(), confidences.cpu().numpy(), losses.cpu().numpy()


def _per_block(densities: Densities) -> list[Tensor]:
    return [
        torch.cat(stages).double() for stages in (densities.conv1, densities.conv2, densities.conv3, densities.channel)
    ]


def _mask_statistics(batches: list[dict[str, npt.NDArray[np.bool_]]]) -> tuple[MaskStatistics, ...]:
    statistics = []
    for kind in batches[0]:
        mask = np.concatenate([batch[kind] for batch in batches])
        per_position = mask.mean(0)
        statistics.append(
            MaskStatistics(
                kind=kind,
                positions=mask.shape[1],
                rate=float(mask.mean()),
                rate_std=float(mask.mean(1).std()),
                variance=float((per_position * (1 - per_position)).mean()),
                varying=float(((per_position > 0) & (per_position < 1)).mean()),
                distinct=len(np.unique(np.packbits(mask, axis=1), axis=0)),
            )
        )
    return tuple(statistics)
