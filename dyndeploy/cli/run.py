"""``dyndeploy run``: a bundle on images, or on arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import numbers, print_json_line, print_table, printable
from dyndeploy.cli._options import BundleFolder, Native, Runtime, Threads, option
from dyndeploy.errors import UsageError
from dyndeploy.files import atomic_file

if TYPE_CHECKING:
    from dyndeploy.inference import Classification, Failure, Result


def run(
    bundle: BundleFolder,
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images: JPEG, PNG, WebP, TIFF and others that Pillow reads.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE.npy", help="An input that is no image; again for each input."),
    ] = None,
    output: Annotated[
        Path | None,
        option("--output", "-o", metavar="FILE.npz", detail="Here the arrays that --input gives."),
    ] = None,
    runtime: Runtime = "onnxruntime",
    threads: Threads = 1,
    thresholds: Annotated[str | None, option("--thresholds", detail="(default: the bundle's)")] = None,
    native: Native = "auto",
    as_json: Annotated[bool, option("--json", detail="One object a line, each as soon as its image is done.")] = False,
) -> None:
    """Run images one by one, or arrays: class and confidence or outputs, time, the exit taken or the masks' rates.

    An image that cannot be read is said to be so; the rest goes on, and the exit code is 1 at the end.
    """
    from dyndeploy.bundle import LOGITS, Bundle
    from dyndeploy.inference import classify_images, read_arrays, run_images, run_inputs

    if bool(images) == bool(inputs):
        raise UsageError("Give images, or arrays (--input NAME=FILE.npy), and not both.")
    if output is not None and not inputs:
        raise UsageError("--output writes what --input gives: leave it out for images.")
    opened = Bundle.open(bundle)
    limits = None if thresholds is None else numbers("--thresholds", thresholds)
    if images:
        classified = LOGITS in {info.name for info in opened.manifest.outputs}
        each = classify_images if classified else run_images
        results = each(opened, images, runtime=runtime, threads=threads, thresholds=limits, native=native)
        failed = _print_each(results, opened.manifest.network.class_names, as_json)
        if failed:
            typer.echo(f"dyndeploy: {failed} of {len(images)} images failed.", err=True)
            raise typer.Exit(1)
        return
    feeds = read_arrays(opened, _named(inputs or []))
    with ExitStack() as stack:
        written = None if output is None else stack.enter_context(atomic_file(output))
        [result] = run_inputs(opened, [feeds], runtime=runtime, threads=threads, thresholds=limits, native=native)
        if written is not None:
            _write(written, result)
    if as_json:
        print_json_line(result.to_json())
        return
    print_table(
        ("output", "shape", "min", "max", "ms"),
        [
            (key, tuple(value.shape), f"{value.min():.4g}", f"{value.max():.4g}", f"{result.ms:.2f}")
            for key, value in result.outputs.items()
        ],
    )
    for mask, rate in result.rates.items():
        typer.echo(f"{mask}: rate {rate:.3f}")


def _named(inputs: list[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for entry in inputs:
        name, separator, path = entry.partition("=")
        if not separator or not name or not path or name in named:
            raise UsageError(f"--input takes NAME=FILE.npy, each name once, not '{entry}'.")
        named[name] = Path(path)
    return named


def _print_each(
    results: Iterable[Classification | Result | Failure], classes: Sequence[str] | None, as_json: bool
) -> int:
    """Print every result as soon as it is there, and keep none; returns how many images failed."""
    from dyndeploy.inference import Classification, Failure

    width = min(32, max(len("class"), *map(len, classes or ("",))))
    failed = shown = 0
    for result in results:
        failed += isinstance(result, Failure)
        if as_json:
            print_json_line(result.to_json())
        elif isinstance(result, Failure):
            typer.echo(f"dyndeploy: {printable(result.to_json()['error'])}", err=True)
        elif isinstance(result, Classification):
            if not shown:
                decision = "mean rate" if result.exit is None else "exit"
                typer.echo(f"{'class':{width}}  confidence  {decision:>9}        ms  image")
            shown += 1
            name = printable(result.label if result.class_name is None else result.class_name)
            values = f"{result.confidence:10.3f}  {_decision(result):>9}  {result.ms:8.2f}"
            typer.echo(f"{name:{width}}  {values}  {printable(result.image)}")
        else:
            for key, value in result.outputs.items():
                found = f"{key} {tuple(value.shape)}, {value.min():.4g} to {value.max():.4g}, {result.ms:.2f} ms"
                typer.echo(f"{printable(result.image)}: {found}")
    return failed


def _write(path: Path, result: Result) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **result.outputs)  # type: ignore[arg-type]


def _decision(result: Classification) -> str:
    if result.exit is not None:
        return str(result.exit)
    rate = result.mean_rate
    return "-" if math.isnan(rate) else f"{rate:.3f}"
