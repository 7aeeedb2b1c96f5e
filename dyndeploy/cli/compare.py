"""``dyndeploy compare``: a measurement as one HTML page; a profile next to predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, option
from dyndeploy.cli._verbosity import note
from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    from dyndeploy.reporting import Comparison, ExitComparison


def compare(
    profile: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT.json", help="Written by 'dyndeploy profile' or 'dyndeploy calibrate' with --json."
        ),
    ],
    output: Annotated[Path, option("--output", "-o", metavar="FILE", detail="Here one HTML page.")],
    predict_device: Annotated[
        str | None, typer.Option(help="Device model to predict for. (default: every one)")
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="Exit with 1 if the mean error exceeds this: of the latencies predicted for the profiled device, or "
            "of the speed-ups predicted for others if it is not among them.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a measurement with predictions and write a self-contained report."""
    from dyndeploy.files import read_json

    content = read_json(profile)
    kind = content.get("kind") if isinstance(content, dict) else None
    if fail_above is not None and not fail_above >= 0:
        raise UsageError(f"--fail-above takes per cent, 0 or more, not {fail_above}.")
    if kind == "calibration":
        if predict_device is not None or fail_above is not None:
            raise UsageError(
                f"{profile} holds thresholds, which nothing predicts: leave out the device and --fail-above."
            )
        _report_calibration(profile, output)
        if as_json:
            print_json({"kind": kind, "source": str(profile), "report": str(output)})
        else:
            typer.echo(f"Report: {output}")
        return
    compare_kind = _compare_exits if kind == "measured_exits" else _compare
    compare_kind(profile, output, predict_device, fail_above, as_json)


def _report_calibration(source: Path, output: Path) -> None:
    from dyndeploy.exits import load_calibration
    from dyndeploy.reporting import write_exits_report

    write_exits_report(output, load_calibration(source))


def _compare_exits(
    source: Path, output: Path, predict_device: str | None, fail_above: float | None, as_json: bool
) -> None:
    from dyndeploy.measure.load_exits import load_exit_profile
    from dyndeploy.prediction import known_devices
    from dyndeploy.reporting import compare_exit_profile, predict_exit_profile, write_exit_profile_report

    measured = load_exit_profile(source)
    devices = [predict_device] if predict_device else known_devices(measured.threads)
    comparisons = [compare_exit_profile(measured, predict_exit_profile(measured, name)) for name in devices]
    write_exit_profile_report(output, measured, comparisons)
    if as_json:
        print_json(
            {
                "kind": "measured_exits",
                "source": str(source),
                "report": str(output),
                "comparisons": [comparison.to_json() for comparison in comparisons],
            }
        )
    else:
        for entry in comparisons:
            print_table(
                ("leaves at, or mix", "predicted ms", "predicted speed-up", "measured speed-up"),
                [
                    (
                        item.name,
                        f"{item.predicted_ms:.3f}",
                        f"{item.predicted_speedup:.2f}x",
                        f"{item.measured_speedup:.2f}x",
                    )
                    for item in (*entry.exits, *entry.mixes)
                ],
                title=f"{entry.predicted_device}, speed-ups over the network without exits",
            )
        _print_warnings(comparisons)
        typer.echo(f"Report: {output}")
    own = [entry for entry in comparisons if entry.latency_mape is not None]
    _require_below([(entry.predicted_device, entry.headline_error) for entry in own or comparisons], fail_above)


def _require_below(errors: Sequence[tuple[str, float]], fail_above: float | None) -> None:
    """Exit with 1 where the largest of the errors by device exceeds a limit in per cent."""
    device, worst = max(errors, key=lambda entry: entry[1])
    if fail_above is not None and 100 * worst > fail_above:
        typer.echo(
            f"The prediction for {device} is off by {worst:.1%} on average, more than {fail_above:g} %.", err=True
        )
        raise typer.Exit(1)


def _compare(profile: Path, output: Path, predict_device: str | None, fail_above: float | None, as_json: bool) -> None:
    from dyndeploy.measure import load_profile
    from dyndeploy.prediction import known_devices
    from dyndeploy.reporting import compare_profile, predict_profile, write_report

    measured = load_profile(profile)
    devices = [predict_device] if predict_device else known_devices(measured.threads)
    sweeps = [predict_profile(measured, name) for name in devices]
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
    else:
        _print(measured.device, comparisons, output)
    own = [entry for entry in comparisons if entry.predicted_device == measured.device]
    _require_below([(entry.predicted_device, entry.headline_error) for entry in own or comparisons], fail_above)


def _print(profiled: str, comparisons: Sequence[Comparison], output: Path) -> None:
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
        title=f"measured on {profiled}, predicted per device; speed-ups over each device's own static twin",
    )
    for entry in comparisons:
        if entry.parts:
            print_table(
                ("mostly", "parts", "mean error", "bias", "within 10 %"),
                [
                    (kind.kind, kind.parts, f"{kind.mape:.1%}", f"{kind.bias:+.1%}", f"{kind.within_10:.0%}")
                    for kind in entry.kinds
                ],
                title=f"{entry.predicted_device}: error of the parts by kind of their kernels",
            )
            print_table(
                ("part", "network", "mostly", "measured ms", "predicted ms", "error"),
                [
                    (
                        part.part,
                        part.network,
                        part.kind,
                        f"{part.measured_ms:.4f}",
                        f"{part.predicted_ms:.4f}",
                        f"{part.error:+.1%}",
                    )
                    for part in entry.worst
                ],
                title=f"{entry.predicted_device}: the worst parts",
            )
    _print_warnings(comparisons)
    typer.echo(f"Report: {output}")


def _print_warnings(comparisons: Sequence[Comparison | ExitComparison]) -> None:
    for entry in comparisons:
        for warning in entry.warnings:
            note(f"{entry.predicted_device}: {warning}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
