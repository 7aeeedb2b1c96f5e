"""What computes in float under FP16 in a detector's neck, heads and post-processing.

Products with weights, and what only passes maps on between them, is half there: that is nearly all of the work. What
stays float is small, and loses what half does not have: eleven bits place a point of an image of 1,000 pixels to half a
pixel, an exponential or a square runs over at 65,504, and a comparison decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dyndeploy.graphs.inspect import group_of, reads
from dyndeploy.graphs.parts import HEADS, NECK, POST_PROCESSING
from dyndeploy.ops import DOMAIN, OPERATORS, Element

if TYPE_CHECKING:
    import onnx

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""Operators that are half: sums of products, which kernels add up in float where the device can."""

MOVES = frozenset((
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool", "Pad", "Reshape",
    "ScatterElements", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
))  # fmt: skip
"""Operators that pass values on as they are: in either type they lose nothing."""

STATISTICS = frozenset((
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LogSoftmax", "ReduceL2", "ReduceMean",
    "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax",
))  # fmt: skip
"""Operators that add up a whole row or map, or its squares: sums that half cannot hold."""

CURVES = frozenset({"Cos", "Exp", "Log", "Pow", "Reciprocal", "Sigmoid", "Sin", "Sqrt"})
"""Operators of scores, of coordinates and of their embedding, steep where half is coarse."""

DECISIONS = frozenset((
    "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NonMaxSuppression", "NonZero",
    "ReduceMax", "ReduceMin", "TopK",
))  # fmt: skip
"""Operators that choose: what they compare must not be rounded."""

SAMPLERS = frozenset({"GridSample", "RoiAlign"})
"""Standard operators that read maps at points. They take one type for both."""

_EXACT = STATISTICS | CURVES | DECISIONS | SAMPLERS


def in_parts(node_name: str) -> bool:
    """Whether a node stands in the neck, the heads or the post-processing of a network that tells its parts."""
    return group_of(node_name) in (NECK, HEADS, POST_PROCESSING)


def float_in_parts(model: onnx.ModelProto) -> set[int]:
    """Indices of the standard nodes behind the backbone that compute in float under FP16.

    These are statistics, curves, decisions and samplers; what is computed from such results, or from the size of an
    image, alone; and what only they, a plugin's coordinates and weights, or the host read, back to the products that
    made it. Half are the products, plugins, and what stands between them: sums of maps, activations, resizing.
    """
    nodes = list(model.graph.node)
    own = [index for index, node in enumerate(nodes) if not node.domain and in_parts(node.name)]
    wanted = _wanted(model, nodes, own)
    kept = {index for index in wanted if nodes[index].op_type not in MOVES}
    # Forward: what is made of exact values alone is exact, and what is wanted so loses no bit on its way.
    exact = {value.name for value in model.graph.input}
    constants = {item.name for item in model.graph.initializer}
    inside = set(own)
    for index, node in enumerate(nodes):
        given = [name for name in reads(node) if name not in constants]
        if not given:
            constants.update(node.output)
            continue
        if index in inside and node.op_type not in PRODUCTS:
            made = [name in exact for name in given]
            if all(made) or (index in wanted and any(made)):
                kept.add(index)
        if index in kept:
            exact.update(node.output)
    return kept


def _wanted(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], own: Sequence[int]) -> set[int]:
    """Exact operators, and all that is read by them, by exact ports of plugins, or by the host alone."""
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in reads(node):
            readers.setdefault(name, []).append(index)
    outputs = {value.name for value in model.graph.output}
    constants = {item.name for item in model.graph.initializer}
    wanted = {index for index in own if _exact(nodes[index], constants)}
    for index in reversed(own):
        node = nodes[index]
        if index in wanted or node.op_type in PRODUCTS:
            continue
        found = [(name, reader) for name in node.output for reader in readers.get(name, ())]
        read = found or outputs.intersection(node.output)
        if read and all(reader in wanted or _exact_port(nodes[reader], name) for name, reader in found):
            wanted.add(index)
    return wanted


def _exact(node: onnx.NodeProto, constants: set[str]) -> bool:
    """Whether a node computes in float whatever stands around it; so does a division by what was computed."""
    return node.op_type in _EXACT or (node.op_type == "Div" and node.input[1] not in constants)


def _exact_port(node: onnx.NodeProto, name: str) -> bool:
    """Whether a plugin reads a tensor as float or as whole numbers, whatever it computes in."""
    if node.domain != DOMAIN:
        return False
    ports = zip(node.input, OPERATORS[node.op_type].inputs, strict=False)
    return all(port.element is not Element.DATA for given, port in ports if given == name)
