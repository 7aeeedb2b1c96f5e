from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from dyndeploy.graphs.passes import fold_batch_norm
from tests.graphs.passes.helpers import (
    CONTEXT,
    NORM,
    double_model,
    evaluate,
    kinds,
    model_of,
    norm_weights,
    normal,
    run,
)


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


@st.composite
def nets(draw: st.DrawFn) -> tuple[onnx.ModelProto, np.ndarray, set[str]]:
    """Chains of layers and norms in double precision, some of them read twice; and operators that must remain."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    flat = draw(st.booleans())
    channels = draw(st.sampled_from([2, 4]))
    shape = (3, channels) if flat else (2, channels, 5, 4)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    last = "x"

    def constant(kind: str, value: np.ndarray) -> str:
        weights[f"{kind}{len(weights)}"] = value
        return f"{kind}{len(weights) - 1}"

    def emit(op_type: str, inputs: list[str], **attributes: object) -> str:
        nodes.append(helper.make_node(op_type, inputs, [f"t{len(nodes)}"], **attributes))
        return f"t{len(nodes) - 1}"

    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["norm", "norm", "layer", "relu", "twice"]))
        if kind == "norm":
            parts = [generator.standard_normal(channels) for _ in range(3)] + [generator.uniform(0.5, 2, channels)]
            if draw(st.booleans()):
                parts[1] = parts[2] = np.zeros(channels)  # no shift
            last = emit("BatchNormalization", [last, *(constant("n", part) for part in parts)], epsilon=1e-3)
        elif kind == "relu":
            last = emit("Relu", [last])
        elif kind == "twice":
            last = emit("Add", [last, emit("Relu", [last])])
        elif flat:
            layer = draw(st.sampled_from(["Gemm", "transB", "MatMul", "MatMulAdd"]))
            weight = constant("w", generator.standard_normal((channels, channels)))
            bias = constant("b", generator.standard_normal(channels))
            if layer.startswith("MatMul"):
                last = emit("MatMul", [last, weight])
                last = emit("Add", [bias, last]) if layer == "MatMulAdd" else last
            else:
                last = emit("Gemm", [last, weight, bias][: draw(st.integers(2, 3))], transB=int(layer == "transB"))
        else:
            layer = draw(st.sampled_from(["Conv", "ConvTranspose"]))
            # ONNX's reference has no grouped ConvTranspose.
            group, pad = draw(st.sampled_from([1, 2])) if layer == "Conv" else 1, draw(st.sampled_from([0, 1]))
            weight = constant("w", generator.standard_normal((channels, channels // group, 1 + 2 * pad, 1 + 2 * pad)))
            bias = constant("b", generator.standard_normal(channels))
            inputs = [last, weight, bias][: draw(st.integers(2, 3))]
            last = emit(layer, inputs, group=group, pads=[pad] * 4, kernel_shape=[1 + 2 * pad] * 2)
    emit("Identity", [last])
    nodes[-1].output[0] = "y"
    model = double_model(nodes, shape, len(shape), weights)
    return model, generator.standard_normal(shape), {node.op_type for node in nodes} - {"BatchNormalization"}


@settings(max_examples=150, deadline=None)
@given(nets())
def test_no_batch_norm_is_left_and_nothing_changes(case: tuple[onnx.ModelProto, np.ndarray, set[str]]) -> None:
    model, x, others = case
    expected = evaluate(model, x=x)[0]
    fold_batch_norm(model, CONTEXT)
    onnx.checker.check_model(model, full_check=True)
    assert set(kinds(model)) <= others | {"Mul", "Add", "Gemm"}
    np.testing.assert_allclose(evaluate(model, x=x)[0], expected, rtol=1e-9, atol=1e-9)


def test_where_another_node_reads_what_it_reads_a_product_and_a_sum_remain() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *NORM], ["n"]),
        helper.make_node("Add", ["h", "n"], ["y"]),
    ]
    x, model = normal(2, 4), model_of(nodes, (2, 4), w=normal(4, 4), **norm_weights(4))
    expected = run(model, x)
    fold_batch_norm(model, CONTEXT)
    assert kinds(model) == ["Gemm", "Mul", "Add", "Add"]
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pads", "shifted", "left"), [(0, True, 1), (1, True, 3), (1, False, 1)])
def test_a_convolution_behind_takes_a_norm_unless_its_padding_would_change(pads: int, shifted: bool, left: int) -> None:
    norm = norm_weights(4)
    if not shifted:
        norm["shift"] = norm["mean"] = np.zeros(4, np.float32)
    nodes = [
        helper.make_node("BatchNormalization", ["x", *NORM], ["n"]),
        helper.make_node("Conv", ["n", "w"], ["y"], pads=[pads] * 4, group=2),
    ]
    x, model = normal(2, 4, 5, 5), model_of(nodes, (2, 4, 5, 5), w=normal(6, 2, 3, 3), **norm)
    expected = run(model, x)
    fold_batch_norm(model, CONTEXT)
    assert len(kinds(model)) == left
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)


def test_shared_weights_get_copies() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", *NORM], ["n"]),
        helper.make_node("Conv", ["n", "w"], ["y"]),
    ]
    x, model = normal(1, 3, 2, 2), model_of(nodes, (1, 3, 2, 2), w=normal(3, 3, 1, 1), **norm_weights(3))
    expected = run(model, x)
    fold_batch_norm(model, CONTEXT)
    assert kinds(model) == ["Conv", "Conv"]
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_of_rows_of_tokens_is_not_taken_for_one_of_columns() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *NORM], ["y"]),
    ]
    x, model = normal(2, 4, 4), model_of(nodes, (2, 4, 4), w=normal(4, 4), **norm_weights(4))
    expected = run(model, x)
    fold_batch_norm(model, CONTEXT)
    assert kinds(model) == ["MatMul", "Mul", "Add"]
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)


def test_a_grouped_transposed_convolution_takes_a_norm() -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w", "b"], ["h"], group=2),
        helper.make_node("BatchNormalization", ["h", *NORM], ["y"]),
    ]
    x, model = normal(2, 4, 5, 5), model_of(nodes, (2, 4, 5, 5), w=normal(4, 3, 3, 3), b=normal(6), **norm_weights(6))
    expected = run(model, x)
    fold_batch_norm(model, CONTEXT)
    assert kinds(model) == ["ConvTranspose"]
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)
