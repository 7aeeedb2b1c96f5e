"""The whole way with a classifier on handwritten digits: train, export, verify, profile, predict, report."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from dyndeploy.blocks import Tape
from dyndeploy.data import LabelledImages, PreprocessingLike, digits
from dyndeploy.demo.steps import Clock, Step, require_verified
from dyndeploy.errors import UsageError
from dyndeploy.evaluation import evaluate_bundle
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.files import atomic_directory, write_json
from dyndeploy.measure import Profile, profile_bundle
from dyndeploy.nets import load_checkpoint
from dyndeploy.nets.factories import build_network
from dyndeploy.ops.gates import gate_kind
from dyndeploy.prediction import known_devices
from dyndeploy.reporting import DRAWN, GalleryItem, ReportExtras, mask_overlay, predict_profile, write_report
from dyndeploy.training import Evaluation, Progress, Recipe, TrainResult, load_recipe, train
from dyndeploy.training.evaluation import logits_of
from dyndeploy.verification import VerificationReport, verify_bundle

RECIPE = "digits-laud-resnet14-small-spatial"
LEAST_ACCURACY = 0.95
LARGEST_DEVIATION = 0.05
"""Of the mean FLOPs ratio from its target."""

_IMAGES = "images"
_INDEX = "index.csv"
_GALLERY_BLOCKS = 2
_GALLERY_SCALE = 4
_GALLERY_NOTE = (
    "Left a digit, right the same digit with what one block does to it: it computes the framed patches and skips the "
    "greyed ones. Digits are shown as ink on paper; the network, like the files in images/, has them white on black."
)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        report: The HTML page.
        training: The training run, with the network's evaluation on the held-out images.
        verification: The bundle against PyTorch.
        deployed_accuracy: Top-1 of the exported graph, run image by image, on the same held-out images.
        profile: Dynamic network and static twin on this machine.
        seconds: Wall time of each step.
    """

    report: Path
    training: TrainResult
    verification: VerificationReport
    deployed_accuracy: float
    profile: Profile
    seconds: dict[str, float]

    @property
    def target(self) -> float:
        """FLOPs ratio that the network was trained for."""
        return _target(self.training)

    @property
    def accuracy(self) -> float:
        """Top-1 of the network in PyTorch on the held-out images."""
        accuracy = self.training.evaluation.accuracy
        assert accuracy is not None
        return accuracy

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What the demo promises and did not keep, in words; empty when all went well."""
        evaluation, target = self.training.evaluation, self.target
        found = []
        if min(self.accuracy, self.deployed_accuracy) < LEAST_ACCURACY:
            found.append(
                f"held-out accuracy {self.accuracy:.2%} in PyTorch and {self.deployed_accuracy:.2%} "
                f"deployed, at least {LEAST_ACCURACY:.0%} wanted"
            )
        if abs(evaluation.flops_ratio - target) > LARGEST_DEVIATION:
            found.append(f"FLOPs ratio {evaluation.flops_ratio:.3f}, {target:g} +- {LARGEST_DEVIATION:g} wanted")
        if not any(mask.varying for block in evaluation.blocks for mask in block.masks):
            found.append("every image gets the same masks")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the raw samples are in ``profile.json``."""
        data = self.profile.data
        return {
            "report": str(self.report),
            "accuracy": self.accuracy,
            "deployed_accuracy": self.deployed_accuracy,
            "flops_ratio": self.training.evaluation.flops_ratio,
            "target": self.target,
            "evaluation": self.training.evaluation.as_dict(),
            "verified": self.verification.passed,
            "static_ms": self.profile.static.median,
            "dynamic_ms": data.samples.median,
            "ideal_speedup": data.ideal_speedup,
            "realised_speedup": data.realised_speedup,
            "realisation": data.realisation,
            "operators": self.profile.operator_code,
            "native": dict(self.profile.native),
            "warnings": self.profile.warnings(),
            "seconds": self.seconds,
            "shortfalls": list(self.shortfalls),
        }


def run_demo(
    output: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    repeats: int | None = None,
    step: Step = lambda message: None,
    progress: Progress | None = None,
) -> DemoResult:
    """Run the demo.

    The folder gets ``training/``, ``images/`` (the held-out digits as PNG files), ``bundle/``,
    ``profile.json``, ``demo.json`` and ``report.html``. A training run that is there already, finished or
    interrupted, is taken over.

    Args:
        output: Folder.
        recipe: A recipe on digits; None takes :data:`RECIPE`.
        repeats: Rounds of timing; None takes about ten seconds of them.
        step: Called with a line at the start of each step.
        progress: Is told how training goes on.

    Returns:
        The result. Numbers that fall short of what the demo promises are in it; they raise nothing.

    Raises:
        UsageError: A recipe on other images, or the folder holds a training run of another recipe.
        VerificationError: The bundle does not compute what PyTorch computed.
        OutputError: The folder cannot be written.
    """
    recipe = recipe or load_recipe(RECIPE)
    if recipe.data.dataset != "digits":
        raise UsageError(f"The demo runs on digits; the recipe {recipe.name} is for {recipe.data.dataset}.")
    if recipe.sparsity is None or recipe.exits is not None or recipe.loss is not None:
        raise UsageError(f"The demo runs a network with masks and logits: {recipe.model.name} is none.")
    folder = Path(output)
    clock = Clock(step)

    clock.start("train", f"training {recipe.model.name} on handwritten digits")
    training = train(recipe, folder / "training", progress=progress)
    network = build_network(recipe.model.name, recipe.model.options, recipe.model.imported)
    load_checkpoint(network, training.checkpoint)
    network.eval()
    preprocessing = recipe.preprocessing
    held_out = digits(preprocessing, recipe.input_size, recipe.seed).held_out
    _write_images(folder / _IMAGES, held_out, preprocessing)

    clock.start("export", "exporting the network and its static twin")
    settings = ExportSettings(
        input_size=recipe.input_size, static=True, data=folder / _IMAGES, checkpoint=training.checkpoint
    )
    bundle = export_model(network, folder / "bundle", settings)

    clock.start("verify", "verifying the bundle against PyTorch")
    verification = verify_bundle(bundle)
    require_verified(bundle.path, verification)
    deployed_accuracy = evaluate_bundle(bundle, held_out).top1

    clock.start("profile", "measuring the dynamic network next to its static twin")
    profile = profile_bundle(bundle, data=folder / _IMAGES, repeats=repeats)
    write_json(folder / "profile.json", profile.to_json())

    clock.start("report", "predicting and writing the report")
    sweeps = [predict_profile(profile, device) for device in known_devices()]
    extras = ReportExtras(
        title="dyndeploy demo: a network that skips what an image does not need",
        accuracy=training.evaluation.accuracy,
        accuracy_source=f"{training.evaluation.images} handwritten digits that training never saw",
        gallery=_gallery(network, held_out, preprocessing, training.evaluation),
        gallery_note=_GALLERY_NOTE,
        notes=_notes(training, deployed_accuracy, verification),
    )
    write_report(folder / "report.html", profile, sweeps, extras)
    result = DemoResult(folder / "report.html", training, verification, deployed_accuracy, profile, clock.finish())
    write_json(folder / "demo.json", result.to_json())
    return result


