"""Average precision of a detector's bundle on annotated images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy.bundle import Bundle
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.files import shown
from dyndeploy.inference import BundleSession, DetectionResult, Failure, detect_image, open_bundle
from dyndeploy.runtimes.choice import RuntimeChoice, choose_runtime
from dyndeploy.tasks.annotations import AnnotatedImages
from dyndeploy.tasks.coco import AveragePrecision, CocoDataset, CocoMeasure
from dyndeploy.tasks.detection import compare
from dyndeploy.tasks.scenes import digit_scenes

SCHEMA_VERSION = 1
KIND = "detection_evaluation"

DIGIT_SCENES = "digit_scenes"
"""Stands for the held-out scenes of :func:`dyndeploy.tasks.scenes.digit_scenes`."""

SCENES = 200
"""So many of them, unless another limit is given."""

SURE = 0.3
"""Least score of the detections that are compared between two bundles."""

Progress = Callable[[str, float], None]
OnFailure = Callable[[Failure], None]


@dataclass(frozen=True)
class DetectionComparison:
    """What another bundle finds in the same images.

    Attributes:
        bundle: Its folder, as it was given.
        network: Its name.
        precision: What it computed in.
        operators: As for :class:`DetectionEvaluation`.
        boxes: Its average precision of boxes.
        masks: Of masks; None where there are none.
        ms: Mean wall-clock time of the network per image, measured in turn with the first bundle.
        least_score: Least score of the detections that are compared.
        matched: Such detections that both find: one to one, the same class, and boxes with an intersection over union
            of at least 0.5.
        only_first: Such detections of the first bundle only.
        only_other: Of the other one only.
    """

    bundle: str
    network: str
    precision: str
    operators: str | None
    boxes: AveragePrecision
    masks: AveragePrecision | None
    ms: float
    least_score: float
    matched: int
    only_first: int
    only_other: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "ms_is": "measured"}


@dataclass(frozen=True)
class DetectionEvaluation:
    """What a detector's bundle is worth on annotated images.

    Attributes:
        network: Its name.
        source: Where the images come from, in words.
        images: How many were run; those that failed are not among them, nor is what is in them.
        classes: Number of classes.
        detections: Number of detections of any score.
        boxes: Average precision by the intersection over union of boxes.
        masks: By that of masks; None where the network or the annotations have none.
        inputs: Number of images that ran at each size of the network's input, by ``HEIGHTxWIDTH``.
        rates: Share of active bits of every mask by name, averaged over the images; empty without masks.
        ms: Mean wall-clock time of the network per image, measured; reading the image and what else the host does is
            not in it.
        runtime: What ran the network, with its version.
        runtime_why: Why that did.
        threads: Threads that computed.
        precision: What the network computed in.
        operators: Which code ran the dynamic operators (:func:`dyndeploy.runtimes.native.operator_code`); None without
            such operators.
        failures: Images that could not be read or run.
        notes: What a reader should know.
        against: What another bundle finds in the same images; None unless one was named.
    """

    network: str
    source: str
    images: int
    classes: int
    detections: int
    boxes: AveragePrecision
    masks: AveragePrecision | None
    inputs: Mapping[str, int]
    rates: Mapping[str, float]
    ms: float
    runtime: str
    runtime_why: str
    threads: int
    precision: str
    operators: str | None
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    against: DetectionComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types (see ``docs/detection.md``)."""
        plain = {**vars(self), "inputs": dict(self.inputs), "rates": dict(self.rates), "notes": list(self.notes)}
        plain["boxes"] = asdict(self.boxes)
        plain["masks"] = None if self.masks is None else asdict(self.masks)
        plain["failures"] = [failure.to_json() for failure in self.failures]
        plain["against"] = None if self.against is None else self.against.to_json()
        return {"schema_version": SCHEMA_VERSION, "kind": KIND, **plain, "ms_is": "measured"}


