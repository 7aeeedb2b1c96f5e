"""Attention between latent tokens and feature maps, as Dynamic Perceivers are built from.

Reference: "Perceiver IO" (Jaegle et al., ICLR 2022) and "Dynamic Perceiver for Efficient Visual Recognition"
(Han et al., ICCV 2023) with its reference code, whose parameter names the modules have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Scaled dot-product attention with a learnt bias on the keys.

    Args:
        query_channels: Channels of the queries and of the result.
        key_channels: Channels of what is attended to.
        width: Channels of projected queries, keys and values together; a multiple of heads.
        heads: Heads.
        dropout: Rate of dropout on the attention matrix.
        positions: Number of keys that have a position, each with a bias of its own; 0 is none.
    """

    relative_position_bias: Tensor | None

    def __init__(
        self,
        query_channels: int,
        key_channels: int,
        width: int,
        heads: int = 1,
        dropout: float = 0.0,
        positions: int = 0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        # The reference code's name; it is added to the keys and the same for all queries.
        self.register_parameter(
            "relative_position_bias", nn.Parameter(torch.zeros(1, positions, width)) if positions else None
        )
        self.q_proj = nn.Linear(query_channels, width, bias=False)
        self.k_proj = nn.Linear(key_channels, width, bias=False)
        self.v_proj = nn.Linear(key_channels, width, bias=False)
        self.o_proj = nn.Linear(width, query_channels)
        self.dropout = _dropout(dropout)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Attend.

        Args:
            query: (N, q, query_channels), or (1, q, query_channels) for the same queries in every sample.
            keys: (N, k, key_channels).

        Returns:
            (N, q, query_channels).
        """
        q, k, v = self.q_proj(query), self.k_proj(keys), self.v_proj(keys)
        if self.relative_position_bias is not None:
            k = k + self.relative_position_bias
        if self.heads > 1:
            q, k, v = self._split(q), self._split(k), self._split(v)
        weights = self.dropout(torch.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1))
        attended = weights @ v
        if self.heads > 1:
            attended = attended.transpose(1, 2).flatten(2)
        y: Tensor = self.o_proj(attended)
        return y

    def _split(self, x: Tensor) -> Tensor:
        # -1 for the batch keeps shape arithmetic out of graphs with a dynamic batch.
        return x.reshape(-1, x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)


def _dropout(rate: float) -> nn.Module:
    return nn.Dropout(rate) if rate else nn.Identity()


class Mlp(nn.Module):
    """Layer norm and two linear layers with a GELU between them.

    Args:
        channels: Channels of input and output.
        widening: Hidden width over channels.
    """

    def __init__(self, channels: int, widening: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, widening * channels)
        self.fc2 = nn.Linear(widening * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x (N, n, channels)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(self.layernorm(x))))
        return y


class CrossAttention(nn.Module):
    """Attention with a layer norm on either side's input.

    Args:
        query_channels: Channels of the queries and of the result.
        key_channels: Channels of what is attended to.
        width: See :class:`Attention`.
        dropout: See :class:`Attention`.
        positions: See :class:`Attention`.
    """

    def __init__(self, query_channels: int, key_channels: int, width: int, dropout: float, positions: int) -> None:
        super().__init__()
        self.q_norm = nn.LayerNorm(query_channels)
        self.kv_norm = nn.LayerNorm(key_channels)
        self.attention = Attention(query_channels, key_channels, width, dropout=dropout, positions=positions)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Return (N, q, query_channels); the arguments are those of :class:`Attention`."""
        y: Tensor = self.attention(self.q_norm(query), self.kv_norm(keys))
        return y


class CrossAttentionLayer(nn.Module):
    """Cross-attention and an MLP, each added to its input.

    Args:
        query_channels: Channels of the queries and of the result.
        key_channels: Channels of what is attended to.
        width: See :class:`Attention`.
        dropout: Rate of dropout on the attention matrix and on both branches.
        positions: See :class:`Attention`.
    """

    def __init__(
        self, query_channels: int, key_channels: int, width: int, dropout: float = 0.0, positions: int = 0
    ) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(query_channels, key_channels, width, dropout, positions)
        self.mlp = Mlp(query_channels, 1)
        self.dropout = _dropout(dropout)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Return (N, q, query_channels); the arguments are those of :class:`Attention`."""
        y = query + self.dropout(self.cross_attn(query, keys))
        z: Tensor = y + self.dropout(self.mlp(y))
        return z


class SelfAttention(nn.Module):
    """Attention of tokens to each other behind one layer norm.

    Args:
        channels: Channels.
        heads: Heads; a divisor of channels.
        dropout: See :class:`Attention`.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, channels, channels, heads, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x (N, n, channels)."""
        normed = self.norm(x)
        y: Tensor = self.attention(normed, normed)
        return y


class SelfAttentionLayer(nn.Module):
    """Self-attention and an MLP, each added to its input.

    Args:
        channels: Channels.
        heads: Heads; a divisor of channels.
        widening: Hidden width of the MLP over channels.
        dropout: Rate of dropout on the attention matrix and on both branches.
    """

    def __init__(self, channels: int, heads: int, widening: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = SelfAttention(channels, heads, dropout)
        self.mlp = Mlp(channels, widening)
        self.dropout = _dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x (N, n, channels)."""
        y = x + self.dropout(self.self_attn(x))
        z: Tensor = y + self.dropout(self.mlp(y))
        return z


def token_mixer(tokens: int, mixed: int) -> nn.Sequential:
    """Return a layer (N, C, tokens) -> (N, C, mixed): normalise over the tokens, then combine them."""
    return nn.Sequential(nn.LayerNorm(tokens), nn.Linear(tokens, mixed))


def token_expander(channels: int, expanded: int) -> nn.Sequential:
    """Return a layer (N, n, channels) -> (N, n, expanded): normalise, then widen every token."""
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, expanded))


def as_tokens(x: Tensor) -> Tensor:
    """Return the pixels of a map (N, C, H, W), row by row, as tokens (N, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens (N, height * width, C) as a map (N, C, height, width)."""
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], height, width)


def average_pool(x: Tensor, size: int) -> Tensor:
    """Pool a map (N, C, H, W) to (N, C, size, size), as adaptive average pooling does.

    Runtimes for boards have no adaptive pooling. Where size divides H and W the windows are equal, and this is
    a plain average pool; elsewhere rows and columns are averaged by two matrix products with constants.
    """
    height, width = x.shape[2], x.shape[3]
    if height == width == size:
        return x
    if height % size == 0 and width % size == 0:
        return F.avg_pool2d(x, (height // size, width // size))
    return _windows(x, height, size) @ x @ _windows(x, width, size).T


def _windows(x: Tensor, length: int, size: int) -> Tensor:
    """Return the (size, length) matrix whose rows average the windows of adaptive pooling."""
    rows = []
    for index in range(size):
        start, end = index * length // size, -(-(index + 1) * length // size)
        rows.append([1 / (end - start) if start <= position < end else 0.0 for position in range(length)])
    return x.new_tensor(rows)
