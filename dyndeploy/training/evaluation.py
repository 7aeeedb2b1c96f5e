"""What a dynamic network is worth on images that it was not trained on: accuracy, FLOPs, and its decisions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.nets import BlockMasks, Densities, DynamicOutput


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
class Evaluation:
    """A network over a set of images.

    Attributes:
        images: Number of images.
        accuracy: Top-1, a fraction.
        cross_entropy: Mean over the images.
        flops: Mean MACs per image, as :class:`dyndeploy.nets.DynamicOutput` counts them.
        flops_ratio: ``flops`` over :func:`dyndeploy.nets.full_flops`.
        blocks: One entry per residual block.
    """

    images: int
    accuracy: float
    cross_entropy: float
    flops: float
    flops_ratio: float
    blocks: tuple[BlockEvaluation, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], full_flops: float) -> Evaluation:
    """Run a network in evaluation mode; its training mode is restored afterwards.

    Args:
        model: A dynamic network.
        batches: Inputs (N, 3, h, w) and class indices (N,); at least one image in all.
        full_flops: Of the static network: :func:`dyndeploy.nets.full_flops`.

    Returns:
        Averages over the images. In modes with channel masks FLOPs are products of batch averages, as in the
        LAUDNet reference code, and depend slightly on the batch size.
    """
    was_training = model.training
    model.eval()
    try:
        return _evaluate(model, batches, full_flops)
    finally:
        model.train(was_training)


def _evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], full_flops: float) -> Evaluation:
    images = correct = 0
    cross_entropy = flops = 0.0
    averages: Tensor | None = None
    masks: list[tuple[BlockMasks, ...]] = []
    for inputs, labels in batches:
        output: DynamicOutput = model(inputs)
        count = len(labels)
        images += count
        correct += int((output.logits.argmax(1) == labels).sum())
        cross_entropy += float(F.cross_entropy(output.logits, labels, reduction="sum"))
        flops += float(output.flops) * count
        batch = torch.stack([output.flops_ratio.double(), *_per_block(output.densities)]) * count
        averages = batch if averages is None else averages + batch
        masks.append(output.masks)
    assert averages is not None
    rows = (averages / images).T.tolist()
    blocks = []
    for i, (ratio, conv1, conv2, conv3, channel) in enumerate(rows):
        statistics = _mask_statistics([batch[i] for batch in masks])
        blocks.append(BlockEvaluation(masks[0][i].name, ratio, conv1, conv2, conv3, channel, statistics))
    return Evaluation(
        images=images,
        accuracy=correct / images,
        cross_entropy=cross_entropy / images,
        flops=flops / images,
        flops_ratio=flops / images / full_flops,
        blocks=tuple(blocks),
    )


def _per_block(densities: Densities) -> list[Tensor]:
    return [
        torch.cat(stages).double() for stages in (densities.conv1, densities.conv2, densities.conv3, densities.channel)
    ]


def _mask_statistics(batches: list[BlockMasks]) -> tuple[MaskStatistics, ...]:
    statistics = []
    for kind in ("spatial", "channel"):
        parts: list[Tensor] = [mask for batch in batches if (mask := getattr(batch, kind)) is not None]
        if parts:
            mask = torch.cat(parts).flatten(1).double()
            per_position = mask.mean(0)
            statistics.append(
                MaskStatistics(
                    kind=kind,
                    positions=mask.shape[1],
                    rate=float(mask.mean()),
                    rate_std=float(mask.mean(1).std(correction=0)),
                    variance=float((per_position * (1 - per_position)).mean()),
                    varying=float(((per_position > 0) & (per_position < 1)).double().mean()),
                    distinct=len(torch.unique(mask, dim=0)),
                )
            )
    return tuple(statistics)
