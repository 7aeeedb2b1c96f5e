"""Reading regions from pyramids: the semantics are torchvision's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.errors import UsageError
from dyndeploy.ops import operator
from dyndeploy.ops.pyramid_roi_align import MOST_SAMPLES

STRIDES = [4, 8, 16, 32]
SPEC = operator("PyramidRoiAlign")


def pyramid(height: int, width: int, channels: int = 2) -> list[torch.Tensor]:
    return [torch.randn(1, channels, -(-height // stride), -(-width // stride)) for stride in STRIDES]


@pytest.mark.vision("torchvision")
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.sampled_from([1, 3, 7, 14]), whole=st.booleans())
def test_regions_are_those_of_torchvision(seed: int, size: int, whole: bool) -> None:
    from torchvision.ops import roi_align

    torch.manual_seed(seed)
    maps = pyramid(96, 160)
    corners = torch.rand(20, 2, 2) * 200 - 20
    if whole:
        corners = corners.round()  # Bins of whole cells: how many samples there are is decided by equality.
    boxes = torch.cat([corners.min(1).values, corners.max(1).values], 1)
    levels = torch.randint(0, 4, (20,))
    found = SPEC.reference(*maps, boxes, levels, strides=STRIDES, size=size)
    for level, stride in enumerate(STRIDES):
        own = levels == level
        expected = roi_align(maps[level], [boxes[own]], size, 1 / stride, sampling_ratio=0, aligned=True)
        torch.testing.assert_close(found[own], expected, rtol=0, atol=1e-5)


def test_what_is_no_box_gives_zeros() -> None:
    none, far = math.nan, math.inf
    boxes = torch.tensor(
        [[none, 0, 8, 8], [0, 0, far, 8], [-far, 0, 8, 8], [8, 0, 8, 8], [9, 0, 8, 8], [900, 900, 950, 950]]
    )
    boxes = torch.cat([boxes, torch.tensor([[0, 0, 8.0 * MOST_SAMPLES * 4, 8]])])
    found = SPEC.reference(*pyramid(32, 32), boxes, torch.zeros(7, dtype=torch.int64), strides=STRIDES, size=7)
    assert not found.any()


def test_levels_outside_are_taken_for_the_nearest() -> None:
    maps, boxes = pyramid(64, 64), torch.tensor([[8.0, 8, 40, 40]]).repeat(4, 1)
    found = SPEC.reference(*maps, boxes, torch.tensor([-3, 0, 3, 9]), strides=STRIDES, size=2)
    assert torch.equal(found[0], found[1]) and torch.equal(found[2], found[3]) and not torch.equal(found[1], found[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [4, 8, 32, 16]}, "must be positive and rise"),
        ({"strides": [0, 8, 16, 32]}, "must be positive and rise"),
        ({"size": 0}, "size 0"),
        ({"strides": [4, 8, 16, 64]}, r"p3 is \(2, 3\), where p2 of \(4, 6\) and the strides make it \(1, 2\)"),
    ],
)
def test_attributes_that_fit_no_pyramid_are_refused(change: dict[str, object], message: str) -> None:
    shapes = [*(tuple(level.shape) for level in pyramid(64, 96)), (5, 4), (5,)]
    assert SPEC.infer_shape(shapes, {"strides": STRIDES, "size": 7}) == (5, 2, 7, 7)
    with pytest.raises(UsageError, match=message):
        SPEC.infer_shape(shapes, {"strides": STRIDES, "size": 7, **change})
