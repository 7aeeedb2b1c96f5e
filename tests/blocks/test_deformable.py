"""Deformable attention by what its layers ask for, and sine codes against their formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dyndeploy.blocks.deformable import DeformableAttention, sine_code, sine_code_of_map

SIZES = [(3, 4), (2, 2)]
CELLS = sum(height * width for height, width in SIZES)


def bilinear(features: np.ndarray, x: float, y: float) -> np.ndarray:
    """Sample (height, width, channels) at fractions of the map; zeros outside."""
    height, width, channels = features.shape
    column, row = x * width - 0.5, y * height - 0.5
    found = np.zeros(channels)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                found += features[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return found


def maps(value: torch.Tensor, image: int, head: int) -> list[np.ndarray]:
    cells, found = value[image, :, head].double().numpy(), []
    for height, width in SIZES:
        found.append(cells[: height * width].reshape(height, width, -1))
        cells = cells[height * width :]
    return found


def identity(attention: DeformableAttention) -> DeformableAttention:
    """Values and outputs as they are, equal weights, offsets only by the bias."""
    with torch.no_grad():
        for layer in (attention.value_proj, attention.output_proj):
            layer.weight.copy_(torch.eye(len(layer.weight)))
            layer.bias.zero_()
    return attention


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
def test_offsets_are_in_cells_of_the_map_or_in_halves_of_the_box(boxes: bool) -> None:
    attention = identity(DeformableAttention(4, 2, len(SIZES), 2))
    memory = torch.randn(1, CELLS, 4, generator=torch.Generator().manual_seed(1))
    reference = torch.tensor([0.4, 0.6, 0.2, 0.3])[: 4 if boxes else 2]
    found = attention(torch.zeros(1, 1, 4), reference.expand(1, 1, len(SIZES), -1), memory, SIZES)
    # Two heads begin to the right and to the left, and go one step farther with every point.
    for head, direction in enumerate((1, -1)):
        expected = np.zeros(2)
        for features in maps(memory.view(1, CELLS, 2, 2), 0, head):
            for step in (1, 2):
                offset = step / 2 * 0.2 * 0.5 if boxes else step / features.shape[1]
                expected += 0.25 * bilinear(features, 0.4 + direction * offset, 0.6)
        np.testing.assert_allclose(found[0, 0, 2 * head : 2 * head + 2].detach(), expected, atol=1e-6)


def test_blank_cells_are_zeros() -> None:
    attention = DeformableAttention(4, 2, len(SIZES), 2)
    torch.nn.init.normal_(attention.value_proj.bias)
    query, references = torch.randn(1, 6, 4), torch.rand(1, 6, len(SIZES), 2)
    memory, blank = torch.randn(1, CELLS, 4), torch.ones(1, CELLS, dtype=torch.bool)
    torch.testing.assert_close(
        attention(query, references, memory, SIZES, blank), attention.output_proj.bias.expand(1, 6, 4)
    )
    blank[0, 3] = False
    others = torch.where(blank[..., None], 7.0, memory)
    torch.testing.assert_close(
        attention(query, references, memory, SIZES, blank), attention(query, references, others, SIZES, blank)
    )


def test_sines_and_cosines_take_turns() -> None:
    code = sine_code(torch.tensor([0.5]), 4, 20.0)
    angles = [0.5, 0.5 / 20**0.5]
    expected = [math.sin(angles[0]), math.cos(angles[0]), math.sin(angles[1]), math.cos(angles[1])]
    np.testing.assert_allclose(code[0], expected, rtol=1e-6)


def test_cells_are_counted_to_the_last_one_of_the_image() -> None:
    code = sine_code_of_map((2, 3), torch.tensor([[2.0, 3.0], [1.0, 2.0]]), 2, 20.0).view(2, 2, 3, 4)
    for image, (rows, columns) in enumerate(((2, 3), (1, 2))):
        for row, column in np.ndindex(rows, columns):
            angles = 2 * math.pi * (row + 1) / rows, 2 * math.pi * (column + 1) / columns
            expected = [function(angle) for angle in angles for function in (math.sin, math.cos)]
            np.testing.assert_allclose(code[image, row, column], expected, atol=1e-5)
