"""Lines of a session, and what they tell."""

from __future__ import annotations

import json
import math

import pytest

from dyndeploy.errors import InputError
from dyndeploy.watching.reading import Counters, Histogram, histogram_of, read_line
from tests.watching.helpers import line


def test_a_line_is_read_and_written_again() -> None:
    reading = read_line(line(200, rails_mw={"VDD_IN": 4000, "VDD_SOC": 900.5}, temperatures_c={"CPU-therm": 41.5}))
    assert (reading.model, reading.name, reading.started, reading.thresholds) == (
        "net", "net", (1000.0, 7), (0.5, -math.inf),
    )  # fmt: skip
    counters = reading.counters
    assert (counters.images, counters.ms, counters.exits) == (200, 1500.0, {"1": 120, "2": 80})
    assert counters.mean_rates == {"mask/a": 0.25, "mask/b": 0.75}
    assert counters.exit_shares == {"1": 0.6, "2": 0.4}
    assert reading.recent == {"p50": 7.0, "p95": 8.5, "p99": 9.0} and reading.recent_images == 200
    assert reading.power == (4000.0, "VDD_IN") and reading.hottest == ("CPU-therm", 41.5)
    assert read_line(json.dumps(reading.to_json())) == reading
    empty = read_line(line(0))
    assert empty.counters.mean_rates == empty.counters.exit_shares == empty.recent == {}
    assert read_line(json.dumps(empty.to_json())) == empty


@pytest.mark.parametrize(
    ("rails", "power"),
    [
        (
            {"GPU": 1, "CPU": 2, "SOC": 3, "CV": 4, "VDDRQ": 5, "SYS5V": 6},
            (21.0, "GPU + CPU + SOC + CV + VDDRQ + SYS5V"),
        ),
        ({"card 0": 700.0}, (700.0, "card 0")),
        ({"card 0": 700.0, "card 1": 600.0}, None),
        ({}, None),
    ],
)
def test_rails_are_summed_as_the_agent_does(rails: dict[str, float], power: object) -> None:
    assert read_line(line(1, rails_mw=rails)).power == power


def test_sensors_that_measure_nothing_are_left_out() -> None:
    sensors = {"CPU-therm": 40.0, "PMIC-Die": 100.0, "gpu": -256.0}
    assert read_line(line(1, temperatures_c=sensors)).temperatures_c == {"CPU-therm": 40.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema_version": 1, "netw', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "must be an object"),
        (line(1, schema_version=2), "schema version 2; this release reads 1"),
        (line(1, rates={"mask/a": 1.5}), r"mask/a'\] must be"),
        (line(1, exits={"1": -1}), "at least 0"),
        (line(1, failed="no"), "failed must be"),
        (line(1, time=None), "time must be"),
    ],
)
def test_what_is_no_line_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_line(text)


def test_percentiles_of_a_histogram_lie_where_the_images_are() -> None:
    histogram = Histogram((1.0, 2.0, 5.0), (0, 10, 10, 0))
    assert histogram.percentile(0.25) == pytest.approx(1.5)
    assert histogram.percentile(0.5) == pytest.approx(2.0)
    assert histogram.percentile(0.75) == pytest.approx(3.5)
    assert histogram.percentile(1.0) == pytest.approx(5.0)
    assert Histogram((1.0,), (9, 1)).percentile(0.95) == math.inf
    assert Histogram((1.0,), (0, 0)).percentile(0.5) is None


def test_what_was_counted_in_between() -> None:
    early, late = read_line(line(100)).counters, read_line(line(300)).counters
    between = late.since(early)
    assert late.follows(early) and not early.follows(late)
    assert (between.images, between.ms, between.exits) == (200, 1500.0, {"1": 120, "2": 80})
    assert between.mean_rates == pytest.approx({"mask/a": 0.25, "mask/b": 0.75})
    assert between.histogram is not None and between.histogram.counts[3] == 200
    assert between.percentiles()["p50"] == pytest.approx(7.5)
    assert Counters().percentiles() == {}


def test_cumulative_buckets_become_counts() -> None:
    pairs = [(math.inf, 30.0), (1.0, 10.0), (5.0, 25.0)]
    assert histogram_of(pairs) == Histogram((1.0, 5.0), (10, 15, 5))
    for wrong in ([(1.0, 10.0)], [(1.0, 10.0), (5.0, 25.0)], [(1.0, 10.0), (math.inf, 9.0)], [(math.nan, 1.0)] * 2):
        assert histogram_of(wrong) is None
