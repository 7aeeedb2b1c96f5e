"""Follow a source: what was counted since the last look, and whether it still is as in the calibration."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dyndeploy.watching.drift import FEWEST_IMAGES, Calibration, Drift, compare
from dyndeploy.watching.reading import Counters, Reading
from dyndeploy.watching.sources import Source

DEFAULT_WINDOW = 1000
"""Images that a verdict rests on."""
KEPT = 60
"""Statuses that are kept for a view over time."""


@dataclass(frozen=True)
class Status:
    """A reading and what follows from it and those before.

    Attributes:
        reading: What the source says.
        interval: Counted since the reading before.
        seconds: How long that was; None for the first reading of a session.
        drift: The latest verdict; None before the first one, and where there is no calibration.
        pending: Images counted for the next verdict.
    """

    reading: Reading
    interval: Counters
    seconds: float | None
    drift: Drift | None
    pending: int

    @property
    def images_per_second(self) -> float | None:
        """Of the interval; None where its length is not known."""
        return self.interval.images / self.seconds if self.seconds else None

    @property
    def percentiles(self) -> tuple[dict[str, float | None], str]:
        """Milliseconds by name, and what they are of: exact of the latest images where the source has those."""
        if self.reading.recent:
            return dict(self.reading.recent), f"of the latest {self.reading.recent_images} images"
        of, counters = ("of the last interval", self.interval)
        if not counters.percentiles():
            of, counters = ("of all images", self.reading.counters)
        return counters.percentiles(), f"{of}, between a histogram's bounds"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: the fields of the reading, what happened since the one before, and the verdict."""
        values, of = self.percentiles
        power, interval = self.reading.power, self.interval
        return {
            **self.reading.to_json(),
            "interval": {
                "seconds": self.seconds,
                "images": interval.images,
                "images_per_second": self.images_per_second,
                "mean_ms": interval.ms / interval.images if interval.images else None,
                "rates": interval.mean_rates,
                "exits": dict(interval.exits),
                "failed": interval.failed,
            },
            "percentiles_ms": {name: None if value == float("inf") else value for name, value in values.items()},
            "percentiles": of,
            "power_mw": None if power is None else power[0],
            "power_rails": None if power is None else power[1],
            "drift": None if self.drift is None else self.drift.to_json(),
        }


class Follower:
    """Puts the readings of one model together.

    Args:
        calibration: What is expected of a reading's session, or None.
        window: Images that a verdict rests on; at least :data:`FEWEST_IMAGES`.
        history: Whether what was counted before the first reading belongs to a verdict.
    """

    def __init__(
        self, calibration: Callable[[Reading], Calibration] | None, window: int = DEFAULT_WINDOW, *, history: bool
    ) -> None:
        self._calibration, self._window, self._history = calibration, max(window, FEWEST_IMAGES), history
        self._last: Reading | None = None
        self._parts: list[Counters] = []
        self._drift: Drift | None = None
        self.latest: deque[Status] = deque(maxlen=KEPT)

    def add(self, reading: Reading) -> Status:
        """Take the next reading."""
        last, counters = self._last, reading.counters
        self._last = reading
        if last is not None and reading.same_session(last):
            interval = counters.since(last.counters)
            seconds: float | None = max(0.0, reading.time - last.time)
            self._parts.append(interval)
        else:
            # A session whose beginning was seen, or is known, has counted from nothing.
            interval = counters
            seconds = None if reading.started is None else max(0.0, reading.time - reading.started[0])
            self._parts = [interval] if self._history or last is not None else []
            if last is not None:
                self.latest.clear()
        pending = sum(part.images for part in self._parts)
        if self._calibration is not None and pending >= self._window:
            self.judge()
            pending = 0
        status = Status(reading, interval, seconds, self._drift, pending)
        self.latest.append(status)
        return status

    def judge(self) -> Drift | None:
        """A verdict on what was counted since the last one; None without a calibration or a reading."""
        if self._calibration is None or self._last is None:
            return None
        self._drift = compare(self._calibration(self._last), self._last, self._parts)
        self._parts = []
        return self._drift


def follow(
    source: Source, *, pause: Callable[[float], None] = time.sleep, rounds: int | None = None
) -> Iterator[list[Reading | str]]:
    """Ask a source again and again; yields what is new, also where that is nothing.

    Args:
        source: It is closed at the end.
        pause: Waits for some seconds.
        rounds: How often it is asked; None: for ever.
    """
    try:
        asked = 0
        while rounds is None or asked < rounds:
            if asked:
                pause(source.pause)
            asked += 1
            yield source.poll()
    finally:
        source.close()
