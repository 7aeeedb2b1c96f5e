"""Swapping: in a copy of a network, dynamic blocks become calls of operators, in place.

Everything else stays the user's: their ``forward`` is captured as it is. A block keeps its own ``forward`` too; what is
exchanged are its gates (each becomes the operator that decides, or standard layers) and its ``compute``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks import Gate, LoweredCall, Tape, dynamic_blocks, mask_name, named_outputs
from dyndeploy.blocks.block import ROOT, mask_ports
from dyndeploy.blocks.gates import Size, Temperature, shaped_logits
from dyndeploy.blocks.tape import Call, Decision
from dyndeploy.errors import UsageError
from dyndeploy.graphs.inspect import CALL, CONDITIONAL
from dyndeploy.graphs.passes.names import OWN_MODULE
from dyndeploy.ops import OperatorSpec, Role, operator


@dataclass(frozen=True)
class DryRun:
    """What one pass of the original network shows.

    Attributes:
        outputs: Shapes of the outputs by name.
        decisions: Decisions by mask name, in order of execution.
        calls: Calls of ``compute`` by path of the block.
        unreached: Paths of dynamic blocks that the pass does not use.
    """

    outputs: Mapping[str, tuple[int, ...]]
    decisions: Mapping[str, Decision]
    calls: Mapping[str, Call]
    unreached: tuple[str, ...]

    def inside(self, path: str) -> list[str]:
        """Names of the masks of the blocks within a block, in order of execution."""
        prefix = f"{path}." if path else ""
        return [
            name
            for name, decision in self.decisions.items()
            if decision.block.startswith(prefix) and decision.block != path
        ]


@torch.no_grad()
def dry_run(network: nn.Module, inputs: Sequence[Tensor], names: Sequence[str] | None = None) -> DryRun:
    """Run a network once in evaluation and look at its blocks.

    Args:
        network: In evaluation.
        inputs: Example inputs.
        names: Names of the entries of the tuple that it returns; None takes those that the result has.

    Raises:
        UsageError: It cannot take the inputs, returns something that is no tensor, uses a block twice, or a block's
            ``forward`` does not hand its masks to ``compute`` as its gates made them.
    """
    with Tape(network) as tape:
        try:
            result = network(*inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = ", ".join(str(tuple(item.shape)) for item in inputs)
            raise UsageError(
                f"{type(network).__name__} cannot run on the example inputs ({shapes}): {_first_line(error)}. Give "
                "inputs of the shape, type and device that its forward takes."
            ) from error
    unreached = []
    for path, block, gates in dynamic_blocks(network):
        labels = {name: mask_name(path, name) for name in gates}
        made = [name for name, label in labels.items() if label in tape.decisions]
        call = tape.calls.get(path)
        if call is None and not made:
            unreached.append(path)
            continue
        given = {} if call is None else call.masks
        wrong = [name for name in gates if name not in made or given.get(name) is not tape.decisions[labels[name]].mask]
        if wrong:
            raise UsageError(
                f"The forward of {path or 'the network'} ({type(block).__name__}) does not hand the mask of "
                f"{', '.join(wrong)} to compute() as its gate made it. Write 'self.compute(x, "
                + ", ".join(f"{name}=mask" for name in wrong)
                + ")' with the gate's own result."
            )
    found = named_outputs(result) if names is None else dict(zip(names, result, strict=True))
    batch = len(inputs[0])
    for name, value in found.items() if names is None else ():
        if value.ndim == 0 or len(value) != batch:
            raise UsageError(
                f"The output '{name}' has shape {tuple(value.shape)}, and the batch is {batch}: the first axis of "
                "every output must be the batch. Return it from another method, or leave it out in evaluation."
            )
    shapes_of = {name: tuple(value.shape) for name, value in found.items()}
    return DryRun(shapes_of, dict(tape.decisions), dict(tape.calls), tuple(unreached))


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


class Recorder:
    """Masks of one pass by name, in order of execution."""

    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}


class _Weights(nn.Module):
    """Named constants; buffers, so that they move and are captured with their owner."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone().contiguous())

    def get(self, name: str) -> Tensor:
        value: Tensor = getattr(self, name)
        return value


