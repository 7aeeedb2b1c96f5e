"""The TensorRT copy computes what the bundle's graph computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.forced import replace_masks
from dyndeploy.graphs.stages import whole_model
from dyndeploy.graphs.tensorrt import (
    HALF_ONLY,
    LARGEST_BATCH,
    TIMING_RATES,
    TUNING,
    PrecisionPlan,
    float_nodes,
    missing_creators,
    precision_plan,
    tensorrt_model,
    to_half,
)
from dyndeploy.measure.laziness import CHANNELS, LAYERS, SIDE, branch_model
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops._bottleneck import border_bias, skipped_output
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.targets import load_target
from tests.bundles import MODES, SIZE, tiny_models
from tests.ops.cases import QUANTIZED, Case, any_case, build
from tests.runtimes.tensorrt_reference import check_types, evaluate
from tests.staged_bundles import stage_models

PLUGINS = {name: spec for name, spec in OPERATORS.items() if "tensorrt" in spec.kernels}
"""Operators that have a plugin."""

FP32 = PrecisionPlan("fp32", typed=False)
FLAGS = PrecisionPlan("fp16", typed=False)
TYPED = PrecisionPlan("fp16", typed=True)
BOTTLENECKS = [name for name in PLUGINS if "Bottleneck" in name and not name.startswith(QUANTIZED)]
PLUGIN: dict[str, Any] = {"domain": DOMAIN, "plugin_version": "1", "plugin_namespace": ""}


def one_operator(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A graph of one operator: activation and masks are inputs, weights are constants."""
    ports = list(zip(case.spec.inputs, case.inputs, strict=True))
    inputs = [(port, tensor) for port, tensor in ports if port.role.value != "weight"]
    output = case.spec.infer_shape(case.shapes, case.attributes)
    graph = helper.make_graph(
        [
            helper.make_node(
                case.spec.name,
                [port.name for port, _ in ports],
                ["y"],
                name=f"block/{case.spec.name}",
                **case.attributes,
                **PLUGIN,
            )
        ],
        "one",
        [helper.make_tensor_value_info(port.name, TensorProto.FLOAT, tensor.shape) for port, tensor in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(t.numpy(), port.name) for port, t in ports if port.role.value == "weight"],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    functions = [case.spec.function(17)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    return model, {port.name: tensor.numpy() for port, tensor in inputs}


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    assert float(np.abs(actual - expected).max(initial=0)) <= tolerance * scale


@pytest.mark.parametrize("name", BOTTLENECKS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_bottleneck_equals_its_reference(name: str, data: st.DataObject) -> None:
    case = data.draw(any_case(name))
    model, feeds = one_operator(case)
    copy = tensorrt_model(model, FP32)
    assert not copy.functions
    close(evaluate(copy, feeds)["y"], case.reference().numpy(), 2e-4)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_half_weights_come_close(name: str) -> None:
    case = build(name, batch=2, size=(9, 7), hidden=12, group=2, stride=2, mask_size=(3, 2), channel_groups=3)
    model, feeds = one_operator(case)
    for plan in (FLAGS, TYPED):
        copy = tensorrt_model(model, plan)
        types = {item.name.rsplit("/", 1)[1]: item.data_type for item in copy.graph.initializer}
        assert {types[name] for name in types if name.startswith("w")} == {TensorProto.FLOAT16}
        assert {types[name] for name in types if not name.startswith("w")} == {TensorProto.FLOAT}
    result = evaluate(tensorrt_model(model, TYPED), feeds)["y"]
    assert result.dtype == np.float32
    expected = case.reference().numpy()
    close(result, expected, 2e-2)
    assert np.abs(result - expected).max() > 0


@pytest.mark.parametrize("mode", MODES)
def test_networks_equal_onnx_runtime(mode: str) -> None:
    model, _, masks = tiny_models(mode, batch=3)
    images = np.random.default_rng(3).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)
    with OnnxRuntimeSession(model, native="off") as session:
        expected = session.run({"input": images})
    actual = evaluate(tensorrt_model(model, FP32), {"input": images})
    for mask in masks:
        np.testing.assert_array_equal(actual[mask.name], expected[mask.name])
    close(actual["logits"], expected["logits"], 2e-4)
    # Types do not change names: profilers join times with blocks by them.
    typed = tensorrt_model(model, TYPED)
    check_types(typed)
    names = {node.name for node in model.graph.node}
    assert names <= {node.name for node in typed.graph.node}
    assert [value.name for value in typed.graph.output] == [value.name for value in model.graph.output]
    half = evaluate(typed, {"input": images})
    assert {value.dtype for value in half.values()} == {np.dtype(np.float32)}
    if all(np.array_equal(half[mask.name], expected[mask.name]) for mask in masks):
        close(half["logits"], expected["logits"], 2e-2)


def test_static_twins_have_plans_too() -> None:
    _, twin, _ = tiny_models("spatial", batch=2)
    images = np.random.default_rng(5).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    typed = tensorrt_model(twin, TYPED)
    check_types(typed)
    types = {item.name: item.data_type for item in typed.graph.initializer}
    assert types["head.w"] == TensorProto.FLOAT
    assert {kind for name, kind in types.items() if not name.startswith("head")} == {TensorProto.FLOAT16}
    with OnnxRuntimeSession(twin, native="off") as session:
        expected = session.run({"input": images})["logits"]
    result = evaluate(typed, {"input": images})["logits"]
    close(result, expected, 2e-2)
    assert result.dtype == np.float32 and np.abs(result - expected).max() > 0


def test_border_classes_by_hand() -> None:
    w2 = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    rows = border_bias(w2, np.array([2.0]), np.array([100.0]), 1)[:, 0]
    assert rows[0] == 100 + 2 * 36
    assert rows[1] == 100 + 2 * (36 - 3)  # the row 0, 1, 2 lies above the map
    assert rows[2] == 100 + 2 * (36 - 21)
    assert rows[4] == 100 + 2 * (36 - 9)
    assert rows[8] == 100 + 2 * (36 - 15)
    assert rows[15] == 100 + 2 * 4  # a map of one pixel sees the centre only
    assert not np.ptp(border_bias(w2, np.array([-2.0]), np.array([100.0]), 1))
    assert skipped_output(np.array([[1.0, 3.0]]), np.array([2.0, -5.0]), np.array([7.0])).tolist() == [9.0]


def test_shared_constants_are_told_apart() -> None:
    model, feeds = one_operator(build("ChannelBottleneck", channels=6, hidden=6))
    node = model.graph.node[0]
    node.input[5] = node.input[3]  # b2 is b1, as the exporter writes equal biases
    with OnnxRuntimeSession(model, native="off") as session:
        expected = session.run(feeds)["y"]
    close(evaluate(tensorrt_model(model, FP32), feeds)["y"], expected, 2e-4)
    assert "b2" not in {item.name for item in tensorrt_model(model, FP32).graph.initializer}


def test_convolutional_maskers_and_the_head_stay_float() -> None:
    x = torch.rand(1, 4, 4, 8).numpy()
    generator = np.random.default_rng(0)
    constants = {
        "conv": generator.standard_normal((8, 5)),
        "weight": generator.standard_normal((2, 5)),
        "bias": np.zeros(2),
    }
    nodes = [
        helper.make_node("Relu", ["input"], ["x"], name="stem/Relu"),
        helper.make_node("MatMul", ["x", "conv"], ["features"], name="a/masker_channel"),
        helper.make_node("Relu", ["features"], ["positive"], name="a/masker_channel_1"),
        helper.make_node("ChannelMasker", ["positive", "weight", "bias"], ["mask/a"], name="a/ChannelMasker", **PLUGIN),
        helper.make_node("Add", ["x", "x"], ["sum"], name="a/Add"),
        helper.make_node("ReduceMean", ["sum"], ["logits"], name="head/mean", axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "masker",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 4, 4, 8))],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 8)),
            helper.make_tensor_value_info("mask/a", TensorProto.FLOAT, (1, 2)),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, (1, 4, 4, 8)),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    functions = [OPERATORS["ChannelMasker"].function(17)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    assert float_nodes(model) == {"a/masker_channel", "a/masker_channel_1", "head/mean"}
    typed = tensorrt_model(model, TYPED)
    check_types(typed)
    constants_of = {item.name: item.data_type for item in typed.graph.initializer}
    assert constants_of == dict.fromkeys(constants, TensorProto.FLOAT)
    # The half map is cast back for masker and head; the graph's output 'sum' is float outside, half inside.
    casts = [(n.input[0], helper.get_attribute_value(n.attribute[0])) for n in typed.graph.node if n.op_type == "Cast"]
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    assert sorted(casts) == [("input", half), ("sum/half", single), ("x", single)]
    actual = evaluate(typed, {"input": x})
    close(actual["logits"], 2 * x.mean((1, 2)), 2e-3)
    close(actual["sum"], 2 * x, 1e-3)


def test_operators_inside_branches_are_repacked() -> None:
    target = load_target("nano")
    model = branch_model(target, operators=True)
    copy = tensorrt_model(model, FP32)
    assert missing_creators(copy, []) == ["LayerBottleneck"]
    assert not copy.functions and len(copy.graph.initializer) == LAYERS * 6 + 3
    x = np.random.default_rng(0).random((1, SIDE, SIDE, CHANNELS), np.float32)
    with OnnxRuntimeSession(model, native="off") as session:
        for gate in (0.0, 1.0):
            feeds = {"x": x, "gate": np.array([gate], np.float32)}
            close(evaluate(copy, feeds)["y"], session.run(feeds)["y"], 2e-4)
    with pytest.raises(UsageError, match="no typed FP16 plan"):
        tensorrt_model(model, TYPED)


def test_the_check_of_types_can_fail() -> None:
    typed = tensorrt_model(tiny_models("spatial")[0], TYPED)
    cast = next(node for node in typed.graph.node if node.op_type == "Cast")
    for node in typed.graph.node:
        node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]
    with pytest.raises(onnx.shape_inference.InferenceError):
        check_types(typed)


