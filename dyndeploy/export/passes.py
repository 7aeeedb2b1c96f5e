"""Graph passes between capture and bundle: named, ordered, applied as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper

from dyndeploy.errors import ExportError
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.graph import foreign_operators, operator_attributes

_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Context:
    """What the passes need to know besides the graph.

    Attributes:
        scopes: Dotted block name by captured module name.
        outputs: Final names of the graph outputs, in order.
        opset: Opset to write.
        ir_version: IR version to write.
        allowed_operators: Standard operators of the target, or None for all.
        target: Name of the target, for messages.
    """

    scopes: Mapping[str, str]
    outputs: Sequence[str]
    opset: int
    ir_version: int
    allowed_operators: frozenset[str] | None
    target: str


Pass = Callable[[onnx.ModelProto, Context], None]


def _scope_of(node: onnx.NodeProto) -> list[str]:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            return re.findall(r"'([^']*)'", entry.value)
    return []


def name_nodes(model: onnx.ModelProto, context: Context) -> None:
    """``names::nodes``: call every node ``<block>/<operator>``, or ``stem/`` before and ``head/`` behind them.

    Profilers join times with blocks by these names.
    """
    used: dict[str, int] = {}
    last_block = max(
        (i for i, node in enumerate(model.graph.node) if any(s in context.scopes for s in _scope_of(node))), default=-1
    )
    for index, node in enumerate(model.graph.node):
        modules = [scope for scope in _scope_of(node) if scope.split(".")[0] in context.scopes]
        block = context.scopes[modules[0].split(".")[0]] if modules else "stem" if index < last_block else "head"
        inner = modules[-1].split(".")[1:] if modules else []
        hint = inner[-1] if inner and not inner[-1].startswith("_") else node.op_type
        name = f"{block}/{hint if node.domain != DOMAIN else node.op_type}"
        used[name] = used.get(name, -1) + 1
        node.name = name if not used[name] else f"{name}_{used[name]}"


def name_tensors(model: onnx.ModelProto, context: Context) -> None:
    """``names::tensors``: the input is ``input``, the outputs are as the bundle lists them, weights follow blocks."""
    graph = model.graph
    if len(graph.input) != 1 or len(graph.output) != len(context.outputs):
        raise ExportError(
            f"The captured graph has {len(graph.input)} inputs and {len(graph.output)} outputs; expected 1 and "
            f"{len(context.outputs)}. This is a fault of the exporter; please report it."
        )
    renamed = {graph.input[0].name: "input"}
    renamed |= {value.name: name for value, name in zip(graph.output, context.outputs, strict=True)}
    for initializer in graph.initializer:
        module, _, rest = initializer.name.partition(".")
        if module in context.scopes:
            renamed[initializer.name] = f"{context.scopes[module]}/{rest}"
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


# Operators whose later versions only widened types, or added what is removed here: version 18 reads as version 13.
_SAME_SINCE_13 = frozenset(
    {
        "Add",
        "Conv",
        "Concat",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "Identity",
        "MatMul",
        "MaxPool",
        "Mul",
        "Relu",
        "Reshape",
        "Sub",
        "Transpose",
    }
)


def _lower_reduce_mean(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    constants = {item.name: item for item in model.graph.initializer}
    if len(node.input) == 2:
        if node.input[1] not in constants:
            raise ExportError(f"{node.name}: the axes of ReduceMean are not constant; opset 13 needs constant axes.")
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        del node.input[1]
        node.attribute.append(helper.make_attribute("axes", axes))
    kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend(kept)


def _lower_reshape(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    constants = {item.name: item for item in model.graph.initializer}
    allowzero = any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)
    shape = constants.get(node.input[1])
    # A constant shape without zeros means the same either way.
    if allowzero and (shape is None or 0 in numpy_helper.to_array(shape)):
        raise ExportError(f"{node.name}: Reshape with allowzero has no equivalent below opset 14.")
    kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
    del node.attribute[:]
    node.attribute.extend(kept)


_LOWER_TO_13 = {"ReduceMean": _lower_reduce_mean, "Reshape": _lower_reshape}


def legalise_opset(model: onnx.ModelProto, context: Context) -> None:
    """``opset::legalise``: rewrite the standard operators for the opset of the target.

    The PyTorch exporter writes opset 18 whatever it is asked for. An operator without a rule is refused rather
    than relabelled.
    """
    captured = next(entry.version for entry in model.opset_import if entry.domain == "")
    for node in model.graph.node:
        if node.domain:
            continue
        try:
            same = (
                onnx.defs.get_schema(node.op_type, context.opset).since_version
                == onnx.defs.get_schema(node.op_type, captured).since_version
            )
        except onnx.defs.SchemaError as error:
            raise ExportError(f"{node.name}: {node.op_type} does not exist in opset {context.opset}.") from error
        if same:
            continue
        if context.opset < captured and node.op_type in _LOWER_TO_13:
            _LOWER_TO_13[node.op_type](model, node)
        elif node.op_type not in _SAME_SINCE_13:
            raise ExportError(
                f"{node.name}: no rule takes {node.op_type} from opset {captured} to {context.opset} "
                f"(target {context.target}). Choose a target with a newer opset."
            )
    used = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", context.opset))
    domains = {node.domain for node in model.graph.node} - {""}
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(domains))
    model.ir_version = context.ir_version


def attach_functions(model: onnx.ModelProto, context: Context) -> None:
    """``functions::attach``: give every dynamic operator its body of standard operators."""
    names = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    del model.functions[:]
    model.functions.extend(OPERATORS[name].function(context.opset) for name in names)


def strip_metadata(model: onnx.ModelProto, context: Context) -> None:
    """``metadata::strip``: drop what only the capture needed (stack traces, scopes); IR 8 has no place for it."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    graph.name = "dyndeploy"
    model.producer_name = "dyndeploy"


def check(model: onnx.ModelProto, context: Context) -> None:
    """``check::target``: the result is valid ONNX of the target's opset and uses its operators only.

    ``onnx.checker`` passes unknown domains, so the dynamic operators are checked by their own shape inference.
    """
    forbidden = foreign_operators(model, OPERATORS, context.allowed_operators)
    if forbidden:
        raise ExportError(
            f"{', '.join(forbidden)} in the graph, which {context.target} is not known to run. "
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
        if node.domain == DOMAIN:
            spec = OPERATORS[node.op_type]
            expected = spec.infer_shape([shapes[name] for name in node.input], operator_attributes(node))
            if shapes[node.output[0]] != expected:
                raise ExportError(
                    f"{node.name}: shape {shapes[node.output[0]]} in the graph, {expected} by its operator."
                )


PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("names::nodes", name_nodes),
    ("names::tensors", name_tensors),
    ("opset::legalise", legalise_opset),
    ("functions::attach", attach_functions),
    ("metadata::strip", strip_metadata),
    ("check::target", check),
)
"""Passes in order, by id."""


def run_pipeline(model: onnx.ModelProto, context: Context) -> None:
    """Apply every pass in place."""
    for _, apply in PIPELINE:
        apply(model, context)
