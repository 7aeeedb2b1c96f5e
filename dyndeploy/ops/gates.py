"""Kinds of decisions: what one bit of a mask decides on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dyndeploy.errors import UsageError, unknown_name


@dataclass(frozen=True)
class GateKind:
    """A kind of decision.

    Attributes:
        name: Last part of the names of its masks, e.g. ``"spatial"`` in ``mask/layer1.0/spatial``.
        axes: Symbolic shape of a mask; the first axis is the batch.
        unit: What one bit decides on, in words for reports.
        whole: Whether a mask has a single bit per image, which decides on everything that the block computes. A rate
            is then met over the blocks of a network, not within one mask.
    """

    name: str
    axes: tuple[str, ...]
    unit: str
    whole: bool = False


PATCH = GateKind("spatial", ("N", "1", "mh", "mw"), "patch of the output map")
CHANNEL = GateKind("channel", ("N", "G"), "group of hidden channels")
BLOCK = GateKind("layer", ("N", "1", "1", "1"), "block", whole=True)
TOKEN = GateKind("token", ("N", "T"), "token")
HEAD = GateKind("head", ("N", "A"), "attention head")


class _Kinds(Mapping[str, GateKind]):
    """Registered kinds by name."""

    def __init__(self, *kinds: GateKind) -> None:
        self._kinds = {kind.name: kind for kind in kinds}

    def __getitem__(self, name: str) -> GateKind:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def add(self, kind: GateKind) -> None:
        if self._kinds.get(kind.name, kind) != kind:
            raise UsageError(f"Another kind of gate is registered as '{kind.name}'. Give yours a name of its own.")
        if not kind.axes or "/" in kind.name or not kind.name:
            raise UsageError(f"The gate kind {kind.name!r} needs a name without '/' and the axes of its masks.")
        self._kinds[kind.name] = kind

    def remove(self, name: str) -> None:
        self._kinds.pop(name, None)


GATE_KINDS = _Kinds(PATCH, CHANNEL, BLOCK, TOKEN, HEAD)
"""Every kind of gate by name."""


def register_gate_kind(kind: GateKind) -> None:
    """Make a kind of gate known, so that bundles with its masks can be written and read.

    Raises:
        UsageError: Another kind has its name, or the name or the axes are not usable.
    """
    GATE_KINDS.add(kind)


def gate_kind(name: str) -> GateKind:
    """Look a kind of gate up by name; raises ``UsageError`` with the nearest name."""
    try:
        return GATE_KINDS[name]
    except KeyError:
        raise unknown_name("gate kind", name, GATE_KINDS) from None
