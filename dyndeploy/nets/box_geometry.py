"""Boxes as centre and sides, as corners, and how they overlap."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-12
"""Area that is divided by, where there is less."""


def corners(boxes: Tensor) -> Tensor:
    """Return boxes (..., 4) of x, y, width, height as x1, y1, x2, y2."""
    half = boxes[..., 2:] * 0.5
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def centred(boxes: Tensor) -> Tensor:
    """Return boxes (..., 4) of x1, y1, x2, y2 as x, y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def inverse_sigmoid(values: Tensor, least: float) -> Tensor:
    """Return the logits of values; both odds are at least ``least``."""
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=least) / (1 - values).clamp(min=least))


def intersection_over_union(one: Tensor, other: Tensor) -> Tensor:
    """Return the IoU of boxes (..., 4) of x1, y1, x2, y2, whose shapes are broadcast; 0 of boxes without area."""
    shared, union = _areas(one, other)
    return shared / union.clamp(min=_LEAST)


def generalized_iou(one: Tensor, other: Tensor) -> Tensor:
    """Return the IoU less the share of the smallest box around both that neither fills.

    Reference: "Generalized Intersection over Union" (Rezatofighi et al., CVPR 2019).
    """
    shared, union = _areas(one, other)
    around = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    whole = around.clamp(min=0).prod(-1).clamp(min=_LEAST)
    return shared / union.clamp(min=_LEAST) - (whole - union) / whole


def _areas(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of what boxes share, and of both together."""
    shared = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    common = shared.clamp(min=0).prod(-1)
    own = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other)]
    return common, own[0] + own[1] - common
