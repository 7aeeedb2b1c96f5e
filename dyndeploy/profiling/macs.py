"""Multiply-accumulates that a graph really needs under given masks.

Counted are convolutions and matrix products: standard nodes from their static shapes, dynamic operators by asking
their own spec (dilation, channel pairs and maskers included). Pooling, activation and data movement count 0, in the
dynamic graph as in its static twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from dyndeploy.errors import BundleError, UsageError
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.graph import operator_attributes

Shape = tuple[int, ...]
Masks = Mapping[str, npt.NDArray[np.float32]]


def group_of(node_name: str) -> str:
    """Block of a node by its name (``"<block>/..."``), or ``"other"``: also ``"stem"`` and ``"head"``."""
    group, separator, _ = node_name.partition("/")
    return group if separator and group else "other"


@dataclass(frozen=True)
class GraphMacs:
    """MACs of one run, by block (and ``"stem"``, ``"head"``, ``"other"``), in order of first appearance.

    Attributes:
        blocks: MACs of every sample of the batch, shape (N,).
    """

    blocks: dict[str, npt.NDArray[np.float64]]

    @property
    def per_sample(self) -> npt.NDArray[np.float64]:
        """MACs of every sample, shape (N,)."""
        total: npt.NDArray[np.float64] = np.sum(list(self.blocks.values()), axis=0)
        return total


class MacCounter:
    """Counts the MACs of one graph; shapes are inferred once, masks may change.

    Args:
        model: A graph with static shapes.

    Raises:
        BundleError: A shape that is needed is not static.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        # Copies, because a node keeps its whole model with all weights in memory.
        self._nodes = [
            onnx.NodeProto.FromString(node.SerializeToString())
            for node in model.graph.node
            if _is_dynamic(node) or node.op_type in _STANDARD
        ]
        self._shapes = _static_shapes(model)
        first = self._shapes.get(model.graph.input[0].name, ())
        if not first or first[0] < 1:
            raise BundleError(f"Input '{model.graph.input[0].name}' has no static batch size.")
        self.batch = first[0]

    def count(self, masks: Masks | None = None) -> GraphMacs:
        """MACs of one run.

        Args:
            masks: The mask that every dynamic operator sees, by tensor name; None for a graph without them.

        Raises:
            UsageError: A mask is missing.
            BundleError: A node's shapes are not static.
        """
        blocks: dict[str, npt.NDArray[np.float64]] = {}
        for node in self._nodes:
            if _is_dynamic(node):
                macs = self._dynamic(node, masks or {})
            else:
                macs = np.full(self.batch, _STANDARD[node.op_type](node, self._shape) / self.batch)
            group = group_of(node.name)
            blocks[group] = blocks[group] + macs if group in blocks else macs
        return GraphMacs(blocks)

    def _shape(self, name: str) -> Shape:
        shape = self._shapes.get(name)
        if shape is None or any(size < 0 for size in shape):
            raise BundleError(f"The shape of tensor '{name}' is not static: its MACs cannot be counted.")
        return shape

    def _dynamic(self, node: onnx.NodeProto, masks: Masks) -> npt.NDArray[np.float64]:
        spec = OPERATORS[node.op_type]
        given = {}
        for port in spec.mask_inputs():
            name = node.input[spec.input_index(port)]
            if name not in masks:
                raise UsageError(f"The mask '{name}' of node '{node.name}' is not given.")
            given[port] = masks[name]
        return spec.cost([self._shape(name) for name in node.input], operator_attributes(node), given).macs


def _is_dynamic(node: onnx.NodeProto) -> bool:
    return node.domain == DOMAIN and node.op_type in OPERATORS


def _conv(node: onnx.NodeProto, shape: Callable[[str], Shape]) -> float:
    # The weight is (out, in / group, *kernel): everything behind the first axis is one output's products.
    return float(np.prod(shape(node.output[0])) * np.prod(shape(node.input[1])[1:]))


def _gemm(node: onnx.NodeProto, shape: Callable[[str], Shape]) -> float:
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    inner = shape(node.input[0])[0 if transposed else 1]
    return float(np.prod(shape(node.output[0])) * inner)


def _matmul(node: onnx.NodeProto, shape: Callable[[str], Shape]) -> float:
    return float(np.prod(shape(node.output[0])) * shape(node.input[0])[-1])


_STANDARD: dict[str, Callable[[onnx.NodeProto, Callable[[str], Shape]], float]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
}

_SHAPE_CONSTANT = 1024
"""Initialisers up to this size may hold shapes and stay; larger ones are weights, of which the shape suffices."""


def _static_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of all tensors of the main graph; those behind a dynamic operator come from its own rule."""
    slim = onnx.ModelProto(ir_version=model.ir_version)
    slim.opset_import.extend(model.opset_import)
    slim.graph.name = model.graph.name
    slim.graph.node.extend(model.graph.node)
    slim.graph.input.extend(model.graph.input)
    slim.graph.output.extend(model.graph.output)
    for item in model.graph.initializer:
        if int(np.prod(item.dims)) <= _SHAPE_CONSTANT:
            slim.graph.initializer.append(item)
        else:
            slim.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    dynamic = [node for node in slim.graph.node if _is_dynamic(node)]
    known = {value.name for value in slim.graph.output}
    weights = {item.name: tuple(item.dims) for item in model.graph.initializer}
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(slim, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise BundleError(f"The shapes of the graph cannot be inferred: {error}") from error
        shapes = dict(weights)
        for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
            if value.type.tensor_type.HasField("shape"):
                shapes[value.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
                )
        progress = False
        for node in dynamic:
            output = node.output[0]
            inputs = [shapes.get(name) for name in node.input]
            if output in known or any(shape is None or -1 in shape for shape in inputs):
                continue
            shape = OPERATORS[node.op_type].infer_shape([s for s in inputs if s is not None], operator_attributes(node))
            shapes[output] = shape
            slim.graph.value_info.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape))
            known.add(output)
            progress = True
        if not progress:
            return shapes
