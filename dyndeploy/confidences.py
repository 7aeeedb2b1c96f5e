"""How sure an exit is of its answer: the measure that decides whether an image leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


def _softmax(logits: FloatArray) -> FloatArray:
    shifted = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float32)
    shares: FloatArray = shifted / shifted.sum(1, keepdims=True)
    return shares


def max_softmax(logits: FloatArray) -> FloatArray:
    """Return the largest softmax probability, (N,) for logits (N, classes)."""
    largest: FloatArray = _softmax(logits).max(1)
    return largest


def margin(logits: FloatArray) -> FloatArray:
    """Return the largest minus the second largest softmax probability, (N,) in [0, 1]."""
    ordered = np.sort(_softmax(logits), axis=1)
    difference: FloatArray = ordered[:, -1] - ordered[:, -2]
    return difference


def entropy(logits: FloatArray) -> FloatArray:
    """Return 1 minus the softmax's entropy over that of a uniform distribution, (N,) in [0, 1]."""
    shares = _softmax(logits)
    logs = np.log(np.maximum(shares, np.finfo(shares.dtype).tiny))
    sure: FloatArray = 1 + (shares * logs).sum(1) / np.asarray(np.log(shares.shape[1]), shares.dtype)
    return sure


def confidences(logits: FloatArray, measure: str = "max_softmax") -> FloatArray:
    """Return how sure an exit is of each image, (N,) for logits (N, classes), as the stages compute it."""
    return CONFIDENCES[measure](logits)


CONFIDENCES: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "max_softmax": max_softmax,
    "margin": margin,
    "entropy": entropy,
}
"""Measures by name; each is larger the surer the exit is."""
