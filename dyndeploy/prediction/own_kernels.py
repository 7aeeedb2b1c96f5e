"""What our own CUDA kernels take on a GPU: the table that ``benchmarks/gpu/modelled.py`` makes of their machine code.

Nothing here is a measurement. A row is one kernel with one tile on one architecture: cycles of a strip of its sum, and
of its begin and end, by the number of blocks that share a multiprocessor. A launch takes the tile of least time, as the
kernels themselves choose theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dyndeploy import files
from dyndeploy.errors import InputError
from dyndeploy.ops.base import Launch

Array: TypeAlias = npt.NDArray[np.float64]

TABLE = Path(__file__).parents[1] / "targets" / "cuda_kernels.json"

WINOGRAD = "winograd"
"""Layer of the table: products of transformed patches."""
_PLACES = 16
"""Of a patch of 2 x 2 outputs and the 4 x 4 inputs that it reads."""

_MOST_ROWS = 512
"""Up to so many rows halves on lanes launch kernels of several tiles, of which the device takes one by the rows that
there are (``adapts_tiles`` in choose.h)."""
_TENSOR_CORES = 70
_WARPGROUPS = "warpgroups"
"""Unit of tiles of sm_90a. Which engines take them follows from their batch (``choose.h``): here from the launch's."""

OPENING_CYCLES = 1100.0
"""Cycles that a block of conv1 begins later where it makes its lists itself (opening.h), modelled: the instructions of
``RowBits::find`` and of the rows' pixels, of a map of 56 x 56 with a mask of 14 x 14, take 1650 (sm_87) to 1690 (sm_90)
cycles in the model of ``benchmarks/gpu/cycle_model.py``, and two loads, of a count and of a list, are left out."""

_LIKE = {60: 53, 61: 53, 62: 53, 70: 72, 89: 86, 120: 86}
"""Architectures that the table lacks, or lacks kernels of, and one whose machine code and multiprocessors differ little
from theirs."""

_LIKE_ON_LANES = {110: 90}
"""The same of floats alone: what tensor cores of Thor do for kernels of older GPUs no source says."""


class _Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    strip: Array
    """Cycles of a strip of all resident blocks, by their number from one on."""
    fixed: Array
    """What begin and end add, where one block follows another."""
    cold: Array
    """The same where all begin together."""
    peak: float
    """Cycles of a strip of one block at the peak rate."""
    regular: bool
    """Whether it takes weights only as they stand in memory, not those of active channels (``choose.h``)."""


class Cycles(NamedTuple):
    """Where the cycles of launches go, each (launches,); their sum is what a launch takes."""

    products: Array
    """Products of rows and columns that there are, at the peak rate."""
    padding: Array
    """Those of rows, columns and inputs that fill up the last tiles and strips, likewise."""
    loop: Array
    """What the main loop takes longer than at the peak rate where all blocks are resident."""
    tails: Array
    """What the last blocks take longer because fewer of them share a multiprocessor."""
    ends: Array
    """Begin and end of blocks."""

    @property
    def all(self) -> Array:
        """Their sum."""
        found: Array = self.products + self.padding + self.loop + self.tails + self.ends
        return found


class Priced(NamedTuple):
    """Launches as the kernels' table prices them, each (launches,)."""

    cycles: Cycles
    loaded: Array
    """Elements that the tiles load."""
    kernels: Array
    """How many kernels share the rows."""


