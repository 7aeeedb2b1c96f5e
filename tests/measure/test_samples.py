from __future__ import annotations

import json
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.errors import InputError
from dyndeploy.fields import Document
from dyndeploy.measure.samples import UNSTABLE_COV, Samples, coefficient_of_variation

times = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=60)


def test_statistics_by_hand() -> None:
    samples = Samples((1.0, 2.0, 3.0, 4.0, 10.0), (0,) * 5)
    assert samples.median == 3.0
    assert samples.mean == 4.0
    assert samples.percentile(90) == pytest.approx(7.6)
    assert samples.percentile(99) == pytest.approx(9.76)
    assert samples.cov == pytest.approx(statistics.stdev(samples.ms) / 4.0)


def test_different_inputs_are_not_noise() -> None:
    samples = Samples((1.0, 2.0, 1.0, 2.0), (0, 1, 0, 1))
    assert samples.cov == pytest.approx(statistics.stdev(samples.ms) / 1.5)
    assert samples.cov_same_input == 0.0
    assert not samples.unstable
    noisy = Samples((1.0, 2.0, 1.1, 2.2), (0, 1, 0, 1))
    # Divided by the means 1.05 and 2.1: 0.952, 1.048 twice; two degrees of freedom are left.
    assert noisy.cov_same_input == pytest.approx((4 * (0.05 / 1.05) ** 2 / 2) ** 0.5)
    assert noisy.unstable


def test_without_repetition_the_plain_coefficient_is_all_there_is() -> None:
    assert coefficient_of_variation([1.0, 2.0], [0, 1]) == coefficient_of_variation([1.0, 2.0])


def test_the_threshold_is_two_and_a_half_per_cent() -> None:
    assert UNSTABLE_COV == 0.025
    below, above = 1 + 0.024 * 2**0.5, 1 + 0.026 * 2**0.5
    assert not Samples((1.0, below), (0, 0)).unstable
    assert Samples((1.0, above), (0, 0)).unstable


@given(times)
def test_order_statistics_are_ordered(ms: list[float]) -> None:
    samples = Samples(tuple(ms), tuple(range(len(ms))))
    value = samples.to_json(batch=2)
    assert value["min_ms"] <= value["median_ms"] <= value["p90_ms"] <= value["p99_ms"] <= max(ms)
    assert value["ms_per_image"] == value["median_ms"] / 2
    assert value["median_ms"] == pytest.approx(float(np.median(ms)))
    document = Document("The profile", "Again.", InputError)
    assert Samples.read(document.root(json.loads(json.dumps(value, allow_nan=False)))) == samples


@pytest.mark.parametrize("ms", [(), (1.0,), (1.0, float("nan")), (1.0, float("inf")), (1.0, 0.0), (1.0, -2.0)])
def test_impossible_samples_are_refused(ms: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        Samples(ms, (0,) * len(ms))


def test_lengths_must_agree() -> None:
    with pytest.raises(InputError):
        Samples((1.0, 2.0), (0,))
    with pytest.raises(InputError):
        Samples((1.0, 2.0), (0, 0), cpu_ms=(1.0,))
