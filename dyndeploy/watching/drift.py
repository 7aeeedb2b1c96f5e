"""Whether rates and exits are still those of the calibration, with the number of images that the answer rests on.

Two samples are compared: the images of the calibration, and those that were watched. Of an exit the quantity is the
share of the images that leave there, of a mask its mean rate. Images of a stream are not independent (neighbouring
frames are alike), so the variance of a mean is estimated from the means of batches of consecutive images (batch means,
as for simulations: Law, Simulation Modeling and Analysis, ch. 9), and never less than that of independent images. Where
a normal approximation does not hold (fewer than five images expected on a side) exits are compared by Fisher's exact
test. p-values are adjusted for the number of comparisons by Holm's method.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dyndeploy.bundle import Bundle
from dyndeploy.errors import InputError
from dyndeploy.files import read_text
from dyndeploy.watching.reading import Counters, Reading, read_line

LEVEL = 0.001
"""Largest adjusted p-value that is called drift: once in a thousand verdicts by chance."""
LEAST = 0.02
"""Smallest difference of shares or rates that is called drift: less has no consequence, however many images show it."""
FEWEST_IMAGES = 100
"""No verdict rests on fewer watched images."""
FEWEST_REFERENCE = 30
"""No mean rate is compared with that of fewer images: nothing is known of how the rates of single images spread."""
MOST_BATCHES, FEWEST_BATCHES = 20, 8
_EXPECTED = 5.0


@dataclass(frozen=True)
class Calibration:
    """What rates and exits are expected to be.

    Attributes:
        source: Where that stands, in words.
        exits: Share of the images that leave at each exit, by its number.
        exit_images: How many images that is of.
        rates: Mean rate of every mask.
        rate_images: How many images that is of.
        thresholds: Those that the shares hold for, by precision; empty where any will do.
    """

    source: str
    exits: Mapping[str, float] = field(default_factory=dict)
    exit_images: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    rate_images: int = 0
    thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def of_bundle(cls, bundle: Bundle, precision: str) -> Calibration:
        """What a bundle's manifest records: exits of ``dyndeploy calibrate``, rates of the reference images."""
        manifest = bundle.manifest
        source, reference = f"the calibration in {bundle.path}", manifest.reference
        rates = {mask.name: reference.rates[mask.name] for mask in manifest.masks if mask.name in reference.rates}
        if manifest.exits is None:
            return cls(source, rates=rates, rate_images=reference.images)
        chosen = manifest.exits.thresholds.get(precision)
        if chosen is None and len(manifest.exits.thresholds) == 1 and not precision:
            (chosen,) = manifest.exits.thresholds.values()
        numbers = [str(stage.exit) for stage in manifest.exits.stages]
        return cls(
            source,
            {} if chosen is None else dict(zip(numbers, chosen.exit_shares, strict=True)),
            0 if chosen is None else chosen.images,
            rates,
            reference.images,
            {key: info.values for key, info in manifest.exits.thresholds.items()},
        )

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Calibration:
        """The last whole line of a file of ``--stats``, or of ``dyndeploy watch --json``.

        Raises:
            InputError: It cannot be read, or holds no such line.
        """
        for line in reversed(read_text(path).splitlines()):
            try:
                reading = read_line(line)
            except InputError:
                continue
            counters = reading.counters
            if counters.images:
                held = {} if reading.thresholds is None else {reading.precision: reading.thresholds}
                images = counters.images
                return cls(str(path), counters.exit_shares, images, counters.mean_rates, images, held)
        raise InputError(f"{path} holds no line of dyndeploy-run --stats that has counted an image.")


@dataclass(frozen=True)
class Comparison:
    """One share or rate beside that of the calibration.

    Attributes:
        what: ``"exit 2"``, or the name of a mask.
        expected: Of the calibration, in [0, 1].
        watched: Of the images that were watched, in [0, 1].
        low: Lower end of the interval for the mean that was watched, at ``1 - LEVEL``.
        high: Upper end.
        images: Images watched.
        independent: How many independent images they are worth.
        p: Adjusted p-value.
        drifted: Whether it is called drift.
    """

    what: str
    expected: float
    watched: float
    low: float
    high: float
    images: int
    independent: float
    p: float
    drifted: bool


