from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from dyndeploy.graphs.passes import order_gelu
from tests.graphs.passes.helpers import CONTEXT, model_of, normal, run


@pytest.mark.parametrize("swapped", [True, False])
def test_gelu_is_written_as_runtimes_know_it(swapped: bool) -> None:
    product = ["x", "h"] if swapped else ["h", "x"]
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["a"]),
        helper.make_node("Mul", ["half", "a"], ["h"]),
        helper.make_node("Mul", product, ["y"]),
    ]
    x, model = normal(2, 5, 4), model_of(nodes, (2, 5, 4), root=np.sqrt(2), one=1.0, half=0.5)
    expected = run(model, x)
    order_gelu(model, CONTEXT)
    onnx.checker.check_model(model)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-6)
    *_, first, last = model.graph.node
    assert (set(first.input), set(last.input)) == ({"x", "a"}, {"h", "half"})
