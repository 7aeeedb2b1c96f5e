from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.prediction.laudnet.tiles import Axis, Plane, fill, sector_efficiency, tile_candidates


def test_candidates_of_the_reference():
    assert set(tile_candidates(1)) == {1, 2}
    assert set(tile_candidates(7)) == {1, 2, 3, 4, 5, 6, 7, 8}
    assert set(tile_candidates(14)) == {1, 2, 3, 4, 5, 6, 7, 8, 14, 16}
    assert set(tile_candidates(56)) == {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 19, 28, 32, 56, 64}


def test_visiting_order_is_that_of_a_set_filled_in_sequence():
    # Powers of two, then quotients, then small numbers; 256 and 64 collide with earlier slots of the set's table.
    assert tile_candidates(7) == [1, 2, 3, 4, 5, 6, 7, 8]
    order = tile_candidates(440)
    assert sorted(order) == [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 63, 64, 74, 88, 110, 128, 147, 220, 440]
    assert order != sorted(order)


@given(st.integers(1, 5000))
def test_axis_covers_the_dimension(size):
    axis = Axis(size)
    assert len(set(axis.tile)) == len(axis.tile)
    assert (axis.covered >= size).all()
    assert ((axis.count - 1) * axis.tile < size).all()


@given(st.integers(1, 10_000), st.integers(1, 512))
def test_fill_is_a_fraction_and_full_at_multiples(elements, capacity):
    assert 0 < fill(elements, capacity) <= 1
    assert fill(elements * capacity, capacity) == 1.0


@pytest.mark.parametrize(
    ("run", "gap", "expected"),
    [(16, 40, 1.0), (12, 44, 0.75), (8, 48, 1.0), (4, 52, 0.5), (4, 2, 4 / 6), (4, -3, 1.0), (1, 55, 1 / 8)],
)
def test_sector_efficiency(run, gap, expected):
    assert sector_efficiency(np.array([run]), np.array([gap]), 8)[0] == pytest.approx(expected)


@given(st.integers(1, 128), st.integers(0, 128))
def test_sector_of_one_float_switches_the_model_off(run, gap):
    assert sector_efficiency(np.array([run]), np.array([gap]), 1)[0] == 1.0


def test_plane_lays_rows_outermost():
    plane = Plane(Axis(3), Axis(5), 5, 8)
    n = len(Axis(5).tile)
    assert list(plane.rows[:n]) == [Axis(3).tile[0]] * n
    assert list(plane.columns[:n]) == list(Axis(5).tile)
    k = 7
    assert plane.count[k] == math.ceil(3 / plane.rows[k]) * math.ceil(5 / plane.columns[k])
