"""The confidence of an exit as one more output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


def add_confidence(model: onnx.ModelProto, context: Context) -> None:
    """``exits::confidence``: how sure the exit is, as one more output (N,), so that a runner reads one number."""
    if not context.confidence:
        return
    graph, name = model.graph, context.confidence
    logits = next(value for value in graph.output if value.name == "logits")
    batch, classes = logits.type.tensor_type.shape.dim

    def constant(kind: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), f"{name}/{kind}"))
        return f"{name}/{kind}"

    def node(op_type: str, inputs: list[str], kind: str, output: str = "", **attributes: Any) -> str:
        made = output or f"{name}/{kind}"
        graph.node.append(helper.make_node(op_type, inputs, [made], name=f"head/{name}/{kind}", **attributes))
        return made

    shares = node("Softmax", ["logits"], "shares", axis=1)
    if context.measure == "margin":
        best = f"{name}/best"
        graph.node.append(
            helper.make_node("TopK", [shares, constant("two", [2])], [best, f"{name}/where"], name=f"head/{name}/TopK")
        )
        # The larger minus the smaller one, as a product with (1, -1).
        difference = node("MatMul", [best, constant("signs", [[1.0], [-1.0]], np.float32)], "difference")
        node("Squeeze", [difference, constant("axis", [1])], "Squeeze", name)
    elif context.measure == "entropy":
        tiny = constant("tiny", np.finfo(np.float32).tiny, np.float32)
        logs = node("Log", [node("Max", [shares, tiny], "positive")], "logs")
        weighted = node("Mul", [shares, logs], "weighted")
        total = node("ReduceSum", [weighted, constant("axis", [1])], "total", keepdims=0)
        scale = constant("scale", 1 / np.log(classes.dim_value), np.float32)
        node("Add", [node("Mul", [total, scale], "normalised"), constant("one", 1.0, np.float32)], "Add", name)
    else:
        node("ReduceMax", [shares, constant("axes", [1])], "ReduceMax", name, keepdims=0)
    shape = [batch.dim_value if batch.HasField("dim_value") else batch.dim_param]
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
