from __future__ import annotations

from dataclasses import replace

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.planning import Plan, PlanSettings, choose_measured, measure_plans, plan_network, uniform_plans
from dyndeploy.prediction import AnalyticalModel
from dyndeploy.targets.devices import load_device

SETTINGS = PlanSettings(rate=0.5, modes=("spatial", "static"), granularities=(1, 2, 4))


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    # Any model will do: what is tested is measured.
    price, name = AnalyticalModel(load_device("tx2")).price, "laud_resnet14_small"
    best, _ = plan_network(name, {1: price}, SETTINGS)
    return [best, *uniform_plans(name, price, SETTINGS)]


def test_uniform_plans_have_one_granularity_and_no_dense_block(plans: list[Plan]) -> None:
    uniform = plans[1:]
    assert [set(plan.mode) for plan in uniform[:-1]] == [{"spatial"}] * (len(uniform) - 1)
    sizes = (32, 16, 8, 4)
    largest = [max(g for g in (1, 2, 4) if g == 1 or size // g >= 2) for size in sizes]
    assert {plan.granularity for plan in uniform[:-1]} == {tuple(min(g, most) for most in largest) for g in (1, 2, 4)}
    assert uniform[-1].mode == ("static",) * 4 and uniform[-1].macs == uniform[-1].static_macs
    assert all(not plan.dense for plan in uniform)


def test_plans_are_measured_and_the_fastest_is_chosen(plans: list[Plan]) -> None:
    measured = measure_plans(plans, rounds=3, native="off")
    assert [replace(plan, measured_ms=None, measured_with=None) for plan in measured] == plans
    times = [plan.measured_ms for plan in measured]
    assert all(ms is not None and 0 < ms < 1000 for ms in times)
    assert choose_measured(measured).measured_ms == min(times)
    for plan in measured:
        assert plan.measured_with == (None if set(plan.mode) == {"static"} else "function bodies")
    assert Plan.from_json(measured[0].to_json()) == measured[0]


def test_a_budget_is_met_with_the_most_computation(plans: list[Plan]) -> None:
    timed = [replace(plan, measured_ms=float(index + 1), macs=float(index)) for index, plan in enumerate(plans)]
    assert choose_measured(timed, 2.5) is timed[1]
    with pytest.raises(UsageError, match=r"takes 1\.00 ms"):
        choose_measured(timed, 0.5)


def test_plans_for_another_device_are_not_measured_here(plans: list[Plan]) -> None:
    with pytest.raises(UsageError, match="tx2"):
        measure_plans([replace(plans[0], device="tx2")])
