"""Networks that exit early: nodes of their stages, which of their exits are kept, and how many images leave where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dyndeploy.blocks.exits import checked_exits
from dyndeploy.bundle import CONFIDENCE, LOGITS
from dyndeploy.errors import UsageError
from dyndeploy.fields import Field
from dyndeploy.ops.base import Shape
from dyndeploy.prediction.nodes import DOCUMENT, Node, NodeGraph


@dataclass(frozen=True)
class StagedNodes:
    """The stages of a network that exits early.

    Attributes:
        name: Of the network.
        stages: Exit and nodes of each stage, in order.
        shares: Share of images that leaves at each exit, where that is known; else equal shares.
    """

    name: str
    stages: tuple[tuple[int, NodeGraph], ...]
    shares: tuple[float, ...] | None = None

    @property
    def exits(self) -> tuple[int, ...]:
        """Numbers of the exits, in order."""
        return tuple(number for number, _ in self.stages)

    def keep(self, exits: Sequence[int]) -> StagedNodes:
        """The same network with some of its exits only, as it is exported with ``--exits``.

        Every stage computes what its exit needs and no earlier one has computed, and nothing else: the head of an exit
        that is left out only where a later exit reads it. Images that would have left at such an exit leave at the next
        one that is kept.

        Args:
            exits: Numbers of exits that the network has, ascending, the last one included.

        Raises:
            UsageError: Others.
        """
        if tuple(exits) == self.exits:
            return self
        positions = {number: index + 1 for index, number in enumerate(self.exits)}
        unknown = [number for number in exits if number not in positions]
        if unknown or not exits:
            known = ", ".join(map(str, self.exits))
            raise UsageError(f"{self.name} has the exits {known}: {list(exits)} is no choice of them.")
        kept = checked_exits([positions[number] for number in exits], len(self.exits))
        stages = zip(exits, _cut([nodes for _, nodes in self.stages], kept), strict=True)
        return StagedNodes(self.name, tuple(stages), None if self.shares is None else moved_shares(self.shares, kept))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` reads them back."""
        return {
            "name": self.name,
            "stages": [{"exit": number, **nodes.to_json()} for number, nodes in self.stages],
            "shares": None if self.shares is None else list(self.shares),
        }

    @classmethod
    def from_json(cls, value: Any) -> StagedNodes:
        """Read what :meth:`to_json` wrote; raises ``InputError`` where it is no such object."""
        root = DOCUMENT.root(value)
        stages = root["stages"].sequence(lambda item: (item["exit"].tally(1), NodeGraph.read(item)), at_least=1)
        shares = root["shares"].optional(lambda item: item.sequence(Field.share, length=len(stages)))
        return cls(root["name"].label(), stages, shares)


def exit_shares(mix: Sequence[float], exits: int) -> tuple[float, ...]:
    """Shares of the exits, summing to 1; raises ``UsageError`` for another number or a share below 0."""
    if len(mix) != exits or not all(math.isfinite(share) and share >= 0 for share in mix) or sum(mix) <= 0:
        example = "/".join(f"{100 / exits:.3g}" for _ in range(exits))
        raise UsageError(f"The exit mix {list(mix)} is not valid: give {exits} shares of at least 0, e.g. {example}.")
    return tuple(share / sum(mix) for share in mix)


def moved_shares(shares: Sequence[float], kept: Sequence[int]) -> tuple[float, ...]:
    """Shares where images go on to the next exit that is kept.

    Args:
        shares: One per exit.
        kept: Positions of the exits that are kept, from 1, ascending, the last one included.

    Returns:
        One per kept exit; they sum to what they did.
    """
    begins = [0, *kept[:-1]]
    # Rounding may make a sum of all shares more than 1, which no share is.
    return tuple(min(1.0, math.fsum(shares[begin:end])) for begin, end in zip(begins, kept, strict=True))


def _cut(stages: Sequence[NodeGraph], kept: Sequence[int]) -> list[NodeGraph]:
    """Stages of the exits that are kept (positions from 1), of the nodes of all stages."""
    nodes, results, shapes, constants = _joined(stages)
    first = stages[0]
    done = set[str]()
    parts: list[list[Node]] = []
    for position in kept:
        needed, part = set(results[position - 1]), []
        for node in reversed(nodes):
            if needed & set(node.outputs) and not done.issuperset(node.outputs):
                needed.update(node.inputs)
                part.append(node)
        parts.append(part[::-1])
        done |= {name for node in part for name in node.outputs}
    cut = []
    for index, (position, part) in enumerate(zip(kept, parts, strict=True)):
        made = {name for node in part for name in node.outputs}
        later = {name for following in parts[index + 1 :] for node in following for name in node.inputs}
        present = {condition for node in part for condition in node.conditions}
        cut.append(
            replace(
                stages[position - 1],
                nodes=tuple(part),
                shapes=shapes,
                constants=frozenset(constants),
                outputs=(*results[position - 1], *sorted(made & later)),
                input_size=first.input_size if index == 0 else None,
                branches=tuple(name for stage in stages for name in stage.branches if name in present),
                notes=first.notes,
            )
        )
    return cut


def _joined(
    stages: Sequence[NodeGraph],
) -> tuple[list[Node], list[tuple[str, ...]], dict[str, Shape], set[str]]:
    """Nodes of all stages with names that are unique, the results of each, shapes and constants."""
    reads = [{name for node in nodes.nodes for name in node.inputs} for nodes in stages]
    every: list[Node] = []
    results: list[tuple[str, ...]] = []
    shapes: dict[str, Shape] = {}
    constants = {""}
    given = set[str]()
    for index, stage in enumerate(stages):
        made = {name for node in stage.nodes for name in node.outputs}
        carried = {name for name in stage.outputs if any(name in later for later in reads[index + 1 :])}
        own = (made | set(stage.constants)) - carried - {""} - (given - made)

        def called(name: str, own: set[str] = own, index: int = index) -> str:
            return f"stage{index}/{name}" if name in own else name

        every += [
            replace(node, inputs=tuple(map(called, node.inputs)), outputs=tuple(map(called, node.outputs)))
            for node in stage.nodes
        ]
        results.append(tuple(called(name) for name in (LOGITS, CONFIDENCE)))
        shapes |= {called(name): shape for name, shape in stage.shapes.items()}
        constants |= set(map(called, stage.constants))
        given |= carried
    return every, results, shapes, constants
