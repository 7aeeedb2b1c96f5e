"""What DDQ-DETR is trained for: which queries belong to which objects, noisy queries, and the losses.

Reference: "Dense Distinct Query for End-to-End Object Detection" (Zhang et al., CVPR 2023) and "DINO" (Zhang et al.,
ICLR 2023), with the settings of mmdetection 3.3: one-to-one assignment of distinct queries, queries that begin as noisy
objects, and a dense branch whose queries are assigned to objects several at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dyndeploy.nets.box_geometry import centred, corners, generalized_iou, intersection_over_union, inverse_sigmoid
from dyndeploy.nets.detection_losses import Target

FOCAL_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0
"""Of the losses."""

FOCAL_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
"""Of the assignment."""

NOISY_QUERIES = 100
LABEL_NOISE, BOX_NOISE = 0.5, 1.0
"""Share of the labels that are drawn at random, doubled; largest shift of a corner, in halves of the box."""

DENSE_RATIO = 1.5
"""Dense queries for each distinct one."""

DENSE_OBJECTS = 4
"""Dense queries that belong to an object at most."""

_ALPHA, _GAMMA = 0.25, 2.0
_SCORE_POWER, _IOU_POWER = 1, 6
_EPSILON = 1e-12


class Objects(NamedTuple):
    """What is in an image.

    Attributes:
        boxes: (n, 4): x, y, width, height in parts of the image.
        labels: (n,), int64.
    """

    boxes: Tensor
    labels: Tensor


def objects_of(targets: Sequence[Target], image_size: Tensor) -> list[Objects]:
    """Return targets, whose boxes (n, 4) are x1, y1, x2, y2 in pixels, for images of (height, width), (N, 2)."""
    found = []
    for target, (height, width) in zip(targets, image_size, strict=True):
        parts = target["boxes"] / torch.stack([width, height, width, height])
        found.append(Objects(centred(parts), target["labels"]))
    return found


class NoisyQueries(NamedTuple):
    """Queries that begin as objects with noise, in groups of one noisy and one far too noisy query per object.

    Attributes:
        labels: What their content is of, (N, queries), int64; -1 where an image has fewer objects than another.
        boxes: Logits of x, y, width, height, (N, queries, 4); 0 there.
        groups: How many.
        places: Of the objects in half a group.
    """

    labels: Tensor
    boxes: Tensor
    groups: int
    places: int


def noisy_queries(objects: Sequence[Objects], classes: int) -> NoisyQueries:
    """Draw the noisy queries of a batch from torch's global generator.

    Args:
        objects: What is in each image.
        classes: Among which labels are drawn.
    """
    places = max((len(own.labels) for own in objects), default=0)
    groups = max(1, NOISY_QUERIES // places) if places else 1
    like = objects[0].boxes
    labels = torch.full((len(objects), 2 * groups, places), -1, dtype=torch.int64, device=like.device)
    boxes = like.new_zeros(len(objects), 2 * groups, places, 4)
    for image, own in enumerate(objects):
        count = len(own.labels)
        drawn = torch.randint(0, classes, (2 * groups, count), device=like.device)
        exchanged = torch.rand(2 * groups, count, device=like.device) < LABEL_NOISE * 0.5
        labels[image, :, :count] = torch.where(exchanged, drawn, own.labels)
        sign = torch.randint(0, 2, (2 * groups, count, 4), device=like.device) * 2 - 1
        shift = torch.rand(2 * groups, count, 4, dtype=like.dtype, device=like.device)
        # In every other half group the corners are shifted farther than the box is good for.
        shift[1::2] += 1
        noisy = corners(own.boxes) + sign * shift * own.boxes[:, 2:].repeat(1, 2) * BOX_NOISE / 2
        boxes[image, :, :count] = inverse_sigmoid(centred(noisy.clamp(0, 1)), 1e-3)
    return NoisyQueries(labels.flatten(1), boxes.flatten(1, 2), groups, places)


def attention_blocks(noisy: NoisyQueries, distinct: int, dense: int) -> Tensor:
    """Return which query (row) may not attend to which (column), (T, T), bool: noisy, distinct, dense ones.

    A group of noisy queries sees itself and the distinct ones; these see themselves, and the dense ones themselves.
    """
    group = 2 * noisy.places
    first = noisy.groups * group
    kind = torch.cat([torch.arange(first) // max(group, 1), torch.full((distinct,), -1), torch.full((dense,), -2)])
    sees = kind[:, None] == kind[None]
    sees[:first, first : first + distinct] = True
    return ~sees.to(noisy.boxes.device)


def assign_one_to_one(logits: Tensor, boxes: Tensor, objects: Objects) -> tuple[Tensor, Tensor]:
    """Return the queries that belong to objects, and which objects these are: (k,) each, k the smaller number.

    Args:
        logits: (Q, classes).
        boxes: (Q, 4): x, y, width, height.
        objects: What is in the image.
    """
    from scipy.optimize import linear_sum_assignment

    p = logits.sigmoid()[:, objects.labels]
    background = -torch.log(1 - p + _EPSILON) * (1 - _ALPHA) * p**_GAMMA
    focal = -torch.log(p + _EPSILON) * _ALPHA * (1 - p) ** _GAMMA - background
    distance = torch.cdist(boxes, objects.boxes, p=1)
    overlap = generalized_iou(corners(boxes)[:, None], corners(objects.boxes)[None])
    cost = FOCAL_COST * focal + L1_COST * distance - GIOU_COST * overlap
    rows, columns = linear_sum_assignment(cost.detach().cpu().double().nan_to_num(1e6, 1e6, -1e6).numpy())
    return torch.as_tensor(rows, device=boxes.device), torch.as_tensor(columns, device=boxes.device)


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the sum of the focal losses (gamma 2, alpha 0.25) of logits for labels 0 or 1 of the same shape."""
    p = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = p * wanted + (1 - p) * (1 - wanted)
    weight = _ALPHA * wanted + (1 - _ALPHA) * (1 - wanted)
    return (weight * (1 - right) ** _GAMMA * entropy).sum()


