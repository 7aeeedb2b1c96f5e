"""Small networks of a user's own, with dynamic blocks in odd places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dyndeploy.blocks import Gate, PooledGate, SpatialMasker, skip
from dyndeploy.nets.laud_resnet import LaudBottleneck, LaudResNetConfig


class Residual(nn.Module):
    """Keeps its input's shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class SkipNet(nn.Module):
    """Two blocks that images skip, and a head."""

    input_size = (16, 24)

    def __init__(self, channels: int = 6, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1)
        self.body = nn.ModuleList(skip(Residual(channels)) for _ in range(2))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.body:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def bottleneck(name: str, mode: str, channels: int, planes: int, stride: int = 1) -> LaudBottleneck:
    stage = LaudResNetConfig(mode=mode, granularity=2, channel_granularity=2).stages()[0]
    return LaudBottleneck(name, channels, planes, stage, stride=stride)


class Pyramid(nn.Module):
    """Bottlenecks in a dictionary, branches, two outputs."""

    input_size = (32, 48)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.ModuleDict(
            {"a": bottleneck("a", "spatial", 16, 4), "b": bottleneck("b", "both", 16, 8, stride=2)}
        )
        self.lateral = nn.ModuleList([nn.Conv2d(16, 8, 1), nn.Conv2d(32, 8, 1)])
        self.scores = nn.Conv2d(8, 3, 3, padding=1)
        self.boxes = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, _ = self.body["a"](self.stem(x))
        b, _ = self.body["b"](a)
        merged = self.lateral[0](a) + nn.functional.interpolate(self.lateral[1](b), scale_factor=2.0, mode="nearest")
        return {"scores": self.scores(merged), "boxes": self.boxes(merged)}


@torch.no_grad()
def liven(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random gates that decide both ways, and batch norms with statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(generator=generator)
        if isinstance(module, Gate):
            layers = [child for child in module.modules() if isinstance(child, (nn.Conv2d, nn.Linear))]
            last = layers[-1]
            last.weight.normal_(generator=generator)
            last.bias.zero_()
            if isinstance(module, (SpatialMasker, PooledGate)):
                last.weight -= last.weight.mean(1, keepdim=True)
    return network.eval()
