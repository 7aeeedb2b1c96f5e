"""From a graph in FP32 and a calibration table to a graph in INT8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from dyndeploy.errors import UsageError
from dyndeploy.graphs.inspect import (
    all_nodes,
    attach_bodies,
    drop_unused,
    group_of,
    is_dynamic,
    operator_attributes,
    reads,
)
from dyndeploy.graphs.passes.shared import add_constant, fresh_name
from dyndeploy.graphs.rules import check_structure
from dyndeploy.graphs.tensorrt import float_nodes, in_head
from dyndeploy.ops import DOMAIN, OPERATORS, Role
from dyndeploy.ops._quantized import BIAS_LIMIT, least_scales, quantize_weight, weight_scales
from dyndeploy.ops.base import OperatorSpec, Quantization
from dyndeploy.ops.quantized_image_convolution import from_layers
from dyndeploy.quantization.table import INT8, CalibrationTable

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = npt.NDArray[Any]

INTEGER = "/uint8"
"""Ends the names of quantised tensors."""
_REAL = "/real"
_ADVICE = "Calibrate again with 'dyndeploy quantize'."
_CHANNELS_LAST = [0, 2, 3, 1]
_BYTEWISE = ("MaxPool", "Transpose")
"""Standard operators that give the same on bytes as on what the bytes stand for."""


@dataclass(frozen=True)
class _Scale:
    """``real = scale * (q - zero_point)``; ``pinned``: a dynamic operator reads or writes the tensor."""

    scale: float
    zero_point: int
    point: str
    pinned: bool = False

    def equals(self, other: _Scale) -> bool:
        return np.float32(self.scale) == np.float32(other.scale) and self.zero_point == other.zero_point


def quantize_model(model: onnx.ModelProto, table: CalibrationTable) -> onnx.ModelProto:
    """Return a copy of a graph that computes in INT8 where its calibration table says so.

    Every dynamic operator that has a form in integers, in a block that the table does not leave in FP32, becomes that
    form; its neighbours hand it bytes. A convolution of images that leads to one, with what stands between, becomes one
    operator. Other standard convolutions with constant weights, and sums between them, stand between DequantizeLinear
    and QuantizeLinear, from which a runtime makes its own integer operators. Maskers keep deciding in FP32; heads,
    branches of blocks that are skipped as a whole, and what else there is, stay FP32. Transposes and poolings between
    quantised operators work on bytes.

    Args:
        model: A graph in FP32, as the exporter writes it; it is not changed.
        table: Made for these weights.

    Returns:
        A graph with the same inputs, outputs and masks.

    Raises:
        UsageError: A table of another network, a point that it lacks, or scales that contradict each other or leave
            the range of the arithmetic.
    """
    table.check(model)
    return _quantized(model, table)


def quantized_with(model: onnx.ModelProto, table: CalibrationTable) -> onnx.ModelProto:
    """As :func:`quantize_model`, for a table whose scales were put together for this graph: its weights are not asked.

    Raises:
        UsageError: As :func:`quantize_model`.
    """
    return _quantized(model, table)


def runtime_integers(model: onnx.ModelProto) -> Iterator[str]:
    """Names of the standard operators of a graph in INT8 that a runtime computes in integers of its own."""
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        standard = node.op_type in ("Conv", "Add") and not node.domain and node.output[0].endswith(_REAL)
        if standard and all(made[name].op_type == "DequantizeLinear" for name in node.input if name in made):
            yield node.name


def standard_layers(model: onnx.ModelProto, *, heads: bool = False) -> Iterator[tuple[onnx.NodeProto, str, str]]:
    """Standard convolutions that can be quantised: the node, and the names of its input and output.

    The output is that of the Relu behind it where nothing else reads the convolution's. Weights are constants. What
    decides, or computes with the vectors behind the last map, stays in floats.

    Args:
        model: A graph in FP32.
        heads: Whether those behind the last block count as well: of a stage without blocks that is all of it.
    """
    weights, view, floats = {item.name for item in model.graph.initializer}, _View(model.graph), float_nodes(model)
    for node in model.graph.node:
        constant = all(name in weights for name in node.input[1:] if name)
        kept = node.name in floats or (in_head(node.name) and not heads)
        if node.op_type == "Conv" and not node.domain and constant and not kept:
            yield node, node.input[0], view.behind_relu(node.output[0])


class _View:
    """Who makes and who reads the tensors of one graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.outputs = {value.name for value in graph.output}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in reads(node):
                self.readers.setdefault(name, []).append(node)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def behind_relu(self, name: str) -> str:
        reader = self.only_reader(name)
        return reader.output[0] if reader is not None and reader.op_type == "Relu" else name