def _box_losses(boxes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of L1 and of 1 - generalised IoU of boxes (k, 4) of x, y, width, height."""
    return (boxes - wanted).abs().sum(), (1 - generalized_iou(corners(boxes), corners(wanted))).sum()


def one_to_one_losses(logits: Tensor, boxes: Tensor, distinct: Tensor, objects: Sequence[Objects]) -> dict[str, Tensor]:
    """Return the losses of queries that belong to one object each at most.

    They are divided by the number of assigned queries in all images, 1 at least.

    Args:
        logits: (N, Q, classes).
        boxes: (N, Q, 4): x, y, width, height in parts of the image.
        distinct: Which queries count, (N, Q).
        objects: What is in each image.
    """
    focal, l1, giou, count = logits.new_zeros(()), boxes.new_zeros(()), boxes.new_zeros(()), 0
    for own_logits, own_boxes, counts, own in zip(logits, boxes, distinct, objects, strict=True):
        own_logits, own_boxes = own_logits[counts], own_boxes[counts]
        rows, columns = assign_one_to_one(own_logits, own_boxes, own)
        wanted = torch.zeros_like(own_logits)
        wanted[rows, own.labels[columns]] = 1
        focal = focal + focal_loss(own_logits, wanted)
        distance, overlap = _box_losses(own_boxes[rows], own.boxes[columns])
        l1, giou, count = l1 + distance, giou + overlap, count + len(rows)
    return _weighted(focal, l1, giou, count)


def denoising_losses(
    logits: Tensor, boxes: Tensor, noisy: NoisyQueries, objects: Sequence[Objects]
) -> dict[str, Tensor]:
    """Return the losses of noisy queries: each one's object is known, and the far too noisy ones have none.

    They are divided by the number of those with objects in all images, 1 at least.

    Args:
        logits: (N, queries, classes).
        boxes: (N, queries, 4).
        noisy: What they began as.
        objects: What is in each image.
    """
    wanted = torch.zeros_like(logits)
    l1, giou, count = boxes.new_zeros(()), boxes.new_zeros(()), 0
    group = torch.arange(noisy.groups, device=boxes.device) * 2 * noisy.places
    for image, own in enumerate(objects):
        number = torch.arange(len(own.labels), device=boxes.device)
        query = (group[:, None] + number).flatten()
        wanted[image, query, own.labels.repeat(noisy.groups)] = 1
        distance, overlap = _box_losses(boxes[image, query], own.boxes.repeat(noisy.groups, 1))
        l1, giou, count = l1 + distance, giou + overlap, count + len(query)
    return _weighted(focal_loss(logits, wanted), l1, giou, count)


def _weighted(focal: Tensor, l1: Tensor, giou: Tensor, count: int) -> dict[str, Tensor]:
    count = max(1, count)
    return {
        "classification": FOCAL_WEIGHT * focal / count,
        "bbox_regression": L1_WEIGHT * l1 / count,
        "giou": GIOU_WEIGHT * giou / count,
    }


class Aligned(NamedTuple):
    """Dense queries that belong to objects.

    Attributes:
        queries: (k,).
        objects: Of each, (k,).
        quality: Probability that each should give, (k,): its alignment, scaled to the best IoU of its object.
    """

    queries: Tensor
    objects: Tensor
    quality: Tensor


def assign_aligned(probabilities: Tensor, boxes: Tensor, objects: Objects) -> Aligned:
    """Return the queries whose class and box are best aligned with each object: score * IoU^6, four at most.

    A query that is among the best of several objects belongs to the one that it overlaps most.

    Args:
        probabilities: (Q, classes).
        boxes: (Q, 4): x, y, width, height.
        objects: What is in the image.
    """
    if not len(objects.labels):
        nothing = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return Aligned(nothing, nothing, boxes.new_zeros(0))
    overlaps = intersection_over_union(corners(boxes)[:, None], corners(objects.boxes)[None])
    alignment = probabilities[:, objects.labels] ** _SCORE_POWER * overlaps**_IOU_POWER
    best = alignment.topk(min(DENSE_OBJECTS, len(boxes)), dim=0).indices
    candidate = torch.zeros_like(alignment, dtype=torch.bool).scatter_(0, best, True) & (alignment > 0)
    chosen, owner = torch.where(candidate, overlaps, -1.0).max(1)
    (queries,) = torch.where(chosen >= 0)
    owners = owner[queries]
    own, iou = alignment[queries, owners], overlaps[queries, owners]
    most = own.new_zeros(len(objects.labels)).scatter_reduce_(0, owners, own, "amax")
    widest = iou.new_zeros(len(objects.labels)).scatter_reduce_(0, owners, iou, "amax")
    return Aligned(queries, owners, own / (most[owners] + 1e-7) * widest[owners])


def dense_losses(logits: Tensor, boxes: Tensor, objects: Sequence[Objects]) -> dict[str, Tensor]:
    """Return the losses of the dense queries: quality focal loss (beta 2), and 1 - GIoU weighted by the quality.

    Both are divided by the sum of the qualities in all images, 1 at least.

    Args:
        logits: (N, Q, classes).
        boxes: (N, Q, 4): x, y, width, height in parts of the image.
        objects: What is in each image.
    """
    focal, giou, total = logits.new_zeros(()), boxes.new_zeros(()), boxes.new_zeros(())
    for own_logits, own_boxes, own in zip(logits, boxes, objects, strict=True):
        found = assign_aligned(own_logits.detach().sigmoid(), own_boxes.detach(), own)
        wanted = torch.zeros_like(own_logits)
        wanted[found.queries, own.labels[found.objects]] = found.quality
        entropy = F.binary_cross_entropy_with_logits(own_logits, wanted, reduction="none")
        focal = focal + ((wanted - own_logits.sigmoid()).abs() ** _GAMMA * entropy).sum()
        overlap = generalized_iou(corners(own_boxes[found.queries]), corners(own.boxes[found.objects]))
        giou = giou + ((1 - overlap) * found.quality).sum()
        total = total + found.quality.sum()
    total = total.clamp(min=1)
    return {"dense_classification": FOCAL_WEIGHT * focal / total, "dense_giou": GIOU_WEIGHT * giou / total}
