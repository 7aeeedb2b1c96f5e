"""Views by strides that only reshape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from dyndeploy.graphs.inspect import drop_unused
from dyndeploy.graphs.passes.shared import (
    Links,
    add_constant,
    attributes_of,
    drop_attribute,
    known_shapes,
    set_nodes,
)

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


def reshape_strides(model: onnx.ModelProto, context: Context) -> None:
    """``layout::strides``: a gather of all elements in their order is a Reshape, and of two Reshapes one is enough.

    PyTorch captures a pooling of a channels-last map to one pixel with a view by strides, which becomes such a gather.
    """
    links = Links(model)
    gathers = [node for node in model.graph.node if node.op_type == "Gather" and _takes_all(node, links)]
    if not gathers:
        return
    shapes = known_shapes(model)
    for node in gathers:
        flat = links.producers[node.input[0]]
        indices = numpy_helper.to_array(links.constants[node.input[1]])
        shape = shapes.get(flat.input[0], (-1,))
        if -1 in shape or math.prod(shape) != indices.size:
            continue
        node.op_type = "Reshape"
        drop_attribute(node, "axis")
        size = add_constant(model, f"{node.output[0]}/size", np.array(indices.shape, np.int64))
        node.input[:] = [flat.input[0], size]
        for reader in links.readers.get(node.output[0], []):
            if reader.op_type == "Reshape" and 0 not in (links.integers(reader.input[1]) or [0]):
                reader.input[0] = flat.input[0]
    set_nodes(model, model.graph.node)
    drop_unused(model)


def _takes_all(node: onnx.NodeProto, links: Links) -> bool:
    """Whether a Gather takes the elements of a flat tensor in their order."""
    flat = links.producers.get(node.input[0])
    if flat is None or flat.op_type != "Reshape" or node.input[1] not in links.constants:
        return False
    one_axis = len(links.integers(flat.input[1]) or ()) == 1 and attributes_of(node).get("axis", 0) == 0
    indices = numpy_helper.to_array(links.constants[node.input[1]])
    return one_axis and bool((indices.ravel() == np.arange(indices.size)).all())
