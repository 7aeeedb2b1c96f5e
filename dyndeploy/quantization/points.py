"""Which tensors of a graph have a scale, under which names, and which of them have to share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dyndeploy.graphs.inspect import all_nodes, group_of, is_dynamic
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.base import Role
from dyndeploy.quantization.graph import standard_layers

if TYPE_CHECKING:
    import onnx

    from dyndeploy.ops.base import OperatorSpec, Quantization

Tensor = tuple[int, str]
"""A tensor: index of the stage that has it (0 for a network that is one graph), and its name."""

_KEEPS_VALUES = ("Transpose", "MaxPool", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""Standard operators whose results are values of their first input."""


@dataclass(frozen=True)
class DynamicPoints:
    """A dynamic operator that has a counterpart in integers.

    Attributes:
        stage: Index of its stage.
        node: The node.
        block: Path of its block.
        names: Point by name of the port or of the value inside, e.g. ``{"x": "layer1.0/x", "h1": "layer1.0/h1"}``.
        face: Its counterpart in integers.
    """

    stage: int
    node: onnx.NodeProto
    block: str
    names: Mapping[str, str]
    face: Quantization

    @property
    def spec(self) -> OperatorSpec:
        """The operator."""
        return OPERATORS[self.node.op_type]


@dataclass
class Points:
    """Everything of a network that has a scale.

    Attributes:
        dynamic: Dynamic operators; those that write integers come first.
        group_of: By point, the number of its group: points of a group have one scale.
        unsigned: Groups that dynamic operators read or write as integers: their zero point is 0.
        watched: By stage, tensors whose values are observed as a whole, with their groups.
        blocks: Blocks that can be quantised, in order of execution, with the groups of their points: those of dynamic
            operators, and those with convolutions of constant weights.
        inside: Blocks with operators in branches that are skipped per image: what is inside is not observed.
    """

    dynamic: list[DynamicPoints] = field(default_factory=list)
    group_of: dict[str, int] = field(default_factory=dict)
    unsigned: set[int] = field(default_factory=set)
    watched: list[dict[str, int]] = field(default_factory=list)
    blocks: dict[str, set[int]] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)


class _Groups:
    """Union-find."""

    def __init__(self) -> None:
        self._parents: dict[Tensor, Tensor] = {}

    def find(self, item: Tensor) -> Tensor:
        root = item
        while (above := self._parents.setdefault(root, root)) != root:
            root = above
        while item != root:
            self._parents[item], item = root, self._parents[item]
        return root

    def join(self, one: Tensor, other: Tensor) -> None:
        self._parents[self.find(other)] = self.find(one)


def find_points(stages: Sequence[onnx.ModelProto]) -> Points:
    """Find what has a scale.

    ``x`` and ``y`` of a block with an identity have one scale, and so has whatever only moves values or picks some of
    them (transposition, maximum pooling, a ReLU behind a convolution): bytes pass there as they are.

    Args:
        stages: The graphs of a network that exits early, in order, or its one graph.
    """
    return _Search(stages).result()


