"""Detections of a session beside those of PyTorch, as checks of a report."""

from __future__ import annotations

from collections.abc import Sequence

from dyndeploy.bundle import BOXES, MASKS, SCORES
from dyndeploy.inference.compared import judged
from dyndeploy.precisions import DetectionTolerance
from dyndeploy.tasks.detection import DetectionDifference
from dyndeploy.verification.report import Check, OutputDeviation


def check_detections(
    title: str, found: Sequence[DetectionDifference] | str, tolerance: DetectionTolerance, *, held: bool = True
) -> Check:
    """Return a check that passes if partners are near each other and few detections have none.

    Args:
        title: Name of the check.
        found: What :func:`dyndeploy.inference.compared.differences` gave.
        tolerance: How far they may be apart.
        held: Whether a difference fails; else it is shown.
    """
    passed, detail = judged(found, tolerance)
    # What cannot be compared at all fails in any case.
    shown = not held and not isinstance(found, str)
    return Check(title, passed or shown, detail + (" (shown, not held)" if shown else ""))


def detection_deviations(found: Sequence[DetectionDifference] | str) -> tuple[OutputDeviation, ...]:
    """Return the largest differences of partners as errors of outputs: boxes in pixels, scores, 1 - IoU of masks."""
    if isinstance(found, str):
        return tuple(OutputDeviation(name, float("inf"), float("inf")) for name in (BOXES, SCORES))
    rows = [(BOXES, max(each.box for each in found)), (SCORES, max(each.score for each in found))]
    overlaps = [each.mask_iou for each in found if each.mask_iou is not None]
    if overlaps:
        rows.append((MASKS, 1 - min(overlaps)))
    return tuple(OutputDeviation(name, error, error) for name, error in rows)
