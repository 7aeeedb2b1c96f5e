"""Tile candidates and the small efficiency functions that every operator cost is made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def tile_candidates(size: int) -> list[int]:
    """Return the tile sides tried for a dimension of ``size`` elements, in the reference's visiting order.

    The candidates are powers of two up to ``min(128, 2 * size)``, ``ceil(size / i)`` and the integers below 8.
    Of several tiles with equal cost the first one visited wins, and a masked operator is afterwards priced at a
    density other than the one searched at, so the order changes results by up to 9 %. The reference visits a
    CPython set of integers: hence the set here, filled in the same sequence, and not a sorted list.
    """
    few = min(size, 8)
    candidates: set[int] = set()
    candidates.update(2**i for i in range(8) if 2**i <= 2 * size)
    candidates.update(math.ceil(size / i) for i in range(1, few))
    candidates.update(range(2, few))
    return list(candidates)


class Axis:
    """One dimension with its candidate tile sides.

    Attributes:
        tile: Candidate sides, shape (n,).
        count: Tiles needed to cover the dimension, shape (n,).
        covered: ``tile * count``, the dimension rounded up to whole tiles.
    """

    __slots__ = ("count", "covered", "tile")

    def __init__(self, size: int) -> None:
        self.tile: Array = np.array(tile_candidates(size), dtype=np.float64)
        self.count: Array = np.ceil(size / self.tile)
        self.covered: Array = self.tile * self.count


class Plane:
    """A map (height x width) with every pair of candidate sides, flattened rows first.

    Attributes:
        rows, columns: Sides of the tile, shape (n,).
        pixels: ``rows * columns``.
        count: Tiles needed to cover the map.
        sector: Fraction of each fetched memory sector that a tile row uses.
    """

    __slots__ = ("columns", "count", "pixels", "rows", "sector")

    def __init__(self, height: Axis, width: Axis, width_size: int, sector_floats: int) -> None:
        n = len(width.tile)
        self.rows: Array = np.repeat(height.tile, n)
        self.columns: Array = np.tile(width.tile, len(height.tile))
        self.pixels = self.rows * self.columns
        self.count: Array = (height.count[:, None] * width.count).ravel()
        self.sector: Array = np.tile(
            sector_efficiency(width.tile, width_size - width.tile, sector_floats), len(height.tile)
        )


def fill(elements: Any, capacity: float) -> Any:
    """Fraction of ``capacity``-sized rounds that ``elements`` keep busy (array or number)."""
    return elements / (np.ceil(elements / capacity) * capacity)


def sector_efficiency(run: Array, gap: Array, sector_floats: int) -> Array:
    """Fraction of a fetched sector that is used when ``run`` floats are read, then ``gap`` skipped, and so on."""
    gap = np.maximum(gap, 0)
    return np.where(
        run > sector_floats,
        fill(run, sector_floats),
        np.where(run + gap > sector_floats, run / sector_floats, run / (run + gap)),
    )
