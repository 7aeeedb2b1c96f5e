"""The parts of a detector on a profile's page."""

from __future__ import annotations

from dyndeploy.measure import Profile
from dyndeploy.measure.parts import PartTimes
from dyndeploy.reporting.page import Table, ms, percent, times
from dyndeploy.reporting.svg import Bars, bar_chart


def speeds(part: PartTimes | None) -> str:
    """Realised and ideal speed-up of a part, for a reader."""
    return "-" if part is None else f"{times(part.realised_speedup)} / {times(part.ideal_speedup)}"


def parts_table(profile: Profile) -> Table | None:
    """MACs and time of every part of a detector in the static twin, and its speed-ups; None for other networks."""
    results = (*profile.rates, profile.data)
    parts = profile.data.parts
    if not parts:
        return None
    total_ms = sum(part.static_ms for part in parts)
    rows = [
        (
            part.name,
            f"{part.static_macs / 1e9:.4g}",
            percent(part.static_macs / profile.static_macs),
            ms(part.static_ms),
            percent(part.static_ms / total_ms if total_ms > 0 else None),
            *(speeds(result.part(part.name)) for result in results),
        )
        for part in parts
    ]
    labels = (f"{r.label} ({r.masks})" for r in results)
    return Table(
        "Parts, measured",
        ("part", "G MACs/image", "of all MACs", "static ms", "of the time", *labels),
        rows,
        file="parts.csv",
        fields=("rate", "masks", "part", "static_macs", "needed_macs", "static_ms", "dynamic_ms", "ideal_speedup",
                "realised_speedup", "realisation"),
        values=[
            (r.rate, r.masks, p.name, p.static_macs, p.needed_macs, p.static_ms, p.dynamic_ms, p.ideal_speedup,
             p.realised_speedup, p.realisation)
            for r in results
            for p in r.parts
        ],
    )  # fmt: skip


def steps_table(profile: Profile) -> Table | None:
    """Times of every engine and host program of a network in parts; None for other networks.

    They are medians of the runs that the whole was measured by.
    """
    results = (*profile.rates, profile.data)
    if not profile.data.steps:
        return None
    return Table(
        "Engines and host programs, measured in the rounds",
        ("file", "runs on", "static ms", *(f"{r.label} ({r.masks}) ms" for r in results)),
        [
            (
                step.name,
                "host" if step.host else "engine",
                ms(step.static_ms),
                *(ms(result.steps[index].dynamic_ms) for result in results),
            )
            for index, step in enumerate(profile.data.steps)
        ],
        file="steps.csv",
        fields=("rate", "masks", "file", "host", "static_ms", "dynamic_ms"),
        values=[(r.rate, r.masks, s.name, s.host, s.static_ms, s.dynamic_ms) for r in results for s in r.steps],
    )


def parts_chart(profile: Profile) -> str:
    """Time of each part in both networks; empty of a network without parts."""
    parts = profile.data.parts
    if not parts:
        return ""
    return bar_chart(
        [part.name for part in parts],
        [
            Bars("static twin, measured", "static", [part.static_ms for part in parts]),
            Bars("dynamic, measured", "measured", [part.dynamic_ms for part in parts]),
        ],
        identifier="parts",
        title="Time of each part of the detector in both networks, measured with the data's own masks",
        description="; ".join(f"{part.name}: {ms(part.static_ms)} and {ms(part.dynamic_ms)} ms" for part in parts)
        + ".",
        x_label="ms per batch",
    )
