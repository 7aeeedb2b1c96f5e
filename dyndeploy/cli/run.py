"""``dyndeploy run``: classify images with a bundle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import numbers, print_json, print_table

if TYPE_CHECKING:
    from dyndeploy.inference import Classification


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    images: Annotated[list[Path], typer.Argument(help="Images, JPEG or PNG.")],
    runtime: Annotated[str, typer.Option(help="onnxruntime or tensorrt.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="Threads that compute one image, in ONNX Runtime.")] = 1,
    thresholds: Annotated[
        str | None,
        typer.Option(help="Least confidence of every exit but the last, e.g. 0.8,0.7,0.6. [default: the bundle's]"),
    ] = None,
    native: Annotated[str, typer.Option(help="auto, off, or the path of an operator library.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Classify images one by one: class, confidence and time; the exit taken, or the rates of the masks."""
    from dyndeploy.inference import classify

    results = classify(
        bundle,
        images,
        runtime=runtime,
        threads=threads,
        thresholds=None if thresholds is None else numbers("--thresholds", thresholds),
        native=native,
    )
    if as_json:
        print_json([result.to_json() for result in results])
        return
    print_table(
        ("image", "class", "confidence", "exit" if results[0].exit is not None else "mean rate", "ms"),
        [(r.image, r.label, f"{r.confidence:.3f}", _decision(r), f"{r.ms:.2f}") for r in results],
    )


def _decision(result: Classification) -> str:
    if result.exit is not None:
        return str(result.exit)
    rate = result.mean_rate
    return "-" if math.isnan(rate) else f"{rate:.3f}"
