"""Dynamic blocks: modules that compute densely under masks, and know what they become when they are exported."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from dyndeploy.blocks.gates import Gate, LoweredCall
from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.ops.base import OperatorSpec, Shape
from dyndeploy.ops.gates import TOKEN


@runtime_checkable
class DynamicBlock(Protocol):
    """What a module has to have to be exported as one operator, or as a branch.

    Its ``forward`` decides with its gates and then calls ``self.compute``; what else it does or returns is its own
    affair. A block without gates is an ordinary module.
    """

    def gates(self) -> Mapping[str, Gate]:
        """The gates by the keyword of ``compute`` that takes their masks; the keyword is also the mask's name."""

    def compute(self, x: Tensor, **masks: Tensor) -> Tensor:
        """Compute densely under masks: what is trained, and what defines the right answer.

        A mask that is left out, or None, computes everything.
        """

    def lower(self, *shapes: Shape) -> LoweredCall:
        """What the block becomes for inputs of these shapes in evaluation."""


class Block(nn.Module):
    """A dynamic block whose gates read its input: subclasses write ``gates``, ``compute`` and ``lower``."""

    def gates(self) -> Mapping[str, Gate]:
        """See :meth:`DynamicBlock.gates`."""
        raise NotImplementedError(f"{type(self).__name__} has to say which gates it has: write gates().")

    def mask_size(self, x: Tensor) -> tuple[int, int] | None:
        """(rows, columns) of the masks with a grid for an input; None where the block has none."""
        return None

    def compute(self, x: Tensor, **masks: Tensor) -> Tensor:
        """See :meth:`DynamicBlock.compute`."""
        raise NotImplementedError(f"{type(self).__name__} has to compute under masks: write compute(x, **masks).")

    def lower(self, *shapes: Shape) -> LoweredCall:
        """See :meth:`DynamicBlock.lower`."""
        raise NotImplementedError(f"{type(self).__name__} has to say what it becomes: write lower(*shapes).")

    def forward(self, x: Tensor) -> Tensor:
        """Decide and compute."""
        size = self.mask_size(x)
        return self.compute(x, **{name: gate(x, size) for name, gate in self.gates().items()})


ROOT = "network"
"""What a network that is itself one dynamic block is called, since its path is empty."""


def dynamic_blocks(module: nn.Module) -> Iterator[tuple[str, DynamicBlock, Mapping[str, Gate]]]:
    """Iterate over (dotted path, block, its gates) of every dynamic block in a module, outer ones first."""
    for path, child in module.named_modules():
        if isinstance(child, DynamicBlock):
            gates = child.gates()
            if gates:
                yield path, child, gates


def run_dense(network: nn.Module, names: Collection[str]) -> None:
    """Make dynamic blocks ordinary ones, in place: they compute everything, and their gates decide nothing.

    Args:
        network: Any module.
        names: Dotted paths of the blocks.

    Raises:
        UsageError: There is no dynamic block of a name.
    """
    blocks = {path: block for path, block, _ in dynamic_blocks(network)}
    for name in names:
        if name not in blocks:
            raise unknown_name("block", name, blocks)
        block = blocks[name]
        # Of the instance, and such that they go along with a deep copy of it.
        object.__setattr__(block, "compute", partial(_without_masks, block.compute))
        object.__setattr__(block, "gates", dict)


def capacity_of(capacity: int | float, tokens: int) -> int:
    """Places for a capacity of a number of tokens, or of a share of them (rounded up).

    Raises:
        UsageError: A number below 1, or a share outside (0, 1].
    """
    if isinstance(capacity, int) and not isinstance(capacity, bool) and capacity >= 1:
        return min(capacity, tokens)
    if isinstance(capacity, float) and 0.0 < capacity <= 1.0:
        return max(1, -int(-capacity * tokens // 1))
    raise UsageError(
        f"A capacity is a number of tokens from 1, or a share of them above 0 and up to 1, not {capacity!r}."
    )


def limit_tokens(network: nn.Module, capacity: int | float) -> None:
    """Let every block with a gate of tokens, in place, lower itself to static shapes of a capacity.

    Args:
        network: Any module; its blocks say by an attribute ``token_capacity`` that they can.
        capacity: A number of tokens, or a share of them.

    Raises:
        UsageError: There is no such block.
    """
    found = [
        block
        for _, block, gates in dynamic_blocks(network)
        if hasattr(block, "token_capacity") and any(gate.kind.name == TOKEN.name for gate in gates.values())
    ]
    if not found:
        raise UsageError(f"{type(network).__name__} has no block whose tokens a capacity could limit.")
    for block in found:
        object.__setattr__(block, "token_capacity", capacity)


def _without_masks(compute: Callable[..., Tensor], *inputs: Tensor, **masks: Tensor) -> Tensor:
    return compute(*inputs)


def mask_name(block: str, name: str) -> str:
    """Name of a mask in graphs and results, e.g. ``mask/layer1.0/spatial``.

    Args:
        block: Dotted path of the block in its network; empty for a network that is one block.
        name: Name of the gate in its block: ``"spatial"``, ``"layer"``, ``"channel"`` in the networks of the zoo.
    """
    return f"mask/{block or ROOT}/{name}"


def mask_ports(path: str, spec: OperatorSpec, gates: Mapping[str, Gate]) -> dict[str, str]:
    """Gate by mask input of the operator; raises ``UsageError`` where they do not fit."""
    ports = {}
    for port, kind in spec.gates.items():
        fitting = [name for name, gate in gates.items() if gate.kind.name == kind.name]
        if len(fitting) > 1 and port in fitting:
            fitting = [port]
        if len(fitting) != 1:
            raise UsageError(
                f"{path}: {spec.name} takes one mask of kind '{kind.name}' as '{port}', and the block has "
                f"{len(fitting)} such gates. Name the gate '{port}'."
            )
        ports[port] = fitting[0]
    surplus = sorted(set(gates) - set(ports.values()))
    if surplus:
        raise UsageError(f"{path}: {spec.name} has no input for the masks of {', '.join(surplus)}.")
    return ports
