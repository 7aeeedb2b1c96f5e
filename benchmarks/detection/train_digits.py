"""Trains the small detectors on digits on photographs, as the recipes say: a classifier, then what starts from it.

    python benchmarks/detection/train_digits.py -o runs/digits                # all, one after the other
    python benchmarks/detection/train_digits.py -o runs/digits retinanet      # the classifier and the RetinaNet alone

Prints what each finds on held-out digits on held-out photographs, and ends with 1 where the boxes of a detector do not
reach mAP50 0.9 at a FLOPs ratio within 0.05 of its target. A run that is there already is gone on with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from dyndeploy.cli._progress import TrainingLines
from dyndeploy.files import write_json
from dyndeploy.nets.trained import checkpoint_of_run
from dyndeploy.training import load_recipe, train

CLASSIFIER = "digits-laud-resnet26-small-scenes"
DETECTORS = {
    "retinanet": ("digits-laud-retinanet-small-spatial", "digits-laud-retinanet-small-spatial-further"),
    "mask_rcnn": ("digits-laud-mask-rcnn-small-spatial",),
}
"""Recipes, each of which starts from what the one before leaves."""
LEAST, NEAR = 0.9, 0.05


def main(arguments: list[str] | None = None) -> int:
    """Train and judge; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="*", help=f"of {', '.join(DETECTORS)}; all without")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/digits"), help="folder of the runs")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    unknown = set(given.detectors) - set(DETECTORS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))} is none of {', '.join(DETECTORS)}")
    torch.set_num_threads(given.threads)
    classifier = load_recipe(CLASSIFIER)
    first = train(classifier, given.output / "classifier", progress=TrainingLines(classifier.epochs))
    print(f"{CLASSIFIER}: held-out accuracy {first.evaluation.accuracy:.3f}, {seconds(first):.0f} s", flush=True)
    short, results = [], {}
    for kind in given.detectors or DETECTORS:
        start = first.checkpoint
        for name in DETECTORS[kind]:
            recipe = load_recipe(name).with_changes(initial_weights=str(start))
            result = train(recipe, given.output / name, progress=TrainingLines(recipe.epochs))
            start = result.checkpoint
            assert recipe.sparsity is not None
            best = result.history[-1 if result.best_epoch is None else result.best_epoch - 1].held_out
            found = [best[measure] for measure in ("boxes.ap50", "masks.ap50") if measure in best]
            results[name] = {**best, "seconds": seconds(result), "images": result.evaluation.images}
            print(
                f"{name}: mAP50 {' / '.join(f'{value:.3f}' for value in found)}, backbone's FLOPs ratio "
                f"{best['flops_ratio']:.3f} (target {recipe.sparsity.target:g}), {result.evaluation.images} held-out "
                f"scenes, {seconds(result):.0f} s; {checkpoint_of_run(given.output / name)}",
                flush=True,
            )
        if found[0] < LEAST or abs(best["flops_ratio"] - recipe.sparsity.target) > NEAR:
            short.append(kind)
    write_json(given.output / "detectors.json", results)
    if short:
        print(f"Falls short: {', '.join(short)}", file=sys.stderr)
    return 1 if short else 0


def seconds(result: object) -> float:
    """Time that a run took, evaluation included."""
    return float(sum(record.seconds for record in result.history))  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