def _target(training: TrainResult) -> float:
    sparsity = training.recipe.sparsity
    assert sparsity is not None
    return sparsity.target


def _pixels(images: npt.NDArray[np.float32], preprocessing: PreprocessingLike) -> Pixels:
    """Undo the normalisation of inputs (..., 3, h, w): 8-bit pixels (..., h, w, 3), exactly those it started from."""
    values = np.moveaxis(images, -3, -1) * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean)
    pixels: Pixels = np.round(values * 255).astype(np.uint8)
    return pixels


def _write_images(folder: Path, images: LabelledImages, preprocessing: PreprocessingLike) -> None:
    with atomic_directory(folder, replace_if=_INDEX) as temporary:
        rows = []
        for number, (pixels, label) in enumerate(
            zip(_pixels(images.images, preprocessing), images.labels, strict=True)
        ):
            path = Path(images.classes[label], f"{number:03d}.png")
            (temporary / path.parent).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(temporary / path)
            rows.append((path.as_posix(), images.classes[label]))
        with (temporary / _INDEX).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("file", "class"), *rows])


@torch.no_grad()
def _gallery(
    network: nn.Module, images: LabelledImages, preprocessing: PreprocessingLike, evaluation: Evaluation
) -> tuple[GalleryItem, ...]:
    """The first held-out image of every class, under the masks of the blocks whose masks differ most."""
    first = [int(np.flatnonzero(images.labels == label)[0]) for label in range(len(images.classes))]
    with Tape(network) as tape:
        (logits,) = logits_of(network(torch.from_numpy(images.images[first])))
    variance = {b.name: (m.variance or 0.0, m.kind) for b in evaluation.blocks for m in b.masks if m.kind in DRAWN}
    chosen = sorted(sorted(variance, key=lambda name: -variance[name][0])[:_GALLERY_BLOCKS])
    # As ink on paper; scikit-learn, and so the network, has them white on black.
    pixels = (255 - _pixels(images.images[first], preprocessing)).repeat(_GALLERY_SCALE, 1).repeat(_GALLERY_SCALE, 2)
    items = []
    for name in chosen:
        kind = variance[name][1]
        (decided,) = (d.mask for d in tape.decisions.values() if (d.block, d.kind) == (name, kind))
        for row, own in enumerate(decided.numpy()):
            mask = DRAWN[kind](own)
            seen, true = int(logits[row].argmax()), int(images.labels[first[row]])
            verdict = f"recognised as {images.classes[seen]}" if seen != true else "recognised"
            caption = f"{images.classes[true]} ({verdict}), {name} computes {mask.mean():.0%}"
            items.append(GalleryItem(pixels[row], mask_overlay(pixels[row], mask), caption))
    return tuple(items)


def _notes(training: TrainResult, deployed_accuracy: float, verification: VerificationReport) -> tuple[str, ...]:
    evaluation, recipe = training.evaluation, training.recipe
    seconds = sum(record.seconds for record in training.history)
    notes = [
        f"Trained on this machine in {seconds:.0f} s ({recipe.epochs} epochs, recipe {recipe.name}). The exported "
        f"graph, run image by image, classifies {deployed_accuracy:.2%} of the held-out images correctly.",
        f"Mean FLOPs ratio {evaluation.flops_ratio:.3f} (target {_target(training):g}): MACs of the network, "
        "maskers included, over those of its static twin, both by the count of the LAUDNet reference code.",
        f"Verified against PyTorch: {verification.mask_bits} mask bits, {verification.flipped_bits} differ.",
    ]
    notes += [
        f"{block.name}, {mask.kind}: {mask.rate:.0%} of {mask.positions} ({gate_kind(mask.kind).unit}) are computed on "
        f"average, from image to image +- {mask.rate_std:.1%}; {mask.varying:.0%} of them are computed for some images "
        f"and skipped for others; {mask.distinct} different masks among {evaluation.images} images."
        for block in evaluation.blocks
        for mask in block.masks
    ]
    return tuple(notes)
