"""Dynamic operators inside an ONNX graph: what a node says, and what stands beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dyndeploy.errors import BundleError
from dyndeploy.finite import listed
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.base import DOMAIN, Element, OperatorSpec, Shape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import onnx

CONDITIONAL, CALL = "dyndeploy.conditional", "Call"
"""Domain and operator of a placeholder: a captured call of a module that is skipped per image."""

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
    """Operators of the graph and of its branches that are neither dynamic nor allowed, sorted.

    Args:
        model: The graph.
        operators: Known dynamic operators.
        allowed: Standard operators that may stand there; None allows all.

    Returns:
        Operator types, those of other domains as ``domain::type``.
    """
    found = set()
    for node in all_nodes(model.graph):
        if node.domain == DOMAIN and node.op_type in operators:
            continue
        if node.domain or (allowed is not None and node.op_type not in allowed):
            found.add(f"{node.domain}::{node.op_type}" if node.domain else node.op_type)
    return sorted(found)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Branches and loop bodies of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside it, the outer before the inner."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def not_finite_weights(model: onnx.ModelProto) -> str:
    """Name the weights of a graph and of its branches that are NaN or infinite; empty where all are finite."""
    from onnx import numpy_helper

    return listed(
        {
            tensor.name: numpy_helper.to_array(tensor)
            for graph in all_graphs(model.graph)
            for tensor in graph.initializer
        }
    )


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of a graph and of the branches inside it."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that a node reads: its inputs, and what its branches take from around them; some more than once."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        yield from reads_of_graph(graph)


def reads_of_graph(graph: onnx.GraphProto) -> Iterator[str]:
    """Tensors that a branch takes from around it; some more than once."""
    own = {value.name for value in (*graph.input, *graph.initializer)}
    own |= {name for inner in graph.node for name in inner.output}
    for inner in graph.node:
        yield from (name for name in reads(inner) if name not in own)
    yield from (value.name for value in graph.output if value.name not in own)


def rename_tensors(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors wherever they are made, read or described, inside branches too."""
    for part in all_graphs(graph):
        for value in (*part.input, *part.output, *part.value_info, *part.initializer):
            value.name = names.get(value.name, value.name)
        for node in part.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def attach_bodies(model: onnx.ModelProto, opset: int) -> None:
    """Give a model the function bodies of the dynamic operators that it has, inside branches too."""
    names = sorted({node.op_type for node in all_nodes(model.graph) if node.domain == DOMAIN})
    del model.functions[:]
    model.functions.extend(OPERATORS[name].function(opset) for name in names)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants that no node reads."""
    used = {name for node in all_nodes(model.graph) for name in node.input}
    used |= {value.name for graph in all_graphs(model.graph) for value in graph.output}
    for part in all_graphs(model.graph):
        kept = [item for item in part.initializer if item.name in used]
        if len(kept) < len(part.initializer):  # Else without copies of all weights.
            del part.initializer[:]
            part.initializer.extend(kept)


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """Shape of a described tensor; a size that is not static is -1."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


