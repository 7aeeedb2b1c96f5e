"""Networks of mixed blocks, composed of the nodes of networks whose blocks are alike.

The nodes of a block depend on its own option only. So a network for every option is all that has to be built. Their
blocks are put one behind the other, with a change of layout wherever a dense one stands beside a dynamic one, and what
the runtime fuses and converts is found out on the whole: an addition at the end of a dense block is fused or not by
what the block before it left.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dyndeploy.errors import UsageError
from dyndeploy.graphs.inspect import group_of
from dyndeploy.graphs.parts import BACKBONE, has_parts, part_of
from dyndeploy.ops.base import Shape
from dyndeploy.ops.gates import CHANNEL, PATCH
from dyndeploy.prediction.kernels import GraphWalker, Kernel, OperatorCall
from dyndeploy.prediction.nodes import Node, NodeGraph
from dyndeploy.prediction.rates import Rates
from dyndeploy.prediction.zoo import require_registered, zoo_nodes

STATIC = "static"
MODES = (STATIC, "spatial", "channel", "layer", "both")
"""Values of the option ``mode`` of a network that can be planned."""

DENSE, DYNAMIC = 0, 1
"""How a block runs; also positions in pairs of numbers for both."""

_CHANGE, _VIEW = "Transpose", "Identity"
"""Operators between blocks: dynamic ones take maps with the channels last, which another layout is changed into."""

WHOLE = "layer"
"""Mode that fits every dynamic network: its blocks stand for those of all dynamic modes where only layouts count."""

_STEM, _HEAD = "", "head:"
"""Names of the parts before and behind the blocks, which no block has."""

_LEAST_PATCHES = 2


@dataclass(frozen=True)
class Option:
    """What a stage can be: its mode and granularities."""

    mode: str
    granularity: int
    channel_granularity: int

    @property
    def label(self) -> str:
        """For sentences: ``"spatial 4"``."""
        parts = [self.mode]
        if self.mode in ("spatial", "both"):
            parts.append(str(self.granularity))
        if self.mode in ("channel", "both"):
            parts.append(f"groups of {self.channel_granularity}")
        return " ".join(parts)

    @property
    def state(self) -> int:
        """:data:`DENSE` or :data:`DYNAMIC`."""
        return DENSE if self.mode == STATIC else DYNAMIC


@dataclass(frozen=True)
class _Part:
    """Nodes that follow each other in a network: the stem, a block, or the head.

    Attributes:
        nodes: In order, without changes of layout at the ends; their tensors have names that no other part has.
        shapes: Of the tensors.
        constants: Those that are known before a run.
        entry: Tensor of the part before that they read.
        exit: Tensor that the part behind reads.
        taps: Further tensors that it reads, each with the block whose result it is: a pyramid's other maps.
        outputs: Tensors that the network gives.
        state: :data:`DENSE` or :data:`DYNAMIC`: which layout entry and exit have.
    """

    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    constants: frozenset[str]
    entry: str
    exit: str
    outputs: tuple[str, ...]
    state: int
    taps: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def backbone_of(network: str) -> tuple[str, dict[str, Any]] | None:
    """Registered name and options of a detector's backbone, whose blocks are those of the detector; None of others."""
    import torch

    from dyndeploy.export.subject import Detects
    from dyndeploy.nets import create_model, model_info

    with torch.device("meta"):
        built = create_model(network)
    if not isinstance(built, Detects):
        return None
    backbone: Any = built.backbone
    known = set(model_info(backbone.name).defaults)
    options = backbone.config.as_dict()
    return backbone.name, {name: value for name, value in options.items() if name in known}


