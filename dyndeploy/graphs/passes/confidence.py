"""The confidence of an exit as one more output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


def add_confidence(model: onnx.ModelProto, context: Context) -> None:
    """``exits::confidence``: the largest softmax probability as one more output, so that a runner reads one number."""
    if not context.confidence:
        return
    graph, name = model.graph, context.confidence
    logits = next(value for value in graph.output if value.name == "logits")
    batch = logits.type.tensor_type.shape.dim[0]
    axes = numpy_helper.from_array(np.array([1], np.int64), f"{name}/axes")
    graph.initializer.append(axes)
    graph.node.extend(
        [
            helper.make_node("Softmax", ["logits"], [f"{name}/shares"], name=f"head/{name}/Softmax", axis=1),
            helper.make_node(
                "ReduceMax", [f"{name}/shares", axes.name], [name], name=f"head/{name}/ReduceMax", keepdims=0
            ),
        ]
    )
    shape = [batch.dim_value if batch.HasField("dim_value") else batch.dim_param]
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
