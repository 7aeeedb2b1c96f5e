"""Operators of boxes: what a target runs in the place of a detector's placeholders.

One rule per operator and runtime, in :data:`WRITTEN`. A runtime that is missing there runs no detectors. Where one of
our own operators does what a placeholder stands for, it takes its place: its body has the same standard operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from dyndeploy.errors import ExportError, UsageError
from dyndeploy.graphs.inspect import drop_unused
from dyndeploy.graphs.passes.shared import add_constant, attributes_of, known_shapes
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.boxes import BOXES, EMPTY, KEEP_BOXES, PYRAMID_ROI_ALIGN
from dyndeploy.ops.pyramid_roi_align import NAME as ROI_ALIGN

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


def write_boxes(model: onnx.ModelProto, context: Context) -> None:
    """``boxes::write``: the placeholders of a detector become what the target runs."""
    placeholders = [node for node in model.graph.node if node.domain == BOXES]
    if not placeholders:
        return
    rules = WRITTEN.get(context.runtime)
    if rules is None:
        raise ExportError(f"{lacking(context.runtime)} ({context.target})")
    for node in placeholders:
        if node.op_type not in rules:
            raise ExportError(f"{node.name}: {context.runtime} has no rule for {node.op_type} ({context.target}).")
    shapes = known_shapes(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.domain == BOXES:
            writer = _Writer(model, node, context.opset)
            rules[node.op_type](writer, shapes)
            nodes += writer.nodes
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = {entry.domain: entry.version for entry in model.opset_import if entry.domain != BOXES}
    kept |= {node.domain: 1 for node in nodes if node.domain == DOMAIN}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in kept.items())
    drop_unused(model)


def lacking(runtime: str) -> str:
    """What a runtime lacks to run detectors, by the names of ONNX operators, as a sentence; empty where it has all."""
    if runtime in WRITTEN:
        return ""
    return (
        "Detectors need non-maximum suppression (NonMaxSuppression) and reading of regions (RoiAlign), and this "
        f"release does not write them for {runtime}."
    )


class _Writer:
    """Writes the nodes that stand for a placeholder.

    Args:
        model: The graph that constants are added to.
        node: The placeholder.
        opset: Of the target.
    """

    def __init__(self, model: onnx.ModelProto, node: onnx.NodeProto, opset: int) -> None:
        self.model, self.node, self.opset = model, node, opset
        self.attributes = attributes_of(node)
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op_type: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Write a node; returns the name of what it makes."""
        place = f"{len(self.nodes)}"
        made = output or f"{self.node.output[0]}/{place}"
        name = f"{self.node.name}/{op_type}_{place}"
        self.nodes.append(helper.make_node(op_type, inputs, [made], name=name, **attributes))
        return made

    def constant(self, kind: str, value: Any, dtype: type[np.generic] = np.int64) -> str:
        """Add a constant; returns its name."""
        return add_constant(self.model, f"{self.node.output[0]}/{kind}", np.asarray(value, dtype))


Rule = Callable[[_Writer, Mapping[str, tuple[int, ...]]], None]


