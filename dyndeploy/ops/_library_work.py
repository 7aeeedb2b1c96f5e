"""What the operator library does for a bottleneck on a CPU: counted as its kernels cut the work, not as MACs.

Three matrix products (and one for the shortcut of skipped pixels), each by one of the ways of
``plugins/kernels/cpu/gemm_impl.h``: rows in place where the weights fit the second-level cache, rows packed into tiles
where they do not, and, where channels are skipped, a copy of the active weights first. The numbers are those of
AVX-512; narrower vectors cut alike, with other widths, and what that changes is left to what is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

_PANEL, _LANES = 32, 16  # Output channels of a panel of weights, and of a vector.
_DIRECT_BYTES, _SLICE_BYTES = 640 << 10, 384 << 10
_DIRECT_ROWS, _TILE_ROWS = 6, 14
_BLOCK_TILES, _COPY_TILES = 8, 16  # Tiles that share a pass over the weights.
_CHUNK = 576

WORK = (
    "direct_macs", "direct_loads", "packed_macs", "packed_loads", "weight_passes", "lone_weights", "rows_packed",
    "sums_reloaded", "merged", "copied",
)  # fmt: skip
"""What :func:`bottleneck_work` counts.

``*_macs``: multiply-accumulates with columns filled up to a vector, by the way they are computed; ``*_loads``: weights
that tiles load; ``weight_passes``: weights read from beyond the first-level cache, once per block of tiles;
``lone_weights``: those of them that a single tile reads; ``rows_packed``: inputs copied into tiles;
``sums_reloaded``: partial sums read again per chunk; ``merged``: vectors of source weights that active columns are
merged from; ``copied``: weights copied. All but the first two pairs in elements.
"""


def library_terms(f: Mapping[str, float]) -> dict[str, float]:
    """Everything that the time of a bottleneck is a sum of, besides a constant (``KernelSpec.terms``).

    Args:
        f: Sizes of the operator (``OperatorSpec.sizes``).

    Returns:
        The numbers of :func:`bottleneck_work`; inputs, outputs and hidden values that are computed; bytes of weights,
        and of those that active columns are merged from; mask bits and pixels; bytes of a projection, and of what is
        copied.
    """
    rows1, rows2, hidden = f["rows1"], f["rows2"], f["hidden"]
    active = f["cmid"] * f["channel_rate"] if f["rate"] > 0 else 0.0
    weights = active * (f["cin"] + f["cout"]) + 9.0 * active * active / f["groups"]
    weights += f["projection"] * f["cin"] * f["cout"]
    # Active columns lie in almost every line of the weights that they are merged from.
    merged = f["cmid"] * (f["cin"] + 9.0 * hidden / f["groups"]) + hidden * f["cout"]
    written = 4.0 * f["batch"] * f["oh"] * f["ow"] * f["cout"]
    return {
        **bottleneck_work(f),
        "inputs": rows1 * f["cin"],
        "outputs": rows2 * f["cout"],
        "hidden_values": (rows1 + rows2) * hidden,
        "weights_cold": 4.0 * weights,
        "merged_cold": 4.0 * merged if 0 < hidden < f["cmid"] else 0.0,
        "mask_bits": f["batch"] * f["mask_h"] * f["mask_w"],
        "pixels": f["batch"] * (f["h"] * f["w"] + f["oh"] * f["ow"]),
        "projected": written * f["projection"],
        "skipped": written * (1 - f["projection"]) * (1 - f["rate"]),
    }


def bottleneck_work(f: Mapping[str, float]) -> dict[str, float]:
    """Count the work of a bottleneck.

    Args:
        f: Sizes of the operator (``OperatorSpec.sizes``); ``hidden`` are its active channels.

    Returns:
        A number for each of :data:`WORK`.
    """
    work = dict.fromkeys(WORK, 0.0)
    pixels = f["batch"] * f["oh"] * f["ow"]
    rows1, rows2, hidden = f["rows1"], f["rows2"], f["hidden"]
    cin, cmid, cout, groups = f["cin"], f["cmid"], f["cout"], f["groups"]
    shortcut = cin if f["projection"] else 0.0
    if shortcut and rows2 < pixels:
        _product(work, pixels - rows2, cin, cout)
    if hidden < 1 or rows2 < 1:
        if shortcut and rows2 >= 1:
            _product(work, rows2, cin, cout)
        return work
    copies = hidden < cmid
    _product(work, rows1, cin, hidden, copies=copies, merged_from=cmid)
    part = hidden / groups
    _product(work, rows2, 9 * part, part, copies=copies, merged_from=cmid / groups, times=groups)
    _product(work, rows2, hidden + shortcut, cout, copies=copies, copied_depth=hidden, whole=not shortcut)
    return work


def _product(
    work: dict[str, float],
    rows: float,
    depth: float,
    columns: float,
    *,
    copies: bool = False,
    merged_from: float = 0.0,
    copied_depth: float | None = None,
    whole: bool = True,
    times: float = 1.0,
) -> None:
    # A product of (rows, depth) with (depth, columns), ``times`` over. ``merged_from``: columns of the whole weights,
    # where only some are copied; ``copied_depth``: rows of the weights that are copied, if not all; ``whole``: whether
    # all weights come from one array, as those of a shortcut do not.
    panels = math.ceil(columns / _PANEL)
    filled = math.ceil(columns / _LANES) * _LANES
    in_place = whole and depth * 2 * _PANEL * 4 <= _SLICE_BYTES if copies else (
        depth * panels * _PANEL * 4 <= _DIRECT_BYTES
    )  # fmt: skip
    way, tile = ("direct", _DIRECT_ROWS) if in_place else ("packed", _TILE_ROWS)
    tiles = math.ceil(rows / tile)
    passes = 1 if in_place else math.ceil(tiles / (_COPY_TILES if copies else _BLOCK_TILES))
    work[f"{way}_macs"] += times * rows * depth * filled
    work[f"{way}_loads"] += times * tiles * depth * filled
    if not in_place:
        work["weight_passes"] += times * passes * depth * panels * _PANEL
        work["rows_packed"] += times * rows * depth
        work["sums_reloaded"] += times * rows * columns * (math.ceil(depth / _CHUNK) - 1)
        if tiles == 1:
            work["lone_weights"] += times * depth * panels * _PANEL
    if copies:
        taken = depth if copied_depth is None else copied_depth
        work["copied"] += times * passes * taken * filled
        if merged_from:
            work["merged"] += times * passes * taken * math.ceil(merged_from / _LANES)