class _Operator(nn.Module):
    """A call of an operator on maps of the network's layout."""

    def __init__(self, call: LoweredCall) -> None:
        super().__init__()
        assert call.operator is not None
        self.spec: OperatorSpec = operator(call.operator)
        self.attributes = dict(call.attributes)
        self.channels_last = call.channels_last
        self._before = call.before
        self.dyndeploy_weights = _Weights(call.tensors)
        known = {port.name for port in self.spec.inputs if port.role is Role.WEIGHT}
        required = {port.name for port in self.spec.inputs if port.role is Role.WEIGHT and not port.optional}
        given = set(call.tensors)
        if not required <= given <= known:
            raise UsageError(
                f"{self.spec.name} takes the weights {sorted(known)}, and {sorted(given)} were lowered for it."
            )

    def forward(self, tensors: Sequence[Tensor], masks: Mapping[str, Tensor]) -> Any:
        """Return the operator's output, or a tuple of several, in the network's layout."""
        activations = [_to_last(item) if self.channels_last else item for item in tensors]
        if self._before is not None:
            activations[0] = self._before(activations[0])
        sources = iter(activations)
        inputs: list[Tensor] = []
        for port in self.spec.inputs:
            if port.role is Role.ACTIVATION:
                inputs.append(next(sources))
            elif port.role is Role.MASK:
                inputs.append(masks[port.name])
            elif port.name in self.dyndeploy_weights.names:
                inputs.append(self.dyndeploy_weights.get(port.name))
        result = self.spec.emit(inputs, self.attributes)
        if not self.channels_last or self.spec.decides:
            return result
        return tuple(map(_to_first, result)) if isinstance(result, tuple) else _to_first(result)


def _to_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def _to_first(x: Tensor) -> Tensor:
    # Contiguous, because layers of PyTorch do other things to maps whose strides say channels last.
    return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x


