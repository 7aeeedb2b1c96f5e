"""Activation rates: of a block by kind of gate, and image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from dyndeploy.errors import UsageError
from dyndeploy.ops.base import OperatorSpec
from dyndeploy.ops.gates import BLOCK, CHANNEL, PATCH, GateKind


@dataclass(frozen=True, init=False)
class Rates:
    """Activation rates of one block, each in [0, 1], by the names of gate kinds.

    A rate for ``spatial`` also stands for gates that decide on the whole block, unless those have a rate of their own.
    Rates that an operator takes besides (``conv1``, ``conv2``: what its convolutions were measured to compute;
    ``channel_slowest``: the largest channel rate of the images of a batch) go by their names too.

    Attributes:
        named: Pairs of name and rate, sorted.
        default: Of every kind that is not named.
    """

    named: tuple[tuple[str, float], ...]
    default: float

    def __init__(
        self, spatial: float | None = None, channel: float | None = None, *, default: float = 1.0, **named: float | None
    ) -> None:
        """Name rates by kind of gate; None leaves a kind to ``default``."""
        given = {PATCH.name: spatial, CHANNEL.name: channel, **named}
        object.__setattr__(self, "named", tuple(sorted((k, v) for k, v in given.items() if v is not None)))
        object.__setattr__(self, "default", default)

    def get(self, name: str) -> float | None:
        """The rate of that name; None where it is not named."""
        return next((value for known, value in self.named if known == name), None)

    def of(self, kind: GateKind) -> float:
        """The rate of a kind of gate."""
        rate = self.get(kind.name)
        if rate is None and kind.whole:
            rate = self.get(PATCH.name)
        return self.default if rate is None else rate

    def for_operator(self, spec: OperatorSpec) -> dict[str, float]:
        """The rates as an operator's ``expected`` and ``sizes`` take them: of its gates, and the further ones."""
        return {**dict(self.named), **{kind.name: self.of(kind) for kind in spec.gates.values()}}

    @property
    def spatial(self) -> float:
        """Active fraction of patches, or of images where the whole block is decided on."""
        rate = self.get(PATCH.name)
        return self.of(BLOCK) if rate is None else rate

    @property
    def channel(self) -> float:
        """Active fraction of channel groups."""
        return self.of(CHANNEL)


RateLike: TypeAlias = float | Rates | Sequence[float | Rates]
"""One rate for all blocks, one per block, or measured rates per block."""


def checked_rates(rate: float | Rates) -> Rates:
    """Rates of one block, all of which are ``rate`` where it is a number; raises ``UsageError`` outside [0, 1]."""
    if not isinstance(rate, Rates):
        _check(rate)
        return Rates(default=float(rate))
    for value in (rate.default, *(value for _, value in rate.named)):
        _check(value)
    return rate


def _check(value: object) -> None:
    if not isinstance(value, (int, float, np.integer, np.floating)) or not 0.0 <= float(value) <= 1.0:
        raise UsageError(f"An activation rate must be a number in [0, 1], not {value!r}.")


def block_rates(rate: RateLike, blocks: int) -> list[Rates]:
    """Rates of each block; raises ``UsageError`` for a list of the wrong length or a rate outside [0, 1]."""
    if not isinstance(rate, Sequence):
        return [checked_rates(rate)] * blocks
    if len(rate) != blocks:
        raise UsageError(f"The list of rates has {len(rate)} entries, the network has {blocks} blocks.")
    return [checked_rates(entry) for entry in rate]


def mean_rates(runs: Sequence[Rates]) -> Rates:
    """Mean of every rate that all runs name."""
    names = set.intersection(*({name for name, _ in run.named} for run in runs))
    values = {name: sum(run.get(name) or 0.0 for run in runs) / len(runs) for name in sorted(names)}
    return Rates(**values, default=sum(run.default for run in runs) / len(runs))


@dataclass(frozen=True)
class RateSamples:
    """Rates image by image: what a data set did, not only its mean.

    Attributes:
        images: For each image, the rates of each block.
    """

    images: tuple[tuple[Rates, ...], ...]

    def batches(self, size: int, count: int) -> list[tuple[Rates, ...]]:
        """Rates of ``count`` runs of ``size`` images each, drawn with a fixed seed (all images in turn for size 1)."""
        if size == 1:
            return list(self.images[:: -(-len(self.images) // count)])
        draws = np.random.default_rng(0).integers(len(self.images), size=(count, size))
        return [tuple(map(_together, zip(*(self.images[i] for i in draw), strict=True))) for draw in draws]


def _together(images: tuple[Rates, ...]) -> Rates:
    """Rates of one block over the images of a batch."""
    mean = mean_rates(images)
    values: Mapping[str, float] = dict(mean.named)
    slowest = max(image.channel for image in images)
    return Rates(**{**values, f"{CHANNEL.name}_slowest": slowest}, default=mean.default)
