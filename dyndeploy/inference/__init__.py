"""Inputs in, outputs out: what ``dyndeploy run`` does."""

from dyndeploy.inference.detection import DetectionResult, detect_image, detect_images
from dyndeploy.inference.running import (
    Classification,
    Failure,
    Item,
    OpenBundle,
    Result,
    classified,
    classify,
    classify_images,
    opened_bundle,
    read_array,
    read_arrays,
    run_images,
    run_inputs,
)
from dyndeploy.inference.session import BundleSession, Detected, open_bundle

__all__ = [
    "BundleSession",
    "Classification",
    "Detected",
    "DetectionResult",
    "Failure",
    "Item",
    "OpenBundle",
    "Result",
    "classified",
    "classify",
    "classify_images",
    "detect_image",
    "detect_images",
    "open_bundle",
    "opened_bundle",
    "read_array",
    "read_arrays",
    "run_images",
    "run_inputs",
]
