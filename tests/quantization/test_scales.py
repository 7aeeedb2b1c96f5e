"""Histograms that grow, and the scales that methods find: against what NumPy says of the values themselves."""

from __future__ import annotations

import itertools
import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.errors import NotFiniteError, UsageError
from dyndeploy.quantization import METHODS, Observer, find_scale
from dyndeploy.quantization.scales import settings_of

Array = npt.NDArray[np.float32]


def observed(*parts: Array, bins: int = 8192) -> Observer:
    observer = Observer(bins)
    for part in parts:
        observer.add(part)
    return observer


def values(kind: str, count: int = 20000) -> Array:
    generator = np.random.default_rng(7)
    made = {
        "relu": lambda: np.maximum(generator.normal(size=count), 0),
        "exponential": lambda: generator.exponential(size=count),
        "outlier": lambda: np.append(np.abs(generator.normal(size=count)), 50),
        "signed": lambda: generator.normal(0.4, 1, size=count),
        "negative": lambda: -generator.exponential(size=count),
    }
    return np.asarray(made[kind](), np.float32)


def mean_squared_error(array: Array, scale: float, zero: int) -> float:
    steps = np.clip(np.rint(array / np.float32(scale)) + zero, 0, 255) - zero
    return float(((steps * scale - array.astype(np.float64)) ** 2).mean())


@pytest.mark.parametrize("kind", ["relu", "exponential", "signed", "negative", "outlier"])
def test_a_histogram_depends_neither_on_order_nor_on_batches(kind: str) -> None:
    array = values(kind)
    whole, shuffled = observed(array), np.random.default_rng(1).permutation(array)
    parts = observed(*np.array_split(shuffled, 13), np.zeros(0, np.float32))
    assert (whole.count, whole.zeros, whole.min, whole.max) == (parts.count, parts.zeros, parts.min, parts.max)
    assert (whole.edges() == parts.edges()).all() and (whole.nonzero() == parts.nonzero()).all()
    assert whole.count == array.size and whole.zeros == (array == 0).sum()
    exact, _ = np.histogram(array[array != 0], whole.edges())
    assert (whole.nonzero() == exact).all()


def test_a_range_grows_by_joining_bins() -> None:
    small = np.array([0.1, 0.3, 0.6, 0.9], np.float32)
    observer = observed(small, np.array([3.5], np.float32), bins=8)
    # [0, 4) in eight bins.
    assert observer.edges().tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert observer.nonzero().tolist() == [2, 2, 0, 0, 0, 0, 0, 1]
    observer.add(np.array([-1.5], np.float32))
    assert observer.edges().tolist() == [-2, -1, 0, 1, 2, 3, 4]
    assert observer.nonzero().tolist() == [1, 0, 4, 0, 0, 1]
    observer.add(np.array([1e30], np.float32))
    assert observer.nonzero().sum() == observer.count == 7 and observer.nonzero().size <= 8


def test_tiny_and_huge_values_find_their_bins() -> None:
    array = np.array([1e-44, 1e-30, 3e38, 0], np.float32)
    observer = observed(array)
    assert observer.nonzero().sum() == 3 and observer.zeros == 1
    assert observer.nonzero()[0] == 2 and observer.max == array.max()


def test_values_that_are_no_numbers_are_refused() -> None:
    observer = observed(np.ones(3, np.float32))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(NotFiniteError, match=r"1 (NaN|infinite) of 2 values"):
            observer.add(np.array([1, bad], np.float32))
    assert observer.count == 3


@pytest.mark.parametrize("kind", ["relu", "exponential", "signed"])
def test_quantiles_and_shares_are_those_of_the_values(kind: str) -> None:
    array = values(kind)
    observer = observed(array)
    width = observer.edges()[1] - observer.edges()[0]
    for share in (0.001, 0.3, 0.7, 0.999):
        found = observer.quantile(share)
        assert (array <= found + width).mean() >= share >= (array < found - width).mean()
    for low, high in itertools.product((-1.0, 0.0), (0.5, 2.0)):
        outside = float(((array < low) | (array > high)).mean())
        assert observer.beyond(low, high) == pytest.approx(outside, abs=2e-3)
    assert observer.beyond(observer.min, observer.max) == 0


def test_a_table_keeps_a_coarse_histogram_of_all_values() -> None:
    array = values("relu")
    histogram = observed(array).histogram(32)
    assert histogram is not None and sum(histogram.counts) == array.size and len(histogram.counts) <= 32
    assert histogram.counts[0] >= (array == 0).sum() and histogram.edges[0] == 0 and histogram.edges[-1] >= array.max()
    assert observed(np.zeros(4, np.float32)).histogram() is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["relu", "exponential", "outlier", "signed", "negative"])
