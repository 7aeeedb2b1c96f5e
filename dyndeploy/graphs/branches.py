"""Whole blocks that are skipped per image, as branches of a graph.

A captured network has one placeholder for every such block: a node ``<block>/Call`` of domain
:data:`~dyndeploy.graphs.inspect.CONDITIONAL` with inputs (x, mask), outputs (y, masks decided inside the block), and
the block's name as attribute ``block``. The block itself is captured apart, as a graph from x to (y, masks inside).
:func:`insert_branches` puts the two together: as an ``If`` named ``<block>/Skip``, or, for targets that refuse ``If``,
as operators that always run and a selection.

Around an ``If`` stand nodes named ``<block>/Skip/...``; the first of them, ``<block>/Skip/decisions``, is the only one
that reads the mask. With several images in a batch, the branch gathers those that compute, runs on them, and scatters
what they give: a body must do for any number of images, which shape inference proves before it is used. With one image
there is nothing to gather.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.errors import BundleError, ExportError, UsageError
from dyndeploy.graphs.inspect import (
    CALL,
    CONDITIONAL,
    all_nodes,
    attach_bodies,
    drop_unused,
    is_dynamic,
    reads,
    reads_of_graph,
    rename_tensors,
    shape_of,
    subgraphs,
)
from dyndeploy.graphs.rules import check_structure
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.ops import OPERATORS

Shape = tuple[int, ...]

_SKIP = "/Skip"
_DECISIONS = f"{_SKIP}/decisions"
_ABOUT_SHAPES = ("Shape", "Size")
_RECURRENT = ("GRU", "LSTM", "RNN")
_SMALL = 1024
"""Elements up to which a constant may hold a shape; of larger ones the size suffices for shapes."""


def is_placeholder(node: onnx.NodeProto) -> bool:
    """Whether a node stands for a block that is skipped per image."""
    return node.domain == CONDITIONAL and node.op_type == CALL


def is_skip(node: onnx.NodeProto) -> bool:
    """Whether a node is the branch of a block that is skipped per image (an ``If`` of another origin is not)."""
    return node.op_type == "If" and not node.domain and node.name.endswith(_SKIP)


def mask_positions(node: onnx.NodeProto) -> list[int]:
    """Which inputs of a node are masks that it obeys: those of a dynamic operator, or of a skipped block's decision."""
    if is_dynamic(node):
        spec = OPERATORS[node.op_type]
        return [spec.input_index(name) for name in spec.mask_inputs() if spec.input_index(name) < len(node.input)]
    return [0] if node.name.endswith(_DECISIONS) else []


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Flattened:
    """A graph whose skipped blocks stand in the main graph, for counting and pricing: there every block runs.

    Attributes:
        model: The graph; what a block gives has the name that its ``If`` gave it. The graph itself if nothing is
            skipped.
        masks: The masks that decide whether a node runs, the outermost block's first, by name of the node; nodes that
            always run are not listed.
    """

    model: onnx.ModelProto
    masks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def conditions(self) -> dict[str, str]:
        """The mask of the innermost block around a node, by name of the node."""
        return {name: masks[-1] for name, masks in self.masks.items()}


@dataclass(frozen=True)
class Scope:
    """The main graph, or the branch of a skipped block that computes.

    Attributes:
        graph: Its nodes.
        names: Names that tensors of this graph have in the main graph, where that has them too.
        samples: Tensors that hold which images of the graph around it are computed, from the outermost block to this
            one; empty for the whole batch.
    """

    graph: onnx.GraphProto
    names: Mapping[str, str]
    samples: tuple[str, ...]


def scopes(graph: onnx.GraphProto) -> Iterator[Scope]:
    """The main graph and the branches of all skipped blocks in it, the outer before the inner."""
    waiting = [Scope(graph, {}, ())]
    while waiting:
        scope = waiting.pop(0)
        yield scope
        for node in scope.graph.node:
            if is_skip(node):
                branch = _Branch(node)
                names = {inner: scope.names.get(outer, outer) for inner, outer in branch.results.items()}
                waiting.append(Scope(branch.graph, names, (*scope.samples, *branch.samples)))


