"""Dynamic operators inside an ONNX graph: what a node says, and what stands beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dyndeploy.finite import listed
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.base import DOMAIN, OperatorSpec, Shape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import onnx

CONDITIONAL, CALL = "dyndeploy.conditional", "Call"
"""Domain and operator of a placeholder: a captured call of a module that is skipped per image."""


def is_dynamic(node: onnx.NodeProto) -> bool:
    """Whether the node is one of our operators."""
    return node.domain == DOMAIN and node.op_type in OPERATORS


def skips(node: onnx.NodeProto) -> bool:
    """Whether the node is one of our operators that decides, or obeys decisions: some do neither."""
    return is_dynamic(node) and bool(OPERATORS[node.op_type].gates or OPERATORS[node.op_type].decides)


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
    """Give a model the function bodies of the dynamic operators that it has, inside branches too.

    A body that cannot be written at the opset is left out: :func:`dyndeploy.graphs.passes.with_all_bodies` writes it.
    """
    names = sorted({node.op_type for node in all_nodes(model.graph) if node.domain == DOMAIN})
    del model.functions[:]
    model.functions.extend(OPERATORS[name].function(opset) for name in names if OPERATORS[name].least_opset <= opset)


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
