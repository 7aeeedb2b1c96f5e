"""The whole way with a detector, on handwritten digits that lie on photographs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dyndeploy.bundle import Bundle
from dyndeploy.data import spread
from dyndeploy.demo.steps import Clock, Step, require_verified
from dyndeploy.errors import UsageError
from dyndeploy.evaluation import DetectionEvaluation, evaluate_detector
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.files import write_json
from dyndeploy.inference import Failure, detect_images
from dyndeploy.measure import Profile, profile_bundle
from dyndeploy.nets import load_checkpoint
from dyndeploy.nets.factories import build_network
from dyndeploy.ops.gates import gate_kind
from dyndeploy.reporting import ReportExtras, detection_extras, precision_table, write_report
from dyndeploy.reporting.page import Table
from dyndeploy.tasks.coco import AveragePrecision
from dyndeploy.tasks.packages import required
from dyndeploy.tasks.scenes import write_coco
from dyndeploy.training import Evaluation, Recipe, TrainResult, load_recipe, train
from dyndeploy.training.scenes import annotated_images
from dyndeploy.verification import VerificationReport, verify_bundle

CLASSIFIER, DETECTOR = "digits-laud-resnet26-small-scenes", "digits-laud-retinanet-small-spatial"
EPOCHS = 6
"""Of the detector's training, fewer than in its recipe: the whole is to take minutes."""
LEAST_AP50 = 0.8
"""What so short a training reaches on held-out scenes."""
LARGEST_DEVIATION = 0.05
"""Of the mean FLOPs ratio of the backbone from its target."""

_SHOWN = 6
"""So many held-out scenes are drawn in the report."""

Train = Callable[[Recipe, Path], TrainResult]


@dataclass(frozen=True)
class DetectionDemoResult:
    """What the demo of detection found.

    Attributes:
        report: The HTML page.
        classifier: Training of the classifier whose weights the backbone starts from.
        training: Training of the detector, with its evaluation on the held-out scenes.
        verification: The bundle against PyTorch.
        evaluation: The exported graph, run image by image, on the same held-out scenes.
        profile: Dynamic detector and static twin on this machine.
        seconds: Wall time of each step.
    """

    report: Path
    classifier: TrainResult
    training: TrainResult
    verification: VerificationReport
    evaluation: DetectionEvaluation
    profile: Profile
    seconds: dict[str, float]

    @property
    def target(self) -> float:
        """FLOPs ratio that the backbone was trained for."""
        sparsity = self.training.recipe.sparsity
        assert sparsity is not None
        return sparsity.target

    @property
    def trained(self) -> AveragePrecision:
        """Average precision of boxes in PyTorch on the held-out scenes."""
        metrics = self.training.evaluation.detection
        assert metrics is not None
        return metrics.boxes

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What the demo promises and did not keep, in words; empty when all went well."""
        evaluation, found = self.training.evaluation, []
        deployed, trained = self.evaluation.boxes.ap50 or 0.0, self.trained.ap50 or 0.0
        if min(deployed, trained) < LEAST_AP50:
            found.append(f"held-out AP50 {trained:.3f} in PyTorch and {deployed:.3f} deployed, {LEAST_AP50:g} wanted")
        if abs(evaluation.flops_ratio - self.target) > LARGEST_DEVIATION:
            found.append(f"FLOPs ratio {evaluation.flops_ratio:.3f}, {self.target:g} +- {LARGEST_DEVIATION:g} wanted")
        if not any(mask.distinct > 1 for block in evaluation.blocks for mask in block.masks):
            found.append("every image gets the same masks")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the raw samples are in ``profile.json``."""
        profile, data = self.profile, self.profile.data
        return {
            "report": str(self.report),
            "classifier_accuracy": self.classifier.evaluation.accuracy,
            "ap50": self.trained.ap50,
            "deployed": self.evaluation.to_json(),
            "flops_ratio": self.training.evaluation.flops_ratio,
            "target": self.target,
            "training": self.training.evaluation.as_dict(),
            "verified": self.verification.passed,
            "static_ms": profile.static.median,
            "dynamic_ms": data.samples.median,
            "dynamic_share": profile.dynamic_share,
            "speedup_limit": profile.speedup_limit,
            "ideal_speedup": data.ideal_speedup,
            "realised_speedup": data.realised_speedup,
            "realisation": data.realisation,
            "parts": [part.to_json() for part in data.parts],
            "operators": profile.operator_code,
            "native": dict(profile.native),
            "warnings": profile.warnings(),
            "seconds": self.seconds,
            "shortfalls": list(self.shortfalls),
        }


