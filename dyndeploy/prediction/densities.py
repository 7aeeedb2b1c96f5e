"""What a random mask makes of a rate: the busiest tile, the union over a batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: ``sampler(n_tiles, tile_channels, density, granularity)`` -> expected active fraction of the busiest tile.
BusiestTile = Callable[[int, int, float, int], float]

_DRAWS = 100


def union(rate: float, samples: float) -> float:
    """Return the probability that at least one of ``samples`` independent masks is on: 1 - (1 - rate)^samples."""
    none: float = (1.0 - rate) ** samples
    return 1.0 - none


class ExpectedBusiestTile:
    """Expected active fraction of the busiest of several tiles under random channel masks, in closed form.

    With g channel groups per tile, each on with probability d, the active count of a tile is Binomial(g, d), and
    the maximum over n independent tiles has mean ``sum over k of 1 - F(k)^n``. This is the mean of what the
    reference estimates from 100 unseeded random draws.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, float], float] = {}
        self._cdf: dict[tuple[int, float], tuple[int, Array]] = {}
        self._log_factorial: Array = np.zeros(1)

    def __call__(self, n_tiles: int, tile_channels: int, density: float, granularity: int) -> float:
        """Return the fraction, in [density, 1]; a tile inside one group is either fully on or off."""
        if density >= 1.0:
            return 1.0
        if density <= 0.0:
            return 0.0
        groups = math.ceil(tile_channels / granularity)
        tiles = min(n_tiles, math.ceil(n_tiles * tile_channels / granularity))
        key = (tiles, groups, density)
        if key not in self._known:
            start, cdf = self._distribution(groups, density)
            self._known[key] = max(density, (start + float((1.0 - cdf**tiles).sum())) / groups)
        return self._known[key]

    def _distribution(self, n: int, p: float) -> tuple[int, Array]:
        """Return (k0, F(k0 .. k1)) of Binomial(n, p), cut where F leaves 0 and reaches 1 to double precision."""
        key = (n, p)
        if key not in self._cdf:
            if len(self._log_factorial) <= n:
                size = max(2 * n, 4096)
                self._log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, size)))])
            spread = 9.0 * math.sqrt(n * p * (1.0 - p)) + 9.0
            low, high = max(0, int(n * p - spread)), min(n, int(n * p + spread) + 1)
            k = np.arange(low, high)
            table = self._log_factorial
            log_pmf = table[n] - table[low:high] - table[n - k] + k * math.log(p) + (n - k) * math.log1p(-p)
            self._cdf[key] = (low, np.minimum(np.cumsum(np.exp(log_pmf)), 1.0))
        return self._cdf[key]


class SampledBusiestTile:
    """The reference's own estimate: the mean over 100 random masks, drawn from a seeded generator.

    The reference never seeds; with the same seed and the same sequence of operators this replays its numbers
    exactly, at the reference's own price in time. Results are remembered, as there, so that each
    (tiles, channels, density, granularity) draws once.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.RandomState(seed)
        self._known: dict[tuple[int, int, float, int], float] = {}

    def __call__(self, n_tiles: int, tile_channels: int, density: float, granularity: int) -> float:
        """Return the fraction, drawing it if it was never asked for."""
        if density == 1:
            return 1.0
        key = (n_tiles, tile_channels, density, granularity)
        if key not in self._known:
            channels = n_tiles * tile_channels
            groups = math.ceil(channels / granularity)
            active = self._random.rand(_DRAWS, groups) < density
            if granularity > 1:
                active = np.repeat(active, granularity, axis=1)[:, :channels]
            busiest = active.reshape(_DRAWS, n_tiles, tile_channels).sum(2).max(1)
            self._known[key] = max(density, float(busiest.mean()) / tile_channels)
        return self._known[key]
