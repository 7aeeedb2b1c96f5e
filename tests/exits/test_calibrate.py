from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.errors import InputError, UsageError
from dyndeploy.exits import (
    NEVER,
    SWEEP,
    Calibration,
    CalibrationResult,
    Constraint,
    ExitCosts,
    ExitScores,
    calibrate,
    load_calibration,
    official_sweep,
    operate,
)
from tests.exits.helpers import COSTS, scores_of

BUDGET = Constraint(cost=800e6)
WORSE_THIRD = (1.0, 1.9, 1.2, 2.3)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(scores_of(1000), COSTS, BUDGET)


def result_of(calibration: Calibration) -> CalibrationResult:
    return CalibrationResult(
        calibration=calibration,
        network="resnet50_0375_perceiver_t128",
        precision="fp32",
        macs=COSTS.values,
        source="invented logits",
        runtime={"runtime": "onnxruntime", "version": "1"},
        machine={"cpu": "none", "date": "today"},
    )


def test_a_budget_is_kept_and_used(calibration: Calibration) -> None:
    chosen, held_out = calibration.chosen, calibration.held_out
    assert chosen is not None
    assert held_out is not None
    assert operate(scores_of(1000), chosen.thresholds, COSTS) == chosen
    assert 790e6 < chosen.cost <= 800e6
    affordable = [point.accuracy for point in calibration.sweep if point.cost <= 800e6]
    assert chosen.accuracy >= max(affordable)
    assert abs(held_out.accuracy - chosen.accuracy) < 0.05
    assert held_out.cost == pytest.approx(chosen.cost, rel=0.05)
    assert sum(held_out.shares) == pytest.approx(1)
    assert [point.cost for point in calibration.alone] == list(COSTS.values)
    assert [point.accuracy for point in calibration.alone] == list(scores_of(1000).accuracies)


def test_by_default_nothing_is_lost_against_the_last_exit() -> None:
    calibration = calibrate(scores_of(500), COSTS)
    assert calibration.chosen is not None
    assert calibration.chosen.accuracy >= calibration.alone[-1].accuracy
    assert calibration.chosen.cost < 0.9 * calibration.alone[-1].cost


def test_the_sweep_alone_chooses_nothing_and_with_a_budget_its_best_point() -> None:
    scores = scores_of(500)
    bare = calibrate(scores, COSTS, method=SWEEP)
    assert bare.chosen is None
    assert bare.held_out is None
    assert bare.sweep == official_sweep(scores, COSTS)
    with pytest.raises(UsageError, match="bare sweep"):
        result_of(bare).threshold_info()
    best = calibrate(scores, COSTS, BUDGET, method=SWEEP)
    assert best.chosen is not None
    allowed = [point for point in best.sweep if point.cost <= 800e6]
    assert best.chosen.accuracy == max(point.accuracy for point in allowed)
    assert operate(scores, best.chosen.thresholds, COSTS) == best.chosen
    with pytest.raises(UsageError, match="None of the 33 points"):
        calibrate(scores, COSTS, Constraint(cost=620e6), method=SWEEP)


def test_a_worse_and_dearer_exit_is_switched_off_with_its_effect() -> None:
    scores = scores_of(500, skill=WORSE_THIRD)
    calibration = calibrate(scores, COSTS, BUDGET)
    (entry,) = calibration.dominated
    assert (entry.exit, entry.by) == (3, 2)
    assert entry.accuracy < entry.by_accuracy
    assert entry.switched_off
    assert calibration.switched_off == (3,)
    assert calibration.chosen is not None
    assert calibration.chosen.counts[2] == 0
    assert calibration.chosen.thresholds[2] == NEVER
    assert 3 in calibration.unused
    assert entry.removed == calibration.chosen
    assert entry.kept.accuracy >= calibration.chosen.accuracy
    text = entry.describe(COSTS)
    assert "Exit 3 costs more than exit 2" in text
    assert "switched off" in text
    kept = calibrate(scores, COSTS, BUDGET, switch_off=False)
    assert kept.switched_off == ()
    assert kept.dominated[0].removed == entry.removed
    assert "stays on" in kept.dominated[0].describe(COSTS)


