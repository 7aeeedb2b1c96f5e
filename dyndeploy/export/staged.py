"""Networks that exit early: one graph per exit, or all of them as one graph with nested ``If``.

A stage takes the tensors that earlier stages carry to it and gives the logits of its exit, the tensors that it carries
on, and the confidence: the largest softmax probability, which decides whether the next stage runs at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from dyndeploy.bundle import CONFIDENCE, LOGITS, StageInfo, TensorInfo
from dyndeploy.bundle.reference_names import exit_logits
from dyndeploy.errors import ExportError
from dyndeploy.export.capture import capture
from dyndeploy.export.passes import Context, run_pipeline
from dyndeploy.nets import DynPerceiver, Segment
from dyndeploy.ops.graph import all_nodes
from dyndeploy.targets import Target

EarlyExitNetwork = DynPerceiver
"""What has ``segments``."""

THRESHOLDS, EXIT = "thresholds", "exit"
"""Further input and output of the graph with branches."""

_EXAMPLES = 2
"""Samples in the examples of a dynamic batch: a batch of one would be captured as such."""


@dataclass(frozen=True)
class Stage:
    """A captured stage.

    Attributes:
        file: Name of its graph in the bundle.
        exit: Number of its exit.
        model: The graph, legal for its target.
    """

    file: str
    exit: int
    model: onnx.ModelProto

    def info(self, macs: int, batch: int) -> StageInfo:
        """Describe it in a manifest; an open batch size is written as ``batch``."""
        inputs, outputs = (
            tuple(tensor_info(value, batch) for value in values)
            for values in (self.model.graph.input, self.model.graph.output)
        )
        return StageInfo(self.file, self.exit, inputs, outputs, macs)


def tensor_info(value: onnx.ValueInfoProto, batch: int | None = None) -> TensorInfo:
    """Name, shape and type of a graph input or output; ``batch`` stands for sizes that the graph leaves open."""
    shape = tuple(
        dim.dim_value if batch is None or dim.HasField("dim_value") else batch for dim in value.type.tensor_type.shape.dim
    )
    return TensorInfo(value.name, shape, str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)))


def build_stages(
    network: EarlyExitNetwork,
    target: Target,
    exits: Sequence[int] | None,
    batch: int | None,
    input_size: tuple[int, int],
) -> list[Stage]:
    """Capture and legalise every stage.

    Args:
        network: In evaluation, in single precision.
        target: What it is for.
        exits: Exits to keep; None for all.
        batch: Static batch size, or None for any.
        input_size: (H, W).

    Raises:
        UsageError: Exits that the network does not have, or without the last.
        ExportError: A stage could not be captured, or the target could not run it.
    """
    segments = network.segments(tuple(range(1, network.exits + 1)) if exits is None else exits)
    values = {segments[0].inputs[0]: torch.zeros(_EXAMPLES if batch is None else batch, 3, *input_size)}
    stages = []
    for index, segment in enumerate(segments):
        inputs = [values[name] for name in segment.inputs]
        stages.append(Stage(f"stage{index}.onnx", segment.exit, _graph(segment, inputs, target, batch is None)))
        with torch.no_grad():
            values |= dict(zip(segment.outputs, segment(*inputs), strict=True))
    return stages


def _graph(segment: Segment, inputs: Sequence[Tensor], target: Target, dynamic_batch: bool) -> onnx.ModelProto:
    model = capture(segment, inputs, dynamic_batch=dynamic_batch)
    context = Context(
        # Classifiers stay in float under every precision plan, as heads do.
        scopes={name: f"head/{name}" if "classifier" in name else name for name, _ in segment.named_children()},
        outputs=segment.outputs,
        opset=target.opset,
        ir_version=target.ir_version,
        allowed_operators=target.allowed_operators,
        target=target.name,
        inputs=segment.inputs,
        runtime=target.runtime,
        confidence=CONFIDENCE,
    )
    run_pipeline(model, context)
    return model


@torch.no_grad()
def reference_logits(
    network: EarlyExitNetwork, images: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors of ``reference.npz``: the images and PyTorch's logits of every exit, one image at a time."""
    outputs = [network(image[None]).logits for image in torch.from_numpy(images)]
    columns = [torch.cat(column).numpy() for column in zip(*outputs, strict=True)]
    return {"input": images, **{exit_logits(number): column for number, column in enumerate(columns, start=1)}}


# ---------------------------------------------------------------- stages joined