@dataclass(frozen=True)
class Drift:
    """A verdict.

    Attributes:
        images: Images that it rests on.
        source: What they were compared with.
        comparisons: What was compared.
        untested: What was not, and why, in words.
    """

    images: int
    source: str
    comparisons: tuple[Comparison, ...]
    untested: tuple[str, ...] = ()

    @property
    def drifted(self) -> tuple[Comparison, ...]:
        """What is not as in the calibration, the surest first."""
        return tuple(sorted((c for c in self.comparisons if c.drifted), key=lambda c: (c.p, c.what)))

    @property
    def line(self) -> str:
        """The verdict in one line."""
        if not self.comparisons:
            return f"no verdict on {self.images} images: {'; '.join(self.untested) or 'there is nothing to compare'}."
        count, found = len(self.comparisons), self.drifted
        how = f"{count} comparison{'s'[: count != 1]} with {self.source}, level {LEVEL:g} together"
        if not found:
            return f"no drift in {self.images} images ({how})."
        first = found[0]
        like = f", like {first.independent:.0f} independent ones" if first.independent < 0.9 * first.images else ""
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        return (
            f"DRIFT of {first.what}: {first.watched:.1%} [{first.low:.1%}, {first.high:.1%}] in {first.images} images"
            f"{like}, {first.expected:.1%} expected{more} ({how})."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "images": self.images,
            "source": self.source,
            "level": LEVEL,
            "least_difference": LEAST,
            "drifted": [comparison.what for comparison in self.drifted],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "untested": list(self.untested),
        }


def compare(calibration: Calibration, reading: Reading, parts: Sequence[Counters]) -> Drift:
    """Compare what was counted with a calibration.

    Args:
        calibration: What is expected.
        reading: The latest one of the session: its thresholds and names.
        parts: What was counted in consecutive times.
    """
    batches = _batches(parts)
    images = sum(batch.images for batch in batches)
    if images < FEWEST_IMAGES:
        return Drift(images, calibration.source, (), (f"fewer than {FEWEST_IMAGES}",))
    tests: list[_Test] = []
    untested: list[str] = []
    reason = _exits_untested(calibration, reading)
    if calibration.exits or reading.counters.exits:
        taken = sum(sum(batch.exits.values()) for batch in batches)
        if not reason and taken < FEWEST_IMAGES:
            reason = f"only {taken} images have one"
        if reason:
            untested.append(f"exits: {reason}")
        else:
            tests += [
                _compare_exit(name, expected, calibration.exit_images, batches)
                for name, expected in calibration.exits.items()
            ]
    if calibration.rates or reading.counters.rates:
        reason = _rates_untested(calibration, reading)
        if reason:
            untested.append(f"rates: {reason}")
        else:
            tests += [
                _compare_rate(name, expected, calibration.rate_images, batches)
                for name, expected in calibration.rates.items()
            ]
    adjusted = holm([test.p for test in tests])
    return Drift(
        images,
        calibration.source,
        tuple(test.judged(p) for test, p in zip(tests, adjusted, strict=True)),
        tuple(untested),
    )


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in their order."""
    adjusted, most = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        most = max(most, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = most
    return adjusted


def _exits_untested(calibration: Calibration, reading: Reading) -> str:
    if not calibration.exits:
        known = ", ".join(calibration.thresholds) or "nothing"
        return f"{calibration.source} has no shares for {reading.precision or 'this precision'}, but for {known}"
    if set(calibration.exits) != set(reading.counters.exits):
        return (
            f"{reading.name} has the exits {', '.join(reading.counters.exits) or 'none'}, {calibration.source} "
            f"{', '.join(calibration.exits)}: it is another network"
        )
    held = calibration.thresholds.get(reading.precision)
    if reading.thresholds is not None and held is not None and not _alike(held, reading.thresholds):
        shown = ", ".join(f"{value:g}" for value in reading.thresholds[:-1])
        return f"the session runs with other thresholds ({shown}) than {calibration.source}"
    return ""


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(one, other, strict=True))


def _rates_untested(calibration: Calibration, reading: Reading) -> str:
    if set(calibration.rates) != set(reading.counters.rates):
        if not calibration.rates:
            return f"{calibration.source} has none"
        return f"{reading.name} has other masks than {calibration.source}: it is another network"
    if calibration.rate_images < FEWEST_REFERENCE:
        return (
            f"{calibration.source} has those of {calibration.rate_images} images, too few to compare with (at least "
            f"{FEWEST_REFERENCE}: export with --data, or give a --baseline)"
        )
    return ""


def _batches(parts: Iterable[Counters]) -> list[Counters]:
    """Consecutive parts put together to at most :data:`MOST_BATCHES` of about as many images."""
    counted = [part for part in parts if part.images]
    least = sum(part.images for part in counted) / MOST_BATCHES
    batches: list[Counters] = []
    for part in counted:
        if batches and batches[-1].images < least:
            batches[-1] = _sum(batches[-1], part)
        else:
            batches.append(part)
    return batches


def _sum(one: Counters, other: Counters) -> Counters:
    return Counters(
        one.images + other.images,
        one.ms + other.ms,
        None,
        {name: one.rates.get(name, 0.0) + other.rates.get(name, 0.0) for name in {*one.rates, *other.rates}},
        {name: one.exits.get(name, 0) + other.exits.get(name, 0) for name in {*one.exits, *other.exits}},
        one.failed + other.failed,
    )


@dataclass(frozen=True)
class _Test:
    what: str
    expected: float
    watched: float
    error: float
    factor: float
    images: int
    independent: float
    p: float

    def judged(self, p: float) -> Comparison:
        half = self.factor * self.error
        return Comparison(
            self.what,
            self.expected,
            self.watched,
            max(0.0, self.watched - half),
            min(1.0, self.watched + half),
            self.images,
            self.independent,
            p,
            p < LEVEL and abs(self.watched - self.expected) >= LEAST,
        )


def _spread(sizes: Sequence[int], means: Sequence[float], mean: float) -> tuple[float, int] | None:
    """Variance of an image as the batches' means show it, with its degrees of freedom; None for too few batches."""
    if len(sizes) < FEWEST_BATCHES:
        return None
    freedom = len(sizes) - 1
    return sum(n * (m - mean) ** 2 for n, m in zip(sizes, means, strict=True)) / freedom, freedom


