from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.errors import UsageError
from dyndeploy.training.schedules import SCHEDULES, scheduled


@pytest.mark.parametrize(("epoch", "expected"), [(0, 5.0), (10, 3.3812), (50, 0.7071), (100, 0.1)])
def test_exponential_equals_the_reference_code(epoch: int, expected: float) -> None:
    assert scheduled("exp", 5.0, 0.1, epoch * 1252 / (100 * 1252)) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "progress", "expected"),
    [
        ("linear", 0.25, 3.775),  # 4.9 * 0.75 + 0.1
        ("linear", 0.5, 2.55),
        ("cosine", 0.5, 2.55),
        ("cosine", 1 / 3, 3.775),  # 0.5 * 4.9 * (1 + cos 60 degrees) + 0.1
    ],
)
def test_linear_and_cosine_by_hand(name: str, progress: float, expected: float) -> None:
    assert scheduled(name, 5.0, 0.1, progress) == pytest.approx(expected, abs=1e-12)


def test_cosine_learning_rate() -> None:
    # lr = 0.5 * lr0 * (1 + cos(pi * progress)), the reference code's hyper-parameter set 3.
    values = [scheduled("cosine", 0.08, 0.0, p) for p in (0.0, 1 / 3, 0.5, 2 / 3, 1.0)]
    assert values == pytest.approx([0.08, 0.06, 0.04, 0.02, 0.0], abs=1e-15)


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    start=st.floats(0.01, 10),
    end=st.floats(0.01, 10),
    progress=st.floats(0, 0.99),
)
def test_every_schedule_goes_from_start_to_end_without_turning(
    name: str, start: float, end: float, progress: float
) -> None:
    assert scheduled(name, start, end, 0.0) == pytest.approx(start)
    assert scheduled(name, start, end, 1.0) == pytest.approx(end)
    now, later = scheduled(name, start, end, progress), scheduled(name, start, end, progress + 0.01)
    assert (later - now) * (end - start) >= -1e-9


def test_unknown_schedule() -> None:
    with pytest.raises(UsageError, match="Did you mean 'cosine'"):
        scheduled("cosin", 1.0, 0.1, 0.5)
