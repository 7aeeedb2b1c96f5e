"""Deformable attention against samples worked out cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dyndeploy.errors import UsageError
from dyndeploy.ops import operator
from dyndeploy.ops.multiscale_deformable_attention import LEVELS, attend, sample_levels
from tests.blocks.test_deformable import CELLS, SIZES, bilinear, maps
from tests.ops.cases import build


def test_samples_of_all_levels_are_weighted_and_summed() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, CELLS, 2, 3, generator=generator)
    locations = torch.rand(2, 5, 2, len(SIZES), 3, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(2, 5, 2, len(SIZES), 3, generator=generator)
    found = sample_levels(value, SIZES, locations, weights)
    assert found.shape == (2, 5, 2, 3)
    for image, query, head in np.ndindex(2, 5, 2):
        expected = sum(
            float(weights[image, query, head, level, point])
            * bilinear(features, *locations[image, query, head, level, point].tolist())
            for level, features in enumerate(maps(value, image, head))
            for point in range(3)
        )
        np.testing.assert_allclose(found[image, query, head], expected, atol=2e-6)


def test_points_outside_and_points_that_are_no_numbers_count_nothing() -> None:
    value = torch.ones(1, CELLS, 1, 1)
    locations = torch.tensor([-1.0, 2.0, 1e9, -1e9]).view(1, 2, 1, 2, 1, 1).expand(-1, -1, -1, -1, -1, 2)
    assert not sample_levels(value, SIZES, locations, torch.ones(1, 2, 1, 2, 1)).any()


@pytest.mark.parametrize("levels", [1, 2, *LEVELS])
def test_any_number_of_maps_is_served(levels: int) -> None:
    """By an operator where there is one."""
    sizes = [(3, 4)] * levels
    generator = torch.Generator().manual_seed(levels)
    value = torch.randn(1, 12 * levels, 2, 3, generator=generator)
    locations = torch.rand(1, 5, 2, levels, 2, 2, generator=generator)
    weights = torch.rand(1, 5, 2, levels, 2, generator=generator)
    assert torch.equal(attend(value, sizes, locations, weights), sample_levels(value, sizes, locations, weights))


def test_gradients_reach_all_inputs() -> None:
    case = build("MultiscaleDeformableAttention3", size=(5, 4))
    inputs = [tensor.clone().requires_grad_() for tensor in case.inputs]
    case.spec.reference(*inputs, **case.attributes).square().sum().backward()
    for tensor in inputs:
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [3, 4, 2, 2, 0, 1]}, r"sizes .* must be positive"),
        ({"sizes": [3, 4, 2, 2, 2, 1]}, "value has 17 cells, and maps of .* have 18"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, list[int]], message: str) -> None:
    spec = operator("MultiscaleDeformableAttention3")
    shapes = [(1, 17, 2, 8), (1, 5, 2, 3, 4, 2), (1, 5, 2, 3, 4)]
    assert spec.infer_shape(shapes, {"sizes": [3, 4, 2, 2, 1, 1]}) == (1, 5, 2, 8)
    with pytest.raises(UsageError, match=message):
        spec.infer_shape(shapes, change)
