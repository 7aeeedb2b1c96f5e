"""``dyndeploy quantize``: images -> a calibration table."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyndeploy.cli._arguments import print_json, print_table, printable, size
from dyndeploy.cli._options import AsJson, Native, State, Threads, Workers, complete_network, option
from dyndeploy.cli._progress import progress_bar, progress_line
from dyndeploy.cli._verbosity import note
from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    from dyndeploy.bundle import Bundle
    from dyndeploy.quantization import CalibrationTable
    from dyndeploy.quantization.recipe import CalibrationRecipe


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_BUNDLE",
            help="A bundle in FP32; a registered network, or the folder of a training run, as for 'dyndeploy export'; "
            "or a calibration recipe (.yaml), whose settings hold where no option says otherwise.",
            autocompletion=complete_network,
        ),
    ],
    output: Annotated[
        Path, option("--output", "-o", metavar="FILE", detail="Here the calibration table, e.g. calib/NAME.json.")
    ],
    data: Annotated[
        str | None,
        option(
            "--data",
            metavar="DIR",
            detail="Here those to calibrate on, with one sub-folder per class where accuracy matters; or 'digits', "
            "scikit-learn's that networks are trained on. (default: the recipe's digits)",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images to calibrate on. (default: the recipe's, else 128)")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of what is drawn at random: here the images. (default: the recipe's, else 0)"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How scales are found: minmax, percentile, entropy or mse. (default: the recipe's, else mse)"
        ),
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(help="Share in percent that --method percentile keeps. (default: 99.99)")
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(metavar="7|8", help="Bits of a weight; with 7 every CPU computes the same. (default: 7)"),
    ] = None,
    per_channel: Annotated[
        bool | None,
        typer.Option(
            "--per-channel/--per-tensor",
            help="Scales of the weights of standard layers: per output channel, or one. (default: per channel)",
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Leave blocks in FP32 until at most this share of accuracy is lost, e.g. 0.005."
        ),
    ] = None,
    max_output_error: Annotated[
        float | None,
        typer.Option(metavar="X", help="The same for the error of the output, relative; needs no labels."),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure what each block costs, also without a budget.")
    ] = False,
    measured: Annotated[
        int | None,
        typer.Option(
            "--measure-images",
            metavar="N",
            min=1,
            help="Images to measure that on, others if there are. (default: as many)",
        ),
    ] = None,
    max_saturation: Annotated[
        float, typer.Option(metavar="X", help="Largest share of a tensor's values that may be clipped.")
    ] = 0.01,
    histograms: Annotated[
        bool, typer.Option("--histograms/--no-histograms", help="Keep what was observed in the table.")
    ] = True,
    imported: Annotated[
        str | None,
        typer.Option(
            "--import", metavar="FILE_OR_MODULE", help="Where a network of your own is made: a .py file or a module."
        ),
    ] = None,
    option_: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", metavar="KEY=VALUE", help="An option of the network; repeat it for others."),
    ] = None,
    mode: Annotated[str | None, option("--mode", detail="Short for -O mode=....")] = None,
    granularity: Annotated[str | None, option("--granularity", detail="Short for -O granularity=....")] = None,
    channel_granularity: Annotated[
        str | None, option("--channel-granularity", detail="Short for -O channel_granularity=....")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights. (default: the run's best.pt; of a named network random ones)")
    ] = None,
    weights: Annotated[str | None, option("--weights", metavar="NAME", detail="(default: the usual ones)")] = None,
    input_size: Annotated[
        str | None, option("--input-size", metavar="HxW", detail="(default: the training's, else the network's)")
    ] = None,
    threads: Threads = 1,
    workers: Workers = 1,
    state: State = None,
    native: Native = "auto",
    report: Annotated[Path | None, option("--report", metavar="FILE", detail="Here of scales and blocks.")] = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate a network for INT8 on images, and write its calibration table.

    Export with the table: dyndeploy export MODEL --precision int8 --calibration FILE -o BUNDLE.
    """
    from dyndeploy.bundle import Bundle
    from dyndeploy.chunks import speaks_for_all
    from dyndeploy.files import atomic_file, encoded, json_text
    from dyndeploy.quantization import Budget, CalibrationImages, TableOptions, calibrate_images, measure_sensitivity
    from dyndeploy.quantization.scales import settings_of
    from dyndeploy.reporting import render_quantization_report

    recipe = _recipe(source)
    if recipe is not None:
        images, seed, method = images or recipe.images, recipe.seed if seed is None else seed, method or recipe.method
        percentile, weight_bits = percentile or recipe.percentile, weight_bits or recipe.weight_bits
        per_channel = recipe.per_channel if per_channel is None else per_channel
        data = data or (recipe.data if recipe.data == "digits" else None)
        if max_accuracy_drop is None and max_output_error is None:
            max_accuracy_drop, max_output_error = recipe.max_accuracy_drop, recipe.max_output_error
    if data is None:
        wanted = "" if recipe is None or not recipe.data else f" The recipe wants {recipe.data}."
        raise UsageError(f"Which images? Give --data DIR, or --data digits.{wanted}")
    images, seed, method, percentile = images or 128, seed or 0, method or "mse", percentile or 99.99
    settings_of(method, percentile)
    budget = Budget(max_accuracy_drop, max_output_error)
    networks = {
        "--import": imported,
        "--option": option_,
        "--mode": mode,
        "--granularity": granularity,
        "--channel-granularity": channel_granularity,
        "--checkpoint": checkpoint,
        "--weights": weights,
        "--input-size": input_size,
    }
    with ExitStack() as stack:
        # Before minutes of work: what cannot be written is said now, and an earlier table stays until the end.
        first = speaks_for_all()
        table_file = stack.enter_context(atomic_file(output)) if first else None
        page = stack.enter_context(atomic_file(report)) if first and report is not None else None
        if (Path(source) / "bundle.json").is_file():
            given = [name for name, value in networks.items() if value]
            if given:
                raise UsageError(f"{source} is a bundle, which settles {', '.join(given)}: leave them out.")
            bundle = Bundle.open(source)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dyndeploy-quantize-"))
            bundle = _exported(source, recipe, networks, Path(folder) / "bundle")
        found = CalibrationImages.open(bundle, data)
        wants = sensitivity or bool(budget)
        chosen, others = found.choose(images, seed, (measured or images) if wants else 0)
        if max_accuracy_drop is not None and found.labels is None:
            raise UsageError(
                f"--max-accuracy-drop needs labelled images: {found.unlabelled} Without labels give --max-output-error."
            )
        name = bundle.manifest.inputs[0].name
        with progress_bar() as progress:
            table = calibrate_images(
                bundle,
                data,
                chosen.tolist(),
                options=TableOptions(
                    method=method,
                    weight_bits=weight_bits or 7,
                    per_channel=per_channel is not False,
                    percentile=percentile,
                    max_saturation=max_saturation,
                    data=found.source,
                    settings={"seed": seed},
                ),
                threads=threads,
                native=native,
                workers=workers,
                state=state,
                progress=progress,
            )
            if table_file is None:
                return
            if wants:
                table = measure_sensitivity(
                    bundle,
                    table,
                    found.samples(others, name),
                    None if found.labels is None else [found.labels[int(index)] for index in others],
                    budget=budget,
                    threads=threads,
                    native=native,
                    progress=progress,
                )
        kept = table if histograms else table.without_histograms()
        table_file.write_bytes(encoded(json_text(kept.to_json()) + "\n"))
        if page is not None:
            page.write_bytes(encoded(render_quantization_report(table)))
    if as_json:
        print_json({"table": str(output), **table.without_histograms().to_json()})
        return
    _print(table, output)
    if report is not None:
        typer.echo(f"Report: {report}")


