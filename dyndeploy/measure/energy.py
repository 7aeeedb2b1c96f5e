"""Energy per image, from a power sensor that was read while each network ran by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy.fields import Field

SCHEMA_VERSION = 1
KIND = "measured"


@dataclass(frozen=True)
class EnergyEntry:
    """What one network, rate or exit took.

    Attributes:
        name: As the profile's other figures are named: ``"static twin"``, ``"rate 0.5 (forced)"``, ``"exit 1"``.
        power_mw: Mean power of the whole rail while nothing else ran, idle power included, in milliwatts.
        ms: Time per image of the same runs by the wall clock, in milliseconds.
        readings: How many readings of the sensor the mean is of.
    """

    name: str
    power_mw: float
    ms: float
    readings: int

    @property
    def mj(self) -> float:
        """Millijoules per image: power times time."""
        return self.power_mw * self.ms / 1000

    def above(self, idle_mw: float) -> float:
        """Millijoules per image beyond what the idle board would have taken in the same time."""
        return (self.power_mw - idle_mw) * self.ms / 1000


@dataclass(frozen=True)
class Energy:
    """Measured energies of a profile.

    Attributes:
        source: Program that read the sensor: ``"tegrastats"`` or ``"nvidia-smi"``.
        rail: What it measures, e.g. ``"VDD_IN"``: the whole module, or the GPU's board without the computer around it.
        idle_mw: Mean power while nothing ran, networks loaded, in milliwatts.
        entries: What was measured.
    """

    source: str
    rail: str
    idle_mw: float
    entries: tuple[EnergyEntry, ...]

    def mj(self, name: str) -> float | None:
        """Millijoules per image of an entry; None where it was not measured."""
        return next((entry.mj for entry in self.entries if entry.name == name), None)

    def mean_mj(self, names: Sequence[str], shares: Sequence[float]) -> float | None:
        """Millijoules per image where shares of the images take these entries; None where one is not known."""
        known = [self.mj(name) for name in names]
        found = [value for value in known if value is not None]
        return sum(a * b for a, b in zip(found, shares, strict=True)) if len(found) == len(known) else None

    @property
    def description(self) -> str:
        """What was measured, in one line."""
        return f"measured: {self.rail} by {self.source}, idle {self.idle_mw / 1000:.2f} W"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ``mj_per_image`` is written beside what it follows from."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "source": self.source,
            "rail": self.rail,
            "idle_mw": self.idle_mw,
            "entries": [
                {**asdict(entry), "mj_per_image": entry.mj, "mj_above_idle": entry.above(self.idle_mw)}
                for entry in self.entries
            ],
        }

    @classmethod
    def read(cls, item: Field) -> Energy:
        """Read what :meth:`to_json` wrote."""
        version = item["schema_version"]
        version.require(version.value == SCHEMA_VERSION, f"{SCHEMA_VERSION}, which this release reads")
        item["kind"].one_of(KIND)
        return cls(
            source=item["source"].label(),
            rail=item["rail"].label(),
            idle_mw=item["idle_mw"].amount(),
            entries=item["entries"].sequence(_entry, at_least=1),
        )


def _entry(item: Field) -> EnergyEntry:
    return EnergyEntry(
        item["name"].label(), item["power_mw"].amount(), item["ms"].positive(), item["readings"].tally(1)
    )


def measured_energy(item: Field, names: Sequence[str], batch: int) -> Energy:
    """What a board sent: see ``measure_energy`` in ``remote/agent.py``.

    Args:
        item: Its result.
        names: What its entries are called in the profile, in their order.
        batch: Images per run.
    """

    def entry(part: Field) -> tuple[float, float, int]:
        return part["power_mw"].amount(), part["ms"].positive() / batch, part["readings"].tally(1)

    found = item["entries"].sequence(entry, length=len(names))
    entries = [EnergyEntry(name, *values) for name, values in zip(names, found, strict=True)]
    return Energy(item["source"].label(), item["rail"].label(), item["idle_mw"].amount(), tuple(entries))
