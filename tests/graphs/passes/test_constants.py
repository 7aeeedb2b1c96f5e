from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.graphs.passes import fold_constants
from tests.graphs.passes.helpers import CONTEXT, kinds, model_of, normal, run


def test_constants_are_computed_unless_they_grow() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["tokens", "scale", "shift"], ["normed"]),
        helper.make_node("MatMul", ["normed", "w"], ["queries"]),
        helper.make_node("Tile", ["queries", "repeats"], ["many"]),
        helper.make_node("Add", ["x", "queries"], ["s"]),
        helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0),
        helper.make_node("Add", ["s", "sum"], ["y"]),
    ]
    model = model_of(nodes, (2, 8, 4), tokens=normal(1, 8, 4), scale=normal(4), shift=normal(4), w=normal(4, 4))
    model.graph.initializer.append(numpy_helper.from_array(np.array([64, 64, 1]), "repeats"))
    x = normal(2, 8, 4)
    expected = run(model, x)
    fold_constants(model, CONTEXT)
    assert kinds(model) == ["Tile", "Add", "ReduceSum", "Add"], "the tile is 64 x 64 times larger than its input"
    assert {item.name for item in model.graph.initializer} == {"queries", "repeats"}
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-4)


def test_scalars_stay_scalars() -> None:
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"]),
        helper.make_node("Cast", ["two"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["x", "index"], ["y"], axis=1),
    ]
    model = model_of(nodes, (2, 4), rank=1, one=1.0)
    fold_constants(model, CONTEXT)
    assert kinds(model) == ["Gather"]
    x = normal(2, 4)
    np.testing.assert_array_equal(run(model, x), x[:, 2])
