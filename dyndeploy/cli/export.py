"""``dyndeploy export``: network -> bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dyndeploy.cli._arguments import per_stage_numbers, print_json, size, whole_numbers
from dyndeploy.cli._progress import progress_line


def export(
    name: Annotated[str, typer.Argument(help="Registered network; see 'dyndeploy models'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.")],
    target: Annotated[str, typer.Option(help="See 'dyndeploy targets'.")] = "cpu",
    mode: Annotated[
        str | None, typer.Option(help="spatial, channel, layer, both or static; one per stage joined by '-'.")
    ] = None,
    granularity: Annotated[str | None, typer.Option(help="Patch side per stage, e.g. 4-4-2-1.")] = None,
    channel_granularity: Annotated[str | None, typer.Option(help="Channels per group and stage, e.g. 2-2-2-2.")] = None,
    channel_masker: Annotated[str | None, typer.Option(help="mlp or conv_linear.")] = None,
    channel_masker_layers: Annotated[int | None, typer.Option(help="1 or 2, for mlp.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights; without it they are random, and it says so.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Static batch size.")] = 1,
    input_size: Annotated[str | None, typer.Option(metavar="HxW", help="Image size. [default: the network's]")] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32; fp16 for boards; bf16 for a CPU with AVX-512 BF16; others are refused with the reason."
        ),
    ] = "fp32",
    static: Annotated[
        bool, typer.Option("--static", help="Also write the static twin (the network without exits), for profiling.")
    ] = False,
    exits: Annotated[
        str | None, typer.Option(help="Exits to keep, the last included, e.g. 1,2,4. [default: all]")
    ] = None,
    graph: Annotated[
        str, typer.Option(help="stages; if: also one graph with nested If. Networks with early exits only.")
    ] = "stages",
    plan: Annotated[
        Path | None, typer.Option(help="Follow a plan of 'dyndeploy plan': modes, granularities, size, dense blocks.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of images for the reference tensors. [default: two sample photographs]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the manifest to stdout.")] = False,
) -> None:
    """Export a network as a bundle for a target."""
    sizes = None if input_size is None else size("--input-size", input_size)
    options: dict[str, Any] = {}
    if mode is not None:
        options["mode"] = tuple(mode.split("-")) if "-" in mode else mode
    for key, flag, text in (
        ("granularity", "--granularity", granularity),
        ("channel_granularity", "--channel-granularity", channel_granularity),
    ):
        if text is not None:
            numbers = per_stage_numbers(flag, text)
            options[key] = numbers if len(numbers) > 1 else numbers[0]
    plain = {
        "channel_masker": channel_masker,
        "channel_masker_layers": channel_masker_layers,
        "num_classes": num_classes,
    }
    options |= {key: value for key, value in plain.items() if value is not None}

    from dyndeploy.errors import UsageError
    from dyndeploy.export import ExportSettings, export_model
    from dyndeploy.nets import create_model, load_checkpoint

    dense: tuple[str, ...] = ()
    if plan is not None:
        from dyndeploy.planning import load_plan

        settled = ("mode", "granularity", "channel_granularity")
        given = [f"--{key.replace('_', '-')}" for key in settled if key in options]
        given += ["--input-size"] if sizes is not None else []
        if given:
            raise UsageError(f"A plan settles {', '.join(given)}: leave them out, or export without --plan.")
        planned = load_plan(plan)
        if planned.network != name:
            raise UsageError(f"{plan} is a plan for {planned.network}, not for {name}.")
        options |= planned.options()
        sizes, dense = planned.input_size, planned.dense

    # Impossible requests end here, before a network is built.
    settings = ExportSettings(
        target=target,
        batch=batch,
        input_size=sizes,
        precision=precision,
        static=static,
        exits=None if exits is None else whole_numbers("--exits", exits),
        graph=graph,
        data=data,
        checkpoint=checkpoint,
        dense=dense,
    )
    network = create_model(name, **options)
    if checkpoint is None:
        typer.echo("No --checkpoint: the weights are random. Latency is real, classes are not.", err=True)
    else:
        report = load_checkpoint(network, checkpoint)
        if report.missing or report.unexpected:
            typer.echo(report.summary(), err=True)
    bundle = export_model(network, output, settings, progress=progress_line)
    if as_json:
        print_json(bundle.manifest.to_json())
        return
    manifest = bundle.manifest
    parts = f"{len(manifest.operators)} dynamic operators"
    if manifest.exits is not None:
        parts = f"exits {', '.join(str(stage.exit) for stage in manifest.exits.stages)}"
    typer.echo(
        f"{output}: {manifest.network.name}, mode {manifest.network.mode}, target {manifest.target} (opset "
        f"{manifest.opset}, batch {manifest.batch}, {manifest.input_size[0]}x{manifest.input_size[1]}), "
        f"{parts}, {len(manifest.files)} files."
    )
