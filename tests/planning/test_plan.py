from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.cli import run
from dyndeploy.errors import InputError, UsageError
from dyndeploy.planning import Plan, PlanSettings, load_plan, plan_network
from dyndeploy.planning.search import Option, _Search
from dyndeploy.prediction.kernels import Kernel
from dyndeploy.prediction.laudnet.network_spec import BlockSpec, NetworkSpec, StemSpec, network_spec

SMALL = NetworkSpec(
    "small",
    (32, 32),
    StemSpec(3, 16, 3, 2),
    (2, 1),
    (
        BlockSpec("layer1.0", 16, 8, 32, 16, 16, projection=True, mask_before_norm=True),
        BlockSpec("layer1.1", 32, 8, 32, 16, 16, mask_before_norm=True),
        BlockSpec("layer2.0", 32, 16, 64, 16, 16, stride=2, projection=True, mask_before_norm=True),
    ),
    classes=10,
)


def price(kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A machine on which starting a dynamic operator costs much and small patches cost more."""
    ms = []
    for kernel in kernels:
        f = kernel.features
        patches = f.get("mask_h", 0) * f.get("mask_w", 0)
        start = 0.004 if kernel.kind.endswith("bottleneck") else 0.001
        ms.append(start + kernel.macs / 1e8 + kernel.bytes / 1e8 + 2e-5 * patches)
    array = np.array(ms)
    return array, 0.9 * array, 1.1 * array


SETTINGS = PlanSettings(modes=("spatial", "channel", "static"), granularities=(1, 4), channel_granularities=(2,))


def test_the_search_finds_what_trying_everything_finds() -> None:
    search = _Search(SMALL, price, SETTINGS, "cpu", 1)
    options = [Option("spatial", 1, 1), Option("spatial", 4, 1), Option("channel", 1, 2), Option("static", 1, 1)]
    times = []
    for first, second in itertools.product(options, repeat=2):
        for dense in itertools.product((False, True), repeat=3):
            chosen = [
                Option("static", 1, 1) if skip else o for o, skip in zip((first, first, second), dense, strict=True)
            ]
            times.append(float(price(search._kernels(chosen))[0].sum()))
    best, _ = plan_network(SMALL, {1: price}, SETTINGS)
    # A network's head differs a little with the layout that reaches it, which the search only sees at the end.
    assert best.latency_ms == pytest.approx(min(times), rel=0.01)
    assert best.latency_ms <= best.static_ms


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 1.0])
def test_never_slower_than_static_and_the_front_is_a_front(rate: float) -> None:
    settings = PlanSettings(rate=rate, granularities=(1, 2, 4))
    best, front = plan_network(network_spec("laud_resnet50"), {1: price}, settings)
    assert best.latency_ms <= best.static_ms * (1 + 1e-9)
    ms, macs = [plan.latency_ms for plan in front], [plan.macs for plan in front]
    assert ms == sorted(ms) and macs == sorted(macs) and best is front[0]
    assert all(plan.interval_ms[0] <= plan.latency_ms <= plan.interval_ms[1] for plan in front)


def test_a_budget_takes_the_plan_that_computes_most_within_it() -> None:
    spec = network_spec("laud_resnet50")
    fastest, front = plan_network(spec, {1: price}, SETTINGS)
    budget = (fastest.latency_ms + fastest.static_ms) / 2
    chosen, _ = plan_network(spec, {1: price}, SETTINGS, budget_ms=budget)
    assert fastest.macs < chosen.macs and chosen.latency_ms <= budget
    assert chosen.macs == max(plan.macs for plan in front if plan.latency_ms <= budget)
    with pytest.raises(UsageError, match="fastest takes"):
        plan_network(spec, {1: price}, SETTINGS, budget_ms=fastest.latency_ms / 2)


def test_blocks_that_are_not_worth_it_run_densely() -> None:
    def dear(kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ms = np.array(
            [
                100.0 if k.block == "layer3.2" and "bottleneck" in k.kind else p
                for k, p in zip(kernels, price(kernels)[0], strict=True)
            ]
        )
        return ms, ms, ms

    settings = PlanSettings(rate=0.2, modes=("spatial", "static"), granularities=(4,))
    best, _ = plan_network(network_spec("laud_resnet50"), {1: dear}, settings)
    assert best.dense == ("layer3.2",) and best.mode[2] == "spatial"
    assert any(reason.startswith("layer3.2 runs densely") for reason in best.reasons)


def test_threads_are_chosen() -> None:
    def twice(kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(0.5 * part for part in price(kernels))  # type: ignore[return-value]

    assert plan_network(SMALL, {1: price, 2: twice}, SETTINGS)[0].threads == 2


def test_a_uniform_mode_is_one() -> None:
    settings = PlanSettings(uniform_mode=True, granularities=(1, 4))
    for plan in plan_network(network_spec("laud_resnet50"), {1: price}, settings)[1]:
        assert len(set(plan.mode) - {"static"}) <= 1


@pytest.mark.parametrize(
    "settings",
    [{"modes": ("spatail",)}, {"modes": ()}, {"rate": 1.5}, {"granularities": (0,)}, {"channel_granularities": ()}],
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UsageError):
        PlanSettings(**settings)


def test_networks_without_operators_are_refused() -> None:
    with pytest.raises(UsageError, match="squeeze"):
        plan_network(network_spec("laud_regnety_400mf"), {1: price})
    with pytest.raises(UsageError, match="calibrate-device"):
        plan_network(SMALL, {})


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    plan, _ = plan_network(SMALL, {1: price}, SETTINGS)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_json()))
    assert load_plan(path) == plan
    assert Plan.from_json({"chosen": plan.to_json(), "front": []}) == plan
    good = plan.to_json()
    for change in (
        {"format": "x"},
        {"schema": 9},
        {"mode": "spatial"},
        {"granularity": ["a"]},
        {"threads": 0},
        {"new": 1},
    ):
        with pytest.raises(InputError):
            Plan.from_json({**good, **change})
    with pytest.raises(InputError):
        Plan.from_json({key: item for key, item in good.items() if key != "dense"})


def test_command_line_without_a_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run(["plan", "laud_resnet50"]) == 2
    (tmp_path / "bad.json").write_text("{}")
    assert run(["plan", "laud_resnet50", "--calibration", str(tmp_path / "bad.json")]) == 1
