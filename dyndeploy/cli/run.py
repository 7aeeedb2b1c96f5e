"""``dyndeploy run``: a bundle on images, or on arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import numbers, print_json, print_table
from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    from dyndeploy.inference import Classification, Result


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Images, JPEG or PNG.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE.npy", help="An input that is no image; again for each input."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.npz", help="Write the outputs of --input as arrays.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime or tensorrt.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="Threads that compute one image, in ONNX Runtime.")] = 1,
    thresholds: Annotated[
        str | None,
        typer.Option(help="Least confidence of every exit but the last, e.g. 0.8,0.7,0.6. [default: the bundle's]"),
    ] = None,
    native: Annotated[str, typer.Option(help="auto, off, or the path of an operator library.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Run images one by one, or arrays: class and confidence or outputs, time, the exit taken or the masks' rates."""
    from dyndeploy.bundle import LOGITS, Bundle
    from dyndeploy.inference import classify, read_arrays, read_images, run_inputs

    if bool(images) == bool(inputs):
        raise UsageError("Give images, or arrays (--input NAME=FILE.npy), and not both.")
    if output is not None and not inputs:
        raise UsageError("--output writes what --input gives: leave it out for images.")
    opened = Bundle.open(bundle)
    limits = None if thresholds is None else numbers("--thresholds", thresholds)
    if images and LOGITS in {info.name for info in opened.manifest.outputs}:
        found = classify(opened, images, runtime=runtime, threads=threads, thresholds=limits, native=native)
        if as_json:
            print_json([result.to_json() for result in found])
            return
        print_table(
            ("image", "class", "confidence", "exit" if found[0].exit is not None else "mean rate", "ms"),
            [(r.image, r.class_name or r.label, f"{r.confidence:.3f}", _decision(r), f"{r.ms:.2f}") for r in found],
        )
        return
    feeds = read_images(opened, images) if images else [read_arrays(opened, _named(inputs or []))]
    results = run_inputs(opened, feeds, runtime=runtime, threads=threads, thresholds=limits, native=native)
    if output is not None:
        _write(output, results[0])
    if as_json:
        print_json([result.to_json() for result in results])
        return
    names = [str(path) for path in images] if images else ["arrays"]
    print_table(
        ("input", "output", "shape", "min", "max", "ms"),
        [
            (name, key, tuple(value.shape), f"{value.min():.4g}", f"{value.max():.4g}", f"{result.ms:.2f}")
            for name, result in zip(names, results, strict=True)
            for key, value in result.outputs.items()
        ],
    )
    for mask, rate in results[0].rates.items():
        typer.echo(f"{mask}: rate {rate:.3f}")


def _named(inputs: list[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for entry in inputs:
        name, separator, path = entry.partition("=")
        if not separator or not name or not path or name in named:
            raise UsageError(f"--input takes NAME=FILE.npy, each name once, not '{entry}'.")
        named[name] = Path(path)
    return named


def _write(path: Path, result: Result) -> None:
    import numpy as np

    from dyndeploy.files import atomic_file

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **result.outputs)  # type: ignore[arg-type]


def _decision(result: Classification) -> str:
    if result.exit is not None:
        return str(result.exit)
    rate = result.mean_rate
    return "-" if math.isnan(rate) else f"{rate:.3f}"
