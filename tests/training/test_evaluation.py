from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dyndeploy.blocks import PooledGate, Tape, early_exits, skip
from dyndeploy.nets import ExitOutput, create_model, full_flops
from dyndeploy.nets.laud_resnet import LaudResNet
from dyndeploy.training.evaluation import early_exit, evaluate
from dyndeploy.training.flops import Costs


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Pixel(PooledGate):
    """Decides by the sign of an image's first pixel."""

    def logits(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return torch.stack([x[:, 0, 0, 0], torch.zeros(len(x))], 1)


class Scripted(nn.Module):
    """One block that the first pixel decides on, and logits that the second channel tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.block = skip(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Doubled()), Pixel(3))

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        y = self.block(self.conv(x)) * 0
        return torch.stack([x[:, 1, 0, 0] + y[:, 0, 0, 0], torch.zeros(len(x))], dim=1)


def test_averages_by_hand_over_batches_of_different_size() -> None:
    x = torch.zeros(4, 3, 2, 2)
    x[:, 0, 0, 0] = torch.tensor([1.0, -1.0, -1.0, 1.0])
    x[:, 1, 0, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])  # Predictions 0, 0, 1, 1.
    labels = torch.tensor([0, 0, 1, 0])
    model = Scripted().train()
    with torch.no_grad():
        model.conv.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))
        model.conv.bias.zero_()  # type: ignore[union-attr]
    result = evaluate(model, [(x[:3], labels[:3]), (x[3:], labels[3:])])
    assert model.training
    assert (result.images, result.accuracy) == (4, 0.75)
    # Three right answers at a margin of 1, one wrong answer.
    right, wrong = torch.log1p(torch.exp(torch.tensor([-1.0, 1.0]))).tolist()
    assert result.cross_entropy == pytest.approx((3 * right + wrong) / 4, rel=1e-6)
    # 3x3 MACs of four pixels always, and 9 times as many for every other image.
    assert result.flops == pytest.approx(36 + 324 / 2)
    assert result.flops_ratio == pytest.approx((36 + 324 / 2) / (36 + 324))
    (block,) = result.blocks
    assert (block.name, block.flops_ratio, block.rate) == ("block", pytest.approx(0.5), 0.5)
    (mask,) = block.masks
    assert (mask.kind, mask.positions, mask.rate, mask.distinct) == ("layer", 1, 0.5, 2)
    assert (mask.rate_std, mask.varying, mask.variance) == (0.5, 1.0, 0.25)


@pytest.mark.parametrize("mode", ["spatial", "channel", "layer", "both"])
def test_agrees_with_the_network_in_one_batch(mode: str) -> None:
    torch.manual_seed(0)
    model = create_model("laud_resnet14_small", mode=mode, width_mult=0.25, channel_granularity=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "masker" in name:
                parameter.copy_(torch.randn_like(parameter))
    x, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    assert isinstance(model, LaudResNet)
    full = full_flops(model, 32)
    result = evaluate(model, [(x, labels)])
    output = model.eval()(x)
    assert result.flops_ratio == pytest.approx(float(output.flops) / full, rel=1e-6)
    assert [b.flops_ratio for b in result.blocks] == pytest.approx(output.flops_ratio.tolist(), rel=1e-6)
    kinds = {"spatial": ["spatial"], "layer": ["layer"], "channel": ["channel"], "both": ["spatial", "channel"]}
    for block, masks in zip(result.blocks, output.masks, strict=True):
        assert [m.kind for m in block.masks] == kinds[mode]
        for statistics in block.masks:
            own = masks.channel if statistics.kind == "channel" else masks.spatial
            assert statistics.rate == pytest.approx(own.mean().item(), rel=1e-6)
            same = (own == own[:1]).flatten(1).all(0)
            assert statistics.varying == pytest.approx(1 - same.double().mean().item())


class Exits(nn.Module):
    """Three exits for two classes, whose logit margins are the input's first pixels."""

    confidence = "max_softmax"

    def forward(self, x: Tensor) -> ExitOutput:
        assert not self.training
        margins = x[:, 0, 0, :3]
        return ExitOutput.of([torch.stack([margins[:, i], torch.zeros(len(x))], dim=1) for i in range(3)])


class Chain(nn.Module):
    """Segments of given MACs."""

    def __init__(self, macs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1, macs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] + 0 * self.linear(x.flatten(1)[:, :1]).sum()


class NoHead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


def costs_of(*cumulative: int) -> Costs:
    """Costs of a chain of stages with these MACs up to and with each exit."""
    stages = [Chain(b - a) for a, b in zip((0, *cumulative[:-1]), cumulative, strict=True)]
    network = early_exits(stages, [NoHead() for _ in stages])
    with Tape(network) as tape:
        output = network(torch.zeros(1, 3, 2, 2))
    return Costs(network, (2, 2), output, tape, len(stages))


def margin(confidence: float) -> float:
    return math.log(confidence / (1 - confidence))


def test_exits_by_hand() -> None:
    # Confidences of exits 1 to 3; a minus sign is a vote for class 1.
    rows = [(0.95, 0.6, 0.7), (0.8, -0.9, -0.99), (-0.55, 0.7, 0.9), (0.91, 0.99, 0.99)]
    x = torch.zeros(4, 3, 1, 4)
    for i, row in enumerate(rows):
        x[i, 0, 0, :3] = torch.tensor([math.copysign(margin(abs(c)), c) for c in row])
    labels = torch.tensor([0, 1, 0, 1])
    batches = [(x[:3], labels[:3]), (x[3:], labels[3:])]
    model = Exits().train()
    result = evaluate(model, batches, costs_of(10, 20, 40), exits=3, thresholds=(0.9, 0.85))
    assert model.training
    assert [(entry.exit, entry.accuracy, entry.macs) for entry in result.exits] == [
        (1, 0.25, 10),
        (2, 0.75, 20),
        (3, 0.75, 40),
    ]
    expected = -sum(math.log(p) for p in (0.95, 0.2, 0.45, 0.09)) / 4
    assert result.exits[0].cross_entropy == pytest.approx(expected, rel=1e-5)
    assert (result.images, result.accuracy, result.flops, result.flops_ratio) == (4, 0.75, 40, 1.0)
    # Images 0 and 3 leave at exit 1 (right, wrong), image 1 at exit 2 (right), image 2 at the last (right).
    early = result.early_exit
    assert early is not None
    assert early.shares == (0.5, 0.25, 0.25)
    assert early.accuracy == 0.75
    assert early.macs == pytest.approx(0.5 * 10 + 0.25 * 20 + 0.25 * 40)
    assert early.macs_ratio == pytest.approx(20 / 40)
    assert evaluate(model, batches, costs_of(10, 20, 40), exits=3).early_exit is None
    # Margins between the two probabilities: 0.9, 0.6, 0.1 and 0.82 at exit 1.
    model.confidence = "margin"
    early = evaluate(model, batches, costs_of(10, 20, 40), exits=3, thresholds=(0.85, 1.0)).early_exit
    assert early is not None
    assert early.shares == (0.25, 0, 0.75)


def test_a_threshold_that_is_just_met_exits() -> None:
    confidences = np.array([[0.5, 0.25]], np.float32)
    correct = np.array([[True, True], [False, False]])
    both = np.concatenate([confidences, confidences])
    assert early_exit(correct, both, (1, 2), (0.5,)).shares == (0.5, 0.5)
    assert early_exit(correct, both, (1, 2), (0.0,)).accuracy == 1.0
    assert early_exit(correct, both, (1, 2), (1.0,)).accuracy == 0.0


def test_what_several_processes_find_counts_together() -> None:
    torch.manual_seed(0)
    model = create_model("laud_resnet14_small", mode="both", width_mult=0.25, channel_granularity=2)
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4)) for _ in range(4)]
    whole = evaluate(model, batches)
    parts: list[object] = []

    def keep(part: object) -> list[object]:
        parts.append(part)
        return [part]

    evaluate(model, batches[2:], gather=keep)
    both = evaluate(model, batches[:2], gather=lambda part: [part, *parts])
    assert both.images == 16
    assert both == whole
