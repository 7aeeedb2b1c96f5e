"""Opsets: the operators as the target's version of ONNX has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dyndeploy.errors import ExportError
from dyndeploy.graphs.inspect import all_graphs, all_nodes, attach_bodies, drop_unused
from dyndeploy.graphs.passes.shared import (
    Links,
    add_constant,
    attributes_of,
    drop_attribute,
    known_shapes,
    set_attribute,
)
from dyndeploy.ops import DOMAIN, OPERATORS

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context

SAME = frozenset(
    {
        *("Add", "Constant", "ConstantOfShape", "CumSum", "Div", "Equal", "GreaterOrEqual", "Identity", "If", "IsInf"),
        *("IsNaN", "LeakyRelu", "LessOrEqual", "Loop", "Mul", "PRelu", "Pow", "Relu", "Scan", "Size", "Sub", "Where"),
    }
)
"""Operators whose versions between opsets 13 and 20 differ in the types that they take only."""

SAME_UPWARDS = frozenset(
    {
        *("AveragePool", "Cast", "DequantizeLinear", "Pad", "QuantizeLinear", "ReduceMax"),
        *("ReduceMin", "Reshape", "Resize", "Shape"),
    }
)
"""Operators that opsets up to 20 read as opset 18 has them, though not the other way round."""

READ_ALIKE = SAME | {"Reshape", "ScatterElements", "ScatterND"}
"""Operators that opset 16 reads as opset 13 has them."""


class _Lowering:
    """What the rules need: constants, shapes, and a place to put new nodes and constants."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self.model = model
        self.opset = opset
        self.links = Links(model)
        self._shapes: dict[str, tuple[int, ...]] | None = None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, -1 where a size is open; None if nothing is known."""
        if self._shapes is None:
            self._shapes = known_shapes(self.model)
        return self._shapes.get(name)

    def constant(self, name: str, value: Any) -> str:
        """Add a constant; returns its name."""
        return add_constant(self.model, name, np.asarray(value))

    def float_like(self, node: onnx.NodeProto, kind: str, value: float) -> str:
        """Add a scalar for the nodes that stand for another."""
        return self.constant(f"{node.output[0]}/{kind}", np.float32(value))


Rule = Callable[[_Lowering, onnx.NodeProto], list[onnx.NodeProto]]
"""Turns a node of a newer opset into nodes of opset 13 that give the same outputs."""


class _Emitter:
    """Writes the nodes that stand for one."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.node = node
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op_type: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        made = output or f"{self.node.output[0]}/{len(self.nodes)}"
        name = f"{self.node.name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [made], name=name, **attributes))
        return made


def _refuse(node: onnx.NodeProto, what: str) -> ExportError:
    return ExportError(f"{node.name}: {what}. Choose a target with a newer opset, or write the layer otherwise.")


def _unless(node: onnx.NodeProto, **usual: Any) -> list[onnx.NodeProto]:
    """The node without attributes that older versions lack, which must have the values that those imply."""
    attributes = attributes_of(node)
    for name, value in usual.items():
        if attributes.get(name, value) != value:
            raise _refuse(node, f"{node.op_type} with {name} = {attributes[name]!r} has no equivalent in opset 13")
    drop_attribute(node, *usual)
    return [node]


