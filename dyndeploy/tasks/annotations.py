"""What is in an image: the objects that a detector is trained on, or measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dyndeploy.data import ByteArray, FloatArray, LabelArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image with the objects in it.

    Attributes:
        image: 8-bit RGB, shape (height, width, 3).
        boxes: Shape (n, 4), float32: x1, y1, x2, y2 in pixels, from the image's top left corner.
        labels: Shape (n,), int64: index of each class, from 0.
        crowd: Shape (n,), bool: regions with many objects that nobody told apart. Detectors are not trained on them,
            and what is found there counts neither for nor against.
        masks: Shape (n, height, width), bool; None where nobody asked for them.
        image_id: COCO's number of the image.
    """

    image: ByteArray
    boxes: FloatArray
    labels: LabelArray
    crowd: BoolArray
    masks: BoolArray | None
    image_id: int


class AnnotatedImages(Protocol):
    """Annotated images by index: :class:`dyndeploy.tasks.coco.CocoDataset` and the scenes of digits."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's category of each class."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        """Return one image with its objects."""

    def coco(self, indices: Sequence[int]) -> dict[str, Any]:
        """Content of a COCO annotation file for some of the images: ``images``, ``annotations`` and ``categories``."""


def boxes_around(masks: BoolArray) -> FloatArray:
    """The smallest boxes (n, 4) around the pixels of masks (n, height, width), none of which may be empty."""
    sides = []
    for axis in (1, 2):
        used: BoolArray = np.any(masks, axis)
        sides.append((used.argmax(1), used.shape[1] - used[:, ::-1].argmax(1)))
    (left, right), (top, bottom) = sides
    return np.stack([left, top, right, bottom], 1).astype(np.float32)


def run_lengths(mask: BoolArray) -> dict[str, Any]:
    """A mask (height, width) as COCO writes it in annotations without compressing: lengths of runs down the columns."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    # The first run is one of zeros, which may have no length.
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff(turns, prepend=0).tolist()}
