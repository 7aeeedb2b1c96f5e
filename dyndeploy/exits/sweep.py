"""The official sweep: 33 exit distributions, and the thresholds that reach them on a calibration set.

Source: Dynamic Perceiver, adaptive evaluation of the reference code. The float32 arithmetic is part of it: the number
of images per exit is the floor of a float32 product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import UsageError
from dyndeploy.exits.scores import NEVER, ExitCosts, ExitScores, FloatArray, OperatingPoint, operate, require_fit

EXITS = (1, 2, 3, 4)
POINTS = 33
KAPPA = (0.85, 1.0, 0.5, 1.0)
"""By how much the share of each exit is scaled; what exits 1 and 3 give up goes to the later ones."""


def has_sweep(exits: Sequence[int]) -> bool:
    """Whether the sweep is made for these exits: 1 to 4, or a part of them in order that ends in 4."""
    return set(exits) <= set(EXITS) and tuple(exits)[-1:] == EXITS[-1:] and list(exits) == sorted(set(exits))


def exit_shares(exits: Sequence[int] = EXITS) -> FloatArray:
    """Return the shares of the images that each exit shall take, from cheap to accurate.

    Args:
        exits: The enabled ones, a part of (1, 2, 3, 4) that ends in 4. Shares of the others go to the enabled ones in
            proportion; the reference code knows only all four.

    Returns:
        Shape (33, exits), float32.

    Raises:
        UsageError: Other exits.
    """
    if not has_sweep(exits):
        raise UsageError(f"The official sweep is made for the exits 1 to 4, in order and ending in 4, not {exits}.")
    shares = np.stack([_shares(base) for base in _bases()])
    if tuple(exits) == EXITS:
        return shares
    kept = shares[:, [number - 1 for number in exits]]
    return np.asarray(kept / kept.sum(axis=1, keepdims=True), np.float32)


def _bases() -> FloatArray:
    rising = [(index + 4) / 20 for index in range(17)]
    steep = [20 / (37 - index) for index in range(17, POINTS)]
    return np.asarray(rising + steep, np.float32)


def _shares(base: np.float32) -> FloatArray:
    # Logarithm and exponential in float64, rounded once: float32 versions differ between libraries in the last bit.
    logarithm = np.float32(np.log(np.float64(base)))
    powers = logarithm * np.arange(1, len(EXITS) + 1, dtype=np.float32)
    shares: FloatArray = np.exp(powers.astype(np.float64)).astype(np.float32)
    shares /= shares.sum()
    for index, factor in enumerate(KAPPA[:-1]):
        later = shares[index + 1 :].copy()
        shares[index] *= np.float32(factor)
        shares[index + 1 :] = (np.float32(1) - shares[: index + 1].sum()) * later / later.sum()
    return shares


def thresholds_for_shares(confidences: FloatArray, shares: npt.ArrayLike) -> FloatArray:
    """Find thresholds so that each exit takes its share of the images.

    Exit k takes the ``floor(images * share)`` most confident of the images that no earlier exit took; its threshold
    is the confidence of the last of them, so ties leave with it. Where there is none to take, or fewer than
    asked for, the exit is switched off (:data:`NEVER`).

    Args:
        confidences: Shape (exits, images), float32.
        shares: Shape (exits,); the last one is not used.

    Returns:
        Shape (exits,), float32; the last threshold is minus infinity.
    """
    wanted = np.asarray(shares, np.float32)
    return _thresholds(confidences, _descending(confidences), wanted)


def _descending(confidences: FloatArray) -> npt.NDArray[np.intp]:
    return np.argsort(-confidences[:-1], axis=1, kind="stable")


def _thresholds(confidences: FloatArray, order: npt.NDArray[np.intp], shares: FloatArray) -> FloatArray:
    exits, images = confidences.shape
    thresholds = np.full(exits, NEVER, np.float32)
    thresholds[-1] = -np.inf
    waiting = np.ones(images, bool)
    for index in range(exits - 1):
        number = int(np.floor(np.float32(images) * shares[index]))
        arrived = np.flatnonzero(waiting[order[index]])
        if 0 < number <= len(arrived):
            thresholds[index] = confidences[index, order[index, arrived[number - 1]]]
            waiting &= confidences[index] < thresholds[index]
    return thresholds


def official_sweep(scores: ExitScores, costs: ExitCosts, without: Sequence[int] = ()) -> tuple[OperatingPoint, ...]:
    """Calibrate the 33 points of the reference code, and count what they lead to on the same images.

    Args:
        scores: Of the calibration images; of the exits 1 to 4 or a part of them that ends in 4.
        costs: One per exit.
        without: Exits that shall take nothing.

    Returns:
        33 points, cheap to accurate. Use :func:`operate` with their thresholds for other images.

    Raises:
        UsageError: Other exits, or costs that do not fit.
    """
    require_fit(scores, costs)
    enabled = [number for number in scores.exits if number not in without]
    shares = np.zeros((POINTS, len(scores.exits)), np.float32)
    shares[:, [scores.exits.index(number) for number in enabled]] = exit_shares(enabled)
    order = _descending(scores.confidences)
    return tuple(operate(scores, _thresholds(scores.confidences, order, row).tolist(), costs) for row in shares)