def _lower_reduction(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if len(node.input) == 2:
        axes = lowering.links.integers(node.input[1])
        if axes is None:
            raise _refuse(node, f"the axes of {node.op_type} are not constant; opset 13 needs constant axes")
        del node.input[1]
        if axes:
            set_attribute(node, "axes", axes)
    no_axes = "axes" not in attributes_of(node)
    if no_axes and attributes_of(node).get("noop_with_empty_axes", 0):
        return [helper.make_node("Identity", node.input, node.output, name=node.name)]
    drop_attribute(node, "noop_with_empty_axes")
    return [node]


def _lower_reshape(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    shape = lowering.links.integers(node.input[1])
    # A constant shape without zeros means the same either way.
    if attributes_of(node).get("allowzero", 0) and (shape is None or 0 in shape):
        raise ExportError(f"{node.name}: Reshape with allowzero has no equivalent below opset 14.")
    drop_attribute(node, "allowzero")
    return [node]


def _lower_layer_norm(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Layer norm came with opset 17."""
    attributes = attributes_of(node)
    axis, rank = attributes.get("axis", -1), len(lowering.shape(node.input[0]) or ())
    if (axis != -1 and axis != rank - 1) or len(node.output) > 1:
        raise ExportError(f"{node.name}: only layer norms over the last axis have a rule below opset 17.")
    epsilon = lowering.float_like(node, "epsilon", attributes.get("epsilon", 1e-5))
    emit = _Emitter(node)
    x, scale, *bias = (name for name in node.input if name)
    # Axes became an input with opset 18.
    inputs = [lowering.constant(f"{node.output[0]}/axes", [-1])] if lowering.opset >= 18 else []
    axes: dict[str, Any] = {} if inputs else {"axes": [-1]}
    centred = emit("Sub", [x, emit("ReduceMean", [x, *inputs], **axes)])
    variance = emit("ReduceMean", [emit("Mul", [centred, centred]), *inputs], **axes)
    normed = emit("Div", [centred, emit("Sqrt", [emit("Add", [variance, epsilon])])])
    scaled = emit("Mul", [normed, scale], None if bias else node.output[0])
    if bias:
        emit("Add", [scaled, bias[0]], node.output[0])
    return emit.nodes


def _lower_group_norm(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Group norm came with opset 18: an instance norm of the groups, scaled and shifted per group."""
    x, scale, bias = node.input
    attributes, shape = attributes_of(node), lowering.shape(x)
    groups = attributes["num_groups"]
    if shape is None or min(shape[1:], default=-1) < 1:
        raise _refuse(node, "the channels and sizes of a group norm must be known below opset 18")
    name, spatial = node.output[0], len(shape) - 2
    ones = lowering.constant(f"{name}/ones", np.ones(groups, np.float32))
    zeros = lowering.constant(f"{name}/zeros", np.zeros(groups, np.float32))
    emit = _Emitter(node)
    rows = emit("Reshape", [x, lowering.constant(f"{name}/rows", [0, groups, -1])])
    normed = emit("InstanceNormalization", [rows, ones, zeros], epsilon=attributes.get("epsilon", 1e-5))
    # The scale of opset 18 is one per group.
    each = lowering.constant(f"{name}/per_group", [1, groups, 1])
    scaled = emit("Mul", [normed, emit("Reshape", [scale, each])])
    shifted = emit("Add", [scaled, emit("Reshape", [bias, each])])
    whole = lowering.constant(f"{name}/shape", [0, *shape[1 : 2 + spatial]])
    emit("Reshape", [shifted, whole], name)
    return emit.nodes


def _lower_hard_swish(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Hard swish came with opset 14."""
    gate = f"{node.output[0]}/gate"
    return [
        helper.make_node("HardSigmoid", node.input, [gate], name=f"{node.name}/gate", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", [node.input[0], gate], node.output, name=node.name),
    ]


def _lower_mish(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Mish came with opset 18."""
    emit = _Emitter(node)
    emit("Mul", [node.input[0], emit("Tanh", [emit("Softplus", node.input)])], node.output[0])
    return emit.nodes


def _lower_gelu(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """GELU came with opset 20; written as runtimes know it."""
    emit, x = _Emitter(node), node.input[0]
    one, half = (lowering.float_like(node, kind, value) for kind, value in (("one", 1), ("half", 0.5)))
    if attributes_of(node).get("approximate", b"none") == b"tanh":
        cubic = lowering.float_like(node, "cubic", 0.044715)
        factor = lowering.float_like(node, "factor", np.sqrt(2 / np.pi))
        cube = emit("Mul", [emit("Mul", [emit("Mul", [x, x]), x]), cubic])
        gate = emit("Tanh", [emit("Mul", [emit("Add", [x, cube]), factor])])
    else:
        gate = emit("Erf", [emit("Div", [x, lowering.float_like(node, "root", np.sqrt(2))])])
    emit("Mul", [emit("Mul", [x, emit("Add", [gate, one])]), half], node.output[0])
    return emit.nodes


def _lower_pad(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The axes that are padded may be given since opset 18."""
    if len(node.input) < 4 or not node.input[3]:
        del node.input[3:]
        return _unless(node)
    axes, pads = (lowering.links.integers(node.input[index]) for index in (3, 1))
    shape = lowering.shape(node.input[0])
    if axes is None or pads is None or shape is None:
        raise _refuse(node, "the axes and sizes of a Pad must be constant below opset 18")
    full = np.zeros((2, len(shape)), np.int64)
    full[:, axes] = np.array(pads).reshape(2, -1)
    node.input[1] = lowering.constant(f"{node.output[0]}/pads", full.ravel())
    del node.input[3]
    return [node]


def _lower_resize(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The axes that are resized may be given since opset 18."""
    attributes = attributes_of(node)
    axes = attributes.get("axes")
    if axes is not None:
        shape = lowering.shape(node.input[0])
        if shape is None or (len(node.input) > 1 and node.input[1]):
            raise _refuse(node, "a Resize of some axes of a map of unknown rank has no rule below opset 18")
        for index, name in enumerate(node.input[2:], start=2):
            if not name:
                continue
            if name not in lowering.links.constants or (index == 3 and -1 in shape):
                raise _refuse(node, "the sizes of a Resize of some axes must be constant below opset 18")
            given = numpy_helper.to_array(lowering.links.constants[name])
            full = np.ones(len(shape), given.dtype) if index == 2 else np.array(shape, given.dtype)
            full[list(axes)] = given
            node.input[index] = lowering.constant(f"{node.output[0]}/resize{index}", full)
        drop_attribute(node, "axes")
    return _unless(node, antialias=0, keep_aspect_ratio_policy=b"stretch")


def _lower_split(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The number of parts may be given since opset 18: the last is smaller where they cannot be equal."""
    attributes = attributes_of(node)
    if "num_outputs" in attributes:
        parts, shape = attributes["num_outputs"], lowering.shape(node.input[0])
        size = -1 if shape is None else shape[attributes.get("axis", 0)]
        if size < 1:
            raise ExportError(
                f"{node.name}: no rule takes Split from opset 18 to 13 where the size of what is split is not known."
            )
        chunk = -(-size // parts)
        sizes = [min(chunk, size - chunk * index) for index in range(parts)]
        node.input[:] = [node.input[0], lowering.constant(f"{node.output[0]}/split", sizes)]
        drop_attribute(node, "num_outputs")
    return [node]


def _lower_shape(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A part of the shape may be asked for since opset 15."""
    attributes = attributes_of(node)
    start, end = attributes.get("start", 0), attributes.get("end")
    drop_attribute(node, "start", "end")
    if start == 0 and end is None:
        return [node]
    emit, name = _Emitter(node), node.output[0]
    bounds = [
        lowering.constant(f"{name}/{kind}", np.array([value], np.int64))
        for kind, value in (("start", start), ("end", np.iinfo(np.int64).max if end is None else end))
    ]
    emit("Slice", [emit("Shape", node.input), *bounds], name)
    return emit.nodes


def _lower_roi_align(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Opset 16 shifts the boxes by half a pixel unless told not to, older ones never do."""
    if "coordinate_transformation_mode" not in attributes_of(node):
        set_attribute(node, "coordinate_transformation_mode", "half_pixel")
    return _unless(node, coordinate_transformation_mode=b"output_half_pixel")


def _raise_grid_sample(lowering: _Lowering, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Opset 20 has other names for the ways to interpolate."""
    mode = attributes_of(node).get("mode", b"bilinear")
    set_attribute(node, "mode", {b"bilinear": "linear", b"bicubic": "cubic"}.get(mode, mode.decode()))
    return [node]


WRITTEN_OUT: dict[str, Rule] = {
    "Gelu": _lower_gelu,
    "GroupNormalization": _lower_group_norm,
    "HardSwish": _lower_hard_swish,
    "LayerNormalization": _lower_layer_norm,
    "Mish": _lower_mish,
}
"""Operators that opset 13 or a target lacks, written with others."""

LOWER_TO_13: dict[str, Rule] = {
    "BatchNormalization": lambda lowering, node: _unless(node, training_mode=0),
    "Pad": _lower_pad,
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("ReduceProd", "ReduceSumSquare"),
        ),
        _lower_reduction,
    ),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), lambda lowering, node: _unless(node, layout=0)),
    "Reshape": _lower_reshape,
    "Resize": _lower_resize,
    "RoiAlign": _lower_roi_align,
    **dict.fromkeys(("ScatterElements", "ScatterND"), lambda lowering, node: _unless(node, reduction=b"none")),
    "Shape": _lower_shape,
    "Split": _lower_split,
}
"""Operators that a newer opset has with more options."""


RAISE_TO_20: dict[str, Rule] = {"GridSample": _raise_grid_sample}
"""Operators that opset 20 writes otherwise than the opset of the capture."""


def legalise_opset(model: onnx.ModelProto, context: Context) -> None:
    """``opset::legalise``: rewrite the standard operators for the opset of the target, inside branches too.

    The PyTorch exporter writes opset 18 whatever it is asked for. An operator without a rule is refused rather
    than relabelled.
    """
    captured = next(entry.version for entry in model.opset_import if entry.domain == "")
    lowering = _Lowering(model, context.opset)
    for graph in all_graphs(model.graph):
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            nodes += [node] if node.domain else _legalised(lowering, node, captured, context)
        del graph.node[:]
        graph.node.extend(nodes)
    drop_unused(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", context.opset))
    domains = {node.domain for node in all_nodes(model.graph)} - {""}
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(domains))
    model.ir_version = context.ir_version


def with_all_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that runs without our libraries: at a newer opset, where the body of an operator needs one.

    Engines' graphs are of the opset that their parser reads, and no parser asks for bodies.

    Raises:
        ExportError: An operator of the graph has another meaning in the newer opset.
    """
    own = {node.op_type for node in all_nodes(model.graph) if node.domain == DOMAIN}
    opset = max((OPERATORS[name].least_opset for name in own), default=0)
    if opset <= next(entry.version for entry in model.opset_import if not entry.domain):
        return model
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    raise_opset(raised, opset)
    attach_bodies(raised, opset)
    return raised


def raise_opset(model: onnx.ModelProto, opset: int) -> None:
    """Say the same in a newer opset, up to 16, where no operator of the graph has another meaning there.

    Raises:
        ExportError: One has.
    """
    (entry,) = (entry for entry in model.opset_import if not entry.domain)
    for node in all_nodes(model.graph):
        old, new = version_of(node.op_type, entry.version), version_of(node.op_type, opset)
        if not node.domain and old != new and node.op_type not in READ_ALIKE:
            raise ExportError(f"{node.name}: no rule takes {node.op_type} from opset {entry.version} to {opset}.")
    entry.version = opset


def version_of(op_type: str, opset: int) -> int | None:
    """Opset that gave a standard operator the meaning that it has in ``opset``; None if that lacks it."""
    try:
        version: int = onnx.defs.get_schema(op_type, opset).since_version
    except onnx.defs.SchemaError:
        return None
    return version


def _legalised(lowering: _Lowering, node: onnx.NodeProto, captured: int, context: Context) -> list[onnx.NodeProto]:
    wanted = version_of(node.op_type, context.opset)
    # A runtime may lack an operator that its opset has.
    lacking = context.allowed_operators is not None and node.op_type not in context.allowed_operators
    if wanted is not None and wanted == version_of(node.op_type, captured) and not lacking:
        return [node]
    if (lacking or wanted is None) and node.op_type in WRITTEN_OUT:
        return WRITTEN_OUT[node.op_type](lowering, node)
    if context.opset < captured and node.op_type in LOWER_TO_13:
        return LOWER_TO_13[node.op_type](lowering, node)
    if captured < 20 <= context.opset and node.op_type in RAISE_TO_20:
        return RAISE_TO_20[node.op_type](lowering, node)
    if wanted is None:
        raise ExportError(f"{node.name}: {node.op_type} does not exist in opset {context.opset}.")
    same = node.op_type in SAME or (context.opset >= captured and node.op_type in SAME_UPWARDS)
    # Where only the runtime lacks it, the check of the target says so.
    if wanted != version_of(node.op_type, captured) and not same:
        raise ExportError(
            f"{node.name}: no rule takes {node.op_type} from opset {captured} to {context.opset} "
            f"(target {context.target}). Choose a target with a newer opset."
        )
    return [node]