def run_detection_demo(
    output: str | os.PathLike[str],
    *,
    recipes: tuple[Recipe, Recipe] | None = None,
    repeats: int | None = None,
    step: Step = lambda message: None,
    trained: Train = train,
) -> DetectionDemoResult:
    """Run the demo of detection.

    The folder gets ``classifier/`` and ``training/`` (runs), ``scenes/`` (held-out images with COCO annotations),
    ``bundle/``, ``profile.json``, ``demo.json`` and ``report.html``. Training runs that are there already, finished or
    interrupted, are taken over.

    Args:
        output: Folder.
        recipes: Of the classifier that the backbone starts from and of the detector, on scenes of digits; None takes
            :data:`CLASSIFIER` and :data:`DETECTOR`.
        repeats: Rounds of timing; None takes about ten seconds of them.
        step: Called with a line at the start of each step.
        trained: Carries a recipe out into a folder.

    Returns:
        The result. Numbers that fall short of what the demo promises are in it; they raise nothing.

    Raises:
        UsageError: Recipes of something else, packages of the extra ``detection`` are missing, or the folder holds
            training runs of other recipes.
        VerificationError: The bundle does not compute what PyTorch computed.
        OutputError: The folder cannot be written.
    """
    for package in ("torchvision", "cv2", "pycocotools"):
        required(package, "The demo of detection needs " + package)
    first, second = recipes or (load_recipe(CLASSIFIER), load_recipe(DETECTOR).with_changes(epochs=EPOCHS))
    if second.data.dataset != "digit_scenes" or second.sparsity is None or second.detection is None:
        raise UsageError(f"The demo of detection runs a dynamic detector on scenes of digits: {second.name} is none.")
    folder = Path(output)
    clock = Clock(step)

    clock.start("classify", f"training {first.model.name} to classify digits: the detector's backbone starts from it")
    classifier = trained(first, folder / "classifier")

    clock.start("train", f"training {second.model.name} to find digits in photographs")
    second = second.with_changes(initial_weights=str(classifier.checkpoint))
    training = trained(second, folder / "training")
    network = build_network(training.recipe.model.name, training.recipe.model.options, training.recipe.model.imported)
    load_checkpoint(network, training.checkpoint)
    network.eval()
    held_out = annotated_images(training.recipe, 0.0, masks=True)[1]
    if not (folder / "scenes" / "annotations.json").exists():
        write_coco(folder / "scenes", held_out)
    images = folder / "scenes" / "images"

    clock.start("export", "exporting the detector and its static twin")
    settings = ExportSettings(
        input_size=training.recipe.input_size, static=True, data=images, checkpoint=training.checkpoint
    )
    bundle = export_model(network, folder / "bundle", settings, class_names=held_out.classes)

    clock.start("verify", "verifying the bundle against PyTorch")
    verification = verify_bundle(bundle)
    require_verified(bundle.path, verification)

    clock.start("evaluate", "finding digits with the exported graph, and measuring the average precision")
    evaluation = evaluate_detector(bundle, images, folder / "scenes" / "annotations.json")

    clock.start("profile", "measuring the detector next to its static twin")
    profile = profile_bundle(bundle, data=images, repeats=repeats)
    write_json(folder / "profile.json", profile.to_json())

    clock.start("report", "writing the report")
    extras = _extras(bundle, images, classifier, training, evaluation, verification)
    write_report(folder / "report.html", profile, (), extras)
    result = DetectionDemoResult(
        folder / "report.html", classifier, training, verification, evaluation, profile, clock.finish()
    )
    write_json(folder / "demo.json", result.to_json())
    return result


def _extras(
    bundle: Bundle,
    images: Path,
    classifier: TrainResult,
    training: TrainResult,
    evaluation: DetectionEvaluation,
    verification: VerificationReport,
) -> ReportExtras:
    paths = sorted(images.iterdir())
    drawn = [paths[index] for index in spread(len(paths), _SHOWN)]
    results = [result for result in detect_images(bundle, drawn) if not isinstance(result, Failure)]
    return replace(
        detection_extras(results, bundle),
        title="dyndeploy demo: a detector that skips what an image does not need",
        tables=(precision_table(evaluation.boxes, evaluation.masks), _decisions(training.evaluation)),
        notes=_notes(classifier, training, evaluation, verification),
    )


def _notes(
    classifier: TrainResult, training: TrainResult, evaluation: DetectionEvaluation, verification: VerificationReport
) -> Sequence[str]:
    found, recipe = training.evaluation, training.recipe
    seconds = [sum(record.seconds for record in run.history) for run in (classifier, training)]
    metrics, sparsity = found.detection, recipe.sparsity
    assert metrics is not None and sparsity is not None
    return [
        f"Held-out AP50 of boxes: {evaluation.boxes.ap50 or 0:.3f} with the exported graph, run image by image, and "
        f"{metrics.boxes.ap50 or 0:.3f} in PyTorch, on {evaluation.images} scenes. Training never saw their digits and "
        "backgrounds.",
        f"Trained on this machine: a classifier of digits in {seconds[0]:.0f} s, whose weights the backbone starts "
        f"from, and the detector in {seconds[1]:.0f} s ({recipe.epochs} epochs, recipe {recipe.name}).",
        f"Mean FLOPs ratio of the backbone {found.flops_ratio:.3f} (target {sparsity.target:g}): MACs, maskers "
        "included, over those of its static twin, both by the count of the LAUDNet reference code.",
        f"Verified against PyTorch: {verification.mask_bits} mask bits, {verification.flipped_bits} differ.",
    ]


def _decisions(found: Evaluation) -> Table:
    """What every block of the backbone computes of held-out images."""
    masks = [(block.name, mask) for block in found.blocks for mask in block.masks]
    return Table(
        f"What each block computes, measured on {found.images} held-out images",
        ("block", "units", "of", "computed", "from image to image", "different masks"),
        [
            (
                name, gate_kind(mask.kind).unit, str(mask.positions), f"{mask.rate:.0%}", f"\u00b1 {mask.rate_std:.1%}",
                str(mask.distinct),
            )
            for name, mask in masks
        ],
        file="decisions.csv",
        fields=("block", "kind", "units", "rate", "rate_std", "distinct"),
        values=[(name, mask.kind, mask.positions, mask.rate, mask.rate_std, mask.distinct) for name, mask in masks],
    )  # fmt: skip
