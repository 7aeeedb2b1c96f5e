from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.errors import ExportError
from dyndeploy.graphs.passes import Context, legalise_opset
from dyndeploy.graphs.passes.legalise import (
    LOWER_TO_13,
    READ_ALIKE,
    SAME,
    SAME_UPWARDS,
    WRITTEN_OUT,
    raise_opset,
    version_of,
)
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


Case = tuple[str, dict[str, Any], dict[str, Any], tuple[int, ...]]
CASES: dict[str, Case] = {
    **{
        kind: (kind, {"axes": np.array([1, -1])}, {"keepdims": 0}, (2, 3, 4))
        for kind in ("ReduceMin", "ReduceMax", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    },
    "ReduceMean of nothing": ("ReduceMean", {}, {"noop_with_empty_axes": 1}, (2, 3)),
    "ReduceLogSumExp": ("ReduceLogSumExp", {"axes": np.array([1])}, {}, (2, 3)),
    "ReduceSum": ("ReduceSum", {"axes": np.array([1])}, {}, (2, 3)),
    "Pad": ("Pad", {"pads": np.array([0, 1, 2, 0])}, {}, (2, 3)),
    "Pad axes": (
        "Pad",
        {"pads": np.array([1, 2, 0, 1]), "value": np.float32(3), "axes": np.array([-1, 1])},
        {},
        (2, 3, 4),
    ),
    "Resize scales": ("Resize", {"": None, "scales": np.float32([1, 1, 2, 2])}, {"mode": "linear"}, (1, 2, 3, 4)),
    "Resize sizes": ("Resize", {"": None, " ": None, "sizes": np.array([1, 2, 6, 8])}, {}, (1, 2, 3, 4)),
    "Resize axes": ("Resize", {"": None, " ": None, "sizes": np.array([6, 8])}, {"axes": [2, 3]}, (1, 2, 3, 4)),
    "BatchNormalization": (
        "BatchNormalization",
        {"s": np.float32([1, 2]), "b": np.float32([0, 1]), "m": np.float32([1, 0]), "v": np.float32([1, 4])},
        {},
        (2, 2, 3),
    ),
    "GroupNormalization": (
        "GroupNormalization",
        {"s": np.float32([1, 2]), "b": np.float32([0, 1])},
        {"num_groups": 2, "epsilon": 1e-3},
        (2, 4, 3, 3),
    ),
    "InstanceNormalization": (
        "InstanceNormalization",
        {"s": np.float32([1, 2]), "b": np.float32([0, 1])},
        {},
        (2, 2, 5),
    ),
    "Mish": ("Mish", {}, {}, (2, 3)),
    "HardSwish": ("HardSwish", {}, {}, (2, 3)),
    "Shape": ("Shape", {}, {"start": 1, "end": -1}, (2, 3, 4, 5)),
    "ScatterND": ("ScatterND", {"i": np.array([[1]]), "u": np.float32([[7, 8]])}, {}, (2, 2)),
    "PRelu": ("PRelu", {"slope": np.float32([[0.1], [0.2]])}, {}, (2, 2, 3)),
    "LeakyRelu": ("LeakyRelu", {}, {"alpha": 0.3}, (2, 3)),
    "Pow": ("Pow", {"p": np.float32(2)}, {}, (2, 3)),
    "GreaterOrEqual": ("GreaterOrEqual", {"z": np.float32(0)}, {}, (2, 3)),
    "Equal": ("Equal", {"z": np.float32(0)}, {}, (2, 3)),
    "Squeeze": ("Squeeze", {"axes": np.array([1])}, {}, (2, 1, 3)),
    "Slice": ("Slice", {"s": np.array([1]), "e": np.array([3]), "a": np.array([1])}, {}, (2, 4)),
    "Expand": ("Expand", {"s": np.array([3, 2, 4])}, {}, (2, 4)),
    "ConvTranspose": ("ConvTranspose", {"w": np.ones((2, 3, 2, 2), np.float32)}, {"strides": [2, 2]}, (1, 2, 3, 3)),
    **{kind: (kind, {}, {}, (2, 3)) for kind in ("Sigmoid", "Tanh", "Elu", "Softplus", "Exp", "Abs", "Neg", "Cast")},
}
CASES["Cast"][2]["to"] = onnx.TensorProto.INT32


@pytest.mark.parametrize("case", CASES)
def test_operators_of_user_networks_in_opset_13(case: str) -> None:
    kind, constants, attributes, shape = CASES[case]
    inputs = ["x", *(name.strip() if value is not None else "" for name, value in constants.items())]
    model = model_of([helper.make_node(kind, inputs, ["y"], **attributes)], shape)
    given = {name: value for name, value in constants.items() if value is not None}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in given.items())
    x = normal(*shape)
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name="y"))
    expected = run(model, x)
    kind_of_y = helper.np_dtype_to_tensor_dtype(expected.dtype)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", kind_of_y, expected.shape))
    legalise_opset(model, Context({}, ["y"], 13, 8, None, "nano"))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 13
    got = run(model, x)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [6, 7])
