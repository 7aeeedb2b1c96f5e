"""Reference tensors: a few real images with what PyTorch computes for them, so that a device verifies itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dyndeploy.bundle.reference_names import FORCED, MARGIN
from dyndeploy.nets.laud_resnet import LaudBottleneck, LaudResNet
from dyndeploy.nets.results import mask_name

FORCED_RATE = 0.5


@dataclass(frozen=True)
class Reference:
    """PyTorch's results for the reference images.

    Attributes:
        tensors: ``input`` (n, 3, H, W); ``logits`` (n, classes), every mask by its output name, and its margin
            (compute logit minus skip logit) under ``margin/``; under ``forced/`` random masks of rate 0.5 with the
            logits that they give, because a network's own masks may skip nothing on these images.
        rates: Mean of every mask by name.
        flops_ratio: Computed MACs over MACs with every mask bit set, by the network's own count.
    """

    tensors: dict[str, npt.NDArray[np.float32]]
    rates: dict[str, float]
    flops_ratio: float


def _maskers(block: LaudBottleneck, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Kind and logits (1, 2, ...) of every masker of a block."""
    if block.masker_spatial is not None:
        yield block.spatial_kind, block.masker_spatial.logits(x, block.mask_size(x.shape[2], x.shape[3]))
    if block.masker_channel is not None:
        yield "channel", block.masker_channel.logits(x)


@torch.no_grad()
def compute_reference(network: LaudResNet, images: npt.NDArray[np.float32], seed: int = 0) -> Reference:
    """Run the network in evaluation on images (n, 3, H, W), one image at a time."""
    generator = torch.Generator().manual_seed(seed)
    columns: dict[str, list[torch.Tensor]] = {}
    ratios = []

    def keep(name: str, value: torch.Tensor) -> torch.Tensor:
        columns.setdefault(name, []).append(value)
        return value

    for image in torch.from_numpy(images)[:, None]:
        x = forced = network.forward_stem(keep("input", image))
        computed = dense = 0.0
        for name, block in network.named_blocks():
            random: dict[str, torch.Tensor] = {}
            for kind, logits in _maskers(block, x):
                keep(f"{MARGIN}{mask_name(name, kind)}", logits[:, 0] - logits[:, 1])
                bits = torch.rand(logits[:, 0].shape, generator=generator) < FORCED_RATE
                random[kind] = keep(f"{FORCED}{mask_name(name, kind)}", bits.to(x.dtype))
            forced = block.compute(forced, random.get(block.spatial_kind), random.get("channel"))
            x, record = block(x)
            computed, dense = computed + float(record.macs), dense + record.dense_macs
            if record.masks.spatial is not None:
                keep(mask_name(name, block.spatial_kind), record.masks.spatial)
            if record.masks.channel is not None:
                keep(mask_name(name, "channel"), record.masks.channel)
        keep("logits", network.forward_head(x))
        keep(f"{FORCED}logits", network.forward_head(forced))
        ratios.append(computed / dense)
    tensors = {name: torch.cat(parts).float().numpy() for name, parts in columns.items()}
    rates = {name: float(value.mean()) for name, value in tensors.items() if name.startswith("mask/")}
    return Reference(tensors, rates, float(np.mean(ratios)))
