"""dyndeploy: deploy dynamic vision networks so that the computation they skip becomes time saved.

The public API. Names are imported on first use, so that ``import dyndeploy`` needs none of the heavy packages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dyndeploy.blocks import DynamicBlock, Gate, Tape, early_exits, skip
    from dyndeploy.bundle import Bundle
    from dyndeploy.evaluation import BundleEvaluation, DetectionEvaluation, evaluate_bundle, evaluate_detector
    from dyndeploy.exits import calibrate_bundle
    from dyndeploy.export import ExportSettings, export_model
    from dyndeploy.inference import BundleSession, open_bundle
    from dyndeploy.measure import Profile, load_profile, profile_bundle
    from dyndeploy.nets import create_model, load_checkpoint, model_names, save_checkpoint
    from dyndeploy.ops import register_operator
    from dyndeploy.prediction import Prediction, predict
    from dyndeploy.reporting import compare_profile, write_report
    from dyndeploy.tasks.detection import Detections
    from dyndeploy.training import Recipe, load_recipe, train
    from dyndeploy.verification import VerificationReport, verify_bundle

_HOME = {
    "Bundle": "dyndeploy.bundle",
    "BundleEvaluation": "dyndeploy.evaluation",
    "BundleSession": "dyndeploy.inference",
    "DetectionEvaluation": "dyndeploy.evaluation",
    "Detections": "dyndeploy.tasks.detection",
    "DynamicBlock": "dyndeploy.blocks",
    "ExportSettings": "dyndeploy.export",
    "Gate": "dyndeploy.blocks",
    "Prediction": "dyndeploy.prediction",
    "Profile": "dyndeploy.measure",
    "Recipe": "dyndeploy.training",
    "Tape": "dyndeploy.blocks",
    "VerificationReport": "dyndeploy.verification",
    "calibrate_bundle": "dyndeploy.exits",
    "compare_profile": "dyndeploy.reporting",
    "create_model": "dyndeploy.nets",
    "early_exits": "dyndeploy.blocks",
    "evaluate_bundle": "dyndeploy.evaluation",
    "evaluate_detector": "dyndeploy.evaluation",
    "export_model": "dyndeploy.export",
    "load_checkpoint": "dyndeploy.nets",
    "load_profile": "dyndeploy.measure",
    "load_recipe": "dyndeploy.training",
    "model_names": "dyndeploy.nets",
    "open_bundle": "dyndeploy.inference",
    "predict": "dyndeploy.prediction",
    "profile_bundle": "dyndeploy.measure",
    "register_operator": "dyndeploy.ops",
    "save_checkpoint": "dyndeploy.nets",
    "skip": "dyndeploy.blocks",
    "train": "dyndeploy.training",
    "verify_bundle": "dyndeploy.verification",
    "write_report": "dyndeploy.reporting",
}

__all__ = [
    "Bundle",
    "BundleEvaluation",
    "BundleSession",
    "DetectionEvaluation",
    "Detections",
    "DynamicBlock",
    "ExportSettings",
    "Gate",
    "Prediction",
    "Profile",
    "Recipe",
    "Tape",
    "VerificationReport",
    "__version__",
    "calibrate_bundle",
    "compare_profile",
    "create_model",
    "early_exits",
    "evaluate_bundle",
    "evaluate_detector",
    "export_model",
    "load_checkpoint",
    "load_profile",
    "load_recipe",
    "model_names",
    "open_bundle",
    "predict",
    "profile_bundle",
    "register_operator",
    "save_checkpoint",
    "skip",
    "train",
    "verify_bundle",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dyndeploy' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
