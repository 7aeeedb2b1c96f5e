from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.errors import UsageError
from dyndeploy.exits import (
    NEVER,
    Constraint,
    ExitCosts,
    ExitScores,
    Frontier,
    OperatingPoint,
    find_frontier,
    official_sweep,
    operate,
)
from dyndeploy.exits import frontier as module
from dyndeploy.exits.frontier import centred, choose
from tests.exits.helpers import COSTS, costs_for, scores_of, small_scores


def every_point(scores: ExitScores, costs: ExitCosts) -> list[OperatingPoint]:
    """All that thresholds can do: each confidence of each exit as its threshold, or never."""
    limits = [[NEVER, *np.unique(row).tolist()] for row in scores.confidences[:-1]]
    return [operate(scores, (*combination, -math.inf), costs) for combination in itertools.product(*limits)]


def agrees(scores: ExitScores, costs: ExitCosts, point: OperatingPoint) -> bool:
    """Whether the thresholds really lead to what the point says."""
    return operate(scores, point.thresholds, costs) == point


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_small_sets_equal_brute_force(data: st.DataObject) -> None:
    scores = data.draw(small_scores(most_images=5))
    costs = data.draw(costs_for(len(scores.exits)))
    frontier = find_frontier(scores, costs)
    assert frontier.exact
    brute = every_point(scores, costs)
    wanted = {
        (point.cost, sum(point.correct))
        for point in brute
        if not any(
            (other.cost <= point.cost and sum(other.correct) > sum(point.correct))
            or (other.cost < point.cost and sum(other.correct) >= sum(point.correct))
            for other in brute
        )
    }
    assert {(point.cost, sum(point.correct)) for point in frontier.points} == wanted
    assert len(frontier.points) == len(wanted)
    assert all(agrees(scores, costs, point) for point in frontier.points)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_constraints_are_kept_exactly_and_more_budget_never_hurts(data: st.DataObject) -> None:
    scores = data.draw(small_scores(most_images=20))
    costs = data.draw(costs_for(len(scores.exits)))
    with pytest.MonkeyPatch.context() as patch:
        # A coarse grid, so that refinement has work to do.
        patch.setattr(module, "GRID_CELLS", data.draw(st.sampled_from([1, 64, 1 << 15])))
        frontier = find_frontier(scores, costs)
    assert all(agrees(scores, costs, point) for point in frontier.points)
    low, high = costs.values[0], costs.values[-1]
    previous = -1.0
    for budget in sorted(data.draw(st.lists(st.floats(low, high), min_size=1, max_size=8))):
        point = choose(frontier.points, Constraint(cost=budget))
        assert point is not None
        assert point.cost <= budget
        assert point.accuracy >= previous
        previous = point.accuracy
    last = 0.0
    for accuracy in sorted(data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=8))):
        if accuracy <= frontier.points[-1].accuracy:
            point = frontier.choose(Constraint(accuracy=accuracy), costs)
            assert point.accuracy >= accuracy
            assert point.cost >= last
            last = point.cost
        else:
            with pytest.raises(UsageError, match="out of reach"):
                frontier.choose(Constraint(accuracy=accuracy), costs)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_never_worse_than_the_sweep(data: st.DataObject) -> None:
    scores = data.draw(small_scores(most_images=20))
    costs = data.draw(costs_for(len(scores.exits)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GRID_CELLS", data.draw(st.sampled_from([1, 64, 1 << 15])))
        frontier = find_frontier(scores, costs)
    for point in official_sweep(scores, costs):
        best = frontier.choose(Constraint(cost=point.cost), costs)
        assert best.accuracy >= point.accuracy
        assert frontier.choose(Constraint(accuracy=point.accuracy), costs).cost <= point.cost


def test_many_images_use_the_budget_up_and_beat_the_sweep() -> None:
    scores = scores_of(2000)
    frontier = find_frontier(scores, COSTS)
    assert not frontier.exact
    gains = []
    for point in official_sweep(scores, COSTS):
        best = frontier.choose(Constraint(cost=point.cost), COSTS)
        assert agrees(scores, COSTS, best)
        gains.append(best.accuracy - point.accuracy)
    assert min(gains) >= 0
    assert np.mean(gains) > 0.002
    for budget in np.linspace(COSTS.values[0], 900e6, 20):
        best = frontier.choose(Constraint(cost=float(budget)), COSTS)
        assert best.cost <= budget
        # One image more at exit 4 and not at exit 1 costs 0.29 M per image.
        assert budget - best.cost < 5e6


def test_the_same_arguments_give_the_same_frontier() -> None:
    scores = scores_of(700)
    assert find_frontier(scores, COSTS) == find_frontier(scores, COSTS)
    order = np.random.default_rng(1).permutation(700)
    values = [(point.cost, point.accuracy) for point in find_frontier(scores, COSTS).points]
    assert [(point.cost, point.accuracy) for point in find_frontier(scores.select(order), COSTS).points] == values


def test_without_an_exit_nothing_leaves_there() -> None:
    scores = scores_of(600)
    whole, part = find_frontier(scores, COSTS), find_frontier(scores, COSTS, without=(3,))
    assert all(point.counts[2] == 0 and point.thresholds[2] == NEVER for point in part.points)
    for point in part.points[:: len(part.points) // 10]:
        assert whole.choose(Constraint(cost=point.cost), COSTS).accuracy >= point.accuracy - 2 / 600
    only = find_frontier(scores, COSTS, without=(1, 2, 3))
    assert [point.counts for point in only.points] == [(0, 0, 0, 600)]
    with pytest.raises(UsageError, match="Exit 4 cannot be switched off"):
        find_frontier(scores, COSTS, without=(4,))


def test_one_exit_leaves_no_choice() -> None:
    scores = ExitScores((4,), np.full((1, 3), 0.5, np.float32), np.array([[True, False, True]]))
    frontier = find_frontier(scores, ExitCosts((5.0,)))
    assert [(point.cost, point.accuracy) for point in frontier.points] == [(5.0, 2 / 3)]
    assert centred(scores, frontier.points[0]) == frontier.points[0]


def test_exits_and_images_beyond_four_are_searched_too() -> None:
    skill = (0.8, 1.0, 1.2, 1.5, 1.8, 2.1)
    scores = scores_of(400, skill=skill)
    costs = ExitCosts(tuple(float(index + 1) for index in range(6)), "ms")
    frontier = find_frontier(scores, costs)
    assert all(agrees(scores, costs, point) for point in frontier.points)
    assert frontier.points[0].cost == 1.0


def test_thresholds_lie_between_confidences() -> None:
    scores = scores_of(300)
    point = official_sweep(scores, COSTS)[12]
    moved = centred(scores, point)
    assert (moved.counts, moved.correct, moved.cost) == (point.counts, point.correct, point.cost)
    assert agrees(scores, COSTS, moved)
    for index, (before, after) in enumerate(zip(point.thresholds[:-1], moved.thresholds[:-1], strict=True)):
        assert before in scores.confidences[index]
        assert after not in scores.confidences[index]
        assert np.float32(after) == after < before
    neighbours = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(0))], [0, 0]], np.float32)
    close = ExitScores((3, 4), neighbours, np.ones((2, 2), bool))
    pair = ExitCosts((1.0, 2.0))
    assert centred(close, operate(close, (0.5, 0), pair)).thresholds[0] == 0.5
    assert operate(close, centred(close, operate(close, (0.5, 0), pair)).thresholds, pair).counts == (1, 1)


def test_thinning_keeps_both_ends() -> None:
    frontier = find_frontier(scores_of(600), COSTS)
    points = frontier.thinned(20)
    assert len(points) <= 20
    assert (points[0], points[-1]) == (frontier.points[0], frontier.points[-1])
    assert Frontier(points, exact=False).thinned(20) == points


def test_constraints_out_of_reach_say_what_can_be_reached() -> None:
    scores = scores_of(300)
    frontier = find_frontier(scores, COSTS)
    with pytest.raises(UsageError, match=r"300\.00 M MACs .* out of reach: the cheapest exit alone costs 619\.40 M"):
        frontier.choose(Constraint(cost=300e6), COSTS)
    with pytest.raises(UsageError, match=r"100\.00% is out of reach"):
        frontier.choose(Constraint(accuracy=1.0), COSTS)


@pytest.mark.parametrize(
    "given_", [{}, {"cost": 1.0, "accuracy": 0.5}, {"cost": 0.0}, {"cost": math.nan}, {"accuracy": 76.0}]
)
def test_impossible_constraints(given_: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Constraint(**given_)
