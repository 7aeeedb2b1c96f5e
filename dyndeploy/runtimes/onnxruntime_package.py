"""The package onnxruntime: whole, and only one of those that bring it."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
from typing import Any

from dyndeploy.errors import DyndeployError

_LOG = logging.getLogger(__name__)

DISTRIBUTIONS = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-cann", "onnxruntime-directml", "onnxruntime-openvino",
    "onnxruntime-qnn", "onnxruntime-rocm", "onnxruntime-training", "ort-nightly", "ort-nightly-gpu",
)  # fmt: skip
"""What ONNX Runtime is published as; every one of them owns the folder ``onnxruntime``."""

SWAP = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
"""Swaps the package for CPUs for the one for GPUs."""


def installed_distributions() -> dict[str, str]:
    """Names and versions of those of :data:`DISTRIBUTIONS` that are installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def conflict() -> str:
    """Say that several packages own the folder ``onnxruntime``, and what helps; empty where one does."""
    names = list(installed_distributions())
    if len(names) < 2:
        return ""
    return (
        f"{' and '.join(names)} are installed together and overwrite each other's files: which one runs is chance. "
        f"Keep one: {_again(names)}"
    )


def _again(names: list[str]) -> str:
    # All of them at once: what is left after one of several was removed has lost files.
    return f"pip uninstall -y {' '.join(names)} && pip install {names[-1]}" if names else "pip install onnxruntime"


@functools.lru_cache(maxsize=1)
def _say(message: str) -> None:
    _LOG.warning("dyndeploy: %s.", message)


def import_onnxruntime() -> Any:
    """Return the module ``onnxruntime``; says once if several packages own it.

    Raises:
        DyndeployError: It is missing, or half of it is, as after one of two packages was uninstalled.
    """
    several = conflict()
    try:
        module = importlib.import_module("onnxruntime")
        if not hasattr(module, "InferenceSession"):
            raise ImportError("its folder is there and its code is not")
    except ImportError as error:
        advice = several or f"Install it again: {_again(list(installed_distributions()))}"
        raise DyndeployError(f"ONNX Runtime cannot be used: {error}. {advice}.") from error
    if several:
        _say(several)
    return module
