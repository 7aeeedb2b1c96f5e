"""Readings put together: intervals, restarts, verdicts after so many images."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dyndeploy.watching.drift import Calibration
from dyndeploy.watching.reading import read_line
from dyndeploy.watching.watch import Follower
from tests.watching.helpers import line

EXPECTED = Calibration("it", {"1": 0.6, "2": 0.4}, 1000, {}, 0, {"fp32": (0.5, -math.inf)})


def test_intervals_are_differences() -> None:
    follower = Follower(None, history=True)
    first = follower.add(read_line(line(100)))
    assert (first.interval.images, first.seconds, first.drift) == (100, 1.0, None)
    second = follower.add(read_line(line(300)))
    assert (second.interval.images, second.seconds, second.images_per_second) == (200, 2.0, 100.0)
    assert second.interval.exits == {"1": 120, "2": 80}
    value = second.to_json()
    assert value["interval"]["images_per_second"] == 100.0 and value["interval"]["mean_ms"] == 7.5
    assert value["percentiles_ms"] == {"p50": 7.0, "p95": 8.5, "p99": 9.0}
    assert value["percentiles"] == "of the latest 300 images"
    assert read_line(line(300)) == replace(second.reading)


def test_without_exact_percentiles_those_of_the_interval_are_taken_from_the_histogram() -> None:
    follower = Follower(None, history=True)
    for images in (100, 200):
        status = follower.add(replace(read_line(line(images)), recent={}))
    values, of = status.percentiles
    assert values == pytest.approx({"p50": 7.5, "p95": 9.75, "p99": 9.95})
    assert of == "of the last interval, between a histogram's bounds"


def test_a_session_that_starts_anew_counts_from_nothing() -> None:
    follower = Follower(None, history=True)
    follower.add(read_line(line(500)))
    again = follower.add(read_line(line(20, started=2000.0, time=2001.0)))
    assert (again.interval.images, again.seconds) == (20, 1.0)
    # A server does not say when it began; counters that went down do.
    follower = Follower(None, history=False)
    server = [replace(read_line(line(images)), started=None) for images in (500, 20, 30)]
    intervals = [follower.add(reading).interval.images for reading in server]
    assert intervals == [500, 20, 10]


def test_a_verdict_comes_after_so_many_images_and_stands_until_the_next() -> None:
    follower = Follower(lambda reading: EXPECTED, 1000, history=True)
    statuses = [follower.add(read_line(line(images))) for images in range(100, 2300, 100)]
    assert [status.drift is not None for status in statuses] == [False] * 9 + [True] * 13
    assert statuses[9].drift is statuses[18].drift is not statuses[19].drift
    assert statuses[9].drift is not None and statuses[9].drift.images == 1000
    assert statuses[12].pending == 300
    assert not statuses[-1].drift.drifted  # type: ignore[union-attr]


def test_what_a_server_counted_before_it_was_watched_is_not_judged() -> None:
    follower = Follower(lambda reading: EXPECTED, 100, history=False)
    assert follower.add(replace(read_line(line(100_000)), started=None)).drift is None
    status = follower.add(replace(read_line(line(100_100)), started=None))
    assert status.drift is not None and status.drift.images == 100
