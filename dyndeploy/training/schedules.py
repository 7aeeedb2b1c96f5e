"""What changes while training goes on: the Gumbel-softmax temperature, learning rate and weight decay.

``progress`` is the fraction of all iterations done: 0 at the first, (total - 1) / total at the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from dyndeploy.errors import unknown_name


def exponential(start: float, end: float, progress: float) -> float:
    """Return ``start * (end / start) ^ progress``."""
    return start * math.pow(end / start, progress)


def linear(start: float, end: float, progress: float) -> float:
    """Return the value on the straight line from start to end."""
    return (start - end) * (1 - progress) + end


def cosine(start: float, end: float, progress: float) -> float:
    """Return the value on half a cosine wave from start to end."""
    return 0.5 * (start - end) * (1 + math.cos(math.pi * progress)) + end


SCHEDULES: Mapping[str, Callable[[float, float, float], float]] = MappingProxyType(
    {"exp": exponential, "linear": linear, "cosine": cosine}
)
"""Every schedule by the name that recipes give it."""


def scheduled(name: str, start: float, end: float, progress: float) -> float:
    """Return the value of a schedule.

    Args:
        name: One of :data:`SCHEDULES`.
        start: Value at progress 0.
        end: Value at progress 1.
        progress: In [0, 1].

    Raises:
        UsageError: An unknown name.
    """
    try:
        schedule = SCHEDULES[name]
    except KeyError:
        raise unknown_name("schedule", name, SCHEDULES) from None
    return schedule(start, end, progress)


def warmed_up_cosine(iteration: int, iterations: int, warmup: int, peak: float, end: float) -> float:
    """Return the learning rate of an iteration: a line from 0 up to the peak, then half a cosine down to the end.

    The line reaches the peak in its last iteration, and the cosine starts there again, as in the
    Dyn-Perceiver reference code; without a warm-up it is LAUDNet's cosine.

    Args:
        iteration: Counted from 0.
        iterations: Of the whole run.
        warmup: Iterations of the line, fewer than ``iterations``.
        peak: Highest value.
        end: Value after the last iteration.
    """
    if iteration < warmup:
        return peak * iteration / (warmup - 1) if warmup > 1 else 0.0
    return cosine(peak, end, (iteration - warmup) / (iterations - warmup))


def stepped(iteration: int, steps: Sequence[int], peak: float, factor: float) -> float:
    """Return the learning rate of an iteration: the peak, multiplied by the factor from each step on.

    Args:
        iteration: Counted from 0.
        steps: Iterations.
        peak: Highest value.
        factor: Below 1.
    """
    return peak * factor ** sum(iteration >= step for step in steps)


def warmed_up(iteration: int, warmup: int, start: float = 0.0) -> float:
    """Return what a learning rate is multiplied by: a line from ``start`` to 1, as in mmdetection.

    Args:
        iteration: Counted from 0.
        warmup: Iteration from which on it is 1.
        start: At iteration 0.
    """
    return 1.0 if iteration >= warmup else 1 - (1 - iteration / warmup) * (1 - start)
