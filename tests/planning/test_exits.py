"""Which exits pay: the search, the command line, and the export that follows it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.cli import run
from dyndeploy.errors import InputError, UsageError
from dyndeploy.planning import ExitPlan, device_prices, load_plan, plan_exits
from dyndeploy.planning import exits as module
from dyndeploy.planning.sources import staged_network
from dyndeploy.prediction import StagedNodes, predict
from tests.device_calibration.helpers import little_calibration
from tests.staged_bundles import staged_bundle

SMALL = "resnet10_small_perceiver_t32"
MIX = (0.4, 0.3, 0.2, 0.1)


@pytest.fixture(scope="module")
def network() -> StagedNodes:
    found = staged_network(SMALL, "nano")
    assert found is not None
    return found


def planned(network: StagedNodes, mix: tuple[float, ...] | None = MIX) -> ExitPlan:
    return plan_exits(network, "nano", device_prices("nano"), mix)


def test_every_choice_is_priced_and_the_fastest_is_chosen(network: StagedNodes) -> None:
    plan = planned(network)
    assert {choice.exits for choice in plan.choices} == {
        (*some, 4) for count in range(4) for some in itertools.combinations((1, 2, 3), count)
    }
    assert plan.chosen == plan.choices[0] == min(plan.choices, key=lambda choice: choice.latency_ms)
    by_exits = {choice.exits: choice for choice in plan.choices}
    for exits, choice in by_exits.items():
        own = predict(SMALL, "nano", batch=1, exit_mix=MIX, exits=exits)
        assert choice.latency_ms == pytest.approx(own.latency_ms)
        assert choice.interval_ms == pytest.approx(own.interval_ms)
        assert sum(choice.shares) == pytest.approx(1) and choice.worst_ms == own.exits[-1].latency_ms
    for verdict in plan.verdicts:
        with_it = tuple(sorted({*plan.chosen.exits, verdict.exit}))
        without = tuple(number for number in with_it if number != verdict.exit)
        saved = by_exits[without].latency_ms - by_exits[with_it].latency_ms
        assert verdict.saved_ms == pytest.approx(saved)
        assert verdict.kept == (verdict.exit in plan.chosen.exits) == (saved > 0)
    assert [verdict.exit for verdict in plan.verdicts] == [1, 2, 3]
    assert plan.kind == "predicted" and plan.threads is None
    assert plan.basis.startswith("device model, not calibrated")


def test_no_exit_pays_where_no_image_leaves_early(network: StagedNodes) -> None:
    plan = planned(network, (0, 0, 0, 1))
    assert plan.chosen.exits == (4,) and not any(verdict.kept for verdict in plan.verdicts)
    assert planned(network, (1, 0, 0, 0)).chosen.exits[0] == 1


def test_many_exits_are_searched_one_at_a_time(network: StagedNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = planned(network)
    monkeypatch.setattr(module, "_ALL_TRIED", 0)
    greedy = planned(network)
    assert greedy.chosen == exact.chosen and len(greedy.choices) <= len(exact.choices)


def test_the_command_line_and_the_export_that_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "plan.json", tmp_path / "bundle"
    base = ["plan", SMALL, "--device", "nano", "--exit-mix", "40/30/20/10"]
    assert run([*base, "-o", str(path)]) == 0
    out = capsys.readouterr().out
    plan = load_plan(path)
    assert isinstance(plan, ExitPlan) and ExitPlan.from_json(plan.to_json()) == plan
    assert "device model, not calibrated" in out and f"--plan {path} --target nano" in out
    for verdict in plan.verdicts:
        assert f"Exit {verdict.exit} {'pays' if verdict.kept else 'does not pay'}" in out
    assert run(base) == 0
    assert f"'dyndeploy export {SMALL} {plan.export_option} --target nano -o BUNDLE'" in capsys.readouterr().out
    seen = {}

    def export_model(network: object, folder: Path, settings: object, **_: object) -> None:
        seen["settings"] = settings
        raise UsageError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dyndeploy.export.export_model", export_model)
        assert run(["export", SMALL, "--plan", str(path), "--target", "nano", "-o", str(output)]) == 2
    assert seen["settings"].exits == plan.chosen.exits  # type: ignore[attr-defined]
    assert run(["export", SMALL, "--plan", str(path), "--exits", "1,4", "-o", str(output)]) == 2
    assert "A plan settles --exits" in capsys.readouterr().err
    path.write_text(json.dumps({**plan.to_json(), "mix": "x"}))
    with pytest.raises(InputError, match="mix"):
        load_plan(path)


def test_a_bundle_is_planned_with_the_shares_of_its_thresholds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = staged_bundle(tmp_path / "b")
    assert run(["plan", str(bundle.path), "--device", "tx2", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["mix"] == pytest.approx([0.5, 0.3, 0.2]) and len(value["choices"]) == 4
    assert value["export"].startswith("--exits ") and value["export"].endswith("4")
    without = staged_bundle(tmp_path / "w", thresholds=None)
    assert run(["plan", str(without.path), "--device", "tx2"]) == 2
    assert "give --exit-mix" in capsys.readouterr().err


def test_on_a_calibrated_cpu_threads_are_those_of_the_calibration(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(little_calibration().to_json()))
    nodes = staged_network(str(staged_bundle(tmp_path / "b").path), "cpu")
    assert nodes is not None
    plan = plan_exits(nodes, "cpu", device_prices("cpu", calibrations=[path]))
    assert plan.threads == 1 and plan.runtime == "onnxruntime" and plan.basis.startswith("calibration of cpu")
    assert np.isfinite([choice.latency_ms for choice in plan.choices]).all()


def test_what_has_no_meaning_for_exits_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["plan", SMALL, "--device", "nano"]
    for options, words in (
        ([], "--exit-mix 40/30/20/10"),
        (["--exit-mix", "1/2"], "give 4 shares"),
        (["--exit-mix", "1/1/1/1", "--modes", "spatial", "--budget-ms", "3"], "Leave --budget-ms, --modes out"),
        (["--exit-mix", "1/1/1/1", "--precision", "int8"], "no INT8 instructions"),
    ):
        assert run([*base, *options]) == 2
        assert words in capsys.readouterr().err
