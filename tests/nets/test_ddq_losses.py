"""The losses of DDQ-DETR against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dyndeploy.nets.box_geometry import centred, corners, generalized_iou, intersection_over_union
from dyndeploy.nets.ddq_losses import (
    NoisyQueries,
    Objects,
    assign_aligned,
    assign_one_to_one,
    attention_blocks,
    denoising_losses,
    dense_losses,
    focal_loss,
    noisy_queries,
    objects_of,
    one_to_one_losses,
)

# Left and right half of the image.
HALVES = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
TWO = Objects(HALVES, torch.tensor([1, 0]))
NONE = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def focal(p: float, wanted: int) -> float:
    right = p if wanted else 1 - p
    return (0.25 if wanted else 0.75) * (1 - right) ** 2 * -math.log(right)


def test_overlaps() -> None:
    one, other = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 3.0, 3.0])
    assert float(intersection_over_union(one, other)) == pytest.approx(1 / 7)
    assert float(generalized_iou(one, other)) == pytest.approx(1 / 7 - 2 / 9)
    far = torch.tensor([4.0, 0.0, 5.0, 1.0])
    assert float(generalized_iou(one, far)) == pytest.approx(-(10 - 5) / 10)
    empty = torch.zeros(4)
    assert float(intersection_over_union(empty, empty)) == 0
    assert centred(corners(HALVES)).tolist() == HALVES.tolist()


def test_targets_become_parts_of_the_image() -> None:
    target = {"boxes": torch.tensor([[10.0, 20.0, 30.0, 80.0]]), "labels": torch.tensor([3])}
    (own,) = objects_of([target], torch.tensor([[100.0, 40.0]]))
    assert own.boxes.tolist() == [[0.5, 0.5, 0.5, pytest.approx(0.6)]]


def test_focal_loss() -> None:
    logits, wanted = torch.tensor([logit(0.8), logit(0.3), logit(0.1)]), torch.tensor([1.0, 0.0, 1.0])
    assert float(focal_loss(logits, wanted)) == pytest.approx(focal(0.8, 1) + focal(0.3, 0) + focal(0.1, 1), rel=1e-5)


def test_queries_are_assigned_at_the_least_cost() -> None:
    # The first query has the better class for object 0, and lies on object 1: the box weighs more.
    boxes = torch.stack([HALVES[1], HALVES[0], torch.tensor([0.5, 0.5, 0.1, 0.1])])
    logits = torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, 3.0]])
    rows, columns = assign_one_to_one(logits, boxes, TWO)
    assert sorted(zip(columns.tolist(), rows.tolist(), strict=True)) == [(0, 1), (1, 0)]
    rows, columns = assign_one_to_one(logits, boxes, NONE)
    assert len(rows) == len(columns) == 0


def test_losses_of_distinct_queries() -> None:
    boxes = torch.tensor([[0.25, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 1.0], [0.5, 0.5, 0.2, 0.2]])
    p = [[0.2, 0.6], [0.7, 0.1], [0.4, 0.3]]
    logits = torch.tensor([[logit(value) for value in row] for row in p])
    distinct = torch.tensor([[True, True, True], [True, False, True]])
    losses = one_to_one_losses(torch.stack([logits] * 2), torch.stack([boxes] * 2), distinct, [TWO, NONE])
    first = focal(0.2, 0) + focal(0.6, 1) + focal(0.7, 1) + focal(0.1, 0) + focal(0.4, 0) + focal(0.3, 0)
    second = focal(0.2, 0) + focal(0.6, 0) + focal(0.4, 0) + focal(0.3, 0)
    assert float(losses["classification"]) == pytest.approx((first + second) / 2, rel=1e-5)
    assert float(losses["bbox_regression"]) == pytest.approx(5 * 0.5 / 2)
    assert float(losses["giou"]) == pytest.approx(2 * (1 - 0.5) / 2)
    nothing = one_to_one_losses(logits[None], boxes[None], distinct[:1], [NONE])
    assert float(nothing["bbox_regression"]) == float(nothing["giou"]) == 0
    assert float(nothing["classification"]) == pytest.approx(
        sum(focal(value, 0) for row in p for value in row), rel=1e-5
    )


def test_noisy_queries_lie_within_their_noise() -> None:
    torch.manual_seed(0)
    one = Objects(HALVES[:1] * 0.5 + 0.2, torch.tensor([1]))
    noisy = noisy_queries([TWO, one, NONE], 4)
    assert (noisy.groups, noisy.places) == (50, 2)
    labels = noisy.labels.view(3, 50, 2, 2)
    assert (labels[0] >= 0).all() and (labels[1, ..., 0] >= 0).all()
    assert (labels[1, ..., 1] == -1).all() and (labels[2] == -1).all()
    # A quarter of the labels is drawn, a quarter of which by chance stays right.
    kept = float((labels[0] == TWO.labels).float().mean())
    assert 0.70 < kept < 0.92
    boxes = noisy.boxes.sigmoid().view(3, 50, 2, 2, 4)
    shift = (corners(boxes[1, ..., 0, :]) - corners(one.boxes)[0]).abs() / one.boxes[0, 2:].repeat(2)
    near, far = shift[:, 0], shift[:, 1]
    assert near.max() <= 0.5 + 1e-3 and far.max() <= 1 + 1e-3
    inside = corners(boxes[1, :, 1, 0])
    # Corners that change places leave a box without extent.
    extent = (boxes[1, :, 1, 0, 2:] > 5e-3).repeat(1, 2)
    unclipped = (inside > 2e-3) & (inside < 1 - 2e-3) & extent
    assert far[unclipped].min() >= 0.5 - 5e-3
    empty = noisy_queries([NONE], 4)
    assert empty.labels.shape == (1, 0) and empty.boxes.shape == (1, 0, 4)


def test_who_sees_whom() -> None:
    noisy = NoisyQueries(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, 4), 2, 1)
    sees = (~attention_blocks(noisy, 2, 1)).int().tolist()
    assert sees == [
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


def test_losses_of_noisy_queries() -> None:
    # One group of two places: good and far too noisy queries of an image with two objects and of one with none.
    noisy = NoisyQueries(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, 4), 1, 2)
    boxes = torch.stack([torch.cat([HALVES, HALVES])] * 2)
    boxes[0, 0, 3] = 0.5
    logits = torch.full((2, 4, 2), logit(0.3))
    losses = denoising_losses(logits, boxes, noisy, [TWO, NONE])
    assert float(losses["classification"]) == pytest.approx((2 * focal(0.3, 1) + 14 * focal(0.3, 0)) / 2, rel=1e-5)
    assert float(losses["bbox_regression"]) == pytest.approx(5 * 0.5 / 2)
    assert float(losses["giou"]) == pytest.approx(2 * 0.5 / 2)


def test_dense_queries_are_aligned_and_weighted() -> None:
    half = torch.tensor([0.25, 0.5, 0.5, 0.5])  # IoU of 0.5 with object 0
    boxes = torch.stack([HALVES[0], half, half, half, half, HALVES[1], torch.tensor([0.9, 0.9, 0.05, 0.05])])
    p = torch.full((7, 2), 0.5)
    p[2, 1], p[3, 1], p[4, 1] = 0.4, 0.3, 0.2
    found = assign_aligned(p, boxes, TWO)
    # Of the five on object 0 the worst is left out; the small box lies on object 1.
    assert found.queries.tolist() == [0, 1, 2, 3, 5, 6]
    assert found.objects.tolist() == [0, 0, 0, 0, 1, 1]
    small = (0.05**2 / 0.5) ** 6
    expected = [1, 0.5**6, 0.8 * 0.5**6, 0.6 * 0.5**6, 1, small]
    assert found.quality.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_dense_losses() -> None:
    boxes = torch.stack([HALVES[0], torch.tensor([0.25, 0.5, 0.5, 0.5]), torch.tensor([0.75, 0.1, 0.1, 0.1])])
    one = Objects(HALVES[:1], torch.tensor([1]))
    logits = torch.full((1, 3, 2), logit(0.5))
    losses = dense_losses(logits, boxes[None], [one])
    quality = [1, 0.5**6]
    entropy = math.log(2)  # Of probability 0.5, whatever is wanted.
    cls = sum(abs(q - 0.5) ** 2 * entropy for q in (*quality, 0, 0, 0, 0))
    assert float(losses["dense_classification"]) == pytest.approx(cls / sum(quality), rel=1e-4)
    assert float(losses["dense_giou"]) == pytest.approx(2 * quality[1] * 0.5 / sum(quality), rel=1e-4)
    nothing = dense_losses(logits, boxes[None], [NONE])
    assert float(nothing["dense_giou"]) == 0
    assert float(nothing["dense_classification"]) == pytest.approx(6 * 0.25 * entropy, rel=1e-5)