class _Branch:
    """The computing branch of a skipped block."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.graph = next(item.g for item in node.attribute if item.name == "then_branch")
        around = [inner for inner in self.graph.node if inner.name.startswith(f"{node.name}/")]
        self.body = [inner for inner in self.graph.node if not inner.name.startswith(f"{node.name}/")]
        gathers = [inner for inner in around if inner.op_type == "Gather"]
        self.samples = [inner.input[1] for inner in gathers]
        self.inputs = {inner.output[0]: inner.input[0] for inner in gathers}
        scattered = {inner.output[0]: inner.input[2] for inner in around if inner.op_type == "ScatterND"}
        names = [value.name for value in self.graph.output]
        self.results = {scattered.get(name, name): outer for name, outer in zip(names, node.output, strict=True)}


def flattened(model: onnx.ModelProto) -> Flattened:
    """Replace the branch of every skipped block by its nodes, computed for all images.

    Args:
        model: Any graph; an ``If`` of another origin is left alone.
    """
    if not any(is_skip(node) for node in all_nodes(model.graph)):
        return Flattened(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    masks: dict[str, tuple[str, ...]] = {}
    renamed: dict[str, str] = {}

    def unfold(around: Iterator[onnx.NodeProto], conditions: tuple[str, ...]) -> None:
        decisions: dict[str, str] = {}
        for node in around:
            if node.name.endswith(_DECISIONS):
                decisions[node.name.removesuffix("/decisions")] = node.input[0]
            if not is_skip(node):
                nodes.append(node)
                if conditions:
                    masks[node.name] = conditions
                continue
            branch = _Branch(node)
            copy.graph.initializer.extend(branch.graph.initializer)
            renamed.update(branch.inputs)
            renamed.update(branch.results)
            unfold(iter(branch.body), (*conditions, decisions[node.name]))

    unfold(iter(copy.graph.node), ())

    def final(name: str) -> str:
        while name in renamed:
            name = renamed[name]
        return name

    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    rename_tensors(copy.graph, {name: final(name) for name in renamed})
    return Flattened(copy, {name: tuple(map(final, conditions)) for name, conditions in masks.items()})


# ---------------------------------------------------------------- writing


def insert_branches(
    model: onnx.ModelProto, bodies: Mapping[str, onnx.ModelProto], *, lazy: bool, open_batch: bool = False
) -> None:
    """Replace every placeholder by what its block computes, in place.

    Args:
        model: The captured network after the passes.
        bodies: Graphs of the blocks by dotted name, after the passes, each from x to (y, masks inside), with the batch
            size of the network. They may hold placeholders themselves, and are not changed.
        lazy: Write an ``If``: images whose mask is 0 pass through and cost nothing. Otherwise every block is computed
            for every image and the results are selected (masks inside a skipped block are 0 either way).
        open_batch: The network takes any number of images; the bodies were captured for more than one.

    Raises:
        ExportError: A body is missing or does not fit its placeholder, or, with several images in a batch, gives
            shapes for the whole batch only.
    """
    _insert(model, bodies, lazy, inside=open_batch)
    _settle_constants(model.graph)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    attach_bodies(model, opset)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    domains = {node.domain for node in all_nodes(model.graph)} - {""}
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(domains))
    check_structure(model, "Inserting the skipped blocks broke the graph")
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The graph with the skipped blocks is not valid ONNX: {error}") from error


def _insert(model: onnx.ModelProto, bodies: Mapping[str, onnx.ModelProto], lazy: bool, *, inside: bool) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if not is_placeholder(node):
            nodes.append(node)
            continue
        writer = _Writer(model, node, _body_of(node, model, bodies, lazy), inside=inside)
        nodes += writer.branch() if lazy else writer.selection()
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _settle_constants(graph: onnx.GraphProto) -> None:
    """Move what only one branch reads into it: runtimes lay weights out only where they stand beside their nodes.

    In ONNX Runtime a branch of convolutions took twice the time with its weights outside.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(reads(node)):
            readers.setdefault(name, []).append(node)
    places: dict[str, onnx.GraphProto] = {}
    for name, nodes in readers.items():
        if len(nodes) == 1 and is_skip(nodes[0]):
            within = [part for part in subgraphs(nodes[0]) if name in set(reads_of_graph(part))]
            if len(within) == 1:
                places[name] = within[0]
    kept = []
    for item in graph.initializer:
        if item.name in places:
            places[item.name].initializer.append(item)
        else:
            kept.append(item)
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
    for node in graph.node:
        for part in subgraphs(node) if is_skip(node) else ():
            _settle_constants(part)


