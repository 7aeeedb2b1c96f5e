"""Running histograms: what values a tensor takes over many images, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import NotFiniteError, UsageError
from dyndeploy.finite import not_finite
from dyndeploy.quantization.table import Histogram

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BINS = 8192
"""Bins of a running histogram: at least sixteen for each of 255 steps, whatever its range."""
TABLE_BINS = 128
"""Bins of a histogram as a table keeps it."""
_SMALLEST_EXPONENT = -100
_AT_ONCE = 1 << 20


class Observer:
    """A histogram whose range grows with the values.

    Its range is ``[0, limit)``, from the first negative value on ``[-limit, limit)``, with a limit that is a power of
    two: when it doubles, bins are joined in pairs, so that the result depends neither on the order of the values nor on
    how they are cut into batches. Zeros are counted apart: 8 bits stand for them exactly.

    Args:
        bins: Number of bins, a power of two.

    Attributes:
        count: Values so far.
        zeros: How many of them are 0.
        min: Least value, ``inf`` before the first.
        max: Largest value, ``-inf`` before the first.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.count = self.zeros = 0
        self.min, self.max = math.inf, -math.inf
        self._counts: Counts = np.zeros(bins, np.int64)
        self._exponent: int | None = None
        self._signed = False

    def add(self, values: Array) -> None:
        """Count values of any shape.

        Raises:
            NotFiniteError: Some are NaN or infinite; nothing was counted.
        """
        flat = np.asarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        least, most = float(flat.min()), float(flat.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            raise NotFiniteError(f"The values to observe hold {not_finite(flat)}.")
        self.count += flat.size
        self.min, self.max = min(self.min, least), max(self.max, most)
        if least < 0:
            self._sign()
        if least or most:
            # frexp: the least power of two above the value.
            self._grow(max(math.frexp(max(-least, most))[1], _SMALLEST_EXPONENT))
        for start in range(0, flat.size, _AT_ONCE):
            part = flat[start : start + _AT_ONCE]
            nonzero = part[part != 0]
            self.zeros += part.size - nonzero.size
            if nonzero.size:
                # A product with a power of two is exact, and so is the bin.
                places = np.floor(nonzero * np.float32(1 / self._width)).astype(np.int64) + self._origin
                self._counts += np.bincount(places, minlength=self._counts.size)

    def merge(self, other: Observer) -> None:
        """Count what another one with as many bins has counted, as if its values had come here.

        Raises:
            UsageError: The other one has another number of bins.
        """
        if other._counts.size != self._counts.size:
            raise UsageError(f"A histogram of {other._counts.size} bins does not fit one of {self._counts.size}.")
        self.count, self.zeros = self.count + other.count, self.zeros + other.zeros
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)
        if other._exponent is None:
            return
        theirs = Observer(self._counts.size)
        theirs._counts, theirs._exponent, theirs._signed = other._counts, other._exponent, other._signed
        for one, another in ((self, theirs), (theirs, self)):
            if another._signed:
                one._sign()
            if another._exponent is not None:
                one._grow(another._exponent)
        self._counts = self._counts + theirs._counts

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, which hold everything; of the histogram the bins that are not empty."""
        filled = np.flatnonzero(self._counts)
        return {
            "bins": self._counts.size,
            "count": self.count,
            "zeros": self.zeros,
            "range": [self.min, self.max] if self.count else None,
            "exponent": self._exponent,
            "signed": self._signed,
            "filled": filled.tolist(),
            "counts": self._counts[filled].tolist(),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Observer:
        """The same from what :meth:`to_json` gives."""
        found = cls(plain["bins"])
        found.count, found.zeros = plain["count"], plain["zeros"]
        found.min, found.max = plain["range"] or (math.inf, -math.inf)
        found._exponent, found._signed = plain["exponent"], plain["signed"]
        found._counts[plain["filled"]] = plain["counts"]
        return found

    @property
    def _origin(self) -> int:
        """Index of the bin that begins at 0."""
        return self._counts.size // 2 if self._signed else 0

    @property
    def _width(self) -> float:
        assert self._exponent is not None
        return math.ldexp(2.0 if self._signed else 1.0, self._exponent) / self._counts.size

    def _sign(self) -> None:
        if not self._signed:
            half = self._counts.size // 2
            upper = self._counts.reshape(half, 2).sum(1)
            self._counts = np.concatenate([np.zeros(half, np.int64), upper])
            self._signed = True

    def _grow(self, exponent: int) -> None:
        if self._exponent is None:
            self._exponent = exponent
        steps = min(exponent - self._exponent, self._counts.size.bit_length())
        for _ in range(steps):
            self._counts = self._joined()
        self._exponent = max(exponent, self._exponent)

    def _joined(self) -> Counts:
        """Counts over twice the range."""
        pairs = self._counts.reshape(-1, 2).sum(1)
        rest = np.zeros(self._counts.size - pairs.size, np.int64)
        if not self._signed:
            return np.concatenate([pairs, rest])
        half = np.split(rest, 2)
        return np.concatenate([half[0], pairs, half[1]])

    def edges(self) -> Floats:
        """Edges of the bins of :meth:`nonzero`, one more than there are bins."""
        if self._exponent is None:
            return np.zeros(1)
        first, last = self._span()
        return np.asarray((np.arange(first, last + 1) - self._origin) * self._width, np.float64)

    def nonzero(self) -> Counts:
        """Counts of the values that are not 0, from the bin of the least to that of the largest (and around 0)."""
        if self._exponent is None:
            return np.zeros(0, np.int64)
        first, last = self._span()
        return self._counts[first:last]

    def _span(self) -> tuple[int, int]:
        filled = np.flatnonzero(self._counts)
        return min(int(filled[0]), self._origin), max(int(filled[-1]) + 1, self._origin)

    def beyond(self, low: float, high: float) -> float:
        """Share of all values below ``low`` or above ``high``, in [0, 1]; inside a bin they count as spread evenly."""
        if not self.count or (self.min >= low and self.max <= high):
            return 0.0
        edges, counts = self.edges(), self.nonzero()
        left, right = edges[:-1], edges[1:]
        width = self._width
        below = np.clip((low - left) / width, 0, 1) + np.clip((right - high) / width, 0, 1)
        return float((counts * np.minimum(below, 1)).sum() / self.count)

    def quantile(self, share: float) -> float:
        """The value below which a share of all values lies, in [min, max]."""
        edges, counts = self.edges(), self.nonzero()
        if not counts.size:
            return 0.0
        zero = int(np.searchsorted(edges, 0.0))
        # Zeros are a jump at the edge 0.
        reached = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
        places = np.insert(edges, zero, 0.0)
        reached = np.insert(reached, zero, reached[zero])
        reached[zero + 1 :] += self.zeros
        return float(np.clip(np.interp(share * self.count, reached, places), self.min, self.max))

    def histogram(self, bins: int = TABLE_BINS) -> Histogram | None:
        """A coarse histogram of all values, for a table; None where there is none or all are 0."""
        edges, counts = self.edges(), self.nonzero().copy()
        if not counts.size:
            return None
        zero = int(np.searchsorted(edges, 0.0))
        counts[min(zero, counts.size - 1)] += self.zeros
        joined = -(-counts.size // bins)
        starts = np.arange(0, counts.size, joined)
        sums = np.add.reduceat(counts, starts)
        ends = edges[[*starts, counts.size]]
        return Histogram(tuple(map(float, ends)), tuple(map(int, sums)))
