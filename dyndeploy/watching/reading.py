"""What a running session says of itself at one moment: the lines of ``dyndeploy-run --stats``, and what they tell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from dyndeploy.errors import InputError
from dyndeploy.fields import Document, Field
from dyndeploy.remote.agent import is_temperature, whole_power

SCHEMA_VERSION = 1
"""Of the lines; ``plugins/runtime/program/stats.cpp`` writes it."""

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
"""Those that are shown."""

_DOCUMENT = Document("The line", "dyndeploy-run --stats and 'dyndeploy watch --json' write such lines.", InputError)
_MOST = 1 << 62


@dataclass(frozen=True)
class Histogram:
    """How many images took how long.

    Attributes:
        bounds: Upper ends of the buckets in milliseconds, ascending.
        counts: Images in each bucket; the last one, which has no bound, counts those above all bounds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    def percentile(self, share: float) -> float | None:
        """Milliseconds that this share of the images does not exceed, as if times were spread evenly in a bucket.

        Infinite where it lies above all bounds; None without images.
        """
        total = sum(self.counts)
        if not total:
            return None
        wanted, before = share * total, 0
        for index, count in enumerate(self.counts[:-1]):
            if count and before + count >= wanted:
                low = self.bounds[index - 1] if index else 0.0
                return low + (self.bounds[index] - low) * max(0.0, wanted - before) / count
            before += count
        return math.inf


@dataclass(frozen=True)
class Counters:
    """What was counted, since the session began or within a time.

    Attributes:
        images: Images that gave a result.
        ms: Milliseconds of the network, over all of them.
        histogram: Of those times; None where the source has none.
        rates: Sum over the images of the share of active bits, by mask.
        exits: Images that left at each exit, by its number.
        failed: Images that gave none.
    """

    images: int = 0
    ms: float = 0.0
    histogram: Histogram | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    exits: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0

    def follows(self, earlier: Counters) -> bool:
        """Whether these may be the same counters later: none has become less."""
        return (
            self.images >= earlier.images
            and self.failed >= earlier.failed
            and all(self.exits.get(name, -1) >= count for name, count in earlier.exits.items())
            # Sums that were derived from rounded means.
            and all(self.rates.get(name, -1.0) >= total - 1e-6 * (1 + total) for name, total in earlier.rates.items())
        )

    def since(self, earlier: Counters) -> Counters:
        """What was counted since these counters were ``earlier``, which they must follow."""
        histogram = self.histogram
        if histogram is not None and earlier.histogram is not None and histogram.bounds == earlier.histogram.bounds:
            counts = zip(histogram.counts, earlier.histogram.counts, strict=True)
            histogram = Histogram(histogram.bounds, tuple(max(0, now - then) for now, then in counts))
        return Counters(
            self.images - earlier.images,
            max(0.0, self.ms - earlier.ms),
            histogram,
            {name: max(0.0, total - earlier.rates.get(name, 0.0)) for name, total in self.rates.items()},
            {name: count - earlier.exits.get(name, 0) for name, count in self.exits.items()},
            self.failed - earlier.failed,
        )

    @property
    def mean_rates(self) -> dict[str, float]:
        """Mean rate of every mask; empty without images."""
        return {name: total / self.images for name, total in self.rates.items()} if self.images else {}

    @property
    def exit_shares(self) -> dict[str, float]:
        """Share of the images that left at each exit; empty without images."""
        total = sum(self.exits.values())
        return {name: count / total for name, count in self.exits.items()} if total else {}

    def percentiles(self) -> dict[str, float | None]:
        """:data:`PERCENTILES` in milliseconds, out of the histogram; empty without one, or without images."""
        if self.histogram is None or not sum(self.histogram.counts):
            return {}
        return {name: self.histogram.percentile(share) for name, share in PERCENTILES.items()}


