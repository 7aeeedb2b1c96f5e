"""Transposes cancel where layouts allow it; what a graph computes does not change."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.graphs.passes import cancel_transposes
from tests.graphs.passes.helpers import CONTEXT, evaluate, kinds, model_of, normal, run, run_all

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def transpose(source: str, output: str, perm: list[int]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [output], perm=perm)


def count(model: onnx.ModelProto) -> int:
    return kinds(model).count("Transpose")


@pytest.mark.parametrize(
    "between",
    [
        [],
        [("Relu", ["a"])],
        [("Relu", ["a"]), ("HardSwish", ["m0"])],
        [("Mul", ["a", "channel"])],
        [("Add", ["map", "a"])],
        [("Clip", ["a", "low", "high"])],
        [("Pad", ["a", "pads"])],
        [("ReduceMean", ["a", "axes"])],
        [("Sigmoid", ["a"]), ("Mul", ["a", "m0"]), ("Concat", ["m1", "a"])],
    ],
    ids=str,
)
def test_nothing_is_left_between_channels_last_blocks(between: list[tuple[str, list[str]]]) -> None:
    nodes = [helper.make_node("Exp", ["x"], ["e"]), transpose("e", "a", FIRST)]
    last = "a"
    for index, (kind, inputs) in enumerate(between):
        extra = {"Concat": {"axis": 1}}.get(kind, {})
        nodes.append(helper.make_node(kind, inputs, [f"m{index}"], **extra))
        last = f"m{index}"
    # What follows is channels-last by its own nature, as a MatMul over channels is.
    width = {"Concat": 6, "Pad": 4, "ReduceMean": 1}.get(between[-1][0] if between else "", 3)
    nodes += [transpose(last, "t", LAST), helper.make_node("MatMul", ["t", "w"], ["y"])]
    weights = {"channel": normal(3, 1, 1), "map": normal(1, 3, 4, 5), "low": -0.5, "high": 0.7, "w": normal(width, 2)}
    model = model_of(nodes, (2, 4, 5, 3), **weights)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1, 0, 2, 0, 0, 1, 0]), "pads"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "axes"))
    x = normal(2, 4, 5, 3)
    expected = run(model, x)
    cancel_transposes(model, CONTEXT)
    onnx.checker.check_model(model, full_check=True)
    assert count(model) == 0
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


def test_two_blocks_that_meet_in_a_sum_and_feed_a_convolution() -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("Tanh", ["x"], ["h"]),
        transpose("e", "a", FIRST),
        transpose("h", "b", FIRST),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"]),
    ]
    model = model_of(nodes, (2, 4, 5, 3), w=normal(2, 3, 1, 1))
    x = normal(2, 4, 5, 3)
    expected = run(model, x)
    cancel_transposes(model, CONTEXT)
    assert count(model) == 1, "one behind the sum instead of two before it"
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


def test_outputs_keep_their_layout_and_names() -> None:
    nodes = [
        transpose("x", "a", FIRST),
        transpose("a", "y", LAST),
        transpose("a", "z", LAST),
        transpose("x", "u", FIRST),
        helper.make_node("Relu", ["u"], ["v"]),
    ]
    model = model_of(nodes, (2, 4, 5, 3))
    for name in ("z", "u", "v"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4))
    x = normal(2, 4, 5, 3)
    expected = evaluate(model, x=x)
    cancel_transposes(model, CONTEXT)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == ["y", "z", "u", "v"]
    assert count(model) == 1
    for value, wanted in zip(evaluate(model, x=x), expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_an_output_that_takes_a_name_which_another_reads() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        transpose("r", "same", [0, 1, 2, 3]),
        transpose("r", "turned", LAST),
    ]
    model = model_of(nodes, (2, 4, 5, 3))
    del model.graph.output[:]
    for name in ("turned", "same"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4))
    x = normal(2, 4, 5, 3)
    expected = evaluate(model, x=x)
    cancel_transposes(model, CONTEXT)
    onnx.checker.check_model(model, full_check=True)
    assert count(model) == 1
    for value, wanted in zip(evaluate(model, x=x), expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Random graphs of Transposes and operators of any and of one layout, on cubes, so that everything fits."""
    nodes: list[onnx.NodeProto] = []
    tensors = ["x"]
    for index in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["Transpose", "Transpose", "Relu", "Add", "Mul", "Conv", "Pad", "Reduce", "Where"]))
        first, second = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        output = f"t{index}"
        if kind == "Transpose":
            perm = draw(st.sampled_from([LAST, FIRST, [0, 1, 2, 3], [3, 1, 0, 2]]))
            nodes.append(transpose(first, output, perm))
        elif kind == "Conv":
            nodes.append(helper.make_node("Conv", [first, "w"], [output], pads=[1] * 4))
        elif kind == "Relu":
            nodes.append(helper.make_node("Relu", [first], [output]))
        elif kind == "Pad":
            nodes.append(helper.make_node("Pad", [first, "pads"], [output]))
        elif kind == "Reduce":
            nodes.append(helper.make_node("ReduceMax", [first, "axes"], [f"{output}r"]))
            nodes.append(helper.make_node("Sub", [first, f"{output}r"], [output]))
        elif kind == "Where":
            nodes.append(helper.make_node("Max", [first, "bias", second], [output]))
        else:
            nodes.append(helper.make_node(kind, [first, draw(st.sampled_from([second, "bias"]))], [output]))
        tensors.append(output)
    model = model_of(nodes, (3, 3, 3, 3), w=normal(3, 3, 3, 3), bias=normal(3, 1, 1))
    del model.graph.output[:]
    for name in draw(st.lists(st.sampled_from(tensors[1:]), min_size=1, max_size=4, unique=True)):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [3] * 4))
    constants = {"pads": [0, 1, 0, 0, 0, -1, 0, 0], "axes": [1, 3]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    return model


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_random_graphs_compute_the_same_with_no_more_transposes(model: onnx.ModelProto) -> None:
    x = normal(3, 3, 3, 3)
    before, expected = count(model), run_all(model, x)
    names = [value.name for value in model.graph.output]
    cancel_transposes(model, CONTEXT)
    onnx.checker.check_model(model, full_check=True)
    assert count(model) <= before
    assert [value.name for value in model.graph.output] == names
    for value, wanted in zip(run_all(model, x), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)
