"""Trains the small detectors on digits on photographs, as the recipes say: a classifier, then what starts from it.

    python benchmarks/detection/train_digits.py -o runs/digits                # all, one after the other
    python benchmarks/detection/train_digits.py -o runs/digits retinanet      # the classifier and the RetinaNet alone
    python benchmarks/detection/train_digits.py -o runs/digits --overfit ddq_detr   # learn 16 scenes by heart instead

Prints what each finds on held-out digits on held-out photographs, and ends with 1 where the boxes of a detector do not
reach the mAP50 that is asked of it (RetinaNet and Mask R-CNN 0.9, detectors with queries 0.6) at a FLOPs ratio within
0.05 of its target. With ``--overfit`` each learns the same 16 scenes for 250 epochs, and is to find 0.95 of them; its
FLOPs are shown only. A run that is there already is gone on with.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dyndeploy import load_checkpoint
from dyndeploy.cli._progress import TrainingLines
from dyndeploy.files import write_json
from dyndeploy.nets import create_model
from dyndeploy.nets.trained import checkpoint_of_run
from dyndeploy.tasks.coco import CocoMetrics, coco_metrics
from dyndeploy.tasks.scenes import digit_scenes
from dyndeploy.training import Recipe, TrainResult, load_recipe, train

CLASSIFIER = "digits-laud-resnet26-small-scenes"
DETECTORS = {
    "retinanet": (0.9, ("digits-laud-retinanet-small-spatial",)),
    "mask_rcnn": (0.9, ("digits-laud-mask-rcnn-small-spatial",)),
    "ddq_detr": (0.6, ("digits-laud-retinanet-small-spatial", "digits-laud-ddq-detr-small-spatial")),
    "mask2former": (0.6, ("digits-laud-retinanet-small-spatial", "digits-laud-mask2former-small-spatial")),
}
"""The mAP50 that is asked for, and recipes, each of which starts from what the one before leaves."""
NEAR = 0.05
"""How far the FLOPs ratio may be from its target."""
BY_HEART, LEARNED, EPOCHS = 16, 0.95, 250
"""Scenes to learn by heart, the mAP50 on them that is asked for, and how often they are seen."""


def main(arguments: list[str] | None = None) -> int:
    """Train and judge; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="*", help=f"of {', '.join(DETECTORS)}; all without")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/digits"), help="folder of the runs")
    parser.add_argument("--overfit", action="store_true", help=f"learn {BY_HEART} scenes by heart")
    parser.add_argument("--epochs", type=int, help=f"with --overfit, instead of {EPOCHS}")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    unknown = set(given.detectors) - set(DETECTORS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))} is none of {', '.join(DETECTORS)}")
    if given.epochs is not None and not given.overfit:
        parser.error("--epochs goes with --overfit: a recipe says its own.")
    torch.set_num_threads(given.threads)
    classifier = load_recipe(CLASSIFIER)
    first = train(classifier, given.output / "classifier", progress=TrainingLines(classifier.epochs))
    print(f"{CLASSIFIER}: held-out accuracy {first.evaluation.accuracy:.3f}, {seconds(first):.0f} s", flush=True)
    short: list[str] = []
    results: dict[str, dict[str, float]] = {}
    for kind in given.detectors or DETECTORS:
        least, names = DETECTORS[kind]
        *before, own = names
        start = first.checkpoint
        if given.overfit:
            found, start = in_turn(before, start, given.output)
            results |= found
            results[kind] = overfit(load_recipe(own), start, given.output, given.epochs or EPOCHS)
            reached = results[kind]["boxes.ap50"] >= LEARNED
        else:
            found, _ = in_turn(names, start, given.output)
            results |= found
            last = results[own]
            target = last["flops_target"]
            reached = last["boxes.ap50"] >= least and abs(last["flops_ratio"] - target) <= NEAR
        if not reached:
            short.append(kind)
    write_json(given.output / ("overfit.json" if given.overfit else "detectors.json"), results)
    if short:
        print(f"Falls short: {', '.join(short)}", file=sys.stderr)
    return 1 if short else 0


def in_turn(names: Sequence[str], start: Path, output: Path) -> tuple[dict[str, dict[str, float]], Path]:
    """Carry out recipes that start from each other, the first one from a checkpoint.

    Returns:
        What each finds, and the last one's checkpoint.
    """
    results = {}
    for name in names:
        recipe = load_recipe(name).with_changes(initial_weights=str(start))
        result = train(recipe, output / name, progress=TrainingLines(recipe.epochs))
        start = result.checkpoint
        assert recipe.sparsity is not None
        best = result.history[-1 if result.best_epoch is None else result.best_epoch - 1].held_out
        results[name] = {
            **best,
            "flops_target": recipe.sparsity.target,
            "seconds": seconds(result),
            "images": result.evaluation.images,
        }
        print(
            f"{name}: mAP50 {shown(best)}, backbone's FLOPs ratio {best['flops_ratio']:.3f} (target "
            f"{recipe.sparsity.target:g}), {result.evaluation.images} held-out scenes, {seconds(result):.0f} s; "
            f"{checkpoint_of_run(output / name)}",
            flush=True,
        )
    return results, start


def overfit(recipe: Recipe, start: Path, output: Path, epochs: int) -> dict[str, float]:
    """Let a detector learn some scenes by heart; return what it finds on these."""
    data = dataclasses.replace(recipe.data, scenes=(BY_HEART, 2))
    recipe = dataclasses.replace(recipe, data=data).with_changes(epochs=epochs, initial_weights=str(start))
    result = train(recipe, output / f"{recipe.name}-overfit", progress=TrainingLines(epochs))
    metrics = on_training_scenes(recipe, result.checkpoint)
    found = {
        f"{name}.ap50": float(part.ap50 or 0)
        for name, part in (("boxes", metrics.boxes), ("masks", metrics.masks))
        if part is not None
    }
    found |= {"flops_ratio": result.history[-1].training["flops_ratio"], "seconds": seconds(result)}
    print(
        f"{recipe.name}: mAP50 {shown(found)} on the {BY_HEART} scenes that it learned {epochs} times, backbone's "
        f"FLOPs ratio {found['flops_ratio']:.3f}, {seconds(result):.0f} s",
        flush=True,
    )
    return found


def on_training_scenes(recipe: Recipe, checkpoint: Path) -> CocoMetrics:
    """Measure a detector on the scenes that it was trained on."""
    data = recipe.data
    assert data.scenes and data.digits_per_image and data.digit_size and data.contrast is not None
    scenes = digit_scenes(
        data.scenes[0],
        recipe.input_size,
        seed=recipe.seed,
        digits_per_image=data.digits_per_image,
        digit_size=data.digit_size,
        contrast=data.contrast,
    )
    network = create_model(recipe.model.name, **recipe.model.options)
    load_checkpoint(network, checkpoint)
    found = network.detect([scenes[index].image for index in range(len(scenes))])  # type: ignore[operator]
    return coco_metrics(found, scenes)


def shown(found: dict[str, float]) -> str:
    """Return the mAP50 of boxes, and of masks where there are some."""
    return " / ".join(f"{found[name]:.3f}" for name in ("boxes.ap50", "masks.ap50") if name in found)


def seconds(result: TrainResult) -> float:
    """Time that a run took, evaluation included."""
    return float(sum(record.seconds for record in result.history))


if __name__ == "__main__":
    sys.exit(main())
