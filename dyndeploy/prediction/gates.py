"""Gates that ONNX Runtime puts together before it runs a graph: what exporters write as several operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dyndeploy.prediction.nodes import Node, NodeGraph

_GATED = {"HardSigmoid": "HardSwish", "Sigmoid": "QuickGelu"}


def joined_gates(graph: NodeGraph) -> tuple[Node, ...]:
    """The nodes of a graph with ``x * sigmoid(x)``, ``x * hardsigmoid(x)`` and GELU by ``Erf`` as one node each."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(node.inputs):
            readers.setdefault(name, []).append(node)
    made = {name: node for node in graph.nodes for name in node.outputs}
    kept = set(graph.outputs)

    def only_reader(node: Node, op_type: str) -> Node | None:
        found = readers.get(node.outputs[0], [])
        if len(found) != 1 or found[0].op_type != op_type or node.outputs[0] in kept:
            return None
        return None if found[0].conditions != node.conditions else found[0]

    joined: dict[int, Node] = {}
    dropped: set[int] = set()
    for node in graph.nodes:
        parts = _gelu(node, made, only_reader) if node.op_type == "Erf" else _gate(node, only_reader)
        if not parts or any(id(part) in dropped for part in parts):
            continue
        *inner, last = parts
        dropped.update(id(part) for part in inner)
        source = inner[0].inputs[0]
        name = "Gelu" if node.op_type == "Erf" else _GATED[node.op_type]
        joined[id(last)] = replace(last, op_type=name, name=inner[0].name, inputs=(source,), attributes={})
    return tuple(joined.get(id(node), node) for node in graph.nodes if id(node) not in dropped)


_OnlyReader = Callable[[Node, str], "Node | None"]


def _gate(node: Node, only_reader: _OnlyReader) -> list[Node]:
    if node.op_type not in _GATED or node.domain:
        return []
    product = only_reader(node, "Mul")
    return [node, product] if product is not None and node.inputs[0] in product.inputs else []


def _gelu(erf: Node, made: dict[str, Node], only_reader: _OnlyReader) -> list[Node]:
    """``x / sqrt(2)``, ``erf``, ``+ 1`` and two products, one of which is by a half and may stand anywhere."""
    scaled = made.get(erf.inputs[0])
    if scaled is None or scaled.op_type not in ("Div", "Mul") or only_reader(scaled, "Erf") is None:
        return []
    added = only_reader(erf, "Add")
    first = None if added is None else only_reader(added, "Mul")
    if added is None or first is None:
        return []
    source, parts = scaled.inputs[0], [scaled, erf, added, first]
    if source in first.inputs:
        half = only_reader(first, "Mul")
        return [*parts, half] if half is not None else []
    other = next((made[name] for name in first.inputs if name in made and made[name] is not added), None)
    if other is not None and other.op_type == "Mul" and source in other.inputs and only_reader(other, "Mul") is first:
        return [scaled, other, erf, added, first]
    return []
