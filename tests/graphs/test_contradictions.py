"""Nodes whose inputs do not fit each other have no price and no number of MACs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dyndeploy.errors import BundleError
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.prediction import predict


def model(op_type: str, *shapes: tuple[int, ...], flat: bool = False, **attributes: object) -> onnx.ModelProto:
    names = [f"w{index}" for index in range(len(shapes))]
    weights = [
        helper.make_tensor(n, TensorProto.FLOAT, s, np.zeros(s).ravel()) for n, s in zip(names, shapes, strict=True)
    ]
    nodes = [helper.make_node("Flatten", ["x"], ["f"])] if flat else []
    nodes.append(helper.make_node(op_type, ["f" if flat else "x", *names], ["y"], name="it", **attributes))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, (1, 3, 8, 8))], [value("y", TensorProto.FLOAT, None)], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (model("Conv", (8, 4, 3, 3)), "3 channels, its weights .* take 4"),
        (model("Conv", (8, 3, 3, 3), group=2), "in 2 group.s. take 6"),
        (model("Conv", (8, 1, 3, 3), group=3), "no multiple of its 3 groups"),
        (model("Conv", (8, 3, 3, 3), kernel_shape=[5, 5]), r"kernel is \(5, 5\), that of its weights \(3, 3\)"),
        (model("Conv", (8, 3, 3, 3), (7,)), r"bias has the shape \(7,\), and it makes 8"),
        (model("Conv", (8, 3, 3)), "has 4 axes .* its weights 3"),
        (model("Conv", (8, 3, 11, 11), pads=[1, 1, 1, 1]), "larger than its input"),
        (model("ConvTranspose", (4, 7, 3, 3)), "3 channels, its weights .* take 4"),
        (model("Gemm", (31, 7), flat=True), "192 columns .* 31 rows"),
        (model("Gemm", (192, 7), flat=True, transB=1), "192 columns .* 7 rows"),
        (model("MatMul", (31, 7)), "8 columns .* 31 rows"),
    ],
)
def test_what_does_not_fit_is_named(network: onnx.ModelProto, words: str) -> None:
    for use in (lambda: predict(network, device="nano"), lambda: MacCounter(network)):
        with pytest.raises(BundleError, match=f"Node 'it' .*contradicts itself: .*{words}"):
            use()


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (model("Add", (1, 3, 7, 8)), "Incompatible dimensions"),
        (model("Conv", (8, 3, 3, 3), pads=[1, 1]), "pads"),
        (model("Concat", (1, 3, 7, 8), axis=1), "merge"),
    ],
)
def test_the_reason_of_an_unknown_shape_is_given(network: onnx.ModelProto, words: str) -> None:
    with pytest.raises(BundleError, match=f"cannot be inferred: .*{words}"):
        predict(network, device="nano")


@pytest.mark.parametrize(
    "network",
    [
        model("Conv", (8, 3, 3, 3), (8,), kernel_shape=[3, 3]),
        model("Conv", (6, 1, 3, 3), group=3, dilations=[2, 2]),
        model("Conv", (8, 3, 11, 11), auto_pad="SAME_UPPER"),
        model("ConvTranspose", (3, 4, 3, 3), (4,)),
        model("Gemm", (192, 7), flat=True),
        model("Gemm", (7, 192), flat=True, transB=1),
        model("MatMul", (8, 7)),
        model("MatMul", (8,)),
    ],
)
def test_what_fits_has_a_price(network: onnx.ModelProto) -> None:
    assert predict(network, device="nano").to_json()
