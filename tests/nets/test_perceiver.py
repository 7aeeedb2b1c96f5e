from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.nets.perceiver import Attention, CrossAttentionLayer, as_map, as_tokens, average_pool


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.sampled_from([1, 4, 7]))
def test_pooling_is_adaptive_pooling(height: int, width: int, size: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(average_pool(x, size), F.adaptive_avg_pool2d(x, size))


@pytest.mark.parametrize(("side", "operators"), [(7, set()), (28, {"avg_pool2d"}), (30, {"matmul"})])
def test_pooling_uses_plain_operators(side: int, operators: set[str]) -> None:
    class Pool(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return average_pool(x, 7) + 0

    graph = torch.export.export(Pool(), (torch.zeros(1, 2, side, side),)).graph
    used = {str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function"}
    assert operators <= used
    assert not any("adaptive" in name for name in used)


def test_tokens_are_pixels_in_reading_order() -> None:
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    tokens = as_tokens(x)
    assert tokens[0, 5].tolist() == [x[0, 0, 1, 1].item(), x[0, 1, 1, 1].item()]
    assert torch.equal(as_map(tokens, 3, 4), x)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_scaled_dot_product_attention(heads: int) -> None:
    layer = Attention(12, 10, 8, heads, positions=5).double()
    torch.nn.init.normal_(layer.relative_position_bias)
    query, keys = torch.randn(3, 6, 12).double(), torch.randn(3, 5, 10).double()

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (heads, 8 // heads)).transpose(1, 2)

    q, k, v = layer.q_proj(query), layer.k_proj(keys) + layer.relative_position_bias, layer.v_proj(keys)
    expected = F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(query, keys), layer.o_proj(expected))


def test_shared_queries_equal_repeated_ones() -> None:
    layer = CrossAttentionLayer(8, 6, 4)
    query, keys = torch.randn(1, 5, 8), torch.randn(3, 7, 6)
    torch.testing.assert_close(layer(query, keys), layer(query.expand(3, -1, -1), keys))