def test_a_worse_exit_that_helps_stays_on() -> None:
    # Exit 2 is right on half of the images and knows which; exit 1 is right more often, but never sure.
    images = 400
    half = np.arange(images) % 2 == 0
    confidences = np.stack([np.full(images, 0.3), np.where(half, 0.9, 0.1), np.full(images, 0.5)])
    correct = np.stack([np.arange(images) % 8 < 5, half, np.ones(images, bool)])
    scores = ExitScores((1, 2, 4), confidences.astype(np.float32), correct)
    costs = ExitCosts((1.0, 2.0, 10.0), "ms", "drawn")
    calibration = calibrate(scores, costs, Constraint(accuracy=0.99))
    (entry,) = calibration.dominated
    assert (entry.exit, entry.by) == (2, 1)
    assert not entry.switched_off
    assert calibration.chosen is not None
    assert calibration.chosen.cost == 6.0
    assert entry.removed is not None
    assert entry.removed.cost == 10.0
    assert "it helps" in entry.describe(costs)


def test_few_images_and_missed_limits_are_named(calibration: Calibration) -> None:
    notes = calibrate(scores_of(60), COSTS, BUDGET).warnings()
    assert "Only 60 images" in notes[0]
    many = calibration
    assert not any("Only" in note for note in many.warnings())
    assert many.held_out is not None
    dear = replace(many, held_out=replace(many.held_out, cost=801e6, missed=2))
    assert any("more than the budget of 800.00 M MACs" in note for note in dear.warnings())
    assert any("In 2 of 5 folds" in note for note in dear.warnings())
    accurate = replace(many, constraint=Constraint(accuracy=0.999))
    assert any("less than 99.90%" in note for note in accurate.warnings())


def test_folds_that_miss_the_constraint_are_counted() -> None:
    scores = scores_of(200)
    best = max(point.accuracy for point in calibrate(scores, COSTS).frontier)
    calibration = calibrate(scores, COSTS, Constraint(accuracy=best))
    assert calibration.held_out is not None
    assert 0 < calibration.held_out.missed <= 5


def test_refusals() -> None:
    scores = scores_of(50)
    with pytest.raises(UsageError, match="Did you mean 'sweep'"):
        calibrate(scores, COSTS, BUDGET, method="swep")
    with pytest.raises(UsageError, match="out of reach"):
        calibrate(scores, COSTS, Constraint(cost=1e6))
    with pytest.raises(UsageError, match="one per exit"):
        calibrate(scores, ExitCosts((1.0,)), BUDGET)
    with pytest.raises(UsageError, match="folds"):
        calibrate(scores, COSTS, BUDGET, folds=1)
    with pytest.raises(InputError, match="One image"):
        calibrate(scores.select(np.arange(1)), COSTS, BUDGET)
    other = ExitScores((1, 2, 3, 5), scores.confidences, scores.correct)
    with pytest.raises(UsageError, match="official sweep"):
        calibrate(other, COSTS, BUDGET, method=SWEEP)
    assert calibrate(other, COSTS, BUDGET).sweep == ()


def test_json_round_trip(calibration: Calibration, tmp_path: Path) -> None:
    result = result_of(calibration)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(result.to_json(), allow_nan=False))
    assert load_calibration(path) == result
    bare = result_of(calibrate(scores_of(100, skill=WORSE_THIRD), COSTS, method=SWEEP))
    assert CalibrationResult.from_json(json.loads(json.dumps(bare.to_json()))) == bare
    off = result_of(calibrate(scores_of(300, skill=WORSE_THIRD), COSTS, BUDGET))
    assert CalibrationResult.from_json(json.loads(json.dumps(off.to_json()))) == off
    info = result.threshold_info()
    assert info.values[-1] == -math.inf
    assert info.images == 1000
    assert info.budget == "at most 800.00 M MACs per image"


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "measured"},
        {"schema_version": 9},
        {"exits": [1, 2]},
        {"macs": [1.0]},
        {"method": "guess"},
        {"images": 7},
        {"alone": []},
        {"frontier": []},
        {"chosen": None},
        {"constraint": {"cost": -1, "accuracy": None}},
        {"constraint": {"cost": "much", "accuracy": None}},
        {"costs": {"unit": "parsecs", "values": [1, 2, 3, 4], "source": "x"}},
        {"held_out": {"accuracy": 2, "cost": 1, "shares": [0, 0, 0, 1], "folds": 5, "missed": 0}},
        {"sweep": [{"thresholds": [1, 2, 3, 4], "counts": [1000, 0, 0, 0], "correct": [0, 0, 0, 0]}]},
        {"sweep": [{"thresholds": [1, 2, 3, None], "counts": [1000, 0, 0, 0], "correct": [0, 1, 0, 0]}]},
    ],
)
def test_damaged_json_is_refused(calibration: Calibration, damage: dict[str, object]) -> None:
    value = json.loads(json.dumps(result_of(calibration).to_json())) | damage
    with pytest.raises(InputError, match="alibrat"):
        CalibrationResult.from_json(value)
