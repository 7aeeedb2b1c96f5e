"""A graph in INT8 as TensorRT takes it: bytes between our operators, floats wherever TensorRT computes itself.

TensorRT's own INT8 has a sign and scales that the builder may change, so that what our operators hand each other, bytes
without a sign, must not look like it. In the copy that this module writes, bytes are made by QuantizeBytes, read by our
operators alone, and end in DequantizeBytes. What stands between QuantizeLinear and DequantizeLinear is a float tensor,
not rounded; weights are what their integers stand for. So our operators compute what they compute in the bundle's
graph, to the bit, from bytes that TensorRT's own layers may have left off by a step.

A graph that has no operator of ours on bytes (a static twin, the stages of a network that only exits early) keeps its
integers: QuantizeLinear and DequantizeLinear with a sign, from which TensorRT makes its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from dyndeploy.errors import UsageError
from dyndeploy.graphs.inspect import attach_bodies, drop_unused, group_of, is_dynamic, operator_attributes, reads
from dyndeploy.graphs.passes.shared import add_constant, attributes_of, fresh_name
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.ops import DOMAIN, OPERATORS, Element, Role
from dyndeploy.ops.base import WORD_BYTES, OperatorSpec
from dyndeploy.ops.byte_conversions import DEQUANTIZE, QUANTIZE

Array = npt.NDArray[Any]

KERNELS = "tensorrt"
"""The family of kernels that read and write words of bytes."""

_BYTEWISE = ("MaxPool", "Transpose")
"""Standard operators that give the same on bytes as on what the bytes stand for."""

_SIGNED_LIMIT = 127
"""TensorRT's INT8 is symmetric, [-128, 127] with a zero point of 0."""


def has_bytes(model: onnx.ModelProto) -> bool:
    """Whether a graph computes in INT8 anywhere."""
    return any(node.op_type == "QuantizeLinear" or _byte_operator(node) is not None for node in model.graph.node)


def keeps_integers(model: onnx.ModelProto) -> bool:
    """Whether what a graph has in INT8 is TensorRT's own business: no operator of ours stands on bytes."""
    return has_bytes(model) and not any(_byte_operator(node) for node in model.graph.node)