class _Search:
    def __init__(self, stages: Sequence[onnx.ModelProto]) -> None:
        self._stages = stages
        self._groups = _Groups()
        self._made_by: dict[Tensor, onnx.NodeProto] = {}
        self._read_by: dict[Tensor, list[onnx.NodeProto]] = {}
        self._constants = [{item.name for item in stage.graph.initializer} for stage in stages]
        # Stages share the names of what stands behind their blocks. Where there are blocks, one scale for all that has
        # one name would be theirs, too.
        blocks = any(
            face.output for stage in stages for node in stage.graph.node if (face := _face_of(node)) is not None
        )
        self._convolutions = [
            {node.output[0] for node, _, _ in standard_layers(stage, heads=not blocks)} for stage in stages
        ]
        self._results: set[Tensor] = set()
        self._moved: dict[Tensor, Tensor] = {}
        """Result of an operator that keeps values -> where they come from."""
        self._points: dict[str, Tensor] = {}
        self._dynamic: list[DynamicPoints] = []
        self._written: set[Tensor] = set()
        self._inside: set[Tensor] = set()
        self._unsigned: set[Tensor] = set()
        self._blocks: dict[str, set[Tensor]] = {}
        self._watched: list[set[Tensor]] = [set() for _ in stages]

    def result(self) -> Points:
        self._index()
        self._join_what_keeps_values()
        nodes = [(index, node) for index, stage in enumerate(self._stages) for node in stage.graph.node]
        faces = [(index, node, _face_of(node)) for index, node in nodes]
        # What writes integers first: it has the plain names of its block's points.
        for writes in (True, False):
            for index, node, face in faces:
                if face is not None and face.output == writes:
                    self._add_dynamic(index, node, face)
        for index, node in nodes:
            if self._is_convolution(index, node):
                self._add_convolution(index, node)
        self._watch()
        return self._numbered()

    def _index(self) -> None:
        carried: dict[str, Tensor] = {}
        for index, stage in enumerate(self._stages):
            for value in stage.graph.input:
                if value.name in carried:
                    self._moved[index, value.name] = carried[value.name]
                    self._groups.join(carried[value.name], (index, value.name))
            for node in stage.graph.node:
                for name in node.output:
                    self._made_by[index, name] = node
                for name in node.input:
                    self._read_by.setdefault((index, name), []).append(node)
            self._results |= {(index, value.name) for value in stage.graph.output}
            carried |= {value.name: (index, value.name) for value in stage.graph.output}

    def _join_what_keeps_values(self) -> None:
        for index, stage in enumerate(self._stages):
            for node in stage.graph.node:
                if node.domain or not node.input or not node.output:
                    continue
                source, result = (index, node.input[0]), (index, node.output[0])
                if node.op_type in _KEEPS_VALUES or (node.op_type == "Relu" and self._behind_convolution(source)):
                    self._moved[result] = source
                    self._groups.join(source, result)

    def _behind_convolution(self, source: Tensor) -> bool:
        """Whether a convolution gives a tensor and nobody else reads it: what the ReLU cuts need not be kept."""
        maker = self._made_by.get(source)
        alone = len(self._read_by.get(source, ())) == 1 and source not in self._results
        return maker is not None and self._is_convolution(source[0], maker) and alone

    def _is_convolution(self, index: int, node: onnx.NodeProto) -> bool:
        return bool(node.name and node.output) and node.output[0] in self._convolutions[index]

    def _add_dynamic(self, index: int, node: onnx.NodeProto, face: Quantization) -> None:
        spec, block = OPERATORS[node.op_type], group_of(node.name)
        places: dict[str, Tensor] = {}
        for port, name in zip(spec.inputs, node.input, strict=False):
            if port.role is Role.ACTIVATION:
                places[port.name] = (index, name)
        places |= {inside: (index, f"{node.output[0]}/{inside}") for inside in face.points}
        if face.output:
            places |= {port.name: (index, name) for port, name in zip(spec.outputs, node.output, strict=False)}
        if face.shared:
            first, last = (index, node.input[0]), (index, node.output[0])
            self._groups.join(first, last)
        names = {port: self._name(block, node.name, port, tensor) for port, tensor in places.items()}
        self._dynamic.append(DynamicPoints(index, node, block, names, face))
        self._inside.update(places[name] for name in face.points)
        if face.output:
            self._written.add((index, node.output[0]))
            self._blocks.setdefault(block, set()).update(places.values())
            self._unsigned.update(places.values())

    def _name(self, block: str, node: str, port: str, tensor: Tensor) -> str:
        """``<block>/<port>``; where another operator of the block has that for another tensor, the node's own name."""
        name = f"{block}/{port}"
        if self._groups.find(self._points.setdefault(name, tensor)) != self._groups.find(tensor):
            name = f"{node}:{port}"
            self._keep(name, tensor)
        return name

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Remember a point; one of the same name in another stage is joined with it, since nothing tells them apart."""
        self._groups.join(self._points.setdefault(name, tensor), tensor)

    def _add_convolution(self, index: int, node: onnx.NodeProto) -> None:
        if node.input[0] in self._constants[index]:
            return
        for port, name in (("x", node.input[0]), ("y", node.output[0])):
            self._keep(f"{node.name}:{port}", (index, name))
            self._blocks.setdefault(group_of(node.name), set()).add((index, name))

    def _watch(self) -> None:
        """Choose what is observed as a whole: of a chain that keeps values its ends, unless an operator tells them."""
        known = {self._groups.find(tensor) for tensor in self._points.values()}
        for tensor in {*self._made_by, *self._read_by, *self._moved}:
            if tensor in self._inside or self._groups.find(tensor) not in known or not self._ends(tensor):
                continue
            origin = tensor
            while origin in self._moved:
                origin = self._moved[origin]
            if origin not in self._written:
                self._watched[tensor[0]].add(tensor)

    def _ends(self, tensor: Tensor) -> bool:
        """Whether somebody reads the values here, and does not only move them."""
        readers = self._read_by.get(tensor, [])
        moving = [node for node in readers if (tensor[0], node.output[0]) in self._moved and node.input[0] == tensor[1]]
        return len(moving) < len(readers) or not readers

    def _numbered(self) -> Points:
        numbers: dict[Tensor, int] = {}

        def number(tensor: Tensor) -> int:
            return numbers.setdefault(self._groups.find(tensor), len(numbers))

        found = Points(dynamic=self._dynamic)
        found.group_of = {point: number(tensor) for point, tensor in self._points.items()}
        found.unsigned = {number(tensor) for tensor in self._unsigned}
        order = dict.fromkeys(group_of(node.name) for stage in self._stages for node in stage.graph.node)
        found.blocks = {block: set(map(number, self._blocks[block])) for block in order if block in self._blocks}
        found.watched = [
            {name: number((index, name)) for _, name in sorted(w)} for index, w in enumerate(self._watched)
        ]
        found.inside = _inside_branches(self._stages)
        return found


def _face_of(node: onnx.NodeProto) -> Quantization | None:
    """How a dynamic operator is quantised; None for others."""
    return OPERATORS[node.op_type].quantization if is_dynamic(node) else None


def _inside_branches(stages: Sequence[onnx.ModelProto]) -> list[str]:
    """Blocks that have multiplications or dynamic operators inside branches."""
    found: dict[str, None] = {}
    for stage in stages:
        main = {node.name for node in stage.graph.node}
        for node in all_nodes(stage.graph):
            if node.name not in main and (is_dynamic(node) or node.op_type == "Conv"):
                found[group_of(node.name)] = None
    return list(found)
