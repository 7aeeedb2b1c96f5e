"""The images of a recipe and the order in which they come."""

from __future__ import annotations

import functools
import logging
import math
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from dyndeploy.data import (
    FloatArray,
    ImageFolderDataset,
    PreprocessingLike,
    ShiftedImages,
    damaged_images,
    digits,
)
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.nets.factories import build_network
from dyndeploy.tasks.detection import DetectionTask
from dyndeploy.tasks.scenes import CONTRAST, SPLITS
from dyndeploy.training.augmentation import Mix, TimmPolicy, apply_mix
from dyndeploy.training.processes import Part, Processes
from dyndeploy.training.recipe import Recipe
from dyndeploy.training.scenes import (
    DIGIT_SIZE,
    SCENES,
    Collate,
    SceneBatch,
    SceneDigits,
    Scenes,
    annotated_images,
    batch_of,
    image_files,
)

HELD_OUT = 0.2
"""Fraction of the images that is not trained on where a folder does not say which."""

_HELD_OUT_BATCH = 256
_NAMED = 5
_SHARED_MEMORY = "/dev/shm"
_LOCKS = 256 << 10
_LOG = logging.getLogger("dyndeploy.training")


class Dataset(Protocol):
    """Inputs (3, h, w) with their class indices, by number."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Return an input and its class index."""


class ImageBatch(NamedTuple):
    """Images of a batch with their classes.

    Attributes:
        inputs: (N, 3, h, w).
        labels: Class indices (N,), or probabilities (N, classes).
    """

    inputs: Tensor
    labels: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> ImageBatch:
        """Return the batch on a device, with inputs of a dtype."""
        inputs = self.inputs.to(device, dtype, non_blocking=True, memory_format=torch.channels_last)
        return ImageBatch(inputs, self.labels.to(device, non_blocking=True))

    def mixed(self, mix: Mix, classes: int) -> ImageBatch:
        """Return the batch with its images mixed."""
        return ImageBatch(*apply_mix(mix, self.inputs, self.labels, classes))


Batch = ImageBatch | SceneBatch
"""What a network is trained and evaluated on at once."""

Images = Dataset | Scenes
"""Images with classes, or with objects."""


def datasets(recipe: Recipe) -> tuple[Images, Images]:
    """Return a recipe's training images and its held-out images.

    Raises:
        UsageError: The recipe names no folder, or an augmentation needs a package that is missing.
        InputError: Images are missing.
    """
    training, held_out = _classified(recipe) if recipe.detection is None else _annotated(recipe)
    if len(training) < recipe.batch_size:
        raise UsageError(
            f"batch_size: {recipe.batch_size} is more than the {len(training)} training images: give less "
            "(--batch N, or batch_size in the recipe)."
        )
    return training, held_out


def _annotated(recipe: Recipe) -> tuple[Scenes, Scenes]:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network: Any = build_network(recipe.model.name, recipe.model.options, recipe.model.imported)
    task: DetectionTask = network.task
    training, held_out = annotated_images(recipe, HELD_OUT, masks=task.masks)
    vary = recipe.detection if recipe.data.augment else None
    return Scenes(training, task, vary, recipe.seed), Scenes(held_out, task, None, recipe.seed)


