"""The report of a profile of a network that exits early: latency per exit, and what exit mixes make of it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dyndeploy import files
from dyndeploy.measure.exits import ExitProfile, ExitTimes
from dyndeploy.measure.samples import apart
from dyndeploy.reporting.comparison import ExitComparison, unpredicted_note
from dyndeploy.reporting.energy import energy_table
from dyndeploy.reporting.page import (
    Table,
    decimals,
    machine_rows,
    measured_on,
    ms,
    percent,
    render_page,
    times,
    version_rows,
)
from dyndeploy.reporting.svg import Bars, bar_chart


def write_exit_profile_report(
    path: str | os.PathLike[str], profile: ExitProfile, comparisons: Sequence[ExitComparison] = ()
) -> None:
    """Write the report of a profile of a network that exits early, atomically.

    Args:
        path: The HTML file.
        profile: The measurement.
        comparisons: With predictions, for one or several devices.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write_text(path, render_exit_profile_report(profile, comparisons))


def render_exit_profile_report(profile: ExitProfile, comparisons: Sequence[ExitComparison] = ()) -> str:
    """Return the page that :func:`write_exit_profile_report` writes."""
    images = profile.settings.get("images", {})
    own = [entry for entry in comparisons if entry.same_device]
    others = [entry for entry in comparisons if not entry.same_device]
    device = getattr(profile, "device", "cpu")
    devices = [entry.predicted_device for entry in comparisons]
    return render_page(
        "exit_profile.html.j2",
        title=f"{profile.bundle['name']}: early exits",
        top=measured_on(
            profile.machine, profile.threads, profile.operator_code, ("Precision", profile.bundle.get("precision"))
        ),
        profile=profile,
        summary=summarise_exits(profile),
        warnings=profile.warnings(),
        latency_chart=_latency_chart(profile),
        mix_chart=_mix_chart(profile) if profile.mixes else "",
        exits=_exits_table(profile),
        runs=_runs_table(profile),
        energy=energy_table(profile.energy),
        mixes=_mixes_table(profile),
        unpredicted=unpredicted_note(device, profile.threads, devices) if devices else "",
        own=[_own_table(entry) for entry in own],
        others=_others_table(others),
        predicted_warnings=[f"{item.predicted_device}: {warning}" for item in comparisons for warning in item.warnings],
        facts=machine_rows(
            profile.machine,
            ("Threads", profile.threads),
            ("Dynamic operators", profile.operator_code),
            ("Runtime", f"{profile.runtime['name']} {profile.runtime['version']}"),
            ("Images", f"{images['count']}: {images['source']}" if "source" in images else None),
            ("Rounds", profile.settings.get("rounds")),
        ),
        versions=version_rows(profile.machine, profile.bundle.get("tools", {})),
    )


_SAME = (1.0, 1.0)
"""Spread of what takes exactly as long as the network without exits."""


def summarise_exits(profile: ExitProfile) -> str:
    """The result in a few sentences; what the spread of the runs does not support is not claimed."""
    first, last = profile.exits[0], profile.exits[-1]
    code = f" The dynamic operators ran in: {profile.operator_code}." if profile.operator_code else ""
    return (
        f"The network without exits takes {ms(profile.whole.median)} ms per image, measured. An image that leaves at "
        f"exit {first.exit} {_claim(profile, first)}; one that runs every stage {_claim(profile, last)}. "
        f"{staging_cost(profile)}{code}"
    )


def _claim(profile: ExitProfile, entry: ExitTimes) -> str:
    takes = f"takes {ms(profile.paired_ms(entry))} ms"
    if entry.relative_spread is None:
        return takes
    if not apart(entry.relative_spread, _SAME):
        return f"{takes}, no different from that beyond noise"
    change = entry.relative - 1
    return f"{takes}, {abs(change):.1%} {'more' if change > 0 else 'less'}"


def staging_cost(profile: ExitProfile) -> str:
    """What running in stages costs, in a sentence."""
    spread = profile.staging.relative_spread
    against = "every stage against one graph that computes the same exits"
    if spread is None:
        return f"Staging itself costs {profile.overhead:+.1%}: {against}."
    between = f"middle half of the rounds {spread[0] - 1:+.1%} to {spread[1] - 1:+.1%}"
    if not apart(spread, _SAME):
        return f"What staging itself costs is lost in the noise: {against}, {profile.overhead:+.1%}, {between}."
    return f"Staging itself costs {profile.overhead:+.1%} ({between}): {against}."


def _entries(profile: ExitProfile) -> list[tuple[str, ExitTimes]]:
    rows = [(f"exit {entry.exit}", entry) for entry in profile.exits]
    return rows if profile.branched is None else [*rows, ("all branches, one graph", profile.branched)]


