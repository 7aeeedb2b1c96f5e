"""What pricing needs of a graph: its nodes with their shapes, before any runtime has fused them.

A record stands in profiles, so that what was measured is what is priced, in any precision and with any runtime's
fusions. Branches are flattened: nodes of a block that is skipped per image carry the block as a condition, those of
another ``If`` that ``If`` (its larger branch stands for both).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import TensorInfo
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.fields import Document, Field
from dyndeploy.graphs.inputs import image_sides, real_inputs, with_sizes
from dyndeploy.graphs.inspect import group_of, is_dynamic, operator_attributes, shape_of
from dyndeploy.graphs.parts import BACKBONE, has_parts, part_of_group
from dyndeploy.graphs.shapes import known_sizes
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.base import Shape
from dyndeploy.runtimes import OnnxRuntimeSession

if TYPE_CHECKING:
    import onnx

DOCUMENT = Document("The record of the graph", "Profile the bundle again.", InputError)

_NUMBERED = re.compile(r"^(?!stem\b)[\w.-]*[.-]\d+$")
_ATTRIBUTES = (
    "kernel_shape", "strides", "dilations", "group", "transA", "axis", "axes", "mode", "perm", "sampling_ratio",
)  # fmt: skip
"""What standard operators are priced by, besides their shapes."""

SPELT_OUT: Mapping[str, tuple[str, ...]] = {
    "LayerNormalization": ("ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"),
    "Gelu": ("Div", "Erf", "Add", "Mul", "Mul"),
}
"""What export writes where a platform lacks an operator: the steps in order, each on the result of the one before.

A ``ReduceMean`` gives one number a row, and the steps behind it work on those up to the next ``Sub`` or ``Div``.
"""


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        op_type: ONNX operator.
        domain: Its domain; empty for standard ones.
        name: Of the node.
        block: Block of the network; None for stem and head.
        inputs: Tensors that it reads; an optional one that is left out is empty.
        outputs: Tensors that it makes.
        attributes: All of a dynamic operator, of others those that decide on their cost.
        conditions: Blocks, or branches of a file of another origin, that it only runs with, from the outermost.
        precision: ``"fp32"`` where a network in INT8 keeps the node so; None: the network's own.
    """

    op_type: str
    domain: str
    name: str
    block: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    precision: str | None = None

    @property
    def dynamic(self) -> bool:
        """Whether it is one of our operators, or one that was registered."""
        return self.domain == DOMAIN and self.op_type in OPERATORS


@dataclass(frozen=True)
class NodeGraph:
    """The nodes of a graph and the shapes of its tensors.

    Attributes:
        name: Of the network.
        nodes: In order of execution.
        shapes: By tensor; a size that is not static is -1.
        constants: Tensors that are known before a run.
        outputs: Tensors that the graph gives.
        batch: Images per run.
        input_size: (height, width) of the image; None if the input is no image.
        branches: Conditions that are an ``If`` of a file of another origin.
        notes: What is computed although it was to be skipped, and why, as the bundle says.
        widths: Bytes of an element, of tensors that keep theirs in every precision
            (:attr:`~dyndeploy.graphs.shapes.Sizes.widths`).
    """

    name: str
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    constants: frozenset[str]
    outputs: tuple[str, ...]
    batch: int
    input_size: tuple[int, int] | None
    branches: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks, in order."""
        return tuple(dict.fromkeys(node.block for node in self.nodes if node.block is not None))

    @property
    def is_dynamic(self) -> bool:
        """Whether any node decides or obeys a decision."""
        return any(node.dynamic or node.conditions for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` reads them back."""
        used = {name for node in self.nodes for name in (*node.inputs, *node.outputs)}
        return {
            "name": self.name,
            "batch": self.batch,
            "input_size": None if self.input_size is None else list(self.input_size),
            "nodes": [
                {
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in vars(node).items()
                    if value not in ("", None, (), {})
                }
                for node in self.nodes
            ],
            "shapes": {name: list(shape) for name, shape in self.shapes.items() if name in used},
            "constants": sorted(self.constants & used),
            "outputs": list(self.outputs),
            "branches": list(self.branches),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"widths": kept} if (kept := {n: w for n, w in self.widths.items() if n in used}) else {}),
        }

    @classmethod
    def from_json(cls, value: Any) -> NodeGraph:
        """Read what :meth:`to_json` wrote; raises ``InputError`` where it is no such object."""
        return cls.read(DOCUMENT.root(value))

    @classmethod
    def read(cls, item: Field) -> NodeGraph:
        """Read a field of another document; raises the document's error where it is malformed."""
        size = item["input_size"].optional(lambda pair: pair.sequence(Field.count, length=2))
        return cls(
            name=item["name"].label(),
            nodes=item["nodes"].sequence(_node, at_least=1),
            shapes=item["shapes"].mapping(lambda shape: shape.sequence(_side)),
            constants=frozenset(item["constants"].sequence(Field.label)),
            outputs=item["outputs"].sequence(Field.label),
            batch=item["batch"].tally(1),
            input_size=None if size is None else (size[0], size[1]),
            branches=item["branches"].sequence(Field.label),
            notes=item.get("notes").optional(lambda notes: notes.sequence(Field.label)) or (),
            widths=item.get("widths").optional(lambda widths: widths.mapping(lambda width: width.count(1, 8))) or {},
        )