def _recipe(source: str) -> CalibrationRecipe | None:
    from dyndeploy.quantization.recipe import SUFFIXES, load_calibration_recipe

    return load_calibration_recipe(source) if Path(source).suffix.lower() in SUFFIXES else None


def _exported(source: str, recipe: CalibrationRecipe | None, given: dict[str, Any], folder: Path) -> Bundle:
    """The network as a bundle in FP32: scales belong to what is exported."""
    from dyndeploy.export import ExportSettings, export_model, find_source, require_told
    from dyndeploy.nets import load_checkpoint
    from dyndeploy.nets.factories import build_network, parse_options

    sizes = None if given["--input-size"] is None else size("--input-size", given["--input-size"])
    network = source if recipe is None else recipe.network
    if given["--weights"] is not None and given["--checkpoint"] is None and not Path(network).is_dir():
        raise UsageError(f"--weights {given['--weights']} chooses among the weights of a --checkpoint: give one.")
    known = find_source(
        network, imported=given["--import"], checkpoint=given["--checkpoint"], weights=given["--weights"]
    )
    shorthands = {key: given[f"--{key.replace('_', '-')}"] for key in ("mode", "granularity", "channel_granularity")}
    texts = [*(given["--option"] or ()), *(f"{key}={value}" for key, value in shorthands.items() if value is not None)]
    asked = {**({} if recipe is None else recipe.options), **parse_options(known.name, texts, known.imported)}
    options = known.options(asked)
    built = build_network(known.name, options, known.imported)
    if known.note:
        note(known.note)
    if known.checkpoint is None:
        note("No --checkpoint: the weights are random, and so the scales are of no use but to try the command.")
    else:
        report = load_checkpoint(built, known.checkpoint, weights=given["--weights"])
        require_told(report, options)
        if report.missing or report.unexpected or report.others or report.averaged:
            note(report.summary())
    sizes = sizes or known.trained.input_size
    return export_model(
        built,
        folder,
        ExportSettings(input_size=sizes, checkpoint=known.checkpoint),
        preprocessing=known.trained.preprocessing_at(sizes),
        class_names=list(known.trained.class_names) or None,
        progress=progress_line,
    )


def _print(table: CalibrationTable, output: Path) -> None:
    from dyndeploy.reporting import quantization_rows, summarise_quantization

    if table.sensitivity is not None:
        print_table(*quantization_rows(table), title=f"{table.network}: each block alone in INT8, under FP32's masks")
    typer.echo(printable(summarise_quantization(table)))
    for each in table.notes:
        note(each)
    typer.echo(
        f"Calibration table: {printable(output)}. Next: dyndeploy export ... --precision int8 --calibration "
        f"{printable(output)}"
    )
