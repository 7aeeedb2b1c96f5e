"""MACs that a pass of a network needs, differentiable in its masks: counted, for any network with gates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dyndeploy.blocks import DynamicBlock, StagedNetwork, Tape, dynamic_blocks
from dyndeploy.blocks.block import mask_ports
from dyndeploy.blocks.macs import dense_macs, exit_macs
from dyndeploy.blocks.tape import Call
from dyndeploy.errors import UsageError
from dyndeploy.ops import OperatorSpec, Role, operator
from dyndeploy.ops.base import Shape


@runtime_checkable
class CountedOutput(Protocol):
    """A result that says itself what was computed; its network has ``full_flops(input_size)`` to divide it by.

    Attributes:
        flops: MACs per image, 0-d.
        flops_ratio: Computed over dense MACs of each block, (blocks,).
        masks: One record per block, with its dotted path as ``name``.
    """

    flops: Tensor
    flops_ratio: Tensor
    masks: Any


class Flops(NamedTuple):
    """What a pass needed.

    Attributes:
        total: MACs per image, averaged over the batch, 0-d.
        ratios: Computed over dense MACs of each block, (blocks,).
    """

    total: Tensor
    ratios: Tensor


@dataclass(frozen=True)
class _Block:
    """What one dynamic block costs.

    Attributes:
        dense: MACs per image with everything computed.
        parent: Path of the dynamic block around it; None where there is none.
        children: Paths of the dynamic blocks directly in it.
        work: MACs per image (N,) under the masks of a call; None where a whole-block mask decides on all of it.
    """

    dense: int
    parent: str | None
    children: tuple[str, ...]
    work: Callable[[Call], Tensor] | None


class Costs:
    """What passes of a network cost.

    A network whose results are :class:`CountedOutput` is taken at its word. For any other one a block that becomes an
    operator needs the operator's work under its masks, one that becomes a branch its dense MACs for the images that
    compute it; blocks within a branch count for these images only, and gates are free.

    Args:
        network: Any network of images.
        input_size: (height, width).
        output: What it returned for images of that size.
        tape: The record of that pass.
        exits: Number of its exits.

    Attributes:
        full: MACs per image that are divided by: of the network with everything computed.
        exits: MACs per image up to and with each exit, everything computed; empty where there is one.
        blocks: Dotted paths of the blocks that have a ratio, in order of execution.

    Raises:
        UsageError: A block has no operator, or the network cannot be walked through without numbers.
    """

    def __init__(
        self, network: nn.Module, input_size: tuple[int, int], output: Any, tape: Tape, exits: int = 1
    ) -> None:
        self.exits: tuple[float, ...] = ()
        self._until: list[frozenset[str]] = []
        self._blocks: dict[str, _Block] = {}
        self._counted = isinstance(output, CountedOutput) and hasattr(network, "full_flops")
        if self._counted:
            self.full = float(network.full_flops(input_size))  # type: ignore[operator]
            self.blocks = tuple(record.name for record in output.masks)
            return
        called = list(tape.calls)
        try:
            staged = exit_macs(network, input_size) if isinstance(network, StagedNetwork) else ()
            dense = dense_macs(network, [torch.zeros(1, 3, *input_size)]) if called or not staged else None
        except (RuntimeError, NotImplementedError) as error:
            raise UsageError(
                f"The MACs of {type(network).__name__} cannot be counted: its forward does not run without numbers "
                f"({' '.join(str(error).split())[:120]}). Control flow that depends on values of tensors cannot be "
                "exported either: write it with tensors."
            ) from error
        self.full = float(staged[-1] if staged else dense.total)  # type: ignore[union-attr]
        if exits > 1:
            self.exits = tuple(map(float, staged)) or (self.full,) * exits
        self.blocks = tuple(called)
        if dense is not None:
            self._blocks = _blocks(network, tape.calls, dense.blocks)
        if isinstance(network, StagedNetwork) and called:
            done: frozenset[str] = frozenset()
            for segment in network.segments(tuple(range(1, exits + 1))):
                done |= {path for path, _, _ in dynamic_blocks(segment)}
                self._until.append(done)

    @property
    def varies(self) -> bool:
        """Whether there is a block that could compute less."""
        return bool(self.blocks)

    def count(self, output: Any, tape: Tape) -> Flops:
        """Return what a pass needed.

        Args:
            output: What the network returned.
            tape: The record of the pass; its ``mean`` averages over the batch.
        """
        if self._counted:
            return Flops(output.flops, output.flops_ratio)
        if not self._blocks:
            return Flops(torch.tensor(self.full), torch.zeros(0))
        device = next((mask.device for call in tape.calls.values() for mask in call.masks.values()), None)
        means = {}
        for path in self._blocks:
            macs = self._images(path, tape.calls) * self._around(path, tape.calls)
            means[path] = tape.mean(macs.to(device))
        outer = [path for path, block in self._blocks.items() if block.parent is None]
        fixed = self.full - sum(self._blocks[path].dense for path in outer)
        ratios = torch.stack([means[path] / max(1, block.dense) for path, block in self._blocks.items()])
        return Flops(torch.stack([means[path] for path in outer]).sum() + fixed, ratios)

    def exits_under(self, ratios: Mapping[str, float]) -> tuple[float, ...]:
        """Return MACs per image up to and with each exit, where blocks compute these shares of their own."""
        saved = {path: (1 - ratios[path]) * block.dense for path, block in self._blocks.items() if block.parent is None}
        until = self._until or [frozenset[str]()] * len(self.exits)
        return tuple(
            macs - sum(saved[path] for path in paths if path in saved)
            for macs, paths in zip(self.exits, until, strict=True)
        )

    def _images(self, path: str, calls: Mapping[str, Call]) -> Tensor:
        """MACs (N,) of a block for images that come to it."""
        block, call = self._blocks[path], calls.get(path)
        if call is None:
            return torch.zeros(1)
        if block.work is not None:
            return block.work(call)
        inner: Tensor | float = float(block.dense - sum(self._blocks[child].dense for child in block.children))
        for child in block.children:
            inner = inner + self._images(child, calls)
        return _share(call) * inner

    def _around(self, path: str, calls: Mapping[str, Call]) -> Tensor | float:
        """Product (N,) of the masks of the branches around a block."""
        parent = self._blocks[path].parent
        if parent is None or parent not in calls or self._blocks[parent].work is not None:
            return 1.0
        return _share(calls[parent]) * self._around(parent, calls)


def _share(call: Call) -> Tensor:
    """Share (N,) of a whole block that each image computes."""
    masks = [mask for mask in call.masks.values() if mask is not None]
    if not masks:
        return torch.ones(call.inputs[0][0])
    return _wide(masks[0]).reshape(len(masks[0]), -1).mean(1)


def _wide(mask: Tensor) -> Tensor:
    # Counts of MACs overflow half precision.
    return mask.to(torch.promote_types(mask.dtype, torch.float32))


@torch.no_grad()
def _blocks(network: nn.Module, calls: Mapping[str, Call], dense: Mapping[str, int]) -> dict[str, _Block]:
    blocks: dict[str, DynamicBlock] = {path: block for path, block, _ in dynamic_blocks(network)}
    parents = {path: _parent(path, calls) for path in calls}
    found = {}
    for path, call in calls.items():
        children = tuple(child for child, parent in parents.items() if parent == path)
        found[path] = _Block(dense[path], parents[path], children, _work(path, blocks[path], call))
    return found


def _parent(path: str, paths: Collection[str]) -> str | None:
    around = [other for other in paths if other != path and (not other or path.startswith(f"{other}."))]
    return max(around, key=len, default=None)


def _work(path: str, block: DynamicBlock, call: Call) -> Callable[[Call], Tensor] | None:
    """The work of the operator that a block becomes, under the masks of a call; None where it becomes a branch."""
    lowered = block.lower(*call.inputs)
    if lowered.operator is None:
        return None
    spec = operator(lowered.operator)
    ports = mask_ports(path, spec, block.gates())
    weights: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in lowered.tensors.items()}
    attributes, last, before = dict(lowered.attributes), lowered.channels_last, lowered.before

    def work(call: Call) -> Tensor:
        masks = {port: _wide(call.masks[name]) for port, name in ports.items()}
        activations = [_to_last(shape) if last else shape for shape in call.inputs]
        if before is not None:
            with torch.no_grad():
                activations[0] = tuple(before(torch.zeros(activations[0])).shape)
        shapes = _shapes(spec, activations, masks, weights)
        macs = spec.work(shapes, attributes, spec.counts(shapes, attributes, masks), 4.0).macs
        assert isinstance(macs, Tensor)
        return macs

    return work


def _shapes(
    spec: OperatorSpec, activations: list[Shape], masks: Mapping[str, Tensor], weights: Mapping[str, Shape]
) -> list[Shape]:
    sources = iter(activations)
    shapes: list[Shape] = []
    for port in spec.inputs:
        if port.role is Role.ACTIVATION:
            shapes.append(next(sources))
        elif port.role is Role.MASK:
            shapes.append(tuple(masks[port.name].shape))
        elif port.name in weights:
            shapes.append(weights[port.name])
    return shapes


def _to_last(shape: Shape) -> Shape:
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
