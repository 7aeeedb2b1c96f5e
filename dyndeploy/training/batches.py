"""The images of a recipe and the order in which they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dyndeploy.data import FloatArray, ImageFolderDataset, PreprocessingLike, ShiftedImages, digits
from dyndeploy.errors import UsageError
from dyndeploy.training.augmentation import TimmPolicy
from dyndeploy.training.processes import Part
from dyndeploy.training.recipe import Recipe

_HELD_OUT_BATCH = 256


class Dataset(Protocol):
    """Inputs (3, h, w) with their class indices, by number."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Return an input and its class index."""


def datasets(recipe: Recipe) -> tuple[Dataset, Dataset]:
    """Return a recipe's training images and its held-out images.

    Raises:
        UsageError: The recipe names no folder, or an augmentation needs a package that is missing.
        InputError: Images are missing.
    """
    preprocessing: PreprocessingLike = recipe.model.traits.preprocessing
    training: Dataset
    held_out: Dataset
    if recipe.data.dataset == "digits":
        split = digits(preprocessing, recipe.input_size, recipe.seed)
        # A sixteenth of the side is half a pixel of the original 8x8 images.
        distance = min(recipe.input_size) // 16
        training = ShiftedImages(split.train, distance, recipe.seed) if recipe.data.augment else split.train
        held_out = split.held_out
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
        training = ImageFolderDataset(
            folder / "train",
            preprocessing,
            recipe.input_size,
            augment=recipe.data.augment,
            seed=recipe.seed,
            policy=policy,
        )
        held_out = ImageFolderDataset(folder / "val", preprocessing, recipe.input_size, classes=training.classes)
    if len(training) < recipe.batch_size:
        raise UsageError(
            f"batch_size: {recipe.batch_size} is more than the {len(training)} training images: give less."
        )
    return training, held_out


def training_batches(
    dataset: Dataset, recipe: Recipe, epoch: int, parts: Sequence[Part]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over this process's parts of an epoch's batches, a batch's parts one after the other.

    The order follows from the recipe's seed and the epoch, whatever else draws random numbers and however
    many processes there are. Images that fill no whole batch are dropped.
    """
    if isinstance(dataset, (ImageFolderDataset, ShiftedImages)):
        dataset.set_epoch(epoch)
    order = np.random.default_rng((recipe.seed, epoch)).permutation(len(dataset)).tolist()
    first_rows = range(0, len(order) // recipe.batch_size * recipe.batch_size, recipe.batch_size)
    return _load(dataset, [order[row + part.start : row + part.stop] for row in first_rows for part in parts], recipe)


def held_out_batches(dataset: Dataset, recipe: Recipe, rank: int, processes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over this process's share of the held-out images, none of which comes twice."""
    # The same batches for any number of processes: some averages are taken within a batch.
    size = min(recipe.batch_size, _HELD_OUT_BATCH)
    starts = range(rank * size, len(dataset), processes * size)
    rows = [list(range(start, min(start + size, len(dataset)))) for start in starts]
    return _load(dataset, rows, recipe)


def _load(dataset: Dataset, batches: list[list[int]], recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    # The loader draws a seed for its workers, which have no use for it, from the generator given here instead
    # of the global one: the number of workers changes nothing.
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=recipe.data.workers,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)
