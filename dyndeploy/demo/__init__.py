"""The whole way on real data with nothing to download: train, export, verify, profile, predict, report."""

from dyndeploy.demo.classification import LEAST_ACCURACY, RECIPE, DemoResult, run_demo
from dyndeploy.demo.detection import CLASSIFIER, DETECTOR, LEAST_AP50, DetectionDemoResult, run_detection_demo

__all__ = [
    "CLASSIFIER",
    "DETECTOR",
    "LEAST_ACCURACY",
    "LEAST_AP50",
    "RECIPE",
    "DemoResult",
    "DetectionDemoResult",
    "run_demo",
    "run_detection_demo",
]
