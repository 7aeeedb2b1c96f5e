"""Values that are no numbers, NaN and infinite ones: found, counted and named in one way everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import NotFiniteError


def not_finite(value: npt.NDArray[Any]) -> str:
    """Say what of an array is not finite, as in ``"3 NaN and 2 infinite of 10 values"``; empty where all is finite."""
    if not value.dtype.name.startswith(("float", "bfloat", "complex")) or bool(np.isfinite(value).all()):
        return ""
    nan = int(np.isnan(value).sum())
    counts = {"NaN": nan, "infinite": value.size - int(np.isfinite(value).sum()) - nan}
    return f"{' and '.join(f'{count} {kind}' for kind, count in counts.items() if count)} of {value.size} values"


def listed(arrays: Mapping[str, npt.NDArray[Any]], limit: int = 3) -> str:
    """Name the arrays that are not finite, with :func:`not_finite` of each; empty where all are finite."""
    found = [f"'{name}' holds {what}" for name, value in arrays.items() if (what := not_finite(value))]
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more


def require_finite(arrays: Mapping[str, npt.NDArray[Any]], advice: str) -> None:
    """Raise ``NotFiniteError`` unless all values are finite.

    Args:
        arrays: Results of a network by name.
        advice: What to do, as sentences.
    """
    found = listed(arrays)
    if found:
        raise NotFiniteError(f"The network computed no usable result: {found}. {advice}")


def first_not_finite(value: Any, where: str = "") -> str | None:
    """Path of the first NaN or infinity in a JSON value, as in ``"exits[2].loss"``; None where there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else where
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(f"{where}.{key}" if where else str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    return next((found for name, item in items if (found := first_not_finite(item, name)) is not None), None)


def number(value: float) -> float | None:
    """A number for JSON, which has no NaN and no infinity: None stands for both."""
    return float(value) if math.isfinite(value) else None