class Composition:
    """Kernels of a network of the zoo with an option for each block, at batch 1.

    Args:
        network: Registered name; its options include ``mode``, ``granularity`` and ``channel_granularity``.
        rate: Activation rate of every mask.
        input_size: (height, width); None takes the network's own.
        runtime: Whose fusions apply.
        precision: Of activations and weights.

    Attributes:
        name: Of the network.
        input_size: (height, width).
        blocks: Names of the blocks, in order.
        stages: Names of the blocks of each stage: those whose names differ in the last part only.
        footprint: What it needs of memory without dynamic blocks.

    Raises:
        UsageError: Unknown name, or a network without modes.
    """

    def __init__(
        self,
        network: str,
        rate: float,
        input_size: tuple[int, int] | None = None,
        *,
        runtime: str = "onnxruntime",
        precision: str = "fp32",
    ) -> None:
        from dyndeploy.nets import model_info

        require_registered(network)
        own = backbone_of(network)
        self._backbone, self._given = own or (network, {})
        self._prefix = "" if own is None else f"{BACKBONE}."
        self._runtime, self._precision = runtime, precision
        if "mode" not in model_info(network).defaults:
            raise UsageError(
                f"'{network}' has no modes to choose from: there is nothing to plan. Plan a network whose options "
                "include 'mode'; see 'dyndeploy models'."
            )
        self.name, self._rates, self._size = network, Rates(default=rate), input_size
        self._found: dict[Option, frozenset[int]] = {}
        self._parts: dict[Option, Mapping[str, _Part]] = {}
        self._calls: dict[Option, Mapping[str, list[tuple[OperatorCall, Kernel]]]] = {}
        nodes = zoo_nodes(network, {"mode": STATIC}, input_size=input_size)
        self._head = None if own is None else _parts(nodes, DENSE)[_HEAD]
        assert nodes.input_size is not None
        self.footprint = GraphWalker(nodes, runtime=runtime, precision=precision).footprint
        self.input_size = nodes.input_size
        self.blocks = nodes.blocks
        stages: dict[str, list[str]] = {}
        for name in self.blocks:
            stages.setdefault(name.rpartition(".")[0], []).append(name)
        self.stages = tuple(tuple(names) for names in stages.values())

    def kernels(self, options: Sequence[Option]) -> tuple[Kernel, ...]:
        """Kernels of the network with an option for each block; all of them must be valid."""
        ends = [Option(STATIC if state == DENSE else WHOLE, 1, 1) for state in (DENSE, options[-1].state)]
        names = (_STEM, *self.blocks, _HEAD)
        parts = [self._of(o)[name] for name, o in zip(names, (ends[0], *options, ends[1]), strict=True)]
        graph = NodeGraph(self.name, *_joined(names, parts), batch=1, input_size=self.input_size)
        return GraphWalker(graph, runtime=self._runtime, precision=self._precision).graph(self._rates).kernels

    def valid_stages(self, option: Option) -> frozenset[int]:
        """Stages that can have the option: its groups fit their channels, and a mask has more than one patch.

        A mask of one position skips the whole block: that is what the mode ``layer`` is for.
        """
        if option not in self._found:
            self._found[option] = frozenset(
                stage for stage, names in enumerate(self.stages) if self._fits(option, stage, names[0])
            )
        return self._found[option]

    def _fits(self, option: Option, stage: int, first: str) -> bool:
        if first not in self._of(option):
            return False
        for call, kernel in self._calls[option].get(first, []):
            for port, kind in call.spec.gates.items():
                shape = call.shapes[call.spec.input_index(port)]
                if kind == PATCH and option.granularity > 1 and min(shape[2:]) < _LEAST_PATCHES:
                    return False
                if kind == CHANNEL and shape[1] * option.channel_granularity != kernel.features["cmid"]:
                    return False
        return True

    def _of(self, option: Option) -> Mapping[str, _Part]:
        """Parts of a network whose blocks all have an option; where it does not fit a stage, without that stage."""
        if option not in self._parts:
            parts: dict[str, _Part] = {}
            calls: dict[str, list[tuple[OperatorCall, Kernel]]] = {}
            for graph, names in self._networks(option):
                found = {self._full(name): part for name, part in _parts(graph, option.state).items()}
                parts |= {name: self._of_network(part) for name, part in found.items() if name in names}
                for kernel in GraphWalker(graph, runtime=self._runtime, precision=self._precision).graph().kernels:
                    block = None if kernel.block is None else self._full(kernel.block)
                    if kernel.call is not None and block is not None and block in names:
                        calls.setdefault(block, []).append((kernel.call, kernel))
            if self._head is not None:
                # Whatever the blocks are, what reads their maps is the same.
                parts[_HEAD] = self._head
            self._parts[option], self._calls[option] = parts, calls
        return self._parts[option]

    def _full(self, name: str) -> str:
        """Name of a block of the backbone in the whole network; other parts keep theirs."""
        return name if name in (_STEM, _HEAD) else f"{self._prefix}{name}"

    def _of_network(self, part: _Part) -> _Part:
        if not self._prefix:
            return part
        nodes = (n if n.block is None else replace(n, block=self._full(n.block)) for n in part.nodes)
        # The masks are outputs; a backbone's logits are none of a detector.
        return replace(part, nodes=tuple(nodes))

    def _networks(self, option: Option) -> Iterator[tuple[NodeGraph, Sequence[str]]]:
        """Networks with an option, and the parts that are taken of each."""
        given = {"granularity": option.granularity, "channel_granularity": option.channel_granularity}
        try:
            yield self._zoo({**given, "mode": option.mode}), (
                _STEM, *self.blocks, _HEAD,
            )  # fmt: skip
        except UsageError:
            for stage, names in enumerate(self.stages):
                modes = [option.mode if other == stage else STATIC for other in range(len(self.stages))]
                with contextlib.suppress(UsageError):
                    yield self._zoo({**given, "mode": modes}), names

    def _zoo(self, options: Mapping[str, Any]) -> NodeGraph:
        size = self._size if not self._prefix else self.input_size
        return zoo_nodes(self._backbone, {**self._given, **options}, input_size=size)


