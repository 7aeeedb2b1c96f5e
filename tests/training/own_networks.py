"""Networks as a user writes them, outside the package: imported by path in recipes of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks import EarlyExits, Gate, PooledGate, early_exits, skip
from dyndeploy.nets.laud_resnet import LaudBottleneck, LaudResNetConfig
from dyndeploy.ops.gates import BLOCK


class Residual(nn.Module):
    """A residual body; in it, if asked for, another block that can be skipped."""

    def __init__(self, width: int, nested: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.inner = skip(Residual(width)) if nested else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(F.relu(x + self.norm(self.conv(x))))
        return y


class SmallCnn(nn.Module):
    """A stem, blocks of residual bodies that are skipped per image, a linear head."""

    input_size = (8, 8)

    def __init__(self, width: int = 12, blocks: int = 3, classes: int = 10, nested: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(skip(Residual(width, nested)) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return y


class LaudStage(nn.Module):
    """A LAUD bottleneck whose record nobody wants."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        stage = LaudResNetConfig(mode="spatial", granularity=2).stages()[0]
        self.block = LaudBottleneck("block", channels, channels // 4, stage)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)[0]
        return y


class Head(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.mean((2, 3)))
        return y


def three_exits(width: int = 16, classes: int = 10) -> EarlyExits:
    stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    stages = [stem, LaudStage(width), Residual(width)]
    network = early_exits(stages, [Head(width, classes) for _ in stages], confidence="margin")
    network.input_size = (8, 8)  # type: ignore[assignment]
    return network


class TwoLists(nn.Module):
    """Exits as a plain list: it cannot be cut into stages, but trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.last = SmallCnn(), nn.Linear(192, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.first(x.flatten(1)), self.last(self.body(x))]


class Embedding(nn.Module):
    """Positions in a plane, one per image, beside what it computed them from."""

    def __init__(self) -> None:
        super().__init__()
        self.body = SmallCnn(classes=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"position": self.body(x), "brightness": x.mean((1, 2, 3))}


def on_a_circle(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Every class has a place on a circle."""
    angles = targets * (2 * torch.pi / 10)
    return F.mse_loss(outputs["position"], torch.stack([angles.cos(), angles.sin()], 1).to(outputs["position"]))


def per_image(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return outputs["position"].sum(1)


def without_gradient(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return outputs["position"].detach().sum()


class DetachedGate(Gate):
    kind = BLOCK

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = PooledGate(width)

    def logits(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.gate.logits(x, size).detach()


def detached() -> SmallCnn:
    network = SmallCnn(blocks=1)
    network.blocks = nn.Sequential(skip(Residual(12), DetachedGate(12)))
    return network


def used_twice() -> SmallCnn:
    network = SmallCnn(blocks=1)
    (block,) = network.blocks
    network.blocks = nn.Sequential(block, block)
    return network


class Logarithm(SmallCnn):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(super().forward(x) * 0 - 1)


class Maps(SmallCnn):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.stem(x))
        return y


class OwnChoice(SmallCnn):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) < 1e9 else super().forward(-x)
