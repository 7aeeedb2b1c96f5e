from __future__ import annotations

import importlib
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dyndeploy.device_calibration.fit import FOLDS, TREES, boosted, common_error, fit_all, fit_class, rows_by_class
from dyndeploy.errors import DyndeployError
from dyndeploy.prediction.calibrated import GENERAL

from .helpers import many


@pytest.fixture(scope="module")
def fits() -> dict:
    return fit_all(many(), trees=0)


def test_constants_that_made_the_times_are_found_again(fits: dict) -> None:
    for name in ("conv_spatial", "conv_pointwise", "gemm", "elementwise"):
        assert fits[name].model.mape < 0.02, name
        assert (fits[name].model.constants >= 0).all()


def test_errors_are_those_of_graphs_that_were_not_fitted() -> None:
    rows = rows_by_class(many(noise=0.2))["conv_pointwise"]
    model = fit_class(rows, trees=40).model
    assert 0.1 < model.mape < 0.3, "noise of 20 % cannot be predicted, however well the trees remember it"
    assert model.interval[0] < -0.15 and model.interval[1] > 0.15


def test_trees_learn_what_the_constants_do_not() -> None:
    rows = rows_by_class(many(24))["conv_pointwise"]
    odd = np.array([kernel.features["cout"] % 32 != 0 for kernel in rows.kernels])
    rows.ms[odd] *= 1.5
    assert 0.1 < odd.mean() < 0.95
    assert fit_class(rows, trees=80).model.mape < 0.7 * fit_class(rows, trees=0).model.mape


def test_the_general_class_has_kernels_of_all_kinds(fits: dict) -> None:
    assert fits[GENERAL].model.samples > fits["conv_pointwise"].model.samples


def test_too_few_samples_are_refused() -> None:
    rows = rows_by_class(many(8))["gemm"]
    with pytest.raises(DyndeployError, match="too few"):
        fit_class(rows.part(np.arange(len(rows.ms)) < 3))


def test_errors_in_common_are_told_from_errors_that_cancel() -> None:
    samples = many(24, noise=0.1)
    independent = common_error(samples, fit_all(samples, trees=0))
    random = np.random.default_rng(0)
    pace = np.exp(0.3 * random.standard_normal(24))
    together = [(graph, replace(sample, ms=sample.ms * pace[graph])) for graph, sample in many(24)]
    assert 0.0 <= independent < 0.4 < common_error(together, fit_all(together, trees=0)) <= 1.0


@pytest.mark.parametrize("seconds", [2.0, 20.0, 1e6])
def test_as_many_trees_as_there_is_time_for(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only fitting moves: 1 ms a tree, and a microsecond for each of its samples."""
    now = [100.0]
    module = importlib.import_module("dyndeploy.device_calibration.fit")

    def cost(rows: object, trees: int) -> float:
        return trees * (1e-3 + 1e-6 * len(rows.ms))

    def grown(rows: object, *, trees: int, seed: int) -> None:
        now[0] += cost(rows, trees)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(module, "_fit", grown)
    rows = rows_by_class([(n, s) for n, sample in many(40) for s in [sample] * 8])
    classes = [rows[name] for name in rows if name != "general"]
    trees = module._affordable(classes, TREES, now[0] + seconds)
    spent = now[0] - 100.0 + sum((FOLDS + 1) * cost(part, trees) for part in classes if len(part.ms) >= 60)
    assert spent <= max(seconds, 1.0)
    assert trees == TREES or spent > 0.4 * seconds


def test_no_tree_is_begun_after_the_end() -> None:
    rows = rows_by_class(many(16))["conv_spatial"]
    table = rows.described(np.ones(rows.terms.shape[1]), 1e-4)[1]
    late = boosted(table, np.log(rows.ms), rows.ms, 50, 0, until=time.monotonic() - 1)
    assert len(late.roots) == 1


def test_fitting_tells_how_far_it_is() -> None:
    told: list[tuple[str, float]] = []
    fits = fit_all(many(), trees=0, progress=lambda message, done: told.append((message, done)))
    assert len(told) == len(fits) and told[-1][1] == pytest.approx(1.0)
    assert [done for _, done in told] == sorted(done for _, done in told)