def _non_max_suppression(write: _Writer, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """One class for all, on boxes that are moved apart by group, as :func:`dyndeploy.blocks.boxes.keep_boxes` does it.

    ONNX's operator gives as many indices as boxes are left; a tail of empty places is cut to the fixed number.
    """
    boxes, scores, groups = write.node.input
    limit = write.attributes["limit"]
    threshold = write.constant("score_threshold", write.attributes["score_threshold"], np.float32)
    # The largest coordinate of those that count, which decides how shifted coordinates round.
    zero, one = write.constant("zero", 0, np.float32), write.constant("one", 1, np.float32)
    column = write.constant("column", [1])
    counts = write("Unsqueeze", [write("Greater", [scores, threshold]), column])
    largest = write("ReduceMax", [write("Where", [counts, boxes, zero])], keepdims=0)
    apart = write("Mul", [write("Cast", [groups], to=onnx.TensorProto.FLOAT), write("Add", [largest, one])])
    shifted = write("Add", [boxes, write("Unsqueeze", [apart, column])])
    # ONNX lists coordinates by y first; overlaps do not care which axis is which.
    found = write(
        "NonMaxSuppression",
        [
            write("Unsqueeze", [shifted, write.constant("image", [0])]),
            write("Unsqueeze", [scores, write.constant("image_and_class", [0, 1])]),
            write.constant("limit", limit),
            write.constant("iou_threshold", write.attributes["iou_threshold"], np.float32),
            threshold,
        ],
    )
    index = write("Gather", [found, write.constant("index", 2)], axis=1)
    filled = write("Concat", [index, write.constant("empty", [EMPTY] * limit)], axis=0)
    places = [write.constant(kind, [value]) for kind, value in (("first", 0), ("last", limit))]
    cut = write("Slice", [filled, *places])
    # Nothing else says how many places there are, and what is computed from them is counted.
    write("Reshape", [cut, write.constant("places", [limit])], write.node.output[0])


def _roi_align_of_all(write: _Writer, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Every box through the RoiAlign of every level, as an empty one where it belongs to another; then their sum.

    No size depends on the data. A box without extent has no samples, which costs nothing and gives zeros.
    """
    *maps, boxes, levels = write.node.input
    count, size = shapes[boxes][0], write.attributes["size"]
    column, image = write.constant("column", [1]), write.constant("image", np.zeros(count))
    aligned = []
    for level, (features, stride) in enumerate(zip(maps, write.attributes["strides"], strict=True)):
        chosen = write("Equal", [levels, write.constant(f"level{level}", level)])
        factor = write("Unsqueeze", [write("Cast", [chosen], to=onnx.TensorProto.FLOAT), column])
        found = write(
            "RoiAlign",
            [features, write("Mul", [boxes, factor]), image],
            write.node.output[0] if len(maps) == 1 else "",
            coordinate_transformation_mode="half_pixel",
            mode="avg",
            output_height=size,
            output_width=size,
            sampling_ratio=0,
            spatial_scale=1.0 / stride,
        )
        aligned.append(found)
    for place, found in enumerate(aligned[1:], start=2):
        aligned[0] = write("Add", [aligned[0], found], write.node.output[0] if place == len(aligned) else "")


def _roi_align(write: _Writer, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Our own operator; of pyramids that it does not take, every level through one RoiAlign."""
    if write.opset >= OPERATORS[ROI_ALIGN].least_opset and takes_regions(write.node, shapes):
        _own_roi_align(write)
    else:
        _standard_roi_align(write, shapes)


def _roi_align_plugin(write: _Writer, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The plugin of our own operator; of pyramids that it does not take, what the runtime itself has."""
    if takes_regions(write.node, shapes):
        _own_roi_align(write)
    else:
        _roi_align_of_all(write, shapes)


def takes_regions(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether our own operator reads the regions of a placeholder: its levels must be as many, and cover each other."""
    operator = OPERATORS[ROI_ALIGN]
    if len(node.input) != len(operator.inputs):
        return False
    try:
        operator.output_shapes([shapes.get(name, ()) for name in node.input], attributes_of(node))
    except UsageError:
        return False
    return True


def _own_roi_align(write: _Writer) -> None:
    operator = OPERATORS[ROI_ALIGN]
    bookkeeping = {"plugin_version": str(operator.version), "plugin_namespace": ""}
    write(
        operator.name,
        list(write.node.input),
        write.node.output[0],
        domain=DOMAIN,
        **write.attributes,
        **bookkeeping,
    )


def _standard_roi_align(write: _Writer, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The boxes of every level through one RoiAlign, then all in their order again."""
    *maps, boxes, levels = write.node.input
    count, size = shapes[boxes][0], write.attributes["size"]
    flat, found, order = write.constant("flat", [-1]), [], []
    for level, (features, stride) in enumerate(zip(maps, write.attributes["strides"], strict=True)):
        chosen = write("Equal", [levels, write.constant(f"level{level}", level)])
        index = write("Reshape", [write("NonZero", [chosen]), flat])
        image = write("Mul", [index, write.constant(f"first_image{level}", 0)])
        aligned = write(
            "RoiAlign",
            [features, write("Gather", [boxes, index], axis=0), image],
            coordinate_transformation_mode="half_pixel",
            mode="avg",
            output_height=size,
            output_width=size,
            sampling_ratio=0,
            spatial_scale=1.0 / stride,
        )
        found.append(aligned)
        order.append(index)
    places = write("Concat", order, axis=0)
    rows = write.constant("rows", np.arange(count))
    back = write("ScatterElements", [rows, places, rows], axis=0)
    write("Gather", [write("Concat", found, axis=0), back], write.node.output[0], axis=0)


WRITTEN: Mapping[str, Mapping[str, Rule]] = MappingProxyType(
    {
        "onnxruntime": MappingProxyType({KEEP_BOXES: _non_max_suppression, PYRAMID_ROI_ALIGN: _roi_align}),
        "tensorrt": MappingProxyType({PYRAMID_ROI_ALIGN: _roi_align_plugin}),
    }
)
"""By runtime, how it writes the operators; the host computes those that a runtime's rules lack."""
