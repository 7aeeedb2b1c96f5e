from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from dyndeploy.graphs.passes import Context, fold_pooled_depthwise
from tests.graphs.passes.helpers import CONTEXT, kinds, model_of, normal, run


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, 5, 7]),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 5),
    bias=st.booleans(),
    added=st.booleans(),
)
def test_a_pooled_depthwise_convolution_is_one_convolution(
    kernel: int, window: tuple[int, int], grid: tuple[int, int], channels: int, bias: bool, added: bool
) -> None:
    x = normal(2, channels, window[0] * grid[0], window[1] * grid[1])
    inputs = ["x", "w", *["b"] * bias]
    nodes = [helper.make_node("Conv", inputs, ["c"], group=channels, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2)]
    if added:
        nodes.append(helper.make_node("Add", ["x", "c"], ["a"]))
    nodes.append(helper.make_node("AveragePool", [nodes[-1].output[0]], ["y"], kernel_shape=window, strides=window))
    weights = {"w": normal(channels, 1, kernel, kernel), **({"b": normal(channels)} if bias else {})}
    model = model_of(nodes, x.shape, **weights)
    expected = run(model, x)
    fold_pooled_depthwise(model, CONTEXT)
    onnx.checker.check_model(model)
    assert kinds(model) == ["Conv"]
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "runtime"),
    [({}, "tensorrt"), ({"strides": [1, 1]}, "onnxruntime"), ({"pads": [1, 1, 1, 1]}, "onnxruntime")],
)
def test_what_is_no_pooled_depthwise_convolution_stays(change: dict[str, Any], runtime: str) -> None:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], **change}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=3, pads=[1] * 4),
        helper.make_node("AveragePool", ["c"], ["y"], **pool),
    ]
    model = model_of(nodes, (1, 3, 4, 4), w=normal(3, 1, 3, 3))
    fold_pooled_depthwise(model, Context({}, ["y"], 18, 10, None, "t", runtime=runtime))
    assert kinds(model) == ["Conv", "AveragePool"]
