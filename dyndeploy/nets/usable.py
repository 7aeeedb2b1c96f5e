"""Whether a network can compute with its weights at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def unusable_state(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Say which entry of a network's state is NaN, infinite or an impossible variance; empty where none is.

    Args:
        network: Whose state it is; its batch norms tell which entries are variances.
        state: Weights and buffers by name, not necessarily those that the network has at present.
    """
    for name, value in state.items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            return f"{name} holds {'NaN' if bool(torch.isnan(value).any()) else 'infinite values'}"
    for path, module in network.named_modules():
        name = f"{path}.running_var" if path else "running_var"
        variance, eps = state.get(name), getattr(module, "eps", None)
        if not isinstance(variance, Tensor):
            continue
        # Batch norms divide by the square root of the sum; those that keep their eps to themselves tell less.
        bad = variance.double() + eps <= 0 if isinstance(eps, float) else variance < 0
        if bool(bad.any()):
            count = f"{int(bad.sum())} of {variance.numel()}"
            return f"{name} holds variances that are not positive ({count}), which make the results NaN"
    return ""
