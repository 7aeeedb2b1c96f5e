"""A MobileNet-like network with two exits of one's own: exported in stages, thresholds found, run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import dyndeploy
from dyndeploy.runtimes import open_staged


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to its input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        width = inputs * expansion
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.Hardswish(),
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Hardswish(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def head(channels: int, classes: int) -> nn.Module:
    """Mean over the map, and one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def mobile_exits(num_classes: int = 10) -> nn.Module:
    """Two stages with a head each; an image leaves at the first where the two best classes are far apart."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
    first = nn.Sequential(stem, InvertedResidual(16, 16, 1), InvertedResidual(16, 24, 2))
    second = nn.Sequential(*(InvertedResidual(24, 24, 1) for _ in range(3)), InvertedResidual(24, 40, 2))
    heads = [head(24, num_classes), head(40, num_classes)]
    return dyndeploy.early_exits([first, second], heads, confidence="margin")


def main(folder: Path) -> None:
    """Export for the CPU and let images leave early."""
    torch.manual_seed(0)
    settings = dyndeploy.ExportSettings(input_size=(64, 64), static=True)
    bundle = dyndeploy.export_model(mobile_exits().eval(), folder / "bundle", settings)
    assert dyndeploy.verify_bundle(bundle).passed
    images = bundle.reference()["input"]
    for threshold in (0.0, 1.1):  # reached by every image, and by none
        with open_staged(bundle, thresholds=(threshold,)) as session:
            result = session.run(np.ascontiguousarray(images))
        print(f"threshold {threshold}: exits {result.exits.tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "mobile_exits"))
