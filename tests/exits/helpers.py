"""Logits of an invented network whose later exits are better and surer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from dyndeploy.exits import ExitCosts, ExitScores

COSTS = ExitCosts((619.4e6, 1007.3e6, 1121.9e6, 1190.2e6))


def logits_of(
    images: int, classes: int = 10, skill: tuple[float, ...] = (1.0, 1.6, 1.9, 2.3), seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits (exits, images, classes) and labels: exits share most of their errors, as those of a network do."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    easy = generator.gamma(2.0, 1.0, images)
    common = generator.standard_normal((images, classes))
    logits = np.stack([0.7 * common + 0.7 * generator.standard_normal((images, classes)) for _ in skill])
    for index, factor in enumerate(skill):
        logits[index, np.arange(images), labels] += factor * easy
    return (2 * logits).astype(np.float32), labels


def scores_of(images: int, skill: tuple[float, ...] = (1.0, 1.6, 1.9, 2.3), seed: int = 0) -> ExitScores:
    return ExitScores.from_logits(*logits_of(images, skill=skill, seed=seed))


@st.composite
def small_scores(draw: st.DrawFn, most_images: int = 7, most_exits: int = 4) -> ExitScores:
    """A few images, with ties."""
    exits = draw(st.integers(1, most_exits))
    images = draw(st.integers(1, most_images))
    size = exits * images
    levels = draw(st.lists(st.integers(1, 6), min_size=size, max_size=size))
    right = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return ExitScores(
        tuple(range(5 - exits, 5)),
        (np.array(levels, np.float32) / 7).reshape(exits, images),
        np.array(right).reshape(exits, images),
    )


@st.composite
def costs_for(draw: st.DrawFn, exits: int) -> ExitCosts:
    steps = draw(st.lists(st.floats(0.1, 10), min_size=exits, max_size=exits))
    return ExitCosts(tuple(np.cumsum(steps).tolist()), "ms", "drawn")
