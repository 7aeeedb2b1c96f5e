"""Networks that exit early, of any modules: stages with a head each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from dyndeploy.confidences import CONFIDENCES
from dyndeploy.errors import UsageError, unknown_name


class Segment(nn.Module):
    """What one exit of a network adds to the exits before it; shares the network's parameters and their names.

    Attributes:
        exit: Number of the exit, from 1.
        inputs: Names of the arguments of ``forward``: the network's input for the first segment of a chain, tensors
            among the outputs of earlier segments for the others.
        outputs: Names of what ``forward`` returns: ``"logits"``, then what later segments need.
    """

    exit: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@runtime_checkable
class StagedNetwork(Protocol):
    """A network that exits early: its forward gives the logits of all exits, its segments compute them one by one.

    Attributes:
        exits: Number of exits.
    """

    exits: int

    def segments(self, exits: Sequence[int]) -> tuple[Segment, ...]:
        """Return one segment per exit that is kept; run one after another they give the logits of ``forward``.

        Args:
            exits: The exits to keep, ascending, from 1; the last one included.

        Raises:
            UsageError: Exits that do not ascend, that do not exist, or without the last.
        """


def confidence_of(network: object) -> str:
    """Name of the measure that a staged network's exits are taken by: one of :data:`CONFIDENCES`."""
    return str(getattr(network, "confidence", "max_softmax"))


def checked_exits(exits: Sequence[int], count: int) -> tuple[int, ...]:
    """The exits to keep; raises ``UsageError`` unless they ascend among 1 to ``count`` and end with it."""
    kept = tuple(exits)
    if sorted(set(kept) & set(range(1, count + 1))) != list(kept) or kept[-1:] != (count,):
        raise UsageError(
            f"exits={list(kept)} is not valid: give the enabled exits in ascending order, the last being {count}, "
            f"such as [1, {count}]."
        )
    return kept


class EarlyExits(nn.Module):
    """Stages in a row with a head behind each: the logits of every head, cheapest first.

    Args:
        stages: Each takes the output of the one before.
        heads: Each turns its stage's output into logits (N, classes).
        confidence: What an image leaves by; one of :data:`~dyndeploy.confidences.CONFIDENCES`.
    """

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module], confidence: str) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.confidence = confidence

    @property
    def exits(self) -> int:
        """Number of exits."""
        return len(self.heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits (N, classes) of all exits, in their order."""
        logits = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            logits.append(head(x))
        return logits

    def segments(self, exits: Sequence[int]) -> tuple[Segment, ...]:
        """See :meth:`StagedNetwork.segments`; a head that is left out is not computed."""
        kept = checked_exits(exits, self.exits)
        first = [0, *kept[:-1]]
        return tuple(_StageSegment(self, begin, end) for begin, end in zip(first, kept, strict=True))


class _StageSegment(Segment):
    """Stages ``begin`` to ``end`` (from 0, the last one excluded) and the last one's head."""

    def __init__(self, network: EarlyExits, begin: int, end: int) -> None:
        super().__init__()
        last = end == network.exits
        self.exit = end
        self.inputs = ("images",) if begin == 0 else (f"features{begin}",)
        self.outputs = ("logits",) if last else ("logits", f"features{end}")
        # Under the network's own names, so that weights, blocks and masks are called alike.
        self.stages = nn.ModuleDict({str(index): network.stages[index] for index in range(begin, end)})
        self.heads = nn.ModuleDict({str(end - 1): network.heads[end - 1]})
        self.training = network.training

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors named by ``outputs``."""
        for stage in self.stages.values():
            x = stage(x)
        (head,) = self.heads.values()
        return (head(x), x)[: len(self.outputs)]


def early_exits(stages: Sequence[nn.Module], heads: Sequence[nn.Module], confidence: str = "max_softmax") -> EarlyExits:
    """Make a network with early exits of any modules.

    Args:
        stages: Modules in a row; dynamic blocks may stand in them.
        heads: One for each stage: turns its output into logits (N, classes).
        confidence: ``"max_softmax"`` (largest probability), ``"margin"`` (to the second largest) or ``"entropy"``
            (1 minus the normalised entropy): an image leaves where this reaches the exit's threshold.

    Returns:
        A module whose ``forward(x)`` gives the list of logits.

    Raises:
        UsageError: Not as many heads as stages, fewer than two, something that is no module, one module at two places,
            or an unknown measure.
    """
    stages, heads = list(stages), list(heads)
    if len(stages) != len(heads) or len(stages) < 2:
        raise UsageError(
            f"early_exits() takes as many heads as stages, at least two: not {len(stages)} stages, {len(heads)} heads."
        )
    for part in (*stages, *heads):
        if not isinstance(part, nn.Module):
            raise UsageError(f"early_exits() takes modules, not {type(part).__name__}.")
    if len({id(part) for part in (*stages, *heads)}) < len(stages) + len(heads):
        raise UsageError("One module stands at two places of early_exits(): make one instance for each.")
    if confidence not in CONFIDENCES:
        raise unknown_name("confidence", confidence, CONFIDENCES)
    return EarlyExits(stages, heads, confidence)