def test_split_by_number_gets_sizes(size: int) -> None:
    model = model_of([helper.make_node("Split", ["x"], ["a", "b", "y"], axis=-1, num_outputs=3)], (2, size))
    x = normal(2, size)
    expected = run(model, x)
    legalise_opset(model, Context({}, ["y"], 13, 8, None, "nano"))
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, x), expected)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_written_with_other_operators(approximate: str) -> None:
    model = model_of([helper.make_node("Gelu", ["x"], ["y"], approximate=approximate)], (2, 9))
    model.opset_import[0].version = 20
    x = 3 * normal(2, 9)
    expected = run(model, x)
    legalise_opset(model, Context({}, ["y"], 13, 8, None, "nano"))
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest", None])
def test_sampling_on_a_grid_has_other_names_from_opset_20_on(mode: str | None) -> None:
    given = {} if mode is None else {"mode": mode}
    grid = numpy_helper.from_array(np.random.default_rng(1).uniform(-1.2, 1.2, (1, 3, 4, 2)).astype(np.float32), "grid")
    model = model_of([helper.make_node("GridSample", ["x", "grid"], ["y"], **given)], (1, 2, 5, 6))
    model.graph.initializer.append(grid)
    x = normal(1, 2, 5, 6)
    expected = run(model, x)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, expected.shape))
    legalise_opset(model, Context({}, ["y"], 20, 10, None, "orin_nano"))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 20
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "message"),
    [
        (
            "Resize",
            ["x", "", "scales"],
            {"antialias": 1, "mode": "linear"},
            "Resize with antialias = 1 has no equivalent",
        ),
        ("ScatterND", ["x", "i", "u"], {"reduction": "add"}, "ScatterND with reduction = b'add' has no equivalent"),
        ("ReduceMax", ["x", "x"], {}, "axes of ReduceMax are not constant"),
        ("GridSample", ["x", "x"], {}, "GridSample does not exist in opset 13"),
    ],
)
def test_what_opset_13_cannot_say_is_refused(
    kind: str, inputs: list[str], attributes: dict[str, Any], message: str
) -> None:
    model = model_of([helper.make_node(kind, inputs, ["y"], **attributes)], (2, 2))
    with pytest.raises(ExportError, match=message):
        legalise_opset(model, Context({}, ["y"], 13, 8, None, "nano"))


def test_the_tables_say_what_the_versions_of_onnx_say() -> None:
    def parts(name: str, opset: int) -> tuple[set[str], int]:
        schema = onnx.defs.get_schema(name, opset)
        return set(schema.attributes), len(schema.inputs)

    for name in SAME:
        assert parts(name, 13) == parts(name, 20), name
    for name in SAME_UPWARDS:
        newer, older = parts(name, 20), parts(name, 18)
        assert older[0] <= newer[0] and older[1] <= newer[1], name
        assert version_of(name, 18) != version_of(name, 20)
    for name in READ_ALIKE:
        older, newer = parts(name, 13), parts(name, 16)
        assert older[0] <= newer[0] and older[1] == newer[1], name
    for name in WRITTEN_OUT:
        assert version_of(name, 13) is None
    for name in LOWER_TO_13:
        assert version_of(name, 13) != version_of(name, 18), name


def test_a_graph_is_raised_where_it_keeps_its_meaning() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], (1, 2, 5, 6))
    model.opset_import[0].version = 13
    raise_opset(model, 16)
    assert model.opset_import[0].version == 16
    # Boxes are shifted by half a pixel from opset 16 on.
    changed = model_of([helper.make_node("RoiAlign", ["x", "x", "x"], ["y"])], (1, 2, 5, 6))
    changed.opset_import[0].version = 13
    with pytest.raises(ExportError, match="n0: no rule takes RoiAlign from opset 13 to 16"):
        raise_opset(changed, 16)
