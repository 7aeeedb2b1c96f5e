"""Search: the best accuracy that thresholds reach at every cost.

Every threshold between two neighbouring confidences of the calibration set does the same, so a threshold is a *rank*:
how many distinct confidences of its exit lie at or above it (0: the exit takes nothing). All combinations of a grid
of ranks are counted at once from a joint histogram; where the grid holds every rank (small sets, or few exits) the
result is the optimum. Otherwise points along the frontier are refined in each threshold, image by image, and the
official sweep joins the candidates, so that the frontier is nowhere worse than it.

The frontier does not depend on a budget. Reading a larger budget from it can therefore never give less accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import UsageError
from dyndeploy.exits.scores import NEVER, ExitCosts, ExitScores, OperatingPoint, operate, require_fit
from dyndeploy.exits.sweep import has_sweep, official_sweep

IntArray = npt.NDArray[np.int64]

GRID_CELLS = 1 << 19
"""Combinations of thresholds that the grid holds."""

REFINED = 256
"""Points of the grid's frontier around which thresholds move image by image: their moves overlap."""


@dataclass(frozen=True)
class Constraint:
    """What the thresholds must keep to: a mean cost at most, or an accuracy at least. Exactly one is given.

    Attributes:
        cost: Most mean cost per image, in the unit of the costs.
        accuracy: Least top-1 accuracy in [0, 1].
    """

    cost: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        """Check the values; raises ``UsageError``."""
        if (self.cost is None) == (self.accuracy is None):
            raise UsageError("Give either a budget or a least accuracy, not both and not none.")
        if self.cost is not None and not (math.isfinite(self.cost) and self.cost > 0):
            raise UsageError(f"A budget must be a positive number, not {self.cost:g}.")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise UsageError(f"An accuracy lies in [0, 1], e.g. 0.76, not {self.accuracy:g}.")

    def allows(self, point: OperatingPoint) -> bool:
        """Whether a point keeps to it, to the last bit."""
        if self.cost is not None:
            return point.cost <= self.cost
        return self.accuracy is None or point.accuracy >= self.accuracy

    def nearest(self, points: Sequence[OperatingPoint]) -> Constraint:
        """The constraint of this kind that is closest to it and that one of the points keeps."""
        if self.cost is not None:
            return Constraint(cost=min(point.cost for point in points))
        return Constraint(accuracy=max(point.accuracy for point in points))

    def describe(self, costs: ExitCosts) -> str:
        """In words."""
        if self.cost is not None:
            return f"at most {costs.format(self.cost)} per image"
        return f"accuracy of at least {self.accuracy:.2%}"


def choose(points: Sequence[OperatingPoint], constraint: Constraint) -> OperatingPoint | None:
    """Return the best point that keeps to the constraint, or None.

    Under a budget that is the most accurate point, among equals the cheapest; under a least accuracy the cheapest
    point, among equals the most accurate; among equals of both the first.
    """
    allowed = [point for point in points if constraint.allows(point)]
    if constraint.cost is not None:
        return max(allowed, key=lambda point: (sum(point.correct), -point.cost), default=None)
    return min(allowed, key=lambda point: (point.cost, -sum(point.correct)), default=None)


@dataclass(frozen=True)
class Frontier:
    """Operating points on the calibration images of which none is both cheaper and as accurate as another.

    Attributes:
        points: Ascending in cost and in accuracy.
        exact: Whether every combination of thresholds was tried.
    """

    points: tuple[OperatingPoint, ...]
    exact: bool

    def choose(self, constraint: Constraint, costs: ExitCosts) -> OperatingPoint:
        """Return the best point that keeps to the constraint.

        Raises:
            UsageError: No thresholds keep to it; the message says what can be reached.
        """
        point = choose(self.points, constraint)
        if point is not None:
            return point
        if constraint.cost is not None:
            least = self.points[0].cost
            raise UsageError(
                f"A budget of {costs.format(constraint.cost)} per image is out of reach: the cheapest exit alone "
                f"costs {costs.format(least)}. Give at least that, or take a smaller network."
            )
        best = self.points[-1]
        raise UsageError(
            f"An accuracy of {constraint.accuracy:.2%} is out of reach: the best thresholds get {best.accuracy:.2%} of "
            f"these images right, at {costs.format(best.cost)}. Ask for less, or train further."
        )

    def thinned(self, most: int) -> tuple[OperatingPoint, ...]:
        """Return at most so many points, spread evenly over the costs, both ends among them."""
        return tuple(self.points[index] for index in _spread(np.array([point.cost for point in self.points]), most))


