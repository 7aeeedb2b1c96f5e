from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dyndeploy.graphs.passes import Context, legalise_opset
from tests.graphs.passes.helpers import kinds, model_of, normal, run


@pytest.mark.parametrize("opset", [13, 17])
def test_operators_that_a_board_lacks_are_written_out(opset: int) -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n"], epsilon=1e-3),
        helper.make_node("HardSwish", ["n"], ["s"]),
        helper.make_node("ReduceMax", ["s", "axes"], ["y"], keepdims=0),
    ]
    model = model_of(nodes, (2, 5, 4), rank=2, scale=normal(4), shift=normal(4))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    x = normal(2, 5, 4)
    expected = run(model, x)
    names = {"Sub", "ReduceMean", "Mul", "Add", "Sqrt", "Div", "HardSigmoid", "ReduceMax"}
    legalise_opset(model, Context({}, ["y"], opset, 8, frozenset(names), "board"))
    onnx.checker.check_model(model, full_check=True)
    assert set(kinds(model)) == names
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-6)
