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

_PRICED = {53: 53, 60: 53, 61: 53, 62: 53}
"""Architectures whose launches are priced, and the table's whose machine code and multiprocessors are theirs or differ
little. Those with tensor cores are not among them before all are in the table: prices by these figures and prices by
the usual efficiencies of dense kernels do not compare, and devices would change places."""


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
        for row in rows:
            try:
                self._tiles.setdefault(str(row["layer"]), []).append(_tile(row, end))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{TABLE.name}: a kernel has no number {error}.") from error

    def serves(self, layer: str) -> bool:
        """Whether there are figures of a layer."""
        return layer in self._tiles

    def cycles(
        self, layer: str, rows: Array, columns: Array, depth: Array, products: Array, taps: Array, processors: int
    ) -> tuple[Array, Array]:
        """Cycles of launches, and elements that their tiles load.

        Args:
            layer: Of the table.
            rows: Of the left operand, (launches,); the others likewise.
            columns: Of the right operand.
            depth: Of the sums, all taps together.
            products: How many there are (groups).
            taps: Segments of the sum, each of which fills its last strip.
            processors: Multiprocessors of the device.
        """
        best, loaded = np.full(rows.shape, np.inf), np.zeros(rows.shape)
        for tile in self._tiles[layer]:
            tiles = np.ceil(rows / tile.rows) * np.ceil(columns / tile.columns) * products
            strips = taps * np.ceil(depth / taps / tile.depth)
            most = np.ceil(tiles / processors).astype(np.int64)
            resident = len(tile.strip)
            whole, rest = most // resident, most % resident

            def wave(count: npt.NDArray[np.int64], tile: _Tile = tile, strips: Array = strips) -> Array:
                index = np.maximum(count, 1) - 1
                return np.where(count > 0, strips * tile.strip[index] + tile.fixed[index], 0.0)

            first = np.maximum(np.minimum(most, resident), 1) - 1
            cycles = (
                whole * wave(np.full_like(most, resident)) + wave(rest) + np.maximum(tile.cold - tile.fixed, 0.0)[first]
            )
            cycles = np.where(most > 0, cycles, 0.0)
            better = cycles < best
            best = np.where(better, cycles, best)
            traffic = tiles * strips * tile.depth * (tile.rows / taps + tile.columns)
            loaded = np.where(better, traffic, loaded)
        return best, loaded


def _tile(row: Mapping[str, Any], end: float) -> _Tile:
    counts = sorted(map(int, row["blocks"]))
    resident = np.arange(1, counts[-1] + 1)

    def by_count(name: str) -> Array:
        ends = [row["blocks"][str(count)][name] for count in counts]
        known = [max(low, 1.0) ** (1.0 - end) * max(high, 1.0) ** end for low, high in ends]
        found: Array = np.interp(resident, counts, known)
        return found

    return _Tile(
        int(row["rows"]), int(row["columns"]), int(row["depth"]), by_count("strip_cycles"), by_count("fixed_cycles"),
        by_count("cold_cycles"),
    )  # fmt: skip


@functools.lru_cache(maxsize=4)
def _read(path: Path) -> tuple[Mapping[str, Any], ...]:
    return tuple(files.read_json(path)["kernels"]) if path.exists() else ()


def own_kernels(capability: str | None, precision: str, *, end: float = 0.5, table: Path = TABLE) -> OwnKernels | None:
    """The kernels' figures for a compute capability such as ``"5.3"``; None where there are none."""
    if capability is None:
        return None
    priced = _PRICED.get(int(capability.replace(".", "")))
    found = [row for row in _read(table) if row["capability"] == priced and row["precision"] == precision]
    return OwnKernels(found, end) if found else None


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
        ),
        Launch(moved=transformed + written, share=launch.share),
    )  # fmt: skip
