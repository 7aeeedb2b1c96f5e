"""Images with objects: where they are, how they vary in training, and how several become one batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dyndeploy.data import FloatArray, LabelArray, PreprocessingLike, normalise
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.tasks.annotations import AnnotatedImage, AnnotatedImages, BoolArray
from dyndeploy.tasks.coco import CocoDataset
from dyndeploy.tasks.detection import DetectionTask, Placement, resize
from dyndeploy.tasks.scenes import CONTRAST, SPLITS, digit_scenes
from dyndeploy.training.recipe import DataRecipe, DetectionRecipe, Recipe

SCENES = (2000, 200)
"""Scenes of digits in an epoch, and held out, where the recipe does not say."""

DIGITS, DIGIT_SIZE = (1, 5), (14, 40)
"""Fewest and most digits of a scene, and their smallest and largest size in pixels, where the recipe does not say."""

PARTS = ("train", "val")

_IMAGES = ("{}", "{}2017", "images/{}", "images/{}2017")
_ANNOTATIONS = (
    "annotations/{}.json",
    "annotations/instances_{}.json",
    "annotations/instances_{}2017.json",
    "{}.json",
)
_PAIRS = (("{}/images", "{}/annotations.json"), ("{}", "{}/_annotations.coco.json"))
"""Usual names within a folder: of images and of annotations each by themselves, and of both in a folder of a part."""

_WHOLE = ("images", "annotations.json")

_LOG = logging.getLogger("dyndeploy.training")


class SceneDigits:
    """Scenes of one digit each as a classifier takes them, by number: see :func:`dyndeploy.tasks.scenes.digit_scenes`.

    Args:
        count: How many there are.
        preprocessing: How pixels become inputs.
        size: (height, width) in pixels.
        split: "train" or "held_out".
        seed: Of the scenes.
        digit_size: Smallest and largest size of the digits in pixels; what is larger than the image is made smaller.
        contrast: See :func:`~dyndeploy.tasks.scenes.digit_scenes`.

    Attributes:
        classes: Names of the classes.
    """

    def __init__(
        self,
        count: int,
        preprocessing: PreprocessingLike,
        size: tuple[int, int],
        split: str,
        seed: int,
        digit_size: tuple[int, int] = DIGIT_SIZE,
        contrast: int = CONTRAST,
    ) -> None:
        smallest, largest = (min(side, *size) for side in digit_size)
        self._scenes = digit_scenes(count, size, split, seed, (1, 1), (smallest, largest), contrast)
        self._preprocessing = preprocessing
        self.classes = self._scenes.classes

    def set_epoch(self, epoch: int) -> None:
        """Choose the scenes: each epoch has its own."""
        self._scenes.set_epoch(epoch)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self._scenes)

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Return an input (3, h, w) and its class index."""
        scene = self._scenes[index]
        return normalise(scene.image, self._preprocessing), int(scene.labels[0])


class CocoFiles(NamedTuple):
    """Where annotated images are.

    Attributes:
        images: Folder.
        annotations: COCO file.
    """

    images: Path
    annotations: Path


