"""``dyndeploy export``: network -> bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import lines, print_json, size, whole_numbers
from dyndeploy.cli._options import Target, complete_network, option
from dyndeploy.cli._progress import progress_line
from dyndeploy.cli._verbosity import note


def export(
    output: Annotated[Path, option("--output", "-o", metavar="DIR", detail="Here the bundle's folder.")],
    network: Annotated[
        str | None,
        typer.Argument(
            metavar="[NETWORK|RUN]",
            help="Registered network, see 'dyndeploy models'; a function or class of --import; or the folder of a "
            "training run, which remembers everything. May be left out where --checkpoint remembers.",
            autocompletion=complete_network,
        ),
    ] = None,
    imported: Annotated[
        str | None,
        typer.Option(
            "--import", metavar="FILE_OR_MODULE", help="Where a network of your own is made: a .py file or a module."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", metavar="KEY=VALUE", help="An option of the network; repeat it for others."),
    ] = None,
    target: Target = "cpu",
    mode: Annotated[str | None, option("--mode", detail="Short for -O mode=....")] = None,
    granularity: Annotated[str | None, option("--granularity", detail="Short for -O granularity=....")] = None,
    channel_granularity: Annotated[
        str | None, option("--channel-granularity", detail="Short for -O channel_granularity=....")
    ] = None,
    channel_masker: Annotated[
        str | None, typer.Option(help="Short for -O channel_masker=...: mlp or conv_linear.")
    ] = None,
    channel_masker_layers: Annotated[
        str | None, typer.Option(help="Short for -O channel_masker_layers=...: 1 or 2, for mlp.")
    ] = None,
    num_classes: Annotated[str | None, typer.Option(help="Number of classes; short for -O num_classes=....")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights. (default: the run's best.pt; of a named network random ones)")
    ] = None,
    weights: Annotated[
        str | None,
        option("--weights", metavar="NAME", detail="(default: the usual ones)"),
    ] = None,
    batch: Annotated[int, option("--batch", detail="Fixed in the graph.")] = 1,
    input_size: Annotated[
        list[str] | None,
        option(
            "--input-size",
            metavar="HxW",
            detail="Of a detector repeat it for every size that it shall run at, the main one first: each image takes "
            "the smallest that holds it. (default: the training's, else the network's)",
        ),
    ] = None,
    precision: Annotated[
        str,
        option(
            "--precision",
            detail="fp16 is for boards, bf16 for a CPU with AVX-512 BF16, int8 for CPUs and for GPUs that have it.",
        ),
    ] = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Calibration table of 'dyndeploy quantize', for --precision int8."),
    ] = None,
    static: Annotated[bool, option("--static", detail="Of a network with exits: without them.")] = False,
    exits: Annotated[
        str | None, typer.Option(help="Exits to keep, the last included, e.g. 1,2,4. (default: all)")
    ] = None,
    graph: Annotated[
        str, typer.Option(help="stages; if: also one graph with nested If. Networks with early exits only.")
    ] = "stages",
    plan: Annotated[
        Path | None,
        typer.Option(help="Follow a plan of 'dyndeploy plan': modes, granularities, dense blocks; or exits."),
    ] = None,
    token_capacity: Annotated[
        str | None,
        typer.Option(
            help="Static shapes with places for so many tokens, e.g. 160, or for such a share of them, e.g. 0.8; "
            "images that keep more are computed on all. (default: shapes follow the masks)"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        option(
            "--data",
            metavar="DIR",
            detail="For the reference tensors; or 'digits', scikit-learn's. (default: two sample photographs)",
        ),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            help="Text file with the names of the classes, one per line; or 'coco', COCO's 80 classes. (default: those "
            "that the checkpoint holds)"
        ),
    ] = None,
    as_json: Annotated[bool, option("--json", detail="Here the manifest.")] = False,
) -> None:
    """Export a network as a bundle for a target; what a checkpoint of ours remembers need not be typed again."""
    buckets = tuple(size("--input-size", text) for text in input_size or ())
    sizes = buckets[0] if buckets else None
    shorthands = {
        "mode": mode,
        "granularity": granularity,
        "channel_granularity": channel_granularity,
        "channel_masker": channel_masker,
        "channel_masker_layers": channel_masker_layers,
        "num_classes": num_classes,
    }
    texts = [*(option or ()), *(f"{key}={value}" for key, value in shorthands.items() if value is not None)]

    from dyndeploy.errors import UsageError
    from dyndeploy.export import ExportSettings, export_model, find_source, require_told, weight_notes
    from dyndeploy.nets import load_checkpoint
    from dyndeploy.nets.factories import build_network, parse_options
    from dyndeploy.prediction.zoo import predicted_only

    reason = predicted_only(network) if network is not None and imported is None else None
    if reason is not None:
        raise UsageError(reason)
    if weights is not None and checkpoint is None and (network is None or not Path(network).is_dir()):
        raise UsageError(f"--weights {weights} chooses among the weights of a --checkpoint: give one.")
    source = find_source(network, imported=imported, checkpoint=checkpoint, weights=weights)
    name, trained = source.name, source.trained
    options = parse_options(name, texts, source.imported)
    names = list(trained.class_names) or None if class_names is None else _class_names(class_names)
    categories = trained.category_ids or None if class_names is None else None
    dense: tuple[str, ...] = ()
    kept = None if exits is None else whole_numbers("--exits", exits)
    if plan is not None:
        from dyndeploy.planning import ExitPlan, load_plan

        planned = load_plan(plan)
        settled = ("mode", "granularity", "channel_granularity")
        given = [f"--{key.replace('_', '-')}" for key in settled if key in options]
        given += ["--input-size"] if sizes is not None else []
        given += ["--exits"] if kept is not None and isinstance(planned, ExitPlan) else []
        if given:
            raise UsageError(f"A plan settles {', '.join(given)}: leave them out, or export without --plan.")
        if planned.network != name:
            raise UsageError(f"{plan} is a plan for {planned.network}, not for {name}.")
        if planned.precision == "fp16" != precision:
            raise UsageError(f"{plan} is a plan for fp16: give --precision fp16, or plan for {precision}.")
        sizes = planned.input_size
        if isinstance(planned, ExitPlan):
            kept = planned.chosen.exits
        else:
            options |= planned.options()
            dense = planned.dense
    sizes = sizes or trained.input_size
    options = source.options(options)

    # Impossible requests end here, before a network is built.
    settings = ExportSettings(
        target=target,
        batch=batch,
        input_size=sizes,
        input_sizes=buckets,
        precision=precision,
        calibration=calibration,
        static=static,
        exits=kept,
        graph=graph,
        data=data,
        checkpoint=source.checkpoint,
        dense=dense,
        token_capacity=None if token_capacity is None else _capacity(token_capacity),
    )
    built = build_network(name, options, source.imported)
    if source.note:
        note(source.note)
    if source.checkpoint is None:
        note("No --checkpoint: the weights are random. Latency is real, classes are not.")
    else:
        report = load_checkpoint(built, source.checkpoint, weights=weights)
        require_told(report, options)
        settings = replace(settings, notes=weight_notes(report, built))
        names = names or list(report.class_names) or None
        if report.missing or report.unexpected or report.others or report.averaged:
            note(report.summary())
        if weights is not None or report.averaged:
            settings = replace(settings, weights=report.weights)
    bundle = export_model(
        built,
        output,
        settings,
        preprocessing=trained.preprocessing_at(sizes),
        class_names=names,
        category_ids=categories,
        progress=progress_line,
    )
    if as_json:
        print_json(bundle.manifest.to_json())
        return
    manifest = bundle.manifest
    parts = f"{len(manifest.operators)} dynamic operators"
    if manifest.exits is not None:
        parts = f"exits {', '.join(str(stage.exit) for stage in manifest.exits.stages)}"
    shapes = ", ".join(f"{item.name} {'x'.join(map(str, item.shape))}" for item in manifest.inputs)
    if manifest.input_size is not None:
        sizes_of = [manifest.input_size] if manifest.detection is None else [b.size for b in manifest.detection.buckets]
        shapes = " and ".join(f"{height}x{width}" for height, width in sizes_of)
    typer.echo(
        f"{output}: {manifest.network.name}, mode {manifest.network.mode}, target {manifest.target} (opset "
        f"{manifest.opset}, batch {manifest.batch}, {shapes}), {parts}, {len(manifest.files)} files."
    )
    for each in manifest.notes:
        note(f"{each}.")


def _class_names(path: Path) -> list[str]:
    """The names in a file, or COCO's."""
    from dyndeploy.export.detection import COCO, coco_classes

    return list(coco_classes()[0] if str(path) == COCO and not path.exists() else lines(path))


def _capacity(text: str) -> int | float:
    """A number of tokens, or a share of them."""
    from dyndeploy.errors import UsageError

    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise UsageError(f"--token-capacity takes a number of tokens or a share of them, not '{text}'.") from None