@dataclass(frozen=True)
class Reading:
    """What a source says at one moment.

    Attributes:
        model: Name of the network, or under which a server has it.
        version: Of the server's model; empty where there is none.
        time: When it was said, in seconds since 1970 by the source's clock.
        counters: Since the session began.
        recent: Exact percentiles of the latest images' milliseconds, by name; empty where the source gives none.
        recent_images: How many images those are of.
        preprocessing_ms: Mean of decoding and resizing, or None.
        started: When the session began, and its process: what tells it from the next one. None where nobody says.
        every: Seconds between two lines, or None.
        ended: Whether it is the last line of a session.
        bundle: Folder that was opened, as the session was given it; empty where nobody says.
        precision: What the session computes in; empty where nobody says.
        thresholds: Least confidence of every exit, the last one's infinite; None where nobody says.
        rails_mw: Power by rail, in milliwatts.
        temperatures_c: By sensor, in degrees Celsius.
    """

    model: str
    time: float
    counters: Counters
    version: str = ""
    recent: Mapping[str, float] = field(default_factory=dict)
    recent_images: int = 0
    preprocessing_ms: float | None = None
    started: tuple[float, int] | None = None
    every: float | None = None
    ended: bool = False
    bundle: str = ""
    precision: str = ""
    thresholds: tuple[float, ...] | None = None
    rails_mw: Mapping[str, float] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model and version."""
        return f"{self.model}/{self.version}" if self.version else self.model

    @property
    def power(self) -> tuple[float, str] | None:
        """Milliwatts of the whole board, or of the one rail that there is, and which rails that is."""
        whole = whole_power(dict(self.rails_mw))
        if whole is not None:
            return float(whole[0]), whole[1]
        return next(((mw, name) for name, mw in self.rails_mw.items()), None) if len(self.rails_mw) == 1 else None

    @property
    def hottest(self) -> tuple[str, float] | None:
        """The sensor that says most, and its degrees Celsius."""
        return max(self.temperatures_c.items(), key=lambda item: item[1], default=None)

    def same_session(self, earlier: Reading) -> bool:
        """Whether the counters go on from an earlier reading."""
        return self.started == earlier.started and self.counters.follows(earlier.counters)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, in the form of the lines that :func:`read_line` reads."""
        counters = self.counters
        statistics: dict[str, Any] = {"images": counters.images}
        if counters.images:
            statistics["ms"] = {"mean": counters.ms / counters.images, **self.recent}
            statistics["percentiles_of"] = self.recent_images
            statistics["preprocessing_ms"] = self.preprocessing_ms
        if counters.histogram is not None:
            statistics["histogram_ms"] = {
                "bounds": list(counters.histogram.bounds),
                "counts": list(counters.histogram.counts),
            }
        statistics |= {"rates": counters.mean_rates, "exits": dict(counters.exits)}
        thresholds = self.thresholds
        return {
            "schema_version": SCHEMA_VERSION,
            "network": self.model,
            "version": self.version,
            "precision": self.precision,
            "thresholds": None if thresholds is None else [t if math.isfinite(t) else None for t in thresholds],
            "bundle": self.bundle,
            "process": None if self.started is None else self.started[1],
            "started": None if self.started is None else self.started[0],
            "time": self.time,
            "every": self.every,
            "ended": self.ended,
            "failed": counters.failed,
            "statistics": statistics,
            "rails_mw": dict(self.rails_mw),
            "temperatures_c": dict(self.temperatures_c),
        }


def read_line(text: str) -> Reading:
    """Read a line that ``dyndeploy-run --stats`` wrote, or :meth:`Reading.to_json`.

    Raises:
        InputError: It is torn, malformed, or of another schema version.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The line is no JSON: {error}.") from error
    item = _DOCUMENT.root(value)
    version = item["schema_version"].count(0)
    if version != SCHEMA_VERSION:
        raise InputError(f"The line has schema version {version}; this release reads {SCHEMA_VERSION}.")
    statistics = item["statistics"]
    images = statistics["images"].count(0, _MOST)
    times = statistics.get("ms").optional(lambda part: part.mapping(Field.amount)) or {}
    rates = statistics["rates"].mapping(lambda part: part.number(0, 1))
    counters = Counters(
        images,
        times.get("mean", 0.0) * images,
        statistics.get("histogram_ms").optional(_histogram),
        {name: rate * images for name, rate in rates.items()},
        statistics["exits"].mapping(lambda part: part.count(0, _MOST)),
        item["failed"].count(0, _MOST),
    )
    process = item["process"].optional(lambda part: part.count(0))
    started = item["started"].optional(Field.number)
    return Reading(
        model=item["network"].label(),
        version=item.get("version").optional(Field.label) or "",
        time=item["time"].number(),
        counters=counters,
        recent={name: times[name] for name in PERCENTILES if name in times},
        recent_images=statistics.get("percentiles_of").optional(lambda part: part.count(0)) or 0,
        preprocessing_ms=statistics.get("preprocessing_ms").optional(Field.amount),
        started=None if started is None else (started, process or 0),
        every=item["every"].optional(Field.positive),
        ended=item["ended"].boolean(),
        bundle=item["bundle"].label(),
        precision=item["precision"].label(),
        thresholds=item["thresholds"].optional(_thresholds),
        rails_mw=item["rails_mw"].mapping(Field.number),
        temperatures_c={
            name: degrees
            for name, degrees in item["temperatures_c"].mapping(Field.number).items()
            if is_temperature(name, degrees)
        },
    )


def _histogram(item: Field) -> Histogram:
    bounds = item["bounds"].sequence(Field.positive, at_least=1)
    item["bounds"].require(list(bounds) == sorted(set(bounds)), "ascending")
    return Histogram(bounds, item["counts"].sequence(lambda part: part.count(0, _MOST), length=len(bounds) + 1))


def _thresholds(item: Field) -> tuple[float, ...]:
    return item.sequence(lambda part: -math.inf if part.value is None else part.number())


def histogram_of(cumulative: Sequence[tuple[float, float]]) -> Histogram | None:
    """A histogram out of cumulative counts by upper bound, as Prometheus has them; None where they are none.

    Args:
        cumulative: (bound, images up to it), the last bound infinite, in any order.
    """
    ordered = sorted(cumulative)
    counts = [count for _, count in ordered]
    if len(ordered) < 2 or ordered[-1][0] != math.inf or list(accumulate(counts, max)) != counts:
        return None
    steps = [int(now - before) for before, now in zip([0.0, *counts], counts, strict=False)]
    return Histogram(tuple(bound for bound, _ in ordered[:-1]), tuple(steps))
