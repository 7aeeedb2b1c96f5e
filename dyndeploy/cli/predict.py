"""``dyndeploy predict``: the latency of a network on a device model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyndeploy.cli._arguments import exit_mix as read_mix
from dyndeploy.cli._arguments import (
    named_sizes,
    numbers,
    per_stage_numbers,
    print_json,
    print_table,
    size,
    whole_numbers,
)
from dyndeploy.cli._options import AsJson, Dim, InputSize, Threads, complete_device, complete_network, option
from dyndeploy.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from dyndeploy.prediction import BlockPrediction, Prediction
    from dyndeploy.prediction.rates import RateLike

_PREDICTORS = ("kernels", "reference")
_FURTHER_RATES = ("conv1", "conv2")
"""Rates that operators take besides those of their gates."""
_CAUSES = ("compute_ms", "memory_ms", "launch_ms")


def predict(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NAME|BUNDLE|FILE.onnx",
            autocompletion=complete_network,
            help="A network's name (torchvision's or the zoo's), a bundle's folder, or any ONNX file.",
        ),
    ],
    device: Annotated[
        str,
        option(
            "--device",
            detail="In its fastest power mode or as NAME@MODE; the cpu must be calibrated first.",
            autocompletion=complete_device,
        ),
    ],
    precision: Annotated[str | None, option("--precision", detail="(default: the bundle's, else fp32)")] = None,
    mode: Annotated[str | None, option("--mode", detail="(default: the bundle's, else static)")] = None,
    granularity: Annotated[str | None, option("--granularity", detail="(default: the bundle's, else 4-4-2-1)")] = None,
    channel_granularity: Annotated[
        str | None, option("--channel-granularity", detail="(default: the bundle's, else 2)")
    ] = None,
    rate: Annotated[
        str | None,
        option(
            "--rate",
            detail="Separated by commas: one per block; or NAME=RATE by what is skipped (token, head, attention, mlp, "
            "spatial, channel; left out: 1). (default: 0.5; 1 for the branches of a foreign file's If and for "
            "transformers of --compat laudnet)",
        ),
    ] = None,
    exit_mix: Annotated[
        str | None, option("--exit-mix", metavar="SHARES", detail="(default: the bundle's, else equal ones)")
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(help="Exits to keep, the last included, e.g. 2,4, as export does. (default: all)"),
    ] = None,
    batch: Annotated[
        int | None, option("--batch", min=1, detail="(default: the bundle's, else the device's usual one)")
    ] = None,
    input_size: InputSize = None,
    dim: Dim = None,
    runtime: Annotated[
        str | None, option("--runtime", detail="Or pytorch: whose fusions and launches. (default: the device's)")
    ] = None,
    threads: Threads = 1,
    calibration: Annotated[
        Path | None, option("--calibration", detail="(default: where that command leaves it)")
    ] = None,
    predictor: Annotated[
        str | None, typer.Option(help="'kernels' (default) or 'reference': the LAUDNet predictor, faults repaired.")
    ] = None,
    compat: Annotated[
        str | None, typer.Option(help="'laudnet' reproduces the published predictor, faults included.")
    ] = None,
    mem_concurrent: Annotated[
        int | None, typer.Option(help="Reference: floats per memory sector, 8 or 1. (default: the device's)")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of what is drawn at random: here the published predictor's channel masks, replayed (slow)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict the latency of a network on a device; nothing is run."""
    from dyndeploy.bundle import Bundle
    from dyndeploy.prediction import predict as predict_kernels
    from dyndeploy.prediction.laudnet import predict_bundle, predict_network

    rates = None if rate is None else _rates(rate)
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
    options |= {"device": device, "batch": batch}
    sizes = named_sizes(dim or [])
    if rates is not None:
        options["rate"] = rates
    of_reference = {"compat": compat, "mem_concurrent": mem_concurrent, "seed": seed}
    if _wants_reference(predictor, of_reference):
        other = (runtime, calibration, exit_mix, exits, sizes or None)
        if precision not in (None, "fp32") or any(value is not None for value in other):
            raise UsageError(
                "The reference predictor knows FP32 and no runtime, no exits and no ONNX files. Leave --predictor and "
                "--compat out."
            )
        options |= of_reference
        if _is_path(network):
            prediction = predict_bundle(Bundle.open(network), **options)
        else:
            prediction = predict_network(network, **options)
        if rates is not None and not _changes_nothing(rates):
            prediction.require_rates()
    else:
        options |= {"precision": precision, "runtime": runtime, "threads": threads, "calibration": calibration}
        if sizes:
            options["dims"] = sizes
        if exit_mix is not None:
            options["exit_mix"] = read_mix(exit_mix)
        if exits is not None:
            options["exits"] = whole_numbers("--exits", exits)
        prediction = predict_kernels(Path(network) if _is_path(network) else network, **options)
    if as_json:
        print_json(prediction.to_json())
    else:
        _print(prediction)


