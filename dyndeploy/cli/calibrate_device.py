"""``dyndeploy calibrate-device``: micro-benchmarks of a device and the model fitted to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, Native, option
from dyndeploy.cli._progress import progress_bar

if TYPE_CHECKING:
    from dyndeploy.prediction.calibrated import Calibration


def calibrate_device(
    device: Annotated[str, option("--device", detail="Only cpu so far.")] = "cpu",
    threads: Annotated[int, option("--threads", min=1, detail="One calibration for each number.")] = 1,
    minutes: Annotated[float, typer.Option(help="Time for measuring and fitting, about.")] = 9.0,
    output: Annotated[
        Path | None, option("--output", "-o", metavar="FILE", detail="(default: in your configuration folder)")
    ] = None,
    native: Native = "auto",
    seed: Annotated[int, typer.Option(help="Seed of what is drawn at random: here the graphs that are measured.")] = 0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what an interrupted calibration measured.")
    ] = False,
    as_json: AsJson = False,
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
