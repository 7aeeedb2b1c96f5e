"""Fake quantisation: in training a network computes what its INT8 graph will, and gradients go straight through.

What is rounded is what deploys. Every dynamic block lowers itself and its operator simulates its integers; its gates
read what the bytes stand for; standard convolutions round their inputs, weights and outputs where the graph does.
Batch norms are folded, with the statistics that they have. References: Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference" (CVPR 2018); the straight-through gradient is that of
Bengio et al. (2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from dyndeploy.blocks import DynamicBlock, Gate, Tape, dynamic_blocks, fold_batch_norm
from dyndeploy.blocks.block import ROOT, mask_ports
from dyndeploy.blocks.tape import replace_attribute
from dyndeploy.errors import NotFiniteError, UsageError
from dyndeploy.ops import OperatorSpec, Role, operator
from dyndeploy.ops import _quantized as integers
from dyndeploy.quantization import INT8, CalibrationTable

Range = tuple[float, int]
"""Scale and zero point."""
FindRange = Callable[[Tensor], Range | None]
"""Finds a range for values (n,); None where they tell none, as zeros do."""


@dataclass(frozen=True)
class StandardLayer:
    """A convolution of the network's own that the graph quantises.

    Attributes:
        convolution: The module.
        norm: The batch norm that the graph folds into it; None where nothing is folded.
    """

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d | None


@dataclass(frozen=True)
class _Block:
    """A dynamic block whose operator has one in integers."""

    path: str
    block: DynamicBlock
    gates: Mapping[str, Gate]
    spec: OperatorSpec

    @property
    def name(self) -> str:
        """As its points begin."""
        return self.path or ROOT

    @property
    def points(self) -> dict[str, str]:
        """Points by the names that the operator has for them."""
        assert self.spec.quantization is not None
        return {name: f"{self.name}/{name}" for name in ("x", *self.spec.quantization.points, "y")}


class FakeQuantization:
    """A context around a network: within it the network computes what its INT8 graph does.

    Args:
        network: In any mode.
        layers: Standard layers by the name of their node in the graph.
        table: Scales to start from, and the blocks that stay in floating point.
        groups: Points that have one scale, in any order; each point of the table is in one of them.
        images: A few inputs of the network, to look for its blocks.
        find_range: How a range is found in what is observed.
        momentum: Share of a scale that an iteration's own range replaces.
        freeze_after: Iterations after which the scales stay as they are.
        average: Mean over the processes that train.

    Attributes:
        steps: Iterations that were observed.

    Raises:
        UsageError: There is nothing to quantise, or the table lacks a point.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, StandardLayer],
        table: CalibrationTable,
        groups: Sequence[Collection[str]],
        images: Tensor,
        *,
        find_range: FindRange,
        momentum: float = 0.05,
        freeze_after: int = 0,
        average: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self.steps = 0
        self._network, self._layers, self._bits = network, dict(layers), table.weight_bits
        self._blocks = [each for each in _quantised(network, images) if table.precision_of(each.name) == INT8]
        self._find_range, self._average, self._device = find_range, average, images.device
        self._momentum, self._freeze_after = momentum, freeze_after
        self._groups = [tuple(sorted(group)) for group in groups]
        self._group_of = {point: index for index, group in enumerate(self._groups) for point in group}
        self._ranges = [(table.scale(group[0]), table.zero_point(group[0])) for group in self._groups]
        # What makes a tensor is observed; where nothing here does, what reads it is.
        self._makers = {group for point, group in self._group_of.items() if point.endswith(("/y", ":y"))}
        self._observing = False
        self._seen: dict[int, list[Tensor]] = {}
        self._found: dict[int, list[Range]] = {}
        self._undo: list[Callable[[], None]] = []
        self._require_points()

    def _require_points(self) -> None:
        if not self._blocks and not self._layers:
            raise UsageError(
                f"quantization: {type(self._network).__name__} has nothing that could be quantised: no block whose "
                "operator has one in integers, and no convolution. Leave the section out."
            )
        for each in self._blocks:
            for point in each.points.values():
                self._range(point)

    @property
    def frozen(self) -> bool:
        """Whether the scales stay as they are from now on."""
        return self.steps >= self._freeze_after

    @property
    def ranges(self) -> dict[str, Range]:
        """Scale and zero point of every point."""
        return {point: self._ranges[group] for point, group in self._group_of.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"steps": self.steps, "ranges": self.ranges}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; raises ``ValueError`` for one of another network."""
        if state["ranges"].keys() != self._group_of.keys():
            raise ValueError("its scales are those of another network")
        self.steps = int(state["steps"])
        self._ranges = [
            (float(state["ranges"][group[0]][0]), int(state["ranges"][group[0]][1])) for group in self._groups
        ]

    # ------------------------------------------------------------ in the context

    def __enter__(self) -> FakeQuantization:
        """Exchange what computes in floats."""
        for each in self._blocks:
            assert isinstance(each.block, nn.Module)
            self._undo.append(replace_attribute(each.block, "compute", partial(self._compute, each)))
            for gate in each.gates.values():
                self._undo.append(gate.register_forward_pre_hook(partial(self._before_gate, f"{each.name}/x")).remove)
        for node, layer in self._layers.items():
            self._undo.append(replace_attribute(layer.convolution, "forward", partial(self._convolve, node, layer)))
            if layer.norm is not None:
                self._undo.append(replace_attribute(layer.norm, "forward", _as_it_is))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put back what computes in floats."""
        while self._undo:
            self._undo.pop()()

    def observe(self) -> None:
        """Observe what follows, until :meth:`end_part` or :meth:`update`; without effect once the scales are frozen."""
        self._observing = not self.frozen

    def end_part(self) -> None:
        """Find the ranges of a part of a batch."""
        self._observing = False
        for group, values in self._seen.items():
            joined = torch.cat(values)
            if not self._ranges[group][1]:
                joined = joined.clamp_min(0)  # A ReLU follows, or has been.
            found: Range | None = None
            if not torch.isfinite(joined).all():
                found = (math.nan, 0)  # For all processes to see.
            elif joined.numel():
                found = self._find_range(joined)
            if found is not None:
                self._found.setdefault(group, []).append(found)
        self._seen = {}

    def update(self) -> None:
        """End an iteration: move every scale towards what its parts, on all processes, found.

        Raises:
            NotFiniteError: A tensor was NaN or infinite; the message names it.
        """
        if self.frozen:
            return
        sums = [[0.0, 0.0, 0.0] for _ in self._groups]
        for group, found in self._found.items():
            scales, offsets = zip(*((scale, scale * zero_point) for scale, zero_point in found), strict=True)
            sums[group] = [sum(scales), sum(offsets), float(len(found))]
        means = self._average(torch.tensor(sums, dtype=torch.float64, device=self._device)).tolist()
        # In the order of the pass: what follows from a value that is not finite is not finite either.
        order = [*self._found, *(group for group in range(len(sums)) if group not in self._found)]
        self._found = {}
        for group in order:
            scale, offset, count = means[group]
            if not math.isfinite(scale):
                raise NotFiniteError(f"What is to be quantised at {self._groups[group][0]} is NaN or infinite.")
            if count:
                self._ranges[group] = self._moved(self._ranges[group], scale / count, offset / count)
        self.steps += 1

    def _moved(self, old: Range, scale: float, offset: float) -> Range:
        moved = old[0] + self._momentum * (scale - old[0])
        start = old[0] * old[1]
        return moved, min(max(round((start + self._momentum * (offset - start)) / moved), 0), integers.ACTIVATION_LIMIT)

    # ------------------------------------------------------------ what is exchanged

    def _range(self, point: str) -> Range:
        if point not in self._group_of:
            raise UsageError(f"The calibration table has no scale of {point}: calibrate this network again.")
        return self._ranges[self._group_of[point]]

    def _see(self, point: str, values: Tensor) -> None:
        group = self._group_of[point]
        if self._observing and (group not in self._makers or not point.endswith(("/x", ":x"))):
            self._seen.setdefault(group, []).append(values.detach().reshape(-1).float().cpu())

    def _rounded(self, point: str, x: Tensor) -> Tensor:
        scale, zero_point = self._range(point)
        whole = integers.round_half_even(x / _float32(scale)) + zero_point
        return (whole.clamp(0, integers.ACTIVATION_LIMIT) - zero_point) * _float32(scale)

    def _before_gate(self, point: str, gate: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._rounded(point, inputs[0]), *inputs[1:])

    def _compute(self, each: _Block, *inputs: Tensor, **masks: Tensor) -> Tensor:
        call, points, quantization = each.block.lower(*map(_shape, inputs)), each.points, each.spec.quantization
        assert quantization is not None
        activations = [item.permute(0, 2, 3, 1) if call.channels_last and item.ndim == 4 else item for item in inputs]
        values = _assembled(each, activations, masks, call.tensors)
        if self._observing:
            self._see(points["x"], values[0])
            with torch.no_grad():
                for name, seen in quantization.observe(values, call.attributes).items():
                    self._see(points[name], seen)
        scales = {name: self._range(point)[0] for name, point in points.items()}
        if not torch.is_grad_enabled():
            # Sums of products beyond 2^24, which single precision rounds, are then what integers make of them.
            values[0] = values[0].double()
        y = quantization.simulate(values, call.attributes, scales, self._bits).to(inputs[0].dtype)
        return y.permute(0, 3, 1, 2) if call.channels_last and y.ndim == 4 else y

    def _convolve(self, node: str, layer: StandardLayer, x: Tensor) -> Tensor:
        """A convolution between DequantizeLinear and QuantizeLinear, as runtimes compute it: in integers."""
        convolution, (of_x, of_y) = layer.convolution, (f"{node}:x", f"{node}:y")
        weight, bias = convolution.weight, convolution.bias
        if layer.norm is not None:
            weight, bias = fold_batch_norm(convolution, layer.norm)
        self._see(of_x, x)
        scale, zero_point = self._range(of_x)
        wide = torch.float32 if torch.is_grad_enabled() else torch.float64
        whole = (integers.round_half_even(x / _float32(scale)) + zero_point).clamp(0, integers.ACTIVATION_LIMIT)
        least = None if bias is None else integers.least_scales(bias, _float32(scale))
        scales = integers.weight_scales(weight, self._bits, least)
        unit = _float32(scale) * scales
        sums: Tensor = convolution._conv_forward(
            (whole - zero_point).to(wide), integers.quantize_weight(weight, scales, self._bits).to(wide), None
        ).movedim(1, -1)
        biases = torch.zeros_like(unit) if bias is None else integers.round_half_even(bias.double() / unit.double())
        if of_y not in self._group_of:
            real: Tensor = ((sums + biases) * unit).to(x.dtype).movedim(-1, 1)
            return real
        if self._observing:
            self._see(of_y, (sums + biases) * unit)
        scale, zero_point = self._range(of_y)
        rounded = integers.requantise(sums, biases, unit / _float32(scale)) + zero_point
        y: Tensor = (rounded.clamp(0, integers.ACTIVATION_LIMIT) - zero_point) * _float32(scale)
        return y.to(x.dtype).movedim(-1, 1)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


@torch.no_grad()
def _quantised(network: nn.Module, images: Tensor) -> list[_Block]:
    """The dynamic blocks of a network whose operators have ones in integers."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        with Tape(network.eval()) as tape:
            network(images)
        found = []
        for path, block, gates in dynamic_blocks(network):
            if path in tape.calls:
                call = block.lower(*tape.calls[path].inputs)
                spec = None if call.operator is None else operator(call.operator)
                if spec is not None and spec.quantization is not None:
                    found.append(_Block(path, block, gates, spec))
        return found
    finally:
        for module, training in modes:
            module.training = training


def _assembled(
    each: _Block, activations: Sequence[Tensor], masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> list[Tensor]:
    """Inputs of a block's operator, in its order."""
    ports, sources = mask_ports(each.path, each.spec, each.gates), iter(activations)
    values = []
    for port in each.spec.inputs:
        if port.role is Role.ACTIVATION:
            values.append(next(sources))
        elif port.role is Role.MASK:
            values.append(masks[ports[port.name]])
        elif port.name in weights:
            values.append(weights[port.name])
    return values
