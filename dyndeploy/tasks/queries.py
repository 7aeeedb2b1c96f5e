"""Detections from queries that each have a class and a mask of the whole input: what the host does for Mask2Former.

Reference: "Masked-attention Mask Transformer for Universal Image Segmentation" (Cheng et al., CVPR 2022), the instance
post-processing of mmdetection 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.data import FloatArray
from dyndeploy.errors import BundleError
from dyndeploy.finite import require_finite
from dyndeploy.tasks.annotations import BoolArray
from dyndeploy.tasks.detection import Detections, Placement


def decode_queries(
    outputs: Mapping[str, npt.NDArray[Any]],
    placement: Placement,
    *,
    row: int,
    limit: int,
    stride: int,
) -> Detections:
    """Turn classes and masks of queries into the detections with the most probable classes.

    A query can be several detections, of different classes. The score of one is the probability of its class times the
    mean probability of the mask's pixels; its box is the tightest one around the mask, and zeros where that is empty.

    Args:
        outputs: ``class_logits`` (n, queries, classes + 1) and ``mask_logits`` (n, queries, h, w); others are passed
            over.
        placement: Where the image lies in the input.
        row: Which of the n images.
        limit: How many detections.
        stride: Pixels of the input per cell of the mask logits.

    Raises:
        BundleError: A shape does not fit the other's or the image's.
        NotFiniteError: A logit is NaN or infinite.
    """
    classes, masks = outputs["class_logits"], outputs["mask_logits"]
    if classes.ndim != 3 or masks.ndim != 4 or classes.shape[:2] != masks.shape[:2] or row >= len(classes):
        raise BundleError(
            f"The detector's outputs have the shapes {classes.shape} and {masks.shape}, which do not fit each other. "
            "Export it again."
        )
    if any(inside > stride * cells for inside, cells in zip(placement.resized, masks.shape[2:], strict=True)):
        raise BundleError(
            f"Masks of {masks.shape[2]}x{masks.shape[3]} cells of {stride} pixels do not cover an image of "
            f"{placement.resized[0]}x{placement.resized[1]}. Export it again."
        )
    require_finite({"class_logits": classes[row], "mask_logits": masks[row]}, "Verify the bundle.")
    probabilities = _softmax(classes[row].astype(np.float32))[:, :-1]
    order = np.argsort(-probabilities, axis=None, kind="stable")[:limit]
    queries, labels = np.unravel_index(order, probabilities.shape)
    found: dict[int, tuple[BoolArray, float]] = {}
    down, across = (
        _enlarging(cells, stride, inside, pixels)
        for cells, inside, pixels in zip(
            masks.shape[2:], placement.resized, (placement.height, placement.width), strict=True
        )
    )
    for query in np.unique(queries).tolist():
        found[query] = _mask(masks[row, query].astype(np.float32), down, across)
    pasted = np.stack([found[query][0] for query in queries.tolist()])
    means = np.asarray([found[query][1] for query in queries.tolist()], np.float32)
    boxes = {query: _tight_box(mask) for query, (mask, _) in found.items()}
    return Detections(
        np.stack([boxes[query] for query in queries.tolist()]),
        probabilities[queries, labels] * means,
        labels.astype(np.int64),
        pasted,
    )


def _softmax(logits: FloatArray) -> FloatArray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: FloatArray = shifted / shifted.sum(-1, keepdims=True)
    return probabilities


def _bilinear(pixels: int, cells: int) -> FloatArray:
    """Weights (pixels, cells) of bilinear resizing without antialiasing, the outermost cells repeated."""
    position = (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / pixels) - np.float32(0.5)
    position = np.clip(position, 0, cells - 1)
    weights: FloatArray = np.maximum(1 - np.abs(position[:, None] - np.arange(cells, dtype=np.float32)), 0)
    return weights


def _enlarging(cells: int, stride: int, inside: int, pixels: int) -> FloatArray:
    """Weights (pixels, cells) that resize to the input, leave its padding out, and resize to the image."""
    weights: FloatArray = _bilinear(pixels, inside) @ _bilinear(cells * stride, cells)[:inside]
    return weights


def _mask(logits: FloatArray, down: FloatArray, across: FloatArray) -> tuple[BoolArray, float]:
    """Return the mask at the size of the image, and the mean probability within it."""
    mask = np.zeros((len(down), len(across)), np.bool_)
    # Only what a positive logit reaches can be positive.
    positive = logits > 0
    y, x = _reached(down, positive.max(1)), _reached(across, positive.max(0))
    if y is None or x is None:
        return mask, 0.0
    values = down[y] @ logits @ across[x].T
    mask[y, x] = values > 0
    chosen = values[mask[y, x]]
    if not len(chosen):
        return mask, 0.0
    total = (1 / (1 + np.exp(-chosen))).sum(dtype=np.float64)
    return mask, float(total / (len(chosen) + 1e-6))


def _reached(weights: FloatArray, cells: BoolArray) -> slice | None:
    """Pixels from the first to the last one that reads one of some cells."""
    pixels = np.flatnonzero((weights[:, cells] > 0).any(1))
    return slice(int(pixels[0]), int(pixels[-1]) + 1) if len(pixels) else None


def _tight_box(mask: BoolArray) -> FloatArray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.float32)
    return np.asarray([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
