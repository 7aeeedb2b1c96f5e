"""``dyndeploy train``: recipe -> checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, complete_recipe, option
from dyndeploy.cli._progress import training_progress
from dyndeploy.cli._verbosity import note

if TYPE_CHECKING:
    from dyndeploy.training import Evaluation, QuantizedResult, TrainResult


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe that comes with dyndeploy, by name, or the path of a .yaml file.",
            autocompletion=complete_recipe,
        ),
    ],
    output: Annotated[
        Path | None,
        option("--output", "-o", metavar="DIR", detail="Here the run's folder. (default: runs/<name of the recipe>)"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    batch: Annotated[int | None, option("--batch", metavar="N", detail="Instead of the recipe's.")] = None,
    data: Annotated[
        Path | None,
        option(
            "--data",
            metavar="DIR",
            detail="With 'train' and 'val' in it, each with one sub-folder per class; or with the classes alone, of "
            "which a fifth is held out. For detectors: images and COCO annotations, such as 'train', 'val', "
            "'annotations/train.json' and 'annotations/val.json'.",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Checkpoint to start from, instead of the recipe's; a classifier of other classes is replaced.",
        ),
    ] = None,
    weights: Annotated[str | None, option("--weights", metavar="NAME", detail="(default: the usual ones)")] = None,
    accelerator: Annotated[str | None, option("--accelerator", detail="(default: a GPU where there is one)")] = None,
    threads: Annotated[int | None, option("--threads", min=1, detail="(default: PyTorch's)")] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on from the folder's checkpoint, or start again and replace it.")
    ] = True,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the log for TensorBoard as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network; run the same command again to go on after an interruption.

    On several GPUs or hosts: torchrun --nproc-per-node 8 -m dyndeploy.cli train RECIPE.
    """
    from dyndeploy.training import load_recipe

    run = load_recipe(recipe).with_changes(
        epochs=epochs,
        batch_size=batch,
        folder=None if data is None else str(data),
        initial_weights=None if init is None else str(init),
        weights=weights,
    )
    import torch

    from dyndeploy.chunks import speaks_for_all
    from dyndeploy.training import train as train_recipe

    if threads is not None:
        torch.set_num_threads(threads)
    with training_progress(run.epochs) as progress:
        result = train_recipe(
            run,
            output or Path("runs", run.name),
            resume=resume,
            progress=progress,
            device=accelerator,
            tensorboard=tensorboard,
        )
    if not speaks_for_all():
        return
    if as_json:
        print_json(result.as_dict())
        return
    _print_evaluation(result.evaluation, f"{run.name}, last epoch: {result.evaluation.images} held-out images")
    if result.ema_evaluation is not None:
        _print_evaluation(result.ema_evaluation, f"{run.name}, moving average of the weights")
    typer.echo(_summary(result))
    if result.best_checkpoint is not None and result.best_epoch != len(result.history):
        typer.echo(_best(result))
    for each in result.notes:
        note(each)
    run_folder, integers = shlex.quote(str(result.checkpoint.parent)), ""
    if result.quantized is not None:
        typer.echo(_quantized(result.quantized))
        integers = f"--precision int8 --calibration {shlex.quote(str(result.quantized.calibration))} "
    typer.echo(f"Next: dyndeploy export {run_folder} {integers}--static -o BUNDLE")


def _best(result: TrainResult) -> str:
    """Why what is exported is not what the last table shows."""
    assert result.best_checkpoint is not None and result.best_epoch is not None
    measures = result.history[result.best_epoch - 1].held_out
    of_exits = [name for name in measures if name.startswith("exit") and name.endswith(".accuracy")]
    exits = [f"{measures[name]:.2%}" for name in of_exits]
    known = [f"{measures['accuracy']:.2%}"] if "accuracy" in measures else []
    if "boxes.ap50" in measures:
        known = [f"{measures[name]:.3f}" for name in ("boxes.ap50", "masks.ap50") if name in measures]
        return _of_best(result, f" (held-out mAP50 {'/'.join(known)})")
    accuracy = f" (held-out accuracy {'/'.join(exits or known)})" if exits or known else ""
    return _of_best(result, accuracy)


def _of_best(result: TrainResult, quality: str) -> str:
    return (
        f"The best epoch was {result.best_epoch}{quality}: export takes its weights, {result.best_checkpoint}, unless "
        "--checkpoint names others."
    )


def _quantized(result: QuantizedResult) -> str:
    """What the weights that export takes are worth in integers."""
    parts = []
    if result.accuracy_fp32 is not None and result.accuracy_int8 is not None:
        parts.append(f"held-out accuracy {result.accuracy_int8:.2%} in INT8, {result.accuracy_fp32:.2%} in FP32")
    if result.mask_bits:
        share = result.mask_flips / result.mask_bits
        parts.append(f"{result.mask_flips} of {result.mask_bits} mask bits differ ({share:.2%})")
    found = f": {'; '.join(parts)}" if parts else ""
    return f"The weights that export takes, simulated{found}. Scales: {result.calibration}"


def _print_evaluation(evaluation: Evaluation, title: str) -> None:
    if evaluation.exits:
        print_table(
            ("exit", "accuracy", "MACs"),
            [(entry.exit, f"{entry.accuracy:.2%}", f"{entry.macs / 1e6:.2f} M") for entry in evaluation.exits],
            title=title,
        )
    if evaluation.blocks:
        print_table(
            ("block", "FLOPs ratio", "mask", "computed", "std over images", "positions that vary", "different masks"),
            [
                (
                    block.name,
                    f"{block.flops_ratio:.3f}",
                    mask.kind,
                    f"{mask.rate:.1%}",
                    f"{mask.rate_std:.1%}",
                    "-" if mask.varying is None else f"{mask.varying:.0%} of {mask.positions}",
                    f"{mask.distinct} in {evaluation.images}",
                )
                for block in evaluation.blocks
                for mask in block.masks
            ],
            title=title,
        )


def _summary(result: TrainResult) -> str:
    evaluation, sparsity = result.evaluation, result.recipe.sparsity
    parts = []
    if evaluation.loss is not None:
        parts.append(f"Held-out loss {evaluation.loss:.4f}")
    if evaluation.accuracy is not None:
        parts.append(f"Held-out accuracy {evaluation.accuracy:.2%}")
    metrics, of_backbone = evaluation.detection, ""
    if metrics is not None:
        of_backbone = " of the backbone"
        for kind, own in (("boxes", metrics.boxes), ("masks", metrics.masks)):
            if own is not None:
                parts.append(f"Held-out mAP50 of {kind} {own.ap50 or 0:.3f} (mAP {own.ap or 0:.3f})")
    if sparsity is not None:
        parts.append(f"FLOPs ratio{of_backbone} {evaluation.flops_ratio:.3f} (target {sparsity.target:g})")
    early = evaluation.early_exit
    if early is not None:
        shares = "/".join(f"{share:.0%}" for share in early.shares)
        limits = ", ".join(f"{threshold:g}" for threshold in early.thresholds)
        parts.append(
            f"with early exit at confidences {limits}: {early.accuracy:.2%} for {early.macs_ratio:.1%} of the MACs "
            f"(exits taken: {shares})"
        )
    parts.append(f"{sum(record.seconds for record in result.history):.0f} s")
    return f"{', '.join(parts)}. Weights: {result.checkpoint}"