def _spread(cost: npt.NDArray[np.float64], most: int) -> IntArray:
    """Indices of at most so many of ascending costs, spread evenly, both ends among them."""
    wanted = np.linspace(cost[0], cost[-1], most)
    return np.unique(np.searchsorted(cost, wanted)) if len(cost) > most else np.arange(len(cost))


def find_frontier(scores: ExitScores, costs: ExitCosts, without: Sequence[int] = ()) -> Frontier:
    """Find the best accuracy for every mean cost.

    Args:
        scores: Of the calibration images.
        costs: One per exit.
        without: Exits that shall take nothing; not the last one.

    Returns:
        The frontier; it is the same for the same arguments.

    Raises:
        UsageError: Costs that do not fit, or an exit that cannot be switched off.
    """
    require_fit(scores, costs)
    for number in without:
        if number not in scores.exits[:-1]:
            raise UsageError(
                f"Exit {number} cannot be switched off: this network has the exits {scores.exits}, and the last one "
                "takes what is left."
            )
    if len(scores.exits) == 1:
        return Frontier((operate(scores, (-math.inf,), costs),), exact=True)
    ranking = _Ranking.of(scores)
    levels = _levels(scores, ranking, without)
    exact = all(len(level) == ranking.most[k] + 1 for k, level in enumerate(levels) if scores.exits[k] not in without)
    pool = _grid(scores, ranking, levels, costs).frontier()
    if not exact:
        parts = [pool, *_refined(pool, scores, ranking, levels, costs)]
        if has_sweep(scores.exits):
            parts.append(_swept(scores, ranking, costs, without))
        pool = _Pool.joined(parts).frontier()
    return Frontier(pool.points(ranking), exact)


def centred(scores: ExitScores, point: OperatingPoint) -> OperatingPoint:
    """Move thresholds midway between the confidences of the images that they separate; nothing else changes.

    A threshold that equals a confidence, as those of the official sweep do, decides otherwise as soon as another
    batch size rounds that confidence down.
    """
    if len(scores.exits) == 1:
        return point
    ranking = _Ranking.of(scores)
    limits = [ranking.threshold(index, rank) for index, rank in enumerate(ranking.ranks_of(point.thresholds))]
    return replace(point, thresholds=(*limits, -math.inf))


# ---------------------------------------------------------------- ranks


@dataclass(frozen=True)
class _Ranking:
    """Confidences of all exits but the last, as ranks from 1 (the most confident) over distinct values.

    Attributes:
        ranks: Shape (exits - 1, images).
        values: Per exit the distinct confidences, descending.
        order: Shape (exits - 1, images): images by ascending rank.
    """

    ranks: IntArray
    values: tuple[npt.NDArray[np.float32], ...]
    order: IntArray

    @classmethod
    def of(cls, scores: ExitScores) -> _Ranking:
        ranks = np.empty((len(scores.exits) - 1, scores.images), np.int64)
        values = []
        for index, row in enumerate(scores.confidences[:-1]):
            distinct, inverse = np.unique(row, return_inverse=True)
            ranks[index] = len(distinct) - inverse
            values.append(distinct[::-1])
        return cls(ranks, tuple(values), np.argsort(ranks, axis=1, kind="stable"))

    @property
    def most(self) -> tuple[int, ...]:
        """Per exit the rank at which it takes everything."""
        return tuple(len(each) for each in self.values)

    def ranks_of(self, thresholds: Sequence[float]) -> list[int]:
        """Per exit but the last, how many distinct confidences reach its threshold."""
        pairs = zip(self.values, thresholds[:-1], strict=True)
        return [int((values >= np.float32(limit)).sum()) for values, limit in pairs]

    def threshold(self, index: int, rank: int) -> float:
        """A float32 threshold that separates the images up to this rank from the rest.

        It lies midway, so that a confidence that another batch size rounds differently still falls on its side.
        """
        values = self.values[index]
        if rank == 0:
            return NEVER
        if rank == len(values):
            return 0.0
        upper, lower = values[rank - 1], values[rank]
        middle = np.float32((np.float64(upper) + np.float64(lower)) / 2)
        return float(middle if middle > lower else upper)


