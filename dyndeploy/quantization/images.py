"""Images to calibrate on: a folder, labelled or not, or scikit-learn's digits that networks are trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import Bundle
from dyndeploy.data import DIGITS, LabelledImages, digits, fingerprint, image_paths, images_of_classes, load_image
from dyndeploy.errors import InputError, UsageError
from dyndeploy.files import shown

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CalibrationImages:
    """Images that a network can take, some of them chosen to calibrate on.

    Attributes:
        count: How many there are.
        load: Gives one by its number, (3, H, W), preprocessed.
        name: Says which one is meant, for messages.
        labels: Class of each; None where they are not known.
        unlabelled: Why they are not, as a sentence; empty where they are.
        source: Where they come from, in words.
    """

    count: int
    load: Callable[[int], Array]
    name: Callable[[int], str]
    labels: Sequence[int] | None
    unlabelled: str
    source: str

    @classmethod
    def open(cls, bundle: Bundle, data: str | os.PathLike[str]) -> CalibrationImages:
        """Find the images; they are read when they are needed.

        Args:
            bundle: Its preprocessing, input size and classes are used.
            data: A folder of images: with one sub-folder per class of the network they are labelled, else not. Or
                ``"digits"``: scikit-learn's, of those that networks are trained on.

        Raises:
            InputError: The folder is missing or holds no images.
            UsageError: The network takes no images.
        """
        manifest = bundle.manifest
        preprocessing, size = manifest.images()
        network = manifest.network
        if os.fspath(data) == DIGITS:
            train = digits(preprocessing, size).train
            labels = _digit_labels(train, network.class_names, network.num_classes)
            why = "" if labels is not None else f"{network.name} has other classes than the digits."
            return cls(
                len(train),
                lambda i: train.images[i],
                lambda i: f"digit {i}",
                labels,
                why,
                "scikit-learn's digits, those that networks are trained on",
            )
        try:
            dataset = images_of_classes(data, preprocessing, size, names=network.class_names, count=network.num_classes)
        except InputError as error:
            paths = image_paths(data)
            return cls(
                len(paths),
                lambda i: load_image(paths[i], preprocessing, size),
                lambda i: str(paths[i]),
                None,
                str(error),
                shown(data),
            )
        assert not isinstance(dataset, LabelledImages)
        samples = dataset.samples
        return cls(
            len(samples),
            lambda i: dataset[i][0],
            lambda i: str(samples[i][0]),
            [label for _, label in samples],
            "",
            shown(data),
        )

    def fingerprint(self) -> str:
        """Return a checksum of the list of images; the files are not read for it."""
        return fingerprint(map(self.name, range(self.count)))

    def choose(self, images: int, seed: int, others: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Draw images at random: some to calibrate on, and as far as there are any, others to measure on.

        Args:
            images: How many to calibrate on, at most.
            seed: The same seed draws the same images.
            others: How many others, at most.

        Returns:
            Numbers of both, rising. Where fewer than ``others`` are left, the rest is drawn from the first again.

        Raises:
            UsageError: Fewer than 1 image is asked for.
        """
        if images < 1:
            raise UsageError(f"{images} images are too few to calibrate on.")
        order = np.random.default_rng(seed).permutation(self.count)
        first, rest = order[:images], order[images : images + others]
        again = first[: max(0, others - len(rest))]
        return np.sort(first), np.sort(np.concatenate([rest, again]))

    def samples(self, numbers: Sequence[int] | npt.NDArray[np.int64], name: str) -> Iterator[Mapping[str, Array]]:
        """Read images one by one, as the input ``name`` of a network."""
        for number in numbers:
            yield {name: self.load(int(number))[None]}


def _digit_labels(train: LabelledImages, names: Sequence[str], count: int | None) -> list[int] | None:
    if names and set(names) == set(train.classes):
        order = [list(names).index(name) for name in train.classes]
        return [order[int(label)] for label in train.labels]
    return None if names or count != len(train.classes) else [int(label) for label in train.labels]
