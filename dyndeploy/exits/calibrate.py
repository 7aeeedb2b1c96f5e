"""Thresholds for a budget or an accuracy, and what they are worth on images that they were not chosen on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.exits.frontier import Constraint, Frontier, centred, choose, find_frontier
from dyndeploy.exits.scores import NEVER, ExitCosts, ExitScores, OperatingPoint, operate, require_fit, taken_exits
from dyndeploy.exits.sweep import has_sweep, official_sweep

SEARCH, SWEEP = "search", "sweep"
METHODS = (SEARCH, SWEEP)

FOLDS = 5
"""Parts of the images; each is judged with thresholds chosen on all others."""

FEW_IMAGES = 1000
"""Below this a warning says how uncertain the figures are."""

SHOWN_POINTS = 100
"""Points of the frontier that a result keeps."""


@dataclass(frozen=True)
class HeldOut:
    """Every image judged with thresholds that were chosen on other images (cross-fitting).

    Attributes:
        accuracy: Top-1, in [0, 1].
        cost: Mean per image.
        shares: Share of the images that leaves at each exit.
        folds: Parts of the images.
        missed: Folds on whose other images the constraint could not be kept; there the nearest point was taken.
    """

    accuracy: float
    cost: float
    shares: tuple[float, ...]
    folds: int
    missed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**vars(self), "shares": list(self.shares)}


@dataclass(frozen=True)
class DominatedExit:
    """An exit that costs more than an earlier one and is right less often.

    Attributes:
        exit: Its number.
        by: Number of the earlier exit.
        accuracy: Of the exit, over all images.
        by_accuracy: Of the earlier exit, over all images.
        kept: Operating point with the exit.
        removed: Operating point under the same constraint with the exit switched off; None where it cannot be kept.
        held_out_kept: As ``kept``, on images that the thresholds were not chosen on.
        held_out_removed: As ``removed``; None where the constraint cannot be kept.
        switched_off: Whether the thresholds that were chosen leave it out.
    """

    exit: int
    by: int
    accuracy: float
    by_accuracy: float
    kept: OperatingPoint
    removed: OperatingPoint | None
    held_out_kept: HeldOut
    held_out_removed: HeldOut | None
    switched_off: bool

    def describe(self, costs: ExitCosts) -> str:
        """The recommendation and its effect, in words."""
        found = (
            f"Exit {self.exit} costs more than exit {self.by} and is right less often "
            f"({self.accuracy:.2%} against {self.by_accuracy:.2%})."
        )
        if self.removed is None or self.held_out_removed is None:
            return f"{found} It stays on: without it the constraint cannot be kept."
        effect = (
            f"on images that the thresholds were not chosen on {self.held_out_removed.accuracy:.2%} at "
            f"{costs.format(self.held_out_removed.cost)} without it, {self.held_out_kept.accuracy:.2%} at "
            f"{costs.format(self.held_out_kept.cost)} with it"
        )
        if self.switched_off:
            return (
                f"{found} It is switched off: {effect}. Export without it to save its head and its stage, and "
                "calibrate again."
            )
        return f"{found} It stays on, since it helps: {effect}."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "exit": self.exit,
            "by": self.by,
            "accuracy": self.accuracy,
            "by_accuracy": self.by_accuracy,
            "kept": self.kept.to_json(),
            "removed": self.removed and self.removed.to_json(),
            "held_out_kept": self.held_out_kept.to_json(),
            "held_out_removed": self.held_out_removed and self.held_out_removed.to_json(),
            "switched_off": self.switched_off,
        }


@dataclass(frozen=True)
class Calibration:
    """Thresholds of a network's exits, and all that speaks for or against them.

    Attributes:
        exits: Numbers of the exits.
        costs: What leaving at each of them costs.
        images: Calibration images.
        constraint: What the thresholds keep to; None for the bare sweep.
        method: ``"search"``, or ``"sweep"``: only the 33 official points were considered.
        chosen: The thresholds, on the calibration images; None for the bare sweep.
        held_out: What they are worth on other images; None for the bare sweep.
        alone: Per exit, the network cut off there: everything leaves at it.
        sweep: The 33 official points; empty where the network's exits are not those that it is made for.
        frontier: The best accuracy at every cost (at most :data:`SHOWN_POINTS` points).
        dominated: Exits that an earlier one beats.
    """

    exits: tuple[int, ...]
    costs: ExitCosts
    images: int
    constraint: Constraint | None
    method: str
    chosen: OperatingPoint | None
    held_out: HeldOut | None
    alone: tuple[OperatingPoint, ...]
    sweep: tuple[OperatingPoint, ...]
    frontier: tuple[OperatingPoint, ...]
    dominated: tuple[DominatedExit, ...]

    @property
    def switched_off(self) -> tuple[int, ...]:
        """Exits that were left out of the search because an earlier one beats them."""
        return tuple(entry.exit for entry in self.dominated if entry.switched_off)

    @property
    def unused(self) -> tuple[int, ...]:
        """Exits whose threshold no image can reach."""
        if self.chosen is None:
            return ()
        pairs = zip(self.exits, self.chosen.thresholds, strict=True)
        return tuple(number for number, limit in pairs if limit >= NEVER)

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy that so few images can tell."""
        accuracy = (self.chosen or self.alone[-1]).accuracy
        return math.sqrt(max(accuracy * (1 - accuracy), 1 / (4 * self.images)) / self.images)

    def warnings(self) -> list[str]:
        """What a reader should know before trusting the thresholds."""
        notes = [self.costs.note] if self.costs.note else []
        if self.images < FEW_IMAGES:
            notes.append(
                f"Only {self.images} images: an accuracy is known to +-{self.standard_error:.1%} (one standard error). "
                f"Calibrate on at least {FEW_IMAGES}, better 10000."
            )
        if self.constraint is not None and self.held_out is not None:
            limit, least = self.constraint.cost, self.constraint.accuracy
            if limit is not None and self.held_out.cost > limit:
                notes.append(
                    "On images that the thresholds were not chosen on they cost "
                    f"{self.costs.format(self.held_out.cost)}, more than the budget of {self.costs.format(limit)}. "
                    "Leave a margin if the budget is hard."
                )
            if least is not None and self.held_out.accuracy < least:
                notes.append(
                    f"On images that the thresholds were not chosen on they reach {self.held_out.accuracy:.2%}, less "
                    f"than {least:.2%}. Ask for a little more if it is a hard limit."
                )
            if self.held_out.missed:
                notes.append(
                    f"In {self.held_out.missed} of {self.held_out.folds} folds the constraint was out of reach; the "
                    "held-out figures contain the nearest thresholds there."
                )
        return notes


