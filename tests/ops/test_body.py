"""The builder of function bodies, and what a runtime makes of a body."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from dyndeploy.ops import OPERATORS
from dyndeploy.ops._body import Body
from tests.ops.cases import QUANTIZED, build
from tests.ops.test_operators import assert_body_agrees, single_node_model

BLOCKED = "com.microsoft.nchwc"
BOTTLENECKS = [name for name in OPERATORS if "Bottleneck" in name and not name.startswith(QUANTIZED)]


def evaluate(body: Body, result: str, **inputs: np.ndarray) -> np.ndarray:
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    output = onnx.ValueInfoProto(name="result")
    nodes = body.function_nodes([body.input(result)], ["result"])
    model = helper.make_model(
        helper.make_graph(nodes, "body", infos, [output]), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_the_last_node_gives_the_output_itself() -> None:
    body = Body()
    total = body.input("a") + body.input("b")
    nodes = body.function_nodes([total], ["y"])
    assert [(node.op_type, list(node.output)) for node in nodes] == [("Add", ["y"])]


def test_what_is_read_again_or_only_passed_on_is_copied() -> None:
    body = Body()
    total = body.input("a") + body.input("b")
    double = total + total
    nodes = body.function_nodes([total, double, body.input("a")], ["total", "double", "same"])
    assert [node.op_type for node in nodes] == ["Add", "Add", "Identity", "Identity"]
    assert nodes[1].output[0] == "double"
    assert [list(node.output) for node in nodes[2:]] == [["total"], ["same"]]


def test_arithmetic_lands_where_both_values_are_known() -> None:
    body = Body()
    outer = body.input("a")

    def then(inner: Body) -> object:
        return outer + inner.op("Neg", outer) * 3

    result = body.branch(body.input("condition"), then, lambda inner: outer - 1)
    assert Counter(node.op_type for node in body.nodes) == {"If": 1, "Sub": 1}
    for condition, expected in ((True, -14), (False, 6)):
        found = evaluate(body, result.name, a=np.array(7, np.int64), condition=np.array(condition))
        assert found == expected


def test_ones_have_the_type_of_a_vector() -> None:
    body = Body()
    ones = body.ones(body.input("like"), 2, body.dim(body.input("like"), 0))
    found = evaluate(body, ones.name, like=np.array([np.pi, -7.0, 0.5], np.float64))
    assert found.dtype == np.float64
    assert found.tolist() == [[1, 1, 1], [1, 1, 1]]


def optimised_graphs(model: onnx.ModelProto, path: Path) -> list[onnx.GraphProto]:
    """The graph that ONNX Runtime runs, and the branches in it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graphs = [onnx.load(path).graph]
    for graph in graphs:
        graphs += [item.g for node in graph.node for item in node.attribute if item.HasField("g")]
    return graphs


def has_blocked_convolutions(path: Path) -> bool:
    weight = onnx.numpy_helper.from_array(np.ones((32, 32, 1, 1), np.float32), "w")
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 32, 4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "one", infos[:1], infos[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return any(node.domain == BLOCKED for node in optimised_graphs(model, path)[0].node)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_all_on_runs_blocked_convolutions_alone(name: str, tmp_path: Path) -> None:
    # One reorder at each border, the convolutions with their ReLUs and the sum in them, and nothing else.
    if not has_blocked_convolutions(tmp_path / "plain.onnx"):
        pytest.skip("this ONNX Runtime has no blocked convolutions on this processor")
    sizes = {} if name.endswith("Projection") else {"channels": 32}
    case = build(name, hidden=32, mask_size=(2, 2), channel_groups=4, **{"channels": 32, "out_channels": 64, **sizes})
    graphs = optimised_graphs(single_node_model(case, 18), tmp_path / "optimised.onnx")
    blocked = [graph for graph in graphs if any(node.domain == BLOCKED for node in graph.node)]
    assert len(blocked) == 1
    found = Counter((node.domain == BLOCKED, node.op_type) for node in blocked[0].node)
    if "SE" in name:
        # ONNX Runtime scales channels in no blocked layout: the map leaves it and comes back, the convolutions stay.
        assert found.pop((False, "Mul")) == found.pop((True, "GlobalAveragePool")) == 1
        assert found[True, "Conv"] == (6 if name.endswith("Projection") else 5)
        assert not [name for within, name in found if not within and name in ("Conv", "Relu", "Add")]
        return
    assert found == {
        (True, "ReorderInput"): 1,
        (True, "MaxPool"): 1,
        (True, "Conv"): 4 if name.endswith("Projection") else 3,
        (True, "ReorderOutput"): 1,
    }
    assert not any(node.op_type in ("Gather", "GatherND", "Gemm", "Conv") for node in graphs[0].node)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_all_on_is_the_reference_in_blocked_layouts(name: str, batch: int) -> None:
    # Widths that fill the blocks of every processor, and strides, dilations and groups that change the 3x3.
    out = {"out_channels": 64} if name.endswith("Projection") else {}
    for variant in ({}, {"dilation": 2}, {"group": 2}, *([{"stride": 2}] if out else [])):
        case = build(
            name, batch=batch, rate=1.0, size=(9, 7), mask_size=(3, 2), channels=32, hidden=32, channel_groups=4,
            **out, **variant,
        )  # fmt: skip
        assert_body_agrees(case, 18)
