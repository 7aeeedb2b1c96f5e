"""What follows from the sizes of the inputs is what a run of the real runtime gives."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.errors import BundleError
from dyndeploy.graphs.inputs import with_sizes
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.graphs.shapes import known_sizes, static_shapes, with_values
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.prediction import predict
from tests.graphs.lookalikes import LOOKALIKES, exported

lookalike = functools.lru_cache(maxsize=None)(exported)


def run_all(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    """Every tensor of a graph, computed node by node as the file says."""
    names = [name for node in model.graph.node for name in node.output if name]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {value.name: rng.random(value.shape, np.float32) for value in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def require_true(model: onnx.ModelProto) -> None:
    sizes, found = known_sizes(model), run_all(model)
    assert {name: sizes.shapes.get(name) for name in found} == {name: value.shape for name, value in found.items()}
    for name, value in sizes.values.items():
        np.testing.assert_allclose(value, found[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("name", LOOKALIKES)
def test_every_shape_is_that_of_a_run(name: str, opset: int) -> None:
    require_true(with_sizes(lookalike(name, opset), input_size=(64, 96)))


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(sorted(LOOKALIKES)), st.integers(2, 9), st.integers(2, 9), st.integers(1, 3))
def test_any_size_will_do(name: str, height: int, width: int, batch: int) -> None:
    require_true(with_sizes(lookalike(name), input_size=(16 * height, 16 * width), batch=batch))


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_file_of_open_sizes_is_priced_and_counted(name: str) -> None:
    closed = with_sizes(lookalike(name), input_size=(64, 96))
    assert predict(lookalike(name), "nano", input_size=(64, 96)).latency_ms > 0
    assert MacCounter(closed).count().per_sample[0] > 0


def test_the_anchors_of_a_detector_are_values() -> None:
    model = with_sizes(lookalike("detector"), input_size=(64, 96))
    grids = [value for value in known_sizes(model).values.values() if value.shape == (2, 16 * 24 + 8 * 12 + 4 * 6)]
    assert grids
    assert grids[0][:, 0].tolist() == [0.5, 0.5]
    assert grids[0][:, -1].tolist() == [5.5, 3.5]


def graph(
    nodes: list[onnx.NodeProto], shape: tuple[int | str, ...], constants: dict[str, npt.NDArray[np.generic]]
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_depends_on_values_is_that_of_a_run_and_said() -> None:
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["large"], name="greater"),
        helper.make_node("NonZero", ["large"], ["at"], name="find"),
        helper.make_node("Cast", ["at"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["w", "f"], ["y"], name="product"),
    ]
    constants = {"w": np.zeros((5, 2), np.float32), "half": np.array([0.5], np.float32)}
    prediction = predict(graph(nodes, (1, 40), constants), "nano")
    found = int((np.random.default_rng(0).random((1, 40), np.float32) > 0.5).sum())
    assert sum(o.macs or 0 for block in prediction.blocks for o in block.operators) == 5 * 2 * found
    assert any(f"at 2x{found}" in note and "one run on random numbers" in note for note in prediction.notes)


def test_what_nobody_can_know_is_named() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["at"], name="find"),
        helper.make_node("Cast", ["at"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="product"),
    ]
    model = graph(nodes, (1, 3), {"w": np.zeros((400, 500), np.float32)})
    model.graph.initializer[0].ClearField("raw_data")
    with pytest.raises(BundleError, match=r"'at' along axis 1 is not static: node 'find' \(NonZero\) makes it"):
        predict(model, "nano")


def test_nothing_that_would_fill_the_memory_or_is_random_is_computed() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["a"], name="fill"),
        helper.make_node("RandomNormal", [], ["b"], name="random", shape=[1, 3]),
        helper.make_node("Shape", ["a"], ["s"], name="shape"),
        helper.make_node("Add", ["x", "b"], ["y"], name="add"),
    ]
    sizes = known_sizes(graph(nodes, (1, 3), {"huge": np.array([1 << 20, 1 << 12])}))
    assert set(sizes.values) == {"s"}
    assert sizes.values["s"].tolist() == [1 << 20, 1 << 12]
    assert sizes.shapes["a"] == (1 << 20, 1 << 12)


def test_numbers_in_a_file_that_was_not_read_are_not_made_up() -> None:
    model = graph([helper.make_node("Reshape", ["x", "to"], ["y"], name="r")], (1, 6), {"to": np.array([2, 3])})
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "elsewhere.bin")
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    assert -1 in static_shapes(model).get("y", (-1,))


@pytest.mark.parametrize(("width", "kind"), [(8, "then"), (12, "else")])
def test_an_if_that_sizes_decide_is_the_branch_that_runs(width: int, kind: str) -> None:
    def branch(name: str, side: int) -> onnx.GraphProto:
        node = helper.make_node("Conv", ["x", f"{name}.w"], [f"{name}.y"], name=f"{name}/conv", pads=[side // 2] * 4)
        weight = numpy_helper.from_array(np.zeros((4, 3, side, side), np.float32), f"{name}.w")
        return helper.make_graph([node], name, [], [onnx.ValueInfoProto(name=f"{name}.y")], [weight])

    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Gather", ["s", "last"], ["w"], name="gather"),
        helper.make_node("Equal", ["w", "eight"], ["c"], name="equal"),
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch("then", 1), else_branch=branch("else", 3)),
    ]
    model = graph(nodes, ("n", 3, 8, "width"), {"last": np.array(3), "eight": np.array(8)})
    prediction = predict(model, "nano", dims={"width": width})
    macs = sum(operator.macs or 0 for block in prediction.blocks for operator in block.operators)
    assert macs == 8 * width * 3 * 4 * (1 if kind == "then" else 9)
    assert not any(block.rates for block in prediction.blocks)


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_copy_with_values_reads_no_sizes_and_computes_the_same(name: str) -> None:
    model = with_sizes(lookalike(name), input_size=(64, 96))
    copy = with_values(model)
    assert not {node.op_type for node in copy.graph.node} & {"Shape", "Range", "ConstantOfShape", "Expand"}
    result = model.graph.output[0].name
    np.testing.assert_array_equal(run_all(copy)[result], run_all(model)[result])
    assert with_values(copy) is copy


def test_the_tensorrt_copy_rounds_no_sizes() -> None:
    """4097 columns are no number of half precision: counted there, the last one would be another."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="other/shape"),
        helper.make_node("Gather", ["s", "last"], ["n"], name="other/gather"),
        helper.make_node("Cast", ["n"], ["f"], name="other/cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["f", "half"], ["d"], name="other/div"),
        helper.make_node("Cast", ["d"], ["i"], name="other/back", to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "i"], ["y"], name="other/reshape"),
    ]
    constants = {"last": np.array([1]), "half": np.array([0.5], np.float32)}
    copy = tensorrt_model(graph(nodes, (2, 4097), constants), PrecisionPlan("fp16", typed=True))
    assert [node.op_type for node in copy.graph.node if node.op_type != "Cast"] == ["Reshape"]
    (target,) = [item for item in copy.graph.initializer if item.name == "i"]
    assert numpy_helper.to_array(target).tolist() == [8194]