def _compare_exit(name: str, expected: float, reference: int, batches: Sequence[Counters]) -> _Test:
    """Shares: the variance of an image is known, and larger only where neighbours are alike."""
    sizes = [sum(batch.exits.values()) for batch in batches]
    counts = [batch.exits.get(name, 0) for batch in batches]
    images, count = sum(sizes), sum(counts)
    share = count / images
    spread = _spread(sizes, [c / max(1, n) for c, n in zip(counts, sizes, strict=True)], share)
    binomial = share * (1 - share)
    ratio = 1.0 if spread is None or binomial == 0 else max(1.0, spread[0] / binomial)
    freedom = math.inf if spread is None or ratio == 1.0 else spread[1]
    independent = images / ratio
    pooled = (share * independent + expected * reference) / (independent + reference)
    smallest = min(independent, reference) * min(pooled, 1 - pooled)
    # Of no image in so many the normal interval would be a point: the rule of three has this much beside it.
    error = math.sqrt(max(binomial, 1 / independent) / independent)
    if smallest < _EXPECTED:
        p = _fisher(share * independent, independent, expected * reference, reference)
    else:
        deviation = math.sqrt(pooled * (1 - pooled) * (1 / independent + 1 / reference))
        p = _two_sided((share - expected) / deviation, freedom)
    return _Test(f"exit {name}", expected, share, error, _factor(freedom), images, independent, p)


def _compare_rate(name: str, expected: float, reference: int, batches: Sequence[Counters]) -> _Test:
    """Means of values in [0, 1], whose variance is what the batches show; without batches, the largest there can be."""
    sizes = [batch.images for batch in batches]
    sums = [batch.rates.get(name, 0.0) for batch in batches]
    images = sum(sizes)
    mean = min(1.0, sum(sums) / images)
    spread = _spread(sizes, [s / n for s, n in zip(sums, sizes, strict=True)], mean)
    variance, freedom = (mean * (1 - mean), math.inf) if spread is None else spread
    # Equal values in all batches say that the variance is small, not that it is zero.
    variance = max(variance, 1 / images**2)
    deviation = math.sqrt(variance * (1 / images + 1 / reference))
    p = _two_sided((mean - expected) / deviation, freedom)
    error = math.sqrt(variance / images)
    return _Test(name, expected, mean, error, _factor(freedom), images, images, p)


def _two_sided(score: float, freedom: float) -> float:
    from scipy import stats

    return float(2 * (stats.norm.sf(abs(score)) if math.isinf(freedom) else stats.t.sf(abs(score), freedom)))


def _factor(freedom: float) -> float:
    from scipy import stats

    share = 1 - LEVEL / 2
    return float(stats.norm.ppf(share) if math.isinf(freedom) else stats.t.ppf(share, freedom))


def _fisher(count: float, images: float, expected: float, reference: int) -> float:
    from scipy import stats

    one, other = round(count), round(expected)
    table = [[one, max(0, round(images) - one)], [other, max(0, reference - other)]]
    return float(stats.fisher_exact(table).pvalue)