def _body_of(
    node: onnx.NodeProto, model: onnx.ModelProto, bodies: Mapping[str, onnx.ModelProto], lazy: bool
) -> onnx.ModelProto:
    """The body of a placeholder, complete, with names of its own."""
    block = next((item.s.decode() for item in node.attribute if item.name == "block"), "")
    if block not in bodies:
        raise ExportError(f"{node.name}: there is no body for block '{block}'. This is a fault of the exporter.")
    body = onnx.ModelProto()
    body.CopyFrom(bodies[block])
    versions = [
        next((entry.version for entry in item.opset_import if not entry.domain), None) for item in (model, body)
    ]
    counts = [len(node.input) - 1, len(node.output)]
    if versions[0] != versions[1] or counts != [len(body.graph.input), len(body.graph.output)]:
        raise ExportError(
            f"{node.name}: the body of '{block}' has opset {versions[1]}, {len(body.graph.input)} inputs and "
            f"{len(body.graph.output)} outputs; expected {versions[0]}, {counts[0]} and {counts[1]}. This is a fault "
            "of the exporter."
        )
    _insert(body, bodies, lazy, inside=True)
    graph = body.graph
    made = {name for inner in graph.node for name in inner.output}
    for index, value in enumerate(graph.output):
        # A branch returns what its own nodes make, each once.
        if value.name not in made:
            copied = f"{value.name}/output{index}"
            name = f"{block}/Identity/output{index}"
            graph.node.append(helper.make_node("Identity", [value.name], [copied], name=name))
            value.name = copied
        made.discard(value.name)
    if lazy and shape_of(graph.input[0])[0] > 1:
        _free_batch(body, block)
    drop_unused(body)
    inputs, outputs = ({value.name for value in values} for values in (graph.input, graph.output))
    names = {name for inner in all_nodes(graph) for name in (*inner.input, *inner.output) if name}
    own = {name for name in names if not name.startswith((f"{block}/", f"{block}."))} - inputs - outputs
    rename_tensors(
        graph,
        {name: f"{block}/{name}" for name in own} | {name: f"{block}{_SKIP}/body/{name}" for name in outputs},
    )
    return body


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken; it is taken from now on."""
    made, number = name, 0
    while made in taken:
        number += 1
        made = f"{name}_{number}"
    taken.add(made)
    return made


class _Writer:
    """Writes one block in the place of its placeholder.

    Args:
        model: Gets the constants.
        node: The placeholder.
        body: What the block computes.
        inside: Whether the placeholder is inside another block, where the number of images is open.
    """

    def __init__(self, model: onnx.ModelProto, node: onnx.NodeProto, body: onnx.ModelProto, *, inside: bool) -> None:
        self.model = model
        self.block = next(item.s.decode() for item in node.attribute if item.name == "block")
        self.name = f"{self.block}{_SKIP}"
        self.x, self.mask = node.input
        self.outputs = list(node.output)
        self.graph = body.graph
        self.results = [value.name for value in body.graph.output]
        self.kinds = [value.type.tensor_type.elem_type for value in body.graph.output]
        self.shapes = [shape_of(value) for value in body.graph.output]
        self.batch = shape_of(body.graph.input[0])[0]
        self.inside = inside
        # The block's gate stands outside, with names of the same group.
        taken = {other.name for other in all_nodes(model.graph)}
        for inner in all_nodes(body.graph):
            inner.name = _unique(inner.name, taken)
        self._nodes: list[onnx.NodeProto] = []
        model.graph.initializer.extend(body.graph.initializer)

    def _node(self, op_type: str, inputs: list[str], kind: str, output: str = "", **attributes: Any) -> str:
        made = output or f"{self.name}/{kind}"
        self._nodes.append(helper.make_node(op_type, inputs, [made], name=f"{self.name}/{kind}", **attributes))
        return made

    def _constant(self, kind: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        name = f"{self.name}/{kind}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def _read(self, input_name: str) -> list[onnx.NodeProto]:
        """The body's nodes, computing from a tensor of the graph around it."""
        rename_tensors(self.graph, {self.graph.input[0].name: input_name})
        return list(self.graph.node)

    def branch(self) -> list[onnx.NodeProto]:
        """The nodes of an ``If``."""
        half = self._constant("half", 0.5, np.float32)
        if self.batch == 1:
            one = decisions = self._node("Squeeze", [self.mask], "decisions")
        else:
            decisions = self._node("Reshape", [self.mask, self._constant("column", [-1])], "decisions")
            one = self._node("ReduceMax", [decisions], "any", keepdims=0)
        condition = self._node("Greater", [one, half], "condition")
        nothing = [self.x, *(self._zeros(decisions, index) for index in range(1, len(self.outputs)))]
        around, self._nodes = self._nodes, []
        then_names = self.results
        if self.batch > 1:
            computes = self._node("Greater", [decisions, half], "computes")
            found = self._node("NonZero", [computes], "found")
            samples = self._node("Reshape", [found, self._constant("list", [-1])], "samples")
            rows = self._node("Reshape", [found, self._constant("rows_shape", [-1, 1])], "rows")
            self._nodes += self._read(self._node("Gather", [self.x, samples], "x", axis=0))
            then_names = [
                self._node("ScatterND", [old, rows, new], f"computed{index}")
                for index, (old, new) in enumerate(zip(nothing, self.results, strict=True))
            ]
        else:
            self._nodes += self._read(self.x)
        then, self._nodes = self._nodes, []
        else_names = [self._node("Identity", [old], f"kept{index}") for index, old in enumerate(nothing)]
        branch = helper.make_node(
            "If",
            [condition],
            self.outputs,
            name=self.name,
            then_branch=helper.make_graph(then, f"{self.name}/computed", [], self._values(then_names)),
            else_branch=helper.make_graph(self._nodes, f"{self.name}/kept", [], self._values(else_names)),
        )
        return [*around, branch]

    def _zeros(self, decisions: str, index: int) -> str:
        """What a mask inside the block is for images that skip it, for as many images as there are decisions."""
        shape = self.shapes[index]
        zeros = self._constant(f"zeros{index}", np.zeros((1, *shape[1:])), np.float32)
        if self.batch == 1:
            return zeros
        column = self._constant(f"column{index}", [-1, *[1] * (len(shape) - 1)])
        column = self._node("Reshape", [decisions, column], f"decisions{index}")
        return self._node("Mul", [column, zeros], f"nothing{index}")

    def _values(self, names: list[str]) -> list[onnx.ValueInfoProto]:
        """Descriptions of a branch's results; inside another branch the number of images is open."""
        images = None if self.batch > 1 and self.inside else self.batch
        return [
            helper.make_tensor_value_info(name, kind, [images, *shape[1:]])
            for name, kind, shape in zip(names, self.kinds, self.shapes, strict=True)
        ]

    def selection(self) -> list[onnx.NodeProto]:
        """Nodes that compute the block for every image, and select."""
        ranks = [len(shape) for shape in self.shapes]
        column = self._constant("column", [-1, *[1] * (ranks[0] - 1)])
        decisions = self._node("Reshape", [self.mask, column], "decisions")
        computes = self._node("Greater", [decisions, self._constant("half", 0.5, np.float32)], "computes")
        inner = dict(zip(self.results[1:], range(1, len(self.results)), strict=True))
        self.model.graph.value_info.extend(
            value for value in self.graph.value_info if value.name not in (*self.results, self.graph.input[0].name)
        )
        for node in self._read(self.x):
            # Operators inside obey masks that are 0 where the block is skipped.
            node.input[:] = [self.outputs[inner[name]] if name in inner else name for name in node.input]
            self._nodes.append(node)
            for name in inner.keys() & set(node.output):
                index = inner[name]
                shape = self._constant(f"column{index}", [-1, *[1] * (ranks[index] - 1)])
                factor = self._node("Reshape", [decisions, shape], f"decisions{index}")
                self._node("Mul", [name, factor], f"mask{index}", self.outputs[index])
        self._node("Where", [computes, self.results[0], self.x], "select", self.outputs[0])
        return self._nodes


