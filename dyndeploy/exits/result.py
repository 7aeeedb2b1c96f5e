"""The result of calibrating a bundle, as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dyndeploy import files
from dyndeploy.bundle import ThresholdInfo
from dyndeploy.errors import InputError, UsageError
from dyndeploy.exits.calibrate import METHODS, Calibration, DominatedExit, HeldOut
from dyndeploy.exits.frontier import Constraint
from dyndeploy.exits.scores import MACS, MS, ExitCosts, OperatingPoint
from dyndeploy.fields import Document, Field
from dyndeploy.measure.profile import read_machine

SCHEMA_VERSION = 1
KIND = "calibration"
_DOCUMENT = Document("The calibration", "Calibrate the bundle again.", InputError)


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
        machine: See :func:`dyndeploy.runtimes.machine.machine_facts`.
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
                "note": calibration.costs.note or None,
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
        return _result(_DOCUMENT.root(value))


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


def _result(root: Field) -> CalibrationResult:
    exits = root["exits"].sequence(lambda item: item.tally(1), at_least=1)
    count = len(exits)
    priced = root["costs"]
    values = priced["values"].sequence(Field.positive, length=count)
    unit, source = priced["unit"].one_of(MACS, MS), priced["source"].label()
    note = priced.get("note").optional(Field.text) or ""
    costs = priced.checked(lambda: ExitCosts(values, unit, source, note))
    reader = _Reader(count, root["images"].tally(1), costs)
    calibration = Calibration(
        exits=exits,
        costs=costs,
        images=reader.images,
        constraint=root["constraint"].optional(_constraint),
        method=root["method"].one_of(*METHODS),
        chosen=root["chosen"].optional(reader.point),
        held_out=root["held_out"].optional(reader.held_out),
        alone=root["alone"].sequence(reader.point, length=count),
        sweep=root["sweep"].sequence(reader.point),
        frontier=root["frontier"].sequence(reader.point, at_least=1),
        dominated=root["dominated"].sequence(reader.dominated),
    )
    given = [each is None for each in (calibration.constraint, calibration.chosen, calibration.held_out)]
    if len(set(given)) > 1:
        raise _DOCUMENT.complaint("constraint, chosen and held_out must all be given, or none of them")
    return CalibrationResult(
        calibration=calibration,
        network=root["network"].label(),
        precision=root["precision"].label(),
        macs=root["macs"].sequence(Field.positive, length=count),
        source=root["source"].label(),
        runtime=root["runtime"].facts(),
        machine=read_machine(root["machine"]),
    )


def _constraint(item: Field) -> Constraint:
    cost, accuracy = item["cost"].optional(Field.number), item["accuracy"].optional(Field.number)
    return item.checked(lambda: Constraint(cost, accuracy))


@dataclass(frozen=True)
class _Reader:
    """Reads points of so many exits on so many images."""

    exits: int
    images: int
    costs: ExitCosts

    def point(self, item: Field) -> OperatingPoint:
        *limits, last = item["thresholds"].sequence(
            lambda threshold: threshold.optional(Field.amount), length=self.exits
        )
        counts = item["counts"].sequence(Field.tally, length=self.exits)
        correct = item["correct"].sequence(Field.tally, length=self.exits)
        fits = last is None and None not in limits
        item["thresholds"].require(fits, "numbers, and null for the last exit")
        fits = sum(counts) == self.images and all(right <= n for right, n in zip(correct, counts, strict=True))
        item.require(fits, f"a point of {self.images} images in all, with no more right answers than images")
        return item.checked(
            lambda: OperatingPoint(
                thresholds=(*(limit for limit in limits if limit is not None), -math.inf),
                counts=counts,
                correct=correct,
                cost=float(self.costs.mean(counts)),
            )
        )

    def held_out(self, item: Field) -> HeldOut:
        return HeldOut(
            accuracy=item["accuracy"].share(),
            cost=item["cost"].positive(),
            shares=item["shares"].sequence(Field.share, length=self.exits),
            folds=item["folds"].tally(2),
            missed=item["missed"].tally(),
        )

    def dominated(self, item: Field) -> DominatedExit:
        return DominatedExit(
            exit=item["exit"].tally(1),
            by=item["by"].tally(1),
            accuracy=item["accuracy"].share(),
            by_accuracy=item["by_accuracy"].share(),
            kept=self.point(item["kept"]),
            removed=item["removed"].optional(self.point),
            held_out_kept=self.held_out(item["held_out_kept"]),
            held_out_removed=item["held_out_removed"].optional(self.held_out),
            switched_off=item["switched_off"].boolean(),
        )
