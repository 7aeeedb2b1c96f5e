"""What detectors do with boxes that depends on data, as two operators whose outputs have fixed shapes.

Detection's post-processing has as many boxes as an image has objects. With a fixed number of places, and a mark for
those that are empty, a detector is one graph of static shapes. Networks call :func:`keep_boxes` and
:func:`pyramid_roi_align`; a captured graph has placeholders for both, and export writes what its target runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dyndeploy.errors import UsageError
from dyndeploy.ops.boxes import BOXES, EMPTY, KEEP_BOXES, PYRAMID_ROI_ALIGN

__all__ = ["EMPTY", "keep_boxes", "pyramid_roi_align", "roi_levels", "torchvision"]

NAMESPACE = "dyndeploy"
"""Of the two operators in ``torch.ops``."""


def torchvision() -> Any:
    """Return the package; raises ``UsageError`` where it is missing or does not fit this torch."""
    try:
        import torchvision as package
        import torchvision.ops
    except (ImportError, RuntimeError) as error:
        # Beside another torch, torchvision's operators cannot be registered, which is a RuntimeError.
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(
            f"Detectors need torchvision, and it cannot be imported ({reason}). Install the release that fits this "
            "torch, e.g. with pip install 'dyndeploy[detection]'."
        ) from error
    return package


@torch.library.custom_op(f"{NAMESPACE}::keep_boxes", mutates_args=())
def _keep_boxes(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, score_threshold: float, limit: int
) -> Tensor:
    valid = torch.nonzero(scores > score_threshold).flatten()
    kept = boxes.new_full((limit,), EMPTY, dtype=torch.int64)
    if len(valid):
        boxes, groups = boxes[valid], groups[valid].to(boxes.dtype)
        # Boxes of different groups are moved so far apart that none overlaps another group's.
        shifted = boxes + (groups * (boxes.max() + 1))[:, None]
        found = valid[torchvision().ops.nms(shifted, scores[valid], iou_threshold)[:limit]]
        kept[: len(found)] = found
    return kept


@_keep_boxes.register_fake
def _(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, score_threshold: float, limit: int
) -> Tensor:
    return boxes.new_empty((limit,), dtype=torch.int64)


def keep_boxes(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, iou_threshold: float, score_threshold: float, limit: int
) -> Tensor:
    """Greedy non-maximum suppression within groups: the indices of the best boxes that are left, by falling score.

    A box is suppressed by one of its group with a higher score where their IoU is greater than the threshold.

    Args:
        boxes: (M, 4): x1, y1, x2, y2, none negative.
        scores: (M,).
        groups: Class or level of each box (M,), int64, from 0.
        iou_threshold: See above.
        score_threshold: Boxes with this score or less are left out, and suppress none.
        limit: Places.

    Returns:
        Indices (limit,), int64; :data:`EMPTY` fills up.
    """
    kept: Tensor
    if _captured():
        attributes: dict[str, Any] = {
            "iou_threshold": iou_threshold,
            "score_threshold": score_threshold,
            "limit": limit,
        }
        kept = torch.onnx.ops.symbolic(
            f"{BOXES}::{KEEP_BOXES}",
            (boxes, scores, groups),
            attributes,
            dtype=torch.int64,
            shape=(limit,),
            version=1,
        )
    else:
        kept = _keep_boxes(boxes, scores, groups, iou_threshold, score_threshold, limit)
    return kept


def _captured() -> bool:
    """Whether a graph is captured, in which placeholders stand for the operators."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def roi_levels(boxes: Tensor, levels: int, finest: float) -> Tensor:
    """Return the pyramid level (M,), int64 from 0, that each box (M, 4) is read from.

    It is ``floor(log2(sqrt(area) / finest + 1e-6))``, at least 0 and at most the last level.

    Args:
        boxes: x1, y1, x2, y2.
        levels: How many there are.
        finest: Side in pixels of the boxes that begin to be read from level 0's successor, halved.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt() / finest + 1e-6
    # Counted rather than as a logarithm, whose rounding no two runtimes share.
    return torch.stack([side >= 2**level for level in range(1, levels)]).sum(0)


def _align(maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int], finest: float, size: int) -> Tensor:
    align, levels = torchvision().ops.roi_align, roi_levels(boxes, len(maps), finest)
    aligned = boxes.new_zeros((len(boxes), maps[0].shape[1], size, size))
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        (chosen,) = torch.where(levels == level)
        found = align(features, [boxes[chosen]], size, 1.0 / stride, sampling_ratio=0, aligned=True)
        aligned = aligned.index_put((chosen,), found.to(aligned.dtype))
    return aligned


@torch.library.custom_op(f"{NAMESPACE}::pyramid_roi_align", mutates_args=())
def _pyramid_roi_align(
    maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int], finest: float, size: int
) -> Tensor:
    return _align(maps, boxes, strides, finest, size)


@_pyramid_roi_align.register_fake
def _(maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int], finest: float, size: int) -> Tensor:
    return boxes.new_empty((boxes.shape[0], maps[0].shape[1], size, size))


def pyramid_roi_align(
    maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int], *, finest: float, size: int
) -> Tensor:
    """Read every box from the pyramid level that fits its size: average pooling of bilinear samples.

    Half-pixel coordinates (``aligned=True``) and as many samples per bin as it has feature pixels
    (``sampling_ratio=0``), as mmdetection reads them. Gradients reach the maps.

    Args:
        maps: Of one image, (1, C, h, w) each, the finest first.
        boxes: (M, 4): x1, y1, x2, y2 in pixels of the network's input.
        strides: Of the maps, in such pixels.
        finest: See :func:`roi_levels`.
        size: Side of the result.

    Returns:
        (M, C, size, size).
    """
    aligned: Tensor
    if _captured():
        aligned = torch.onnx.ops.symbolic(
            f"{BOXES}::{PYRAMID_ROI_ALIGN}",
            (*maps, boxes, roi_levels(boxes, len(maps), finest)),
            {"strides": list(strides), "size": size},
            dtype=boxes.dtype,
            shape=(len(boxes), maps[0].shape[1], size, size),
            version=1,
        )
    elif boxes.is_meta:
        # Which boxes are of a level, only numbers can tell.
        aligned = _pyramid_roi_align(list(maps), boxes, list(strides), finest, size)
    else:
        aligned = _align(maps, boxes, strides, finest, size)
    return aligned
