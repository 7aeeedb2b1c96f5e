"""From what was observed to a scale: the largest value, a percentile, least divergence, or least squared error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.quantization.observers import Floats, Observer
from dyndeploy.quantization.table import METHODS

LEVELS = 255
"""Steps of an unsigned byte."""
PERCENTILE = 99.99
_CANDIDATES = 128
_LEAST_SHARE = 1 / 32
"""Of the largest value: the least threshold that is tried."""
_ENTROPY_BINS = 2048
_SMOOTH = 1e-4
"""Probability that a bin with values has at least, so that a divergence is finite."""


@dataclass(frozen=True)
class Found:
    """A scale: ``real = scale * (q - zero_point)``.

    Attributes:
        scale: As float32 holds it, positive.
        zero_point: In [0, 255].
        clipped: Share of the observed values that more than rounding changes.
    """

    scale: float
    zero_point: int
    clipped: float


def settings_of(method: str, percentile: float = PERCENTILE) -> dict[str, Any]:
    """What a method was run with; raises ``UsageError`` for an unknown method or a percentile outside (50, 100]."""
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if not 50 < percentile <= 100:
        raise UsageError(f"A percentile lies above 50 and at most at 100, e.g. 99.99: {percentile:g} does not.")
    known: dict[str, dict[str, Any]] = {
        "minmax": {},
        "percentile": {"percentile": percentile},
        "entropy": {"bins": _ENTROPY_BINS},
        "mse": {"candidates": _CANDIDATES},
    }
    return known[method]


def find_scale(observed: Observer, method: str, *, percentile: float = PERCENTILE, max_clipped: float = 1.0) -> Found:
    """Find the scale of a tensor.

    Values that are never negative get zero point 0. Others get an asymmetric range that holds 0.

    Args:
        observed: At least one value.
        method: ``minmax``: the largest value is the last step. ``percentile``: that share of the values is kept (with
            negative ones, half of the rest is cut at either end). ``entropy``: the distribution loses the least
            information (Kullback-Leibler divergence), as S. Migacz describes TensorRT's calibration in "8-bit
            Inference with TensorRT", GTC 2017. ``mse``: the mean squared error is least.
        percentile: Of ``percentile``.
        max_clipped: Largest share of the values that ``entropy`` and ``mse`` may clip; a percentile says it itself.

    Raises:
        UsageError: As for :func:`settings_of`, or nothing was observed.
    """
    settings_of(method, percentile)
    if not observed.count:
        raise UsageError("Nothing was observed: there is no scale to find.")
    low, high = min(observed.min, 0.0), max(observed.max, 0.0)
    if low == high:
        return Found(1.0, 0, 0.0)
    if method != "minmax":
        low, high = _RANGES[method](observed, _Limits(percentile / 100, max_clipped))
    scale, zero = _affine(low, high)
    return Found(scale, zero, _clipped(observed, scale, zero))


@dataclass(frozen=True)
class _Limits:
    """What a method has to keep: the share of the values that a percentile keeps, and that others may clip."""

    kept: float
    clipped: float


def _clipped(observed: Observer, scale: float, zero: int) -> float:
    # Half a step beyond either end still rounds to it.
    return observed.beyond((-zero - 0.5) * scale, (LEVELS - zero + 0.5) * scale)


def _affine(low: float, high: float) -> tuple[float, int]:
    """Scale, as float32 has it, and zero point of a range that holds 0."""
    scale = float(max(np.float32((high - low) / LEVELS), np.finfo(np.float32).tiny))
    return scale, min(max(round(-low / scale), 0), LEVELS)


def _percentile(observed: Observer, limits: _Limits) -> tuple[float, float]:
    if observed.min >= 0:
        return 0.0, observed.quantile(limits.kept) or observed.max
    rest = (1 - limits.kept) / 2
    low, high = min(observed.quantile(rest), 0.0), max(observed.quantile(1 - rest), 0.0)
    return (low, high) if low < high else (observed.min, observed.max)


def _mse(observed: Observer, limits: _Limits) -> tuple[float, float]:
    edges, counts = observed.edges(), observed.nonzero()
    filled = np.flatnonzero(counts)
    centres = (edges[:-1][filled] + edges[1:][filled]) / 2
    weights = counts[filled].astype(np.float64)
    low, high = min(observed.min, 0.0), max(observed.max, 0.0)

    def error(share: float) -> float:
        scale, zero = _affine(low * share, high * share)
        if _clipped(observed, scale, zero) > limits.clipped:
            return math.inf
        steps = np.clip(np.rint(centres / scale) + zero, 0, LEVELS) - zero
        return float((weights * (steps * scale - centres) ** 2).sum())

    best = _least(error, np.geomspace(_LEAST_SHARE, 1, _CANDIDATES))
    near = (1 / _LEAST_SHARE) ** (1 / (_CANDIDATES - 1))
    # Between its neighbours: the first grid is 2.8 % wide.
    best = _least(error, [best, *(share for share in np.geomspace(best / near, best * near, 17) if share <= 1)])
    return low * best, high * best


def _least(error: Callable[[float], float], shares: Any) -> float:
    """The share of the least error; of equal ones the largest, which clips least."""
    return float(min(shares, key=lambda share: (error(float(share)), -share)))


def _entropy(observed: Observer, limits: _Limits) -> tuple[float, float]:
    magnitudes, width = _magnitudes(observed)
    levels = LEVELS if observed.min >= 0 else LEVELS // 2
    if magnitudes.size <= levels:
        return min(observed.min, 0.0), max(observed.max, 0.0)
    tried = np.unique(np.linspace(levels, magnitudes.size, _CANDIDATES).astype(np.int64))

    def ends(bins: float) -> tuple[float, float]:
        return max(min(observed.min, 0.0), -bins * width), min(max(observed.max, 0.0), bins * width)

    def divergence(bins: float) -> float:
        if _clipped(observed, *_affine(*ends(bins))) > limits.clipped:
            return math.inf
        return _divergence(magnitudes, int(bins), levels)

    return ends(_least(divergence, tried))


def _magnitudes(observed: Observer) -> tuple[Floats, float]:
    """Counts of the absolute values that are not 0, in about :data:`_ENTROPY_BINS` bins, and the width of a bin."""
    edges, counts = observed.edges(), observed.nonzero()
    zero = int(np.searchsorted(edges, 0.0))
    upper, lower = counts[zero:], counts[:zero][::-1]
    folded = np.zeros(max(upper.size, lower.size))
    folded[: upper.size] += upper
    folded[: lower.size] += lower
    joined = max(1, math.ceil(folded.size / _ENTROPY_BINS))
    sums: Floats = np.add.reduceat(folded, np.arange(0, folded.size, joined))
    return sums, joined * float(edges[1] - edges[0])


def _divergence(magnitudes: Floats, bins: int, levels: int) -> float:
    """Divergence of the distribution cut at ``bins`` from what ``levels`` steps leave of it."""
    kept = magnitudes[:bins]
    exact = kept.copy()
    exact[-1] += magnitudes[bins:].sum()
    starts = np.arange(levels) * bins // levels
    has = kept > 0
    filled = np.add.reduceat(has.astype(np.float64), starts)
    mean = np.add.reduceat(kept, starts) / np.maximum(filled, 1)
    coarse = np.repeat(mean, np.diff([*starts, bins])) * has
    p, q = exact / exact.sum(), coarse / max(coarse.sum(), 1)
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], _SMOOTH / bins))).sum())


_RANGES: dict[str, Callable[[Observer, _Limits], tuple[float, float]]] = {
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
