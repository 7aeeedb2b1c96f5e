"""Timing samples and their statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dyndeploy.errors import InputError
from dyndeploy.fields import Field

UNSTABLE_COV = 0.025
"""Coefficient of variation above which a measurement is flagged as unstable (2.5 %)."""


def coefficient_of_variation(values: Sequence[float], inputs: Sequence[int] | None = None) -> float:
    """Standard deviation over mean.

    Args:
        values: At least two positive numbers.
        inputs: Which input each value belongs to. Then every value is first divided by the mean of its input, so
            that inputs which honestly take different times do not count as noise. Where no input was measured
            twice this is impossible, and the plain coefficient is returned.
    """
    array = np.asarray(values, np.float64)
    groups = 1
    if inputs is not None and len(set(inputs)) < len(inputs):
        labels = np.asarray(inputs)
        array = array.copy()
        for label in set(inputs):
            array[labels == label] /= array[labels == label].mean()
        groups = len(set(inputs))
    return float(np.sqrt(((array - array.mean()) ** 2).sum() / (len(array) - groups)) / array.mean())


def apart(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    """Whether a difference is more than noise: the middle halves (25th to 75th percentile) do not overlap.

    The one rule by which claims are made and differences are marked. For the least number of rounds (12) that a
    profile takes on its own it asks for about 2.6 standard errors, for more rounds for more. A spread that nobody
    recorded (None) supports no claim.
    """
    return one is not None and other is not None and (one[1] < other[0] or other[1] < one[0])


@dataclass(frozen=True)
class Samples:
    """Raw times of one thing, in milliseconds per run of one batch; everything else is derived from them.

    The statistics are order statistics, which a few interrupted runs cannot move far; nothing is dropped.

    Attributes:
        ms: Wall-clock time of every run.
        inputs: Index of the input (or of the mask draw) of every run.
        cpu_ms: CPU time of every run, or None where it is not one thread's.
        preempted: Runs during which the operating system took the processor away, or None where it does not say.
    """

    ms: tuple[float, ...]
    inputs: tuple[int, ...]
    cpu_ms: tuple[float, ...] | None = None
    preempted: int | None = None

    def __post_init__(self) -> None:
        """Check that there is something to compute with.

        Raises:
            InputError: Fewer than two samples, a time that is not positive and finite, or unequal lengths.
        """
        if len(self.ms) < 2:
            raise InputError(f"A measurement needs at least 2 samples, not {len(self.ms)}.")
        if not all(math.isfinite(value) and value > 0 for value in self.ms):
            raise InputError("Samples must be positive, finite times in milliseconds.")
        if len(self.inputs) != len(self.ms) or (self.cpu_ms is not None and len(self.cpu_ms) != len(self.ms)):
            raise InputError("A measurement needs one input index and one CPU time for every sample.")

    def percentile(self, percent: float) -> float:
        """Percentile with linear interpolation, in ms."""
        return float(np.percentile(self.ms, percent))

    @property
    def median(self) -> float:
        """Median in ms."""
        return self.percentile(50)

    @property
    def spread(self) -> tuple[float, float]:
        """25th and 75th percentile in ms."""
        return self.percentile(25), self.percentile(75)

    @property
    def mean(self) -> float:
        """Mean in ms."""
        return float(np.mean(self.ms))

    @property
    def cov(self) -> float:
        """Coefficient of variation of all samples (standard deviation with n - 1, over the mean)."""
        return coefficient_of_variation(self.ms)

    @property
    def cov_same_input(self) -> float:
        """Coefficient of variation between runs of the same input."""
        return coefficient_of_variation(self.ms, self.inputs)

    @property
    def unstable(self) -> bool:
        """Whether runs of the same input vary by more than :data:`UNSTABLE_COV`."""
        return self.cov_same_input > UNSTABLE_COV

    def to_json(self, batch: int) -> dict[str, Any]:
        """Statistics and raw samples as plain JSON types.

        Args:
            batch: Images per run, for the time per image.
        """
        return {
            "median_ms": self.median,
            "p90_ms": self.percentile(90),
            "p99_ms": self.percentile(99),
            "min_ms": min(self.ms),
            "mean_ms": self.mean,
            "ms_per_image": self.median / batch,
            "cov": self.cov,
            "cov_same_input": self.cov_same_input,
            "unstable": self.unstable,
            "cpu_median_ms": None if self.cpu_ms is None else float(np.median(self.cpu_ms)),
            "preempted": self.preempted,
            "samples_ms": list(self.ms),
            "samples_cpu_ms": None if self.cpu_ms is None else list(self.cpu_ms),
            "samples_input": list(self.inputs),
        }

    @classmethod
    def read(cls, item: Field) -> Samples:
        """Read what :meth:`to_json` wrote; the statistics are derived again from the samples."""
        ms = item["samples_ms"].sequence(Field.positive)
        inputs = item["samples_input"].sequence(Field.tally)
        cpu_ms = item["samples_cpu_ms"].optional(lambda times: times.sequence(Field.positive))
        preempted = item["preempted"].optional(Field.tally)
        return item.checked(lambda: cls(ms, inputs, cpu_ms, preempted))
