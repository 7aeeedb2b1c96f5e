"""Two measurements of the same kind, side by side: what differs between them, and which differences exceed noise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy import files
from dyndeploy.errors import InputError, UsageError
from dyndeploy.measure import NetworkProfile, Profile, RateResult, Samples, load_network_profile, load_profile
from dyndeploy.measure.energy import Energy
from dyndeploy.measure.exits import WHOLE_NAME, ExitProfile
from dyndeploy.measure.load_exits import load_exit_profile
from dyndeploy.measure.profile import STATIC_NAME
from dyndeploy.measure.samples import apart

Spread = tuple[float, float]
KnownFact = tuple[str, str, object]
"""What it is about, what it is, and its value."""

ABOUT_BUNDLE = "bundle"
ABOUT_RUN = "how it ran"

BETWEEN_RUNS = 0.05
"""What two runs of the same command may differ by although neither shows it: each process finds its memory elsewhere
(1 to 5 % on the machine of ``docs/early_exits.md``). Smaller differences are never marked."""


@dataclass(frozen=True)
class Figure:
    """What was measured of one thing.

    Attributes:
        name: E.g. ``"static twin"``, ``"rate 0.5 (forced)"``, ``"exit 1"``: two profiles share things by name.
        ms: Milliseconds per image, measured.
        spread: Their 25th and 75th percentile; None where nobody recorded it.
        speedup: Realised, over the static twin or the network without exits; None for these themselves.
        speedup_spread: Its 25th and 75th percentile.
        ideal_speedup: From the MACs.
        mj: Millijoules per image, measured; None where no power sensor was read.
    """

    name: str
    ms: float
    spread: Spread | None
    speedup: float | None = None
    speedup_spread: Spread | None = None
    ideal_speedup: float | None = None
    mj: float | None = None

    @property
    def realisation(self) -> float | None:
        """Realised over ideal speed-up."""
        return None if self.speedup is None or self.ideal_speedup is None else self.speedup / self.ideal_speedup

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "realisation": self.realisation}


def _far(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and max(one, other) > (1 + BETWEEN_RUNS) * min(one, other)


@dataclass(frozen=True)
class PairRow:
    """One thing that both measured.

    Attributes:
        one: By the first.
        other: By the second.
    """

    one: Figure
    other: Figure

    @property
    def time_ratio(self) -> float:
        """Time of the second over that of the first."""
        return self.other.ms / self.one.ms

    @property
    def beyond_noise(self) -> bool:
        """Whether the times differ by more than noise: they are :func:`~dyndeploy.measure.samples.apart`, and by more
        than :data:`BETWEEN_RUNS`.
        """
        return apart(self.one.spread, self.other.spread) and _far(self.one.ms, self.other.ms)

    @property
    def speedup_beyond_noise(self) -> bool:
        """The same of the speed-ups."""
        one, other = self.one, self.other
        return apart(one.speedup_spread, other.speedup_spread) and _far(one.speedup, other.speedup)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.one.name,
            "one": self.one.to_json(),
            "other": self.other.to_json(),
            "time_ratio": self.time_ratio,
            "beyond_noise": self.beyond_noise,
            "speedup_beyond_noise": self.speedup_beyond_noise,
        }


@dataclass(frozen=True)
class Fact:
    """Something that is known about both measurements.

    Attributes:
        about: ``"bundle"`` (what was measured) or ``"how it ran"`` (on what, and by what).
        what: E.g. ``"threads"``.
        one: Of the first.
        other: Of the second.
    """

    about: str
    what: str
    one: str
    other: str

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return self.one != self.other


@dataclass(frozen=True)
class Pair:
    """Two measurements of one kind.

    Attributes:
        kind: Of both, as in their JSON.
        one: Name of the first.
        other: Name of the second.
        facts: What is known about both.
        rows: What both measured.
        only_one: Names of what only the first has.
        only_other: Names of what only the second has.
        warnings: Of either, with its name.
    """

    kind: str
    one: str
    other: str
    facts: tuple[Fact, ...]
    rows: tuple[PairRow, ...]
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def differences(self) -> tuple[Fact, ...]:
        """What is not the same; two dates never are, and say nothing."""
        return tuple(fact for fact in self.facts if fact.differs and fact.what != "date")

    @property
    def summary(self) -> str:
        """The result in a few sentences."""
        different = [row for row in self.rows if row.beyond_noise]
        what = ", ".join(fact.what for fact in self.differences)
        differs = f"What differs: {what}." if what else "Nothing differs that a profile records: same bundle, same run."
        if not different:
            return f"{differs} No time differs by more than noise."
        changes = "; ".join(f"{row.one.name} {row.time_ratio - 1:+.1%}" for row in different)
        return (
            f"{differs} {len(different)} of {len(self.rows)} times differ by more than noise, {self.other} against "
            f"{self.one}: {changes}."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know first."""
        notes = []
        if len({fact.about for fact in self.differences}) > 1:
            notes.append(
                "Both the bundle and how it ran differ: which of them makes the difference, these figures cannot tell."
            )
        for name, names in ((self.one, self.only_one), (self.other, self.only_other)):
            if names:
                notes.append(f"Only {name} has {', '.join(names)}: left out.")
        return (*notes, *self.warnings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; all times are measured."""
        return {
            "kind": "pair",
            "of": self.kind,
            "one": self.one,
            "other": self.other,
            "differences": [asdict(fact) for fact in self.differences],
            "facts": [asdict(fact) for fact in self.facts],
            "rows": [row.to_json() for row in self.rows],
            "only_one": list(self.only_one),
            "only_other": list(self.only_other),
            "notes": list(self.notes),
            "summary": self.summary,
        }


# ---------------------------------------------------------------- kinds


def _scaled(spread: Spread, factor: float) -> Spread:
    return spread[0] * factor, spread[1] * factor


def _twin(name: str, samples: Samples, batch: int, energy: Energy | None = None) -> Figure:
    return Figure(name, samples.median / batch, _scaled(samples.spread, 1 / batch), mj=_mj(energy, name))


def _mj(energy: Energy | None, name: str) -> float | None:
    return None if energy is None else energy.mj(name)


def _profile_figures(profile: Profile) -> Iterator[Figure]:
    def figure(result: RateResult) -> Figure:
        samples, batch = result.samples, profile.batch
        return Figure(
            result.name,
            samples.median / batch,
            _scaled(samples.spread, 1 / batch),
            result.realised_speedup,
            result.realised_spread,
            result.ideal_speedup,
            _mj(profile.energy, result.name),
        )

    yield _twin(STATIC_NAME, profile.static, profile.batch, profile.energy)
    for result in (*profile.rates, profile.data):
        yield figure(result)


def _exit_figures(profile: ExitProfile) -> Iterator[Figure]:
    whole = profile.whole.median

    def figure(name: str, relative: float, spread: Spread | None, macs: float, mj: float | None = None) -> Figure:
        inverse = None if spread is None else (1 / spread[1], 1 / spread[0])
        times = None if spread is None else _scaled(spread, whole)
        return Figure(name, relative * whole, times, 1 / relative, inverse, profile.whole_macs / macs, mj)

    yield _twin(WHOLE_NAME, profile.whole, 1, profile.energy)
    for entry in profile.exits:
        mj = _mj(profile.energy, entry.name)
        yield figure(entry.name, entry.relative, entry.relative_spread, entry.macs, mj)
    if profile.branched is not None:
        entry = profile.branched
        yield figure("all branches, one graph", entry.relative, entry.relative_spread, entry.macs)
    for mix in profile.mixes:
        name = "the data's own exits" if mix.name == "data" else f"mix {mix.name}"
        spread = profile.mix_spread(mix)
        yield figure(name, 1 / mix.realised_speedup, spread, mix.mean_macs, profile.mix_mj(mix))


def _network_figures(profile: NetworkProfile) -> Iterator[Figure]:
    yield _twin("network", profile.samples, profile.batch)
    for part in (part for part in profile.parts if part.ms > 0):
        yield Figure(f"part {part.name}", part.ms / profile.batch, None)


def _bundle_facts(profile: Profile | ExitProfile) -> Iterator[KnownFact]:
    bundle, runtime = profile.bundle, profile.runtime
    yield ABOUT_BUNDLE, "network", bundle.get("name")
    for what in ("mode", "granularity", "channel_granularity", "target", "opset", "input_size", "precision"):
        yield ABOUT_BUNDLE, what.replace("_", " "), bundle.get(what)
    yield ABOUT_BUNDLE, "weights", _short(bundle.get("checkpoint_sha256"))
    yield ABOUT_BUNDLE, "graph", _short(bundle.get("model_sha256"))
    yield ABOUT_BUNDLE, "static graph", _short(bundle.get("static_sha256"))
    yield from _run_facts(profile, getattr(profile, "batch", 1), runtime)
    yield ABOUT_RUN, "operators", profile.operator_code
    yield ABOUT_RUN, "operator library", _short(profile.native.get("sha256")) or _none(profile)
    yield ABOUT_RUN, "images", profile.settings.get("images", {}).get("source")


def _network_facts(profile: NetworkProfile) -> Iterator[KnownFact]:
    network = profile.network
    yield ABOUT_BUNDLE, "network", network.get("name")
    yield ABOUT_BUNDLE, "file", _short(network.get("sha256"))
    shapes = (f"{name} {'x'.join(map(str, shape))}" for name, shape in network.get("inputs", {}).items())
    yield ABOUT_BUNDLE, "inputs", ", ".join(shapes)
    yield from _run_facts(profile, profile.batch, profile.runtime)


def _run_facts(
    profile: Profile | ExitProfile | NetworkProfile, batch: int, runtime: Mapping[str, Any]
) -> Iterator[KnownFact]:
    machine = profile.machine
    yield ABOUT_RUN, "machine", machine.get("gpu") or machine.get("cpu")
    yield ABOUT_RUN, "device", profile.device
    yield ABOUT_RUN, "threads", profile.threads
    yield ABOUT_RUN, "batch", batch
    yield ABOUT_RUN, "runtime", f"{runtime.get('name')} {runtime.get('version')}"
    yield ABOUT_RUN, "provider", runtime.get("provider")
    energy = getattr(profile, "energy", None)
    yield ABOUT_RUN, "power sensor", None if energy is None else f"{energy.rail} ({energy.source})"
    for what in ("os", "governor", "power_mode", "jetpack"):
        yield ABOUT_RUN, what.replace("_", " "), machine.get(what)
    yield ABOUT_RUN, "dyndeploy", machine.get("versions", {}).get("dyndeploy")
    yield ABOUT_RUN, "date", machine.get("date")


def _none(profile: Profile | ExitProfile) -> str | None:
    return None if profile.operator_code is None else "none"


def _short(checksum: object) -> str | None:
    return None if checksum is None else f"sha256 {str(checksum)[:12]}"


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "-".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


@dataclass(frozen=True)
class _Kind:
    """A kind of measurement that pairs can be made of: how it is read, and what it measured."""

    title: str
    load: Callable[[str | os.PathLike[str]], Any]
    figures: Callable[[Any], Iterator[Figure]]
    facts: Callable[[Any], Iterator[KnownFact]]


_KINDS: Mapping[str, _Kind] = {
    "measured": _Kind("a profile of a network that skips", load_profile, _profile_figures, _bundle_facts),
    "measured_exits": _Kind("a profile of a network that exits early", load_exit_profile, _exit_figures, _bundle_facts),
    "measured_network": _Kind("a profile of an ONNX file", load_network_profile, _network_figures, _network_facts),
}
_OTHER_KINDS = {"calibration": "a calibration of thresholds"}


def measurement_kind(path: str | os.PathLike[str]) -> str:
    """What a JSON file holds, as its field ``kind`` says; empty where it says nothing.

    Raises:
        InputError: The file is missing, or is not JSON.
    """
    content = files.read_json(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else ""


def compare_files(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> Pair:
    """Read two profiles and compare them.

    Raises:
        UsageError: They are of different kinds, or of a kind that holds no times.
        InputError: A file is missing or malformed.
    """
    kinds = [measurement_kind(path) for path in (one, other)]
    for path, kind in zip((one, other), kinds, strict=True):
        if kind in _OTHER_KINDS:
            raise UsageError(f"{path} is {_OTHER_KINDS[kind]}: it holds no times to compare. Give two profiles.")
        if kind not in _KINDS:
            raise InputError(f"{path} is no profile. Write one with 'dyndeploy profile BUNDLE --json FILE'.")
    first, second = (_KINDS[kind] for kind in kinds)
    if first is not second:
        raise UsageError(
            f"{one} is {first.title}, {other} is {second.title}: they share no figure that could be compared. Give two "
            "profiles of one kind."
        )
    names = _names(one, other)
    return compare_measurements(kinds[0], first.load(one), second.load(other), names)


def _names(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> tuple[str, str]:
    """Short names of two files, told apart."""
    short = tuple(files.shown(os.path.basename(path)) for path in (one, other))
    full = tuple(files.shown(path) for path in (one, other))
    if full[0] == full[1]:
        return f"{short[0]} (first)", f"{short[1]} (second)"
    return (short[0], short[1]) if short[0] != short[1] else (full[0], full[1])


def compare_measurements(kind: str, one: Any, other: Any, names: tuple[str, str] = ("first", "second")) -> Pair:
    """Compare two profiles of one kind.

    Args:
        kind: ``"measured"`` for :class:`~dyndeploy.measure.Profile`, ``"measured_exits"`` for
            :class:`~dyndeploy.measure.exits.ExitProfile`, ``"measured_network"`` for
            :class:`~dyndeploy.measure.NetworkProfile`.
        one: The first.
        other: The second: ratios and changes are its against the first.
        names: What to call them.
    """
    figures = [{figure.name: figure for figure in _KINDS[kind].figures(profile)} for profile in (one, other)]
    facts = [{(about, what): value for about, what, value in _KINDS[kind].facts(profile)} for profile in (one, other)]
    return Pair(
        kind=kind,
        one=names[0],
        other=names[1],
        facts=tuple(
            Fact(*key, _text(facts[0][key]), _text(facts[1][key]))
            for key in facts[0]
            if (facts[0][key], facts[1][key]) != (None, None)
        ),
        rows=tuple(PairRow(figure, figures[1][name]) for name, figure in figures[0].items() if name in figures[1]),
        only_one=_missing(figures[0], figures[1]),
        only_other=_missing(figures[1], figures[0]),
        warnings=tuple(_warnings(names, (one, other))),
    )


def _missing(have: Mapping[str, Figure], others: Mapping[str, Figure]) -> tuple[str, ...]:
    return tuple(name for name in have if name not in others)


def _warnings(names: Sequence[str], profiles: Sequence[Profile | ExitProfile | NetworkProfile]) -> Iterator[str]:
    """What both say once, what one says with its name."""
    own = [profile.warnings() for profile in profiles]
    yield from (text for text in own[0] if text in own[1])
    for name, texts, others in ((names[0], own[0], own[1]), (names[1], own[1], own[0])):
        yield from (f"{name}: {text}" for text in texts if text not in others)
