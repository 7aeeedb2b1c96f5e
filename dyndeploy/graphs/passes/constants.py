"""Constants: what does not depend on the inputs is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dyndeploy.graphs.inspect import drop_unused
from dyndeploy.graphs.passes.shared import Array

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


def fold_constants(model: onnx.ModelProto, context: Context) -> None:
    """``fold::constants``: compute what does not depend on the inputs, e.g. the first queries of learnt tokens."""
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        foldable = not node.domain and all(name in constants or not name for name in node.input)
        if not foldable or outputs & set(node.output) or any(item.HasField("g") for item in node.attribute):
            kept.append(node)
            continue
        given = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
        results = _evaluate(node, given, model.opset_import)
        if sum(value.nbytes for value in results) > max(_MAY_GROW, *(value.nbytes for value in given.values()), 0):
            kept.append(node)
            continue
        for name, value in zip(node.output, results, strict=True):
            constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
            graph.initializer.append(constants[name])
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused(model)


_MAY_GROW = 1 << 16
"""Bytes that a folded constant may always have; beyond that it must not be larger than what it is computed from."""


def _evaluate(
    node: onnx.NodeProto, given: Mapping[str, Array], opsets: Sequence[onnx.OperatorSetIdProto]
) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in given.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    single = helper.make_model(helper.make_graph([node], "constant", inputs, outputs), opset_imports=opsets)
    return [np.asarray(value) for value in ReferenceEvaluator(single).run(None, dict(given))]
