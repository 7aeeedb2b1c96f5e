"""``dyndeploy profile FILE.onnx`` and what ``compare`` says of it: a static network without a twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dyndeploy.cli._arguments import named_files, named_sizes, print_table, printable, size
from dyndeploy.cli._verbosity import note
from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    from dyndeploy.measure import NetworkProfile
    from dyndeploy.reporting import NetworkComparison

CALIBRATE_FIRST = "'dyndeploy calibrate-device' (up to 10 minutes) lets this machine be predicted."

_SHOWN_OPERATORS = 8


def require_static_file(path: Path, options: Mapping[str, Any]) -> None:
    """Refuse options that mean nothing for a file without anything that skips."""
    given = [option for option, value in options.items() if value]
    if "--rates" in given or "--exit-mix" in given:
        raise UsageError(
            f"{path} is static: nothing in it skips and it has no exits to leave at. Leave {', '.join(given)} out."
        )
    if given:
        raise UsageError(
            f"An ONNX file is measured on this machine, with made-up numbers or --input: leave {', '.join(given)} out."
        )


def file_measurement(
    path: Path,
    input_size: str | None,
    dims: Sequence[str],
    inputs: Sequence[str],
    threads: int,
    repeats: int | None,
) -> Callable[[Callable[[str, float], None]], NetworkProfile]:
    """What measures a file when it is called, with everything parsed that can be before."""
    options: dict[str, Any] = {
        "input_size": None if input_size is None else size("--input-size", input_size),
        "dims": named_sizes(dims),
        "inputs": named_files(inputs),
        "threads": threads,
        "repeats": repeats,
    }

    def measure(progress: Callable[[str, float], None]) -> NetworkProfile:
        from dyndeploy.measure import profile_network

        return profile_network(path, progress=progress, **options)

    return measure


def print_network(result: NetworkProfile) -> None:
    """Print the profile of a static network."""
    samples = result.samples
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in result.network["inputs"].items())
    typer.echo(
        printable(
            f"{result.network['name']} ({shapes}) on {result.machine['cpu']}, {result.runtime['name']} "
            f"{result.runtime['version']}, {result.threads} thread(s), batch {result.batch}: {samples.median:.3f} ms "
            f"per run, measured (p90 {samples.percentile(90):.3f}, CoV {samples.cov:.1%}); {result.macs / 1e6:.1f} M "
            "MACs per image."
        )
    )
    total = sum(part.ms for part in result.operators) or 1.0
    shown = result.operators[:_SHOWN_OPERATORS]
    rows = [(part.name, f"{part.ms:.3f}", f"{part.ms / total:.1%}") for part in shown]
    rest = sum(part.ms for part in result.operators[_SHOWN_OPERATORS:])
    if rest:
        rows.append(("all others", f"{rest:.3f}", f"{rest / total:.1%}"))
    print_table(("operator", "ms", "share"), rows, title="operators as the runtime ran them, measured, ms per run")
    for warning in result.warnings():
        typer.echo(f"Note: {warning}")


def network_page(result: NetworkProfile) -> str:
    """The report of a file, next to predictions for all devices."""
    from dyndeploy.prediction import known_devices
    from dyndeploy.reporting import compare_network_profile, render_network_report

    return render_network_report(
        result, [compare_network_profile(result, device) for device in known_devices(result.threads)]
    )


def print_comparisons(measured: NetworkProfile, comparisons: Sequence[NetworkComparison]) -> None:
    """Print what was measured next to what is predicted."""
    print_table(
        ("predicted device", "predicted ms", "90 % interval", "error"),
        [
            (
                entry.predicted_device,
                f"{entry.predicted_ms:.3f}",
                "-" if entry.interval_ms is None else f"{entry.interval_ms[0]:.3f} .. {entry.interval_ms[1]:.3f}",
                "not comparable" if entry.error is None else f"{entry.error:+.1%}",
            )
            for entry in comparisons
        ],
        title=f"{measured.network['name']}: {measured.samples.median / measured.batch:.3f} ms per image measured on "
        f"{measured.device}",
    )
    for entry in comparisons:
        if entry.parts:
            print_table(
                ("part", "measured ms", "predicted ms", "error"),
                [
                    (part.name, f"{part.measured_ms:.4f}", f"{part.predicted_ms:.4f}", f"{part.error:+.1%}")
                    for part in entry.parts
                ],
                title=f"{entry.predicted_device}: parts, ms per image",
            )
        for warning in entry.warnings:
            note(f"{entry.predicted_device}: {warning}")
    if all(entry.error is None for entry in comparisons):
        typer.echo(
            f"Note: No prediction for what was measured is among these: there is no error to tell. {CALIBRATE_FIRST}"
        )
