"""Stages joined into one graph: without decisions, or with nested ``If``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.bundle import CONFIDENCE, LOGITS
from dyndeploy.errors import ExportError
from dyndeploy.graphs.inspect import all_graphs, all_nodes, reads, rename_tensors

THRESHOLDS, EXIT = "thresholds", "exit"
"""Further input and output of the graph with branches."""


def whole_model(stages: Sequence[onnx.ModelProto], *, every_exit: bool = False) -> onnx.ModelProto:
    """Join stages into one graph without decisions.

    Args:
        stages: Graphs of the stages.
        every_exit: Give the logits and confidences of all exits, as ``stage0/logits`` and so on, instead of computing
            only what the last exit needs.

    Returns:
        A graph of the images that gives the logits of the last exit, as ``logits``.
    """
    parts = [_prefixed(model, f"stage{index}/") for index, model in enumerate(stages)]
    last = f"stage{len(parts) - 1}/{LOGITS}"
    outputs = [_named(stages[-1].graph.output[0], LOGITS)]
    if every_exit:
        outputs += [
            _named(value, f"stage{index}/{value.name}")
            for index, model in enumerate(stages)
            for value in model.graph.output
            if value.name in (LOGITS, CONFIDENCE) and f"stage{index}/{value.name}" != last
        ]
    needed = {value.name for value in outputs[1:]} | {last}
    nodes: list[onnx.NodeProto] = []
    for node in reversed([node for part in parts for node in part.node]):
        if needed & set(node.output):
            needed |= set(reads(node))
            nodes.append(node)
    for node in nodes:
        node.output[:] = [LOGITS if name == last else name for name in node.output]
        node.input[:] = [LOGITS if name == last else name for name in node.input]
    initializers = [item for part in parts for item in part.initializer if item.name in needed]
    graph = helper.make_graph(nodes[::-1], "dyndeploy", stages[0].graph.input, outputs, initializers)
    return _checked(graph, stages)


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


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
    images = stages[0].graph.input[0]
    size = [dim.dim_value for dim in images.type.tensor_type.shape.dim]
    graph.input.append(helper.make_tensor_value_info(images.name, TensorProto.FLOAT, (1, *size[1:])))
    if len(parts) > 1:
        graph.input.append(helper.make_tensor_value_info(THRESHOLDS, TensorProto.FLOAT, (len(parts) - 1,)))
    return _checked(graph, stages)


def _checked(graph: onnx.GraphProto, stages: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    imports = {entry.domain: entry.version for model in stages for entry in model.opset_import}
    functions = {(item.domain, item.name): item for model in stages for item in model.functions}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*entry) for entry in imports.items()],
        functions=list(functions.values()),
        ir_version=stages[0].ir_version,
        producer_name="dyndeploy",
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
    made = {item.name for part in all_graphs(graph) for item in part.initializer}
    for node in all_nodes(graph):
        node.name = prefix + node.name
        made |= set(node.output)
    rename_tensors(graph, {name: prefix + name for name in made - shared if name})
    return graph
