"""The graph that FP16 storage makes of a bundle's graph, in float: every stored value passes through half and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dyndeploy.bundle import MaskInfo
from dyndeploy.graphs.forced import PREFIX, overlay_forced_masks
from dyndeploy.graphs.kept_float import in_parts
from dyndeploy.graphs.tensorrt import FLOAT_ONLY_INPUTS, float_nodes, in_head, to_half
from dyndeploy.ops import DOMAIN, OPERATORS, Element, Role

if TYPE_CHECKING:
    import onnx

_HALF_WEIGHTS = frozenset({"w1", "w2", "w3", "wd"})


HALF_BITS = 11
"""Significant bits that half keeps."""


def rounded_model(
    model: onnx.ModelProto,
    masks: Sequence[MaskInfo],
    *,
    half_maskers: bool,
    bits: int = HALF_BITS,
    exact_parts: bool = True,
) -> onnx.ModelProto:
    """A float graph that gives what FP16 storage gives: every stored value passes through half and back.

    Args:
        model: ``model.onnx`` of a bundle.
        masks: Its masks; they are forced on the operators (see :func:`overlay_forced_masks`).
        half_maskers: Round the maskers too: their weights and every intermediate result.
        bits: Significant bits that a stored value keeps, weights aside; fewer than half's stand for coarser sums.
        exact_parts: Whether a detector's neck and heads keep in float what the plan does
            (:mod:`dyndeploy.graphs.kept_float`), or nothing.

    Raises:
        UsageError: A weight is beyond the range of FP16.
    """
    import onnx
    from onnx import inliner

    keep = {name for name in float_nodes(model) if exact_parts or not in_parts(name)}
    forced = overlay_forced_masks(model, masks) if masks else model
    graph_nodes = {name for node in forced.graph.node for name in node.output}
    maskers = [(DOMAIN, spec.name) for spec in OPERATORS.values() if spec.decides]
    if half_maskers:
        present = {(function.domain, function.name) for function in forced.functions}
        forced = inliner.inline_selected_functions(forced, [m for m in maskers if m in present], exclude=False)
    result = onnx.ModelProto()
    result.CopyFrom(forced)
    inferred = onnx.shape_inference.infer_shapes(forced).graph
    floats = {
        value.name
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    floats |= {node.output[0] for node in forced.graph.node if node.domain == DOMAIN}
    rounding = _Rounding(result, floats, bits)
    for node in forced.graph.node:
        current = onnx.NodeProto.FromString(node.SerializeToString())
        inlined = node.output[0] not in graph_nodes
        masker = node.name in keep and not in_head(node.name)
        forcing = any(name.startswith(PREFIX) for name in node.output)
        stored = False
        if node.domain == DOMAIN:
            spec = OPERATORS[node.op_type]
            stored = not spec.decides
            if stored:
                weights = [i for i, p in enumerate(spec.inputs) if p.role is Role.WEIGHT and p.name in _HALF_WEIGHTS]
                rounding.round_weights(current, weights)
        elif not forcing and (inlined or masker or node.name not in keep):
            stored = half_maskers or not (inlined or masker)
            if stored:
                rounding.round_weights(current, range(len(node.input)))
        rounding.add(current, stored=stored)
    rounding.finish()
    return result


class _Rounding:
    """Rewrites a graph node by node."""

    def __init__(self, model: onnx.ModelProto, floats: set[str], bits: int) -> None:
        self._graph = model.graph
        self._floats = floats
        self._constants = {item.name: item for item in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._rounded: set[str] = set()
        self._halves: set[str] = set()
        self._bits = bits

    def round_weights(self, node: onnx.NodeProto, indices: Iterable[int]) -> None:
        """Let a node read rounded copies of its constants."""
        from onnx import TensorProto, numpy_helper

        for index in indices:
            name = node.input[index]
            item = self._constants.get(name)
            if item is None or item.data_type != TensorProto.FLOAT:
                continue
            copy = f"{name}/rounded"
            if copy not in self._rounded:
                self._rounded.add(copy)
                value = to_half(numpy_helper.to_array(item), name).astype(np.float32)
                self._graph.initializer.append(numpy_helper.from_array(value, copy))
            node.input[index] = copy

    def add(self, node: onnx.NodeProto, *, stored: bool) -> None:
        """Append a node; what it stores passes through half, and so does what it reads of what was not stored so."""
        if stored:
            for index in _data_inputs(node):
                name = node.input[index]
                if name in self._floats and name not in self._halves and name not in self._constants:
                    if f"{name}/rounded" not in self._halves:
                        self._through_half(name, f"{name}/rounded")
                    node.input[index] = f"{name}/rounded"
        self._nodes.append(node)
        if not stored:
            return
        for index, name in enumerate(node.output):
            if name in self._floats:
                node.output[index] = f"{name}/exact"
                self._through_half(f"{name}/exact", name)

    def _through_half(self, source: str, target: str) -> None:
        from onnx import TensorProto, helper

        middle = f"{target}/as_half"
        self._nodes.append(helper.make_node("Cast", [source], [middle], to=TensorProto.FLOAT16))
        if self._bits == HALF_BITS:
            self._nodes.append(helper.make_node("Cast", [middle], [target], to=TensorProto.FLOAT))
        else:
            self._nodes.append(helper.make_node("Cast", [middle], [f"{target}/wide"], to=TensorProto.FLOAT))
            self._coarsen(f"{target}/wide", target)
        self._halves.add(target)

    def _coarsen(self, source: str, target: str) -> None:
        """Dekker's splitting of a float of 24 bits: the upper part of it, rounded to nearest."""
        from onnx import helper, numpy_helper

        factor, product, rest = (f"{target}/{part}" for part in ("factor", "product", "rest"))
        value = np.float32(2 ** (24 - self._bits) + 1)
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), factor))
        self._nodes.append(helper.make_node("Mul", [source, factor], [product]))
        self._nodes.append(helper.make_node("Sub", [product, source], [rest]))
        self._nodes.append(helper.make_node("Sub", [product, rest], [target]))

    def finish(self) -> None:
        """Put the nodes into the graph."""
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.value_info[:]


def _data_inputs(node: onnx.NodeProto) -> Iterable[int]:
    """Which inputs a node in half reads as half: of a plugin its activations, but no coordinates and no masks."""
    if node.domain != DOMAIN:
        kept = FLOAT_ONLY_INPUTS.get(node.op_type, ())
        return [index for index in range(len(node.input)) if index not in kept]
    ports = OPERATORS[node.op_type].inputs[: len(node.input)]
    return [i for i, port in enumerate(ports) if port.role is Role.ACTIVATION and port.element is Element.DATA]
