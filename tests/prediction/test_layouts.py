"""Conversions of layouts, against the graphs that ONNX Runtime makes itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.prediction import AnalyticalModel
from dyndeploy.prediction.kernels import REORDER, walk
from dyndeploy.targets import load_device

_NCHWC = "com.microsoft.nchwc"


def _node(op_type: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, ["" if i == "-" else i for i in inputs.split()], [output], output, **attributes)


def _conv(x: str, weight: str, output: str, *, k: int = 3, group: int = 1) -> onnx.NodeProto:
    return _node("Conv", f"{x} {weight}", output, kernel_shape=[k, k], pads=[k // 2] * 4, group=group)


def _model(nodes: list[onnx.NodeProto], channels: int = 32) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weights = {
        "w": (32, channels, 3, 3), "v": (32, 32, 3, 3), "q": (32, 32, 1, 1), "d": (32, 1, 3, 3), "t": (32, 32, 2, 2),
        "merge": (32, 64, 3, 3), "odd": (18, 32, 3, 3), "from_odd": (32, 18, 3, 3),
    }  # fmt: skip
    known = [numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]
    known += [
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("three", [3]), ("six", [6]), ("low", 0), ("high", 6), ("scales", [1, 1, 2, 2]))
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, channels, 16, 16))],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [item for item in known if item.name in used],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


GRAPHS = {
    "image": ([_conv("x", "w", "a"), _conv("a", "v", "y")], 3),
    "chain": ([_conv("x", "w", "a"), _node("Relu", "a", "r"), _conv("r", "v", "y")], 32),
    "depthwise": ([_conv("x", "w", "a"), _conv("a", "d", "y", group=32)], 32),
    "no multiple of four": ([_conv("x", "odd", "a"), _conv("a", "from_odd", "y")], 32),
    "residual": ([_conv("x", "w", "a"), _conv("a", "v", "b"), _node("Add", "a b", "c"), _node("Relu", "c", "y")], 32),
    "residual that is plain": ([_conv("x", "w", "a"), _node("Add", "a x", "c"), _conv("c", "v", "y")], 32),
    "activation that is not fused": ([_conv("x", "w", "a"), _node("Softplus", "a", "b"), _conv("b", "v", "y")], 32),
    "number added": ([_conv("x", "w", "a"), _node("Add", "a three", "b"), _conv("b", "v", "y")], 32),
    "hard swish of four operators": (
        [
            _conv("x", "w", "a"), _node("Add", "a three", "s"), _node("Clip", "s low high", "l"),
            _node("Mul", "a l", "u"), _node("Div", "u six", "b"), _conv("b", "v", "y"),
        ],
        32,
    ),
    "squeeze and excite": (
        [
            _conv("x", "w", "a"), _node("GlobalAveragePool", "a", "p"), _conv("p", "q", "r", k=1),
            _node("Sigmoid", "r", "s"), _node("Mul", "a s", "b"), _conv("b", "v", "y"),
        ],
        32,
    ),
    "pool first": ([_node("MaxPool", "x", "p", kernel_shape=[2, 2], strides=[2, 2]), _conv("p", "v", "y")], 32),
    "concatenated": (
        [_conv("x", "w", "a"), _conv("a", "v", "b"), _node("Concat", "a b", "c", axis=1), _conv("c", "merge", "y")],
        32,
    ),
    "enlarged": (
        [
            _conv("x", "w", "a"),
            _node(
                "Resize", "a - scales", "b", mode="nearest", coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
            _conv("b", "v", "y"),
        ],
        32,
    ),
    "transposed": (
        [
            _conv("x", "w", "a"), _node("ConvTranspose", "a t", "b", kernel_shape=[2, 2], strides=[2, 2]),
            _conv("b", "v", "y"),
        ],
        32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_conversions_are_those_of_the_runtime(name: str, tmp_path: Path) -> None:
    nodes, channels = GRAPHS[name]
    model = _model(nodes, channels)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ran = onnx.load(tmp_path / "optimised.onnx").graph.node
    if name != "no multiple of four" and not any(node.domain == _NCHWC for node in ran):
        pytest.skip("ONNX Runtime keeps all maps plain on this processor")
    found = Counter(bool(k.features["inward"]) for k in walk(model).kernels if k.kind == REORDER)
    counted = Counter(node.op_type for node in ran)
    assert (found[True], found[False]) == (counted["ReorderInput"], counted["ReorderOutput"])


def test_a_conversion_is_a_pass_over_the_map_and_costs_nothing_on_a_gpu() -> None:
    kernel = walk(_model(*GRAPHS["chain"])).kernels[0]
    assert (kernel.kind, kernel.macs, kernel.bytes) == (REORDER, 0, 2 * 4 * 32 * 16 * 16)
    assert kernel.features["inward"] == 1
    assert AnalyticalModel(load_device("nano"), runtime="onnxruntime").price([kernel])[0][0] == 0
