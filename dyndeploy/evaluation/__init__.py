"""What a bundle is worth on annotated images, as it is deployed: what ``dyndeploy evaluate`` does."""

from dyndeploy.evaluation.classification import (
    BundleComparison,
    BundleEvaluation,
    ExitAccuracy,
    evaluate_bundle,
)
from dyndeploy.evaluation.detection import DetectionComparison, DetectionEvaluation, evaluate_detector

__all__ = [
    "BundleComparison",
    "BundleEvaluation",
    "DetectionComparison",
    "DetectionEvaluation",
    "ExitAccuracy",
    "evaluate_bundle",
    "evaluate_detector",
]
