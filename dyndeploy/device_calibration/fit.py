"""Fitting the classes of kernels to measurements, with errors from graphs that were not fitted."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dyndeploy.device_calibration.measure import Sample
from dyndeploy.errors import DyndeployError
from dyndeploy.prediction.calibrated import GENERAL, WIDEST, ClassModel, class_of, features, general, shared_out, terms
from dyndeploy.prediction.kernels import Kernel
from dyndeploy.prediction.trees import Trees

Array = npt.NDArray[np.float64]

FOLDS = 5
_COVERED = 0.9
TREES = 160
_LEAST_FOR_TREES = 60
_LEAST = 8
_WORTH_PROCESSES = 45.0  # Seconds: processes of their own take many of them to start.
_SAFE = 0.6  # Of the time is planned with: other processes take their share too.
_MEASURED_TREES = 6  # What a tree costs is measured on so many.
_RATE, _MOST_RATE = 0.08, 0.3  # Of learning: fewer trees have to say more each.
_SHORT_MS = 0.02  # Below this the clock's resolution (1 us) and the runtime's bookkeeping are much of a kernel's time.


@dataclass(frozen=True)
class Rows:
    """Measured kernels of one class.

    Attributes:
        kernels: At their rates.
        ms: Measured, (N,).
        resident: Weights of the whole graph in bytes, (N,).
        graph: Number of the graph that each was in, (N,): what is held out together.
    """

    kernels: tuple[Kernel, ...]
    ms: Array
    resident: Array
    graph: npt.NDArray[np.int64]

    def part(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        """Some of them."""
        kernels = tuple(kernel for kernel, take in zip(self.kernels, chosen, strict=True) if take)
        result = Rows(kernels, self.ms[chosen], self.resident[chosen], self.graph[chosen])
        # Working them out takes longer than a few trees do.
        vars(result).update(terms=self.terms[chosen], features=self.features[chosen])
        return result

    @functools.cached_property
    def terms(self) -> Array:
        """What constants multiply, (N, terms)."""
        return terms(self.kernels, self.resident)

    @functools.cached_property
    def features(self) -> Array:
        """What trees see beside the shares of the terms, (N, columns)."""
        return features(self.kernels, self.resident)

    def described(self, constants: Array, floor_ms: float) -> tuple[Array, Array]:
        """As :func:`~dyndeploy.prediction.calibrated.described`."""
        return shared_out(self.terms, self.features, constants, floor_ms)


def rows_by_class(samples: Sequence[tuple[int, Sample]]) -> dict[str, Rows]:
    """Sort samples (with the number of their graph) into classes, :data:`GENERAL` with all of them included."""
    groups: dict[str, list[tuple[int, Sample]]] = {}
    for graph, sample in samples:
        groups.setdefault(class_of(sample.kernel), []).append((graph, sample))

    def rows(members: Sequence[tuple[int, Sample]], *, reduced: bool) -> Rows:
        return Rows(
            tuple(general(sample.kernel) if reduced else sample.kernel for _, sample in members),
            np.array([sample.ms for _, sample in members]),
            np.array([sample.resident_bytes for _, sample in members]),
            np.array([graph for graph, _ in members]),
        )

    result = {name: rows(members, reduced=False) for name, members in sorted(groups.items())}
    result[GENERAL] = rows([item for members in groups.values() for item in members[:300]], reduced=True)
    return result


@dataclass(frozen=True)
class _Fitted:
    """Constants and trees, before it is known how good they are."""

    constants: Array
    floor_ms: float
    trees: Trees | None

    def predict(self, rows: Rows) -> Array:
        base, table = rows.described(self.constants, self.floor_ms)
        return base if self.trees is None else base * np.exp(self.trees(table))


def _constants(matrix: Array, ms: Array) -> Array:
    """Non-negative constants of least relative error; those that measurements contradict most count least."""
    from scipy.optimize import nnls

    scale = matrix.max(0)
    scale[scale == 0] = 1.0
    weight = np.ones(len(ms))
    solution = np.zeros(matrix.shape[1])
    for _ in range(4):
        solution, _ = nnls(matrix / scale * (weight / ms)[:, None], weight)
        error = np.abs(matrix / scale @ solution / ms - 1.0)
        weight = 1.0 / np.sqrt(np.maximum(error / max(float(np.median(error)), 1e-6), 1.0))
    result: Array = solution / scale
    return result


def _fit(rows: Rows, *, trees: int, seed: int, until: float = math.inf) -> _Fitted:
    constants = _constants(rows.terms, rows.ms)
    floor = max(float(rows.ms.min()) / 2, 1e-4)
    if len(rows.ms) < _LEAST_FOR_TREES or not trees:
        return _Fitted(constants, floor, None)
    base, table = rows.described(constants, floor)
    return _Fitted(constants, floor, boosted(table, np.log(rows.ms / base), rows.ms, trees, seed, until))


def boosted(table: Array, target: Array, ms: Array, count: int, seed: int, until: float = math.inf) -> Trees:
    """Gradient boosting on the logarithm that the constants leave; long kernels count more than the shortest.

    Args:
        table: What the trees see, (N, columns).
        target: The logarithm, (N,).
        ms: Measured, (N,).
        count: Trees.
        seed: Of the samples and columns that each tree sees.
        until: On the clock of ``time.monotonic``: no tree is begun later.
    """
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(
        n_estimators=count, learning_rate=float(np.clip(_RATE * TREES / count, _RATE, _MOST_RATE)), max_depth=4,
        min_samples_leaf=8, subsample=0.5, max_features=0.35, loss="huber", alpha=0.9, random_state=seed,
    )  # fmt: skip
    model.fit(table, target, sample_weight=ms / (ms + _SHORT_MS), monitor=lambda *_: time.monotonic() > until)
    trees = []
    for estimator in model.estimators_[:, 0]:
        tree = estimator.tree_
        trees.append(
            {
                "feature": np.maximum(tree.feature, -1),
                "threshold": tree.threshold,
                "left": tree.children_left,
                "right": tree.children_right,
                "value": tree.value[:, 0, 0] * model.learning_rate,
            }
        )
    return Trees.join(float(model.init_.constant_.ravel()[0]), trees)


@dataclass(frozen=True)
class Fit:
    """A class model and what its cross-validation says.

    Attributes:
        model: Fitted to everything.
        held_out: What a model that never saw the kernel's graph says, in milliseconds, (N,).
    """

    model: ClassModel
    held_out: Array


def fit_class(rows: Rows, *, trees: int = TREES, seed: int = 0, until: float = math.inf) -> Fit:
    """Fit one class.

    Args:
        rows: Its samples.
        trees: As for :func:`fit_all`, like all that follow.
        seed: Of folds and trees.
        until: When to stop.

    Raises:
        DyndeployError: Too few samples.
    """
    graphs = np.unique(rows.graph)
    if len(rows.ms) < _LEAST or len(graphs) < 2:
        raise DyndeployError(f"{len(rows.ms)} samples of {len(graphs)} graphs are too few to fit a class of kernels.")
    # Graphs by turns, in an order of their own: neighbours in time share the machine's mood.
    turn = np.random.default_rng(seed).permutation(len(graphs)) % min(FOLDS, len(graphs))
    fold = turn[np.searchsorted(graphs, rows.graph)]
    held_out = np.zeros(len(rows.ms))
    for number in range(int(turn.max()) + 1):
        out = fold == number
        held_out[out] = _fit(rows.part(~out), trees=trees, seed=seed, until=until).predict(rows.part(out))
    fitted = _fit(rows, trees=trees, seed=seed, until=until)
    error = np.abs(held_out / rows.ms - 1.0)
    low, high = np.clip(np.quantile(np.log(rows.ms / held_out), [0.05, 0.95]), -WIDEST, WIDEST)
    _, table = rows.described(fitted.constants, fitted.floor_ms)
    model = ClassModel(
        fitted.constants, fitted.floor_ms, fitted.trees, table.min(0), table.max(0), (float(low), float(high)),
        len(rows.ms), float(error.mean()), float((error <= 0.05).mean()), float((error <= 0.1).mean()),
    )  # fmt: skip
    return Fit(model, held_out)


def fit_all(
    samples: Sequence[tuple[int, Sample]],
    *,
    trees: int = TREES,
    seed: int = 0,
    seconds: float = math.inf,
    progress: Callable[[str, float], None] = lambda message, fraction: None,
) -> dict[str, Fit]:
    """Fit every class that has enough samples, and the general one; on all cores.

    Args:
        samples: Each with the number of its graph.
        trees: Of every class, at most.
        seed: Of folds and trees.
        seconds: To do it in, about: what a tree costs is measured, and so many are grown as there is time for.
        progress: Called with what is being done and the fraction done.

    Raises:
        DyndeployError: Too few samples in all.
    """
    from joblib import Parallel, delayed

    until = time.monotonic() + seconds
    cores = _cores() if trees and seconds > _WORTH_PROCESSES else 1
    enough = {
        name: rows
        for name, rows in rows_by_class(samples).items()
        if name == GENERAL or (len(rows.ms) >= _LEAST and len(np.unique(rows.graph)) >= 2)
    }
    # The largest first: they take longest.
    names = sorted(enough, key=lambda name: -len(enough[name].ms))
    if trees and math.isfinite(seconds):
        progress("measuring what fitting costs", 0.0)
        trees = _affordable([rows for name, rows in enough.items() if name != GENERAL], trees, until, cores)
    # A model that is cut off is worse than one that is late: the end is only for a machine that became far slower.
    late = until + seconds
    jobs = (
        delayed(fit_class)(enough[name], trees=0 if name == GENERAL else trees, seed=seed, until=late) for name in names
    )
    found, done, total = {}, 0, sum(len(rows.ms) for rows in enough.values())
    fits = Parallel(n_jobs=cores, return_as="generator")(jobs)
    for name, fit in zip(names, fits, strict=True):
        found[name] = fit
        done += len(enough[name].ms)
        progress(f"fitting {len(found)} of {len(names)} classes of kernels", done / total)
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _affordable(classes: Sequence[Rows], most: int, until: float, cores: int = 1) -> int:
    """Trees per class that can be grown until a time, at least one: those of a large and a small class tell."""
    largest = max(classes, key=lambda rows: len(rows.ms), default=None)
    if largest is None or len(largest.ms) < _LEAST_FOR_TREES:
        return most

    def cost(rows: Rows) -> float:
        begin = time.monotonic()
        _fit(rows, trees=_MEASURED_TREES, seed=0)
        return (time.monotonic() - begin) / _MEASURED_TREES

    count = len(largest.ms)
    little = largest.part(np.arange(count) < _LEAST_FOR_TREES)
    cost(little)  # The first one loads the library.
    each, whole = cost(little), cost(largest)
    slope = max(whole - each, 0.0) / max(count - _LEAST_FOR_TREES, 1)
    per_tree = sum((FOLDS + 1) * (each + slope * len(rows.ms)) for rows in classes if len(rows.ms) >= _LEAST_FOR_TREES)
    left = until - time.monotonic()
    return int(np.clip(_SAFE * left * math.sqrt(cores) / max(per_tree, 1e-9), 1, most))


def common_error(samples: Sequence[tuple[int, Sample]], fits: Mapping[str, Fit]) -> float:
    """How much of a kernel's error is common to its graph, in [0, 1].

    The least share with which nine graphs of ten lie inside the interval that
    :class:`~dyndeploy.prediction.calibrated.CalibratedModel` states for them, by kernels that were not fitted.
    """
    # Per graph: measured less predicted, and for both sides of the interval sum and sum of squares of the distances.
    sums: dict[int, Array] = {}
    for name, rows in rows_by_class(samples).items():
        if name == GENERAL or name not in fits:
            continue
        fit = fits[name]
        low, high = fit.model.interval
        below, above = fit.held_out * (1 - np.exp(min(low, 0.0))), fit.held_out * (np.exp(max(high, 0.0)) - 1)
        parts = np.stack([rows.ms - fit.held_out, below, below**2, above, above**2], axis=1)
        for graph, part in zip(rows.graph.tolist(), parts, strict=True):
            sums[graph] = sums.get(graph, np.zeros(5)) + part
    error, below, below2, above, above2 = np.array(list(sums.values())).T
    for share in np.linspace(0.0, 1.0, 101):
        inside = (error >= -np.sqrt(share * below**2 + (1 - share) * below2)) & (
            error <= np.sqrt(share * above**2 + (1 - share) * above2)
        )
        if inside.mean() >= _COVERED:
            return float(share)
    return 1.0