def _side(item: Field) -> int:
    """A size of a tensor, or -1."""
    return item.count(-1, 1 << 31)


def _node(item: Field) -> Node:
    def names(key: str) -> tuple[str, ...]:
        return item.get(key).optional(lambda entry: entry.sequence(Field.label)) or ()

    return Node(
        item["op_type"].text(),
        item.get("domain").optional(Field.label) or "",
        item.get("name").optional(Field.label) or "",
        item.get("block").optional(Field.label),
        names("inputs"),
        item["outputs"].sequence(Field.label, at_least=1),
        item.get("attributes").optional(lambda entry: entry.mapping(_attribute)) or {},
        names("conditions"),
        item.get("precision").optional(Field.label),
    )


def _attribute(item: Field) -> Any:
    if isinstance(item.value, str):
        return item.label()
    if isinstance(item.value, list):
        return (
            list(item.sequence(Field.number))
            if any(isinstance(v, float) for v in item.value)
            else list(item.sequence(lambda entry: entry.count(-(1 << 31), 1 << 31)))
        )
    return item.number() if isinstance(item.value, float) else item.count(-(1 << 31), 1 << 31)


def is_block(scope: str) -> bool:
    """Whether a module's path names a block: its last part is numbered, and it is no part of the stem."""
    return bool(_NUMBERED.match(scope))


def block_of(node: onnx.NodeProto, *, parts: bool = False) -> str | None:
    """Block of a node by its name: ``"<block>/..."`` of our exports, else the first numbered scope; None if none.

    Args:
        node: Of any graph.
        parts: Whether the graph has parts (:mod:`dyndeploy.graphs.parts`), whose names are then no blocks.
    """
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", entry.value)
            return next((scope for scope in scopes if is_block(scope)), None)
    if node.name.startswith("/"):
        return next((scope for scope in node.name.split("/")[1:-1] if is_block(scope)), None)
    group = group_of(node.name)
    if parts and (group == BACKBONE or part_of_group(group) != BACKBONE):
        return None
    return None if group in ("stem", "head", "other") else group


def read_nodes(
    model: onnx.ModelProto,
    *,
    batch: int | None = None,
    input_size: tuple[int, int] | None = None,
    dims: Mapping[str, int] | None = None,
    name: str | None = None,
) -> NodeGraph:
    """Read a graph; what follows from sizes alone is a constant of it, as for a runtime that knows the sizes.

    Of a graph in INT8 the nodes are those of the FP32 graph that it was made from, and what it computes in floats is
    marked: the work is the same, and how fast it is done is for device models to say.

    Args:
        model: Any ONNX graph; its weights may be missing.
        batch: Images per run; None takes the graph's own (1 if it leaves it open).
        input_size: (height, width) of the image; None takes the graph's own.
        dims: Other sizes that the graph leaves open, by name (:func:`~dyndeploy.graphs.inputs.with_sizes`).
        name: Of the network; None takes the graph's.

    Raises:
        UsageError: A size for an input that is no image, or of a name that the graph does not have.
        BundleError: The input's shape is open, or sizes contradict each other.
    """
    closed = with_sizes(model, batch=batch, input_size=input_size, dims=dims)
    model, image_size = closed, _image_size(model, closed)
    shape = shape_of(real_inputs(model.graph)[0])
    model, conditions, branches = _flat(model)
    graph = model.graph
    sizes = known_sizes(model, assume=True)
    shapes, notes = dict(sizes.shapes), tuple(_assumed(sizes.assumed))
    parts = has_parts({group_of(node.name) for node in graph.node})
    unknown = [name for node in graph.node for name in node.output if name and -1 in shapes.get(name, (-1,))]
    if unknown:
        # A size may be unknown because a node's inputs do not fit it: then that is the reason to give.
        known_sizes(model, assume=True, strict=True)
        seen = observed_shapes(model, unknown)
        shapes |= seen
        notes += tuple(_said(seen))
    return NodeGraph(
        name=name or graph.name or "network",
        nodes=_in_floats(
            [
                _read(node, conditions.get(node.name, ()), parts)
                for node in graph.node
                if not all(name in sizes.values for name in node.output)
            ],
            sizes.widths,
        ),
        shapes=shapes,
        constants=frozenset({item.name for item in graph.initializer} | set(sizes.values) | {""}),
        outputs=tuple(value.name for value in graph.output),
        batch=shape[0] if shape else 1,
        input_size=image_size,
        branches=branches,
        notes=notes,
        widths=sizes.widths,
    )


