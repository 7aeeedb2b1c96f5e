"""What a measurement feeds: whole batches by input name, and which masks are forced."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import Bundle, Manifest, MaskInfo
from dyndeploy.data import image_paths, images_from_folder, read_image, spread
from dyndeploy.errors import InputError, UsageError
from dyndeploy.files import shown
from dyndeploy.graphs.forced import forced_masks
from dyndeploy.measure.profile import DATA, FORCED

DEFAULT_RATES = (0.1, 0.25, 0.5, 0.75, 1.0)
MASK_DRAWS = 4
"""Draws of forced masks per rate: a single draw of a few patches could be an odd one."""

Feeds = dict[str, npt.NDArray[Any]]
Masks = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Schedule:
    """How much is measured.

    Attributes:
        rates: Rates to force, each in [0, 1] and once.
        repeats: Rounds; None takes as many as fill ``min_seconds``, between 12 and 200.
        min_seconds: Seconds that the rounds fill where ``repeats`` is None.
        warmup: Untimed runs of every session and input before the rounds.
        images: At most so many samples of a folder, spread evenly over it.
        seed: Seed of the random numbers that the forced masks are drawn with.
    """

    rates: tuple[float, ...] = DEFAULT_RATES
    repeats: int | None = None
    min_seconds: float = 10.0
    warmup: int = 3
    images: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured; raises ``UsageError``."""
        if not self.rates:
            raise UsageError("Give at least one rate in [0, 1].")
        for rate in self.rates:
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.0 <= rate <= 1.0:
                raise UsageError(f"The rate {rate!r} is not a number in [0, 1].")
        object.__setattr__(self, "rates", tuple(dict.fromkeys(float(rate) for rate in self.rates)))
        if self.repeats is not None and (isinstance(self.repeats, bool) or self.repeats < 2):
            raise UsageError(f"repeats={self.repeats} is not valid: give at least 2, one run has no spread.")
        if not (math.isfinite(self.min_seconds) and self.min_seconds >= 0) or self.seed < 0:
            raise UsageError("min_seconds and seed must not be negative.")
        if self.warmup < 1 or self.images < 1:
            raise UsageError("warmup and images must be at least 1.")

    @property
    def draws(self) -> int:
        """Draws of forced masks per rate."""
        return MASK_DRAWS if self.repeats is None else min(MASK_DRAWS, self.repeats)

    def batches(self, bundle: Bundle, data: str | os.PathLike[str] | None) -> tuple[list[Feeds], dict[str, Any]]:
        """The batches to feed and where they come from; see :func:`input_batches`."""
        limit = self.images if self.repeats is None else min(self.images, self.repeats * bundle.manifest.batch)
        batches, source = input_batches(bundle, data, limit)
        return batches[: self.repeats], source

    def settings(self, rounds: int, batches: int, source: Mapping[str, Any]) -> dict[str, Any]:
        """What a profile says of it."""
        return {
            "rounds": rounds,
            "warmup": self.warmup,
            "seed": self.seed,
            "images": dict(source),
            "image_batches": batches,
            "mask_draws": min(self.draws, rounds),
        }


def require_comparable(bundle: Bundle) -> None:
    """Raise ``UsageError`` unless the bundle has masks and a static twin to compare with."""
    if bundle.static is None:
        raise UsageError(f"The bundle {bundle.path} has no static twin to compare with. Export it again with --static.")
    if not bundle.manifest.masks:
        raise UsageError(f"The bundle {bundle.path} has no masks: a static network has nothing to compare with.")


def input_batches(
    bundle: Bundle, data: str | os.PathLike[str] | None, limit: int
) -> tuple[list[Feeds], dict[str, Any]]:
    """Whole batches by input name; the last one is filled up from the start.

    Args:
        bundle: Its inputs may be any tensors whose first axis is the batch.
        data: A folder of images, for a detector or a network whose one input is an image; None takes the reference
            tensors.
        limit: At most so many images of a folder.

    Returns:
        The batches, and where they come from: ``source``, ``count`` and ``repeated_to_fill_batches``.

    Raises:
        UsageError: A folder of images for a network that takes something else.
        InputError: Images cannot be read, or a reference tensor has the wrong shape.
        BundleError: A reference tensor is missing.
    """
    manifest = bundle.manifest
    if data is None:
        arrays, origin = bundle.reference_inputs(), manifest.reference.source
    else:
        arrays, origin = _of_folder(manifest, data, limit), f"folder {shown(os.path.basename(os.path.abspath(data)))}"
    samples = {len(array) for array in arrays.values()}
    for info in manifest.inputs:
        if arrays[info.name].shape[1:] != info.shape[1:] or len(samples) != 1 or samples == {0}:
            shape = ("n", *info.shape[1:])
            raise InputError(f"'{info.name}' must be ({', '.join(map(str, shape))}), not {arrays[info.name].shape}.")
    batch, samples_given = manifest.batch, samples.pop()
    count = -(-samples_given // batch)
    index = (np.arange(count * batch) % samples_given).reshape(count, batch)
    types = {info.name: info.dtype for info in manifest.inputs}
    batches = [
        {name: np.ascontiguousarray(array[rows], types[name]) for name, array in arrays.items()} for rows in index
    ]
    source = {"source": origin, "count": samples_given, "repeated_to_fill_batches": count * batch - samples_given}
    return batches, source


def _of_folder(manifest: Manifest, folder: str | os.PathLike[str], limit: int) -> Feeds:
    """What a network is fed for the images of a folder; of a detector resized and padded to its own size of inputs."""
    if manifest.detection is None:
        preprocessing, size = manifest.images()
        return {manifest.inputs[0].name: images_from_folder(folder, preprocessing, size, limit=limit)}
    task, paths = manifest.detection.task(), image_paths(folder)
    chosen = [paths[index] for index in spread(len(paths), limit)]
    feeds = [task.prepare(read_image(path), bucket=manifest.input_size)[0] for path in chosen]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


@dataclass(frozen=True)
class Configuration:
    """One thing to measure: a forced rate, or the data's own masks.

    Attributes:
        kind: ``"forced"`` or ``"data"``: who decides.
        rate: The forced rate, or the mean of the masks.
        feeds: Inputs of the network, one entry per input of the measurement.
        masks: What the operators see, one entry per input of the measurement.
    """

    kind: str
    rate: float
    feeds: tuple[Feeds, ...]
    masks: tuple[Masks, ...]

    @property
    def label(self) -> str:
        """For a progress bar."""
        return "the data's own masks" if self.kind == DATA else f"rate {self.rate:g}"


def forced_configurations(
    masks: Sequence[MaskInfo], batches: Sequence[Feeds], schedule: Schedule
) -> list[Configuration]:
    """One configuration per rate, with masks drawn anew for every input."""
    result = []
    for position, rate in enumerate(schedule.rates):
        drawn = [
            forced_masks(masks, rate, seed=schedule.seed + 1000 * position + draw) for draw in range(schedule.draws)
        ]
        feeds = tuple(batches[draw % len(batches)] for draw in range(schedule.draws))
        result.append(Configuration(FORCED, rate, feeds, tuple(drawn)))
    return result


def own_configuration(batches: Sequence[Feeds], own: Sequence[Masks]) -> Configuration:
    """The configuration of the masks that the batches cause."""
    rate = float(np.mean([mask.mean() for masks in own for mask in masks.values()]))
    return Configuration(DATA, rate, tuple(batches), tuple(own))
