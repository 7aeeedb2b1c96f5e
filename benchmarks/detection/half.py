"""What FP16 does to detections, by rounding that is simulated on the CPU: the source of FP16's limits for them.

    python benchmarks/detection/half.py --runs runs/digits

Exports the small detectors that ``train_digits.py`` trained, in parts for a Nano, and all with made-up weights, as
tests have them. Runs them on held-out scenes of digits, and on photographs, with every value rounded that an FP16
engine stores: as the plan says; with nothing kept float behind the backbone; and as the plan says, but with 9 bits in
the place of 11, which is a pessimist's picture of sums in half. Detections are compared with FP32's.

Writes benchmarks/results/detection-fp16.json and .md. Every figure is simulated: no GPU has run these engines.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dyndeploy
from dyndeploy import ExportSettings
from dyndeploy.bundle import Bundle
from dyndeploy.data import ByteArray, read_image, sample_photographs
from dyndeploy.files import write_json, write_text
from dyndeploy.graphs.rounding import rounded_model
from dyndeploy.inference.compared import detection_limits, differences
from dyndeploy.nets.factories import build_network
from dyndeploy.nets.trained import checkpoint_of_run
from dyndeploy.precisions import DetectionTolerance
from dyndeploy.runtimes import open_parts
from dyndeploy.tasks.detection import DetectionDifference
from dyndeploy.tasks.scenes import digit_scenes
from dyndeploy.training import load_recipe

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.detectors import lively_detector  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
TRAINED = ("retinanet", "ddq_detr", "mask2former")
MADE_UP = ("retinanet", "faster_rcnn", "mask_rcnn", "ddq_detr", "mask2former")
SKIPPED, SCENES = 20, 12
"""Scenes that are left out, and those that are looked at."""
ROUNDINGS: Mapping[str, Mapping[str, Any]] = {
    "the plan": {},
    "all half": {"exact_parts": False},
    "9 bits": {"bits": 9},
}
OPEN = DetectionTolerance(box=np.inf, score=np.inf, mask_iou=0.0, unpaired=1.0)
"""Limits under which whatever overlaps by half is a pair."""


def main() -> None:
    """Export, run, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder that train_digits.py wrote; without it, made-up weights only")
    parser.add_argument("--target", default="nano")
    parser.add_argument("--only", default="", help="of the detectors' names those that hold this text")
    parser.add_argument("--bundles", type=Path, help="folder that keeps the exports, and where they are looked for")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = given.bundles or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, make in networks(given.runs):
            if given.only not in name:
                continue
            bundle = exported(make, folder / name.replace(" ", "-"), given.target)
            for rounding, options in ROUNDINGS.items():
                rows.append(row(name, rounding, bundle, options))
                print(rows[-1], flush=True)
    write_json(RESULTS / "detection-fp16.json", {"kind": "simulated", "target": given.target, "rows": rows})
    write_text(RESULTS / "detection-fp16.md", page(rows))


def exported(make: Callable[[], torch.nn.Module], path: Path, target: str) -> Bundle:
    """The bundle of a detector, exported unless it is there already."""
    if path.is_dir():
        return Bundle.open(path)
    settings = ExportSettings(target=target, precision="fp16", input_size=(128, 128))
    return dyndeploy.export_model(make(), path, settings)


def networks(runs: Path | None) -> Iterator[tuple[str, Callable[[], torch.nn.Module]]]:
    """Names of the detectors, and what makes them: trained ones first."""
    for kind in TRAINED if runs is not None else ():
        assert runs is not None
        run = runs / f"digits-laud-{kind.replace('_', '-')}-small-spatial"
        yield f"{kind} trained", functools.partial(trained, run)
    for kind in MADE_UP:
        yield kind, functools.partial(lively_detector, kind, "channel" if kind == "retinanet" else "layer")


