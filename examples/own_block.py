"""A dynamic block of one's own, out of standard layers, lowered to a branch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import dyndeploy
from dyndeploy.blocks import Block, Gate, LoweredCall
from dyndeploy.ops import GATE_KINDS


class ContrastGate(Gate):
    """Computes an image where its features vary enough: a learnt threshold on their standard deviation."""

    kind = GATE_KINDS["layer"]

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def logits(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        varies = self.scale * (x.flatten(1).std(1) - self.threshold)
        return torch.stack([varies, torch.zeros_like(varies)], 1)


class Refine(Block):
    """Adds a large-kernel refinement to the images that need it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = ContrastGate()
        depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.body = nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1), nn.Tanh())

    def gates(self) -> Mapping[str, Gate]:
        return {"layer": self.gate}

    def compute(self, x: Tensor, layer: Tensor | None = None) -> Tensor:
        y: Tensor = self.body(x)
        return y if layer is None else torch.where(layer > 0.5, y, x)

    def lower(self, *shapes: tuple[int, ...]) -> LoweredCall:
        return LoweredCall.conditional(self.body)


class Denoiser(nn.Module):
    """An image in, an image out; the refinement is skipped for flat images."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 12, 3, padding=1)
        self.refine = Refine(12)
        self.tail = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = image + self.tail(self.refine(torch.relu(self.head(image))))
        return result


def main(folder: Path) -> None:
    """Export for a CPU, where flat images skip, and for a board, where export says that they do not."""
    torch.manual_seed(0)
    network, example = Denoiser().eval(), torch.rand(1, 3, 48, 64)
    for target in ("cpu", "nano"):
        settings = dyndeploy.ExportSettings(target=target, static=True)
        bundle = dyndeploy.export_model(network, folder / target, settings, example_inputs=example)
        assert dyndeploy.verify_bundle(bundle).passed
        print(target, *bundle.manifest.notes, sep="\n  ")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "own_block"))
