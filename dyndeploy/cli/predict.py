"""``dyndeploy predict``: the latency of a network on a device model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyndeploy.cli._arguments import numbers, per_stage_numbers, print_json, print_table, size

if TYPE_CHECKING:
    from dyndeploy.prediction import Prediction


def predict(
    network: Annotated[str, typer.Argument(metavar="NAME|BUNDLE", help="A network's name or a bundle's folder.")],
    device: Annotated[str, typer.Option(help="Device model: v100, rtx3090, rtx3060, tx2, nano.")],
    mode: Annotated[
        str | None,
        typer.Option(
            help="static, spatial, channel, layer or both; a-b-c-d per stage. (default: the bundle's, else static)"
        ),
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help="Patch side per stage, e.g. 4-4-2-1. (default: the bundle's, else 4-4-2-1)")
    ] = None,
    channel_granularity: Annotated[str | None, typer.Option(help="Channels per group, per stage. (default: 2)")] = None,
    rate: Annotated[
        str, typer.Option(help="Activation rate in [0, 1]; a comma-separated list gives one per block.")
    ] = "0.5",
    batch: Annotated[
        int | None, typer.Option(help="Images per batch. (default: the bundle's, else the device's usual batch)")
    ] = None,
    compat: Annotated[
        str | None, typer.Option(help="'laudnet' reproduces the published predictor, faults included.")
    ] = None,
    mem_concurrent: Annotated[
        int | None, typer.Option(help="Floats per memory sector, 8 or 1. (default: the device's)")
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Image size. (default: the bundle's or the network's)")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Replay the published predictor's random channel masks (slow).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout.")] = False,
) -> None:
    """Predict the latency of a network on a device model; nothing is run."""
    from dyndeploy.bundle import Bundle
    from dyndeploy.prediction import predict_bundle, predict_network

    rates = numbers("--rate", rate)
    given = {
        "mode": None if mode is None else tuple(mode.split("-")),
        "granularity": None if granularity is None else per_stage_numbers("--granularity", granularity),
        "channel_granularity": None
        if channel_granularity is None
        else per_stage_numbers("--channel-granularity", channel_granularity),
        "input_size": None if input_size is None else size("--input-size", input_size),
    }
    # Only what was given is handed on: everything else is the library's to choose.
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options |= {"rate": rates[0] if len(rates) == 1 else rates, "device": device, "batch": batch, "compat": compat}
    options |= {"mem_concurrent": mem_concurrent, "seed": seed}
    if _is_path(network):
        prediction = predict_bundle(Bundle.open(network), **options)
    else:
        prediction = predict_network(network, **options)
    if as_json:
        print_json(prediction.to_json())
    else:
        _print(prediction)


def _is_path(network: str) -> bool:
    """Whether a bundle is meant: names of networks have neither slashes nor dots."""
    return any(mark in network for mark in {"/", os.sep, "."}) or Path(network).exists()


def _print(prediction: Prediction) -> None:
    rows = []
    for block in prediction.blocks:
        known = [operator for operator in block.operators if operator.latency_ms is not None]
        parts = [
            sum(operator.compute_ms or 0.0 for operator in known),
            sum(operator.memory_ms or 0.0 for operator in known),
            sum(operator.launch_ms or 0.0 for operator in known),
            block.latency_ms,
        ]
        rows.append((block.name, block.mode, *(f"{value:.4f}" for value in parts)))
    print_table(
        ("part", "mode", "compute", "memory", "launch", "total"),
        rows,
        title=f"{prediction.network} on {prediction.device}, predicted, ms per image",
    )
    coverage = prediction.coverage
    typer.echo(
        f"{prediction.latency_ms:.4f} ms per image, {prediction.latency_batch_ms:.4f} ms per batch of "
        f"{prediction.batch}; {coverage.by_count:.0%} of {coverage.operators} operators covered."
    )
    if coverage.unknown:
        typer.echo(f"Not covered (no latency, not 0 ms): {', '.join(coverage.unknown)}")
    reading = "as published (blocks only)" if prediction.compat else f"with {len(prediction.fixes)} faults repaired"
    typer.echo(f"LAUDNet predictor, {reading}.")