def trained(run: Path) -> torch.nn.Module:
    """The detector that a training run left."""
    recipe = load_recipe(run / "recipe.yaml")
    network = build_network(recipe.model.name, recipe.model.options, recipe.model.imported)
    dyndeploy.load_checkpoint(network, checkpoint_of_run(run))
    return network.eval()


def images(size: tuple[int, int], *, trained: bool) -> list[ByteArray]:
    """Held-out scenes of digits, and the two sample photographs with their reflections."""
    photographs = [read_image(path) for path in sample_photographs()]
    if not trained:
        return [np.ascontiguousarray(turned) for each in photographs for turned in (each, each[:, ::-1], each[::-1])]
    scenes = digit_scenes(SKIPPED + SCENES, size=size)
    return [*(scenes[SKIPPED + index].image for index in range(SCENES)), *photographs]


def row(kind: str, rounding: str, bundle: Bundle, options: Mapping[str, Any]) -> dict[str, Any]:
    """Differences of a bundle's chain in simulated FP16 from the same in FP32."""
    info, size = bundle.manifest.detector(), bundle.manifest.input_size
    assert size is not None
    feeds = [info.task().prepare(image, bucket=size)[0] for image in images(size, trained="trained" in kind)]
    stacked = {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}
    masks = [mask.name for mask in bundle.manifest.masks]
    results = []
    for change in ({}, {"change": lambda model: rounded_model(model, (), half_maskers=False, **options)}):
        with open_parts(bundle, **change) as session:  # type: ignore[arg-type]
            runs = [session.run(each, finite=False) for each in feeds]
        results.append({name: np.concatenate([each[name] for each in runs]) for name in runs[0]})
    exact, half = results
    limits = detection_limits("fp16")
    near = differences(info, half, exact, stacked, limits)
    loose = differences(info, half, exact, stacked, OPEN)
    if isinstance(near, str) or isinstance(loose, str):
        raise SystemExit(f"{kind}, {rounding}: {near}")
    return {
        "detector": kind,
        "rounding": rounding,
        "images": len(feeds),
        "detections": sum(each.matched + each.missed for each in near),
        "box_median": float(np.median([each.box for each in near])),
        "box": max(each.box for each in near),
        "score_median": float(np.median([each.score for each in near])),
        "score": max(each.score for each in near),
        "unpaired": sum(max(each.missed, each.extra) for each in near),
        "unpaired_share": max(_share(each) for each in near),
        "other_object": sum(max(each.missed, each.extra) for each in loose),
        "mask_bits": sum(exact[name].size for name in masks),
        "flipped": sum(int((exact[name] != half[name]).sum()) for name in masks),
    }


def _share(difference: DetectionDifference) -> float:
    return max(difference.missed, difference.extra) / max(1, difference.matched + difference.missed)


def page(rows: list[dict[str, Any]]) -> str:
    """Markdown of all rows."""
    limits = detection_limits("fp16")
    text = [
        "# What FP16 does to detections",
        "",
        "**Simulated, not measured on a GPU**: every value that an FP16 engine stores is rounded on the CPU, at "
        "128x128 pixels, batch 1; compared with the chain in FP32. *Box*, *score*: largest difference of a pair, in "
        f"pixels, median and most over the images. *Unpaired*: detections without a partner within {limits.box:g} px, "
        f"{limits.score:g} of its score and an IoU of masks of {limits.mask_iou:g}, in brackets the worst share of an "
        f"image. *Other*: without any that overlaps by half. `python benchmarks/detection/half.py --runs runs/digits`.",
        "",
        "| detector | rounding | images | detections | box | score | unpaired | other | mask bits flipped |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    text += [
        f"| {item['detector']} | {item['rounding']} | {item['images']} | {item['detections']} | "
        f"{item['box_median']:.2g}, {item['box']:.2g} | {item['score_median']:.2g}, {item['score']:.2g} | "
        f"{item['unpaired']} ({item['unpaired_share']:.0%}) | {item['other_object']} | "
        f"{item['flipped']} of {item['mask_bits']} |"
        for item in rows
    ]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