def whole_model(stages: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Join stages into one graph without decisions: all that the last exit needs, and nothing else.

    Args:
        stages: Graphs of the stages.

    Returns:
        A graph of the images that gives the logits of the last exit.
    """
    parts = [_prefixed(model, f"stage{index}/") for index, model in enumerate(stages)]
    last = f"stage{len(parts) - 1}/"
    result = stages[-1].graph.output[0]
    needed = {last + LOGITS}
    nodes: list[onnx.NodeProto] = []
    for node in reversed([node for part in parts for node in part.node]):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    for node in nodes:
        node.output[:] = [LOGITS if name == last + LOGITS else name for name in node.output]
        node.input[:] = [LOGITS if name == last + LOGITS else name for name in node.input]
    output = onnx.ValueInfoProto()
    output.CopyFrom(result)
    initializers = [item for part in parts for item in part.initializer if item.name in needed]
    graph = helper.make_graph(nodes[::-1], "dyndeploy", stages[0].graph.input, [output], initializers)
    return _checked(graph, stages[0])


def branched_model(stages: Sequence[onnx.ModelProto], exits: Sequence[int]) -> onnx.ModelProto:
    """Join stages into one graph for one image, in which an ``If`` stands for every decision.

    Args:
        stages: Graphs of the stages.
        exits: Their exits.

    Returns:
        A graph of the images and :data:`THRESHOLDS` (stages - 1,) that gives the logits, the confidence and the number
        of the exit (:data:`EXIT`, int64), each with one row.

    Raises:
        ExportError: The joined graph is not valid.
    """
    parts = [_prefixed(model, f"stage{index}/") for index, model in enumerate(stages)]
    classes = stages[0].graph.output[0].type.tensor_type.shape.dim[1].dim_value
    graph = _from_stage(parts, exits, 0, classes, "")
    images = tensor_info(stages[0].graph.input[0], 1)
    graph.input.append(helper.make_tensor_value_info(images.name, TensorProto.FLOAT, (1, *images.shape[1:])))
    if len(parts) > 1:
        graph.input.append(helper.make_tensor_value_info(THRESHOLDS, TensorProto.FLOAT, (len(parts) - 1,)))
    return _checked(graph, stages[0])


def _checked(graph: onnx.GraphProto, like: onnx.ModelProto) -> onnx.ModelProto:
    model = helper.make_model(
        graph, opset_imports=like.opset_import, ir_version=like.ir_version, producer_name="dyndeploy"
    )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"The joined stages are not valid ONNX: {error}") from error
    return model


def _from_stage(
    parts: Sequence[onnx.GraphProto], exits: Sequence[int], index: int, classes: int, results: str
) -> onnx.GraphProto:
    """The graph of a stage and, inside an ``If``, all behind it; ``results`` stands before its outputs' names."""
    part, prefix = parts[index], f"stage{index}/"
    graph = onnx.GraphProto(name=f"stage{index}")
    graph.node.extend(part.node)
    graph.initializer.extend(part.initializer)
    graph.output.extend(_results(classes, results))
    if index + 1 == len(parts):
        _append_results(graph, prefix, exits[index], results)
        return graph
    threshold, reached = f"{prefix}threshold", f"{prefix}reached"
    # A gathered row is a tensor of one element, as If takes it.
    graph.initializer.append(numpy_helper.from_array(np.array([index], np.int64), f"{prefix}index"))
    taken = onnx.GraphProto(name=f"exit{exits[index]}")
    taken.output.extend(_results(classes, f"{prefix}taken/"))
    _append_results(taken, prefix, exits[index], f"{prefix}taken/")
    graph.node.extend(
        [
            helper.make_node("Gather", [THRESHOLDS, f"{prefix}index"], [threshold], name=f"head/{threshold}"),
            helper.make_node("GreaterOrEqual", [prefix + CONFIDENCE, threshold], [reached], name=f"head/{reached}"),
            helper.make_node(
                "If",
                [reached],
                [value.name for value in graph.output],
                name=f"head/{prefix}If",
                then_branch=taken,
                else_branch=_from_stage(parts, exits, index + 1, classes, f"{prefix}on/"),
            ),
        ]
    )
    return graph


def _results(classes: int, prefix: str) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(prefix + LOGITS, TensorProto.FLOAT, (1, classes)),
        helper.make_tensor_value_info(prefix + CONFIDENCE, TensorProto.FLOAT, (1,)),
        helper.make_tensor_value_info(prefix + EXIT, TensorProto.INT64, (1,)),
    ]


def _append_results(graph: onnx.GraphProto, prefix: str, number: int, results: str) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), prefix + EXIT))
    for name in (LOGITS, CONFIDENCE, EXIT):
        output = results + name
        graph.node.append(helper.make_node("Identity", [prefix + name], [output], name=f"head/{prefix}{output}"))


def _prefixed(model: onnx.ModelProto, prefix: str) -> onnx.GraphProto:
    """The graph of a stage with names of its own, except for what stages hand to each other."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    shared = {value.name for value in (*graph.input, *graph.output)} - {LOGITS, CONFIDENCE}
    for node in all_nodes(graph):
        node.name = prefix + node.name
        node.input[:] = [name if not name or name in shared else prefix + name for name in node.input]
        node.output[:] = [name if not name or name in shared else prefix + name for name in node.output]
    for item in graph.initializer:
        item.name = prefix + item.name
    return graph
