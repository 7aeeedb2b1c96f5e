"""One number for many times of the same thing."""

from __future__ import annotations

from typing import Any

import numpy as np


def quick(values: Any) -> float:
    """Mean of the faster half: what interrupts a run, or takes its cache, only makes it longer."""
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    return float(ordered[: max(1, round(len(ordered) / 2))].mean())