def with_plugin_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph in INT8 whose bytes TensorRT leaves alone; see the module.

    Blocks that no kernel in integers takes (with a squeeze-and-excitation, or with channels that are no multiple of 4)
    become their form in floats, on bytes as numbers: in half these are exact, and what the block computes is not
    rounded to bytes inside.

    Args:
        model: As :func:`dyndeploy.quantization.quantize_model` writes it, or any other: a graph without bytes is
            returned as it is.

    Raises:
        UsageError: Something reads bytes that has no form here.
    """
    if not has_bytes(model):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    (_Signed if keeps_integers(model) else _Words)(result, model).rewrite()
    drop_unused(result)
    attach_bodies(result, next(entry.version for entry in result.opset_import if not entry.domain))
    return result


def blocks_in_floats(model: onnx.ModelProto, copy: onnx.ModelProto) -> list[str]:
    """Groups of the operators on bytes that became their form in floats, in order.

    Args:
        model: In INT8.
        copy: What :func:`with_plugin_bytes` made of it.
    """
    kinds = {node.name: node.op_type for node in copy.graph.node if is_dynamic(node)}
    changed = [node for node in model.graph.node if _byte_operator(node) and node.name in kinds]
    return list(dict.fromkeys(group_of(node.name) for node in changed if kinds[node.name] != node.op_type))


def as_words(value: Array) -> npt.NDArray[np.int32]:
    """Bytes by four of the last axis as little-endian 32-bit integers; ``ValueError`` where they come to no words."""
    if value.shape[-1] % WORD_BYTES:
        raise ValueError(f"{value.shape[-1]} bytes in a row are no words of {WORD_BYTES}")
    return np.ascontiguousarray(value).view("<i4")


def word_shape(element: Element, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a tensor has in the TensorRT copy: bytes stand in words."""
    return (*shape[:-1], shape[-1] // WORD_BYTES) if element.in_words and shape else shape


def _byte_operator(node: onnx.NodeProto) -> OperatorSpec | None:
    """The operator of a dynamic node that reads or writes bytes; None for all others."""
    spec = OPERATORS.get(node.op_type) if is_dynamic(node) else None
    if spec is None or not any(port.element is Element.UINT8 for port in (*spec.inputs, *spec.outputs)):
        return None
    return spec


class _Rewriting:
    """Nodes of a graph that is written anew, in order."""

    def __init__(self, result: onnx.ModelProto, model: onnx.ModelProto) -> None:
        self.result, self.source = result, model
        self.constants = {item.name: item for item in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self._names = {node.name for node in model.graph.node}
        self._added: dict[str, str] = {}

    def rewrite(self) -> None:
        for node in self.source.graph.node:
            self.write(node)
        graph = self.result.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        made = {name for node in self.nodes for name in node.output}
        kept = [value for value in graph.value_info if value.name in made]
        del graph.value_info[:]
        graph.value_info.extend(value for value in kept if value.type.tensor_type.elem_type != onnx.TensorProto.UINT8)

    def write(self, node: onnx.NodeProto) -> None:
        raise NotImplementedError

    def value(self, name: str) -> Array:
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def constant(self, name: str, value: Any) -> str:
        if name not in self._added:
            self._added[name] = add_constant(self.result, name, np.asarray(value))
        return self._added[name]

    def emit(self, op_type: str, inputs: list[str], output: str, like: onnx.NodeProto, **attributes: Any) -> str:
        name = fresh_name(like.name, op_type, self._names)
        if op_type in OPERATORS:
            attributes = {**attributes, **OPERATORS[op_type].bookkeeping, "domain": DOMAIN}
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def parameters(self, node: onnx.NodeProto) -> tuple[float, int]:
        """Scale and zero point of a QuantizeLinear or DequantizeLinear of activations."""
        zero = int(self.value(node.input[2])) if len(node.input) > 2 and node.input[2] else 0
        return float(self.value(node.input[1])), zero

    def weight(self, node: onnx.NodeProto) -> Array | None:
        """What the integers of a DequantizeLinear stand for, if they are constants."""
        if node.op_type != "DequantizeLinear" or node.input[0] not in self.constants:
            return None
        whole, scale = self.value(node.input[0]), self.value(node.input[1]).astype(np.float32)
        if scale.ndim:
            axis = attributes_of(node).get("axis", 1)
            scale = scale.reshape([-1 if at == axis % whole.ndim else 1 for at in range(whole.ndim)])
        return whole.astype(np.float32) * scale


class _Words(_Rewriting):
    """Writes bytes for plugins.

    A tensor of bytes has up to two forms, which are made where they are first read: itself, for our operators, and
    floats ``scale * (q - zero_point)``.
    """

    def __init__(self, result: onnx.ModelProto, model: onnx.ModelProto) -> None:
        super().__init__(result, model)
        self._shapes = static_shapes(model)
        self._makers: dict[str, onnx.NodeProto] = {}
        self._floats: dict[tuple[str, float, int], str] = {}
        self._units: set[str] = set()  # bytes that an operator in floats gives, as floats of scale 1
        self._bytes: set[str] = set()  # those that exist

    def write(self, node: onnx.NodeProto) -> None:
        spec, weight = _byte_operator(node), self.weight(node)
        if weight is not None:
            self.constant(node.output[0], weight)
        elif spec is not None:
            self._write_operator(node, spec)
        elif node.op_type == "QuantizeLinear":
            self._makers[node.output[0]] = node
        elif node.op_type == "DequantizeLinear":
            self._float(node.input[0], *self.parameters(node), node, node.output[0])
        elif node.op_type in _BYTEWISE and node.input[0] in self._makers:
            self._makers[node.output[0]] = node
        else:
            for name in reads(node):
                if name in self._makers:
                    raise UsageError(
                        f"{node.name}: {node.op_type} reads bytes ({name}), which has no form for TensorRT. Leave what "
                        "it stands behind in FP32."
                    )
            self.nodes.append(node)

    def _write_operator(self, node: onnx.NodeProto, spec: OperatorSpec) -> None:
        written = onnx.NodeProto()
        written.CopyFrom(node)
        makes_bytes = spec.outputs[0].element is Element.UINT8
        if KERNELS in spec.kernels and self._in_words(node, spec):
            for index, port in enumerate(spec.inputs):
                if port.element is Element.UINT8:
                    written.input[index] = self._words(node.input[index], node)
            self.nodes.append(written)
            if makes_bytes:
                self._bytes.add(node.output[0])
        elif spec.standard is not None:
            self._write_standard(node, spec)
        else:
            self._write_in_floats(node, spec)
        if makes_bytes:
            self._makers[node.output[0]] = node

    def _in_words(self, node: onnx.NodeProto, spec: OperatorSpec) -> bool:
        """Whether all bytes of a node, packed weights included, come in whole words."""
        weights = {
            port.name: self.value(name)
            for port, name in zip(spec.inputs, node.input, strict=False)
            if port.role is Role.WEIGHT and name in self.constants
        }
        kernel = spec.kernels[KERNELS]
        packed = weights if kernel.pack is None else kernel.pack(weights, operator_attributes(node))
        rows = [
            packed[port.name].shape
            for port in spec.native_inputs(KERNELS)
            if port.role is Role.WEIGHT and port.element.in_words and port.name in packed
        ]
        ports = (*zip(spec.inputs, node.input, strict=False), *zip(spec.outputs, node.output, strict=True))
        rows += [self._shapes.get(name, (-1,)) for port, name in ports if port.element is Element.UINT8]
        return all(row[-1] > 0 and row[-1] % WORD_BYTES == 0 for row in rows)

    def _write_standard(self, node: onnx.NodeProto, spec: OperatorSpec) -> None:
        """Write an operator that gives bytes as a chain of standard nodes; its y as floats of scale 1."""
        assert spec.standard is not None
        weights = {
            port.name: self.value(name)
            for port, name in zip(spec.inputs, node.input, strict=True)
            if port.role is Role.WEIGHT
        }
        tensor, made = node.input[0], f"{node.output[0]}/float"
        layers = spec.standard(weights, operator_attributes(node))
        for index, layer in enumerate(layers):
            target = made if index == len(layers) - 1 else f"{made}/{index}"
            constants = [self.constant(f"{target}/{name}", value) for name, value in layer.constants.items()]
            tensor = self.emit(layer.op_type, [tensor, *constants], target, node, **layer.attributes)
        self._units.add(node.output[0])

    def _write_in_floats(self, node: onnx.NodeProto, spec: OperatorSpec) -> None:
        """Write the form in floats of an operator, with bytes as numbers."""
        found = [
            (other, other.quantization)
            for other in OPERATORS.values()
            if other.quantization is not None and other.quantization.operator == spec.name
        ]
        if not found or found[0][1].restore is None:
            raise UsageError(f"{node.name}: {node.op_type} has neither a TensorRT plugin nor a form in floats.")
        form, how = found[0]
        assert how.restore is not None
        given = dict(zip((port.name for port in spec.inputs), node.input, strict=False))
        weights = {
            port.name: self.value(given[port.name])
            for port in spec.inputs
            if port.role is Role.WEIGHT and given.get(port.name)
        }
        restored = how.restore(weights)
        inputs = []
        for port in form.inputs:
            if port.role is Role.WEIGHT:
                inputs.append(self.constant(f"{node.name}/{port.name}/float", restored[port.name].astype(np.float32)))
            elif port.role is Role.MASK:
                inputs.append(given[port.name])
            else:
                inputs.append(self._float(given[port.name], 1.0, 0, node))
        target = f"{node.output[0]}/float" if how.output else node.output[0]
        own = operator_attributes(node)
        written = helper.make_node(
            form.name,
            inputs,
            [target],
            name=node.name,
            domain=DOMAIN,
            **{attribute.name: own[attribute.name] for attribute in form.attributes},
            **form.bookkeeping,
        )
        self.nodes.append(written)
        if how.output:
            self._units.add(node.output[0])

    # ------------------------------------------------------------ the two forms

    def _words(self, tensor: str, like: onnx.NodeProto) -> str:
        """Name of a tensor's bytes, for an operator of ours."""
        if tensor not in self._bytes:
            maker = self._makers.get(tensor)
            if maker is None:
                raise UsageError(f"{like.name} reads bytes that the graph is given ({tensor}): TensorRT has no such.")
            scale, zero = self._scale_of(tensor)
            if zero:
                raise UsageError(f"{like.name} reads bytes with the zero point {zero}, and takes 0.")
            # What is below 0 or above 255 is cut off here.
            if tensor in self._units:
                source = f"{tensor}/float"
            elif maker.op_type == "QuantizeLinear":
                source = maker.input[0]
            else:
                source = self._float(tensor, scale, 0, maker)
            self.emit(QUANTIZE, [source], tensor, maker, scale=scale)
            self._bytes.add(tensor)
        return tensor

    def _scale_of(self, tensor: str) -> tuple[float, int]:
        """Scale and zero point of bytes that exist as floats; 1 where an operator in floats gave them."""
        maker = self._makers[tensor]
        while maker.op_type in _BYTEWISE:
            tensor = maker.input[0]
            maker = self._makers[tensor]
        return self.parameters(maker) if maker.op_type == "QuantizeLinear" else (1.0, 0)

    def _float(self, tensor: str, scale: float, zero: int, like: onnx.NodeProto, target: str | None = None) -> str:
        """Name of ``scale * (q - zero)`` for bytes q, unrounded; ``target`` where it has to be that."""
        key = (tensor, scale, zero)
        if key in self._floats:
            return self._floats[key] if target is None else self.emit("Identity", [self._floats[key]], target, like)
        if tensor not in self._makers:
            raise UsageError(f"{like.name} reads bytes that the graph is given ({tensor}): TensorRT has no such.")
        maker = self._makers[tensor]
        made = target or f"{tensor}/times_{scale:g}"
        if maker.op_type == "QuantizeLinear" and self.parameters(maker) == (scale, zero):
            # Of bytes with a zero point of 0 nothing is negative.
            self.emit("Identity" if zero else "Relu", [maker.input[0]], made, maker)
        elif maker.op_type in _BYTEWISE:
            moved = onnx.NodeProto()
            moved.CopyFrom(maker)
            moved.input[0], moved.output[0] = self._float(maker.input[0], scale, zero, maker), made
            moved.name = fresh_name(maker.name, maker.op_type, self._names)
            self.nodes.append(moved)
        elif zero:
            raise UsageError(f"{like.name} reads {tensor} with the zero point {zero}, and its bytes have 0.")
        elif tensor in self._bytes:
            self.emit(DEQUANTIZE, [tensor], made, maker, scale=scale)
        elif tensor in self._units and scale == 1:
            self.emit("Clip", [f"{tensor}/float", *self._limits()], made, maker)
        else:
            own, _ = self._scale_of(tensor)
            factor = self.constant(f"{made}/factor", np.float32(scale / own))
            self.emit("Mul", [self._float(tensor, own, 0, like), factor], made, maker)
        self._floats[key] = made
        return made

    def _limits(self) -> list[str]:
        return [
            self.constant("dyndeploy/least_byte", np.float32(0)),
            self.constant("dyndeploy/most_byte", np.float32(255)),
        ]


class _Signed(_Rewriting):
    """Writes QuantizeLinear and DequantizeLinear as TensorRT takes them: with a sign, symmetric.

    A scale becomes the one whose 127 steps reach as far as the bytes did, so that bytes without a sign lose one bit.
    Weights come as floats that are quantised in the graph, which every release reads.
    """

    def __init__(self, result: onnx.ModelProto, model: onnx.ModelProto) -> None:
        super().__init__(result, model)
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._sources: dict[str, str] = {}  # what bytes are made from, by their name
        self._scales: dict[str, str] = {}
        self._floats: dict[str, str] = {}

    def write(self, node: onnx.NodeProto) -> None:
        weight = self.weight(node)
        if weight is not None:
            self._write_weight(node, weight)
        elif node.op_type == "QuantizeLinear":
            self._write_quantize(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantised(node.input[0], node, node.output[0])
        elif node.op_type in _BYTEWISE and node.input[0] in self._sources:
            # TensorRT has no poolings of bytes: it moves them between the two by itself.
            moved = onnx.NodeProto()
            moved.CopyFrom(node)
            moved.input[0], moved.output[0] = self._dequantised(node.input[0], node), f"{node.output[0]}/float"
            self.nodes.append(moved)
            self._sources[node.output[0]] = moved.output[0]
            self._scales[node.output[0]] = self._scales[node.input[0]]
        else:
            self.nodes.append(node)

    def _write_quantize(self, node: onnx.NodeProto) -> None:
        scale, zero = self.parameters(node)
        source, target = node.input[0], node.output[0]
        maker = self._producers.get(source)
        if not zero and (maker is None or maker.op_type != "Relu"):
            # Bytes without a sign cut off what is negative.
            source = self.emit("Relu", [source], f"{target}/not_negative", node)
        reach = np.float32(scale) * np.float32(max(zero, 255 - zero))
        self._sources[target] = source
        self._scales[target] = self.constant(f"{target}/scale", reach / np.float32(_SIGNED_LIMIT))

    def _dequantised(self, tensor: str, like: onnx.NodeProto, target: str | None = None) -> str:
        if tensor not in self._floats:
            zero = self.constant("dyndeploy/signed_zero", np.int8(0))
            parameters = [self._scales[tensor], zero]
            whole = self.emit("QuantizeLinear", [self._sources[tensor], *parameters], f"{tensor}/int8", like)
            made = target or f"{tensor}/dequantised"
            self._floats[tensor] = self.emit("DequantizeLinear", [whole, *parameters], made, like)
            return made
        return self._floats[tensor] if target is None else self.emit("Identity", [self._floats[tensor]], target, like)

    def _write_weight(self, node: onnx.NodeProto, weight: Array) -> None:
        """Write floats that are quantised in the graph to what they were; biases stay floats."""
        if self.value(node.input[0]).dtype != np.int8:
            self.constant(node.output[0], weight)
            return
        name, scale = node.output[0], self.value(node.input[1]).astype(np.float32)
        given = {"axis": attributes_of(node).get("axis", 1)} if scale.ndim else {}
        steps = self.constant(f"{name}/scale", scale)
        zero = self.constant(f"{name}/zero_point", np.zeros(scale.shape, np.int8))
        floats = self.constant(f"{name}/float", weight)
        whole = self.emit("QuantizeLinear", [floats, steps, zero], f"{name}/int8", node, **given)
        self.emit("DequantizeLinear", [whole, steps, zero], name, node, **given)
