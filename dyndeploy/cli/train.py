"""``dyndeploy train``: recipe -> checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._progress import training_progress


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe that comes with dyndeploy, by name, or the path of a .yaml file.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run. [default: runs/<name of the recipe>]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with 'train' and 'val', for recipes on images of your own.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from, instead of the recipe's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch. [default: PyTorch's]")] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on from the folder's checkpoint, or start again and replace it.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Write the result to stdout as JSON.")] = False,
) -> None:
    """Train a network; run the same command again to go on after an interruption."""
    from dyndeploy.training import load_recipe

    run = load_recipe(recipe).with_changes(
        epochs=epochs,
        folder=None if data is None else str(data),
        initial_weights=None if init is None else str(init),
    )
    import torch

    from dyndeploy.training import train as train_recipe

    if threads is not None:
        torch.set_num_threads(threads)
    with training_progress(run.epochs) as progress:
        result = train_recipe(run, output or Path("runs", run.name), resume=resume, progress=progress)
    if as_json:
        print_json(result.as_dict())
        return
    evaluation = result.evaluation
    print_table(
        ("block", "FLOPs ratio", "mask", "computed", "std over images", "positions that vary", "different masks"),
        [
            (
                block.name,
                f"{block.flops_ratio:.3f}",
                mask.kind,
                f"{mask.rate:.1%}",
                f"{mask.rate_std:.1%}",
                f"{mask.varying:.0%} of {mask.positions}",
                f"{mask.distinct} in {evaluation.images}",
            )
            for block in evaluation.blocks
            for mask in block.masks
        ],
        title=f"{run.name}: {evaluation.images} held-out images",
    )
    typer.echo(
        f"Held-out accuracy {evaluation.accuracy:.2%}, FLOPs ratio {evaluation.flops_ratio:.3f} "
        f"(target {run.sparsity.target:g}), {sum(record.seconds for record in result.history):.0f} s. "
        f"Weights: {result.checkpoint}"
    )