def _image_size(model: onnx.ModelProto, closed: onnx.ModelProto) -> tuple[int, int] | None:
    """(height, width) of the input that is an image; which axes those are, the open graph tells."""
    image = image_sides(model.graph)
    if image is None:
        return None
    shape = next(shape_of(value) for value in real_inputs(closed.graph) if value.name == image[0].name)
    return shape[image[1][0]], shape[image[1][1]]


def observed_shapes(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, Shape]:
    """Shapes that depend on the numbers in the input, such as how many boxes a detector finds: those of one run.

    The last resort, since another input may give other shapes. The input is random numbers in [0, 1), whole numbers 1.

    Args:
        model: A graph of standard operators whose inputs have static shapes.
        tensors: The tensors to look at.

    Returns:
        Shapes by tensor; empty where the graph cannot be run here, because its weights are missing for one.
    """
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    try:
        with OnnxRuntimeSession(watched, native="off") as session:
            found = session.run(made_up_inputs(session.inputs), finite=False)
    except DyndeployError:
        return {}
    return {name: tuple(value.shape) for name, value in found.items() if isinstance(value, np.ndarray)}


def made_up_inputs(inputs: Iterable[TensorInfo], seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Inputs for a network that nobody gave any: random numbers in [0, 1), whole numbers 1.

    Raises:
        UsageError: An input takes no numbers.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for info in inputs:
        if info.dtype.startswith("float"):
            feeds[info.name] = rng.random(info.shape, np.float32).astype(info.dtype)
        elif info.dtype.startswith(("int", "uint", "bool")):
            feeds[info.name] = np.ones(info.shape, info.dtype)
        else:
            raise UsageError(f"Input '{info.name}' is a {info.dtype}: no numbers can be made up for it.")
    return feeds


def _said(shapes: Mapping[str, Shape]) -> Iterator[str]:
    """What a reader should know of shapes that were observed."""
    if shapes:
        shown = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'a number'}" for name, shape in [*shapes.items()][:3])
        more = f" and {len(shapes) - 3} more" if len(shapes) > 3 else ""
        yield f"Sizes that depend on the numbers in the input are those of one run on random numbers: {shown}{more}."


def _assumed(nodes: Mapping[str, str]) -> Iterator[str]:
    """What a reader should know of shapes that were assumed."""
    if nodes:
        said = ", ".join(f"{name} gives {what}" for name, what in [*nodes.items()][:3])
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        yield f"How many boxes there are depends on the image; assumed: {said}{more}."


def _read(node: onnx.NodeProto, conditions: tuple[str, ...], parts: bool) -> Node:
    from onnx import helper

    if is_dynamic(node):
        attributes = operator_attributes(node)
    else:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in _ATTRIBUTES}
    plain = {key: _plain(item) for key, item in attributes.items()}
    name = node.name or f"{node.op_type}_{node.output[0]}"
    block = block_of(node, parts=parts)
    if block is None and is_dynamic(node) and OPERATORS[node.op_type].gates:
        block = name  # Whatever obeys a decision has a rate, and rates go by block.
    return Node(node.op_type, node.domain, name, block, tuple(node.input), tuple(node.output), plain, conditions)


_MULTIPLIES = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_IN_INTEGERS = frozenset({"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger"})
_QUANTISATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def _in_floats(nodes: Sequence[Node], widths: Mapping[str, int]) -> tuple[Node, ...]:
    """Operators in integers as those in floats; where there are any, what computes in floats is marked as FP32."""
    floats = {spec.quantization.operator: spec for spec in OPERATORS.values() if spec.quantization is not None}
    quantised = {name for node in nodes if node.op_type in _QUANTISATION for name in node.outputs}

    def in_integers(node: Node) -> bool:
        if node.dynamic:
            return node.op_type in floats
        multiplies = not node.domain and node.op_type in _MULTIPLIES
        return node.op_type in _IN_INTEGERS or (multiplies and quantised.issuperset(node.inputs[:2]))

    def of(node: Node) -> Node:
        if not in_integers(node):
            moves_bytes = all(widths.get(name) == 1 for name in node.outputs)
            return node if moves_bytes else replace(node, precision="fp32")
        if not node.dynamic:
            return node
        spec = floats[node.op_type]
        given = dict(zip((port.name for port in OPERATORS[node.op_type].inputs), node.inputs, strict=False))
        inputs = tuple(given.get(port.name, "") for port in spec.inputs)
        # What only decides computes in floats: its input alone is in integers.
        decides = spec.quantization is not None and not spec.quantization.output
        return replace(node, op_type=spec.name, inputs=inputs, precision="fp32" if decides else None)

    return tuple(map(of, nodes)) if any(map(in_integers, nodes)) else tuple(nodes)