def _classified(recipe: Recipe) -> tuple[Dataset, Dataset]:
    preprocessing: PreprocessingLike = recipe.preprocessing
    training: Dataset
    held_out: Dataset
    if recipe.data.dataset == "digits":
        split = digits(preprocessing, recipe.input_size, recipe.seed)
        # A sixteenth of the side is half a pixel of the original 8x8 images.
        distance = min(recipe.input_size) // 16
        training = ShiftedImages(split.train, distance, recipe.seed) if recipe.data.augment else split.train
        held_out = split.held_out
    elif recipe.data.dataset == "digit_scenes":
        sizes = recipe.data.digit_size or DIGIT_SIZE
        contrast = CONTRAST if recipe.data.contrast is None else recipe.data.contrast
        training, held_out = (
            SceneDigits(count, preprocessing, recipe.input_size, split, recipe.seed, sizes, contrast)
            for count, split in zip(recipe.data.scenes or SCENES, SPLITS, strict=True)
        )
    else:
        if recipe.data.folder is None:
            raise UsageError(
                f"The recipe {recipe.name} names no images: give a folder that holds 'train' and 'val', each "
                "with one sub-folder of images per class (--data DIR, or data.folder in the recipe)."
            )
        folder = Path(recipe.data.folder)
        policy = None
        if recipe.data.rand_augment is not None or recipe.data.random_erasing:
            policy = TimmPolicy(recipe.data, preprocessing, recipe.input_size)
        # A folder of classes alone is divided here; one with either half must have both.
        whole = not any((folder / part).exists() for part in ("train", "val"))
        training = ImageFolderDataset(
            folder if whole else folder / "train",
            preprocessing,
            recipe.input_size,
            augment=recipe.data.augment,
            seed=recipe.seed,
            policy=policy,
        )
        held_out = ImageFolderDataset(
            folder if whole else folder / "val", preprocessing, recipe.input_size, classes=training.classes
        )
        if whole:
            _divide(training, held_out, recipe.seed)
    return training, held_out


def _divide(training: ImageFolderDataset, held_out: ImageFolderDataset, seed: int) -> None:
    """Leave a fifth of the images of every class, at least one, to the held-out ones, and the others to training."""
    order = np.random.default_rng((seed, len(training))).permutation(len(training)).tolist()
    left: set[int] = set()
    for label, name in enumerate(training.classes):
        members = [index for index in order if training.samples[index][1] == label]
        if len(members) < 2:
            raise InputError(
                f"The class {name} has one image: give at least 2, so that one can be held out, or folders 'train' and "
                "'val'."
            )
        left |= set(members[: max(1, round(HELD_OUT * len(members)))])
    samples = training.samples
    training.samples = [sample for index, sample in enumerate(samples) if index not in left]
    held_out.samples = [sample for index, sample in enumerate(samples) if index in left]


