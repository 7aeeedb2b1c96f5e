"""Drift is found where it is, with the images that it rests on, and seldom where it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.bundle import ThresholdInfo
from dyndeploy.errors import InputError
from dyndeploy.watching.drift import LEVEL, Calibration, Drift, compare, holm
from dyndeploy.watching.reading import Counters, Reading, read_line
from tests.bundles import resealed, tiny_bundle
from tests.staged_bundles import staged_bundle
from tests.watching.helpers import line

EXPECTED = Calibration("it", {"1": 0.6, "2": 0.4}, 1000, {}, 0, {"fp32": (0.5, -math.inf)})
READING = read_line(line(1000))
EXITS = replace(READING, counters=replace(READING.counters, rates={}))


def parts_of(taken: Sequence[int], size: int = 50) -> list[Counters]:
    """Counters of consecutive images that took exits 1 or 2."""
    return [
        Counters(len(part), exits={"1": part.count(1), "2": part.count(2)})
        for part in (list(taken[start : start + size]) for start in range(0, len(taken), size))
    ]


def drawn(share: float, images: int, seed: int) -> list[int]:
    return [1 if value < share else 2 for value in np.random.default_rng(seed).random(images)]


def judged(taken: Sequence[int], calibration: Calibration = EXPECTED) -> Drift:
    return compare(calibration, EXITS, parts_of(taken))


def test_no_drift_is_called_in_what_is_drawn_from_the_calibration() -> None:
    called = [bool(judged(drawn(0.6, 1000, seed)).drifted) for seed in range(300)]
    assert sum(called) <= 2  # 0.3 are expected; three or more have a probability of 0.4 %


def test_a_shift_of_ten_points_is_found() -> None:
    found = [judged(drawn(0.5, 1000, seed)) for seed in range(40)]
    assert sum(bool(drift.drifted) for drift in found) >= 28
    drift = next(drift for drift in found if drift.drifted)
    exit_1 = next(comparison for comparison in drift.comparisons if comparison.what == "exit 1")
    assert exit_1.expected == 0.6 and exit_1.low < exit_1.watched < exit_1.high < 0.6
    assert exit_1.p < LEVEL and drift.images == 1000
    assert drift.line.startswith("DRIFT of exit ") and "in 1000 images" in drift.line
    assert drift.to_json()["drifted"] == [comparison.what for comparison in drift.drifted]


def test_a_scene_that_stays_for_long_is_worth_few_images() -> None:
    """Scenes of 50 frames that all leave at one exit: with independence assumed this would be called drift."""
    called, naive = 0, 0
    for seed in range(100):
        taken = [kind for kind in drawn(0.6, 40, seed) for _ in range(50)]
        drift = judged(taken)
        called += bool(drift.drifted)
        # Parts as large as everything show nothing of the scenes.
        naive += bool(compare(EXPECTED, EXITS, parts_of(taken, 2000)).drifted)
        assert drift.comparisons[0].independent < 300
    assert called <= 3 < 30 < naive


def test_a_handful_of_images_gives_no_verdict() -> None:
    drift = judged([2] * 99)
    assert not drift.comparisons and drift.line == "no verdict on 99 images: fewer than 100."
    assert judged([2] * 100).drifted


def test_a_small_calibration_counts_for_what_it_is() -> None:
    """Three of four images left early: of 5000 watched ones a third does, and that proves nothing."""
    few = replace(EXPECTED, exits={"1": 0.75, "2": 0.25}, exit_images=4)
    assert not judged(drawn(0.33, 5000, 1), few).drifted
    assert judged(drawn(0.33, 5000, 1), replace(few, exit_images=400)).drifted


def test_differences_without_consequence_are_not_drift() -> None:
    many = replace(EXPECTED, exit_images=10_000_000)
    parts = [Counters(100_000, exits={"1": 61_000, "2": 39_000})] * 10
    drift = compare(many, EXITS, parts)
    assert drift.comparisons[0].p < LEVEL and not drift.drifted


def rate_parts(mean: float, images: int, seed: int) -> list[Counters]:
    """Counters of images whose rates spread by 0.1 around a mean, in 20 parts."""
    values = np.random.default_rng(seed).normal(mean, 0.1, (20, images // 20, 2)).clip(0, 1)
    return [Counters(len(part), rates=dict(zip(("a", "b"), part.sum(0), strict=True))) for part in values]


def rates_reading() -> Reading:
    return replace(READING, counters=Counters(1000, rates={"a": 500.0, "b": 500.0}))


def test_rates_are_compared_by_how_they_spread() -> None:
    reading = rates_reading()
    falsely = 0
    for seed in range(150):
        expected = np.random.default_rng(1000 + seed).normal(0.5, 0.1, (64, 2)).mean(0)
        calibration = Calibration("it", rates=dict(zip(("a", "b"), expected, strict=True)), rate_images=64)
        falsely += bool(compare(calibration, reading, rate_parts(0.5, 1000, seed)).drifted)
    assert falsely <= 2
    calibration = Calibration("it", rates={"a": 0.5, "b": 0.5}, rate_images=64)
    found = [compare(calibration, reading, rate_parts(0.6, 1000, seed)) for seed in range(20)]
    assert all(len(drift.drifted) == 2 for drift in found)
    # In one piece nothing is known of the spread: the largest there can be is taken.
    whole = [Counters(1000, rates={"a": 600.0, "b": 500.0})]
    assert not compare(calibration, reading, whole).drifted


def test_rates_of_a_few_reference_images_are_not_compared() -> None:
    drift = compare(
        Calibration("the bundle", rates={"a": 0.1, "b": 0.1}, rate_images=2), rates_reading(), rate_parts(0.9, 1000, 1)
    )
    assert not drift.comparisons
    assert "the bundle has those of 2 images, too few to compare with" in drift.line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"thresholds": (0.9, -math.inf)}, "runs with other thresholds (0.9) than it"),
        (
            {"counters": Counters(1000, exits={"1": 600, "3": 400})},
            "has the exits 1, 3, it 1, 2: it is another network",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(change: dict[str, object], said: str) -> None:
    drift = compare(EXPECTED, replace(EXITS, **change), parts_of(drawn(0.1, 1000, 1)))  # type: ignore[arg-type]
    assert not drift.comparisons and said in drift.line


def test_holm_s_adjustment_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_bundle_s_calibration_is_what_its_manifest_records(tmp_path: Path) -> None:
    values = (0.5, 0.4, -math.inf)
    info = ThresholdInfo(values, "digits", 600, (0.5, 0.3, 0.2), 0.9, "a budget")
    bundle = staged_bundle(tmp_path / "staged", thresholds=info)
    calibration = Calibration.of_bundle(bundle, "fp32")
    assert calibration.exits == {"1": 0.5, "2": 0.3, "4": 0.2} and calibration.exit_images == 600
    assert calibration.thresholds == {"fp32": values}
    reading = replace(EXITS, precision="fp16")
    drift = compare(Calibration.of_bundle(bundle, "fp16"), reading, parts_of(drawn(0.5, 200, 1)))
    assert "no shares for fp16, but for fp32" in drift.line
    masked = tiny_bundle(tmp_path / "tiny")
    rates = {mask.name: 0.25 for mask in masked.manifest.masks}
    masked = resealed(masked, reference=replace(masked.manifest.reference, rates=rates))
    calibration = Calibration.of_bundle(masked, "fp32")
    assert (calibration.rates, calibration.rate_images, calibration.exits) == (rates, 2, {})


def test_an_earlier_file_is_a_calibration(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    path.write_text(line(100) + "\n" + line(400) + "\n" + line(500)[:80])
    calibration = Calibration.of_file(path)
    assert (calibration.exits, calibration.exit_images) == ({"1": 0.6, "2": 0.4}, 400)
    assert (calibration.rates, calibration.rate_images) == ({"mask/a": 0.25, "mask/b": 0.75}, 400)
    assert calibration.thresholds == {"fp32": (0.5, -math.inf)}
    path.write_text(line(0) + "\n")
    with pytest.raises(InputError, match="holds no line"):
        Calibration.of_file(path)
