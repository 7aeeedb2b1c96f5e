"""Dynamic operators inside an ONNX graph: what a node says, and what stands beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dyndeploy.ops.base import DOMAIN, OperatorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import onnx


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
