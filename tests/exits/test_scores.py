from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.errors import InputError, UsageError
from dyndeploy.exits import NEVER, ExitCosts, ExitScores, operate, taken_exits
from tests.exits.helpers import COSTS, logits_of, scores_of, small_scores


def test_confidence_is_the_largest_softmax_probability() -> None:
    logits, labels = logits_of(200, classes=1000)
    wanted = torch.softmax(torch.from_numpy(logits), dim=-1).amax(dim=-1).numpy()
    confidences = ExitScores.from_logits(logits, labels).confidences
    assert confidences.dtype == np.float32
    np.testing.assert_allclose(confidences, wanted, rtol=1e-6)


def test_confidence_of_large_and_small_logits() -> None:
    logits = np.array([[[1e4, 0], [-1e4, -1e4]]], np.float32)
    assert ExitScores.from_logits(logits, [0, 0], exits=(4,)).confidences.tolist() == [[1.0, 0.5]]


def test_scores_from_logits_by_hand() -> None:
    logits = np.log(np.array([[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], [[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]]], np.float32))
    scores = ExitScores.from_logits(logits, [0, 2], exits=(2, 4))
    np.testing.assert_allclose(scores.confidences, [[0.5, 0.8], [0.6, 0.4]], rtol=1e-6)
    assert scores.correct.tolist() == [[True, False], [False, True]]
    assert scores.accuracies == (0.5, 0.5)
    assert scores.exits == (2, 4)


def test_operating_by_hand() -> None:
    scores = ExitScores(
        (1, 2, 3),
        np.array([[0.9, 0.5, 0.1, 0.7], [0.2, 0.5, 0.6, 0.9], [0.1, 0.1, 0.1, 0.1]], np.float32),
        np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]], bool),
    )
    point = operate(scores, (0.7, 0.6, 5.0), ExitCosts((1.0, 2.0, 4.0), "ms"))
    # Images 0 and 3 leave at exit 1 (a tie leaves), image 2 at exit 2, image 1 at the last one whatever its threshold.
    assert point.counts == (2, 1, 1)
    assert point.correct == (1, 0, 1)
    assert point.cost == (2 * 1 + 2 + 4) / 4
    assert point.accuracy == 0.5
    assert point.exit_accuracies == (0.5, 0.0, 1.0)
    assert point.thresholds == (float(np.float32(0.7)), float(np.float32(0.6)), -math.inf)
    assert operate(scores, (NEVER, 0.0, 0.0), ExitCosts((1.0, 2.0, 4.0))).exit_accuracies == (None, 0.5, None)
    assert point.to_json()["thresholds"][-1] is None


@given(small_scores(), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_taken_exits_image_by_image(scores: ExitScores, thresholds: list[float]) -> None:
    limits = np.array(thresholds[: len(scores.exits)], np.float32)
    taken = taken_exits(scores.confidences, limits.tolist())
    for image in range(scores.images):
        wanted = len(scores.exits) - 1
        for index in range(len(scores.exits) - 1):
            if scores.confidences[index, image] >= limits[index]:
                wanted = index
                break
        assert taken[image] == wanted


def test_batches_join_to_the_same_scores() -> None:
    logits, labels = logits_of(50)
    whole = ExitScores.from_logits(logits, labels)
    joined = ExitScores.joined(
        ExitScores.from_logits(logits[:, part], labels[part]) for part in (slice(0, 20), slice(20, 21), slice(21, 50))
    )
    np.testing.assert_array_equal(joined.confidences, whole.confidences)
    np.testing.assert_array_equal(joined.correct, whole.correct)
    assert whole.select(np.arange(3)).images == 3


def test_what_is_refused() -> None:
    logits, labels = logits_of(5)
    with pytest.raises(InputError, match="class indices from 0 to 9"):
        ExitScores.from_logits(logits, labels + 10)
    with pytest.raises(InputError, match="do not fit"):
        ExitScores.from_logits(logits, labels[:-1])
    with pytest.raises(InputError, match="do not fit"):
        ExitScores.from_logits([logits[0], logits[1][:, :5]], labels)
    with pytest.raises(InputError, match="not finite"):
        ExitScores.from_logits(np.where(np.arange(10) == 3, np.nan, logits).astype(np.float32), labels)
    with pytest.raises(InputError, match="no images"):
        ExitScores.joined([])
    with pytest.raises(InputError, match="no images"):
        ExitScores.from_logits(logits[:, :0], labels[:0])
    with pytest.raises(UsageError, match="ascending"):
        ExitScores.from_logits(logits, labels, exits=(1, 3, 2, 4))
    with pytest.raises(InputError, match="positive and finite"):
        ExitCosts((1.0, float("nan")))
    with pytest.raises(UsageError, match="one per exit"):
        operate(scores_of(5), (0.5, 0.5), COSTS)
    with pytest.raises(UsageError, match="one per exit"):
        operate(scores_of(5), (0.5, 0.5, 0.5, 0.5), ExitCosts((1.0, 2.0)))
