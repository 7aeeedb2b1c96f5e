"""Graph passes between capture and bundle: named, ordered, applied as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from dyndeploy.errors import ExportError
from dyndeploy.graphs.inspect import foreign_operators, operator_attributes
from dyndeploy.ops import DOMAIN, OPERATORS

_SCOPES = "pkg.torch.onnx.name_scopes"

Array = npt.NDArray[Any]


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
        inputs: Final names of the graph inputs, in order.
        runtime: Of the target.
        confidence: Name of one more output to compute from ``logits``, the largest softmax probability; empty for none.
    """

    scopes: Mapping[str, str]
    outputs: Sequence[str]
    opset: int
    ir_version: int
    allowed_operators: frozenset[str] | None
    target: str
    inputs: Sequence[str] = ("input",)
    runtime: str = "onnxruntime"
    confidence: str = ""


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
    """``names::tensors``: inputs and outputs are as the bundle lists them, weights follow blocks."""
    graph = model.graph
    if len(graph.input) != len(context.inputs) or len(graph.output) != len(context.outputs):
        raise ExportError(
            f"The captured graph has {len(graph.input)} inputs and {len(graph.output)} outputs; expected "
            f"{len(context.inputs)} and {len(context.outputs)}. This is a fault of the exporter; please report it."
        )
    _copy_repeated_outputs(graph)
    renamed = {value.name: name for value, name in zip(graph.input, context.inputs, strict=True)}
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


def _copy_repeated_outputs(graph: onnx.GraphProto) -> None:
    """Give every output a tensor of its own: a network may return one twice, or an input as it came."""
    taken = {value.name for value in graph.input}
    for index, value in enumerate(graph.output):
        if value.name in taken:
            copied = f"{value.name}/output{index}"
            graph.node.append(helper.make_node("Identity", [value.name], [copied], name=f"head/{copied}"))
            value.name = copied
        taken.add(value.name)


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


def fold_constants(model: onnx.ModelProto, context: Context) -> None:
    """``fold::constants``: compute what does not depend on the inputs, e.g. the first queries of learnt tokens."""
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        foldable = not node.domain and all(name in constants or not name for name in node.input)
        if not foldable or outputs & set(node.output) or any(item.HasField("g") for item in node.attribute):
            kept.append(node)
            continue
        given = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
        results = _evaluate(node, given, model.opset_import)
        if sum(value.nbytes for value in results) > max(_MAY_GROW, *(value.nbytes for value in given.values()), 0):
            kept.append(node)
            continue
        for name, value in zip(node.output, results, strict=True):
            constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
            graph.initializer.append(constants[name])
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused(model)


_MAY_GROW = 1 << 16
"""Bytes that a folded constant may always have; beyond that it must not be larger than what it is computed from."""


def _evaluate(
    node: onnx.NodeProto, given: Mapping[str, Array], opsets: Sequence[onnx.OperatorSetIdProto]
) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in given.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    single = helper.make_model(helper.make_graph([node], "constant", inputs, outputs), opset_imports=opsets)
    return [np.asarray(value) for value in ReferenceEvaluator(single).run(None, dict(given))]


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants that no node reads."""
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


class _Links:
    """Producers, readers and constants of a graph that a pass rewrites; renewed after every rewrite."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {item.name: item for item in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor, or None if several do or the graph returns it."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def value(self, name: str) -> npt.NDArray[np.float64]:
        return numpy_helper.to_array(self.constants[name]).astype(np.float64)

    def add(self, name: str, value: npt.NDArray[np.float64], like: str) -> str:
        """Add a constant in the type of another; returns its name."""
        dtype = numpy_helper.to_array(self.constants[like]).dtype
        self.model.graph.initializer.append(numpy_helper.from_array(value.astype(dtype), name))
        return name


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def fold_batch_norm(model: onnx.ModelProto, context: Context) -> None:
    """``fold::batch_norm``: into the convolution or linear layer before it, else into the linear layer behind it.

    Computed in double precision.
    """
    for norm in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
        links = _Links(model)
        if not all(name in links.constants for name in norm.input[1:]):
            continue
        scale, bias, mean, variance = (links.value(name) for name in norm.input[1:])
        scale = scale / np.sqrt(variance + _attributes(norm).get("epsilon", 1e-5))
        shift = bias - mean * scale
        before = links.producers.get(norm.input[0])
        behind = links.only_reader(norm.output[0])
        alone = links.only_reader(norm.input[0]) is not None
        if before is not None and alone and _is_linear(before, links):
            _fold_behind(before, scale, shift, links)
            before.output[0] = norm.output[0]
        elif behind is not None and behind.op_type == "Gemm" and _is_linear(behind, links):
            _fold_before(behind, scale, shift, links)
            behind.input[0] = norm.input[0]
        else:
            continue
        model.graph.node.remove(norm)
    drop_unused(model)


