"""``dyndeploy profile``: a bundle measured on this machine, next to its static twin."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import numbers, print_json, print_table
from dyndeploy.cli._progress import progress_bar
from dyndeploy.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from dyndeploy.profiling import Profile, RateResult

THIS_MACHINE = "cpu"


def profile(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle that was exported with --static.")],
    device: Annotated[str, typer.Option(help="cpu: this machine.")] = THIS_MACHINE,
    threads: Annotated[int, typer.Option(help="Threads of each session.")] = 1,
    rates: Annotated[
        str, typer.Option(help="Activation rates to force, separated by commas.")
    ] = "0.1,0.25,0.5,0.75,1.0",
    data: Annotated[
        Path | None, typer.Option(help="Folder of images for the data's own rates. [default: the reference images]")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds. [default: about 10 seconds of them]")] = None,
    native: Annotated[str, typer.Option(help="auto, off, or the path of an operator library.")] = "auto",
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the profile as JSON; '--json -' is stdout.")
    ] = None,
) -> None:
    """Measure a bundle on this machine: each rate next to the static twin, ideal and realised speed-up."""
    _require_this_machine(device)
    chosen = numbers("--rates", rates)
    if json_file is not None and json_file.startswith("-") and json_file != "-":
        raise UsageError(f"--json takes a file, or '-' for stdout ('--json -'), not '{json_file}'.")

    from dyndeploy.bundle import Bundle
    from dyndeploy.files import atomic_file
    from dyndeploy.profiling import profile_bundle

    opened = Bundle.open(bundle)
    with ExitStack() as stack:
        # The output path is claimed first, so that an impossible one costs no measurement.
        output = stack.enter_context(atomic_file(json_file)) if json_file not in (None, "-") else None
        progress = stack.enter_context(progress_bar())
        result = profile_bundle(
            opened,
            threads=threads,
            rates=chosen,
            data=data,
            repeats=repeats,
            native=native,
            progress=progress,
        )
        if output is not None:
            output.write_text(json.dumps(result.to_json(), allow_nan=False) + "\n", encoding="utf-8")
    if json_file == "-":
        print_json(result.to_json())
        return
    _print(result)
    if json_file is not None:
        typer.echo(f"Written to {json_file}; 'dyndeploy compare {json_file} -o report.html' makes a report of it.")


def _require_this_machine(device: str) -> None:
    from dyndeploy.targets import device_names, target_names

    if device == THIS_MACHINE:
        return
    models = device_names()
    if device in {*models, *target_names()}:
        model = device if device in models else "nano"
        raise UsageError(
            f"Profiling on '{device}' over SSH is not available yet; this release profiles this machine (--device "
            f"{THIS_MACHINE}). Without a board, 'dyndeploy predict BUNDLE --device {model}' predicts a latency."
        )
    raise unknown_name("device", device, {THIS_MACHINE, *models, *target_names()})


def _print(result: Profile) -> None:
    network = result.bundle
    typer.echo(
        f"{network['name']}, mode {network['mode']}, on {result.machine['cpu']}, {result.threads} thread(s), "
        f"batch {result.batch}, dynamic operators: {result.native['description']}"
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
    for warning in result.warnings():
        typer.echo(f"Note: {warning}")


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
