"""How much of a convolution's input random masks of a rate make necessary."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


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