def training_batches(dataset: Images, recipe: Recipe, epoch: int, parts: Sequence[Part]) -> Iterator[Batch]:
    """Iterate over this process's parts of an epoch's batches, a batch's parts one after the other.

    The order follows from the recipe's seed and the epoch, whatever else draws random numbers and however
    many processes there are. Images that fill no whole batch are dropped.
    """
    if isinstance(dataset, (ImageFolderDataset, ShiftedImages, SceneDigits, Scenes)):
        dataset.set_epoch(epoch)
    rng = np.random.default_rng((recipe.seed, epoch))
    order = rng.permutation(len(dataset)).tolist()
    if isinstance(dataset, Scenes):
        order = dataset.in_batches(order, recipe.batch_size, rng)
    first_rows = range(0, len(order) // recipe.batch_size * recipe.batch_size, recipe.batch_size)
    return _load(dataset, [order[row + part.start : row + part.stop] for row in first_rows for part in parts], recipe)


def held_out_batches(dataset: Images, recipe: Recipe, rank: int, processes: int) -> Iterator[Batch]:
    """Iterate over this process's share of the held-out images, none of which comes twice."""
    # The same batches for any number of processes: some averages are taken within a batch.
    size = min(recipe.batch_size, _HELD_OUT_BATCH)
    starts = range(rank * size, len(dataset), processes * size)
    rows = [list(range(start, min(start + size, len(dataset)))) for start in starts]
    return _load(dataset, rows, recipe)


def require_readable(datasets: Sequence[Images], workers: int, processes: Processes) -> None:
    """Look at all image files of a run, each process at its share; raises ``InputError``, which names the bad ones."""
    paths: list[Path] = []
    for dataset in datasets:
        if isinstance(dataset, ImageFolderDataset):
            paths += [path for path, _ in dataset.samples]
        elif isinstance(dataset, Scenes):
            paths += image_files(dataset.source)
    found = damaged_images(paths[processes.rank :: processes.size], threads=max(1, workers))
    bad = [fault for share in processes.gather(found) for fault in share]
    if bad:
        first = " ".join(bad[:_NAMED]) + (f" And {len(bad) - _NAMED} more." if len(bad) > _NAMED else "")
        raise InputError(f"{len(bad)} of {len(paths)} images cannot be read. {first} Replace or remove them.")


class _Items:
    """A dataset whose errors are items: raised in a worker, they would arrive as its traceback."""

    def __init__(self, dataset: Images) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except DyndeployError as error:
            return error


_Item = tuple[FloatArray, int] | DyndeployError


def _tensors(items: list[_Item]) -> Any:
    """A batch; in a worker it is in memory that the processes share."""
    return _error(items) or default_collate(items)


def _arrays(items: list[_Item]) -> Any:
    """A batch that a worker sends as it is, through a pipe."""
    error = _error(items)
    if error is not None:
        return error
    images, labels = zip(*items, strict=True)
    return np.stack(images), np.array(labels)


def _error(items: list[_Item]) -> DyndeployError | None:
    return next((item for item in items if isinstance(item, DyndeployError)), None)


def _load(dataset: Images, batches: list[list[int]], recipe: Recipe) -> Iterator[Batch]:
    workers, shared = _workers(recipe, max(map(len, batches), default=0))
    collate: Callable[[list[Any]], Any] = _tensors if shared else _arrays
    if isinstance(dataset, Scenes):
        collate = Collate(dataset.divisor, tensors=shared)
    # The loader draws a seed for its workers, which have no use for it, from the generator given here instead
    # of the global one: the number of workers changes nothing.
    loader: DataLoader[Any] = DataLoader(
        _Items(dataset),  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
    try:
        batch: Any
        for batch in loader:
            if isinstance(batch, DyndeployError):
                raise batch
            if isinstance(dataset, Scenes):
                yield batch_of(batch)
            else:
                yield ImageBatch(torch.as_tensor(batch[0]), torch.as_tensor(batch[1]))
    except (OSError, RuntimeError, MemoryError) as error:
        if not workers:
            raise
        # Whatever the loader or the system says of a process that could not be started, or was killed.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = lines[-1 if lines[0].startswith("Caught ") else 0].rstrip(". ")
        raise DyndeployError(
            f"The {workers} processes that read images failed: {why}. Memory may have run out, or {_SHARED_MEMORY} "
            "(see 'df'; in Docker --shm-size): lower data.workers; 0 reads in the training process."
        ) from error


def _workers(recipe: Recipe, images: int) -> tuple[int, bool]:
    """How many processes read batches of so many images, and whether there is shared memory for these to arrive in."""
    workers, (height, width) = recipe.data.workers, recipe.input_size
    if not workers:
        return 0, True
    try:
        multiprocessing.Lock()
        free = shutil.disk_usage(_SHARED_MEMORY).free if Path(_SHARED_MEMORY).is_dir() else math.inf
    except OSError:
        free = 0
    # Locks take a page each.
    if free < _LOCKS * (workers + 1):
        _say(
            f"{_SHARED_MEMORY} has no room for data.workers: images are read in the training process, which is slower."
        )
        return 0, True
    # Two batches per worker are on their way, and one or two are with the training process.
    if free < (2 * workers + 2) * images * 3 * height * width * 4:
        _say(
            f"{_SHARED_MEMORY} is too small for what data.workers read ahead: it comes through pipes, which is slower."
        )
        return workers, False
    return workers, True


@functools.cache
def _say(message: str) -> None:
    _LOG.warning("Note: %s Enlarge it (in Docker --shm-size 8g), or lower data.workers.", message)
