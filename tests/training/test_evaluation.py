from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dyndeploy.nets import BlockMasks, Densities, DynamicOutput, ExitOutput, create_model, full_flops
from dyndeploy.training.evaluation import early_exit, evaluate, evaluate_exits


class Scripted(nn.Module):
    """Returns what the input's first pixels say, so that every average can be worked out by hand."""

    def forward(self, x: Tensor) -> DynamicOutput:
        assert not self.training
        spatial = x[:, :1, 0, :4].reshape(-1, 1, 2, 2)
        one = torch.ones(1)
        rate = spatial.mean().reshape(1)
        logits = torch.stack([x[:, 1, 0, 0], torch.zeros(len(x))], dim=1)
        return DynamicOutput(
            logits=logits,
            masks=(BlockMasks("layer1.0", spatial, None),),
            densities=Densities([rate], [rate], [rate], [one]),
            flops=100 * rate[0],
            flops_ratio=rate,
        )


def test_averages_by_hand_over_batches_of_different_size() -> None:
    rows = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    x = torch.zeros(4, 3, 1, 4)
    x[:, 0, 0] = torch.tensor(rows)
    x[:, 1, 0, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])  # Predictions 0, 0, 1, 1.
    labels = torch.tensor([0, 0, 1, 0])
    model = Scripted().train()
    result = evaluate(model, [(x[:3], labels[:3]), (x[3:], labels[3:])], full_flops=200)
    assert model.training
    assert (result.images, result.accuracy) == (4, 0.75)
    # Three right answers at a margin of 1, one wrong answer.
    right, wrong = torch.log1p(torch.exp(torch.tensor([-1.0, 1.0]))).tolist()
    assert result.cross_entropy == pytest.approx((3 * right + wrong) / 4, rel=1e-6)
    assert result.flops == pytest.approx(50)
    assert result.flops_ratio == pytest.approx(0.25)
    (block,) = result.blocks
    assert block.name == "layer1.0"
    assert (block.flops_ratio, block.conv3, block.channel) == pytest.approx((0.5, 0.5, 1.0))
    (mask,) = block.masks
    assert (mask.kind, mask.positions, mask.rate, mask.distinct) == ("spatial", 4, 0.5, 3)
    assert mask.rate_std == pytest.approx((2 * 0.25**2 / 4) ** 0.5)  # Rates 0.5, 0.25, 0.5, 0.75.
    assert mask.varying == 0.5  # Positions 2 and 3 differ between the images.
    assert mask.variance == pytest.approx((0 + 3 / 16 + 3 / 16 + 0) / 4)


@pytest.mark.parametrize("mode", ["spatial", "channel", "layer", "both"])
def test_agrees_with_the_network_in_one_batch(mode: str) -> None:
    torch.manual_seed(0)
    model = create_model("laud_resnet14_small", mode=mode, width_mult=0.25, channel_granularity=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "masker" in name:
                parameter.copy_(torch.randn_like(parameter))
    x, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    full = full_flops(model, 32)
    result = evaluate(model, [(x, labels)], full)
    output = model.eval()(x)
    assert result.flops_ratio == pytest.approx(float(output.flops) / full, rel=1e-6)
    assert [b.flops_ratio for b in result.blocks] == pytest.approx(output.flops_ratio.tolist(), rel=1e-6)
    kinds = {"spatial": ["spatial"], "layer": ["spatial"], "channel": ["channel"], "both": ["spatial", "channel"]}
    for block, masks in zip(result.blocks, output.masks, strict=True):
        assert [m.kind for m in block.masks] == kinds[mode]
        for statistics in block.masks:
            own = getattr(masks, statistics.kind)
            assert statistics.rate == pytest.approx(own.mean().item(), rel=1e-6)
            same = (own == own[:1]).flatten(1).all(0)
            assert statistics.varying == pytest.approx(1 - same.double().mean().item())


class Exits(nn.Module):
    """Three exits for two classes, whose logit margins are the input's first pixels."""

    def forward(self, x: Tensor) -> ExitOutput:
        assert not self.training
        margins = x[:, 0, 0, :3]
        return ExitOutput(tuple(torch.stack([margins[:, i], torch.zeros(len(x))], dim=1) for i in range(3)))


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
    result = evaluate_exits(model, batches, (10, 20, 40), thresholds=(0.9, 0.85))
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
    assert evaluate_exits(model, batches, (10, 20, 40)).early_exit is None


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
    full = full_flops(model, 32)
    whole = evaluate(model, batches, full)
    parts: list[object] = []

    def keep(part: object) -> list[object]:
        parts.append(part)
        return [part]

    evaluate(model, batches[2:], full, keep)
    both = evaluate(model, batches[:2], full, lambda part: [part, *parts])
    assert both.images == 16
    assert both == whole