def test_a_scale_is_of_float32_and_holds_zero(kind: str, method: str) -> None:
    array = values(kind)
    found = find_scale(observed(array), method)
    assert found.scale == float(np.float32(found.scale)) > 0
    assert 0 <= found.zero_point <= 255 and (found.zero_point == 0) == bool(array.min() >= 0)
    outside = (np.rint(array / found.scale) + found.zero_point < 0) | (
        np.rint(array / found.scale) + found.zero_point > 255
    )
    assert found.clipped == pytest.approx(float(outside.mean()), abs=5e-4)


@pytest.mark.parametrize("kind", ["relu", "exponential", "outlier", "signed"])
def test_mse_is_the_least_squared_error_of_all_ranges(kind: str) -> None:
    array = values(kind)
    observer = observed(array)
    scales = {method: find_scale(observer, method) for method in METHODS}
    errors = {method: mean_squared_error(array, each.scale, each.zero_point) for method, each in scales.items()}
    assert errors["mse"] <= 1.001 * min(errors.values()) and errors["mse"] < errors["minmax"]
    if array.min() >= 0:
        ends = np.linspace(0.1, 1, 400) * array.max()
        least = min(mean_squared_error(array, float(end) / 255, 0) for end in ends)
        assert errors["mse"] <= 1.01 * least


def test_minmax_takes_the_largest_value_and_a_percentile_cuts_there() -> None:
    array = values("outlier")
    observer = observed(array)
    assert find_scale(observer, "minmax").scale == pytest.approx(50 / 255)
    for percentile in (99.0, 99.9):
        found = find_scale(observer, "percentile", percentile=percentile)
        end = float(np.percentile(array, percentile))
        assert found.scale == pytest.approx(end / 255, abs=2 * 64 / 8192 / 255)
        assert found.clipped == pytest.approx(1 - percentile / 100, rel=0.15)
    signed = find_scale(observed(values("signed")), "percentile", percentile=99.0)
    low, high = np.percentile(values("signed"), [0.5, 99.5])
    assert signed.scale == pytest.approx((high - low) / 255, rel=0.01)
    assert signed.zero_point == pytest.approx(-low / signed.scale, abs=1)


def test_entropy_cuts_an_outlier_off_and_keeps_what_is_spread_evenly() -> None:
    # Nothing is lost by all levels of an even distribution, and a single far value is not worth them.
    even = np.arange(1, 25601, dtype=np.float32) / 25600
    assert find_scale(observed(even), "entropy").scale == pytest.approx(1 / 255, rel=0.02)
    outlier = find_scale(observed(np.append(even, np.float32(40))), "entropy")
    assert outlier.scale * 255 < 12 and outlier.clipped == pytest.approx(1 / 25601, rel=0.1)


def test_searches_keep_the_limit_of_what_is_clipped() -> None:
    observer = observed(np.append(np.full(1000, 0.01, np.float32), np.full(50, 0.0153, np.float32)))
    free = find_scale(observer, "mse").clipped
    for method in ("mse", "entropy"):
        assert find_scale(observer, method, max_clipped=0.01).clipped <= 0.01
    assert free >= 0
    even = np.arange(1, 25601, dtype=np.float32) / 25600
    with_tail = observed(np.append(even, np.float32(40)))
    assert find_scale(with_tail, "entropy").clipped > 0
    assert find_scale(with_tail, "entropy", max_clipped=0.0).clipped == 0


def test_zeros_alone_have_a_scale_and_nothing_has_none() -> None:
    zeros = observed(np.zeros(10, np.float32))
    assert {find_scale(zeros, method).scale for method in METHODS} == {1.0}
    with pytest.raises(UsageError, match="Nothing was observed"):
        find_scale(Observer(), "minmax")


def test_methods_and_percentiles_are_checked() -> None:
    assert settings_of("percentile", 99.5) == {"percentile": 99.5} and settings_of("minmax") == {}
    with pytest.raises(UsageError, match="Did you mean 'entropy'"):
        settings_of("entrpy")
    for percentile in (50, 101, float("nan")):
        with pytest.raises(UsageError, match="A percentile lies above 50"):
            settings_of("percentile", percentile)


@given(
    parts=st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32) | st.just(0.0) | st.floats(-(2**-10), 2**-10, width=32), max_size=40),
        max_size=4,
    )
)
def test_histograms_of_parts_make_one(parts: list[list[float]]) -> None:
    whole, merged = Observer(), Observer()
    for part in parts:
        own = Observer()
        for observer in (whole, own):
            observer.add(np.array(part, np.float32))
        kept = Observer.from_json(json.loads(json.dumps(own.to_json())))
        assert kept.to_json() == own.to_json()
        merged.merge(kept)
    assert merged.to_json() == whole.to_json()


def test_histograms_of_other_sizes_do_not_fit() -> None:
    with pytest.raises(UsageError, match="64 bins does not fit one of 8192"):
        Observer().merge(Observer(64))