def _quantized(model: onnx.ModelProto, table: CalibrationTable) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {item.name: item for item in result.graph.initializer}
    shared = _Shared(result, table, constants, {node.name for node in all_nodes(result.graph)}, {})
    _Graph(result.graph, shared).rewrite()
    drop_unused(result)
    opset = {entry.domain: entry.version for entry in result.opset_import}.get("", 0)
    attach_bodies(result, opset)
    check_structure(result, "Quantising broke the graph")
    return result


@dataclass(frozen=True)
class _Shared:
    """The model as it is rewritten: its constants, names of its nodes, and the constants that were added."""

    model: onnx.ModelProto
    table: CalibrationTable
    constants: Mapping[str, onnx.TensorProto]
    names: set[str]
    added: dict[str, str]

    def constant(self, name: str, value: Array) -> str:
        """Add a constant; one name is added once."""
        if name not in self.added:
            self.added[name] = add_constant(self.model, name, value)
        return self.added[name]

    def value(self, name: str, node: onnx.NodeProto) -> Array:
        if name not in self.constants:
            raise UsageError(
                f"{node.name} reads weights that the graph computes ({name}): only constants can be quantised. Leave "
                f"the block {group_of(node.name)} in FP32."
            )
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def scale(self, point: str, block: str, *, pinned: bool) -> _Scale:
        if point not in self.table.tensors:
            raise UsageError(
                f"The calibration table has no scale for {point}, and leaves the block {block} in INT8. {_ADVICE}"
            )
        found = _Scale(self.table.scale(point), self.table.zero_point(point), point, pinned)
        if not np.isfinite(found.scale) or np.float32(found.scale) <= 0:
            raise UsageError(f"The calibration table has the scale {found.scale:g} for {point}. {_ADVICE}")
        if pinned and found.zero_point:
            raise UsageError(
                f"The calibration table has the zero point {found.zero_point} for {point}, and dynamic operators take "
                f"0. {_ADVICE}"
            )
        return found

    def knows(self, node: onnx.NodeProto) -> bool:
        """Whether a standard layer was calibrated; one that is no head has to be."""
        return not in_head(node.name) or f"{node.name}:x" in self.table.tensors

    def integer(self, node: onnx.NodeProto) -> bool:
        return self.table.precision_of(group_of(node.name)) == INT8


