"""What detectors do with boxes, against plain definitions and torchvision's operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dyndeploy.blocks.boxes import EMPTY, keep_boxes, pyramid_roi_align, roi_levels
from dyndeploy.tasks.detection import box_iou

STRIDES = [4, 8, 16, 32]


def greedy(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, score: float, limit: int) -> list[int]:
    """Non-maximum suppression as it is defined, one box after the other."""
    overlaps = box_iou(boxes.numpy(), boxes.numpy())
    kept: list[int] = []
    for index in torch.sort(scores, descending=True, stable=True).indices.tolist():
        rivals = [other for other in kept if groups[other] == groups[index]]
        if scores[index] > score and not any(overlaps[other, index] > iou for other in rivals):
            kept.append(index)
    kept = kept[:limit]
    return kept + [EMPTY] * (limit - len(kept))


@pytest.mark.vision("torchvision")
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(0, 40), limit=st.integers(1, 30))
def test_boxes_are_kept_as_defined(seed: int, count: int, limit: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.integers(0, 20, (count, 2))
    boxes = torch.from_numpy(np.concatenate([corners, corners + random.integers(0, 20, (count, 2))], 1)).float()
    scores = torch.from_numpy(random.integers(0, 8, count) / 8).float()
    groups = torch.from_numpy(random.integers(0, 3, count))
    kept = keep_boxes(boxes, scores, groups, iou_threshold=0.45, score_threshold=0.2, limit=limit)
    assert kept.tolist() == greedy(boxes, scores, groups, 0.45, 0.2, limit)


def test_boxes_are_read_from_the_level_of_their_size() -> None:
    sides = torch.tensor([0.0, 1, 111, 112, 223, 224, 447, 448, 900, 5000])
    boxes = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], 1)
    assert roi_levels(boxes, 4, 56.0).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.vision("torchvision")
def test_pyramids_are_read_like_each_of_their_maps() -> None:
    import torchvision

    torch.manual_seed(0)
    maps = [torch.randn(1, 3, 512 // stride, 512 // stride, dtype=torch.float64) for stride in STRIDES]
    boxes = torch.tensor(
        [[0, 0, 60, 40], [10.5, 20.25, 150, 160], [0, 0, 512, 512], [30, 30, 30, 30], [100, 90, 400, 300.0]]
    ).double()
    found = pyramid_roi_align(maps, boxes, STRIDES, finest=56.0, size=7)
    for index, level in enumerate([0, 1, 3, 0, 2]):
        own = [boxes[index : index + 1]]
        expected = torchvision.ops.roi_align(maps[level], own, 7, 1 / STRIDES[level], sampling_ratio=0, aligned=True)
        assert torch.equal(found[index], expected[0])


@pytest.mark.vision("torchvision")
def test_gradients_reach_the_maps_that_were_read() -> None:
    maps = [torch.zeros(1, 2, 128 // stride, 128 // stride, requires_grad=True) for stride in STRIDES]
    pyramid_roi_align(maps, torch.tensor([[0.0, 0, 32, 32]]), STRIDES, finest=56.0, size=7).sum().backward()
    # Every bin is an average, so the gradients add up to the number of results.
    sums = [0.0 if level.grad is None else float(level.grad.sum()) for level in maps]
    assert sums == pytest.approx([2 * 49, 0, 0, 0], rel=1e-5)


@pytest.mark.vision("torchvision")
def test_no_boxes_are_no_error() -> None:
    nothing = torch.zeros(0, 4)
    kept = keep_boxes(
        nothing, torch.zeros(0), torch.zeros(0, dtype=torch.int64), iou_threshold=0.5, score_threshold=0.0, limit=3
    )
    assert kept.tolist() == [EMPTY] * 3
    maps = [torch.zeros(1, 2, 4, 4)] * 4
    assert pyramid_roi_align(maps, nothing, STRIDES, finest=56.0, size=7).shape == (0, 2, 7, 7)
