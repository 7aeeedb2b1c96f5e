"""Means over pixels of channels-last maps become products."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dyndeploy.graphs.passes import channels_last_means
from tests.graphs.passes.helpers import CONTEXT, kinds, model_of, normal, run

FLAT = {
    "Flatten": ("Flatten", []),
    "Squeeze": ("Squeeze", ["last"]),
    "Reshape": ("Reshape", ["flat"]),
    "Reshape -1": ("Reshape", ["free"]),
    "": None,
}


@pytest.mark.parametrize("between", [[], ["Relu"], ["HardSwish", "Sigmoid"]])
@pytest.mark.parametrize("flat", FLAT)
@pytest.mark.parametrize("kind", ["GlobalAveragePool", "ReduceMean", "ReduceMean keeps"])
def test_a_mean_behind_a_transpose(kind: str, flat: str, between: list[str]) -> None:
    keeps = kind != "ReduceMean"
    tail = FLAT[flat] if keeps else None
    nodes = [helper.make_node("Transpose", ["x"], ["m0"], perm=[0, 3, 1, 2])]
    for index, function in enumerate(between):
        nodes.append(helper.make_node(function, [f"m{index}"], [f"m{index + 1}"]))
    last, output = f"m{len(between)}", "y" if tail is None else "p"
    if kind == "GlobalAveragePool":
        nodes.append(helper.make_node(kind, [last], [output]))
    else:
        nodes.append(helper.make_node("ReduceMean", [last, "axes"], [output], keepdims=int(keeps)))
    if tail is not None:
        nodes.append(helper.make_node(tail[0], ["p", *tail[1]], ["y"]))
    x = normal(2, 3, 5, 4)
    model = model_of(nodes, x.shape, rank=4 if keeps and tail is None else 2)
    constants = {"axes": [-1, 2], "last": [2, 3], "flat": [2, 4], "free": [2, -1]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    expected = run(model, x)
    channels_last_means(model, CONTEXT)
    onnx.checker.check_model(model, full_check=True)
    assert kinds(model) == [*between, "Reshape", "MatMul", "Reshape"]
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)
    assert run(model, x).shape == expected.shape


def test_other_means_stay() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["t", "axes"], ["m"]),
        helper.make_node("GlobalAveragePool", ["x"], ["g"]),
        helper.make_node("Add", ["m", "g"], ["y"]),
    ]
    model = model_of(nodes, (2, 3, 5, 4))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
    channels_last_means(model, CONTEXT)
    assert kinds(model) == ["Transpose", "ReduceMean", "GlobalAveragePool", "Add"]