class _LoweredGate(nn.Module):
    """A gate that decides by an operator, or by its own layers, and notes its mask; else it is as the gate was."""

    def __init__(self, gate: Gate, size: Size | None, label: str, recorder: Recorder) -> None:
        super().__init__()
        call = gate.lower(size)
        self.dyndeploy_operator = None if call is None else _Operator(call)
        self.dyndeploy_gate = gate if call is None else None
        self.label, self.recorder = label, recorder
        # No module of this one: where the operator decides, the gate's own layers are not part of the graph.
        object.__setattr__(self, "_original", gate)

    def __getattr__(self, name: str) -> Any:
        """What the owner of the gate may ask it for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_original"), name)

    def forward(self, x: Tensor, size: Size | None = None, temperature: Temperature = None) -> Tensor:
        mask: Tensor
        if self.dyndeploy_operator is not None:
            mask = self.dyndeploy_operator([x], {})
        else:
            assert self.dyndeploy_gate is not None
            logits = shaped_logits(self.dyndeploy_gate, self.dyndeploy_gate.logits(x, size), x.shape[0])
            # Not smaller: the parsers of all boards have Less, and not all have GreaterOrEqual.
            mask = (~(logits[:, 0] < logits[:, 1])).to(torch.float32)
        self.recorder.masks[self.label] = mask
        return mask


class _LoweredCompute(nn.Module):
    """What stands for ``compute`` of a block that becomes an operator."""

    def __init__(self, path: str, call: LoweredCall, gates: Mapping[str, Gate], *, rectify: bool) -> None:
        super().__init__()
        self.dyndeploy_operator = _Operator(call)
        self.ports = mask_ports(path, self.dyndeploy_operator.spec, gates)
        self.rectify = rectify

    def forward(self, *tensors: Tensor, **masks: Tensor) -> Any:
        result = self.dyndeploy_operator(tensors, {port: masks[name] for port, name in self.ports.items()})
        return F.relu(result) if self.rectify else result


class _Branch(nn.Module):
    """What stands for ``compute`` of a block that becomes a branch of the graph: a node to be replaced by a pass."""

    def __init__(self, path: str, inner: Mapping[str, tuple[int, ...]], recorder: Recorder) -> None:
        super().__init__()
        self.path, self.inner, self.recorder = path, dict(inner), recorder

    def forward(self, x: Tensor, **masks: Tensor) -> Tensor:
        (mask,) = masks.values()
        shapes = [tuple(x.shape), *((x.shape[0], *shape[1:]) for shape in self.inner.values())]
        y, *inside = torch.onnx.ops.symbolic_multi_out(
            f"{CONDITIONAL}::{CALL}",
            (x, mask),
            attrs={"block": self.path or ROOT},
            dtypes=[x.dtype, *[torch.float32] * len(self.inner)],
            shapes=shapes,
            version=1,
        )
        self.recorder.masks |= dict(zip(self.inner, inside, strict=True))
        return y


@dataclass(frozen=True)
class Swapped:
    """A network whose dynamic blocks are calls of operators.

    Attributes:
        network: The network; its ``forward`` is the user's own.
        recorder: Holds the masks of a pass.
        masks: Names of the masks, in order of execution.
        branches: Modules of the blocks that become branches, by path, inner ones before outer ones.
        paths: Paths of all blocks that were dynamic.
    """

    network: nn.Module
    recorder: Recorder
    masks: tuple[str, ...]
    branches: Mapping[str, nn.Module]
    paths: tuple[str, ...]


def swap(network: nn.Module, run: DryRun) -> Swapped:
    """Exchange the gates and computations of all dynamic blocks, in place.

    Args:
        network: A copy, in evaluation: it is changed.
        run: A dry run of it.

    Raises:
        UsageError: A block has no operator, or what it lowers to does not fit its operator.
    """
    recorder, branches = Recorder(), {}
    found = list(dynamic_blocks(network))
    parents = {id(child): (parent, name) for parent in network.modules() for name, child in parent.named_children()}
    for path, block, gates in reversed(found):
        if path in run.unreached:
            continue
        seen = run.calls[path]
        call = block.lower(*seen.inputs)
        compute: nn.Module
        if call.operator is not None:
            compute = _LoweredCompute(path, call, gates, rectify=call.rectified and not seen.nonnegative)
        else:
            if call.body is None or len(gates) != 1 or len(seen.inputs) != 1:
                raise UsageError(
                    f"{path}: without an operator, a block has one input, one gate that decides on whole blocks, and a "
                    "body that runs where it computes."
                )
            inside = {name: tuple(run.decisions[name].mask.shape) for name in run.inside(path)}
            compute = _Branch(path, inside, recorder)
            branches[path] = call.body
        for name, gate in gates.items():
            label = mask_name(path, name)
            parent, key = parents[id(gate)]
            setattr(parent, key, _LoweredGate(gate, run.decisions[label].size, label, recorder))
        assert isinstance(block, nn.Module)
        block.add_module(f"{OWN_MODULE}compute", compute)
        object.__setattr__(block, "compute", compute)
    paths = tuple(path for path, _, _ in found if path not in run.unreached)
    return Swapped(network, recorder, tuple(run.decisions), branches, paths)


class Captured(nn.Module):
    """A swapped network with its masks behind its outputs: what is captured.

    Attributes:
        net: The network.
    """

    def __init__(
        self, net: nn.Module, recorder: Recorder, outputs: Sequence[str], masks: Sequence[str], *, in_order: bool
    ) -> None:
        super().__init__()
        self.net = net
        self._outputs, self._masks, self._recorder = tuple(outputs), tuple(masks), recorder
        self._in_order = in_order

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, then the masks, each in their order."""
        self._recorder.masks.clear()
        result = self.net(*inputs)
        found = dict(zip(self._outputs, result, strict=True)) if self._in_order else named_outputs(result)
        return (*found.values(), *(self._recorder.masks[name] for name in self._masks))
