"""Small graphs for the tests of passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dyndeploy.graphs.passes import Context

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


def run_all(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime gives without optimising."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return run_all(model, x)[0]


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


def double_model(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], rank: int, weights: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """A graph in double precision from ``x`` to ``y``."""
    model = model_of(nodes, shape, rank)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return model


def evaluate(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """What ONNX's own reference gives."""
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feeds)]
