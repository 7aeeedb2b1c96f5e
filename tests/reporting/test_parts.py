"""A detector's parts on the page of its profile."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from urllib.parse import unquote

import pytest

from dyndeploy.measure import Profile
from dyndeploy.reporting import compare_profile, parts_table, predict_profile, render_report, steps_table
from tests.bundles import HEAD_MACS, STATIC_MACS
from tests.measure.test_parts import with_steps


def test_the_table_has_every_part_and_rate(parted: Profile) -> None:
    table = parts_table(parted)
    assert table is not None
    assert [row[0] for row in table.rows] == ["backbone", "neck", "heads", "post-processing", "other"]
    assert table.rows[2][1:3] == (f"{HEAD_MACS / 1e9:.4g}", f"{HEAD_MACS / STATIC_MACS:.1%}")
    assert table.rows[2][-1].endswith("/ 1.00x")
    assert table.rows[3][-1].endswith("/ -")
    rows = list(csv.DictReader(io.StringIO(unquote(table.csv.split(",", 1)[1]))))
    assert len(rows) == 3 * 5
    assert float(rows[2]["needed_macs"]) == HEAD_MACS


def test_the_page_says_how_far_skipping_carries(parted: Profile, profile: Profile) -> None:
    page = render_report(parted)
    assert 'id="parts-heading"' in page
    assert "if all of them cost nothing, the whole would be 1.85x as fast" in page
    assert 'id="parts-heading"' not in render_report(profile)
    assert parts_table(profile) is None


def test_parts_are_compared_with_what_is_predicted(parted: Profile) -> None:
    onboard = replace(parted, device="nano")
    sweep = predict_profile(onboard, "nano")
    comparison = compare_profile(onboard, sweep)
    measured, predicted = (*parted.rates, parted.data), (*sweep.rates, sweep.data)
    for rate, result, prediction in zip(comparison.rates, measured, predicted, strict=True):
        assert [part.name for part in rate.parts] == ["backbone", "neck", "heads", "post-processing"]
        assert rate.parts[0].measured_ms == result.parts[0].dynamic_ms
        assert sum(part.predicted_ms for part in rate.parts) == pytest.approx(prediction.latency_ms)
        assert sum(part.predicted_share for part in rate.parts) == pytest.approx(1)
    assert comparison.to_json()["rates"][0]["parts"][1]["name"] == "neck"
    assert "Parts, measured and predicted for nano" in render_report(onboard, sweep)


def test_engines_and_host_programs_have_a_table(parted: Profile) -> None:
    assert steps_table(parted) is None
    stepped = with_steps(parted)
    table = steps_table(stepped)
    assert table is not None
    assert [row[:2] for row in table.rows] == [("part0.onnx", "engine"), ("part1.npz", "host")]
    rows = list(csv.DictReader(io.StringIO(unquote(table.csv.split(",", 1)[1]))))
    assert len(rows) == 3 * 2 and float(rows[3]["dynamic_ms"]) == 1.25
    assert "medians of the runs of the rounds" in render_report(stepped)
    assert "medians of the runs of the rounds" not in render_report(parted)