def _rates(text: str) -> RateLike:
    """Parse ``0.5``, ``0.5,1.0`` (one per block) or ``token=0.7,head=0.5`` (by what is skipped)."""
    if "=" not in text:
        given = numbers("--rate", text)
        return given[0] if len(given) == 1 else given
    from dyndeploy.ops import GATE_KINDS, OPERATORS
    from dyndeploy.prediction import Rates
    from dyndeploy.prediction.rates import checked_rates

    known = sorted({*GATE_KINDS, *(port for spec in OPERATORS.values() for port in spec.gates), *_FURTHER_RATES})
    named: dict[str, float] = {}
    for entry in text.split(","):
        name, _, number = entry.partition("=")
        name = name.strip()
        if not name.isidentifier() or name in named or not number:
            raise UsageError(f"--rate takes NAME=RATE, each name once and joined by commas, not '{text}'.")
        if name not in known:
            raise unknown_name("rate", name, known)
        named[name] = numbers("--rate", number)[0]
    rates = Rates(**named)
    checked_rates(rates)
    return rates


def _changes_nothing(rates: RateLike) -> bool:
    """Whether every rate that was named is 1, as where nothing is skipped."""
    from dyndeploy.prediction import Rates

    return isinstance(rates, Rates) and all(value == 1.0 for _, value in rates.named)


def _wants_reference(predictor: str | None, of_reference: dict[str, Any]) -> bool:
    """Whether the reference predictor is meant; its own options mean it too."""
    if predictor not in (None, *_PREDICTORS):
        raise unknown_name("predictor", predictor, _PREDICTORS)
    surplus = [f"--{name.replace('_', '-')}" for name, value in of_reference.items() if value is not None]
    if predictor == "kernels" and surplus:
        raise UsageError(f"{', '.join(surplus)}: only the reference predictor has that. Give --predictor reference.")
    return predictor == "reference" or bool(surplus)


def _is_path(network: str) -> bool:
    """Whether a bundle or a file is meant: names of networks have no slashes, and next to none a dot."""
    from dyndeploy.prediction.architectures import static_name

    if any(mark in network for mark in {"/", os.sep}) or Path(network).exists():
        return True
    return "." in network and static_name(network) is None


def _print(prediction: Prediction) -> None:
    rows = []
    for block in prediction.blocks:
        parts = [_parts(block)] if prediction.predictor == "reference" else [[_range(block.interval_ms)]]
        rows.append((block.name, block.mode, f"{block.latency_ms:.4f}", *parts[0]))
    columns = ("compute", "memory", "launch") if prediction.predictor == "reference" else ("90 % interval",)
    if prediction.exits:
        mix = "/".join(f"{100 * entry.share:.3g}" for entry in prediction.exits)
        what = "graph of"
        of = f", at the exit mix {mix}: each graph's time, times the share of the images that reach it"
    else:
        what, of = "part", ""
    print_table(
        (what, "mode", "total", *columns),
        rows,
        title=f"{prediction.network} on {prediction.device}, predicted, ms per image{of}",
    )
    if prediction.parts:
        print_table(
            ("part", "G MACs", "ms", "of all"),
            [(p.name, f"{p.macs / 1e9:.4g}", f"{p.latency_ms:.4f}", f"{p.share:.1%}") for p in prediction.parts],
            title="parts, predicted, per image",
        )
    coverage = prediction.coverage
    covered = coverage.by_count if coverage.by_time is None else coverage.by_time
    counted = f"of {coverage.operators} operators" if coverage.by_time is None else "of the time in known operators"
    mean = " on average over the mix" if prediction.exits else ""
    interval = "" if prediction.interval_ms is None else f" [{_range(prediction.interval_ms)}]"
    typer.echo(
        f"{prediction.latency_ms:.4f} ms per image{mean}{interval}, {prediction.latency_batch_ms:.4f} ms per batch of "
        f"{prediction.batch}; {covered:.0%} {counted}."
    )
    if prediction.exits:
        print_table(
            ("exit", "share", "ms per image", "90 % interval"),
            [
                (entry.exit, f"{entry.share:.1%}", f"{entry.latency_ms:.4f}", _range(entry.interval_ms))
                for entry in prediction.exits
            ],
            title="an image that leaves at each exit, predicted",
        )
    if prediction.memory is not None:
        typer.echo(f"Memory: {prediction.memory.line}.")
    for note in prediction.notes:
        typer.echo(f"Note: {note}")
    if coverage.unknown:
        how = "no latency, not 0 ms" if coverage.by_time is None else "priced by bytes"
        typer.echo(f"Not known ({how}): {', '.join(coverage.unknown)}")
    if prediction.predictor == "kernels":
        typer.echo(f"{prediction.precision}, fusions of {prediction.runtime}; {prediction.basis}.")
        return
    reading = "as published (blocks only)" if prediction.compat else f"with {len(prediction.fixes)} faults repaired"
    typer.echo(f"LAUDNet predictor, {reading}.")


def _parts(block: BlockPrediction) -> list[str]:
    known = [operator for operator in block.operators if operator.latency_ms is not None]
    sums = [sum(getattr(operator, name) or 0.0 for operator in known) for name in _CAUSES]
    return [f"{value:.4f}" for value in sums]


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4g} .. {interval[1]:.4g}"
