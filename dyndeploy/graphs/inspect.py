"""Dynamic operators inside an ONNX graph: what a node says, and what stands beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dyndeploy.errors import BundleError
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.base import DOMAIN, Element, OperatorSpec, Shape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import onnx

_SHAPE_CONSTANT = 1024
"""Initialisers up to this size may hold shapes and stay; larger ones are weights, of which the shape suffices."""


def is_dynamic(node: onnx.NodeProto) -> bool:
    """Whether the node is one of our operators."""
    return node.domain == DOMAIN and node.op_type in OPERATORS


def group_of(node_name: str) -> str:
    """Block of a node by its name (``"<block>/..."``), or ``"other"``: also ``"stem"`` and ``"head"``."""
    group, separator, _ = node_name.partition("/")
    return group if separator and group else "other"


def operator_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a dynamic operator node without the plugin bookkeeping."""
    from onnx import helper

    return {
        attribute.name: helper.get_attribute_value(attribute)
        for attribute in node.attribute
        if not attribute.name.startswith("plugin_")
    }


def foreign_operators(
    model: onnx.ModelProto, operators: Mapping[str, OperatorSpec], allowed: Collection[str] | None
) -> list[str]:
    """Operators of the main graph that are neither dynamic nor allowed, sorted.

    Args:
        model: The graph.
        operators: Known dynamic operators.
        allowed: Standard operators that may stand there; None allows all.

    Returns:
        Operator types, those of other domains as ``domain::type``.
    """
    found = set()
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in operators:
            continue
        if node.domain or (allowed is not None and node.op_type not in allowed):
            found.add(f"{node.domain}::{node.op_type}" if node.domain else node.op_type)
    return sorted(found)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of a graph and of the branches inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def static_shapes(
    model: onnx.ModelProto, input_shape: Shape | None = None, *, assume: bool = False
) -> dict[str, Shape]:
    """Shapes of all tensors of the main graph; those behind a dynamic operator come from its own rule.

    Args:
        model: The graph; its weights may be missing.
        input_shape: Shape of the first input; None leaves it as the graph has it.
        assume: Whether an operator of another domain gives what the file says of its outputs and, where it says
            nothing, maps of its first input's size; else nothing is known behind it.

    Returns:
        Shapes by tensor name; a size that is not static is -1.

    Raises:
        BundleError: The sizes contradict each other.
    """
    import onnx
    from onnx import helper

    slim = onnx.ModelProto(ir_version=model.ir_version)
    slim.opset_import.extend(model.opset_import)
    slim.graph.name = model.graph.name
    slim.graph.node.extend(model.graph.node)
    slim.graph.input.extend(model.graph.input)
    if input_shape is None:
        slim.graph.output.extend(model.graph.output)
    else:
        first = slim.graph.input[0]
        kind = first.type.tensor_type.elem_type
        first.CopyFrom(helper.make_tensor_value_info(first.name, kind, input_shape))
        # The declared outputs are those of another input size.
        slim.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in model.graph.output)
    for item in model.graph.initializer:
        if math.prod(item.dims) <= _SHAPE_CONSTANT:
            slim.graph.initializer.append(item)
        else:
            slim.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    dynamic = [node for node in slim.graph.node if is_dynamic(node)]
    foreign = [node for node in slim.graph.node if assume and node.domain and not is_dynamic(node)]
    stated = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    known = {value.name for value in slim.graph.output} if input_shape is None else set()
    if input_shape is None:
        outputs = {name for node in foreign for name in node.output}
        slim.graph.value_info.extend(stated[name] for name in outputs - known if name in stated)
        known |= outputs & set(stated)
    weights = {item.name: tuple(item.dims) for item in model.graph.initializer}
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(slim, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise BundleError(f"The shapes of the graph cannot be inferred: {error}") from error
        shapes = dict(weights)
        for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
            if value.type.tensor_type.HasField("shape"):
                shapes[value.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
                )
        progress = False
        for node in dynamic:
            inputs = [shapes.get(name) for name in node.input]
            if node.output[0] in known or any(shape is None or -1 in shape for shape in inputs):
                continue
            spec = OPERATORS[node.op_type]
            results = spec.output_shapes([s for s in inputs if s is not None], operator_attributes(node))
            for port, output, shape in zip(spec.outputs, node.output, results, strict=True):
                kind = onnx.TensorProto.INT64 if port.element is Element.INDEX else onnx.TensorProto.FLOAT
                shapes[output] = shape
                slim.graph.value_info.append(helper.make_tensor_value_info(output, kind, shape))
                known.add(output)
            progress = True
        # One at a time and the first one first: what stands behind it may be inferred once it is known.
        first_input = next(
            ((node, shapes[node.input[0]]) for node in foreign if node.input and shapes.get(node.input[0])), None
        )
        if not progress and first_input is not None:
            node, shape = first_input
            foreign.remove(node)
            for output in node.output:
                if output not in known and output not in shapes:
                    value = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape)
                    slim.graph.value_info.append(value)
                    known.add(output)
            progress = True
        if not progress:
            return shapes
