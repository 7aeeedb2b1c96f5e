"""Masks spread over pixels: one rule for NumPy arrays and for PyTorch tensors, differentiable on the latter."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

MaskArray: TypeAlias = Any
"""A NumPy array or a PyTorch tensor."""


def nearest_index(out_size: int, in_size: int) -> npt.NDArray[np.int64]:
    """Source index of every output position in nearest-neighbour upsampling: ``floor(i * in / out)``.

    Integer arithmetic, so that every runtime agrees. ``torch.nn.functional.interpolate(mode="nearest")`` multiplies by
    a float32 scale instead and differs for a few ratios (first at 41 pixels per patch).
    """
    return np.arange(out_size, dtype=np.int64) * in_size // out_size


def upsample_mask(mask: MaskArray, height: int, width: int) -> MaskArray:
    """Spread a patch mask (N, g, mh, mw) over pixels (N, g, height, width), nearest neighbour."""
    for axis, size in ((2, height), (3, width)):
        if mask.shape[axis] != size:
            mask = _take(mask, nearest_index(size, mask.shape[axis]), axis)
    return mask


def dilate_mask(mask: MaskArray, height: int, width: int, stride: int = 1, dilation: int = 1) -> MaskArray:
    """Mark every input pixel that a 3x3 convolution reads to compute the marked output pixels.

    Args:
        mask: 0/1 mask on the convolution's output, (N, g, Ho, Wo).
        height: Input height of the convolution; Ho = (height - 1) // stride + 1.
        width: Input width of the convolution.
        stride: Stride of the convolution.
        dilation: Dilation of the convolution; its padding is the same number.

    Returns:
        0/1 mask (N, g, height, width). Of a tensor it is differentiable with respect to ``mask``: each input pixel
        passes its gradient to one of the output pixels that decide over it.
    """
    if stride > 1:
        rows, columns = mask.shape[-2:]
        # Output pixel (i, j) sits over input pixel (stride * i, stride * j); the others start unmarked.
        mask = mask.reshape(*mask.shape[:2], rows, 1, columns, 1)
        mask = _padded(_padded(mask, 3, 0, stride - 1), 5, 0, stride - 1)
        mask = mask.reshape(*mask.shape[:2], rows * stride, columns * stride)[:, :, :height, :width]
    for axis in (2, 3):
        mask = _spread(mask, axis, dilation)
    return mask


def _spread(mask: MaskArray, axis: int, distance: int) -> MaskArray:
    # Shifted copies instead of a max pool, whose padding may not exceed half its window.
    length = mask.shape[axis]
    kept = [slice(None)] * mask.ndim
    kept[axis] = slice(0, length)
    earlier = _padded(mask, axis, distance, 0)[tuple(kept)]
    kept[axis] = slice(distance, distance + length)
    later = _padded(mask, axis, 0, distance)[tuple(kept)]
    return _maximum(mask, _maximum(earlier, later))


def _take(mask: MaskArray, index: npt.NDArray[np.int64], axis: int) -> MaskArray:
    if isinstance(mask, np.ndarray):
        return np.take(mask, index, axis)
    import torch

    return mask.index_select(axis, torch.from_numpy(index).to(mask.device))


def _padded(mask: MaskArray, axis: int, before: int, after: int) -> MaskArray:
    if isinstance(mask, np.ndarray):
        return np.pad(mask, [(before, after) if i == axis else (0, 0) for i in range(mask.ndim)])
    import torch.nn.functional as F

    behind = [0, 0] * (mask.ndim - 1 - axis)
    return F.pad(mask, [*behind, before, after])


def _maximum(a: MaskArray, b: MaskArray) -> MaskArray:
    if isinstance(a, np.ndarray):
        return np.maximum(a, b)
    import torch

    return torch.maximum(a, b)
