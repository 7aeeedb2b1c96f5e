"""What calibration needs to know of every image: how sure each exit is, and whether it is right.

Source: Dynamic Perceiver (arXiv 2306.11248); the exit criterion is that of MSDNet (arXiv 1703.09844): an image
leaves at the first exit whose largest softmax probability reaches that exit's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.confidences import confidences
from dyndeploy.errors import InputError, UsageError
from dyndeploy.finite import listed
from dyndeploy.runtimes import staged as runner

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

NEVER = 1e8
"""Threshold of an exit that takes no image: no probability reaches it."""

MACS = "MACs"
MS = "ms"
_SCALES = ((1e9, "G MACs"), (1e6, "M MACs"), (1e3, "k MACs"), (1.0, "MACs"))


@dataclass(frozen=True)
class ExitScores:
    """Confidence and correctness of every exit on every image.

    Attributes:
        exits: Numbers of the exits, ascending, e.g. (1, 2, 3, 4).
        confidences: Shape (exits, images), float32.
        correct: Shape (exits, images): whether the exit's first class is the label.
    """

    exits: tuple[int, ...]
    confidences: FloatArray
    correct: BoolArray

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            UsageError: No exit, exits that do not ascend, or arrays that do not fit them.
            InputError: No image, or a confidence that is not finite.
        """
        if not self.exits or list(self.exits) != sorted(set(self.exits)):
            raise UsageError(f"The exits must be numbers in ascending order, not {self.exits}.")
        wanted = (len(self.exits), self.confidences.shape[-1])
        if self.confidences.shape != wanted or self.correct.shape != wanted:
            raise UsageError(
                f"{len(self.exits)} exits need confidences and correctness of shape (exits, images), not "
                f"{self.confidences.shape} and {self.correct.shape}."
            )
        if self.images == 0:
            raise InputError("There are no images to calibrate with. Give a folder with images of every class.")
        if self.confidences.dtype != np.float32:
            raise UsageError(f"Confidences are compared in float32, not in {self.confidences.dtype}.")
        _require_finite("confidences", self.exits, self.confidences)

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confidences.shape[1])

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Top-1 accuracy of every exit over all images, in [0, 1]."""
        return tuple(float(row.mean()) for row in self.correct)

    @classmethod
    def from_logits(
        cls,
        logits: Sequence[FloatArray] | FloatArray,
        labels: npt.ArrayLike,
        exits: Sequence[int] | None = None,
        measure: str = "max_softmax",
    ) -> ExitScores:
        """Score the logits of all exits.

        Args:
            logits: One array (images, classes) per exit, or one of shape (exits, images, classes).
            labels: Class index of every image.
            exits: Their numbers; None for 1, 2, ...
            measure: How sure an exit is; see :mod:`dyndeploy.confidences`.

        Raises:
            InputError: Logits that are not finite, or of unequal shapes; labels that are no class of the network.
        """
        truth = np.asarray(labels)
        shapes = {np.shape(each) for each in logits}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2 or truth.shape != next(iter(shapes))[:1]:
            raise InputError(
                f"Logits of shapes {sorted(shapes)} and labels of shape {truth.shape} do not fit: every exit needs "
                "(images, classes), with one label per image."
            )
        images, classes = next(iter(shapes))
        if images and not (np.issubdtype(truth.dtype, np.integer) and truth.min() >= 0 and truth.max() < classes):
            raise InputError(
                f"The labels must be class indices from 0 to {classes - 1}, the classes that the network knows. Give "
                "images of the classes that it was trained on."
            )
        numbers = tuple(range(1, len(logits) + 1) if exits is None else exits)
        _require_finite("logits", numbers, logits)
        return cls(
            exits=numbers,
            confidences=np.stack([confidences(each, measure) for each in logits]),
            correct=np.stack([each.argmax(axis=-1) == truth for each in logits]),
        )

    @classmethod
    def joined(cls, parts: Iterable[ExitScores]) -> ExitScores:
        """Put the scores of several batches of images one after another.

        Raises:
            InputError: There is no batch.
        """
        parts = list(parts)
        if not parts:
            raise InputError("There are no images to calibrate with. Give a folder with images of every class.")
        return cls(
            parts[0].exits,
            np.concatenate([part.confidences for part in parts], axis=1),
            np.concatenate([part.correct for part in parts], axis=1),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, which hold every bit."""
        return {
            "exits": list(self.exits),
            "confidences": self.confidences.tolist(),
            "correct": self.correct.astype(int).tolist(),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ExitScores:
        """The same from what :meth:`to_json` gives."""
        confidences, correct = np.array(plain["confidences"], np.float32), np.array(plain["correct"], np.bool_)
        return cls(tuple(plain["exits"]), confidences, correct)

    def select(self, images: npt.NDArray[Any]) -> ExitScores:
        """Return the scores of some images, by index or mask."""
        return ExitScores(self.exits, self.confidences[:, images], self.correct[:, images])


def _require_finite(what: str, exits: Sequence[int], values: Iterable[npt.ArrayLike]) -> None:
    found = listed({f"exit {exit}": np.asarray(each) for exit, each in zip(exits, values, strict=False)})
    if found:
        raise InputError(f"The {what} are not finite: {found}. Verify the bundle first: 'dyndeploy verify BUNDLE'.")


@dataclass(frozen=True)
class ExitCosts:
    """What an image costs that leaves at an exit, everything before it included.

    Attributes:
        values: One per exit.
        unit: ``"MACs"`` (what papers call FLOPs) or ``"ms"``, per image.
        source: Where they come from, in words; of times also which code ran the dynamic operators.
        note: What a reader of these costs should know first, or empty.
    """

    values: tuple[float, ...]
    unit: str = MACS
    source: str = "the bundle's own count"
    note: str = ""

    def __post_init__(self) -> None:
        """Check the values; raises ``InputError``."""
        if not self.values or not all(math.isfinite(value) and value > 0 for value in self.values):
            raise InputError(f"The costs of the exits must be positive and finite, not {self.values}.")

    def mean(self, counts: Sequence[Any]) -> Any:
        """Mean cost per image from the number of images that leave at each exit (numbers, or arrays of them).

        One formula in one order for everything that is compared: a budget is kept to the last bit.
        """
        mean: Any = 0.0
        images = sum(counts)
        for count, value in zip(counts, self.values, strict=True):
            mean = mean + count * value
        mean = mean / images
        for count, value in zip(counts, self.values, strict=True):
            # Rounding must not lift the mean of equal costs: a budget of what one exit costs buys that exit.
            mean = np.where(count == images, value, mean)
        return mean

    @property
    def scale(self) -> tuple[float, str]:
        """How a reader is shown costs: what to divide them by, and the unit that they then have."""
        if self.unit == MS:
            return 1.0, MS
        largest = max(self.values)
        return next((size, name) for size, name in _SCALES if largest >= 10 * size or size == 1)

    def format(self, value: float) -> str:
        """Write a cost for a reader, with its unit."""
        size, name = self.scale
        return f"{value / size:.{3 if self.unit == MS else 0 if size == 1 else 2}f} {name}"


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds, and what they lead to on a set of images.

    Attributes:
        thresholds: One per exit, each a float32 number; the last is minus infinity. :data:`NEVER` switches an exit off.
        counts: Images that leave at each exit.
        correct: How many of these are classified correctly.
        cost: Mean per image, in the unit of the costs.
    """

    thresholds: tuple[float, ...]
    counts: tuple[int, ...]
    correct: tuple[int, ...]
    cost: float

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.counts)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return sum(self.correct) / self.images

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the images that leaves at each exit."""
        return tuple(count / self.images for count in self.counts)

    @property
    def exit_accuracies(self) -> tuple[float | None, ...]:
        """Accuracy among the images that leave at each exit; None where none does."""
        return tuple(right / count if count else None for right, count in zip(self.correct, self.counts, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the last threshold, minus infinity, is null."""
        return {
            "thresholds": [None if math.isinf(value) else value for value in self.thresholds],
            "accuracy": self.accuracy,
            "cost": self.cost,
            "shares": list(self.shares),
            "exit_accuracies": list(self.exit_accuracies),
            "counts": list(self.counts),
            "correct": list(self.correct),
        }


def taken_exits(confidences: FloatArray, thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return the index of the exit that every image takes, as the runner decides.

    Args:
        confidences: Shape (exits, images), float32.
        thresholds: One per exit, compared in float32; the last one is ignored, since the last exit always takes.

    Returns:
        Shape (images,), from 0.
    """
    return runner.first_reached(confidences, (*thresholds[:-1], -math.inf))


def operate(scores: ExitScores, thresholds: Sequence[float], costs: ExitCosts) -> OperatingPoint:
    """Let every image leave at the first exit that is sure enough, and count.

    Args:
        scores: The images.
        thresholds: One per exit; the last one is ignored, since the last exit always takes.
        costs: One per exit.

    Raises:
        UsageError: Another number of thresholds or costs than exits.
    """
    require_fit(scores, costs)
    if len(thresholds) != len(scores.exits):
        raise UsageError(f"{len(thresholds)} thresholds do not fit {len(scores.exits)} exits: give one per exit.")
    taken = taken_exits(scores.confidences, thresholds)
    right = scores.correct[taken, np.arange(scores.images)]
    counts = np.bincount(taken, minlength=len(scores.exits))
    correct = np.bincount(taken[right], minlength=len(scores.exits))
    return OperatingPoint(
        thresholds=(*(float(np.float32(value)) for value in thresholds[:-1]), -math.inf),
        counts=tuple(counts.tolist()),
        correct=tuple(correct.tolist()),
        cost=float(costs.mean(counts.tolist())),
    )


def require_fit(scores: ExitScores, costs: ExitCosts) -> None:
    """Raise ``UsageError`` unless there is one cost per exit."""
    if len(costs.values) != len(scores.exits):
        raise UsageError(f"{len(costs.values)} costs do not fit {len(scores.exits)} exits: give one per exit.")
