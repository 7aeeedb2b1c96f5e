"""The result of calibrating a bundle, as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dyndeploy import files
from dyndeploy.bundle import ThresholdInfo
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.exits.calibrate import METHODS, Calibration, DominatedExit, HeldOut
from dyndeploy.exits.frontier import Constraint
from dyndeploy.exits.scores import MACS, MS, ExitCosts, OperatingPoint
from dyndeploy.measure import values
from dyndeploy.measure.profile import read_machine

SCHEMA_VERSION = 1
KIND = "calibration"


@dataclass(frozen=True)
class CalibrationResult:
    """A calibration with what it was made on.

    Attributes:
        calibration: Thresholds and figures.
        network: Registered name.
        precision: What computed the logits; thresholds hold for this precision only.
        macs: Multiply-accumulates per image up to each exit.
        source: Where the images come from, in words.
        runtime: What ran the network, e.g. ``SessionInfo.to_json()``.
        machine: See :func:`dyndeploy.measure.machine.machine_facts`.
    """

    calibration: Calibration
    network: str
    precision: str
    macs: tuple[float, ...]
    source: str
    runtime: Mapping[str, Any]
    machine: Mapping[str, Any]

    def mean_macs(self, shares: Sequence[float]) -> float:
        """Multiply-accumulates per image where these shares leave at the exits."""
        return sum(share * macs for share, macs in zip(shares, self.macs, strict=True))

    def threshold_info(self) -> ThresholdInfo:
        """What a bundle keeps of it.

        Raises:
            UsageError: It is a bare sweep, which chooses none.
        """
        calibration = self.calibration
        chosen, constraint = calibration.chosen, calibration.constraint
        if chosen is None or constraint is None:
            raise UsageError("The bare sweep chooses no thresholds. Give a budget or a least accuracy.")
        return ThresholdInfo(
            values=chosen.thresholds,
            source=self.source,
            images=calibration.images,
            exit_shares=chosen.shares,
            accuracy=chosen.accuracy,
            budget=constraint.describe(calibration.costs),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types (see ``docs/calibration.md``)."""
        calibration = self.calibration
        chosen, constraint = calibration.chosen, calibration.constraint
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "network": self.network,
            "precision": self.precision,
            "images": calibration.images,
            "source": self.source,
            "runtime": dict(self.runtime),
            "machine": dict(self.machine),
            "exits": list(calibration.exits),
            "costs": {
                "unit": calibration.costs.unit,
                "values": list(calibration.costs.values),
                "source": calibration.costs.source,
            },
            "macs": list(self.macs),
            "constraint": constraint and {"cost": constraint.cost, "accuracy": constraint.accuracy},
            "method": calibration.method,
            "chosen": chosen and {**chosen.to_json(), "mean_macs": self.mean_macs(chosen.shares)},
            "held_out": calibration.held_out and calibration.held_out.to_json(),
            "alone": [point.to_json() for point in calibration.alone],
            "dominated": [entry.to_json() for entry in calibration.dominated],
            "switched_off": list(calibration.switched_off),
            "frontier": [point.to_json() for point in calibration.frontier],
            "sweep": [point.to_json() for point in calibration.sweep],
            "warnings": calibration.warnings(),
        }

    @classmethod
    def from_json(cls, value: Any) -> CalibrationResult:
        """Read what :meth:`to_json` wrote; derived figures are derived again.

        Raises:
            InputError: Not a calibration, another schema version, or a field missing or malformed.
        """
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise InputError("This is no calibration. Write one with 'dyndeploy calibrate BUNDLE --json'.")
        if value.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"The calibration has schema version {value.get('schema_version')!r}; this release reads version "
                f"{SCHEMA_VERSION}. Calibrate the bundle again with this release."
            )
        try:
            return _result(value)
        except (KeyError, TypeError, ValueError, AttributeError, DyndeployError) as error:
            raise InputError(
                f"The calibration is malformed ({type(error).__name__}: {error}). Calibrate the bundle again."
            ) from error


