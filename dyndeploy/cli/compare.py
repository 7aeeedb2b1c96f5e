"""``dyndeploy compare``: a profile against predictions, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table


def compare(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE.json", help="Written by 'dyndeploy profile --json'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML page to write.")],
    predict_device: Annotated[
        str | None, typer.Option(help="Device model to predict for. [default: every one]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the comparison as JSON to stdout.")] = False,
) -> None:
    """Compare a measurement with predictions and write a self-contained report."""
    from dyndeploy.profiling import load_profile
    from dyndeploy.reporting import compare_profile, predict_profile, write_report
    from dyndeploy.targets import device_names

    measured = load_profile(profile)
    sweeps = [predict_profile(measured, name) for name in ([predict_device] if predict_device else device_names())]
    write_report(output, measured, sweeps)
    comparisons = [compare_profile(measured, sweep) for sweep in sweeps]
    if as_json:
        print_json(
            {
                "profile": str(profile),
                "report": str(output),
                "profiled_device": measured.device,
                "comparisons": [comparison.to_json() for comparison in comparisons],
            }
        )
        return
    print_table(
        ("predicted device", "speed-up MAPE", "speed-up Spearman", "block Spearman", "latency MAPE", "coverage"),
        [
            (
                entry.predicted_device,
                f"{entry.speedup_mape:.1%}",
                _number(entry.speedup_spearman),
                _number(entry.block_speedup_spearman),
                "not comparable" if entry.latency_mape is None else f"{entry.latency_mape:.1%}",
                f"{entry.coverage.by_count:.0%}",
            )
            for entry in comparisons
        ],
        title=f"measured on {measured.device}, predicted per device; speed-ups over each device's own static twin",
    )
    typer.echo(f"Report: {output}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
