"""What a bundle is worth on annotated images, as it is deployed: what ``dyndeploy evaluate`` does."""

from dyndeploy.evaluation.classification import (
    BundleComparison,
    BundleEvaluation,
    ExitAccuracy,
    evaluate_bundle,
)

__all__ = [
    "BundleComparison",
    "BundleEvaluation",
    "ExitAccuracy",
    "evaluate_bundle",
]
