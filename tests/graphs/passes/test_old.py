"""Passes that compute less: constants, batch norm, pooled depthwise convolutions, GELU; and what boards lack."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.graphs.passes import (
    Context,
    fold_batch_norm,
    fold_constants,
    fold_pooled_depthwise,
    legalise_opset,
    order_gelu,
)

CONTEXT = Context({}, ["y"], 18, 10, None, "cpu")
GENERATOR = np.random.default_rng(0)


def model_of(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], rank: int | None = None, **weights: Any
) -> onnx.ModelProto:
    rank = len(shape) if rank is None else rank
    for index, node in enumerate(nodes):
        node.name = f"n{index}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def norm_weights(channels: int) -> dict[str, np.ndarray]:
    return {
        "scale": normal(channels),
        "shift": normal(channels),
        "mean": normal(channels),
        "var": GENERATOR.uniform(0.3, 2, channels).astype(np.float32),
    }


NORM = ["scale", "shift", "mean", "var"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["Conv", "Gemm", "Gemm transposed", "Gemm behind", "Gemm transposed behind"])
def test_batch_norm_disappears(kind: str, bias: bool) -> None:
    transposed = "transposed" in kind
    if kind == "Conv":
        x, weight, outputs = normal(2, 4, 5, 5), normal(6, 2, 3, 3), 6
        layer = helper.make_node("Conv", ["x", "w", *["b"] * bias], ["h"], group=2)
    else:
        x, weight, outputs = normal(3, 4), normal(6, 4) if transposed else normal(4, 6), 6
        layer = helper.make_node("Gemm", ["x", "w", *["b"] * bias], ["h"], transB=int(transposed))
    weights = {"w": weight, **({"b": normal(outputs)} if bias else {})}
    if "behind" in kind:
        layer.input[0], layer.output[0] = "h", "y"
        nodes = [helper.make_node("BatchNormalization", ["x", *NORM], ["h"], epsilon=1e-3), layer]
        model = model_of(nodes, x.shape, **weights, **norm_weights(4))
    else:
        nodes = [layer, helper.make_node("BatchNormalization", ["h", *NORM], ["y"], epsilon=1e-3)]
        model = model_of(nodes, x.shape, **weights, **norm_weights(outputs))
    expected = run(model, x)
    fold_batch_norm(model, CONTEXT)
    onnx.checker.check_model(model)
    assert kinds(model) == [kind.split()[0]]
    assert len(model.graph.initializer) == 2
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_stays_where_another_node_reads_what_it_reads() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *NORM], ["n"]),
        helper.make_node("Add", ["h", "n"], ["y"]),
    ]
    x, model = normal(2, 4), model_of(nodes, (2, 4), w=normal(4, 4), **norm_weights(4))
    expected = run(model, x)
    fold_batch_norm(model, CONTEXT)
    assert "BatchNormalization" in kinds(model)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5)


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