def evaluate_detector(
    bundle: Bundle | str | os.PathLike[str],
    data: str | os.PathLike[str] | AnnotatedImages,
    annotations: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
    runtime: str | RuntimeChoice = "onnxruntime",
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
    against: Bundle | str | os.PathLike[str] | None = None,
    progress: Progress = lambda message, fraction: None,
    on_failure: OnFailure = lambda failure: None,
) -> DetectionEvaluation:
    """Detect objects in annotated images one by one, as ``dyndeploy run`` does, and measure what is found as COCO does.

    Every image runs in the bundle's smallest bucket that holds it. One image is in memory at a time, and of what was
    found boxes, scores and the masks' run lengths.

    Args:
        bundle: The bundle or its folder.
        data: A folder of images; ``"digit_scenes"``: held-out scenes of digits, made here; or images in memory, whose
            labels are the network's class indices.
        annotations: A COCO annotation file for the folder. Its categories are matched to the network's classes by name.
        limit: At most so many images, spread evenly over them; None for all (of scenes: :data:`SCENES`).
        runtime: As for :func:`~dyndeploy.inference.run_inputs`.
        threads: Threads that compute, in ONNX Runtime.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        against: Another bundle of a detector of the same classes: it runs the images in turn.
        progress: Called with a message and the fraction done.
        on_failure: Called with every image that fails, at once; the rest goes on.

    Raises:
        BundleError: The folder is no bundle.
        InputError: The file is no COCO annotation file or holds no objects, its categories are not the network's
            classes, images are missing, or none could be run.
        UsageError: A bundle of no detector, no annotations, a limit below 1, a runtime that cannot be had, or another
            bundle with other classes.
    """
    from dyndeploy.data import spread

    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    classes = bundle.manifest.detector().classes
    dataset, source, notes = _opened(bundle, data, annotations, limit)
    chosen = spread(len(dataset), limit)
    choice = choose_runtime(bundle, runtime)
    failures: list[Failure] = []
    with ExitStack() as stack:
        one = _Side(stack.enter_context(open_bundle(bundle, runtime=choice, threads=threads, native=native)), dataset)
        other = None
        if against is not None:
            second = against if isinstance(against, Bundle) else Bundle.open(against)
            if second.manifest.detector().classes != classes:
                raise UsageError(f"{second.path} has other classes than {bundle.path}: there is nothing to compare.")
            asked = choose_runtime(second, runtime if isinstance(runtime, str) else runtime.runtime)
            session = stack.enter_context(open_bundle(second, runtime=asked, threads=threads, native=native))
            other = _Side(session, dataset)
        pairs: Counter[str] = Counter()
        for done, index in enumerate(chosen, 1):
            name = _name(dataset, index)
            try:
                image = dataset[index].image
                results = [detect_image(side.session, name, image) for side in (one, other) if side is not None]
            except UsageError:
                raise
            except DyndeployError as error:
                failures.append(Failure(name, error))
                on_failure(failures[-1])
            else:
                one.add(index, results[0])
                if other is not None:
                    other.add(index, results[1])
                    pairs.update(_matched(*results))
            progress(f"ran {done} of {len(chosen)} images", done / len(chosen))
        if not one.images:
            raise InputError(f"None of the {len(chosen)} images could be run. {failures[0].error}")
    info, metrics = one.network.info, one.measure.metrics()
    return DetectionEvaluation(
        network=bundle.manifest.network.name,
        source=source,
        images=one.images,
        classes=len(dataset.classes),
        detections=metrics.detections,
        boxes=metrics.boxes,
        masks=metrics.masks,
        inputs={f"{height}x{width}": count for (height, width), count in sorted(one.inputs.items())},
        rates={name: total / one.images for name, total in one.rates.items()},
        ms=one.ms / one.images,
        runtime=f"{info.runtime} {info.version}",
        runtime_why=choice.reason,
        threads=info.threads,
        precision=info.precision,
        operators=one.network.code,
        failures=tuple(failures),
        notes=notes,
        against=None if other is None else other.comparison(pairs),
    )


class _Side:
    """A bundle that is evaluated, and what it found so far."""

    def __init__(self, session: BundleSession, dataset: AnnotatedImages) -> None:
        self.session = session
        self.network = session.network(session.bundle.manifest.input_size)
        self.measure = CocoMeasure(dataset)
        self.images, self.ms = 0, 0.0
        self.rates: dict[str, float] = {}
        self.inputs: Counter[tuple[int, int]] = Counter()

    def add(self, index: int, result: DetectionResult) -> None:
        self.images += 1
        self.ms += result.ms
        self.inputs[result.input_size] += 1
        for name, rate in result.rates.items():
            self.rates[name] = self.rates.get(name, 0.0) + rate
        self.measure.add(index, result.detections)

    def comparison(self, pairs: Mapping[str, int]) -> DetectionComparison:
        metrics = self.measure.metrics()
        return DetectionComparison(
            bundle=str(self.session.bundle.path),
            network=self.session.bundle.manifest.network.name,
            precision=self.network.info.precision,
            operators=self.network.code,
            boxes=metrics.boxes,
            masks=metrics.masks,
            ms=self.ms / self.images,
            least_score=SURE,
            **{name: pairs.get(name, 0) for name in ("matched", "only_first", "only_other")},
        )


def _matched(first: DetectionResult, other: DetectionResult) -> dict[str, int]:
    difference = compare(other.detections.select(SURE), first.detections.select(SURE))
    return {"matched": difference.matched, "only_first": difference.missed, "only_other": difference.extra}


def _opened(
    bundle: Bundle, data: str | os.PathLike[str] | AnnotatedImages, annotations: Any, limit: int | None
) -> tuple[AnnotatedImages, str, tuple[str, ...]]:
    """Annotated images with the network's classes, where they come from, and what is odd about them."""
    classes = bundle.manifest.detector().classes
    if not isinstance(data, (str, os.PathLike)):
        return data, "images in memory", ()
    if os.fspath(data) == DIGIT_SCENES:
        if annotations is not None:
            raise UsageError(f"{DIGIT_SCENES} are annotated already: leave the annotations out.")
        size = bundle.manifest.input_size
        assert size is not None
        scenes = digit_scenes(SCENES if limit is None else max(1, limit), size, "held_out")
        if classes and scenes.classes != classes:
            raise InputError(
                f"The classes of {DIGIT_SCENES} ({', '.join(scenes.classes)}) are not the network's "
                f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})."
            )
        return scenes, "held-out scenes of scikit-learn's digits on its photographs", ()
    if annotations is None:
        raise UsageError("A detector is measured against boxes: give a COCO annotation file for the images as well.")
    dataset = CocoDataset(data, annotations, classes=classes or None)
    notes = dataset.notes
    if not any(not item["iscrowd"] for item in dataset.coco(range(len(dataset)))["annotations"]):
        raise InputError(
            f"{shown(annotations)} holds no objects, so there is nothing to be found. Give a file whose list of "
            "annotations is not empty."
        )
    if not classes:
        count = bundle.manifest.network.num_classes
        if len(dataset.classes) != count:
            raise InputError(
                f"{shown(annotations)} has {len(dataset.classes)} categories, the network {count} classes, whose names "
                "the bundle does not hold. Export it with --class-names."
            )
        notes += ("The bundle holds no names of classes: the categories are taken in the order of their numbers.",)
    return dataset, f"{shown(data)} with {shown(annotations)}", notes


def _name(dataset: AnnotatedImages, index: int) -> str:
    return str(dataset.images[index].path) if isinstance(dataset, CocoDataset) else f"image {index}"