def _exits_table(profile: ExitProfile) -> Table:
    whole, macs = profile.whole.median, profile.whole_macs

    def between(spread: tuple[float, float] | None) -> str:
        return "-" if spread is None else f"{spread[0]:.1%} to {spread[1]:.1%}"

    entries = _entries(profile)
    rows = [
        (
            label,
            decimals(entry.macs / 1e6),
            ms(profile.paired_ms(entry)),
            percent(entry.relative),
            between(entry.relative_spread),
            percent(entry.macs / macs),
        )
        for label, entry in entries
    ]
    values: list[tuple[object, ...]] = [
        (label, entry.macs, profile.paired_ms(entry), entry.relative, *(entry.relative_spread or (None, None)))
        for label, entry in entries
    ]
    return Table(
        "Latency per exit, measured",
        ("leaves at", "M MACs", "ms", "of the whole", "p25 to p75", "ideal"),
        [*rows, ("without exits", decimals(macs / 1e6), ms(whole), "100.0%", "-", "100.0%")],
        file="exits.csv",
        fields=("name", "macs", "ms", "relative", "relative_p25", "relative_p75"),
        values=[*values, ("without exits", macs, whole, 1, None, None)],
    )


def _runs_table(profile: ExitProfile) -> Table:
    runs = [(label, entry.samples) for label, entry in _entries(profile)] + [("without exits", profile.whole)]
    return Table(
        "Runs as they were timed, measured",
        ("leaves at", "median ms", "p90 ms", "p99 ms", "CoV"),
        [(label, ms(s.median), ms(s.percentile(90)), ms(s.percentile(99)), percent(s.cov)) for label, s in runs],
        file="runs.csv",
        fields=("name", "median_ms", "p90_ms", "p99_ms", "cov"),
        values=[(label, s.median, s.percentile(90), s.percentile(99), s.cov) for label, s in runs],
    )


def _mixes_table(profile: ExitProfile) -> Table:
    names = [f"share_{entry.exit}" for entry in profile.exits]
    return Table(
        "Exit mixes, measured",
        ("mix", "shares", "mean ms", "mean M MACs", "ideal", "realised", "realisation"),
        [
            (
                mix.name,
                " / ".join(percent(share) for share in mix.shares),
                ms(mix.mean_ms),
                decimals(mix.mean_macs / 1e6),
                times(mix.ideal_speedup),
                times(mix.realised_speedup),
                percent(mix.realisation),
            )
            for mix in profile.mixes
        ],
        file="mixes.csv",
        fields=("name", *names, "mean_ms", "mean_macs", "ideal_speedup", "realised_speedup", "realisation"),
        values=[
            (m.name, *m.shares, m.mean_ms, m.mean_macs, m.ideal_speedup, m.realised_speedup, m.realisation)
            for m in profile.mixes
        ],
    )


def _own_table(comparison: ExitComparison) -> Table:
    entries = (*comparison.exits, *comparison.mixes)
    return Table(
        f"Measured and predicted for {comparison.predicted_device}",
        ("leaves at, or mix", "measured ms", "predicted ms", "error", "measured speed-up", "predicted speed-up"),
        [
            (
                e.name,
                ms(e.measured_ms),
                ms(e.predicted_ms),
                f"{e.predicted_ms / e.measured_ms - 1:+.1%}",
                times(e.measured_speedup),
                times(e.predicted_speedup),
            )
            for e in entries
        ],
        file=f"predicted-{comparison.predicted_device}.csv",
        fields=("name", "measured_ms", "predicted_ms", "measured_speedup", "predicted_speedup"),
        values=[(e.name, e.measured_ms, e.predicted_ms, e.measured_speedup, e.predicted_speedup) for e in entries],
    )


def _others_table(comparisons: Sequence[ExitComparison]) -> Table:
    rows = [(c, (*c.exits, *c.mixes)) for c in comparisons]
    names = [entry.name for entry in rows[0][1]] if rows else []
    return Table(
        "Predicted for devices that were not measured",
        ("device", "without exits, ms", *(f"{name}, ms (speed-up)" for name in names)),
        [
            (
                c.predicted_device,
                ms(c.whole_predicted_ms),
                *(f"{ms(entry.predicted_ms)} ({times(entry.predicted_speedup)})" for entry in entries),
            )
            for c, entries in rows
        ],
        file="predicted-devices.csv",
        fields=("device", "name", "predicted_ms", "predicted_speedup"),
        values=[(c.predicted_device, e.name, e.predicted_ms, e.predicted_speedup) for c, es in rows for e in es],
    )


def _latency_chart(profile: ExitProfile) -> str:
    whole = profile.whole.median
    return bar_chart(
        [f"exit {entry.exit}" for entry in profile.exits],
        [
            Bars("measured", "measured", [profile.paired_ms(entry) for entry in profile.exits]),
            Bars("ideal (from MACs)", "ideal", [whole * entry.macs / profile.whole_macs for entry in profile.exits]),
        ],
        identifier="latency",
        title="Latency of images that leave at each exit, measured",
        description=f"Without exits {ms(whole)} ms. "
        + "; ".join(f"exit {entry.exit}: {ms(profile.paired_ms(entry))} ms" for entry in profile.exits)
        + ". The dashed line is the network without exits.",
        x_label="ms per image",
        reference=whole,
    )


def _mix_chart(profile: ExitProfile) -> str:
    return bar_chart(
        [mix.name for mix in profile.mixes],
        [Bars("realisation", "data", [100 * mix.realisation for mix in profile.mixes])],
        identifier="mixes",
        title="Realisation of each exit mix, measured",
        description="; ".join(f"{mix.name}: {mix.realisation:.0%}" for mix in profile.mixes)
        + ". The dashed line is 100 %.",
        x_label="realised / ideal speed-up, %",
        form="{:.0f}".format,
        reference=100.0,
    )
