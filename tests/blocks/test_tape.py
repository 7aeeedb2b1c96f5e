from __future__ import annotations

import pytest
import torch
from torch import nn

from dyndeploy.blocks import Tape, skip
from dyndeploy.blocks.tape import replace_attribute
from dyndeploy.errors import UsageError
from tests.blocks.networks import Pyramid, Residual, SkipNet, liven


def test_it_sees_every_decision_in_any_module() -> None:
    torch.manual_seed(0)
    network, x = liven(Pyramid()), torch.randn(2, 3, 32, 48)
    with torch.no_grad(), Tape(network) as tape:
        network(x)
    shapes = {name: tuple(mask.shape) for name, mask in tape.masks.items()}
    assert shapes == {
        "mask/body.a/spatial": (2, 1, 8, 12),
        "mask/body.b/spatial": (2, 1, 4, 6),
        "mask/body.b/channel": (2, 4),
    }
    for name, mask in tape.masks.items():
        assert torch.equal((tape.margins[name] >= 0).float(), mask)
        assert 0 < mask.mean() < 1, "the test means nothing where nothing is skipped"
    assert tape.calls["body.a"].inputs == ((2, 16, 16, 24),)
    assert tape.calls["body.a"].nonnegative
    assert tape.decisions["mask/body.b/spatial"].size == (4, 6)


def test_it_leaves_nothing_behind() -> None:
    network, x = liven(SkipNet()), torch.randn(1, 3, 16, 24)
    before = network(x)
    with Tape(network) as tape:
        network(x)
        network(x)
        assert len(tape.masks) == 2, "every pass starts anew"
    assert torch.equal(network(x), before)
    assert all(block.gate.tape is None and "compute" not in block.__dict__ for block in network.body)


def test_it_puts_back_what_a_block_had_of_its_own() -> None:
    network, x = liven(SkipNet()), torch.randn(1, 3, 16, 24)
    block, seen = network.body[0], []

    def compute(x: torch.Tensor, layer: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(layer)
        return x

    put_back = replace_attribute(block, "compute", compute)
    with Tape(network) as tape:
        network(x)
    network(x)
    assert len(seen) == 2 and "body.0" in tape.calls
    assert block.compute is compute
    put_back()
    assert "compute" not in block.__dict__


def test_forced_masks_decide() -> None:
    network, x = liven(SkipNet()), torch.randn(3, 3, 16, 24)
    with torch.no_grad():
        features = torch.relu(network.stem(x))
        second = network.body[1].module(features)
        mask = torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
        expected = network.head(torch.where(mask > 0, second, features).mean((2, 3)))
        forced = {"mask/body.0/layer": torch.zeros(3, 1, 1, 1), "mask/body.1/layer": mask}
        with Tape(network, force=forced) as tape:
            torch.testing.assert_close(network(x), expected)
    assert torch.equal(tape.masks["mask/body.1/layer"], mask)
    with pytest.raises(UsageError, match="was to be forced"), Tape(network, force={"mask/body.0/layer": mask[:1]}):
        network(x)


def test_masks_inside_a_skipped_block_are_zero_where_it_is_skipped() -> None:
    outer = liven(skip(nn.Sequential(skip(Residual(4)), Residual(4))))
    x = torch.randn(6, 4, 8, 8)
    with torch.no_grad(), Tape(outer) as tape:
        outer(x)
    outside, inside = tape.masks["mask/network/layer"], tape.masks["mask/module.0/layer"]
    assert torch.equal(inside, inside * outside)
    raw = tape.decisions["mask/module.0/layer"].mask
    assert torch.equal(inside, raw * outside)


def test_a_block_used_twice_and_a_shared_gate_are_refused() -> None:
    block = skip(Residual(4))
    with pytest.raises(UsageError, match="used twice"), Tape(nn.Sequential(block, block)) as tape:
        tape.module(torch.randn(1, 4, 8, 8))
    shared = nn.Sequential(block, skip(Residual(4), block.gate))
    with pytest.raises(UsageError, match="0 has it too"):
        Tape(shared).__enter__()
    assert block.gate.tape is None


def test_temperature_noise_and_gradients_reach_the_gates() -> None:
    network = SkipNet().train()
    seen = []

    def noise(logits: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(logits.shape))
        return torch.zeros_like(logits)

    with Tape(network, temperature=3.0, noise=noise) as tape:
        network(torch.randn(2, 3, 16, 24)).sum().backward()
    assert seen == [(2, 2, 1, 1, 1)] * 2
    assert all(block.gate.linear.weight.grad is not None for block in network.body)
    assert tape.masks["mask/body.0/layer"].requires_grad
