"""From the nodes that a runtime really ran back to the blocks of the network.

A runtime fuses, renames and inlines. What survives is a part of a name: so every node and tensor of a copy of the
graph carries the number of its block, the inside of function bodies included, before the runtime sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import onnx

from dyndeploy.graphs.inspect import group_of
from dyndeploy.ops import DOMAIN

UNMAPPED = "other"
"""Nodes that no name ties to a block: what the runtime inserted on its own, such as layout changes."""

_MARK = re.compile(r"~(\d+)~")


class TimedNode(Protocol):
    """A node of a runtime's own profile."""

    @property
    def name(self) -> str:
        """Its name, which carries the mark of its block unless the runtime made it."""

    @property
    def fastest(self) -> float:
        """Its fastest run in microseconds."""


class LabelledGraph:
    """A copy of a graph whose names carry block numbers.

    Args:
        model: Nodes are named ``"<block>/<operator>"``, as the exporter names them.
        bodies: Whether the dynamic operators will run as function bodies. Every call then gets a function of its
            own, so that the nodes inside it can be labelled. A native library knows operators by their name: for
            it the calls stay as they are.

    Attributes:
        model: The copy.
        groups: Blocks by number (and ``"stem"``, ``"head"``, ``"other"``), in order of first appearance.
    """

    def __init__(self, model: onnx.ModelProto, *, bodies: bool) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.groups = tuple(dict.fromkeys(group_of(node.name) for node in graph.node))
        number = {group: index for index, group in enumerate(self.groups)}
        functions = {(f.domain, f.name): f for f in model.functions}
        kept = {value.name for value in graph.output}
        renamed: dict[str, str] = {}
        clones = []
        for position, node in enumerate(graph.node):
            mark = f"~{number[group_of(node.name)]}~"
            # Behind the name: what is told by how a name begins, such as the head, stays told.
            node.name += mark
            renamed |= {name: mark + name for name in node.output if name and name not in kept}
            if bodies and node.domain == DOMAIN and (node.domain, node.op_type) in functions:
                clones.append(_labelled_function(functions[node.domain, node.op_type], mark, position))
                node.op_type = clones[-1].name
        _rename(graph.node, renamed)
        for value in graph.value_info:
            value.name = renamed.get(value.name, value.name)
        if clones:
            del self.model.functions[:]
            self.model.functions.extend(clones)

    def group_times(self, nodes: Iterable[TimedNode]) -> dict[str, float]:
        """Sum node times by group, in ms; every group appears, :data:`UNMAPPED` last.

        Taken is the fastest run of every node. A run of the whole network is interrupted more often than not on a
        busy machine, and the interruption falls on whichever block is running; one node is rarely hit every time.
        """
        times = {group: 0.0 for group in self.groups if group != UNMAPPED}
        times[UNMAPPED] = 0.0
        for node in nodes:
            number = group_number(node.name)
            times[UNMAPPED if number is None else self.groups[number]] += node.fastest / 1000
        return times


def group_number(name: str) -> int | None:
    """Number of the group that a node's or tensor's name carries; None where the runtime made the name."""
    found = _MARK.search(name)
    return None if found is None else int(found.group(1))


def _labelled_function(function: onnx.FunctionProto, mark: str, position: int) -> onnx.FunctionProto:
    clone = onnx.FunctionProto()
    clone.CopyFrom(function)
    clone.name = f"{function.name}_{position}"
    formal = {*clone.input, *clone.output}
    produced = _produced(clone.node)
    _rename(clone.node, {name: f"{mark}{name}" for name in produced if name not in formal})
    for index, node in enumerate(clone.node):
        node.name = f"{mark}{node.op_type}_{position}_{index}"
    return clone


def _subgraphs(nodes: Sequence[onnx.NodeProto]) -> Iterable[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g


def _produced(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Names defined by nodes, inside branches and loops as well."""
    names = {name for node in nodes for name in node.output if name}
    for graph in _subgraphs(nodes):
        names |= {value.name for value in graph.input} | _produced(graph.node)
    return names


def _rename(nodes: Sequence[onnx.NodeProto], names: Mapping[str, str]) -> None:
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for graph in _subgraphs(nodes):
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.name = names.get(value.name, value.name)
        _rename(graph.node, names)
