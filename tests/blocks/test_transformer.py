"""The transformer block: equal to its operator, to the published code's rules, and to timm's blocks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from dyndeploy.blocks import SublayerGates, TokenGate, TransformerBlock
from dyndeploy.blocks.gates import PooledGate
from dyndeploy.errors import UsageError
from dyndeploy.ops import OPERATORS
from tests.examples.vit import BlockOfTimm

WIDTH, HEADS, HIDDEN = 12, 3, 24
MASKS = {"token": (2, 7), "head": (2, 3), "attention": (2, 1, 1, 1), "mlp": (2, 1, 1, 1)}


def shaken(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return module


def masks(rate: float, names: list[str]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: (torch.rand(MASKS[name], generator=generator) < rate).float() for name in names}


VARIANTS = [
    (token, head, layer) for token, head, layer in itertools.product([False, True], repeat=3) if token or head or layer
]


@pytest.mark.parametrize("rate", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("mode", ["inputs", "units", "attention"])
@pytest.mark.parametrize("token_mlp", [False, True])
@pytest.mark.parametrize(("token", "head", "layer"), VARIANTS)
def test_compute_is_what_the_operator_computes(
    token: bool, head: bool, layer: bool, token_mlp: bool, mode: str, rate: float
) -> None:
    block = TransformerBlock(
        WIDTH,
        HEADS,
        HIDDEN,
        token=token,
        head=head,
        layer=layer,
        token_mlp=token_mlp,
        head_mode=mode,
        qkv_bias=rate < 1,
    )
    shaken(block.eval())
    given = masks(rate, list(block.gates()))
    x = torch.randn(2, 7, WIDTH)
    call = block.lower(tuple(x.shape))
    assert call.operator is not None
    spec = OPERATORS[call.operator]
    ports = [port.name for port in spec.inputs[1:]]
    spec.check_attributes(call.attributes)
    expected = spec.reference(x, *(given.get(name, call.tensors.get(name)) for name in ports), **call.attributes)
    torch.testing.assert_close(block.compute(x, **given), expected, rtol=1e-5, atol=1e-5)
    assert list(spec.gates) == list(block.gates())


def test_dropped_tokens_pass_and_influence_nobody() -> None:
    block = shaken(TransformerBlock(WIDTH, HEADS, HIDDEN, token=True).eval())
    x = torch.randn(1, 7, WIDTH)
    mask = torch.tensor([[1.0, 1, 0, 1, 0, 0, 1]])
    kept = mask[0].bool()
    y = block.compute(x, token=mask)
    assert torch.equal(y[:, ~kept], x[:, ~kept])
    torch.testing.assert_close(y[:, kept], block.compute(x[:, kept]))


def test_gradients_reach_every_gate_and_are_finite() -> None:
    block = TransformerBlock(WIDTH, HEADS, HIDDEN, token=True, head=True, layer=True, norm_policy=True).train()
    shaken(block)
    torch.manual_seed(0)
    block(torch.randn(32, 7, WIDTH)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
    selecting = ("attn.token_select", "head_select", "layer_select", "norm_policy")
    for name, parameter in block.named_parameters():
        assert not name.startswith(selecting) or float(parameter.grad.abs().max()) > 0, name  # type: ignore[union-attr]


def test_names_are_the_published_ones() -> None:
    block = TransformerBlock(WIDTH, HEADS, HIDDEN, token=True, head=True, layer=True, norm_policy=True, qkv_bias=False)
    names = {name.rpartition(".")[0] for name in block.state_dict()}
    assert names == {
        "norm1", "norm2", "norm_policy", "attn.query", "attn.key", "attn.value", "attn.proj", "mlp.fc1", "mlp.fc2",
        "attn.token_select.mlp_head", "head_select.mlp_head", "layer_select.mlp_head",
    }  # fmt: skip
    assert block.layer_select is not None and block.layer_select.mlp_head.weight.shape == (2, WIDTH)


def test_stochastic_depth_keeps_the_mean_and_needs_blocks_without_gates_of_sublayers() -> None:
    torch.manual_seed(0)
    block = shaken(TransformerBlock(WIDTH, HEADS, HIDDEN, drop_path=0.5).train())
    branch = torch.ones(4000, 7, WIDTH)
    kept = block._kept(branch, None, None)  # type: ignore[operator]
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.06)
    gated = TransformerBlock(WIDTH, HEADS, HIDDEN, drop_path=0.5, layer=True).train()
    assert torch.equal(gated._kept(branch, None, None), branch)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="5 heads cannot share 12"):
        TransformerBlock(WIDTH, 5, HIDDEN)
    with pytest.raises(UsageError, match="of kind 'token', not 'layer'"):
        TransformerBlock(WIDTH, HEADS, HIDDEN, token=PooledGate(WIDTH))
    with pytest.raises(UsageError, match="owns its channels"):
        TransformerBlock(WIDTH, HEADS, HIDDEN, head_size=8, head=True)
    with pytest.raises(UsageError, match="share the hidden units"):
        TransformerBlock(WIDTH, HEADS, 25, head=True, head_mode="units")
    with pytest.raises(UsageError, match="head mode"):
        TransformerBlock(WIDTH, HEADS, HIDDEN, head_mode="input")
    with pytest.raises(UsageError, match="drop_path"):
        TransformerBlock(WIDTH, HEADS, HIDDEN, drop_path=1.0)


class LayerScale(nn.Module):
    """As timm's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class ScaledBlock(BlockOfTimm):
    """With layer scale, as DINOv2 has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        y: torch.Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


@pytest.mark.parametrize("kind", [BlockOfTimm, ScaledBlock])
def test_blocks_of_timm_become_ours(kind: type[BlockOfTimm]) -> None:
    theirs = kind(WIDTH, HEADS).eval()
    for parameter in theirs.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    ours = TransformerBlock.from_timm(
        theirs, token=lambda norm: TokenGate(WIDTH, norm, kept=5), head=True, layer=SublayerGates(WIDTH)
    )
    x = torch.randn(2, 7, WIDTH)
    torch.testing.assert_close(ours.compute(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert ours.attn.token_select is not None and ours.attn.token_select.norm is ours.norm1
    assert ours(x).shape == x.shape


def refused(block: nn.Module) -> str:
    with pytest.raises(UsageError) as caught:
        TransformerBlock.from_timm(block)
    return str(caught.value)


def test_blocks_that_compute_something_else_are_refused() -> None:
    block = BlockOfTimm(WIDTH, HEADS)
    block.attn.q_norm = nn.LayerNorm(4)
    assert "attn.q_norm is a LayerNorm" in refused(block)
    block = BlockOfTimm(WIDTH, HEADS)
    block.mlp.act = nn.GELU(approximate="tanh")
    assert "exact GELU" in refused(block)
    block.mlp.act = nn.SiLU()
    assert "exact GELU" in refused(block)
    block = BlockOfTimm(WIDTH, HEADS)
    block.attn.relative_position_bias_table = nn.Parameter(torch.zeros(3))
    assert "relative_position_bias_table" in refused(block)
    block = BlockOfTimm(WIDTH, HEADS)
    block.norm2 = nn.LayerNorm(WIDTH, eps=1e-3)
    assert "same epsilon" in refused(block)
    del block.mlp.fc2
    assert "it has no mlp.fc2" in refused(block)

    class PostNorm(BlockOfTimm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.norm1(self.attn(x))
            y: torch.Tensor = x + self.norm2(self.mlp(x))
            return y

    assert "computes something else" in refused(PostNorm(WIDTH, HEADS))