# ---------------------------------------------------------------- any number of images


def _free_batch(body: onnx.ModelProto, block: str) -> None:
    """Make a body that was captured for N images compute any number of them, or refuse it.

    The capture bakes N into the shapes that Reshapes are given. A Reshape leaves elements where they are in memory: the
    axis of its result that holds the images is the one that covers their stride, and becomes -1. Shape inference with
    other numbers of images then proves that every size follows.
    """
    # Shapes do not need the weights.
    bare = onnx.ModelProto(ir_version=body.ir_version, opset_import=body.opset_import)
    bare.graph.CopyFrom(
        onnx.GraphProto(name="shapes", input=body.graph.input, output=body.graph.output, node=body.graph.node)
    )
    for item in body.graph.initializer:
        small = math.prod(item.dims) <= _SMALL
        bare.graph.initializer.append(
            item if small else TensorProto(name=item.name, dims=item.dims, data_type=item.data_type)
        )
    constants = {item.name: item for item in bare.graph.initializer}
    shape = shape_of(body.graph.input[0])
    here = static_shapes(bare)
    one_more = (shape[0] + 1, *shape[1:])
    nodes = list(bare.graph.node)
    try:
        for index, node in enumerate(nodes):
            if node.op_type != "Reshape" or node.input[1] not in constants:
                continue
            del bare.graph.node[:]
            bare.graph.node.extend(nodes[: index + 1])
            there = static_shapes(bare, one_more)
            data, result = node.input[0], node.output[0]
            axis = _batch_axis(here.get(data), there.get(data), shape[0])
            if axis is None or _batch_axis(here.get(result), there.get(result), shape[0]) is not None:
                continue
            wanted = _freed(here[data], axis, here[result], shape[0])
            if wanted is not None:
                name = f"{result}/any_batch"
                for model in (bare, body):
                    model.graph.initializer.append(numpy_helper.from_array(np.array(wanted), name))
                body.graph.node[index].input[1] = node.input[1] = name
        del bare.graph.node[:]
        bare.graph.node.extend(nodes)
        for count in (1, shape[0] + 1):
            _require_free(bare, here, static_shapes(bare, (count, *shape[1:])), shape[0], count, block)
    except (BundleError, UsageError) as error:
        raise ExportError(_fixed_batch(block, str(error))) from error