def test_what_cannot_be_copied_is_refused() -> None:
    model, _ = one_operator(build("SpatialBottleneck"))
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    del broken.graph.initializer[0]
    with pytest.raises(BundleError, match="input w1 is no constant"):
        tensorrt_model(broken, FP32)
    with pytest.raises(UsageError, match="w1 holds 70000, which is beyond the range of FP16"):
        to_half(np.array([70000.0, 1.0]), "w1")


def test_missing_creators() -> None:
    model, _, _ = tiny_models("both")
    copy = tensorrt_model(model, FP32)
    names = ["ChannelMasker", "SpatialChannelBottleneck", "SpatialChannelBottleneckProjection", "SpatialMasker"]
    assert missing_creators(copy, []) == names
    assert missing_creators(copy, [(name, "1") for name in names]) == []
    assert missing_creators(copy, [(name, "2" if name == names[0] else "1") for name in names]) == names[:1]


@pytest.mark.parametrize(
    ("precision", "version", "typed", "expected"),
    [
        ("fp32", (8, 2, 1), None, PrecisionPlan("fp32", False)),
        ("fp16", (8, 5, 3), None, FLAGS),
        ("fp16", (10, 3, 0), None, FLAGS),
        ("fp16", (10, 3, 0), True, TYPED),
        ("fp16", (11, 1, 0), None, TYPED),
        ("fp32", (11, 1, 0), None, PrecisionPlan("fp32", True)),
        ("int8", (8, 5, 2), None, PrecisionPlan("int8", False)),
        ("int8", (11, 1, 0), None, PrecisionPlan("int8", True)),
    ],
)
def test_plans(precision: str, version: tuple[int, ...], typed: bool | None, expected: PrecisionPlan) -> None:
    assert precision_plan(precision, version, strongly_typed=typed) == expected