def calibrate(
    scores: ExitScores,
    costs: ExitCosts,
    constraint: Constraint | None = None,
    *,
    method: str = SEARCH,
    switch_off: bool = True,
    folds: int = FOLDS,
) -> Calibration:
    """Choose exit thresholds.

    Args:
        scores: Of images that the network was not trained on.
        costs: One per exit, in MACs or in milliseconds measured on the device.
        constraint: A budget or a least accuracy. None: as accurate as the last exit alone; with the method
            ``"sweep"`` nothing is chosen.
        method: ``"search"`` for the best thresholds, or ``"sweep"`` for the best of the 33 official points.
        switch_off: Leave out exits that an earlier one beats, unless they help measurably on images that the
            thresholds were not chosen on.
        folds: For the held-out figures, at most one per image.

    Raises:
        InputError: There are fewer than two images.
        UsageError: The constraint cannot be kept, the method is unknown, the costs do not fit, or the exits are
            not those of the official sweep.
    """
    require_fit(scores, costs)
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if scores.images < 2:
        raise InputError("One image cannot be split into images to choose on and images to judge by. Give more.")
    if folds < 2:
        raise UsageError(f"Held-out figures need at least 2 folds, not {folds}.")
    alone = tuple(_alone(scores, costs, index) for index in range(len(scores.exits)))
    if constraint is None and method == SEARCH:
        constraint = Constraint(accuracy=alone[-1].accuracy)
    sweep = official_sweep(scores, costs) if method == SWEEP or has_sweep(scores.exits) else ()
    search = _Search(scores, costs, method, min(folds, scores.images))
    dominated: tuple[DominatedExit, ...] = ()
    chosen, held_out = None, None
    if constraint is not None:
        dominated = _dominated(search, constraint, alone, switch_off)
    without = tuple(entry.exit for entry in dominated if entry.switched_off)
    if constraint is not None:
        chosen = search.chosen(constraint, without)
        held_out = search.held_out(search.judged(constraint, without))
    return Calibration(
        exits=scores.exits,
        costs=costs,
        images=scores.images,
        constraint=constraint,
        method=method,
        chosen=chosen,
        held_out=held_out,
        alone=alone,
        sweep=sweep,
        frontier=search.frontier(without).thinned(SHOWN_POINTS),
        dominated=dominated,
    )