class _Graph:
    """Rewrites the main graph of a model.

    Attributes:
        scales: Of every tensor that is quantised, by the name of the float tensor.
        bytes: Names of the quantised tensors by the name of the float tensor, as far as they are made.
        only_bytes: Float tensors that exist as bytes and in no other way; whoever reads one makes it (:meth:`_float`).
        restored: Float tensors that were made from their bytes.
    """

    def __init__(self, graph: onnx.GraphProto, shared: _Shared) -> None:
        self._graph, self._shared, self._view = graph, shared, _View(graph)
        self._dynamic = self._dynamic_nodes()
        self._convolutions = {
            node.output[0]
            for node, _, _ in standard_layers(shared.model, heads=True)
            if shared.integer(node) and shared.knows(node)
        }
        self.scales: dict[str, _Scale] = {}
        self.bytes: dict[str, str] = {}
        self.only_bytes: set[str] = set()
        self.restored: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        # What stands between a convolution or sum and its QuantizeLinear, by the names that the tensors had.
        self._real: dict[str, str] = {}
        # First outputs of nodes that an operator written before computes along.
        self._absorbed: set[str] = set()

    # ------------------------------------------------------------ what is quantised

    def _dynamic_nodes(self) -> dict[str, Quantization]:
        """How the dynamic nodes that become integer operators do so, by the name of their first output."""
        found: dict[str, Quantization] = {}
        bytes_read: set[tuple[str, str]] = set()
        for node in self._graph.node:
            spec = _quantizable(node)
            if spec is not None and spec.quantization is not None and self._shared.integer(node):
                if spec.quantization.output:
                    bytes_read.add((group_of(node.name), node.input[0]))
                found[node.output[0]] = spec.quantization
        # A masker reads bytes where its block does.
        nodes = {node.output[0]: node for node in self._graph.node if node.output}
        return {
            name: how
            for name, how in found.items()
            if how.output or (group_of(nodes[name].name), nodes[name].input[0]) in bytes_read
        }

    def _collect_scales(self) -> None:
        shared = self._shared
        for node in self._graph.node:
            how = self._dynamic.get(node.output[0]) if node.output else None
            if how is None or not how.output:
                continue
            block = group_of(node.name)
            x, y = (shared.scale(f"{block}/{point}", block, pinned=True) for point in ("x", "y"))
            if how.shared and not x.equals(y):
                raise UsageError(
                    f"The calibration table has different scales for {block}/x ({x.scale:g}) and {block}/y "
                    f"({y.scale:g}), and the block copies what it skips. {_ADVICE}"
                )
            self._set(node.input[0], x)
            self._set(node.output[0], y)
        for node in self._graph.node:
            if node.output and node.output[0] in self._convolutions:
                block = group_of(node.name)
                for point, tensor in (("x", node.input[0]), ("y", self._view.behind_relu(node.output[0]))):
                    pinned = tensor in self.scales and self.scales[tensor].pinned
                    if not pinned and not self._follows(tensor, point):
                        self._set(tensor, shared.scale(f"{node.name}:{point}", block, pinned=False))
        self._spread()

    def _follows(self, tensor: str, point: str) -> bool:
        """Whether a tensor takes its scale from a dynamic operator, through operators that work on bytes."""
        while True:
            if point == "x":
                node = self._view.producers.get(tensor)
                tensor = node.input[0] if node is not None and node.op_type in _BYTEWISE else ""
            else:
                node = self._view.only_reader(tensor)
                tensor = node.output[0] if node is not None and node.op_type in _BYTEWISE else ""
            if not tensor:
                return False
            if tensor in self.scales and self.scales[tensor].pinned:
                return True

    def _set(self, tensor: str, scale: _Scale) -> None:
        known = self.scales.setdefault(tensor, scale)
        if not known.equals(scale):
            raise UsageError(
                f"The calibration table has different scales for {known.point} ({known.scale:g}) and {scale.point} "
                f"({scale.scale:g}), which are one tensor. {_ADVICE}"
            )

    def _spread(self) -> None:
        """Let operators that work on bytes have one scale on both sides: a dynamic operator's, else the reader's."""
        bytewise = [node for node in self._graph.node if node.op_type in _BYTEWISE and not node.domain]
        for node in reversed(bytewise):
            given = self.scales.get(node.output[0])
            known = self.scales.get(node.input[0])
            if given is None or self._view.only_reader(node.input[0]) is None or (known is not None and known.pinned):
                continue
            self.scales[node.input[0]] = given
        for node in bytewise:
            given, known = self.scales.get(node.input[0]), self.scales.get(node.output[0])
            if given is not None and (known is None or (given.pinned and not known.pinned)):
                self.scales[node.output[0]] = given

    def _takes_bytes(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether a reader of a tensor reads its bytes."""
        if not node.output:
            return False
        first = node.output[0]
        if first in self._dynamic or first in self._convolutions:
            return node.input[0] == name and name not in node.input[1:]
        if node.op_type in _BYTEWISE and self._one_scale(node):
            return self._only_bytes_read(first)
        return False

    def _only_bytes_read(self, name: str) -> bool:
        readers = self._view.readers.get(name, [])
        takes = bool(readers) and all(self._takes_bytes(reader, name) for reader in readers)
        return takes and name not in self._view.outputs

    def _one_scale(self, node: onnx.NodeProto) -> bool:
        before, behind = self.scales.get(node.input[0]), self.scales.get(node.output[0])
        return before is not None and behind is not None and before.equals(behind)

    # ------------------------------------------------------------ writing

    def rewrite(self) -> None:
        """Replace the nodes of the graph."""
        self._collect_scales()
        for node in list(self._graph.node):
            self._write(node)
        for value in self._graph.output:
            self._float(value.name)
        needed = {value.name for value in self._graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(reads(node))
                kept.append(node)
        del self._graph.node[:]
        self._graph.node.extend(reversed(kept))
        made = {name for node in kept for name in node.output}
        described = [value for value in self._graph.value_info if value.name in made]
        del self._graph.value_info[:]
        self._graph.value_info.extend(described)

    def _write(self, node: onnx.NodeProto) -> None:
        first = node.output[0] if node.output else ""
        if first in self._absorbed:
            return
        if first in self._dynamic:
            self._write_integer(node, self._dynamic[first])
        elif first in self._convolutions:
            if not self._write_image_convolution(node):
                self._write_convolution(node)
        elif node.op_type in _BYTEWISE and not node.domain and self._works_on_bytes(node):
            self._write_bytewise(node)
        elif self._is_sum(node):
            self._write_between(node, [self._dequantised(name) for name in node.input])
        elif node.op_type == "Relu" and node.input[0] in self._real:
            self._finish(node)
        else:
            for name in dict.fromkeys(reads(node)):
                self._float(name)
            self._nodes.append(node)

    def _write_integer(self, node: onnx.NodeProto, how: Quantization) -> None:
        fp32, spec = OPERATORS[node.op_type], OPERATORS[how.operator]
        block, shared = group_of(node.name), self._shared
        given = dict(zip((port.name for port in fp32.inputs), node.input, strict=False))
        weights = {
            port.name: shared.value(given[port.name], node)
            for port in fp32.inputs
            if port.role is Role.WEIGHT and given.get(port.name)
        }
        scales = {"x": self.scales[node.input[0]].scale}
        if how.output:
            scales["y"] = self.scales[node.output[0]].scale
            scales |= {point: shared.scale(f"{block}/{point}", block, pinned=True).scale for point in how.points}
        try:
            constants = how.convert(weights, scales, shared.table.weight_bits)
        except UsageError as error:
            raise UsageError(f"{block} cannot be quantised: {error}") from error
        inputs = []
        for port in spec.inputs:
            if port.role is Role.WEIGHT:
                name = f"{node.name}/{port.name}"
                inputs.append(shared.constant(name, constants[port.name]) if port.name in constants else "")
            elif port.role is Role.MASK:
                inputs.append(given[port.name])
                self._float(given[port.name])
            else:
                inputs.append(self._bytes(given[port.name]))
        while not inputs[-1]:
            inputs.pop()
        written = helper.make_node(
            spec.name,
            inputs,
            [f"{name}{INTEGER}" if how.output else name for name in node.output],
            name=self._fresh(node, spec.name),
            domain=node.domain,
            **_attributes(node, spec),
        )
        self._nodes.append(written)
        if how.output:
            self.bytes[node.output[0]] = written.output[0]
            self.only_bytes.add(node.output[0])

    def _write_image_convolution(self, node: onnx.NodeProto) -> bool:
        """Write one operator for a convolution of float images and what follows it up to a dynamic operator.

        Returns:
            Whether there is an operator for these layers.
        """
        shared, table, x = self._shared, self._shared.table, node.input[0]
        behind = self._behind(node)
        if x in self.bytes or x in self.only_bytes or not table.per_channel or behind is None:
            return False
        absorbed, pooling, target = behind
        bias = shared.value(node.input[2], node) if len(node.input) > 2 and node.input[2] else None
        try:
            found = from_layers(
                shared.value(node.input[1], node),
                bias,
                _plain_attributes(node),
                None if pooling is None else _plain_attributes(pooling),
                scales=(self.scales[x].scale, self.scales[target].scale),
                zero_point=self.scales[x].zero_point,
                weight_bits=table.weight_bits,
            )
        except UsageError as error:
            raise UsageError(f"{node.name} cannot be quantised: {error}") from error
        if found is None:
            return False
        spec, constants, attributes = found
        self._float(x)
        weights = [shared.constant(f"{node.name}/{name}", value) for name, value in constants.items()]
        self._nodes.append(
            helper.make_node(
                spec.name,
                [x, *weights],
                [f"{target}{INTEGER}"],
                name=self._fresh(node, spec.name),
                domain=DOMAIN,
                **attributes,
                **spec.bookkeeping,
            )
        )
        self.bytes[target] = self._nodes[-1].output[0]
        self.only_bytes.add(target)
        self._absorbed |= absorbed
        return True

    def _behind(self, node: onnx.NodeProto) -> tuple[set[str], onnx.NodeProto | None, str] | None:
        """What follows a convolution, up to the tensor (N, H, W, C) that a dynamic operator reads as bytes.

        Returns:
            Outputs of the nodes, the MaxPool among them, and the tensor; None where something else follows.
        """
        absorbed: set[str] = set()
        pooling = None
        tensor = node.output[0]
        while True:
            reader = self._view.only_reader(tensor)
            if reader is None or reader.domain or len(reader.output) != 1:
                return None
            absorbed.add(reader.output[0])
            tensor = reader.output[0]
            if reader.op_type == "MaxPool" and pooling is None:
                pooling = reader
            elif reader.op_type == "Transpose":
                found = self.scales.get(tensor)
                last = _plain_attributes(reader).get("perm") == _CHANNELS_LAST
                return (absorbed, pooling, tensor) if last and found is not None and found.pinned else None
            elif reader.op_type != "Relu":
                return None

    def _write_convolution(self, node: onnx.NodeProto) -> None:
        import torch

        shared, table = self._shared, self._shared.table
        x = self._dequantised(node.input[0])
        weight = shared.value(node.input[1], node)
        # One scale for all channels is one for a single row.
        rows = torch.from_numpy(weight.reshape(len(weight) if table.per_channel else 1, -1).astype(np.float32))
        source, bias = float(np.float32(self.scales[node.input[0]].scale)), None
        least = torch.zeros(len(rows))
        if len(node.input) > 2 and node.input[2]:
            bias = shared.value(node.input[2], node).astype(np.float64)
            units = least_scales(torch.from_numpy(bias), source).float()
            least = units if table.per_channel else units.max().reshape(1)
        steps = weight_scales(rows, table.weight_bits, least)
        quantised = quantize_weight(rows, steps, table.weight_bits).numpy().astype(np.int8).reshape(weight.shape)
        axis = {"axis": 0} if table.per_channel else {}
        step = steps.numpy().reshape(-1 if table.per_channel else ())
        w = self._emit(
            "DequantizeLinear",
            [shared.constant(f"{node.name}/w", quantised), shared.constant(f"{node.name}/w_scale", step)],
            f"{node.name}/w{_REAL}",
            node,
            axis,
        )
        inputs = [x, w]
        if bias is not None:
            unit = np.asarray(np.float32(source) * step, np.float32)
            whole = np.clip(np.rint(bias / unit.astype(np.float64)), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
            constants = [shared.constant(f"{node.name}/b", whole), shared.constant(f"{node.name}/b_scale", unit)]
            inputs.append(self._emit("DequantizeLinear", constants, f"{node.name}/b{_REAL}", node, axis))
        self._write_between(node, inputs)

    def _write_between(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        """Write a node that reads dequantised tensors and, with the Relu behind it, gives a quantised one."""
        written = onnx.NodeProto()
        written.CopyFrom(node)
        del written.input[:]
        written.input.extend(inputs)
        self._finish(written)

    def _finish(self, node: onnx.NodeProto) -> None:
        """Append a node; quantise what it gives, unless a Relu comes first."""
        written = onnx.NodeProto()
        written.CopyFrom(node)
        written.input[:] = [name if name in self.bytes else self._real.get(name, name) for name in node.input]
        tensor = node.output[0]
        written.output[0] = self._real[tensor] = f"{tensor}{_REAL}"
        self._nodes.append(written)
        if self._view.behind_relu(tensor) == tensor:
            self.bytes[tensor] = self._quantise(written.output[0], tensor, node)
            self.only_bytes.add(tensor)

    def _is_sum(self, node: onnx.NodeProto) -> bool:
        """Whether a node adds two tensors that exist as bytes, and gives one that somebody reads as bytes."""
        if node.op_type != "Add" or node.domain:
            return False
        output = self._view.behind_relu(node.output[0])
        return output in self.scales and all(name in self.bytes for name in node.input)

    def _works_on_bytes(self, node: onnx.NodeProto) -> bool:
        """Whether a Transpose or MaxPool reads bytes: they are there, or nothing but bytes is read behind it."""
        if len(node.output) != 1 or not self._one_scale(node):
            return False
        return node.input[0] in self.only_bytes or (
            self._only_bytes_read(node.output[0]) and self._view.only_reader(node.input[0]) is not None
        )

    def _write_bytewise(self, node: onnx.NodeProto) -> None:
        source, target = self._bytes(node.input[0]), node.output[0]
        written = onnx.NodeProto()
        written.CopyFrom(node)
        written.input[0], written.output[0] = source, f"{target}{INTEGER}"
        self._nodes.append(written)
        self.bytes[target] = written.output[0]
        self.only_bytes.add(target)

    # ------------------------------------------------------------ tensors

    def _bytes(self, tensor: str) -> str:
        """Name of a tensor's bytes; they are made where they do not exist."""
        if tensor not in self.bytes:
            producer, source = self._view.producers.get(tensor), tensor
            # Bytes with a zero point of 0 stand for nothing negative: the Relu is in them.
            skipped = not self.scales[tensor].zero_point and self._only_bytes_read(tensor)
            if skipped and producer is not None and producer.op_type == "Relu" and not producer.domain:
                source = producer.input[0]
            self._float(source)
            self.bytes[tensor] = self._quantise(source, tensor, producer)
        return self.bytes[tensor]

    def _quantise(self, source: str, tensor: str, like: onnx.NodeProto | None) -> str:
        return self._emit("QuantizeLinear", [source, *self._parameters(tensor)], f"{tensor}{INTEGER}", like)

    def _float(self, tensor: str) -> None:
        """Make a float tensor that exists as bytes only."""
        if tensor in self.only_bytes:
            self.only_bytes.discard(tensor)
            self._dequantise(tensor, tensor)

    def _dequantised(self, tensor: str) -> str:
        """Name of what a tensor's bytes stand for."""
        self._bytes(tensor)
        self._float(tensor)
        if tensor in self.restored:
            return tensor
        # The tensor itself is not rounded.
        target = f"{tensor}/dequantised"
        return target if target in self.restored else self._dequantise(tensor, target)

    def _dequantise(self, tensor: str, target: str) -> str:
        self.restored.add(target)
        inputs = [self.bytes[tensor], *self._parameters(tensor)]
        return self._emit("DequantizeLinear", inputs, target, self._view.producers.get(tensor))

    def _parameters(self, tensor: str) -> tuple[str, str]:
        """Names of the constants with a tensor's scale and zero point."""
        found = self.scales[tensor]
        name = f"{found.point}/scale"
        return (
            self._shared.constant(name, np.asarray(found.scale, np.float32)),
            self._shared.constant(f"{found.point}/zero_point", np.asarray(found.zero_point, np.uint8)),
        )

    def _emit(
        self,
        op_type: str,
        inputs: Sequence[str],
        output: str,
        like: onnx.NodeProto | None,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        name = self._fresh(like, op_type)
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=name, **(attributes or {})))
        return output

    def _fresh(self, like: onnx.NodeProto | None, op_type: str) -> str:
        if like is None:
            like = self._graph.node[0]
        return fresh_name(like.name, op_type, self._shared.names)


def _quantizable(node: onnx.NodeProto) -> OperatorSpec | None:
    """The operator of a dynamic node that has a form in integers; None for all others."""
    spec = OPERATORS[node.op_type] if is_dynamic(node) else None
    if spec is None or spec.quantization is None or spec.quantization.operator not in OPERATORS:
        return None
    return spec


def _attributes(node: onnx.NodeProto, spec: OperatorSpec) -> dict[str, Any]:
    """Attributes of the form in integers: those of the node, and the plugin bookkeeping."""
    own = operator_attributes(node)
    return {attribute.name: own[attribute.name] for attribute in spec.attributes} | spec.bookkeeping


def _plain_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