class OwnKernels:
    """The kernels of one architecture and precision.

    Args:
        rows: Of the table.
        end: Which end of the model, from 0 (optimistic) to 1 (pessimistic): a place between their logarithms.

    Raises:
        InputError: A row lacks a number.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], end: float = 0.5) -> None:
        self._tiles: dict[str, list[_Tile]] = {}
        self._adapts = any(row.get("precision") == "fp16" and int(row["capability"]) < _TENSOR_CORES for row in rows)
        for row in rows:
            try:
                self._tiles.setdefault(str(row["layer"]), []).append(_tile(row, end))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{TABLE.name}: a kernel has no number {error}.") from error

    def serves(self, layer: str) -> bool:
        """Whether there are figures of a layer."""
        return layer in self._tiles

    def price(
        self, layer: str, rows: Array, columns: Array, depth: Array, products: Array, taps: Array, processors: int,
        tried: Array | None = None, gathers: npt.NDArray[np.bool_] | None = None,
        opens: npt.NDArray[np.bool_] | None = None, continues: Array | None = None,
    ) -> Priced:  # fmt: skip
        """Cycles of launches, each with the tile of least time.

        Args:
            layer: Of the table.
            rows: Of the left operand, (launches,); the others likewise.
            columns: Of the right operand.
            depth: Of the sums, all taps together.
            products: How many there are (groups).
            taps: Segments of the sum, each of which fills its last strip.
            processors: Multiprocessors of the device.
            tried: Rows that a tile is chosen for, (launches, counts), which count alike; zeros or None: ``rows``.
            gathers: Whether a launch reads the weights of active channels alone; None: none does.
            opens: Whether every block finds its rows itself, (launches,); None: none does.
            continues: 1 where the tiles begin and end with those of another launch; None: nowhere.
        """
        known = np.zeros((len(rows), 1)) if tried is None else tried
        known = np.where(known.sum(1, keepdims=True) > 0, known, rows[:, None])
        tiles = self._tiles[layer]
        apart = np.zeros(len(rows), np.bool_) if gathers is None else gathers
        unfit = np.array([tile.regular for tile in tiles])[:, None] & apart
        opening = np.zeros(len(rows)) if opens is None else np.where(opens, OPENING_CYCLES, 0.0)
        begins = 1.0 - (np.zeros(len(rows)) if continues is None else continues)

        def parts(counts: Array, opening: Array | float = 0.0) -> Cycles:
            sizes = (counts, columns, depth, products, taps)
            found = [_cycles(tile, *sizes, processors, begins, opening) for tile in tiles]
            return Cycles(*np.stack(found, 1))  # each (tiles, launches)

        def priced(found: Cycles) -> Array:
            return np.where(unfit, np.inf, found.all)

        here = parts(rows, opening)
        now = priced(here)
        then = np.stack([priced(parts(counts)) for counts in known.T])  # (counts, tiles, launches)
        chosen = then.sum(0).argmin(0)
        # Kernels of the sizes that are best for one of the counts, each of which takes the rows that are its own.
        adapts = self._adapts & (known[:, 0] <= _MOST_ROWS) & (known[:, 0] > known[:, -1])
        among = np.zeros(now.shape, np.bool_)
        np.put_along_axis(among, then.argmin(1), True, 0)
        chosen = np.where(adapts, np.where(among, now, np.inf).argmin(0), chosen)
        launched = np.where(adapts, among.sum(0), 1).astype(np.float64)
        place = np.arange(len(rows))
        sizes = np.array([(tile.rows, tile.columns, tile.depth) for tile in tiles], np.float64)[chosen].T
        strips = taps * np.ceil(depth / taps / sizes[2])
        loaded = np.ceil(rows / sizes[0]) * np.ceil(columns / sizes[1]) * products * strips * sizes[2]
        cycles = Cycles(*(part[chosen, place] for part in here))
        return Priced(cycles, loaded * (sizes[0] / taps + sizes[1]), launched)


def _cycles(
    tile: _Tile, rows: Array, columns: Array, depth: Array, products: Array, taps: Array, processors: int,
    begins: Array, opening: Array | float,
) -> Cycles:  # fmt: skip
    strips = taps * np.ceil(depth / taps / tile.depth)
    across = np.ceil(columns / tile.columns) * products
    most = np.ceil(np.ceil(rows / tile.rows) * across / processors).astype(np.int64)
    resident = len(tile.strip)
    whole, rest = most // resident, most % resident

    def waves(of: Array) -> Array:
        """Of whole waves and of the rest's."""
        cycles: Array = whole * of[-1] + np.where(rest > 0, of[np.maximum(rest, 1) - 1], 0.0)
        return cycles

    first = np.maximum(np.minimum(most, resident), 1) - 1
    together = np.maximum(tile.cold - tile.fixed, 0.0)[first]
    peak = most * strips * tile.peak
    full = most / resident * strips * tile.strip[-1]
    filled = rows * columns * depth * products / processors
    needed = filled / (tile.rows * tile.columns * tile.depth) * tile.peak
    ends = begins * (waves(tile.fixed) + together) + opening * (whole + (rest > 0))
    found = Cycles(needed, peak - needed, full - peak, strips * waves(tile.strip) - full, ends)
    return Cycles(*(np.where(most > 0, part, 0.0) for part in found))


def _tile(row: Mapping[str, Any], end: float) -> _Tile:
    counts = sorted(map(int, row["blocks"]))
    resident = np.arange(1, counts[-1] + 1)

    def by_count(name: str, least: float = 1.0) -> Array:
        ends = [row["blocks"][str(count)][name] for count in counts]
        known = [max(low, least) ** (1.0 - end) * max(high, least) ** end for low, high in ends]
        found: Array = np.interp(resident, counts, known)
        return found

    return _Tile(
        int(row["rows"]), int(row["columns"]), int(row["depth"]), by_count("strip_cycles"), by_count("fixed_cycles"),
        by_count("cold_cycles"), float((by_count("share", 1e-6) * by_count("strip_cycles") / resident)[-1]),
        row.get("unit") == _WARPGROUPS,
    )  # fmt: skip


@functools.lru_cache(maxsize=4)
def _read(path: Path) -> tuple[Mapping[str, Any], ...]:
    return tuple(files.read_json(path)["kernels"]) if path.exists() else ()


def own_kernels(capability: str | None, precision: str, *, end: float = 0.5, table: Path = TABLE) -> OwnKernels | None:
    """The kernels' figures for a compute capability such as ``"5.3"``; None where there are none."""
    if capability is None:
        return None
    asked = int(capability.replace(".", ""))
    found: dict[str, list[Mapping[str, Any]]] = {}
    like = _LIKE_ON_LANES.get(asked) if precision == "fp32" else None
    for priced in (_LIKE.get(asked, like), asked):
        rows = [row for row in _read(table) if row["capability"] == priced and row["precision"] == precision]
        layers = dict.fromkeys(row["layer"] for row in rows)
        found |= {layer: [row for row in rows if row["layer"] == layer] for layer in layers}
    return OwnKernels([row for rows in found.values() for row in rows], end) if found else None


def winograd_launches(launch: Launch, element: float) -> Sequence[Launch]:
    """A 3x3 as the kernels launch it by Winograd's algorithm.

    Patches are transformed, their 16 places multiplied, and the products transformed.

    Args:
        launch: Of the 3x3, with its ``patches``.
        element: Bytes of an activation.
    """
    patches, channels = launch.patches, launch.columns
    transformed = _PLACES * patches * channels * element
    written = launch.rows * channels * element
    return (
        Launch(moved=launch.moved - written + transformed, share=launch.share),
        Launch(
            patches, channels, channels, _PLACES, moved=2.0 * transformed,
            weights=_PLACES * channels * channels * element, share=launch.share, uneven=launch.uneven, layer=WINOGRAD,
            tried=tuple(rows / 4 for rows in launch.tried),
        ),
        Launch(moved=transformed + written, share=launch.share),
    )  # fmt: skip
