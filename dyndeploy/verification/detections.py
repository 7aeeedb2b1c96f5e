"""Detections of a session beside those of PyTorch, image by image, each with its partner."""

from __future__ import annotations

from collections.abc import Sequence

from dyndeploy.bundle import BOXES, IMAGE_SIZE, MASKS, SCORES, DetectionInfo
from dyndeploy.errors import BundleError, NotFiniteError
from dyndeploy.precisions import DetectionTolerance
from dyndeploy.tasks.detection import DetectionDifference, Detections, Placement, compare
from dyndeploy.verification.report import Check, OutputDeviation
from dyndeploy.verification.tensors import Tensors


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
) -> list[DetectionDifference] | str:
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
            threshold=info.score_threshold,
            limit=info.detections,
        )
        for found, expected in pairs
    ]


def check_detections(
    title: str, found: Sequence[DetectionDifference] | str, tolerance: DetectionTolerance, *, held: bool = True
) -> Check:
    """Return a check that passes if partners are near each other and few detections have none.

    Args:
        title: Name of the check.
        found: What :func:`differences` gave.
        tolerance: How far they may be apart.
        held: Whether a difference fails; else it is shown.
    """
    if isinstance(found, str):
        return Check(title, False, found)
    matched, missed, extra, excused = (
        sum(getattr(each, name) for each in found) for name in ("matched", "missed", "extra", "excused")
    )
    if not matched + missed + extra + excused:
        return Check(
            title,
            True,
            f"no detection above the threshold in {len(found)} reference images: there is nothing to compare",
        )
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
    return Check(title, passed or not held, detail + ("" if held else " (shown, not held)"))


def detection_deviations(found: Sequence[DetectionDifference] | str) -> tuple[OutputDeviation, ...]:
    """Return the largest differences of partners as errors of outputs: boxes in pixels, scores, 1 - IoU of masks."""
    if isinstance(found, str):
        return tuple(OutputDeviation(name, float("inf"), float("inf")) for name in (BOXES, SCORES))
    rows = [(BOXES, max(each.box for each in found)), (SCORES, max(each.score for each in found))]
    overlaps = [each.mask_iou for each in found if each.mask_iou is not None]
    if overlaps:
        rows.append((MASKS, 1 - min(overlaps)))
    return tuple(OutputDeviation(name, error, error) for name, error in rows)
