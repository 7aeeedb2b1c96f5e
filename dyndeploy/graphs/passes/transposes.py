"""Transposes: as few as the layouts of the operators leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dyndeploy.graphs.inspect import drop_unused, reads, subgraphs
from dyndeploy.graphs.passes.shared import (
    Links,
    add_constant,
    attributes_of,
    axes_of,
    forget_shapes,
    fresh_name,
    known_shapes,
    set_attribute,
    set_nodes,
)

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context

UNARY = frozenset(
    {
        *("Abs", "Cast", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity"),
        *("LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus"),
        *("Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
    }
)
"""Functions of one map, element by element; further inputs are scalars."""

_BROADCAST = frozenset({"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub", "Where"})
_REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})

Permutation = tuple[int, ...]
Need = tuple[str, Permutation]
"""A tensor and how it is permuted: axis i of the result is axis ``permutation[i]`` of the tensor."""


def cancel_transposes(model: onnx.ModelProto, context: Context) -> None:
    """``layout::transposes``: no Transpose that changes nothing, repeats another or is undone by the next.

    Operators that compute in any layout (elementwise functions, Concat, Pad, reductions that keep their axes) take over
    the layout in front of a Transpose where that leaves fewer of them in all, so that nothing is left between
    channels-last blocks of a channels-first network. Graph outputs keep their layout; the number of Transposes never
    rises.
    """
    if not any(node.op_type == "Transpose" for node in model.graph.node):
        return
    ranks = {name: len(shape) for name, shape in known_shapes(model).items()}
    layout = _Layout(model, ranks)
    if len(layout.needs(frozenset(), ())) < len(layout.transposes):
        layout.rewrite(frozenset(), ())
    # Every turn leaves fewer Transposes.
    while True:
        layout = _Layout(model, ranks)
        best = layout.better_region()
        if best is None:
            break
        layout.rewrite(*best)
    drop_unused(model)


def _inverse(permutation: Permutation) -> Permutation:
    return tuple(int(axis) for axis in np.argsort(permutation))


def _then(first: Permutation, second: Permutation) -> Permutation:
    """The permutation that equals two, one after the other; an empty one changes nothing."""
    return tuple(first[axis] for axis in second) if first and second else first or second


def _effective(permutation: Permutation) -> Permutation:
    """A permutation, empty if it changes nothing."""
    return () if permutation == tuple(range(len(permutation))) else permutation


class _Layout:
    """Which Transposes a graph needs when some nodes, by output name, compute on permuted maps."""

    def __init__(self, model: onnx.ModelProto, ranks: dict[str, int]) -> None:
        self.model = model
        self.links = Links(model)
        self.ranks = ranks
        self.transposes: dict[str, tuple[str, Permutation]] = {}
        for node in model.graph.node:
            permutation = self._permutation(node)
            if permutation:
                self.transposes[node.output[0]] = node.input[0], permutation
        # Names that must stay: what the graph returns, and what branches read.
        self.pinned = [value.name for value in model.graph.output]
        for node in model.graph.node:
            if any(subgraphs(node)):
                self.pinned += [name for name in reads(node) if name not in node.input and name not in self.pinned]

    def _permutation(self, node: onnx.NodeProto) -> Permutation:
        if node.op_type != "Transpose":
            return ()
        rank = self.ranks.get(node.input[0])
        default = range(rank - 1, -1, -1) if rank else ()
        return tuple(attributes_of(node).get("perm", default))

    # ------------------------------------------------------------ what is needed

    def _source(self, name: str, moved: frozenset[str], permutation: Permutation) -> Need:
        """The tensor that some node computes from which Transposes make this one, and how they permute it in all."""
        after: Permutation = ()
        while name in self.transposes:
            name, own = self.transposes[name]
            after = _then(own, after)
        return name, _effective(_then(permutation, after) if name in moved else after)

    def _input(self, node: onnx.NodeProto, index: int, moved: frozenset[str], permutation: Permutation) -> Need:
        name = node.input[index]
        root, before = self._source(name, moved, permutation)
        if node.output[0] in moved and name not in self.links.constants:
            return root, _effective(_then(before, _inverse(permutation)))
        return root, before

    def needs(self, moved: frozenset[str], permutation: Permutation) -> set[Need]:
        """Every Transpose that the graph needs when the nodes in ``moved`` compute on permuted maps."""
        found = {self._source(name, moved, permutation) for name in self.pinned}
        for node in self.model.graph.node:
            if node.output[0] not in self.transposes:
                found |= {self._input(node, index, moved, permutation) for index in range(len(node.input))}
        return {need for need in found if need[1]}

    # ------------------------------------------------------------ what may move

    def _moves(self, node: onnx.NodeProto) -> int:
        """Rank of the maps of a node that computes in any layout; 0 for another."""
        if node.domain or len(node.output) != 1:
            return 0
        rank = self.ranks.get(node.output[0], 0)
        constants, kind = self.links.constants, node.op_type
        if kind in UNARY:
            scalars = all(name in constants for name in node.input[1:] if name)
            return rank if scalars and self.ranks.get(node.input[0]) == rank else 0
        if kind in _BROADCAST or kind == "Concat":
            maps = [name for name in node.input if name not in constants]
            fits = all(self.ranks.get(name) == rank for name in maps)
            return rank if maps and fits and (kind != "Concat" or len(maps) == len(node.input)) else 0
        if kind == "Pad":
            # Further inputs: the value, and axes, which only captures of few axes have.
            return rank if len(node.input) < 4 and self.links.integers(node.input[1]) is not None else 0
        if kind in _REDUCTIONS:
            return rank if attributes_of(node).get("keepdims", 1) and axes_of(node, self.links) is not None else 0
        return 0

    def _regions(self) -> Iterator[tuple[list[str], set[Permutation]]]:
        """Connected nodes that compute in any layout, by output name, and the layouts of the Transposes beside them."""
        movable = {node.output[0]: node for node in self.model.graph.node if self._moves(node)}
        touching: dict[tuple[str, int], list[str]] = {}
        for output, node in movable.items():
            for name in (*node.input, output):
                if name not in self.links.constants:
                    touching.setdefault((name, self.ranks.get(name, 0)), []).append(output)
        seen: set[str] = set()
        for start in movable:
            if start in seen:
                continue
            region, waiting, layouts = [], [start], set()
            seen.add(start)
            while waiting:
                output = waiting.pop()
                region.append(output)
                node = movable[output]
                for name in node.input:
                    if name in self.transposes:
                        layouts.add(self.transposes[name][1])
                for reader in self.links.readers.get(output, []):
                    if reader.output[0] in self.transposes:
                        layouts.add(_inverse(self.transposes[reader.output[0]][1]))
                for name in (*node.input, output):
                    for other in touching.get((name, self.ranks.get(name, 0)), []):
                        if other not in seen:
                            seen.add(other)
                            waiting.append(other)
            yield region, {layout for layout in layouts if len(layout) == self.ranks[start]}

    def better_region(self) -> tuple[frozenset[str], Permutation] | None:
        """Nodes, and the permutation of their maps, that leave fewer Transposes than now; None if there are none."""
        now = len(self.needs(frozenset(), ()))
        best: tuple[tuple[int, int], frozenset[str], Permutation] | None = None
        for region, layouts in self._regions():
            for permutation in sorted(layouts):
                for start in (frozenset(region), frozenset[str]()):
                    moved, cost = self._descend(region, start, permutation)
                    if cost[0] < now and (best is None or cost < best[0]):
                        best = cost, moved, permutation
        return best and best[1:]

    def _descend(
        self, region: list[str], moved: frozenset[str], permutation: Permutation
    ) -> tuple[frozenset[str], tuple[int, int]]:
        """Take single nodes in or out as long as fewer Transposes, or as many and fewer moved nodes, are left."""

        def cost(nodes: frozenset[str]) -> tuple[int, int]:
            return len(self.needs(nodes, permutation)), len(nodes)

        least, improved = cost(moved), True
        while improved:
            improved = False
            for name in region:
                changed = moved ^ {name}
                if (price := cost(changed)) < least:
                    moved, least, improved = changed, price, True
        return moved, least

    # ------------------------------------------------------------ the change

    def rewrite(self, moved: frozenset[str], permutation: Permutation) -> None:
        """Let the nodes in ``moved`` compute on permuted maps, and write exactly the Transposes that are needed."""
        graph = self.model.graph
        taken = {node.name for node in graph.node}
        kept = [node for node in graph.node if node.output[0] not in self.transposes]
        # What is there already keeps its names.
        known = {
            self._source(output, moved, permutation): (output, self.links.producers[output].name)
            for output in reversed(self.transposes)
        }
        written: dict[Need, str] = {}
        extra: list[onnx.NodeProto] = []
        renamed = {name: f"{name}/turned" for name in moved}

        def write(need: Need, like: str, output: str | None = None) -> str:
            root, order = need
            if not order and output is None:
                return renamed.get(root, root)
            if need not in written or output is not None:
                first = output or known.get(need, (f"{root}/transposed{len(written)}", ""))[0]
                name = known.get(need, ("", ""))[1] if need not in written else ""
                inputs, kind = [renamed.get(root, root)], "Transpose" if order else "Identity"
                if need in written:
                    inputs, kind = [written[need]], "Identity"
                node = helper.make_node(kind, inputs, [first], name=name or fresh_name(like, kind, taken))
                if kind == "Transpose":
                    set_attribute(node, "perm", order)
                extra.append(node)
                written.setdefault(need, first)
            return written[need]

        fixed = {value.name for value in graph.input} | set(self.links.constants) | set(self.pinned)
        # All new names first: what is written reads them.
        copied: list[tuple[str, Need]] = []
        for name in self.pinned:
            need = self._source(name, moved, permutation)
            if need == (name, ()) and name not in moved:
                continue
            if not need[1] and need[0] not in fixed:
                # Its one computed form is what is wanted: that takes the name.
                fixed.add(need[0])
                renamed[need[0]] = name
            else:
                copied.append((name, need))
        for name, need in copied:
            producer = self.links.producers.get(name)
            write(need, "head/" if producer is None else producer.name, name)
        for node in kept:
            needs = [self._input(node, index, moved, permutation) for index in range(len(node.input))]
            if node.output[0] in moved:
                self._turn(node, permutation)
            # Constants of a moved node have been replaced; only maps are needed in another layout.
            for index, need in enumerate(needs):
                if need[0] not in self.links.constants or need[1]:
                    node.input[index] = write(need, node.name)
        for node in kept:
            node.output[:] = [renamed.get(name, name) for name in node.output]
        self.ranks |= {new: self.ranks[old] for old, new in renamed.items() if old in self.ranks}
        self.ranks |= {output: len(need[1]) for need, output in written.items() if need[1]}
        forget_shapes(self.model, {*moved, *renamed, *self.transposes})
        set_nodes(self.model, [*kept, *extra])

    def _turn(self, node: onnx.NodeProto, permutation: Permutation) -> None:
        """Adapt attributes and constants of a node to permuted maps."""
        links, rank, kind = self.links, len(permutation), node.op_type
        if kind == "Concat":
            set_attribute(node, "axis", permutation[attributes_of(node)["axis"] % rank])
        elif kind == "Pad":
            pads = np.array(links.integers(node.input[1])).reshape(2, rank)[:, _inverse(permutation)]
            node.input[1] = add_constant(self.model, f"{node.output[0]}/turned_pads", pads.ravel())
        elif kind in _REDUCTIONS:
            axes = sorted(permutation[axis % rank] for axis in axes_of(node, links) or ())
            if len(node.input) > 1:
                node.input[1] = add_constant(self.model, f"{node.output[0]}/turned_axes", np.array(axes))
            else:
                set_attribute(node, "axes", axes)
        elif kind in _BROADCAST:
            for index, name in enumerate(node.input):
                if name in links.constants:
                    value = numpy_helper.to_array(links.constants[name])
                    if value.size > 1:
                        wide = value.reshape((1,) * (rank - value.ndim) + value.shape).transpose(_inverse(permutation))
                        node.input[index] = add_constant(self.model, f"{node.output[0]}/turned{index}", wide)
