from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dyndeploy.nets import BlockMasks, Densities, DynamicOutput, create_model, full_flops
from dyndeploy.training.evaluation import evaluate


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
