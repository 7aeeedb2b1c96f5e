"""What training images go through beyond crops and mirrors: RandAugment, random erasing, mixup and CutMix.

RandAugment and random erasing are timm's, which is needed for them alone (extra "augment").
"""

from __future__ import annotations

import contextlib
import importlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dyndeploy.data import FloatArray, PreprocessingLike
from dyndeploy.errors import UsageError
from dyndeploy.training.recipe import DataRecipe, MixingRecipe


class TimmPolicy:
    """RandAugment of the cropped image and random erasing of the input, as timm's training transform chains them.

    Args:
        recipe: Its ``rand_augment`` and ``random_erasing``.
        preprocessing: Its mean fills what comes in from outside, its interpolation moves pixels.
        size: (height, width) of the inputs.

    Raises:
        UsageError: timm is missing, or does not know the policy.
    """

    def __init__(self, recipe: DataRecipe, preprocessing: PreprocessingLike, size: tuple[int, int]) -> None:
        self._augment: Any = None
        self._erase: Any = None
        if recipe.rand_augment is not None:
            fill = tuple(min(255, round(255 * value)) for value in preprocessing.mean)
            # Shifts go up to 45 % of the shorter side, as in timm's own transform.
            settings = {"translate_const": int(min(size) * 0.45), "img_mean": fill}
            settings["interpolation"] = Image.Resampling[preprocessing.interpolation.upper()]
            try:
                self._augment = _timm("auto_augment").rand_augment_transform(recipe.rand_augment, settings)
            except (AssertionError, ValueError, KeyError) as error:
                raise UsageError(
                    f"data.rand_augment: timm does not understand {recipe.rand_augment!r} ({error}): give a policy "
                    "such as rand-m9-mstd0.5-inc1."
                ) from error
        if recipe.random_erasing:
            self._erase = _timm("random_erasing").RandomErasing(recipe.random_erasing, mode="pixel", device="cpu")

    def image(self, image: Image.Image, seed: int) -> Image.Image:
        """Vary an RGB image of the input's size."""
        if self._augment is None:
            return image
        with _seeded(seed):
            varied: Image.Image = self._augment(image)
        return varied

    def input(self, values: FloatArray, seed: int) -> FloatArray:
        """Vary a normalised input (3, h, w)."""
        if self._erase is None:
            return values
        with _seeded(seed):
            erased: FloatArray = self._erase(torch.from_numpy(values.copy())).numpy()
        return erased


def _timm(module: str) -> Any:
    try:
        return importlib.import_module(f"timm.data.{module}")
    except ImportError as error:
        raise UsageError(
            f"data.rand_augment and data.random_erasing need timm ({error}): pip install 'dyndeploy[augment]', or "
            "leave both out of the recipe."
        ) from error


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # timm draws from the global generators of random, NumPy and torch.
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)  # noqa: NPY002


class Mix(NamedTuple):
    """How the images of a batch are mixed.

    Attributes:
        share: Share of an image's own label; the rest is its partner's.
        box: (top, bottom, left, right) of the part that comes from the partner, or None where whole images
            are blended.
    """

    share: float
    box: tuple[int, int, int, int] | None


def draw_mix(recipe: MixingRecipe, size: tuple[int, int], rng: np.random.Generator) -> Mix:
    """Draw one batch's mix: the same for all of its images.

    Args:
        recipe: Probabilities.
        size: (height, width) of the images.
        rng: Source of randomness.
    """
    if rng.random() >= recipe.probability:
        return Mix(1.0, None)
    cut = bool(recipe.cutmix) and (not recipe.mixup or rng.random() < recipe.switch_probability)
    if not cut:
        return Mix(float(rng.beta(recipe.mixup, recipe.mixup)), None)
    height, width = size
    side = np.sqrt(1 - rng.beta(recipe.cutmix, recipe.cutmix))
    rows, columns = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = (min(max(edge, 0), height) for edge in (y - rows // 2, y + rows // 2))
    left, right = (min(max(edge, 0), width) for edge in (x - columns // 2, x + columns // 2))
    # Boxes that reach over the border are smaller than drawn.
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def apply_mix(mix: Mix, images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mix every image with its neighbour: rows 0 and 1, 2 and 3, ...

    Neighbours, and not the batch in reverse as timm pairs it, because any even part of a batch then has its
    pairs within itself: parts and processes change nothing. Batches are in random order either way.

    Args:
        mix: From :func:`draw_mix`.
        images: Shape (N, 3, h, w), N even.
        labels: Class indices (N,).
        classes: Number of classes.

    Returns:
        Images of the same shape and probabilities (N, classes).
    """
    partners = _partners(images)
    if mix.box is None:
        mixed = images * mix.share + partners * (1 - mix.share)
    else:
        top, bottom, left, right = mix.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    own = F.one_hot(labels, classes).to(images.dtype)
    return mixed, own * mix.share + _partners(own) * (1 - mix.share)


def _partners(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows) // 2, 2, *rows.shape[1:]).flip(1).reshape(rows.shape)