def _fixed_batch(block: str, reason: str) -> str:
    return (
        f"{block} cannot be computed for some images of a batch only: {reason.rstrip('.')}. Export with batch 1, or "
        "write the block so that no size depends on the batch."
    )


def _batch_axis(here: Shape | None, there: Shape | None, batch: int, count: int | None = None) -> int | None:
    """The one axis whose size follows the number of images; None if there is none."""
    count = batch + 1 if count is None else count
    if here is None or there is None or len(here) != len(there):
        return None
    different = [axis for axis, (a, b) in enumerate(zip(here, there, strict=True)) if a != b]
    if len(different) != 1 or here[different[0]] * count != there[different[0]] * batch:
        return None
    return different[0]


def _freed(before: Shape, axis: int, after: Shape, batch: int) -> list[int] | None:
    """The shape that a Reshape is given, with -1 for the axis that holds the images; None if none holds them alone."""
    # Images lie outermost in their axis: this many elements apart.
    stride = math.prod(before[axis + 1 :]) * (before[axis] // batch)
    for index, size in enumerate(after):
        inner = math.prod(after[index + 1 :])
        if stride % inner == 0 and stride * batch <= inner * size and inner <= stride:
            return [*after[:index], -1, *after[index + 1 :]]
    return None


def _require_free(
    bare: onnx.ModelProto, here: Mapping[str, Shape], there: Mapping[str, Shape], batch: int, count: int, block: str
) -> None:
    """Refuse a body unless every size follows the number of images, and no node mixes images."""
    for node in flattened(bare).model.graph.node:
        following = [name for name in node.input if name in here and here[name] != there.get(name)]
        for name in (name for name in node.output if name in here and -1 not in here[name]):
            shape, other = here[name], there.get(name)
            fixed = shape == other and following and node.op_type not in _ABOUT_SHAPES and f"{_SKIP}/" not in node.name
            if fixed or (shape != other and _batch_axis(shape, other, batch, count) is None):
                known = "no known shape" if other is None else str(other)
                reason = f"{node.name} gives shape {shape} for {batch} images, {known} for {count}"
                raise ExportError(_fixed_batch(block, reason))
        if node.op_type in _RECURRENT:
            states = [name for name in node.input[5:7] if name and here.get(name) == there.get(name)]
            if any(batch in here.get(name, ()) for name in states):
                raise ExportError(_fixed_batch(block, f"the initial state of {node.name} is for {batch} images"))
    for value in bare.graph.output:
        if _batch_axis(here.get(value.name), there.get(value.name), batch, count) != 0:
            reason = f"what it gives has shape {there.get(value.name)} for {count} images"
            raise ExportError(_fixed_batch(block, reason))
