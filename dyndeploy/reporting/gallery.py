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

SHARP_SIDE = 192
"""Pictures up to so many pixels are shown with sharp pixels, larger ones as photographs."""


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


def mask_overlay(image: Pixels, mask: npt.NDArray[np.float32], covered: tuple[float, float] = (1.0, 1.0)) -> Pixels:
    """Dim the patches of an image that a mask skips, and frame those that it computes.

    Args:
        image: (h, w, 3) uint8.
        mask: (mh, mw) of 0 and 1.
        covered: Share of the mask's height and width, from its top left corner, that lies over the image: the rest lies
            over padding.

    Returns:
        (h, w, 3) uint8.
    """
    height, width = image.shape[:2]
    rows = (np.arange(height) * (mask.shape[0] * covered[0] / height)).astype(np.int64)
    columns = (np.arange(width) * (mask.shape[1] * covered[1] / width)).astype(np.int64)
    active = mask[rows][:, columns] > 0.5
    grey = image.mean(axis=2, keepdims=True)
    dimmed = 0.25 * grey + 0.75 * 96.0
    result = np.where(active[..., None], image.astype(np.float64), dimmed)
    inner = np.zeros_like(active)
    inner[1:-1, 1:-1] = active[1:-1, 1:-1] & active[:-2, 1:-1] & active[2:, 1:-1] & active[1:-1, :-2] & active[1:-1, 2:]
    result[active & ~inner] = (230, 159, 0)
    return np.clip(result, 0, 255).astype(np.uint8)


def group_grid(image: Pixels, mask: npt.NDArray[np.float32]) -> Pixels:
    """Draw a mask of groups, such as those of channels, as cells in the size of an image: computed ones are orange.

    Args:
        image: (h, w, 3) uint8; only its size counts.
        mask: (groups,) of 0 and 1, laid out row by row.

    Returns:
        (h, w, 3) uint8.
    """
    height, width = image.shape[:2]
    columns = max(1, round(math.sqrt(len(mask) * width / height)))
    lines = -(-len(mask) // columns)
    cells = np.full((lines * columns, 3), 255.0)
    cells[: len(mask)] = np.where(mask[:, None] > 0.5, (230, 159, 0), (150, 150, 150))
    rows, across = np.arange(height) * lines // height, np.arange(width) * columns // width
    grid: npt.NDArray[np.float64] = cells.reshape(lines, columns, 3)[rows][:, across]
    # A line between cells that are large enough for it.
    grid[np.flatnonzero(np.diff(rows, prepend=0)) if height >= 4 * lines else []] = 255
    grid[:, np.flatnonzero(np.diff(across, prepend=0)) if width >= 4 * columns else []] = 255
    return np.asarray(grid, np.uint8)


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


def data_uri(picture: Pixels, side: int = SHARP_SIDE) -> str:
    """A picture as a ``data:`` URI.

    Small ones are PNG, enlarged in whole steps, so that their pixels stay sharp; larger ones are JPEG: a page of
    photographs in PNG would have megabytes.
    """
    from PIL import Image

    factor = max(1, side // max(picture.shape[:2]))
    enlarged = np.ascontiguousarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))
    kind, options = ("PNG", {"optimize": True}) if max(picture.shape[:2]) <= side else ("JPEG", {"quality": 85})
    buffer = io.BytesIO()
    Image.fromarray(enlarged).save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
