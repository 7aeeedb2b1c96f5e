"""Multiply-accumulates that a graph really needs under given masks.

Counted are convolutions and matrix products: standard nodes from their static shapes, dynamic operators by asking
their own spec (dilation, channel pairs and maskers included), what stands in a skipped block for the images that
compute it, and of an ``If`` of another origin the larger branch. Pooling, activation and data movement count 0, in the
dynamic graph as in its static twin: a mean over pixels does as well where it is written as a product
(:func:`~dyndeploy.graphs.passes.mean.channels_last_means`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.branches import flattened
from dyndeploy.graphs.inspect import group_of, is_dynamic, operator_attributes, subgraphs
from dyndeploy.graphs.shapes import static_shapes, unknown_size
from dyndeploy.ops import OPERATORS, OperatorSpec

Shape = tuple[int, ...]
Masks = Mapping[str, npt.NDArray[np.float32]]


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

    Attributes:
        batch: Images per run.
        groups: Every group of nodes, also those without MACs.

    Raises:
        BundleError: A shape that is needed is not static.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.groups = frozenset(group_of(node.name) for node in model.graph.node)
        flat = flattened(model)
        self._conditions = flat.masks
        # Copies, because a node keeps its whole model with all weights in memory.
        self._nodes = [
            onnx.NodeProto.FromString(node.SerializeToString())
            for node in flat.model.graph.node
            if is_dynamic(node) or node.op_type in _STANDARD or any(subgraphs(node))
        ]
        self._makers = {
            name: f"'{node.name}' ({node.op_type})" for node in flat.model.graph.node for name in node.output
        }
        self._averages = _averages(flat.model)
        self._shapes = static_shapes(model)
        first = self._shapes.get(model.graph.input[0].name, ())
        if not first or first[0] < 1:
            raise BundleError(f"Input '{model.graph.input[0].name}' has no static batch size.")
        self.batch = first[0]

    def count(self, masks: Masks | None = None) -> GraphMacs:
        """MACs of one run.

        Args:
            masks: The mask that every dynamic operator, and every skipped block, sees, by tensor name; None for a graph
                without them.

        Raises:
            UsageError: A mask is missing.
            BundleError: A node's shapes are not static.
        """
        blocks: dict[str, npt.NDArray[np.float64]] = {}
        for node in self._nodes:
            macs = self._macs(node, masks or {})
            for name in self._conditions.get(node.name, ()):
                macs = macs * self._mask(name, node, masks or {}).reshape(self.batch)
            group = group_of(node.name)
            blocks[group] = blocks[group] + macs if group in blocks else macs
        return GraphMacs(blocks)

    def overflows(self, masks: Masks) -> dict[str, float]:
        """Share of the images, by block, that need more places than static shapes have; blocks that have such only."""
        found = {}
        for node in self._nodes:
            spec = OPERATORS[node.op_type] if is_dynamic(node) else None
            if spec is not None and spec.overflows is not None:
                shapes, attributes, given = self._call(spec, node, masks)
                found[group_of(node.name)] = float(spec.overflows(shapes, attributes, given).mean())
        return found

    def _call(
        self, spec: OperatorSpec, node: onnx.NodeProto, masks: Masks
    ) -> tuple[list[Shape], dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
        given = {port: self._mask(node.input[spec.input_index(port)], node, masks) for port in spec.mask_inputs()}
        return [self._shape(name) for name in node.input], operator_attributes(node), given

    def _shape(self, name: str) -> Shape:
        shape = self._shapes.get(name)
        if shape is None or any(size < 0 for size in shape):
            raise BundleError(f"{unknown_size(name, shape, self._makers.get(name, ''))} Its MACs cannot be counted.")
        return shape

    def _macs(self, node: onnx.NodeProto, masks: Masks) -> npt.NDArray[np.float64]:
        """MACs of a node that runs, by sample."""
        if is_dynamic(node):
            return self._dynamic(node, masks)
        if node.op_type == "MatMul" and not self._averages.isdisjoint(node.input):
            return np.zeros(self.batch)
        if node.op_type in _STANDARD:
            return np.full(self.batch, _STANDARD[node.op_type](node, self._shape) / self.batch)
        nothing = np.zeros(self.batch)
        branches = [sum((self._macs(inner, masks) for inner in graph.node), nothing) for graph in subgraphs(node)]
        return max(branches, key=np.sum, default=nothing)

    def _mask(self, name: str, node: onnx.NodeProto, masks: Masks) -> npt.NDArray[np.float32]:
        if name not in masks:
            raise UsageError(f"The mask '{name}' of node '{node.name}' is not given.")
        return masks[name]

    def _dynamic(self, node: onnx.NodeProto, masks: Masks) -> npt.NDArray[np.float64]:
        spec = OPERATORS[node.op_type]
        shapes, attributes, given = self._call(spec, node, masks)
        macs: npt.NDArray[np.float64] = spec.work(shapes, attributes, spec.counts(shapes, attributes, given), 4.0).macs
        return macs


def _averages(model: onnx.ModelProto) -> frozenset[str]:
    """Constant rows of n values 1 / n: a product with one is a mean."""
    found = set()
    for item in model.graph.initializer:
        row = len(item.dims) == 2 and item.dims[0] == 1 and item.dims[1] > 1
        if row and (numpy_helper.to_array(item) == np.float32(1 / item.dims[1])).all():
            found.add(item.name)
    return frozenset(found)


def _conv(node: onnx.NodeProto, shape: Callable[[str], Shape]) -> float:
    # The weight is (out, in / group, *kernel): everything behind the first axis is one output's products.
    return float(np.prod(shape(node.output[0])) * np.prod(shape(node.input[1])[1:]))


def _transposed(node: onnx.NodeProto, shape: Callable[[str], Shape]) -> float:
    # The weight is (in, out / group, *kernel): everything behind the first axis is what one input is multiplied with.
    return float(np.prod(shape(node.input[0])) * np.prod(shape(node.input[1])[1:]))


def _gemm(node: onnx.NodeProto, shape: Callable[[str], Shape]) -> float:
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    inner = shape(node.input[0])[0 if transposed else 1]
    return float(np.prod(shape(node.output[0])) * inner)


def _matmul(node: onnx.NodeProto, shape: Callable[[str], Shape]) -> float:
    return float(np.prod(shape(node.output[0])) * shape(node.input[0])[-1])


_STANDARD: dict[str, Callable[[onnx.NodeProto, Callable[[str], Shape]], float]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
