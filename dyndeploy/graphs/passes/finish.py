"""The last passes: function bodies in, metadata out, the target's rules checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from dyndeploy.errors import ExportError
from dyndeploy.graphs.inspect import (
    CALL,
    CONDITIONAL,
    all_graphs,
    attach_bodies,
    foreign_operators,
    is_dynamic,
    operator_attributes,
)
from dyndeploy.ops import OPERATORS

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


def attach_functions(model: onnx.ModelProto, context: Context) -> None:
    """``functions::attach``: give every dynamic operator its body of standard operators."""
    attach_bodies(model, context.opset)


def strip_metadata(model: onnx.ModelProto, context: Context) -> None:
    """``metadata::strip``: drop what only the capture needed (stack traces, scopes); IR 8 has no place for it."""
    del model.metadata_props[:]
    for graph in all_graphs(model.graph):
        for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            del item.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
    model.graph.name = "dyndeploy"
    model.producer_name = "dyndeploy"


def check(model: onnx.ModelProto, context: Context) -> None:
    """``check::target``: the result is valid ONNX of the target's opset and uses its operators only.

    ``onnx.checker`` passes unknown domains, so the dynamic operators are checked by their own shape inference.
    Placeholders of skipped modules stand for what :func:`dyndeploy.graphs.branches.insert_branches` writes.
    """
    forbidden = set(foreign_operators(model, OPERATORS, context.allowed_operators)) - {f"{CONDITIONAL}::{CALL}"}
    if forbidden:
        raise ExportError(
            f"{', '.join(sorted(forbidden))} in the graph, which {context.target} is not known to run. "
            f"See 'dyndeploy targets {context.target}'."
        )
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=False)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The exported graph is not valid ONNX of opset {context.opset}: {error}") from error
    shapes = {item.name: tuple(item.dims) for item in model.graph.initializer}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    for node in model.graph.node:
        # Inside branches, and behind them, sizes may be open.
        if is_dynamic(node) and all(0 not in shapes.get(name, (0,)) for name in (*node.input, *node.output)):
            spec = OPERATORS[node.op_type]
            expected = spec.output_shapes([shapes[name] for name in node.input], operator_attributes(node))
            found = tuple(shapes[name] for name in node.output)
            if found != expected:
                raise ExportError(f"{node.name}: shapes {found} in the graph, {expected} by its operator.")
