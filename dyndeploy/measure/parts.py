"""Parts of a detector in a measurement: backbone, neck, heads and post-processing, side by side in both graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dyndeploy.fields import Field
from dyndeploy.graphs.parts import sums

HOW_TIMED = "from separate runs with the runtime's node profile, every node's fastest run of a few"
"""What the times of parts are: they do not add up to the time of a whole run, which is taken without that profile."""


@dataclass(frozen=True)
class PartTimes:
    """One part of a detector in both graphs; times are sums of :class:`~dyndeploy.measure.profile.BlockTimes`.

    Attributes:
        name: One of :data:`~dyndeploy.tasks.parts.PARTS`, or ``"other"``: nodes that no name ties to a part.
        static_ms: In the static twin, per run of one batch.
        dynamic_ms: In the dynamic graph.
        static_macs: MACs per image of the static twin.
        needed_macs: MACs per image that the masks need, maskers included, averaged over the images.
    """

    name: str
    static_ms: float
    dynamic_ms: float
    static_macs: float
    needed_macs: float

    @property
    def ideal_speedup(self) -> float | None:
        """Static over needed MACs; None where there are none."""
        return self.static_macs / self.needed_macs if self.static_macs > 0 and self.needed_macs > 0 else None

    @property
    def realised_speedup(self) -> float | None:
        """Static over dynamic time; None where there is none."""
        return self.static_ms / self.dynamic_ms if self.static_ms > 0 and self.dynamic_ms > 0 else None

    @property
    def realisation(self) -> float | None:
        """Realised over ideal speed-up of the part alone; None where one of them is not known."""
        ideal, realised = self.ideal_speedup, self.realised_speedup
        return None if ideal is None or realised is None else realised / ideal

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; derived figures are written beside the raw ones they follow from."""
        return {
            **vars(self),
            "ideal_speedup": self.ideal_speedup,
            "realised_speedup": self.realised_speedup,
            "realisation": self.realisation,
        }

    @classmethod
    def read(cls, item: Field) -> PartTimes:
        """Read what :meth:`to_json` wrote."""
        amounts = (item[key].amount() for key in ("static_ms", "dynamic_ms", "static_macs", "needed_macs"))
        return cls(item["name"].label(), *amounts)


@dataclass(frozen=True)
class StepTimes:
    """One engine or host program of a network that its target runs in parts, in both networks.

    Attributes:
        name: Its file in the bundle, such as ``"part0.onnx"``.
        host: Whether the host computes it.
        static_ms: Of the static twin: median of the runs of the rounds, per run of one batch, by the wall clock from
            the end of the step before it until the host has what it needs.
        dynamic_ms: In the dynamic network.
    """

    name: str
    host: bool
    static_ms: float
    dynamic_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(vars(self))

    @classmethod
    def read(cls, item: Field) -> StepTimes:
        """Read what :meth:`to_json` wrote."""
        return cls(
            item["name"].label(), item["host"].boolean(), item["static_ms"].amount(), item["dynamic_ms"].amount()
        )


def parts_of(
    static_ms: Mapping[str, float],
    dynamic_ms: Mapping[str, float],
    static_macs: Mapping[str, float],
    needed_macs: Mapping[str, float],
) -> tuple[PartTimes, ...]:
    """Add up what was found by group of nodes of a graph that has parts.

    Args:
        static_ms: Times of the static twin; empty where the runtime gives none, like the next.
        dynamic_ms: Times of the dynamic graph.
        static_macs: Of the twin, per image.
        needed_macs: Of the dynamic graph, per image.
    """
    each = [sums(values) for values in (static_ms, dynamic_ms, static_macs, needed_macs)]
    names = dict.fromkeys(name for values in each for name in values)
    return tuple(PartTimes(name, *(values.get(name, 0.0) for values in each)) for name in names)
