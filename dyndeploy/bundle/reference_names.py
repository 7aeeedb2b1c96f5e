"""Names inside ``reference.npz`` besides those of the graph's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.finite import listed

MARGIN = "margin/"
"""Before a mask's name: compute logit minus skip logit of every bit."""

FORCED = "forced/"
"""Before a mask's name: random bits; before an output's name: what PyTorch computes under them."""

EXACT = "exact/"
"""Before an output's name: what PyTorch computes under the same masks without the network's approximations."""


def unusable(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Name the tensors that are not finite; empty where all are. An infinite margin is a decision, NaN is none."""
    return listed(
        {
            name: np.where(np.isinf(value), 0, value) if name.startswith(MARGIN) else value
            for name, value in tensors.items()
        }
    )


def exit_logits(number: int) -> str:
    """Name of the logits (n, classes) of an exit, counted from 1."""
    return f"logits/exit{number}"
