"""Detections that were computed somewhere beside those of PyTorch, image by image, each with its partner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from dyndeploy.bundle import IMAGE_SIZE, DetectionInfo
from dyndeploy.errors import BundleError, NotFiniteError, UsageError
from dyndeploy.precisions import DetectionTolerance, precision_of
from dyndeploy.tasks.detection import DetectionDifference, Detections, Placement, compare

Tensors = Mapping[str, npt.NDArray[Any]]

Differences = list[DetectionDifference] | str
"""One for every sample; or the reason why there are none."""


def detection_limits(precision: str) -> DetectionTolerance:
    """Return how far detections in a precision may be from PyTorch's; raises ``UsageError`` where nobody knows."""
    tolerance = precision_of(precision).detections
    if tolerance is None:
        raise UsageError(f"How far {precision} moves boxes was never measured in this release. Use fp32 or fp16.")
    return tolerance


def decoded(info: DetectionInfo, tensors: Tensors, sizes: Tensors, prefix: str = "") -> list[Detections]:
    """Return the detections of every sample, in pixels of the network's input.

    Args:
        info: Of the detector.
        tensors: Its outputs by name, (n, ...).
        sizes: Holds the sizes of the samples before padding.
        prefix: Before the names of the outputs.

    Raises:
        BundleError: An output is missing or does not fit.
        NotFiniteError: Detections that are not finite.
    """
    outputs = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    found = []
    for row, (height, width) in enumerate(sizes[IMAGE_SIZE].astype(int).tolist()):
        found.append(info.task().decode(outputs, Placement(height, width, (height, width)), row))
    return found


def differences(
    info: DetectionInfo,
    got: Tensors,
    reference: Tensors,
    inputs: Tensors,
    tolerance: DetectionTolerance,
    prefix: str = "",
) -> Differences:
    """Compare what was found in every sample with the reference; the reason where that is impossible.

    Where suppression left another box of the same object, the two are no partners: partners keep the tolerance.

    Args:
        info: Of the detector.
        got: Outputs by name.
        reference: Outputs by name, behind the prefix.
        inputs: Hold the sizes of the samples.
        tolerance: How far partners may be apart.
        prefix: See above.
    """
    try:
        pairs = zip(decoded(info, got, inputs), decoded(info, reference, inputs, prefix), strict=True)
    except (NotFiniteError, BundleError) as error:
        return str(error).rstrip(".")
    return [
        compare(
            found,
            expected,
            box=tolerance.box,
            score=tolerance.score,
            masks=tolerance.mask_iou,
            threshold=info.score_threshold,
            limit=info.detections,
            margin=tolerance.cut,
        )
        for found, expected in pairs
    ]


def judged(found: Sequence[DetectionDifference] | str, tolerance: DetectionTolerance) -> tuple[bool, str]:
    """Return whether partners are near each other and few detections have none, and what was found, in words.

    Args:
        found: What :func:`differences` gave.
        tolerance: How far they may be apart.
    """
    if isinstance(found, str):
        return False, found
    matched, missed, extra, excused = (
        sum(getattr(each, name) for each in found) for name in ("matched", "missed", "extra", "excused")
    )
    if not matched + missed + extra + excused:
        return True, f"no detection above the threshold in {len(found)} reference images: there is nothing to compare"
    box, score = (max(getattr(each, name) for each in found) for name in ("box", "score"))
    overlaps = [each.mask_iou for each in found if each.mask_iou is not None]
    allowed = int(max(1.0, tolerance.unpaired * (matched + missed)))
    passed = box <= tolerance.box and score <= tolerance.score and max(missed, extra) <= allowed
    detail = (
        f"{matched} of {matched + missed} in {len(found)} images: boxes within {box:.2g} px (limit {tolerance.box:g}), "
        f"scores within {score:.2g} (limit {tolerance.score:g})"
    )
    if overlaps:
        passed = passed and min(overlaps) >= tolerance.mask_iou
        detail += f", IoU of masks at least {min(overlaps):.4f} (limit {tolerance.mask_iou:g})"
    if missed + extra:
        detail += f"; {missed} missed and {extra} more (at most {allowed} of each may be)"
    if excused:
        detail += f"; {excused} at the threshold or at the end of a full list"
    return passed, detail
