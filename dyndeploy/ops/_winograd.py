"""Winograd's F(2x2, 3x3) in the GPU kernels of boards: which 3x3s have transformed weights, and where they are used.

Lavin, Gray: Fast Algorithms for Convolutional Neural Networks (2015).
"""

from __future__ import annotations

import numpy as np

from dyndeploy.ops.base import Array

PLACES = 16
"""Products of a patch of 2 x 2 outputs, instead of 36."""

_LEAST, _MOST = 64, 256
_VECTOR = 8
_TRANSFORM = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])


def transforms(hidden: int, group: int, stride: int, dilation: int) -> bool:
    """Whether a 3x3 of that many channels has transformed weights behind its own.

    What is saved grows with the channels, what the transforms of patches cost does not: modelled on a Nano, 64 channels
    gain a sixth and fewer nothing. Of more than 256 the weights, 16/9 of the 3x3's own, would have to be read for the
    few patches of a map that is small by then.
    """
    return group == stride == dilation == 1 and _LEAST <= hidden <= _MOST and hidden % _VECTOR == 0


def fits(height: int, width: int, mask_height: int, mask_width: int) -> bool:
    """Whether patches of 2 x 2 outputs are active as a whole."""
    return height % (2 * mask_height) == 0 and width % (2 * mask_width) == 0


def transform_w2(weight: Array) -> Array:
    """``G w G^T`` of a 3x3 (M, M, 3, 3), summed in double: (16 M, M), row place * M + input, column output."""
    places: Array = np.einsum("ia,jb,oxab->ijxo", _TRANSFORM, _TRANSFORM, weight.astype(np.float64))
    rows: Array = places.reshape(PLACES * weight.shape[1], weight.shape[0]).astype(weight.dtype)
    return rows