class _Search:
    """Thresholds from all images, and from all but a part of them; frontiers are found once.

    Args:
        scores: Of the calibration images.
        costs: One per exit.
        method: Which candidates are considered.
        folds: Parts of the images.
    """

    def __init__(self, scores: ExitScores, costs: ExitCosts, method: str, folds: int) -> None:
        self.scores = scores
        self.costs = costs
        self.folds = folds
        self._method = method
        self._frontiers: dict[tuple[int, ...], Frontier] = {}

    def frontier(self, without: tuple[int, ...]) -> Frontier:
        """All images' frontier."""
        if without not in self._frontiers:
            self._frontiers[without] = find_frontier(self.scores, self.costs, without)
        return self._frontiers[without]

    def chosen(self, constraint: Constraint, without: tuple[int, ...]) -> OperatingPoint:
        """The best thresholds for all images; raises ``UsageError`` where the constraint cannot be kept."""
        if self._method == SEARCH:
            return self.frontier(without).choose(constraint, self.costs)
        point = choose(official_sweep(self.scores, self.costs, without), constraint)
        if point is None:
            raise UsageError(
                f"None of the 33 points of the official sweep keeps to '{constraint.describe(self.costs)}'. Leave out "
                "--sweep to search all thresholds."
            )
        return centred(self.scores, point)

    def judged(self, constraint: Constraint, without: tuple[int, ...]) -> _Judged:
        """Judge every image by thresholds that were so chosen on images of other parts."""
        images = self.scores.images
        taken, missed = np.zeros(images, np.int64), 0
        for part in np.array_split(np.random.default_rng(0).permutation(images), self.folds):
            others = self.scores.select(np.setdiff1d(np.arange(images), part))
            points = (
                find_frontier(others, self.costs, without).points
                if self._method == SEARCH
                else official_sweep(others, self.costs, without)
            )
            point = choose(points, constraint)
            if point is None:
                missed += 1
                point = choose(points, constraint.nearest(points))
                assert point is not None
            taken[part] = taken_exits(self.scores.confidences[:, part], point.thresholds)
        return _Judged(taken, self.scores.correct[taken, np.arange(images)], missed)

    def held_out(self, judged: _Judged) -> HeldOut:
        """Sum up."""
        counts = np.bincount(judged.taken, minlength=len(self.scores.exits))
        return HeldOut(
            accuracy=float(judged.right.mean()),
            cost=float(self.costs.mean(counts.tolist())),
            shares=tuple((counts / self.scores.images).tolist()),
            folds=self.folds,
            missed=judged.missed,
        )


@dataclass(frozen=True)
class _Judged:
    """The exit that each image takes (from 0), whether it is right there, and folds that missed the constraint."""

    taken: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    missed: int


def _dominated(
    search: _Search, constraint: Constraint, alone: Sequence[OperatingPoint], switch_off: bool
) -> tuple[DominatedExit, ...]:
    """Judge every exit that an earlier one beats, the later ones first."""
    found: list[DominatedExit] = []
    exits = search.scores.exits
    for index, by in reversed(_beaten([point.accuracy for point in alone], search.costs)):
        without = tuple(entry.exit for entry in found if entry.switched_off)
        less = (*without, exits[index])
        kept = search.chosen(constraint, without)
        judged, judged_less, removed = search.judged(constraint, without), None, None
        with contextlib.suppress(UsageError):
            removed = search.chosen(constraint, less)
            judged_less = search.judged(constraint, less)
        found.append(
            DominatedExit(
                exit=exits[index],
                by=exits[by],
                accuracy=alone[index].accuracy,
                by_accuracy=alone[by].accuracy,
                kept=kept,
                removed=removed,
                held_out_kept=search.held_out(judged),
                held_out_removed=None if judged_less is None else search.held_out(judged_less),
                switched_off=switch_off
                and judged_less is not None
                and not _helps(judged, judged_less, constraint, search.costs),
            )
        )
    return tuple(reversed(found))


def _helps(kept: _Judged, removed: _Judged, constraint: Constraint, costs: ExitCosts) -> bool:
    """Whether an exit gains measurably in what is sought, accuracy or cost, and loses no such thing in the other."""
    values = np.asarray(costs.values)
    accuracy = kept.right.astype(np.float64) - removed.right
    saving = values[removed.taken] - values[kept.taken]
    sought, other = (accuracy, saving) if constraint.cost is not None else (saving, accuracy)
    return bool(sought.mean() > _chance(sought) and -other.mean() <= _chance(other))


def _chance(differences: npt.NDArray[np.float64]) -> float:
    """Two standard errors of the mean of differences per image: what chance alone may explain."""
    return 2 * float(differences.std()) / math.sqrt(len(differences))


def _alone(scores: ExitScores, costs: ExitCosts, index: int) -> OperatingPoint:
    """Everything leaves at one exit."""
    last = len(scores.exits) - 1
    return operate(scores, [NEVER] * index + [0.0] * (last - index) + [-math.inf], costs)


def _beaten(alone: Sequence[float], costs: ExitCosts) -> list[tuple[int, int]]:
    """Pairs (exit, best of the earlier exits) by index: the first costs more and is right less often."""
    pairs = []
    for index in range(1, len(alone) - 1):
        best = max(range(index), key=lambda earlier: alone[earlier])
        if alone[best] > alone[index] and costs.values[best] < costs.values[index]:
            pairs.append((index, best))
    return pairs
