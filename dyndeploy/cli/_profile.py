"""A profile as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dyndeploy.cli._arguments import print_table

if TYPE_CHECKING:
    from dyndeploy.measure import Profile, RateResult
    from dyndeploy.measure.energy import Energy


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
    from dyndeploy.reporting import parts_table, steps_table

    table = parts_table(result)
    if table is not None:
        title = f"parts, measured {HOW_TIMED}: ms per batch of the twin, realised / ideal speed-up"
        print_table(table.columns, table.rows, title=title)
        typer.echo(result.dynamic_note)
    steps = steps_table(result)
    if steps is not None:
        print_table(steps.columns, steps.rows, title=f"{steps.label[0].lower()}{steps.label[1:]}: median ms per batch")


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
