"""``dyndeploy calibrate-device``: micro-benchmarks of a device and the model fitted to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._progress import progress_bar

if TYPE_CHECKING:
    from dyndeploy.prediction.calibrated import Calibration


def calibrate_device(
    device: Annotated[str, typer.Option(help="'cpu': this machine.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of every run; one calibration for each number.")] = 1,
    minutes: Annotated[float, typer.Option(help="Time for measuring and fitting, about.")] = 9.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. [default: in your configuration folder]")
    ] = None,
    native: Annotated[str, typer.Option(help="Operator library: auto, off, or its path.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the graphs that are measured.")] = 0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what an interrupted calibration measured.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write a summary to stdout as JSON.")] = False,
) -> None:
    """Measure a device with micro-benchmarks, so that 'dyndeploy predict' and 'plan' know it; goes on after Ctrl-C."""
    from dyndeploy.device_calibration import calibrate
    from dyndeploy.prediction.calibrated import calibration_file

    with progress_bar() as progress:
        result = calibrate(
            output, device=device, threads=threads, minutes=minutes, native=native, seed=seed, restart=restart,
            progress=progress,
        )  # fmt: skip
    path = output if output is not None else calibration_file(device, threads)
    if as_json:
        value = result.to_json()
        for model in value["classes"].values():
            del model["trees"], model["low"], model["high"]
        print_json({**value, "file": str(path)})
        return
    _print(result, path)


def _print(result: Calibration, path: Path) -> None:
    rows = [
        (name, m.samples, f"{m.mape:.1%}", f"{m.within_5:.0%}", f"{m.within_10:.0%}", "yes" if m.trees else "no")
        for name, m in sorted(result.classes.items(), key=lambda item: -item[1].samples)
    ]
    print_table(
        ("class", "samples", "MAPE", "within 5 %", "within 10 %", "trees"),
        rows,
        title=f"{result.machine['cpu']}, {result.threads} thread(s): errors on graphs that were not fitted",
    )
    measured = result.measured
    typer.echo(
        f"{measured['samples']} samples of {measured['graphs']} graphs in {measured['seconds']:.0f} s; the same graph "
        f"measured again: drift {measured['drift']}, noise {measured['noise']}."
    )
    typer.echo(f"Written to {path}.")
