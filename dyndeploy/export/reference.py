"""Reference tensors: a few real images with what PyTorch computes for them, so that a device verifies itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dyndeploy.nets.laud_resnet import LaudResNet

MARGIN = "margin/"
"""Prefix of the entries that hold, for every mask, compute logit minus skip logit."""


@dataclass(frozen=True)
class Reference:
    """PyTorch's results for the reference images.

    Attributes:
        tensors: ``input`` (n, 3, H, W), ``logits`` (n, classes), every mask by its output name, and its margin.
        rates: Mean of every mask by name.
        flops_ratio: Computed MACs over MACs with every mask bit set, by the network's own count.
    """

    tensors: dict[str, npt.NDArray[np.float32]]
    rates: dict[str, float]
    flops_ratio: float


@torch.no_grad()
def compute_reference(network: LaudResNet, images: npt.NDArray[np.float32]) -> Reference:
    """Run the network in evaluation on images (n, 3, H, W), one image at a time."""
    network = network.eval()
    columns: dict[str, list[torch.Tensor]] = {}
    ratios = []
    for image in torch.from_numpy(images)[:, None]:
        columns.setdefault("input", []).append(image)
        x = network.forward_stem(image)
        computed = dense = 0.0
        for name, block in network.named_blocks():
            if block.masker_spatial is not None:
                kind = "layer" if block.mode == "layer" else "spatial"
                logits = block.masker_spatial.logits(x, block.mask_size(x.shape[2], x.shape[3]))
                columns.setdefault(f"{MARGIN}mask/{name}/{kind}", []).append(logits[:, 0] - logits[:, 1])
            if block.masker_channel is not None:
                logits = block.masker_channel.logits(x)
                columns.setdefault(f"{MARGIN}mask/{name}/channel", []).append(logits[:, 0] - logits[:, 1])
            x, record = block(x)
            computed, dense = computed + float(record.macs), dense + record.dense_macs
            if record.masks.spatial is not None:
                kind = "layer" if block.mode == "layer" else "spatial"
                columns.setdefault(f"mask/{name}/{kind}", []).append(record.masks.spatial)
            if record.masks.channel is not None:
                columns.setdefault(f"mask/{name}/channel", []).append(record.masks.channel)
        columns.setdefault("logits", []).append(network.forward_head(x))
        ratios.append(computed / dense)
    tensors = {name: torch.cat(parts).float().numpy() for name, parts in columns.items()}
    rates = {name: float(value.mean()) for name, value in tensors.items() if name.startswith("mask/")}
    return Reference(tensors, rates, float(np.mean(ratios)))
