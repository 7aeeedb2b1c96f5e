"""``dyndeploy demo``: the whole way on handwritten digits, with nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, option
from dyndeploy.cli._progress import progress_line, training_progress
from dyndeploy.errors import unknown_name

if TYPE_CHECKING:
    from dyndeploy.demo import DemoResult, DetectionDemoResult
    from dyndeploy.training import Recipe, TrainResult

TASKS = ("classification", "detection")


def demo(
    output: Annotated[Path, option("--output", "-o", metavar="DIR")] = Path("demo"),
    task: Annotated[
        str,
        typer.Option(
            help="classification, or detection of digits in photographs, which needs the extra packages of detection.",
            autocompletion=lambda incomplete: [name for name in TASKS if name.startswith(incomplete)],
        ),
    ] = TASKS[0],
    as_json: AsJson = False,
) -> None:
    """Train, export, verify and profile a small network, and write a report (minutes on two cores).

    A classifier is predicted for other devices as well; a detector's average precision is measured.
    """
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    result = _detection(output) if task == "detection" else _classification(output)
    if as_json:
        print_json(result.to_json())
    else:
        print_table(("result", "value"), [*_quality(result), *_speed(result)], title="dyndeploy demo")
        for warning in result.profile.warnings():
            typer.echo(f"Note: {warning}")
        typer.echo(f"Report: {result.report}")
    if result.shortfalls:
        typer.echo(f"dyndeploy: the demo falls short: {'; '.join(result.shortfalls)}.", err=True)
        raise typer.Exit(1)


def _classification(output: Path) -> DemoResult:
    from dyndeploy.demo import RECIPE, run_demo
    from dyndeploy.training import load_recipe

    recipe = load_recipe(RECIPE)
    with training_progress(recipe.epochs) as progress:
        return run_demo(output, recipe=recipe, step=progress_line, progress=progress)


def _detection(output: Path) -> DetectionDemoResult:
    from dyndeploy.demo import run_detection_demo
    from dyndeploy.training import train

    def trained(recipe: Recipe, folder: Path) -> TrainResult:
        with training_progress(recipe.epochs) as progress:
            return train(recipe, folder, progress=progress)

    return run_detection_demo(output, step=progress_line, trained=trained)


def _quality(result: DemoResult | DetectionDemoResult) -> list[tuple[str, str]]:
    """What the network is worth, and what it skips."""
    from dyndeploy.demo import DemoResult

    evaluation = result.training.evaluation
    ratio = f"{evaluation.flops_ratio:.3f} (target {result.target:g})"
    masks = [(block.name, mask) for block in evaluation.blocks for mask in block.masks]
    if isinstance(result, DemoResult):
        return [
            ("held-out accuracy, PyTorch", f"{evaluation.accuracy:.2%} of {evaluation.images} images"),
            ("held-out accuracy, exported graph", f"{result.deployed_accuracy:.2%}"),
            ("mean FLOPs ratio", ratio),
            *(
                (f"masks of {name}", f"{mask.rate:.0%} computed, {mask.varying:.0%} of patches vary")
                for name, mask in masks
            ),
        ]
    trained, deployed = result.trained, result.evaluation.boxes
    return [
        ("held-out AP50 of boxes, PyTorch", f"{trained.ap50 or 0:.3f} on {evaluation.images} scenes"),
        ("held-out AP50 of boxes, exported graph", f"{deployed.ap50 or 0:.3f} (AP {deployed.ap or 0:.3f})"),
        ("mean FLOPs ratio of the backbone", ratio),
        *((f"masks of {name}", f"{mask.rate:.0%} computed, different ones: {mask.distinct}") for name, mask in masks),
    ]


def _speed(result: DemoResult | DetectionDemoResult) -> list[tuple[str, str]]:
    """Measured times, and what they promise."""
    profile, data = result.profile, result.profile.data
    share = [] if not data.parts else [("dynamic share of all MACs", f"{profile.dynamic_share or 0:.0%}")]
    if share and profile.speedup_limit is not None:
        share.append(("speed-up if all of that cost nothing", f"{profile.speedup_limit:.2f}x"))
    return [
        ("static twin, 1 thread", f"{profile.static.median:.3f} ms"),
        ("dynamic, the data's own masks", f"{data.samples.median:.3f} ms"),
        *share,
        ("speed-up, realised / ideal", f"{data.realised_speedup:.2f}x / {data.ideal_speedup:.2f}x"),
        ("realisation", f"{data.realisation:.0%}"),
        ("operators", str(profile.operator_code)),
        *((f"time to {name}", f"{seconds:.0f} s") for name, seconds in result.seconds.items()),
    ]