def load_calibration(path: str | os.PathLike[str]) -> CalibrationResult:
    """Read the result of a calibration from a JSON file.

    Raises:
        InputError: The file is missing, is not JSON, or is no calibration; the message names it.
    """
    value = files.read_json(path)
    try:
        return CalibrationResult.from_json(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _result(value: dict[str, Any]) -> CalibrationResult:
    exits = tuple(values.count(item, 1) for item in values.items(value["exits"]))
    costs = ExitCosts(
        tuple(values.positive(item) for item in values.items(value["costs"]["values"])),
        values.text(value["costs"]["unit"]),
        values.text(value["costs"]["source"]),
    )
    macs = tuple(values.positive(item) for item in values.items(value["macs"]))
    if costs.unit not in (MACS, MS) or not len(exits) == len(costs.values) == len(macs):
        raise ValueError("exits, costs and macs do not fit")
    if value["method"] not in METHODS:
        raise ValueError(f"method is {value['method']!r}")
    reader = _Reader(len(exits), values.count(value["images"], 1), costs)
    constraint = value["constraint"]
    calibration = Calibration(
        exits=exits,
        costs=costs,
        images=reader.images,
        constraint=None if constraint is None else Constraint(constraint["cost"], constraint["accuracy"]),
        method=value["method"],
        chosen=None if value["chosen"] is None else reader.point(value["chosen"]),
        held_out=None if value["held_out"] is None else reader.held_out(value["held_out"]),
        alone=tuple(reader.point(item) for item in values.items(value["alone"])),
        sweep=tuple(reader.point(item) for item in values.items(value["sweep"])),
        frontier=tuple(reader.point(item) for item in values.items(value["frontier"])),
        dominated=tuple(reader.dominated(item) for item in values.items(value["dominated"])),
    )
    given = [each is None for each in (calibration.constraint, calibration.chosen, calibration.held_out)]
    if len(calibration.alone) != len(exits) or not calibration.frontier or len(set(given)) > 1:
        raise ValueError("alone, frontier, constraint, chosen and held_out do not fit")
    return CalibrationResult(
        calibration=calibration,
        network=values.text(value["network"]),
        precision=values.text(value["precision"]),
        macs=macs,
        source=values.text(value["source"]),
        runtime=values.mapping(value["runtime"]),
        machine=read_machine(value["machine"]),
    )


@dataclass(frozen=True)
class _Reader:
    """Reads points of so many exits on so many images."""

    exits: int
    images: int
    costs: ExitCosts

    def point(self, value: Any) -> OperatingPoint:
        *limits, last = values.items(value["thresholds"])
        counts = tuple(values.count(item) for item in values.items(value["counts"]))
        correct = tuple(values.count(item) for item in values.items(value["correct"]))
        if not len(limits) + 1 == len(counts) == len(correct) == self.exits or last is not None:
            raise ValueError("a point needs one threshold, count and number of right answers per exit")
        if sum(counts) != self.images or any(right > count for right, count in zip(correct, counts, strict=True)):
            raise ValueError("counts and right answers do not fit the number of images")
        return OperatingPoint(
            thresholds=(*(values.number(item) for item in limits), -math.inf),
            counts=counts,
            correct=correct,
            cost=float(self.costs.mean(counts)),
        )

    def held_out(self, value: Any) -> HeldOut:
        shares = tuple(values.share(item) for item in values.items(value["shares"]))
        if len(shares) != self.exits:
            raise ValueError("shares do not fit the exits")
        return HeldOut(
            accuracy=values.share(value["accuracy"]),
            cost=values.positive(value["cost"]),
            shares=shares,
            folds=values.count(value["folds"], 2),
            missed=values.count(value["missed"]),
        )

    def dominated(self, value: Any) -> DominatedExit:
        removed, held_out_removed = value["removed"], value["held_out_removed"]
        return DominatedExit(
            exit=values.count(value["exit"], 1),
            by=values.count(value["by"], 1),
            accuracy=values.share(value["accuracy"]),
            by_accuracy=values.share(value["by_accuracy"]),
            kept=self.point(value["kept"]),
            removed=None if removed is None else self.point(removed),
            held_out_kept=self.held_out(value["held_out_kept"]),
            held_out_removed=None if held_out_removed is None else self.held_out(held_out_removed),
            switched_off=bool(value["switched_off"]),
        )
