"""The report of a profile of a network that exits early: latency per exit, and what exit mixes make of it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dyndeploy import files
from dyndeploy.measure import Samples
from dyndeploy.measure.exits import ExitProfile, ExitTimes
from dyndeploy.reporting.comparison import ExitComparison
from dyndeploy.reporting.page import decimals, machine_rows, ms, percent, render_page, times, version_rows
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
    return render_page(
        "exit_profile.html.j2",
        title=f"{profile.bundle['name']}: early exits",
        profile=profile,
        summary=_summary(profile),
        warnings=profile.warnings(),
        latency_chart=_latency_chart(profile),
        mix_chart=_mix_chart(profile) if profile.mixes else "",
        exit_rows=_exit_rows(profile),
        mix_rows=_mix_rows(profile),
        predicted_rows=[row for comparison in comparisons for row in _predicted_rows(comparison)],
        predicted_warnings=[f"{item.predicted_device}: {warning}" for item in comparisons for warning in item.warnings],
        facts=machine_rows(
            profile.machine,
            ("Threads", profile.threads),
            ("Runtime", f"{profile.runtime['name']} {profile.runtime['version']}"),
            ("Images", f"{images['count']}: {images['source']}" if "source" in images else None),
            ("Rounds", profile.settings.get("rounds")),
        ),
        versions=version_rows(profile.machine, profile.bundle.get("tools", {})),
    )


def _summary(profile: ExitProfile) -> str:
    first, last = profile.exits[0], profile.exits[-1]
    return (
        f"An image that leaves at exit {first.exit} takes {ms(_paired(profile, first))} ms, one that runs every stage "
        f"{ms(_paired(profile, last))} ms; the network without exits takes {ms(profile.whole.median)} ms, measured. "
        f"Staging itself costs {profile.overhead:+.1%}: every stage against one graph that computes the same exits."
    )


def _paired(profile: ExitProfile, entry: ExitTimes) -> float:
    """Milliseconds of an exit from paired runs: a drift of the machine's speed is not in them."""
    return entry.relative * profile.whole.median


def _exit_rows(profile: ExitProfile) -> list[tuple[str, ...]]:
    rows = [(f"exit {entry.exit}", entry) for entry in profile.exits]
    if profile.branched is not None:
        rows.append(("all branches, one graph", profile.branched))
    table = [
        _row(label, entry.samples, entry.macs, entry.relative, entry.macs / profile.whole_macs) for label, entry in rows
    ]
    return [*table, _row("without exits", profile.whole, profile.whole_macs, 1.0, 1.0)]


def _row(label: str, samples: Samples, macs: int, relative: float, ideal: float) -> tuple[str, ...]:
    return (
        label,
        decimals(macs / 1e6),
        ms(samples.median),
        ms(samples.percentile(90)),
        ms(samples.percentile(99)),
        percent(samples.cov),
        percent(relative),
        percent(ideal),
    )


def _mix_rows(profile: ExitProfile) -> list[tuple[str, ...]]:
    return [
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
    ]


def _predicted_rows(comparison: ExitComparison) -> list[tuple[str, ...]]:
    return [
        (
            f"{comparison.predicted_device}, predicted",
            entry.name,
            ms(entry.predicted_ms),
            times(entry.predicted_speedup),
            times(entry.measured_speedup),
        )
        for entry in (*comparison.exits, *comparison.mixes)
    ]


def _latency_chart(profile: ExitProfile) -> str:
    whole = profile.whole.median
    return bar_chart(
        [f"exit {entry.exit}" for entry in profile.exits],
        [
            Bars("measured", "measured", [_paired(profile, entry) for entry in profile.exits]),
            Bars("ideal (from MACs)", "ideal", [whole * entry.macs / profile.whole_macs for entry in profile.exits]),
        ],
        identifier="latency",
        title="Latency of images that leave at each exit, measured",
        description=f"Without exits {ms(whole)} ms. "
        + "; ".join(f"exit {entry.exit}: {ms(_paired(profile, entry))} ms" for entry in profile.exits)
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