def _is_linear(node: onnx.NodeProto, links: _Links) -> bool:
    """Whether a node is a convolution or linear layer with constant weights."""
    plain = all(
        _attributes(node).get(name, value) == value for name, value in (("alpha", 1), ("beta", 1), ("transA", 0))
    )
    return node.op_type in ("Conv", "Gemm") and plain and all(name in links.constants for name in node.input[1:])


def _fold_behind(
    node: onnx.NodeProto, scale: npt.NDArray[np.float64], shift: npt.NDArray[np.float64], links: _Links
) -> None:
    weight = links.value(node.input[1])
    outputs_first = node.op_type == "Conv" or _attributes(node).get("transB", 0)
    weight = weight * (scale.reshape(-1, *[1] * (weight.ndim - 1)) if outputs_first else scale)
    bias = shift if len(node.input) < 3 else shift + scale * links.value(node.input[2])
    _set_weights(node, weight, bias, links)


def _fold_before(
    node: onnx.NodeProto, scale: npt.NDArray[np.float64], shift: npt.NDArray[np.float64], links: _Links
) -> None:
    weight = links.value(node.input[1])
    rows = weight if _attributes(node).get("transB", 0) else weight.T
    bias = rows @ shift + (0 if len(node.input) < 3 else links.value(node.input[2]))
    folded = rows * scale
    _set_weights(node, folded if rows is weight else folded.T, bias, links)


def _set_weights(
    node: onnx.NodeProto, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], links: _Links
) -> None:
    """Give a layer weights of its own: others may share the ones that it had."""
    like = node.input[1]
    name = node.name or node.output[0]
    node.input[:] = [
        node.input[0],
        links.add(f"{name}/folded_weight", np.ascontiguousarray(weight), like),
        links.add(f"{name}/folded_bias", bias, like),
    ]


def fold_pooled_depthwise(model: onnx.ModelProto, context: Context) -> None:
    """``fold::pooled_depthwise``: ``pool(conv(x) + x)`` of a depthwise convolution is one depthwise convolution.

    All three are linear, and windows of an average pool do not overlap: a k x k convolution averaged over s x s windows
    is a (k + s - 1) x (k + s - 1) convolution of stride s, with k² s² / (k + s - 1)² times fewer products. Only for
    ONNX Runtime: whether TensorRT has good kernels for windows as wide as 22 x 22 has not been measured.
    """
    if context.runtime != "onnxruntime":
        return
    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        links = _Links(model)
        if not _is_linear(conv, links) or not _keeps_size(conv, links):
            continue
        weight = links.value(conv.input[1])
        output, last = conv.output[0], conv
        removed = []
        add = links.only_reader(output)
        if add is not None and add.op_type == "Add" and conv.input[0] in add.input:
            weight = weight.copy()
            weight[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] += 1
            output, last = add.output[0], add
            removed.append(add)
        pool = links.only_reader(output)
        strides = (1, 1)
        if pool is not None and pool.op_type == "AveragePool" and _has_whole_windows(pool):
            strides = tuple(_attributes(pool)["kernel_shape"])
            weight = _averaged(weight, *strides)
            last = pool
            removed.append(pool)
        if not removed:
            continue
        bias = np.zeros(len(weight)) if len(conv.input) < 3 else links.value(conv.input[2])
        _set_weights(conv, weight, bias, links)
        for attribute in list(conv.attribute):
            if attribute.name in ("strides", "kernel_shape"):
                conv.attribute.remove(attribute)
        conv.attribute.extend(
            [helper.make_attribute("strides", strides), helper.make_attribute("kernel_shape", weight.shape[2:])]
        )
        conv.output[0] = last.output[0]
        for node in removed:
            model.graph.node.remove(node)
    drop_unused(model)