def _plain(value: Any) -> Any:
    """An attribute as JSON knows it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if isinstance(value, Iterable) else value


# ---------------------------------------------------------------- branches

Conditions = dict[str, tuple[str, ...]]
"""Blocks and branches that a node runs with, by its name."""


def _flat(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Conditions, tuple[str, ...]]:
    """The graph without branches, what its nodes run with, and the branches that are no skipped blocks."""
    if not any(node.op_type == "If" and not node.domain for node in model.graph.node):
        return model, {}, ()
    from dyndeploy.graphs.branches import flattened

    flat = flattened(model)
    conditions = {name: tuple(map(_block_of_mask, masks)) for name, masks in flat.masks.items()}
    model, foreign = flat.model, list[str]()
    while True:
        at = next((i for i, node in enumerate(model.graph.node) if node.op_type == "If" and not node.domain), None)
        if at is None:
            return model, conditions, tuple(foreign)
        decided = _decided(model, model.graph.node[at])
        if decided is not None:
            model, conditions = _taken(model, at, decided, conditions, always=True)
            continue
        foreign.append(_label(model.graph.node[at]))
        model, conditions = max(
            (_taken(model, at, branch.g, conditions) for branch in model.graph.node[at].attribute),
            key=lambda taken: _macs(taken[0], {name for name in taken[1] if name not in conditions}),
        )


def _decided(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.GraphProto | None:
    """The branch that an ``If`` takes, where that follows from sizes; None where only a run tells."""
    from onnx import numpy_helper

    values = known_sizes(model, assume=True).values
    constants = {item.name: item for item in model.graph.initializer}
    if node.input[0] in values:
        condition = values[node.input[0]]
    elif node.input[0] in constants:
        condition = numpy_helper.to_array(constants[node.input[0]])
    else:
        return None
    wanted = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    branches: dict[str, onnx.GraphProto] = {item.name: item.g for item in node.attribute}
    return branches[wanted]


def _label(node: onnx.NodeProto) -> str:
    return node.name or f"If_{node.output[0]}"


def _block_of_mask(mask: str) -> str:
    """``"layer1.0"`` of ``"mask/layer1.0/layer"``."""
    return mask.removeprefix("mask/").rpartition("/")[0] or mask


def _taken(
    model: onnx.ModelProto, at: int, branch: onnx.GraphProto, conditions: Conditions, *, always: bool = False
) -> tuple[onnx.ModelProto, Conditions]:
    """The graph with the nodes of a branch in the place of its ``If``, which they run with unless it is ``always``."""
    import onnx
    from onnx import helper

    flat = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    flat.graph.CopyFrom(model.graph)
    node = model.graph.node[at]
    label = _label(node)
    inner = [onnx.NodeProto.FromString(item.SerializeToString()) for item in branch.node]
    for index, item in enumerate(inner):
        item.name = f"{label}/{item.name or f'{item.op_type}_{index}'}"
    for value, output in zip(branch.output, node.output, strict=True):
        inner.append(helper.make_node("Identity", [value.name], [output], name=f"{label}/{output}"))
    nodes = [*model.graph.node[:at], *inner, *model.graph.node[at + 1 :]]
    del flat.graph.node[:]
    flat.graph.node.extend(nodes)
    flat.graph.initializer.extend(branch.initializer)
    outer = conditions.get(node.name, ())
    runs_with = outer if always else (*outer, label)
    return flat, {**conditions, **{item.name: runs_with for item in inner if runs_with}}


def _macs(model: onnx.ModelProto, names: set[str]) -> tuple[float, float]:
    """Multiply-accumulates of nodes, and the elements that they make, which decide where the former are equal."""
    shapes = known_sizes(model, assume=True).shapes
    macs = made = 0.0
    for node in model.graph.node:
        if node.name not in names or any(-1 in shapes.get(name, (-1,)) for name in (*node.input, *node.output) if name):
            continue
        outputs = float(sum(math.prod(shapes[name]) for name in node.output))
        made += outputs
        if is_dynamic(node):
            spec = OPERATORS[node.op_type]
            work = spec.dense_work([shapes[name] for name in node.input], operator_attributes(node))
            macs += float(sum(work.macs)) if getattr(work.macs, "ndim", 0) else float(work.macs)
        elif node.op_type == "Conv":
            macs += outputs * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            macs += outputs * shapes[node.input[0]][-1]
    return macs, made
