"""Means over the pixels of channels-last maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from dyndeploy.graphs.inspect import drop_unused
from dyndeploy.graphs.passes.shared import (
    Links,
    add_constant,
    attributes_of,
    axes_of,
    forget_shapes,
    fresh_name,
    known_shapes,
    set_nodes,
)
from dyndeploy.graphs.passes.transposes import UNARY

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context

_TO_CHANNELS_FIRST = [0, 3, 1, 2]


def channels_last_means(model: onnx.ModelProto, context: Context) -> None:
    """``layout::mean``: the mean over the pixels of a map that was channels-last becomes a product on that map.

    A product with a constant row of 1 / pixels: runtimes reduce leading axes of channels-last maps many times slower,
    and the Transpose in front of the mean is no longer needed. Functions of one input between the Transpose and the
    mean are computed channels-last.
    """
    links = Links(model)
    means = [node for node in model.graph.node if _is_mean_of_pixels(node, links)]
    found = [(mean, path) for mean in means if (path := _path_from_channels_last(mean, links)) is not None]
    if not found:
        return
    shapes = known_shapes(model)
    taken = {node.name for node in model.graph.node}
    gone: set[str] = set()
    made: list[onnx.NodeProto] = []
    for mean, (transpose, *functions) in found:
        batch, height, width, channels = shapes.get(transpose.input[0], (-1,) * 4)
        pixels = height * width
        if min(height, width, channels) < 1:
            continue
        source = transpose.input[0]
        if functions:
            functions[0].input[0], source = source, functions[-1].output[0]
            forget_shapes(model, {node.output[0] for node in functions})
        keeps_axes = mean.op_type == "GlobalAveragePool" or attributes_of(mean).get("keepdims", 1)
        reader = links.only_reader(mean.output[0]) if keeps_axes else None
        flat = reader if reader is not None and _only_drops_axes(reader, links, batch, channels) else None
        output = (flat or mean).output[0]
        shape = [0, channels, 1, 1] if keeps_axes and flat is None else [0, channels]
        row = add_constant(model, f"{output}/row", np.full((1, pixels), 1 / pixels, np.float32))
        rows = add_constant(model, f"{output}/rows", np.array([0, pixels, channels]))
        size = add_constant(model, f"{output}/size", np.array(shape))
        for op_type, inputs, result in (
            ("Reshape", [source, rows], f"{output}/map"),
            ("MatMul", [row, f"{output}/map"], f"{output}/mean"),
            ("Reshape", [f"{output}/mean", size], output),
        ):
            made.append(helper.make_node(op_type, inputs, [result], name=fresh_name(mean.name, op_type, taken)))
        gone |= {mean.output[0], output}
    set_nodes(model, [*(node for node in model.graph.node if not gone & set(node.output)), *made])
    drop_unused(model)


def _is_mean_of_pixels(node: onnx.NodeProto, links: Links) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    axes = axes_of(node, links) if node.op_type == "ReduceMean" else None
    return axes is not None and {axis % 4 for axis in axes} == {2, 3}


def _path_from_channels_last(mean: onnx.NodeProto, links: Links) -> list[onnx.NodeProto] | None:
    """The Transpose of a channels-last map and the functions between it and a mean, in order; None if there is none."""
    path: list[onnx.NodeProto] = []
    name = mean.input[0]
    while (node := links.producers.get(name)) is not None:
        path.insert(0, node)
        if node.op_type == "Transpose":
            return path if list(attributes_of(node).get("perm", [])) == _TO_CHANNELS_FIRST else None
        if node.op_type not in UNARY or links.only_reader(name) is None:
            return None
        name = node.input[0]
    return None


def _only_drops_axes(node: onnx.NodeProto, links: Links, batch: int, channels: int) -> bool:
    """Whether a node makes (N, C) of (N, C, 1, 1)."""
    if node.op_type == "Flatten":
        return bool(attributes_of(node).get("axis", 1) == 1)
    if node.op_type == "Squeeze":
        return {axis % 4 for axis in axes_of(node, links) or ()} == {2, 3}
    shape = links.integers(node.input[1]) if node.op_type == "Reshape" else None
    if shape is None or len(shape) != 2:
        return False
    return shape[1] == channels or (shape[1] == -1 and shape[0] in (0, batch))
