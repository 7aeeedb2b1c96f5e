"""The sweep against a slow, direct transcription of its description, image by image."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.errors import UsageError
from dyndeploy.exits import (
    NEVER,
    ExitCosts,
    ExitScores,
    exit_shares,
    official_sweep,
    operate,
    thresholds_for_shares,
)
from tests.exits.helpers import COSTS, logits_of, scores_of, small_scores


def slow_shares(index: int) -> list[float]:
    """p_i, then q_k proportional to p^k, then kappa: all in float32, as PyTorch computes."""
    p = torch.tensor((index + 4) / 20 if index <= 16 else 20 / (37 - index), dtype=torch.float32)
    q = torch.exp(torch.log(p) * torch.arange(1, 5, dtype=torch.float32))
    q = q / q.sum()
    for j, kappa in enumerate((0.85, 1.0, 0.5)):
        rest = q[j + 1 :].clone()
        q[j] = q[j] * kappa
        q[j + 1 :] = (1 - q[: j + 1].sum()) * rest / rest.sum()
    return [float(value) for value in q]


def slow_thresholds(confidences: npt.NDArray[np.float32], shares: list[float]) -> list[float]:
    exits, images = confidences.shape
    thresholds = [1e8] * exits
    taken = [False] * images
    for k in range(exits - 1):
        wanted = math.floor(np.float32(images) * np.float32(shares[k]))
        count = 0
        for image in sorted(range(images), key=lambda n: -confidences[k, n]):
            if not taken[image]:
                count += 1
                if count == wanted:
                    thresholds[k] = float(confidences[k, image])
                    break
        for image in range(images):
            if confidences[k, image] >= thresholds[k]:
                taken[image] = True
    thresholds[-1] = -1e8
    return thresholds


def slow_evaluation(scores: ExitScores, thresholds: list[float]) -> tuple[float, list[int], list[int]]:
    counts, correct = [0] * len(scores.exits), [0] * len(scores.exits)
    for image in range(scores.images):
        for k, threshold in enumerate(thresholds):
            if scores.confidences[k, image] >= threshold:
                counts[k] += 1
                correct[k] += bool(scores.correct[k, image])
                break
    cost = sum(count / scores.images * value for count, value in zip(counts, COSTS.values, strict=True))
    return cost, counts, correct


@pytest.mark.parametrize(
    ("index", "wanted"),
    [
        (0, (0.681, 0.257, 0.026, 0.036)),
        (16, (0.2125, 0.2625, 0.13125, 0.39375)),
        (17, (0.2125, 0.2625, 0.13125, 0.39375)),
        (32, (0.0100, 0.0471, 0.0943, 0.8486)),
    ],
)
def test_the_examples_of_the_description(index: int, wanted: tuple[float, ...]) -> None:
    np.testing.assert_allclose(exit_shares()[index], wanted, atol=6e-4 if index == 0 else 6e-5)


def test_shares_are_those_of_pytorch() -> None:
    shares = exit_shares()
    assert shares.shape == (33, 4)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    for index, row in enumerate(shares):
        # Logarithms and exponentials of two libraries differ in the last bits.
        np.testing.assert_allclose(row, slow_shares(index), rtol=1e-6)


@pytest.mark.parametrize("images", [360, 500, 1287])
def test_sweep_equals_the_description(images: int) -> None:
    scores = scores_of(images, seed=images)
    points = official_sweep(scores, COSTS)
    assert len(points) == 33
    for row, point in zip(exit_shares(), points, strict=True):
        thresholds = slow_thresholds(scores.confidences, row.tolist())
        assert list(point.thresholds[:-1]) == thresholds[:-1]
        cost, counts, correct = slow_evaluation(scores, thresholds)
        assert list(point.counts) == counts
        assert list(point.correct) == correct
        assert point.cost == pytest.approx(cost, rel=1e-12)


def test_the_sweep_goes_from_cheap_to_accurate_and_meets_its_shares() -> None:
    scores = scores_of(5000)
    points = official_sweep(scores, COSTS)
    costs = [point.cost for point in points]
    assert costs == sorted(costs)
    for row, point in zip(exit_shares(), points, strict=True):
        np.testing.assert_allclose(point.shares, row, atol=3 / 5000)


@settings(max_examples=80, deadline=None)
@given(small_scores(), st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_thresholds_with_ties_and_unreachable_shares(scores: ExitScores, shares: list[float]) -> None:
    shares = shares[: len(scores.exits)]
    found = thresholds_for_shares(scores.confidences, shares)
    assert found[:-1].tolist() == slow_thresholds(scores.confidences, shares)[:-1]
    assert found[-1] == -np.inf


def test_an_exit_that_gets_too_few_is_switched_off() -> None:
    confidences = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0]], np.float32)
    # 0.9 * 4 = 3.6 images: three leave at exit 1, one is left, but exit 2 asks for two.
    found = thresholds_for_shares(confidences, (0.9, 0.5, 0.0))
    assert found.tolist() == [np.float32(0.7), NEVER, -np.inf]
    assert thresholds_for_shares(confidences, (0.2, 0.5, 0.0)).tolist() == [NEVER, 0.5, -np.inf]


def test_the_number_of_images_is_the_floor_of_a_float32_product() -> None:
    confidences = np.stack([np.arange(10, 0, -1) / 10, np.zeros(10)]).astype(np.float32)
    # 0.7 is 0.69999999 in float64 once it was float32, but ten times it is 7 in float32.
    share = np.float32(0.7)
    assert np.floor(10 * float(share)) == 6
    assert thresholds_for_shares(confidences, (share, 0))[0] == np.float32(0.4)


def test_ties_leave_together() -> None:
    confidences = np.array([[0.9, 0.9, 0.9, 0.1], [0.5, 0.4, 0.3, 0.2]], np.float32)
    scores = ExitScores((3, 4), confidences, np.ones((2, 4), bool))
    thresholds = thresholds_for_shares(confidences, (0.25, 0.75))
    assert operate(scores, thresholds.tolist(), ExitCosts((1.0, 2.0))).counts == (3, 1)


def test_other_images_use_the_same_thresholds() -> None:
    logits, labels = logits_of(800, seed=3)
    calibration = ExitScores.from_logits(logits[:, :400], labels[:400])
    other = ExitScores.from_logits(logits[:, 400:], labels[400:])
    point = official_sweep(calibration, COSTS)[10]
    result = operate(other, point.thresholds, COSTS)
    cost, counts, correct = slow_evaluation(other, [*point.thresholds[:-1], -1e8])
    assert (list(result.counts), list(result.correct)) == (counts, correct)
    assert result.cost == pytest.approx(cost, rel=1e-12)


def test_without_an_exit_its_share_goes_to_the_others() -> None:
    shares = exit_shares((1, 2, 4))
    whole = exit_shares()[:, [0, 1, 3]].astype(np.float64)
    np.testing.assert_allclose(shares, whole / whole.sum(axis=1, keepdims=True), rtol=1e-6)
    points = official_sweep(scores_of(500), COSTS, without=(3,))
    assert all(point.counts[2] == 0 and point.thresholds[2] == NEVER for point in points)


@pytest.mark.parametrize("exits", [(1, 2, 3), (2, 1, 4), (1, 5), ()])
def test_other_exits_have_no_sweep(exits: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="official sweep"):
        exit_shares(exits)
