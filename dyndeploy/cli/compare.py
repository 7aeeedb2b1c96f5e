"""``dyndeploy compare``: a measurement as one HTML page; a profile next to predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.errors import UsageError


def compare(
    profile: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT.json", help="Written by 'dyndeploy profile' or 'dyndeploy calibrate' with --json."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML page to write.")],
    predict_device: Annotated[
        str | None, typer.Option(help="Device model to predict for. [default: every one]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the comparison as JSON to stdout.")] = False,
) -> None:
    """Compare a measurement with predictions and write a self-contained report."""
    from dyndeploy.files import read_json

    content = read_json(profile)
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind in _EARLY_EXITS:
        if predict_device is not None:
            raise UsageError(
                f"{profile} is of a network that exits early, which has no prediction: leave out the device."
            )
        _EARLY_EXITS[kind](profile, output)
        if as_json:
            print_json({"kind": kind, "source": str(profile), "report": str(output)})
        else:
            typer.echo(f"Report: {output}")
        return
    _compare(profile, output, predict_device, as_json)


def _report_calibration(source: Path, output: Path) -> None:
    from dyndeploy.calibration import load_calibration
    from dyndeploy.reporting import write_exits_report

    write_exits_report(output, load_calibration(source))


def _report_exits(source: Path, output: Path) -> None:
    from dyndeploy.profiling.load_exits import load_exit_profile
    from dyndeploy.reporting import write_exit_profile_report

    write_exit_profile_report(output, load_exit_profile(source))


_EARLY_EXITS = {"calibration": _report_calibration, "measured_exits": _report_exits}
"""Kinds of results of networks that exit early, and what writes their reports."""


def _compare(profile: Path, output: Path, predict_device: str | None, as_json: bool) -> None:
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