def _levels(scores: ExitScores, ranking: _Ranking, without: Sequence[int]) -> list[IntArray]:
    """Ranks that the grid tries per exit, ascending: all of them, or quantiles of the images."""
    searched = [index for index, number in enumerate(scores.exits[:-1]) if number not in without]
    if math.prod(ranking.most[index] + 1 for index in searched) <= GRID_CELLS:
        most = max(ranking.most) + 1
    else:
        most = max(3, math.floor(GRID_CELLS ** (1 / len(searched)) + 1e-9))
    levels = []
    for index in range(len(scores.exits) - 1):
        if index not in searched:
            levels.append(np.zeros(1, np.int64))
        elif ranking.most[index] < most:
            levels.append(np.arange(ranking.most[index] + 1))
        else:
            at = np.linspace(0, scores.images - 1, most - 1).astype(np.int64)
            levels.append(np.unique(np.concatenate([[0], ranking.ranks[index, ranking.order[index, at]]])))
    return levels


# ---------------------------------------------------------------- candidates


@dataclass(frozen=True)
class _Pool:
    """Candidates: ranks (n, exits - 1), counts (n, exits), right answers (n, exits), costs (n,)."""

    ranks: IntArray
    counts: IntArray
    correct: IntArray
    cost: npt.NDArray[np.float64]

    @classmethod
    def of(cls, ranks: IntArray, counts: IntArray, correct: IntArray, costs: ExitCosts) -> _Pool:
        return cls(ranks, counts, correct, np.asarray(costs.mean(list(counts.T)), np.float64))

    @classmethod
    def joined(cls, parts: Sequence[_Pool]) -> _Pool:
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("ranks", "counts", "correct", "cost")
            )
        )

    def select(self, kept: npt.NDArray[Any]) -> _Pool:
        return _Pool(self.ranks[kept], self.counts[kept], self.correct[kept], self.cost[kept])

    def frontier(self) -> _Pool:
        return self.select(_undominated(self.cost, self.correct.sum(axis=1)))

    def points(self, ranking: _Ranking) -> tuple[OperatingPoint, ...]:
        return tuple(
            OperatingPoint(
                thresholds=(*(ranking.threshold(index, rank) for index, rank in enumerate(ranks)), -math.inf),
                counts=tuple(counts),
                correct=tuple(correct),
                cost=cost,
            )
            for ranks, counts, correct, cost in zip(
                self.ranks.tolist(), self.counts.tolist(), self.correct.tolist(), self.cost.tolist(), strict=True
            )
        )


def _undominated(cost: npt.NDArray[np.float64], right: IntArray) -> IntArray:
    """Indices of the points that no other beats, ascending in cost and in right answers; the first among equals."""
    order = np.lexsort((-right, cost))
    sorted_right = right[order]
    best_before = np.maximum.accumulate(sorted_right)[:-1]
    return np.asarray(order[np.concatenate([[True], sorted_right[1:] > best_before])], np.int64)


def _grid(scores: ExitScores, ranking: _Ranking, levels: Sequence[IntArray], costs: ExitCosts) -> _Pool:
    """The undominated combinations of the levels, counted exactly."""
    shape = tuple(len(level) for level in levels)
    # An image leaves at the exit from the first level on that reaches its rank; past the last level it never does.
    bins = [np.searchsorted(level, ranks) for level, ranks in zip(levels, ranking.ranks, strict=True)]
    everybody = np.ones(scores.images, bool)
    counts = [_leaving(bins, shape, index, everybody) for index in range(len(scores.exits))]
    correct = [_leaving(bins, shape, index, row) for index, row in enumerate(scores.correct)]
    right = sum(correct, np.zeros(shape, np.int64))
    best = np.unravel_index(_undominated(costs.mean(counts).ravel(), right.ravel()), shape)
    return _Pool.of(
        np.stack([level[at] for level, at in zip(levels, best, strict=True)], axis=1),
        np.stack([np.broadcast_to(each, shape)[best] for each in counts], axis=1),
        np.stack([np.broadcast_to(each, shape)[best] for each in correct], axis=1),
        costs,
    )


