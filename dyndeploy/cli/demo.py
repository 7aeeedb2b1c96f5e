"""``dyndeploy demo``: the whole way on handwritten digits, with nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, option
from dyndeploy.cli._progress import progress_line, training_progress


def demo(
    output: Annotated[Path, option("--output", "-o", metavar="DIR")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """Train, export, verify, profile and predict a small network, and write a report (minutes on two cores)."""
    from dyndeploy.demo import RECIPE, run_demo
    from dyndeploy.training import load_recipe

    recipe = load_recipe(RECIPE)
    with training_progress(recipe.epochs) as progress:
        result = run_demo(output, recipe=recipe, step=progress_line, progress=progress)
    if as_json:
        print_json(result.to_json())
    else:
        evaluation, data, profile = result.training.evaluation, result.profile.data, result.profile
        print_table(
            ("result", "value"),
            [
                ("held-out accuracy, PyTorch", f"{evaluation.accuracy:.2%} of {evaluation.images} images"),
                ("held-out accuracy, exported graph", f"{result.deployed_accuracy:.2%}"),
                ("mean FLOPs ratio", f"{evaluation.flops_ratio:.3f} (target {result.target:g})"),
                *(
                    (f"masks of {block.name}", f"{mask.rate:.0%} computed, {mask.varying:.0%} of patches vary")
                    for block in evaluation.blocks
                    for mask in block.masks
                ),
                ("static twin, 1 thread", f"{profile.static.median:.3f} ms"),
                ("dynamic, the data's own masks", f"{data.samples.median:.3f} ms"),
                ("speed-up, realised / ideal", f"{data.realised_speedup:.2f}x / {data.ideal_speedup:.2f}x"),
                ("realisation", f"{data.realisation:.0%}"),
                ("operators", str(profile.operator_code)),
                *((f"time to {name}", f"{seconds:.0f} s") for name, seconds in result.seconds.items()),
            ],
            title="dyndeploy demo",
        )
        for warning in profile.warnings():
            typer.echo(f"Note: {warning}")
        typer.echo(f"Report: {result.report}")
    if result.shortfalls:
        typer.echo(f"dyndeploy: the demo falls short: {'; '.join(result.shortfalls)}.", err=True)
        raise typer.Exit(1)