def _parts(graph: NodeGraph, state: int) -> dict[str, _Part]:
    """The stem, the blocks and the head of a network; the blocks' state is given, the stem is dense."""
    members: dict[str, list[Node]] = {_STEM: []}
    current, last = _STEM, graph.blocks[-1]
    told = has_parts({group_of(node.name) for node in graph.nodes})
    for node in graph.nodes:
        if told and part_of(node.name) != BACKBONE:
            # What reads sizes only may stand anywhere.
            members.setdefault(_HEAD, []).append(node)
            continue
        current = node.block or (_HEAD if current == last else current)
        members.setdefault(current, []).append(node)
    makers = {output: name for name, nodes in members.items() for node in nodes for output in node.outputs}
    members[_HEAD] = members.pop(_HEAD)
    return {
        name: _part(name, nodes, graph, DENSE if name == _STEM else state, makers) for name, nodes in members.items()
    }


def _part(name: str, nodes: Sequence[Node], graph: NodeGraph, state: int, parts: Mapping[str, str]) -> _Part:
    made = {output for node in nodes for output in node.outputs}
    read = dict.fromkeys(x for node in nodes for x in node.inputs if x not in made and x not in graph.constants)
    entry = next(iter(read))
    taps: dict[str, str] = {}
    if name == _HEAD:
        last = graph.blocks[-1]
        entry = next(x for x in read if parts.get(x) == last)
        taps = {x: parts[x] for x in read if x != entry and x in parts}
    others = {x for node in graph.nodes if not made & set(node.outputs) for x in node.inputs} | set(graph.outputs)
    makers = {output: node for node in nodes for output in node.outputs}
    exit_ = next(x for node in reversed(nodes) for x in node.outputs if x in others)
    while makers[exit_].op_type in (_CHANGE, _VIEW) and makers[exit_].inputs[0] in makers:
        exit_ = makers[exit_].inputs[0]
    changes = [node for node in nodes if node.op_type == _CHANGE and node.inputs[0] in (entry, exit_)]
    entry = next((node.outputs[0] for node in changes if node.inputs[0] == entry), entry)
    kept = [node for node in nodes if node not in changes and exit_ not in node.inputs]

    def own(tensor: str) -> str:
        return f"{name}/{tensor}" if tensor else ""

    used = {tensor for node in kept for tensor in (*node.inputs, *node.outputs)}
    return _Part(
        nodes=tuple(
            replace(node, inputs=tuple(map(own, node.inputs)), outputs=tuple(map(own, node.outputs))) for node in kept
        ),
        shapes={own(tensor): graph.shapes[tensor] for tensor in used if tensor in graph.shapes},
        constants=frozenset(map(own, graph.constants & used)),
        entry=own(entry),
        exit=own(exit_),
        outputs=tuple(own(tensor) for tensor in graph.outputs if tensor in used),
        state=state,
        taps={own(tensor): block for tensor, block in taps.items()},
    )


def _joined(
    names: Sequence[str], parts: Sequence[_Part]
) -> tuple[tuple[Node, ...], dict[str, Shape], frozenset[str], tuple[str, ...]]:
    """Nodes, shapes, constants and outputs of parts that follow each other."""
    nodes, shapes = list(parts[0].nodes), dict(parts[0].shapes)
    for index in range(1, len(parts)):
        before, after = parts[index - 1 : index + 1]
        # A change of layout belongs to the dynamic block.
        block = names[index - 1 if before.state == DYNAMIC else index]
        step = _VIEW if before.state == after.state else _CHANGE
        nodes.append(Node(step, "", f"{block}/{step}_in_{index}", block, (before.exit,), (after.entry,)))
        for tensor, source in after.taps.items():
            tapped = parts[names.index(source)]
            step = _VIEW if tapped.state == after.state else _CHANGE
            nodes.append(Node(step, "", f"{source}/{step}_to_{tensor}", source, (tapped.exit,), (tensor,)))
        nodes += after.nodes
        shapes |= after.shapes
    constants = frozenset({""}).union(*(part.constants for part in parts))
    return tuple(nodes), shapes, constants, tuple(x for part in parts for x in part.outputs)
