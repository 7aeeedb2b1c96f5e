"""What a random mask makes of a rate: dilated density, the busiest tile, the union over a batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from dyndeploy.prediction.laudnet.tiles import Array

#: ``sampler(n_tiles, tile_channels, density, granularity)`` -> expected active fraction of the busiest tile.
BusiestTile = Callable[[int, int, float, int], float]

_DRAWS = 100


def union(rate: float, samples: float) -> float:
    """Return the probability that at least one of ``samples`` independent masks is on: 1 - (1 - rate)^samples."""
    none: float = (1.0 - rate) ** samples
    return 1.0 - none


def reach(out_size: int, in_size: int, stride: int, kernel: int, dilation: int, patches: int) -> Array:
    """Count, for each input coordinate, the patches whose outputs read it (one axis; zero padding "same").

    Args:
        out_size: Length of the output axis.
        in_size: Length of the input axis.
        stride: Stride of the convolution.
        kernel: Kernel side (odd).
        dilation: Spacing of the kernel's taps.
        patches: Length of the mask along this axis; nearest-neighbour upsampling maps output y to patch
            ``y * patches // out_size``.

    Returns:
        Shape (in_size,).
    """
    outputs = np.arange(out_size)
    taps = (np.arange(kernel) - kernel // 2) * dilation
    read = outputs[:, None] * stride + taps
    patch = np.broadcast_to((outputs * patches // out_size)[:, None], read.shape)
    valid = (read >= 0) & (read < in_size)
    hit = np.zeros((in_size, patches), dtype=bool)
    hit[read[valid], patch[valid]] = True
    counts: Array = hit.sum(1).astype(np.float64)
    return counts


def dilated_density(
    rate: float,
    *,
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    mask_size: tuple[int, int],
    stride: int,
    kernel: int = 3,
    dilation: int = 1,
) -> float:
    """Return the expected fraction of conv2's input that is read when each patch is on with probability ``rate``.

    Sizes are (height, width). Exact for independent patches: a pixel that r x c patches reach is needed with
    probability ``1 - (1 - rate)^(r c)``. Trained masks are clustered, so their measured value lies between
    ``rate`` and this one.
    """
    if rate in (0.0, 1.0) and stride <= kernel:
        return rate
    patches, weight = _reached(in_size, out_size, mask_size, stride, kernel, dilation)
    return float(((1.0 - (1.0 - rate) ** patches) * weight).sum() / (in_size[0] * in_size[1]))


@functools.lru_cache(maxsize=1024)
def _reached(
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    mask_size: tuple[int, int],
    stride: int,
    kernel: int,
    dilation: int,
) -> tuple[Array, Array]:
    """How many patches reach a pixel, and how many pixels each of these counts has."""
    rows, columns = (
        np.unique(reach(o, i, stride, kernel, dilation, m), return_counts=True)
        for i, o, m in zip(in_size, out_size, mask_size, strict=True)
    )
    return rows[0][:, None] * columns[0], (rows[1][:, None] * columns[1]).astype(np.float64)


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