@pytest.mark.parametrize(
    ("precision", "version", "typed", "message"),
    [
        ("bf16", (10, 3), None, "no plan for precision 'bf16'"),
        ("fp16", (8, 6), True, r"8\.6 cannot build strongly typed"),
        ("fp16", (11, 1), False, r"11\.1 has no precision flags"),
    ],
)
def test_impossible_plans(precision: str, version: tuple[int, ...], typed: bool | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        precision_plan(precision, version, strongly_typed=typed)


def test_the_head_begins_at_the_vectors() -> None:
    """A graph without blocks has nothing but nodes of the head: its maps are half all the same."""
    stage = stage_models(1)[0]
    for node in stage.graph.node:
        node.name = node.name.replace("body/", "head/")
    kept = {"head/GlobalAveragePool", "head/Flatten", "head/Gemm", "head/Softmax", "head/ReduceMax"}
    assert float_nodes(stage) == kept
    copy = tensorrt_model(stage, TYPED)
    check_types(copy)
    types = {item.name: item.data_type for item in copy.graph.initializer}
    assert types["body/w/as_half"] == TensorProto.FLOAT16 and types["head/w"] == TensorProto.FLOAT
    joined = whole_model(stage_models(1))
    assert float_nodes(joined) == {"stage2/" + name for name in kept - {"head/Softmax", "head/ReduceMax"}}


@pytest.mark.parametrize("opset", [17, 18])
def test_means_are_written_as_means(opset: int) -> None:
    row = np.full((1, 1, 16), 1 / 16, np.float32)
    nodes = [
        helper.make_node("MatMul", ["row", "x"], ["mean"], name="head/MatMul"),
        helper.make_node("MatMul", ["sum", "x"], ["total"], name="head/sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 16, 8))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 1, 8)) for name in ("mean", "total")],
        [numpy_helper.from_array(row, "row"), numpy_helper.from_array(row * 16, "sum")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    copy = tensorrt_model(model, FP32)
    onnx.checker.check_model(copy, full_check=True)
    assert [(node.op_type, node.name) for node in copy.graph.node] == [
        ("ReduceMean", "head/MatMul"),
        ("MatMul", "head/sum"),
    ]
    assert "row" not in {item.name for item in copy.graph.initializer}
    x = np.random.default_rng(0).random((2, 16, 8), np.float32)
    (mean, total) = onnxruntime.InferenceSession(copy.SerializeToString()).run(None, {"x": x})
    close(mean, x.mean(1, keepdims=True), 1e-5)
    close(total, x.sum(1, keepdims=True), 1e-5)


@pytest.mark.parametrize(("plan", "expected"), [(FP32, 0), (FLAGS, 1), (TYPED, 1)])
def test_plugins_are_told_to_compute_in_half(plan: PrecisionPlan, expected: int) -> None:
    copy = tensorrt_model(tiny_models("both")[0], plan)
    stated = {
        node.op_type: attribute.i
        for node in copy.graph.node
        for attribute in node.attribute
        if attribute.name == HALF_ONLY
    }
    assert stated.keys() == {node.op_type for node in copy.graph.node if node.domain}
    assert {name for name, only in stated.items() if only} == {
        name for name in stated if expected and not OPERATORS[name].decides
    }


def test_plugins_are_told_the_batch_of_the_engine() -> None:
    model = tiny_models("both")[0]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]

    def stated() -> list[int]:
        copy = tensorrt_model(model, FP32)
        return [a.i for node in copy.graph.node for a in node.attribute if a.name == LARGEST_BATCH]

    plugins = sum(bool(node.domain) for node in tensorrt_model(model, FP32).graph.node)
    assert batch.dim_value > 0 and stated() == [batch.dim_value] * plugins
    batch.dim_param = "N"
    assert stated() == [], "an engine whose batches nobody knows"


def test_plugins_are_told_at_which_rates_they_are_timed() -> None:
    model, _, masks = tiny_models("both")
    assert not [a for node in tensorrt_model(model, FP32).graph.node for a in node.attribute if a.name == TIMING_RATES]
    rates = {"mask/layer1.0/spatial": 0.25, "mask/layer1.0/channel": 0.0}
    for source in (model, replace_masks(model, masks)):
        copy = tensorrt_model(source, FP32, rates)
        stated = {
            node.name: list(attribute.ints)
            for node in copy.graph.node
            for attribute in node.attribute
            if attribute.name == TIMING_RATES
        }
        # One of a thousand at least; of the second block nobody knows the rates.
        assert list(stated.values()) == [[250, 1, 0, 0], [500, 500, 0, 0]]
        assert all("Bottleneck" in name for name in stated)
    single = tensorrt_model(tiny_models("layer")[0], FP32, {})
    found = [list(a.ints) for node in single.graph.node for a in node.attribute if a.name == TIMING_RATES]
    assert found == [[500, 0, 0, 0]] * 2


def test_every_plugin_is_told_whether_it_may_be_tuned() -> None:
    model = tiny_models("both")[0]

    def stated(tuning: bool) -> dict[str, int]:
        copy = tensorrt_model(model, FP32, {}, tuning=tuning)
        return {node.name: a.i for node in copy.graph.node for a in node.attribute if a.name == TUNING}

    plugins = {node.name for node in tensorrt_model(model, FP32, {}).graph.node if node.domain}
    assert stated(True) == dict.fromkeys(plugins, 1) and stated(False) == dict.fromkeys(plugins, 0)
