from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dyndeploy.blocks import PooledGate, SpatialMasker, skip
from dyndeploy.blocks.block import run_dense
from dyndeploy.errors import UsageError
from tests.blocks.networks import Residual, SkipNet, liven


@settings(max_examples=20, deadline=None)
@given(bits=st.lists(st.booleans(), min_size=1, max_size=4), training=st.booleans())
def test_images_are_computed_or_kept(bits: list[bool], training: bool) -> None:
    block = skip(Residual(3)).train(training)
    x = torch.randn(len(bits), 3, 5, 4)
    mask = torch.tensor(bits).float().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        computed = block.module(x)
        result = block.compute(x, layer=mask)
    if training:  # batch norm moves with every pass
        return
    for index, bit in enumerate(bits):
        torch.testing.assert_close(result[index], computed[index] if bit else x[index], rtol=0, atol=0)


def test_without_a_mask_everything_is_computed() -> None:
    network = liven(SkipNet())
    x = torch.randn(2, 3, 16, 24)
    run_dense(network, ["body.0", "body.1"])
    features = torch.relu(network.stem(x))
    expected = network.head(network.body[1].module(network.body[0].module(features)).mean((2, 3)))
    torch.testing.assert_close(network(x), expected)
    with pytest.raises(UsageError, match="Unknown block"):
        run_dense(SkipNet(), ["body.7"])


def test_what_changes_the_shape_is_refused() -> None:
    for module, match in (
        (nn.Conv2d(4, 5, 1), r"turns \(1, 4, 6, 6\) torch.float32 into \(1, 5, 6, 6\)"),
        (nn.Conv2d(4, 4, 3), "same shape"),
    ):
        with pytest.raises(UsageError, match=match):
            skip(module)(torch.randn(1, 4, 6, 6))


def test_gates_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="kind 'spatial'"):
        skip(Residual(4), SpatialMasker(4))
    with pytest.raises(UsageError, match="not Linear"):
        skip(Residual(4), nn.Linear(4, 2))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="PooledGate"):
        skip(nn.ReLU())
    with pytest.raises(UsageError, match=r"PooledGate\(4"):
        skip(Residual(4), PooledGate(5))(torch.randn(1, 4, 6, 6))

    class Odd(PooledGate):
        def logits(self, x: torch.Tensor, size: object = None) -> torch.Tensor:
            return self.linear(x.mean((2, 3)))[:, :1]

    with pytest.raises(UsageError, match=r"\(1, 1\) for 1 images"):
        skip(Residual(4), Odd(4))(torch.randn(1, 4, 6, 6))


def test_tokens_have_their_features_last() -> None:
    block = skip(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)))
    assert isinstance(block.gate, PooledGate) and block.gate.last
    assert block(torch.randn(2, 5, 8)).shape == (2, 5, 8)
