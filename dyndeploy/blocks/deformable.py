"""Attention that reads a few points of several feature maps, and the sine codes of positions that go with it.

Reference: "Deformable DETR" (Zhu et al., ICLR 2021) as mmdetection builds it: bilinear samples at half-pixel
coordinates, zeros outside the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dyndeploy.ops.multiscale_deformable_attention import attend

Size = tuple[int, int]
"""Height and width of a map, in cells."""


class DeformableAttention(nn.Module):
    """Each query reads some points around its reference from every level of a pyramid.

    Args:
        width: Channels of queries and memory.
        heads: Of the attention; they divide the width.
        levels: Maps of the pyramid.
        points: That a head reads from each map.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let the heads begin by looking in directions around the circle, farther with every point."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)[:, None]
        offsets = (direction[:, None, None] * steps).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for weight in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(weight)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, references: Tensor, memory: Tensor, sizes: Sequence[Size], blank: Tensor | None = None
    ) -> Tensor:
        """Return what the queries read: (N, Q, width).

        Args:
            query: (N, Q, width), with its position code.
            references: Per query and level, in fractions of the map: points (N, Q, levels, 2), whose offsets are in
                cells of the map; or boxes (N, Q, levels, 4), x, y, width, height, whose offsets are in parts of half
                the box.
            memory: The cells of all maps, one map behind the other, row by row: (N, S, width).
            sizes: Height and width of each map; their areas add up to S.
            blank: Which cells count as zeros, (N, S), bool.
        """
        batch, queries, _ = query.shape
        value = self.value_proj(memory)
        if blank is not None:
            # A product: ONNX Runtime takes ten times as long to choose between a row and zeros.
            value = value * (~blank)[..., None].to(value.dtype)
        value = value.view(batch, -1, self.heads, value.shape[-1] // self.heads)
        # Long rows: what runs graphs is slow where a few numbers at a time are combined.
        offsets = self.sampling_offsets(query).view(batch, queries, self.heads, -1)
        weights = self.attention_weights(query).view(batch, queries, self.heads, -1).softmax(-1)
        weights = weights.view(batch, queries, self.heads, self.levels, self.points)
        if references.shape[-1] == 2:
            cells = [side for height, width in sizes for side in (width, height) * self.points]
            offsets = offsets / torch.tensor(cells, dtype=query.dtype, device=query.device)
        else:
            offsets = offsets / self.points * self._of_points(references[..., 2:]) * 0.5
        locations = self._of_points(references[..., :2]) + offsets
        locations = locations.view(batch, queries, self.heads, self.levels, self.points, 2)
        read: Tensor = self.output_proj(attend(value, sizes, locations, weights).flatten(2))
        return read

    def _of_points(self, pairs: Tensor) -> Tensor:
        """Return pairs of each level (N, Q, levels, 2) for all points of a head, (N, Q, 1, levels * points * 2)."""
        return pairs[:, :, None, :, None].expand(-1, -1, 1, -1, self.points, -1).flatten(3)


def sine_code(position: Tensor, features: int, temperature: float) -> Tensor:
    """Return sines and cosines of positions (...) at falling frequencies, in turns: (..., features)."""
    index = torch.arange(features, dtype=position.dtype, device=position.device)
    angle = position[..., None] / temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / features)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)


def sine_code_of_map(size: Size, inside: Tensor, features: int, temperature: float) -> Tensor:
    """Return the code of every cell of a map by its row and its column, counted from 1 to 2 pi at the last one.

    Args:
        size: Height and width of the map.
        inside: Rows and columns that belong to each image, (N, 2).
        features: Of the code for each axis.
        temperature: See :func:`sine_code`.

    Returns:
        (N, height * width, 2 * features): the row's code before the column's. Beyond the image codes are repeated.
    """
    codes = []
    for axis, cells in enumerate(size):
        last = inside[:, axis, None]
        count = torch.arange(1, cells + 1, dtype=inside.dtype, device=inside.device)[None].minimum(last)
        codes.append(sine_code(count / (last + 1e-6) * (2 * math.pi), features, temperature))
    down, across = codes
    height, width = size
    code = torch.cat(
        [down[:, :, None].expand(-1, -1, width, -1), across[:, None].expand(-1, height, -1, -1)],
        -1,
    )
    return code.flatten(1, 2)
