"""Scenes to learn detection from without a download: real digits on real photographs, with exact boxes and masks.

Everything comes with scikit-learn: its 1797 handwritten digits and its two photographs. The held-out scenes share
nothing with those to train on: their digits are the held-out ones of :func:`dyndeploy.data.digits`, and their
backgrounds come from the lower part of each photograph, which no training scene shows; a strip between the parts is in
neither.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dyndeploy.data import ByteArray, DigitPixels, digit_pixels, read_image, sample_photographs
from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.files import atomic_directory, write_json
from dyndeploy.tasks.annotations import AnnotatedImage, AnnotatedImages, BoolArray, boxes_around, run_lengths

SPLITS = ("train", "held_out")
"""Scenes to train on, and scenes that training never sees."""

_PARTS = {"train": (0.0, 0.58), "held_out": (0.62, 1.0)}
"""Which part of a photograph's height, from the top, serves as background."""

_TRIES = 20
"""So many places and colours are tried for a digit."""

CONTRAST = 70
"""Least difference of brightness, of 255, between a digit and what lies under it, where nobody says another."""

_HIDDEN = 0.5
"""No more than this fraction of a digit may lie under later ones."""

_BRIGHTNESS = np.array([0.299, 0.587, 0.114])


class DigitScenes:
    """Scenes of handwritten digits, each made when it is asked for; see :func:`digit_scenes`.

    A map-style dataset. The same seed, split, epoch and index always give the same scene.
    """

    def __init__(
        self,
        count: int,
        size: tuple[int, int],
        split: str,
        seed: int,
        digits_per_image: tuple[int, int],
        digit_size: tuple[int, int],
        contrast: int = CONTRAST,
    ) -> None:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if not 1 <= digit_size[0] <= digit_size[1] <= min(size):
            raise UsageError(
                f"Digits of {digit_size[0]} to {digit_size[1]} pixels do not fit on images of {size[0]}x{size[1]}: "
                "give a digit_size whose larger number is at most the shorter side."
            )
        if not 1 <= digits_per_image[0] <= digits_per_image[1]:
            raise UsageError(f"digits_per_image={digits_per_image} must be two numbers of at least 1, the lower first.")
        if count < 1 or seed < 0:
            raise UsageError(f"count={count} must be at least 1, and seed={seed} at least 0.")
        self.size, self.split, self.seed, self.epoch = size, split, seed, 0
        self.digits_per_image, self.digit_size = digits_per_image, digit_size
        self.classes = _digits().classes
        self.category_ids = tuple(range(1, len(self.classes) + 1))
        if not 0 <= contrast <= 127:
            raise UsageError(f"contrast={contrast} must be from 0 to 127: no more is possible on a medium grey.")
        self._count, self._contrast = count, contrast

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose scenes the next items are: each epoch has its own."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self._count

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Return one scene.

        Raises:
            IndexError: There is no such index.
        """
        if not -self._count <= index < self._count:
            raise IndexError(f"There are {self._count} scenes, and none with the index {index}.")
        index %= self._count
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), self.epoch, index))
        image = _background(rng, self.size, _PARTS[self.split])
        source = _digits()
        own = source.train if self.split == "train" else source.held_out
        wanted = int(rng.integers(self.digits_per_image[0], self.digits_per_image[1] + 1))
        masks: list[BoolArray] = []
        whole: list[int] = []
        labels: list[int] = []
        for chosen in rng.choice(own, wanted):
            for _ in range(_TRIES):
                alpha = _drawn(rng, source.pixels[chosen], self.digit_size)
                place = _placed(rng, alpha, self.size)
                ink = np.zeros(self.size, np.bool_)
                ink[place] = alpha >= 128
                visible = [mask & ~ink for mask in masks]
                if ink.any() and all(
                    mask.sum() >= (1 - _HIDDEN) * area for mask, area in zip(visible, whole, strict=True)
                ):
                    image[place] = _painted(rng, image[place], alpha, self._contrast)
                    masks = [*visible, ink]
                    whole.append(int(ink.sum()))
                    labels.append(int(source.labels[chosen]))
                    break
        stacked = np.stack(masks)
        return AnnotatedImage(
            image=image,
            boxes=boxes_around(stacked),
            labels=np.array(labels, np.int64),
            crowd=np.zeros(len(labels), np.bool_),
            masks=stacked,
            image_id=index + 1,
        )

    def coco(self, indices: Sequence[int]) -> dict[str, Any]:
        """Content of a COCO annotation file for some of the scenes."""
        return _coco([(self[index], f"{index:06}.png") for index in indices], self)


def digit_scenes(
    count: int,
    size: tuple[int, int] = (128, 128),
    split: str = "train",
    seed: int = 0,
    digits_per_image: tuple[int, int] = (1, 5),
    digit_size: tuple[int, int] = (14, 40),
    contrast: int = CONTRAST,
) -> DigitScenes:
    """Return scenes of scikit-learn's digits on its photographs, with exact boxes and masks.

    Digits are enlarged, turned by up to 15 degrees and coloured, and later ones may hide up to half of earlier ones. A
    pixel belongs to a digit if at least half of its colour is the digit's; masks and boxes are of what is visible.

    Args:
        count: Number of scenes. They are made when asked for: a large number costs nothing.
        size: (height, width) of each, in pixels.
        split: "train", or "held_out": other digits on other parts of the photographs.
        seed: Decides everything but which digits are held out.
        digits_per_image: Fewest and most digits; where no place is found for one, there are fewer, but at least one.
        digit_size: Smallest and largest size of a digit, in pixels, before it is turned.
        contrast: Least difference of brightness, of 255, between a digit and what lies under it.

    Raises:
        UsageError: An unknown split, or numbers that make no scene.
        InputError: The installed scikit-learn lacks its photographs.
    """
    return DigitScenes(count, size, split, seed, digits_per_image, digit_size, contrast)


def write_coco(folder: str | os.PathLike[str], dataset: AnnotatedImages) -> None:
    """Write annotated images as PNG files in ``folder/images`` and a COCO file, ``folder/annotations.json``.

    The folder appears when everything is in it.

    Raises:
        OutputError: The folder exists, or cannot be written.
    """
    with atomic_directory(folder) as temporary:
        images = temporary / "images"
        images.mkdir()
        items = []
        for index in range(len(dataset)):
            item, name = dataset[index], f"{index:06}.png"
            Image.fromarray(item.image).save(images / name)
            items.append((item, name))
        write_json(temporary / "annotations.json", _coco(items, dataset))


def _coco(items: Sequence[tuple[AnnotatedImage, str]], dataset: AnnotatedImages) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for item, name in items:
        height, width = item.image.shape[:2]
        images.append({"id": item.image_id, "file_name": name, "height": height, "width": width})
        for index, (box, label) in enumerate(zip(item.boxes.tolist(), item.labels.tolist(), strict=True)):
            size = [box[2] - box[0], box[3] - box[1]]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": item.image_id,
                "category_id": dataset.category_ids[label],
                "bbox": [*box[:2], *size],
                "area": size[0] * size[1],
                "iscrowd": int(item.crowd[index]),
            }
            if item.masks is not None:
                annotation["area"] = int(item.masks[index].sum())
                annotation["segmentation"] = run_lengths(item.masks[index])
            annotations.append(annotation)
    names = zip(dataset.category_ids, dataset.classes, strict=True)
    categories = [{"id": number, "name": name} for number, name in names]
    # pycocotools before 2.0.11 wants "info", though COCO's evaluation has no use for it.
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


@functools.cache
def _digits() -> DigitPixels:
    return digit_pixels()


@functools.cache
def _photographs() -> tuple[Image.Image, ...]:
    return tuple(Image.fromarray(read_image(path)) for path in sample_photographs())


def _background(rng: np.random.Generator, size: tuple[int, int], part: tuple[float, float]) -> ByteArray:
    """A crop of a part of a photograph, resized, mirrored at random and tinted."""
    photographs = _photographs()
    photograph = photographs[rng.integers(len(photographs))]
    start, stop = (round(photograph.height * at) for at in part)
    fits = min((stop - start) / size[0], photograph.width / size[1])
    factor = min(rng.uniform(0.75, 1.5), rng.uniform(0.75, 1) * fits)
    height, width = (max(1, int(side * factor)) for side in size)
    left, top = int(rng.integers(photograph.width - width + 1)), int(rng.integers(start, stop - height + 1))
    crop = photograph.crop((left, top, left + width, top + height))
    # Along the rows, then along the columns: Pillow 13 chooses the order itself, which changes how pixels are rounded.
    crop = crop.resize((size[1], height), Image.Resampling.BILINEAR).resize(
        (size[1], size[0]), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(crop)[:, :: 1 if rng.integers(2) else -1]
    return np.clip(np.rint(pixels * rng.uniform(0.7, 1.2, 3)), 0, 255).astype(np.uint8)


def _drawn(rng: np.random.Generator, digit: ByteArray, sizes: tuple[int, int]) -> ByteArray:
    """How much of each pixel a digit covers, of 255: enlarged, turned, with sharp edges."""
    height = int(rng.integers(sizes[0], sizes[1] + 1))
    width = min(max(round(height * rng.uniform(0.75, 1.25)), sizes[0]), sizes[1])
    image = Image.fromarray(digit)
    image = image.resize((width, 8), Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BILINEAR)
    turned = np.asarray(image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)).astype(np.int64)
    alpha = np.clip((turned - 96) * 4, 0, 255).astype(np.uint8)
    rows, columns = (np.flatnonzero((alpha > 0).any(axis)) for axis in (1, 0))
    if not len(rows):
        return alpha
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _placed(rng: np.random.Generator, alpha: ByteArray, size: tuple[int, int]) -> tuple[slice, slice]:
    (height, width), (top, left) = alpha.shape, (rng.integers(0, np.array(size) - alpha.shape + 1)).tolist()
    return slice(top, top + height), slice(left, left + width)


def _painted(rng: np.random.Generator, under: ByteArray, alpha: ByteArray, contrast: int) -> ByteArray:
    """A digit in a colour that stands out from what lies under it."""
    cover = alpha[..., None].astype(np.int64)
    brightness = float((under * cover).sum((0, 1)) @ _BRIGHTNESS / cover.sum())
    for _ in range(_TRIES):
        colour = rng.integers(0, 256, 3)
        if abs(colour @ _BRIGHTNESS - brightness) >= contrast:
            break
    else:
        colour = np.full(3, 255 if brightness < 128 else 0)
    blended: npt.NDArray[np.int64] = (under * (255 - cover) + colour * cover + 127) // 255
    return blended.astype(np.uint8)
