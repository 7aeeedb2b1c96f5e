"""dyndeploy: deploy dynamic vision networks so that the computation they skip becomes time saved.

The public API. Names are imported on first use, so that ``import dyndeploy`` needs none of the heavy packages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dyndeploy.bundle import Bundle
    from dyndeploy.export import ExportSettings, export_model
    from dyndeploy.nets import create_model, load_checkpoint, model_names, save_checkpoint
    from dyndeploy.verification import VerificationReport, verify_bundle

_HOME = {
    "Bundle": "dyndeploy.bundle",
    "ExportSettings": "dyndeploy.export",
    "create_model": "dyndeploy.nets",
    "export_model": "dyndeploy.export",
    "load_checkpoint": "dyndeploy.nets",
    "model_names": "dyndeploy.nets",
    "save_checkpoint": "dyndeploy.nets",
    "VerificationReport": "dyndeploy.verification",
    "verify_bundle": "dyndeploy.verification",
}

__all__ = [
    "Bundle",
    "ExportSettings",
    "VerificationReport",
    "__version__",
    "create_model",
    "export_model",
    "load_checkpoint",
    "model_names",
    "save_checkpoint",
    "verify_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dyndeploy' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
