"""Detectors are verified by what they find."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dyndeploy.bundle import Bundle
from dyndeploy.precisions import precision_of
from dyndeploy.tasks.detection import DetectionDifference
from dyndeploy.verification import verify_bundle
from dyndeploy.verification.detections import check_detections, detection_deviations
from tests.bundles import resealed
from tests.detectors import QUERY_DETECTORS, detector_bundle, one_worker

vision = pytest.mark.vision("torchvision", "cv2")
TOLERANCE = precision_of("fp32").detections


def difference(**changes: object) -> DetectionDifference:
    values = {"matched": 100, "missed": 0, "extra": 0, "excused": 0, "box": 0.01, "score": 1e-4, "mask_iou": None}
    return DetectionDifference(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "passed", "detail"),
    [
        ({}, True, "100 of 100 in 1 images: boxes within 0.01 px (limit 0.02), scores within 0.0001 (limit 0.001)"),
        ({"box": 0.03}, False, "boxes within 0.03 px"),
        ({"score": 0.01}, False, "scores within 0.01"),
        ({"mask_iou": 0.9}, False, "IoU of masks at least 0.9000"),
        ({"mask_iou": 0.99}, True, "IoU of masks at least 0.9900 (limit 0.95)"),
        ({"matched": 97, "missed": 3, "extra": 3}, True, "3 missed and 3 more (at most 3 of each may be)"),
        ({"matched": 96, "missed": 4, "extra": 0}, False, "4 missed and 0 more"),
        ({"excused": 2}, True, "2 at the threshold"),
        ({"matched": 0}, True, "no detection above the threshold in 1 reference images"),
    ],
)
def test_limits(changes: dict[str, object], passed: bool, detail: str) -> None:
    assert TOLERANCE is not None
    check = check_detections("detections", [difference(**changes)], TOLERANCE)
    assert check.passed is passed and detail in check.detail


def test_what_is_shown_is_not_held() -> None:
    assert TOLERANCE is not None
    check = check_detections("detections", [difference(box=5.0)], TOLERANCE, held=False)
    assert check.passed and check.detail.endswith("(shown, not held)")
    assert not check_detections("detections", "'scores' holds NaN", TOLERANCE).passed
    errors = detection_deviations([difference(mask_iou=0.75), difference(box=0.5)])
    assert [(error.output, error.max_error) for error in errors] == [("boxes", 0.5), ("scores", 1e-4), ("masks", 0.25)]


@one_worker
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        pytest.param("retinanet", 200, marks=vision),
        pytest.param("mask_rcnn", 200, marks=vision),
        *(pytest.param(kind, 120, marks=pytest.mark.vision("torchvision", "transformers")) for kind in QUERY_DETECTORS),
    ],
)
def test_a_bundle_verifies(kind: str, count: int) -> None:
    report = verify_bundle(detector_bundle(kind))
    assert report.passed, [check for check in report.checks if not check.passed]
    details = {check.name: check.detail for check in report.checks}
    assert ("static twin: detections" in details) == (kind == "mask_rcnn")
    for title in ("detections under equal masks", "detections as deployed"):
        assert details[title].startswith(f"{count} of {count} in 2 images"), details
    assert report.mask_bits > 0 and report.flipped_bits == 0
    assert {error.output for error in report.outputs} >= {"boxes", "scores"}


@vision
@one_worker
def test_a_wrong_weight_is_found(tmp_path: Path) -> None:
    shutil.copytree(detector_bundle("mask_rcnn").path, tmp_path / "b")
    bundle = Bundle.open(tmp_path / "b")
    model = bundle.load_model()
    (weight,) = (item for item in model.graph.initializer if item.name.endswith("box_predictor.bbox_pred.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    onnx.save(model, bundle.model)
    report = verify_bundle(resealed(bundle))
    assert "detections under equal masks" in {check.name for check in report.checks if not check.passed}