def _leaving(
    bins: Sequence[npt.NDArray[np.intp]], shape: tuple[int, ...], index: int, chosen: npt.NDArray[np.bool_]
) -> IntArray:
    """Images that leave at an exit, for every combination of levels.

    Args:
        bins: Per exit but the last, the level from which on each image leaves; ``shape[k]`` where there is none.
        shape: Levels per exit but the last.
        index: The exit.
        chosen: Which images are counted.

    Returns:
        Array that broadcasts to ``shape``: levels of later exits make no difference.
    """
    axes = min(index + 1, len(shape))
    padded = tuple(size + 1 for size in shape[:axes])
    flat = np.ravel_multi_index(tuple(bins[:axes]), padded)[chosen]
    table = np.bincount(flat, minlength=math.prod(padded)).reshape(padded)
    for axis in range(axes):
        table = np.flip(np.cumsum(np.flip(table, axis), axis=axis), axis)
    # Now [t1, t2, ...] is the number of images that stay past the exits at the levels t1, t2, ...
    staying = table[(slice(1, None),) * axes]
    leaving = staying if index == len(shape) else staying[..., :1] - staying
    return np.asarray(leaving.reshape(leaving.shape + (1,) * (len(shape) - axes)), np.int64)


def _refined(
    pool: _Pool, scores: ExitScores, ranking: _Ranking, levels: Sequence[IntArray], costs: ExitCosts
) -> Iterator[_Pool]:
    """Candidates between the levels: each threshold of each candidate moves, image by image, to its neighbours."""
    best = pool.correct.sum(axis=1)
    sorted_ranks = np.take_along_axis(ranking.ranks, ranking.order, axis=1)
    for row in _spread(pool.cost, REFINED):
        for index, level in enumerate(levels):
            if len(level) == level[-1] + 1:
                continue  # the grid held every rank
            at = int(np.searchsorted(level, pool.ranks[row, index]))
            low, high = level[max(at - 1, 0)], level[min(at + 1, len(level) - 1)]
            start, stop = np.searchsorted(sorted_ranks[index], [low, high], side="right")
            line = _line(pool, row, index, ranking.order[index, start:stop], scores, ranking, costs)
            cheaper = np.searchsorted(pool.cost, line.cost, side="right") - 1
            yield line.select((cheaper < 0) | (line.correct.sum(axis=1) > best[np.maximum(cheaper, 0)]))


def _line(
    pool: _Pool, row: int, index: int, images: IntArray, scores: ExitScores, ranking: _Ranking, costs: ExitCosts
) -> _Pool:
    """All candidates that differ from one only in where the threshold of an exit lies among the given images.

    Args:
        pool: Holds the candidate in ``row``.
        row: Which candidate.
        index: The exit whose threshold moves.
        images: Neighbours in confidence at that exit, by ascending rank.
        scores: Of all images.
        ranking: Of all images.
        costs: One per exit.
    """
    ranks, exits = pool.ranks[row], len(scores.exits)
    images = images[(ranking.ranks[:index, images] > ranks[:index, None]).all(axis=0)]
    own, each = ranking.ranks[index, images], np.arange(len(images))
    leaves = np.ones((exits - index - 1, len(images)), bool)
    leaves[:-1] = ranking.ranks[index + 1 :, images] <= ranks[index + 1 :, None]
    later = index + 1 + leaves.argmax(axis=0)
    # Running sums of what changes when one image more leaves here and not later.
    counts, correct = np.zeros((2, exits, len(images) + 1), np.int64)
    counts[index, 1:] = 1
    counts[later, each + 1] = -1
    correct[index, 1:] = scores.correct[index, images]
    correct[later, each + 1] = -scores.correct[later, images].astype(np.int64)
    counts, correct = counts.cumsum(axis=1), correct.cumsum(axis=1)
    here = int(np.searchsorted(own, ranks[index], side="right"))
    # Images of equal confidence move together.
    ends = np.unique(np.searchsorted(own, own, side="right"))
    moved = np.repeat(ranks[None], len(ends), axis=0)
    moved[:, index] = own[ends - 1]
    return _Pool.of(
        moved,
        pool.counts[row] + (counts[:, ends] - counts[:, [here]]).T,
        pool.correct[row] + (correct[:, ends] - correct[:, [here]]).T,
        costs,
    )


def _swept(scores: ExitScores, ranking: _Ranking, costs: ExitCosts, without: Sequence[int]) -> _Pool:
    points = official_sweep(scores, costs, without)
    return _Pool(
        np.array([ranking.ranks_of(point.thresholds) for point in points], np.int64),
        np.array([point.counts for point in points], np.int64),
        np.array([point.correct for point in points], np.int64),
        np.array([point.cost for point in points], np.float64),
    )