def coco_files(data: DataRecipe) -> tuple[CocoFiles, ...]:
    """Return where the training images and the held-out ones are; one place where they are still to be divided.

    Without names in the recipe these are looked for, with ``train`` and then ``val`` for ``{}``: images in ``{}``,
    ``{}2017`` or ``images/{}`` with annotations in ``annotations/{}.json``, ``annotations/instances_{}.json``,
    ``annotations/instances_{}2017.json`` or ``{}.json``; ``{}/images`` with ``{}/annotations.json``; ``{}`` with
    ``{}/_annotations.coco.json``; or ``images`` with ``annotations.json``, which are then divided.

    Raises:
        UsageError: The recipe names no folder, or names that do not belong together.
        InputError: Nothing is found.
    """
    if data.folder is None:
        raise UsageError(
            "The recipe names no images: give the folder that holds images and COCO annotations (--data DIR, or "
            "data.folder in the recipe)."
        )
    folder = Path(data.folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the folder that holds images and COCO annotations.")
    if data.annotations is not None:
        count = len(data.annotations)
        images = data.images or (PARTS if count == 2 else _WHOLE[:1])
        if len(images) not in (1, count):
            raise UsageError(
                f"data.images names {len(images)} folders and data.annotations {count} file: give as many."
            )
        folders = images if len(images) == count else images * count
        return tuple(
            CocoFiles(folder / one, folder / other) for one, other in zip(folders, data.annotations, strict=True)
        )
    if data.images is not None:
        raise UsageError("data.images: give data.annotations as well.")
    found = tuple(files for files in (_usual(folder, part) for part in PARTS) if files is not None)
    if len(found) == len(PARTS):
        return found
    whole = CocoFiles(folder / _WHOLE[0], folder / _WHOLE[1])
    if not found and whole.images.is_dir() and whole.annotations.is_file():
        return (whole,)
    lacking = PARTS[len(found)] if not found or _usual(folder, PARTS[0]) is not None else PARTS[0]
    raise InputError(
        f"{folder} has no images and COCO annotations for '{lacking}' under the usual names, such as {lacking} with "
        f"annotations/{lacking}.json, or annotations/instances_{lacking}2017.json. Name them in the recipe: "
        "data.images and data.annotations."
    )


def _usual(folder: Path, part: str) -> CocoFiles | None:
    for images, listed in _PAIRS:
        files = CocoFiles(folder / images.format(part), folder / listed.format(part))
        if files.images.is_dir() and files.annotations.is_file():
            return files
    places = [folder / name.format(part) for name in _IMAGES]
    lists = [folder / name.format(part) for name in _ANNOTATIONS]
    image_folder = next((place for place in places if place.is_dir()), None)
    file = next((place for place in lists if place.is_file()), None)
    return None if image_folder is None or file is None else CocoFiles(image_folder, file)


class Chosen:
    """Some of many annotated images; see :class:`~dyndeploy.tasks.annotations.AnnotatedImages`.

    Args:
        source: All of them.
        indices: Which.
    """

    def __init__(self, source: AnnotatedImages, indices: Sequence[int]) -> None:
        self.source, self.indices = source, tuple(indices)

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.source.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's category of each class."""
        return self.source.category_ids

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Return one image with its objects."""
        return self.source[self.indices[index]]

    def coco(self, indices: Sequence[int]) -> dict[str, Any]:
        """Content of a COCO annotation file for some of the images."""
        return self.source.coco([self.indices[index] for index in indices])


def annotated_images(recipe: Recipe, held_out: float, *, masks: bool) -> tuple[AnnotatedImages, AnnotatedImages]:
    """Return a recipe's training images and its held-out images, with their objects.

    Args:
        recipe: The run.
        held_out: Part of the images that is held out where nothing says which.
        masks: Whether the objects' masks are needed.

    Raises:
        UsageError: See :func:`coco_files`.
        InputError: Images or annotations are missing or unsound, or there is no object to learn from, or to be found.
    """
    if recipe.data.dataset == "digit_scenes":
        data, counts = recipe.data, recipe.data.scenes or SCENES
        digits, sizes = data.digits_per_image or DIGITS, data.digit_size or DIGIT_SIZE
        contrast = CONTRAST if data.contrast is None else data.contrast
        training, others = (
            digit_scenes(count, recipe.input_size, split, recipe.seed, digits, sizes, contrast)
            for count, split in zip(counts, SPLITS, strict=True)
        )
        return training, others
    places = coco_files(recipe.data)
    found = [CocoDataset(places[0].images, places[0].annotations, masks=masks)]
    found += [CocoDataset(p.images, p.annotations, masks=masks, classes=found[0].classes) for p in places[1:]]
    for place, dataset in zip(places, found, strict=True):
        for note in dataset.notes:
            _LOG.warning("Note: %s: %s", place.annotations, note)
        if not any(not item["iscrowd"] for item in dataset.coco(range(len(dataset)))["annotations"]):
            raise InputError(
                f"{place.annotations} holds no objects, so there is nothing to learn from, or to be found. Give a file "
                "whose list of annotations is not empty."
            )
    if len(found) > 1:
        return found[0], found[1]
    order = np.random.default_rng((recipe.seed, len(found[0]))).permutation(len(found[0])).tolist()
    if len(order) < 2:
        raise InputError(f"{places[0].annotations} lists one image: give at least 2, so that one can be held out.")
    left = max(1, round(held_out * len(order)))
    return Chosen(found[0], sorted(order[left:])), Chosen(found[0], sorted(order[:left]))


def image_files(images: AnnotatedImages) -> list[Path]:
    """Return the files of images that have any."""
    if isinstance(images, Chosen):
        paths = image_files(images.source)
        return [paths[index] for index in images.indices] if paths else []
    return [image.path for image in images.images] if isinstance(images, CocoDataset) else []


@dataclass(frozen=True, eq=False)
class Scene:
    """One image as a detector takes it.

    Attributes:
        input: (3, h, w), normalised, not padded.
        boxes: (n, 4) in pixels of the input, crowds left out, as in the others.
        labels: (n,).
        masks: (n, h, w) uint8 in the same pixels, or None.
        index: Of the image in its dataset.
        placement: Where the image lies in the input.
    """

    input: FloatArray
    boxes: FloatArray
    labels: LabelArray
    masks: Any
    index: int
    placement: Placement


class Scenes:
    """Annotated images as inputs of a detector, by number; training images are mirrored and scaled at random.

    An item depends on the seed, the epoch and its index alone.

    Args:
        source: The images.
        task: How images become inputs.
        vary: How they vary; None for not at all.
        seed: Of what varies.

    Attributes:
        source: The images.
        classes: Name of each class.
        divisor: Height and width of batches are multiples of it.
    """

    def __init__(self, source: AnnotatedImages, task: DetectionTask, vary: DetectionRecipe | None, seed: int) -> None:
        self.source, self.classes = source, source.classes
        self._task, self._vary, self._seed, self._epoch = task, vary, seed, 0
        self.divisor = task.divisor

    def set_epoch(self, epoch: int) -> None:
        """Choose how items vary; images that are made anew for each epoch are told as well."""
        self._epoch = epoch
        tell = getattr(self.source, "set_epoch", None)
        if tell is not None and self._vary is not None:
            tell(epoch)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> Scene:
        """Return one image as an input, with its objects.

        Raises:
            InputError: The image or a mask cannot be read.
            UsageError: OpenCV, which resizes, is missing.
        """
        found = self.source[index]
        rng = np.random.default_rng((self._seed, self._epoch, index))
        size, mirrored = self._task.size, False
        if self._vary is not None:
            factor = rng.uniform(*self._vary.scale)
            size = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
            mirrored = bool(rng.random() < self._vary.flip)
        height, width = found.image.shape[:2]
        inside = self._task.resized(height, width, size)
        placement = Placement(height, width, inside)
        own = ~found.crowd
        limit = np.asarray(inside[::-1] * 2, np.float32)
        boxes = np.clip(found.boxes[own] * np.asarray(placement.scale * 2, np.float32), 0, limit)
        pixels = resize(found.image, inside)
        masks = None if found.masks is None or not self._task.masks else resized_masks(found.masks[own], inside)
        if mirrored:
            pixels = pixels[:, ::-1]
            boxes = np.stack([limit[0] - boxes[:, 2], boxes[:, 1], limit[0] - boxes[:, 0], boxes[:, 3]], 1)
            masks = None if masks is None else masks[:, :, ::-1]
        values = self._task.normalise(pixels)
        return Scene(values, boxes.astype(np.float32), found.labels[own], masks, index, placement)

    def landscape(self, index: int) -> bool:
        """Whether an image is wider than high, as far as that is known without reading it."""
        source: Any = self.source
        if isinstance(source, Chosen):
            source, index = source.source, source.indices[index]
        if not isinstance(source, CocoDataset):
            return True
        image = source.images[index]
        return image.width > image.height

    def in_batches(self, order: Sequence[int], batch_size: int, rng: np.random.Generator) -> list[int]:
        """Return the order so that batches hold images of one orientation, which need less padding.

        Batches of both come in random order, and at the end those that are left over of either.
        """
        if len({self.landscape(index) for index in order}) < 2:
            return list(order)
        batches: list[list[int]] = []
        rest: list[int] = []
        for wide in (True, False):
            own = [index for index in order if self.landscape(index) == wide]
            whole = len(own) // batch_size * batch_size
            batches += [own[start : start + batch_size] for start in range(0, whole, batch_size)]
            rest += own[whole:]
        return [index for number in rng.permutation(len(batches)).tolist() for index in batches[number]] + rest


def resized_masks(masks: BoolArray, size: tuple[int, int]) -> Any:
    """Return masks (n, h, w) at another (height, width), as uint8: the nearest pixel, as mmdetection takes it."""
    rows, columns = (
        np.minimum(np.arange(new) * old // new, old - 1) for new, old in zip(size, masks.shape[1:], strict=True)
    )
    return np.ascontiguousarray(masks[:, rows][:, :, columns].astype(np.uint8))


class SceneBatch(NamedTuple):
    """Images of a batch with their objects.

    Attributes:
        inputs: (N, 3, H, W), padded at the right and at the bottom with 0.
        image_size: (N, 2): (height, width) before padding.
        targets: See :data:`dyndeploy.nets.detection_losses.Target`.
        indices: Of the images in their dataset.
        placements: Where they lie in the inputs.
    """

    inputs: Tensor
    image_size: Tensor
    targets: tuple[dict[str, Tensor], ...]
    indices: tuple[int, ...]
    placements: tuple[Placement, ...]

    def to(self, device: torch.device, dtype: torch.dtype) -> SceneBatch:
        """Return the batch on a device, with inputs and boxes of a dtype."""
        inputs = self.inputs.to(device, dtype, non_blocking=True, memory_format=torch.channels_last)
        targets = tuple(
            {name: value.to(device, dtype if name == "boxes" else value.dtype) for name, value in target.items()}
            for target in self.targets
        )
        return self._replace(inputs=inputs, image_size=self.image_size.to(device, dtype), targets=targets)

    def alike(self, divisor: int) -> Iterator[SceneBatch]:
        """Iterate over batches of images that have the same size, each with the padding that it has alone."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, placement in enumerate(self.placements):
            height, width = (math.ceil(side / divisor) * divisor for side in placement.resized)
            groups.setdefault((height, width), []).append(row)
        for (height, width), rows in groups.items():
            yield SceneBatch(
                self.inputs[rows, :, :height, :width],
                self.image_size[rows],
                tuple(self.targets[row] for row in rows),
                tuple(self.indices[row] for row in rows),
                tuple(self.placements[row] for row in rows),
            )


class Collate:
    """Puts scenes together, or passes on the error among them; arrays instead of tensors go through a pipe.

    Args:
        divisor: Height and width of inputs are multiples of it.
        tensors: Whether to give a batch of tensors: in a worker these are in memory that the processes share.
    """

    def __init__(self, divisor: int, *, tensors: bool) -> None:
        self._divisor, self._tensors = divisor, tensors

    def __call__(self, items: list[Scene | DyndeployError]) -> Any:
        """Return a batch, what :func:`batch_of` makes one of, or an error."""
        scenes: list[Scene] = []
        for item in items:
            if isinstance(item, DyndeployError):
                return item
            scenes.append(item)
        sides = [max(scene.input.shape[axis] for scene in scenes) for axis in (1, 2)]
        height, width = (math.ceil(side / self._divisor) * self._divisor for side in sides)
        inputs = np.zeros((len(scenes), 3, height, width), np.float32)
        for row, scene in zip(inputs, scenes, strict=True):
            row[:, : scene.input.shape[1], : scene.input.shape[2]] = scene.input
        return batch_of((inputs, scenes)) if self._tensors else (inputs, scenes)


def batch_of(content: Any) -> SceneBatch:
    """Return what :class:`Collate` gives as a batch."""
    if isinstance(content, SceneBatch):
        return content
    inputs, scenes = content
    targets = []
    for scene in scenes:
        target = {"boxes": torch.from_numpy(scene.boxes), "labels": torch.from_numpy(scene.labels)}
        targets.append(target if scene.masks is None else {**target, "masks": torch.from_numpy(scene.masks.copy())})
    return SceneBatch(
        torch.from_numpy(inputs),
        torch.tensor([scene.placement.resized for scene in scenes], dtype=torch.float32),
        tuple(targets),
        tuple(scene.index for scene in scenes),
        tuple(scene.placement for scene in scenes),
    )
