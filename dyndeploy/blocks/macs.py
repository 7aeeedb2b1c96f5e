"""Multiply-accumulates of modules, counted from what they run: convolutions, linear layers and matrix products."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dyndeploy.blocks.block import dynamic_blocks, run_dense
from dyndeploy.blocks.exits import StagedNetwork
from dyndeploy.errors import UsageError


@dataclass(frozen=True)
class ModuleMacs:
    """MACs of one pass that computes everything and decides nothing.

    Attributes:
        total: Of the whole module.
        blocks: Of each dynamic block by dotted path; those of a block within a block count in both.
    """

    total: int
    blocks: Mapping[str, int]


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy without weights, in evaluation, to be walked through at no cost."""
    return copy.deepcopy(module).to("meta").eval().requires_grad_(False)


@torch.no_grad()
def dense_macs(module: nn.Module, inputs: Sequence[Tensor]) -> ModuleMacs:
    """Count the MACs of a module with all of its dynamic blocks computed and without its gates: the static twin's.

    Norms, activations, additions, pooling and softmax are free.

    Args:
        module: Any module; neither its weights nor its mode matter.
        inputs: Its inputs; only their shapes and types matter. MACs are those of their whole batch.
    """
    twin = _on_meta(module)
    paths = [path for path, _, _ in dynamic_blocks(twin)]
    twin = _without_gates(twin, paths)
    # Tensors that a forward makes of itself have no numbers either.
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        twin(*(item.to("meta") for item in inputs))
    root = type(twin).__name__
    counts = counter.get_flop_counts()
    blocks = {path: _macs(counts.get(f"{root}.{path}" if path else root, {})) for path in paths}
    return ModuleMacs(counter.get_total_flops() // 2, blocks)


def _macs(counts: Mapping[Any, int]) -> int:
    return sum(counts.values()) // 2


def _without_gates(module: nn.Module, paths: Sequence[str]) -> nn.Module:
    """Exchange the gates for constants of the masks' shapes, which cost nothing, and let blocks ignore them."""
    gates = {id(gate) for _, _, found in dynamic_blocks(module) for gate in found.values()}
    run_dense(module, paths)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in gates:
                setattr(parent, name, _NoGate())
    return module


class _NoGate(nn.Module):
    def forward(self, x: Tensor, size: Any = None, temperature: Any = None) -> None:
        return None


def exit_macs(
    network: StagedNetwork, input_size: tuple[int, int], exits: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Count the MACs per image up to and with each enabled exit, one exit tried after the other.

    The heads of earlier exits are counted too; everything that can be skipped within a stage is counted in full.

    Args:
        network: The network; its weights are not used.
        input_size: (height, width) in pixels.
        exits: The enabled exits, as for :meth:`StagedNetwork.segments`; None for all.

    Returns:
        Cumulative MACs, one number per enabled exit.

    Raises:
        UsageError: A size below 1, or exits that cannot be enabled.
    """
    if min(input_size) < 1:
        raise UsageError(f"input_size={input_size!r} is not valid: give (height, width), at least 1 each.")
    assert isinstance(network, nn.Module)
    twin = _on_meta(network)
    assert isinstance(twin, StagedNetwork)
    values: dict[str, Tensor] = {}
    totals: list[int] = []
    for segment in twin.segments(tuple(range(1, network.exits + 1)) if exits is None else exits):
        if not values:
            values[segment.inputs[0]] = torch.empty(1, 3, *input_size, device="meta")
        given = [values[name] for name in segment.inputs]
        totals.append((totals[-1] if totals else 0) + dense_macs(segment, given).total)
        with torch.no_grad(), torch.device("meta"):
            values |= dict(zip(segment.outputs, segment(*given), strict=True))
    return tuple(totals)