def _keeps_size(conv: onnx.NodeProto, links: _Links) -> bool:
    """Whether a convolution is depthwise and gives a map of the size of its input."""
    weight, attributes = links.constants[conv.input[1]].dims, _attributes(conv)
    if len(weight) != 4 or weight[1] != 1 or attributes.get("group", 1) != weight[0]:
        return False
    plain = set(attributes.get("strides", [1])) == set(attributes.get("dilations", [1])) == {1}
    return plain and list(attributes.get("pads", [0] * 4)) == [side // 2 for side in (*weight[2:], *weight[2:])]


def _has_whole_windows(pool: onnx.NodeProto) -> bool:
    attributes = _attributes(pool)
    same = list(attributes["kernel_shape"]) == list(attributes.get("strides", []))
    dilated = set(attributes.get("dilations", [1])) != {1}
    return same and not any(attributes.get("pads", [])) and not attributes.get("ceil_mode", 0) and not dilated


def _averaged(weight: npt.NDArray[np.float64], rows: int, columns: int) -> npt.NDArray[np.float64]:
    """A stride-1 kernel (C, 1, k, l) averaged over windows of rows x columns: (C, 1, k + rows - 1, l + columns - 1)."""
    count, _, height, width = weight.shape
    wide = np.zeros((count, 1, height + rows - 1, width + columns - 1))
    for row in range(rows):
        for column in range(columns):
            wide[:, :, row : row + height, column : column + width] += weight / (rows * columns)
    return wide


def order_gelu(model: onnx.ModelProto, context: Context) -> None:
    """``order::gelu``: write ``x * (0.5 * (1 + erf))`` as ``(x * (1 + erf)) * 0.5``, which runtimes know as a GELU."""
    links = _Links(model)
    for outer in model.graph.node:
        if outer.op_type != "Mul":
            continue
        for position in (0, 1):
            half = links.producers.get(outer.input[position])
            if half is None or half.op_type != "Mul" or links.only_reader(half.output[0]) is None:
                continue
            constant = next((name for name in half.input if name in links.constants), None)
            gate = next((name for name in half.input if name not in links.constants), None)
            added = links.producers.get(gate or "")
            if constant is None or gate is None or added is None or added.op_type != "Add":
                continue
            erf = any(node is not None and node.op_type == "Erf" for node in map(links.producers.get, added.input))
            if erf and links.constants[constant].dims[:] in ([], [1]):
                half.input[:] = [outer.input[1 - position], gate]
                outer.input[:] = [half.output[0], constant]
                break


# Operators whose later versions only widened types, or added what is removed here: version 18 reads as version 13.
_SAME_SINCE_13 = frozenset(
    {
        "Add",
        "AveragePool",
        "Clip",
        "Conv",
        "Concat",
        "Div",
        "Erf",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "Identity",
        "MatMul",
        "MaxPool",
        "Mul",
        "ReduceMax",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Softmax",
        "Sqrt",
        "Sub",
        "Transpose",
    }
)


_Rule = Callable[[onnx.ModelProto, onnx.NodeProto], list[onnx.NodeProto]]
"""Turns a node of opset 18 into nodes of opset 13 that give the same outputs."""


def _lower_reduction(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    constants = {item.name: item for item in model.graph.initializer}
    if len(node.input) == 2:
        if node.input[1] not in constants:
            raise ExportError(
                f"{node.name}: the axes of {node.op_type} are not constant; opset 13 needs constant axes."
            )
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        del node.input[1]
        node.attribute.append(helper.make_attribute("axes", axes))
    _drop_attribute(node, "noop_with_empty_axes")
    return [node]


def _lower_reshape(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    constants = {item.name: item for item in model.graph.initializer}
    allowzero = any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)
    shape = constants.get(node.input[1])
    # A constant shape without zeros means the same either way.
    if allowzero and (shape is None or 0 in numpy_helper.to_array(shape)):
        raise ExportError(f"{node.name}: Reshape with allowzero has no equivalent below opset 14.")
    _drop_attribute(node, "allowzero")
    return [node]


def _lower_layer_norm(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Layer norm came with opset 17."""
    attributes = _attributes(node)
    if attributes.get("axis", -1) != -1 or len(node.output) > 1:
        raise ExportError(f"{node.name}: only layer norms over the last axis have a rule below opset 17.")
    epsilon = f"{node.output[0]}/epsilon"
    model.graph.initializer.append(
        numpy_helper.from_array(np.array(attributes.get("epsilon", 1e-5), np.float32), epsilon)
    )
    nodes: list[onnx.NodeProto] = []

    def emit(op_type: str, inputs: Sequence[str], output: str | None = None, **more: Any) -> str:
        made = output or f"{node.output[0]}/{len(nodes)}"
        nodes.append(helper.make_node(op_type, inputs, [made], name=f"{node.name}/{len(nodes)}", **more))
        return made

    x, scale, *bias = (name for name in node.input if name)
    centred = emit("Sub", [x, emit("ReduceMean", [x], axes=[-1])])
    variance = emit("ReduceMean", [emit("Mul", [centred, centred])], axes=[-1])
    normed = emit("Div", [centred, emit("Sqrt", [emit("Add", [variance, epsilon])])])
    scaled = emit("Mul", [normed, scale], None if bias else node.output[0])
    if bias:
        emit("Add", [scaled, bias[0]], node.output[0])
    return nodes


def _lower_hard_swish(model: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Hard swish came with opset 14."""
    gate = f"{node.output[0]}/gate"
    return [
        helper.make_node("HardSigmoid", node.input, [gate], name=f"{node.name}/gate", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", [node.input[0], gate], node.output, name=node.name),
    ]


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


_LOWER_TO_13: dict[str, _Rule] = {
    "HardSwish": _lower_hard_swish,
    "LayerNormalization": _lower_layer_norm,
    "ReduceMax": _lower_reduction,
    "ReduceMean": _lower_reduction,
    "Reshape": _lower_reshape,
}


def legalise_opset(model: onnx.ModelProto, context: Context) -> None:
    """``opset::legalise``: rewrite the standard operators for the opset of the target.

    The PyTorch exporter writes opset 18 whatever it is asked for. An operator without a rule is refused rather
    than relabelled.
    """
    captured = next(entry.version for entry in model.opset_import if entry.domain == "")
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += [node] if node.domain else _legalised(model, node, captured, context)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", context.opset))
    domains = {node.domain for node in model.graph.node} - {""}
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(domains))
    model.ir_version = context.ir_version


def _legalised(model: onnx.ModelProto, node: onnx.NodeProto, captured: int, context: Context) -> list[onnx.NodeProto]:
    def since(opset: int) -> int | None:
        try:
            version: int = onnx.defs.get_schema(node.op_type, opset).since_version
        except onnx.defs.SchemaError:
            return None
        return version

    wanted = since(context.opset)
    # A runtime may lack an operator that its opset has.
    lacking = context.allowed_operators is not None and node.op_type not in context.allowed_operators
    if wanted == since(captured) and not lacking:
        return [node]
    if (context.opset < captured or lacking) and node.op_type in _LOWER_TO_13:
        return _LOWER_TO_13[node.op_type](model, node)
    if wanted == since(captured):
        return [node]
    if wanted is None:
        raise ExportError(f"{node.name}: {node.op_type} does not exist in opset {context.opset}.")
    if node.op_type not in _SAME_SINCE_13:
        raise ExportError(
            f"{node.name}: no rule takes {node.op_type} from opset {captured} to {context.opset} "
            f"(target {context.target}). Choose a target with a newer opset."
        )
    return [node]


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
            expected = spec.output_shapes([shapes[name] for name in node.input], operator_attributes(node))
            found = tuple(shapes[name] for name in node.output)
            if found != expected:
                raise ExportError(f"{node.name}: shapes {found} in the graph, {expected} by its operator.")


PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("names::nodes", name_nodes),
    ("names::tensors", name_tensors),
    ("exits::confidence", add_confidence),
    ("fold::constants", fold_constants),
    ("fold::batch_norm", fold_batch_norm),
    ("fold::pooled_depthwise", fold_pooled_depthwise),
    ("order::gelu", order_gelu),
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
