"""Pictures of masks: which patches or tokens of an image a network computes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import InputError
from dyndeploy.ops.gates import PATCH, TOKEN

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class GalleryItem:
    """An image beside the same image with its mask.

    Attributes:
        image: (h, w, 3) uint8.
        overlay: (h, w, 3) uint8, e.g. from :func:`mask_overlay`.
        caption: What is seen, e.g. the class and the rate.
    """

    image: Pixels
    overlay: Pixels
    caption: str

    def __post_init__(self) -> None:
        """Check both pictures; raises ``InputError``."""
        for name, picture in (("image", self.image), ("overlay", self.overlay)):
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
                raise InputError(
                    f"Gallery {name}: expected uint8 (height, width, 3), got {picture.dtype} {picture.shape}."
                )


def mask_overlay(image: Pixels, mask: npt.NDArray[np.float32]) -> Pixels:
    """Dim the patches of an image that a mask skips, and frame those that it computes.

    Args:
        image: (h, w, 3) uint8.
        mask: (mh, mw) of 0 and 1.

    Returns:
        (h, w, 3) uint8.
    """
    height, width = image.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    active = mask[rows][:, columns] > 0.5
    grey = image.mean(axis=2, keepdims=True)
    dimmed = 0.25 * grey + 0.75 * 96.0
    result = np.where(active[..., None], image.astype(np.float64), dimmed)
    inner = np.zeros_like(active)
    inner[1:-1, 1:-1] = active[1:-1, 1:-1] & active[:-2, 1:-1] & active[2:, 1:-1] & active[1:-1, :-2] & active[1:-1, 2:]
    result[active & ~inner] = (230, 159, 0)
    return np.clip(result, 0, 255).astype(np.uint8)


def token_grid(mask: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Lay a mask of tokens out as the square of patches that they are, row by row.

    Args:
        mask: (tokens,) of 0 and 1. What does not fit the largest square stands before it: class and register tokens,
            which are no place in the image.

    Returns:
        (side, side).

    Raises:
        InputError: No tokens.
    """
    side = math.isqrt(len(mask))
    if mask.ndim != 1 or not side:
        raise InputError(f"A mask of tokens is (tokens,), at least one, not {mask.shape}.")
    return mask[len(mask) - side**2 :].reshape(side, side)


DRAWN: Mapping[str, Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]] = {
    PATCH.name: lambda mask: mask[0],
    TOKEN.name: token_grid,
}
"""Kinds of masks that are places in the image, each with how one image's mask becomes (rows, columns)."""


def data_uri(picture: Pixels, side: int = 192) -> str:
    """PNG as a ``data:`` URI; small pictures are enlarged in whole steps, so that their pixels stay sharp."""
    from PIL import Image

    factor = max(1, side // max(picture.shape[:2]))
    enlarged = np.ascontiguousarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))
    buffer = io.BytesIO()
    Image.fromarray(enlarged).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