def static_shapes(
    model: onnx.ModelProto, input_shape: Shape | None = None, *, assume: bool = False, strict: bool = False
) -> dict[str, Shape]:
    """Shapes of all tensors of a graph; those behind a dynamic operator come from its own rule.

    Inside skipped blocks they are those of a whole batch.

    Args:
        model: The graph; its weights may be missing.
        input_shape: Shape of the first input; None leaves it as the graph has it.
        assume: Whether an operator of a domain gives what the file says of its outputs and, where it says nothing of
            one of another domain than ours, maps of its first input's size; else nothing is known behind that.
        strict: Whether a node whose inputs do not fit it is an error; else nothing is known behind it, unless it is one
            that weights are multiplied in (:func:`contradiction`), which always is.

    Returns:
        Shapes by tensor name; a size that is not static is -1.

    Raises:
        BundleError: The sizes contradict each other.
    """
    import onnx
    from onnx import helper

    from dyndeploy.graphs.branches import flattened

    model = flattened(model).model
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
    places = [(graph, node) for graph in all_graphs(slim.graph) for node in graph.node if is_dynamic(node)]
    foreign = [node for node in slim.graph.node if assume and node.domain and not is_dynamic(node)]
    stated = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    known = {value.name for value in slim.graph.output} if input_shape is None else set()
    if input_shape is None:
        outputs = {
            name for node in (*foreign, *((node for _, node in places) if assume else ())) for name in node.output
        }
        slim.graph.value_info.extend(stated[name] for name in outputs - known if name in stated)
        known |= outputs & set(stated)
    weights = {item.name: tuple(item.dims) for item in model.graph.initializer}
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(slim, strict_mode=strict, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise BundleError(f"The shapes of the graph cannot be inferred: {' '.join(str(error).split())}") from error
        shapes = dict(weights)
        parts = list(all_graphs(inferred.graph))
        shapes |= {item.name: tuple(item.dims) for part in parts[1:] for item in part.initializer}
        for value in (value for part in parts for value in (*part.input, *part.output, *part.value_info)):
            if value.type.tensor_type.HasField("shape"):
                shapes[value.name] = shape_of(value)
        progress = False
        for graph, node in places:
            inputs = [shapes.get(name) for name in node.input]
            if node.output[0] in known or any(shape is None or -1 in shape for shape in inputs):
                continue
            spec = OPERATORS[node.op_type]
            results = spec.output_shapes([s for s in inputs if s is not None], operator_attributes(node))
            for port, output, shape in zip(spec.outputs, node.output, results, strict=True):
                kind = onnx.TensorProto.INT64 if port.element is Element.INDEX else onnx.TensorProto.FLOAT
                shapes[output] = shape
                graph.value_info.append(helper.make_tensor_value_info(output, kind, shape))
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
            break
    for node in all_nodes(inferred.graph):
        wrong = contradiction(node, shapes)
        if wrong:
            raise BundleError(f"Node '{node.name or node.output[0]}' ({node.op_type}) contradicts itself: {wrong}.")
    return shapes


def contradiction(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> str:
    """How the sizes of a convolution's or matrix product's inputs disagree; empty where they fit or are not known.

    ONNX's shape inference looks at the outer sizes of weights only.

    Args:
        node: Any node.
        shapes: By tensor; a size that is not static is -1.
    """
    from onnx import helper

    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return ""
    data, weight, bias = (shapes.get(name) if name else None for name in (*node.input, "")[:3])
    if data is None or weight is None:
        return ""
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type in ("Gemm", "MatMul"):
        left = data[0] if given.get("transA") else data[-1] if data else -1
        right = weight[-1] if given.get("transB") or len(weight) == 1 else weight[-2] if weight else -1
        fits = left == right or -1 in (left, right)
        return "" if fits else f"{left} columns of {data} are multiplied with {right} rows of {weight}"
    if len(data) != len(weight) or len(data) < 3:
        return f"its input has {len(data)} axes {data}, its weights {len(weight)} {weight}"
    group, channels = given.get("group", 1), data[1]
    wanted, made = weight[1] * group, weight[0]
    if node.op_type == "ConvTranspose":
        wanted, made = weight[0], weight[1] * group
    if channels != wanted and -1 not in (channels, *weight[:2]):
        return f"its input has {channels} channels, its weights {weight} in {group} group(s) take {wanted}"
    if weight[0] > 0 and weight[0] % group:
        return f"{weight[0]} channels of its weights {weight} are no multiple of its {group} groups"
    kernel = tuple(given.get("kernel_shape", weight[2:]))
    if kernel != weight[2:] and -1 not in weight[2:]:
        return f"its kernel is {kernel}, that of its weights {weight[2:]}"
    pads = given.get("pads", [0] * 2 * len(kernel))
    for size, side, dilation, before, after in zip(
        data[2:], kernel, given.get("dilations", [1] * len(kernel)), pads, pads[len(kernel) :], strict=False
    ):
        fixed = node.op_type == "Conv" and size > 0 and not given.get("auto_pad", b"").startswith(b"SAME")
        if fixed and dilation * (side - 1) + 1 > size + before + after:
            return f"its kernel {kernel} is larger than its input {data}, padded by {list(pads)}"
    if bias is not None and bias != (made,) and -1 not in (*bias, made):
        return f"its bias has the shape {bias}, and it makes {made} channels"
    return ""
