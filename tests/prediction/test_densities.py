from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.ops.densities import dilated_density, reach
from dyndeploy.prediction.densities import (
    ExpectedBusiestTile,
    SampledBusiestTile,
    union,
)

_RATES = st.floats(0.0, 1.0, allow_nan=False)


def test_expected_maximum_by_enumeration():
    # Two tiles of two channels at 0.5: the maximum is 0, 1, 2 with probability 1/16, 8/16, 7/16.
    assert ExpectedBusiestTile()(2, 2, 0.5, 1) == pytest.approx((8 / 16 + 2 * 7 / 16) / 2, rel=1e-12)
    # Groups of two: two tiles that are each on or off.
    assert ExpectedBusiestTile()(2, 2, 0.5, 2) == pytest.approx(0.75, rel=1e-12)
    # One group over both tiles.
    assert ExpectedBusiestTile()(2, 2, 0.5, 4) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("tiles", "channels", "density", "granularity"), [(8, 64, 0.5, 1), (64, 8, 0.3, 2), (3, 700, 0.9, 1)]
)
def test_expected_maximum_equals_many_draws(tiles, channels, density, granularity):
    groups = channels // granularity
    draws = np.random.default_rng(1).binomial(groups, density, size=(20_000, tiles)).max(1) / groups
    error = draws.std() / np.sqrt(len(draws))
    found = ExpectedBusiestTile()(tiles, channels, density, granularity)
    assert found == pytest.approx(draws.mean(), abs=5 * error)


@given(st.integers(1, 200), st.integers(1, 300), st.sampled_from([1, 2, 4, 8]), _RATES, _RATES)
@settings(max_examples=60, deadline=None)
def test_expected_maximum_is_a_monotone_fraction(tiles, channels, granularity, a, b):
    busiest = ExpectedBusiestTile()
    low, high = sorted((a, b))
    at_low, at_high = (busiest(tiles, channels, rate, granularity) for rate in (low, high))
    assert low - 1e-12 <= at_low <= at_high + 1e-12
    assert at_high <= 1.0 + 1e-12


def test_sampled_maximum_is_seeded_and_remembered():
    first, again, other = SampledBusiestTile(3), SampledBusiestTile(3), SampledBusiestTile(4)
    values = [first(8, 16, 0.5, 1), first(4, 32, 0.5, 1)]
    assert values == [again(8, 16, 0.5, 1), again(4, 32, 0.5, 1)]
    assert other(8, 16, 0.5, 1) != values[0]
    assert first(8, 16, 0.5, 1) == values[0]
    assert first(8, 16, 0.5, 2) > values[0]


def test_sampled_maximum_is_centred_on_the_expectation():
    expected = ExpectedBusiestTile()(16, 32, 0.5, 1)
    means = [SampledBusiestTile(seed)(16, 32, 0.5, 1) for seed in range(40)]
    assert np.mean(means) == pytest.approx(expected, abs=4 * np.std(means) / np.sqrt(40))


def test_dilated_density_of_single_pixels_by_hand():
    # 4x4 map, one pixel per patch: corners are reached by 4 patches, edges by 6, the interior by 9.
    d = 0.3
    by_hand = sum(n * (1 - (1 - d) ** k) for n, k in ((4, 4), (8, 6), (4, 9))) / 16
    found = dilated_density(d, in_size=(4, 4), out_size=(4, 4), mask_size=(4, 4), stride=1)
    assert found == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    ("out", "mask", "stride"), [((8, 8), (2, 2), 1), ((7, 9), (3, 2), 1), ((8, 8), (4, 4), 2), ((5, 5), (1, 1), 2)]
)
def test_dilated_density_equals_dilated_random_masks(out, mask, stride):
    """Masks are drawn, upsampled, spread by the stride and dilated, as the network does."""
    random = np.random.default_rng(0)
    size = (out[0] * stride, out[1] * stride)
    fractions = []
    for _ in range(3000):
        patches = random.random(mask) < 0.4
        rows, columns = (np.arange(o) * m // o for o, m in zip(out, mask, strict=True))
        wide = np.zeros((size[0] + 2, size[1] + 2), dtype=bool)
        wide[1:-1:stride, 1:-1:stride] = patches[np.ix_(rows, columns)]
        grown = np.zeros(size, dtype=bool)
        for dy in range(3):
            for dx in range(3):
                grown |= wide[dy : dy + size[0], dx : dx + size[1]]
        fractions.append(grown.mean())
    found = dilated_density(0.4, in_size=size, out_size=out, mask_size=mask, stride=stride)
    assert found == pytest.approx(np.mean(fractions), abs=5 * np.std(fractions) / np.sqrt(3000))


@given(_RATES, st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2]))
def test_dilated_density_lies_between_rate_and_one(rate, patches, factor, stride):
    out = patches * factor
    found = dilated_density(
        rate, in_size=(out * stride, out * stride), out_size=(out, out), mask_size=(patches, patches), stride=stride
    )
    assert rate - 1e-9 <= found <= 1 + 1e-12
    if patches == 1:
        assert found == pytest.approx(rate, abs=1e-12)


def test_strided_pointwise_convolution_skips_pixels():
    assert list(reach(3, 6, 2, 1, 1, 3)) == [1, 0, 1, 0, 1, 0]
    assert dilated_density(1.0, in_size=(6, 6), out_size=(3, 3), mask_size=(3, 3), stride=2, kernel=1) == 0.25


@given(_RATES, st.integers(1, 64))
def test_union_bounds(rate, samples):
    assert rate - 1e-12 <= union(rate, samples) <= 1
    assert union(rate, 1) == pytest.approx(rate, abs=1e-12)
