"""From the nodes that a runtime really ran back to the blocks of the network.

A runtime fuses, renames and inlines. What survives is a part of a name: so every node and tensor of a copy of the
graph carries the number of its block, the inside of function bodies included, before the runtime sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

import onnx

from dyndeploy.graphs.inspect import all_graphs, all_nodes, group_of, rename_tensors
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
        self.groups = tuple(dict.fromkeys(group_of(node.name) for node in all_nodes(graph)))
        number = {group: index for index, group in enumerate(self.groups)}
        functions = {(f.domain, f.name): f for f in model.functions}
        kept = {value.name for value in graph.output}
        renamed: dict[str, str] = {}
        clones = []
        for position, node in enumerate(all_nodes(graph)):
            mark = f"~{number[group_of(node.name)]}~"
            # Behind the name: what is told by how a name begins, such as the head, stays told.
            node.name += mark
            renamed |= {name: mark + name for name in node.output if name and name not in kept}
            if bodies and node.domain == DOMAIN and (node.domain, node.op_type) in functions:
                clones.append(_labelled_function(functions[node.domain, node.op_type], mark, position))
                node.op_type = clones[-1].name
        rename_tensors(graph, renamed)
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
    body = onnx.GraphProto(node=clone.node)
    rename_tensors(body, {name: f"{mark}{name}" for name in _produced(body) - formal})
    del clone.node[:]
    clone.node.extend(body.node)
    for index, node in enumerate(clone.node):
        node.name = f"{mark}{node.op_type}_{position}_{index}"
    return clone


def _produced(graph: onnx.GraphProto) -> set[str]:
    """Names defined in a graph, inside branches and loops as well."""
    parts = list(all_graphs(graph))
    names = {name for part in parts for node in part.node for name in node.output if name}
    return names | {value.name for part in parts for value in part.input}
