"""A small CNN whose residual blocks each image computes or skips: trained on digits, exported, verified, profiled."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import dyndeploy
from dyndeploy.measure import profile_bundle


class Residual(nn.Module):
    """A residual body of one's own; skip() asks only that it keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class GatedNet(nn.Module):
    """Three residual blocks behind a stem, each of them skipped where its gate says so."""

    input_size = (32, 32)

    def __init__(self, channels: int = 32, blocks: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(dyndeploy.skip(Residual(channels)) for _ in range(blocks)))
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


RECIPE = {
    "name": "gated-residual",
    "description": "Three skipped residual blocks on scikit-learn's digits.",
    "model": {"import": __file__, "name": "GatedNet", "input_size": [32, 32]},
    "data": {"dataset": "digits"},
    "epochs": 2,
    "batch_size": 64,
    "optimizer": {"lr": 0.05},
    "sparsity": {"target": 0.6},
}


def main(folder: Path, epochs: int = 2) -> None:
    """Go the whole way once."""
    result = dyndeploy.train(dyndeploy.Recipe.from_dict({**RECIPE, "epochs": epochs}), folder / "run")
    print(f"held-out accuracy {result.evaluation.accuracy:.1%}, FLOPs ratio {result.evaluation.flops_ratio:.2f}")
    network = GatedNet()
    dyndeploy.load_checkpoint(network, result.checkpoint)
    bundle = dyndeploy.export_model(network, folder / "bundle", dyndeploy.ExportSettings(static=True))
    assert dyndeploy.verify_bundle(bundle).passed
    profile = profile_bundle(bundle, rates=(0.0, 1.0), repeats=12)
    for rate in profile.rates:
        print(f"forced rate {rate.rate:g}: measured {rate.realised_speedup:.2f}x, ideal {rate.ideal_speedup:.2f}x")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "gated_residual"))
