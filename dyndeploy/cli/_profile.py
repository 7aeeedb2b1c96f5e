"""A profile as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dyndeploy.cli._arguments import print_table

if TYPE_CHECKING:
    from dyndeploy.measure import Profile, RateResult
    from dyndeploy.measure.energy import Energy
    from dyndeploy.measure.parts import PartTimes


def print_profile(result: Profile) -> None:
    """Print a profile as a table with its warnings."""
    network, where = result.bundle, result.machine.get("gpu") or result.machine["cpu"]
    typer.echo(
        f"{network['name']}, mode {network['mode']}, on {where}, {result.threads} thread(s), "
        f"batch {result.batch}, operators: {result.operator_code or 'none dynamic'}"
        + (f", in {result.reduced_precision}" if result.reduced_precision else "")
    )
    static = result.static
    rows = [
        [
            "static twin" + (" (fp32)" if result.reduced_precision else ""),
            "-",
            f"{static.median:.3f}",
            f"{static.percentile(90):.3f}",
            f"{static.cov:.1%}",
        ]
    ]
    rows[0] += ["1.00x", "1.00x", "-", "-"]
    rows += [_row(entry) for entry in (*result.rates, result.data)]
    print_table(
        ("rate", "masks", "median ms", "p90 ms", "CoV", "ideal", "realised", "p25..p75", "realisation"),
        rows,
        title=f"measured, ms per batch of {result.batch}",
    )
    _print_parts(result)
    print_energy(result.energy)
    for warning in result.warnings():
        typer.echo(f"Note: {warning}")


def _print_parts(result: Profile) -> None:
    """Print the parts of a detector, and how far skipping can carry at all; nothing for other networks."""
    from dyndeploy.measure.parts import HOW_TIMED

    if not result.data.parts:
        return
    entries = (*result.rates, result.data)
    total_ms = sum(part.static_ms for part in result.data.parts)
    rows = []
    for part in result.data.parts:
        share = part.static_ms / total_ms if total_ms > 0 else 0.0
        row = [part.name, f"{part.static_macs / 1e9:.4g}", f"{part.static_macs / result.static_macs:.1%}"]
        row += [f"{part.static_ms:.3f}", f"{share:.1%}"]
        rows.append([*row, *(_speed(entry.part(part.name)) for entry in entries)])
    labels = [f"{entry.label} ({entry.masks})" for entry in entries]
    print_table(
        ("part", "G MACs", "of all", "static ms", "of all", *labels),
        rows,
        title=f"parts: realised / ideal speed-up, measured {HOW_TIMED}; times add up to {total_ms:.3f} ms of the twin",
    )
    typer.echo(_limit(result))


def _speed(part: PartTimes | None) -> str:
    if part is None or part.realised_speedup is None:
        return "-"
    ideal = "-" if part.ideal_speedup is None else f"{part.ideal_speedup:.2f}x"
    return f"{part.realised_speedup:.2f}x / {ideal}"


def _limit(result: Profile) -> str:
    """What can be skipped at all."""
    share, limit = result.dynamic_share, result.speedup_limit
    if share is None:
        return ""
    text = f"Dynamic share: {share:.1%} of the twin's MACs stand in blocks that can be skipped"
    return (
        f"{text}."
        if limit is None
        else f"{text}; if all of them cost nothing, the whole would be {limit:.2f}x as fast."
    )


def print_energy(energy: Energy | None) -> None:
    """Print what was measured of energy; nothing without a sensor."""
    if energy is None:
        return
    rows = [
        (entry.name, f"{entry.power_mw / 1000:.2f}", f"{entry.mj:.2f}", f"{entry.above(energy.idle_mw):.2f}")
        for entry in energy.entries
    ]
    print_table(("what", "W", "mJ per image", "above idle"), rows, title=f"energy, {energy.description}")


def _row(result: RateResult) -> list[str]:
    low, high = result.realised_spread
    return [
        result.label,
        result.masks,
        f"{result.samples.median:.3f}",
        f"{result.samples.percentile(90):.3f}",
        f"{result.samples.cov:.1%}",
        f"{result.ideal_speedup:.2f}x",
        f"{result.realised_speedup:.2f}x",
        f"{low:.2f}..{high:.2f}",
        f"{result.realisation:.1%}",
    ]
