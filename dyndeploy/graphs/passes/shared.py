"""What several passes need: links between nodes, attributes, ranks, names and order of nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from dyndeploy.graphs.inspect import group_of, reads, shape_of
from dyndeploy.graphs.shapes import static_shapes

Array = npt.NDArray[Any]
Double = npt.NDArray[np.float64]


class Links:
    """Producers, readers and constants of a graph that a pass rewrites; renewed after every rewrite."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {item.name: item for item in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in reads(node):
                self.readers.setdefault(name, []).append(node)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor, or None if several do or the graph returns it."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def value(self, name: str) -> Double:
        """A constant in double precision."""
        return numpy_helper.to_array(self.constants[name]).astype(np.float64)

    def integers(self, name: str) -> list[int] | None:
        """The elements of a constant of integers, or None if the tensor is no constant."""
        if name not in self.constants:
            return None
        return [int(value) for value in numpy_helper.to_array(self.constants[name]).ravel()]

    def add(self, name: str, value: Double, like: str) -> str:
        """Add a constant in the type of another; returns its name."""
        dtype = numpy_helper.to_array(self.constants[like]).dtype
        add_constant(self.model, name, value.astype(dtype))
        self.constants[name] = self.model.graph.initializer[-1]
        return name


def add_constant(model: onnx.ModelProto, name: str, value: Array) -> str:
    """Add a constant; returns its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
    return name


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def drop_attribute(node: onnx.NodeProto, *names: str) -> None:
    """Remove attributes from a node, where it has them."""
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Give an attribute of a node a new value."""
    drop_attribute(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a captured graph: what the capture noted, and what follows from the inputs.

    A size that is not static is -1.
    """
    noted = [value for value in model.graph.value_info if value.type.tensor_type.HasField("shape")]
    return {value.name: shape_of(value) for value in noted} | static_shapes(model, assume=True)


def axes_of(node: onnx.NodeProto, links: Links) -> list[int] | None:
    """Axes of a reduction, of Squeeze or Unsqueeze, as attribute or constant input; None if there are none."""
    axes = attributes_of(node).get("axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        return links.integers(node.input[1])
    return None if axes is None else list(axes)


def fresh_name(like: str, kind: str, taken: set[str]) -> str:
    """A node name that is not taken, in the group of another node; it is taken from now on."""
    name = base = f"{group_of(like)}/{kind}"
    number = 0
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def forget_shapes(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove what the capture noted of tensors whose layout a pass changes."""
    kept = [value for value in model.graph.value_info if value.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def set_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph by others (some of them the same), each behind what it reads, else in order.

    Those that nothing reads are left out.
    """
    given = list(nodes)
    producers = {name: index for index, node in enumerate(given) for name in node.output if name}
    placed: dict[int, onnx.NodeProto] = {}
    begun: set[int] = set()

    def place(index: int) -> None:
        if index in begun:
            return
        begun.add(index)
        for name in reads(given[index]):
            if name in producers:
                place(producers[name])
        placed[index] = given[index]

    for index in range(len(given)):
        place(index)
    needed = {value.name for value in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(placed.values()):
        if needed.intersection(node.output):
            needed.update(reads(node))
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
