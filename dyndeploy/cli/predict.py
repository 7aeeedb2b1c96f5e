"""``dyndeploy predict``: the latency of a network on a device model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from dyndeploy.errors import UsageError
from dyndeploy.files import read_json
from dyndeploy.prediction import NetworkSpec, Prediction, predict_network

_MANIFEST = "bundle.json"
_T = TypeVar("_T")


def predict(
    network: Annotated[str, typer.Argument(metavar="NAME|BUNDLE", help="A network's name or a bundle's folder.")],
    device: Annotated[str, typer.Option(help="Device model: v100, rtx3090, rtx3060, tx2, nano.")],
    mode: Annotated[
        str | None,
        typer.Option(help="static, spatial, channel, layer or both; a-b-c-d gives one per stage. (default: static)"),
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help="Patch side per stage, e.g. 4-4-2-1. (default: 4-4-2-1 for four stages, else 1)")
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
        str | None, typer.Option(metavar="HxW", help="Image size. (default: the bundle's, else 224x224)")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Replay the published predictor's random channel masks (slow).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout.")] = False,
) -> None:
    """Predict the latency of a network on a device model; nothing is run."""
    target: str | NetworkSpec = network
    size = None if input_size is None else _numbers("--input-size", input_size, "x", int, 2)
    if (Path(network) / _MANIFEST).is_file():
        manifest = read_json(Path(network) / _MANIFEST)
        described = _from(manifest, "network", network)
        spec = NetworkSpec.from_json(_from(manifest, "network_spec", network))
        if size is not None and tuple(size) != spec.input_size:
            raise UsageError(
                f"The bundle {network} was exported for {spec.input_size[0]}x{spec.input_size[1]} images. "
                "Leave --input-size out, or predict the network by its name."
            )
        target, size = spec, None
        mode = mode or _joined(described.get("mode"))
        granularity = granularity or _joined(described.get("granularity"))
        channel_granularity = channel_granularity or _joined(described.get("channel_granularity"))
        if batch is None:
            batch = described.get("batch", manifest.get("batch"))
    elif Path(network).is_dir():
        raise UsageError(f"{network} is a folder but holds no {_MANIFEST}: it is no bundle.")

    rates = _numbers("--rate", rate, ",", float)
    prediction = predict_network(
        target,
        mode=tuple((mode or "static").split("-")),
        granularity=_numbers("--granularity", granularity, "-", int) if granularity else None,
        channel_granularity=_numbers("--channel-granularity", channel_granularity or "2", "-", int),
        rate=rates[0] if len(rates) == 1 else rates,
        device=device,
        batch=batch,
        compat=compat,
        mem_concurrent=mem_concurrent,
        seed=seed,
        input_size=None if size is None else (size[0], size[1]),
    )
    if as_json:
        typer.echo(json.dumps(prediction.to_json(), allow_nan=False))
    else:
        _print_table(prediction)


def _from(manifest: Any, key: str, bundle: str) -> dict[str, Any]:
    value = manifest.get(key) if isinstance(manifest, dict) else None
    if not isinstance(value, dict):
        raise UsageError(
            f"The bundle {bundle} has no '{key}' in its {_MANIFEST}. Export it again, or predict the network by name."
        )
    return value


def _joined(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return "-".join(str(entry) for entry in value) if isinstance(value, (list, tuple)) else str(value)


def _numbers(option: str, text: str, separator: str, read: Callable[[str], _T], count: int = 0) -> tuple[_T, ...]:
    try:
        values = tuple(read(part) for part in text.lower().split(separator))
    except ValueError:
        values = ()
    if not values or (count and len(values) != count):
        example = {"x": "224x224", ",": "0.5", "-": "4-4-2-1"}[separator]
        raise UsageError(f"{option} is '{text}'; write it like {example}.")
    return values


def _print_table(prediction: Prediction) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{prediction.network} on {prediction.device}, predicted, ms per image")
    table.add_column("part")
    table.add_column("mode")
    for column in ("compute", "memory", "launch", "total"):
        table.add_column(column, justify="right")
    for block in prediction.blocks:
        known = [operator for operator in block.operators if operator.latency_ms is not None]
        parts = [
            sum(operator.compute_ms or 0.0 for operator in known),
            sum(operator.memory_ms or 0.0 for operator in known),
            sum(operator.launch_ms or 0.0 for operator in known),
            block.latency_ms,
        ]
        table.add_row(block.name, block.mode, *(f"{value:.4f}" for value in parts))
    console = Console()
    console.print(table)
    coverage = prediction.coverage
    console.print(
        f"{prediction.latency_ms:.4f} ms per image, {prediction.latency_batch_ms:.4f} ms per batch of "
        f"{prediction.batch}; {coverage.by_count:.0%} of {coverage.operators} operators covered."
    )
    if coverage.unknown:
        console.print(f"Not covered (no latency, not 0 ms): {', '.join(coverage.unknown)}")
    reading = "as published (blocks only)" if prediction.compat else f"with {len(prediction.fixes)} faults repaired"
    console.print(f"LAUDNet predictor, {reading}.")
