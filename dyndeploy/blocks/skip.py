"""``skip``: any module that keeps its input's shape as a block that each image computes or leaves out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dyndeploy.blocks.block import Block
from dyndeploy.blocks.gates import Gate, LoweredCall, PooledGate
from dyndeploy.errors import UsageError
from dyndeploy.ops.base import Shape
from dyndeploy.ops.gates import BLOCK


class Skip(Block):
    """``module(x)`` for the images that the gate computes, ``x`` for the others.

    Exported, it is a branch (``If``) that skipped images do not enter; where a target does not run branches lazily it
    is computed densely and selected, and export says so.

    Args:
        module: Keeps the shape of its input.
        gate: Decides for whole images.

    Attributes:
        module: What is skipped.
        gate: What decides.
    """

    def __init__(self, module: nn.Module, gate: Gate) -> None:
        super().__init__()
        self.module = module
        self.gate = gate

    def gates(self) -> Mapping[str, Gate]:
        """Return the gate, as ``layer``."""
        return {BLOCK.name: self.gate}

    def compute(self, x: Tensor, layer: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return (N, ...) under a mask (N, 1, 1, 1); raises ``UsageError`` if the module changes the shape."""
        # A copy, because modules may overwrite what they take (ReLU(inplace=True)), and skipped images keep it.
        y: Tensor = self.module(x.clone())
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            found = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise UsageError(
                f"skip({type(self.module).__name__}): the module turns {tuple(x.shape)} {x.dtype} into {found}. What "
                "is skipped must give what it takes: one tensor of the same shape and type."
            )
        if layer is None:
            return y
        chosen = layer.reshape(-1, *[1] * (x.ndim - 1))
        if self.training:
            return chosen * y + (1 - chosen) * x
        return torch.where(chosen > 0.5, y, x)

    def lower(self, *shapes: Shape) -> LoweredCall:
        """Return the module as a branch."""
        return LoweredCall.conditional(self.module)


def skip(module: nn.Module, gate: Gate | None = None) -> Skip:
    """Make a module a dynamic block that each image computes or skips.

    Args:
        module: Any module that keeps the shape of its input: a residual body with its addition, an attention block.
        gate: Decides per image (kind ``layer``); None takes a mean over all positions and one linear layer.

    Raises:
        UsageError: The gate decides on something else than whole blocks, or, without a gate, the number of channels
            cannot be told from the module's layers.

    Example:
        >>> import torch
        >>> block = skip(nn.Conv2d(8, 8, 3, padding=1))
        >>> block(torch.zeros(2, 8, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"skip() takes a module, not {type(module).__name__}.")
    if gate is None:
        gate = _default_gate(module)
    if not isinstance(gate, Gate) or not gate.kind.whole:
        what = f"one of kind '{gate.kind.name}'" if isinstance(gate, Gate) else type(gate).__name__
        raise UsageError(f"skip() takes a gate that decides on whole blocks (kind '{BLOCK.name}'), not {what}.")
    return Skip(module, gate)


def _default_gate(module: nn.Module) -> PooledGate:
    for layer in module.modules():
        for attribute, last in (("in_channels", False), ("in_features", True), ("num_features", False)):
            features = getattr(layer, attribute, None)
            if isinstance(features, int) and features > 0:
                return PooledGate(features, last=last)
        normalised = getattr(layer, "normalized_shape", None)
        if isinstance(normalised, tuple) and len(normalised) == 1:
            return PooledGate(normalised[0], last=True)
    raise UsageError(
        f"skip({type(module).__name__}): no layer tells the number of channels of its input. Give a gate: "
        "skip(module, PooledGate(channels))."
    )
