"""Average precision of a detector's bundle on annotated images."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy.bundle import Bundle
from dyndeploy.chunks import Part, Tick, Work, chunk_results, require_same_list
from dyndeploy.data import fingerprint, spread
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.evaluation._sides import Side, about, one_about, telling
from dyndeploy.files import json_text, shown
from dyndeploy.inference import BundleSession, DetectionResult, Failure, detect_image, open_bundle
from dyndeploy.runtimes.choice import RuntimeChoice, choose_runtime
from dyndeploy.tasks.annotations import AnnotatedImages
from dyndeploy.tasks.coco import AveragePrecision, CocoDataset, CocoMeasure, CocoMetrics
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
    workers: int = 1,
    state: str | os.PathLike[str] | None = None,
    progress: Progress = lambda message, fraction: None,
    on_failure: OnFailure = lambda failure: None,
) -> DetectionEvaluation:
    """Detect objects in annotated images one by one, as ``dyndeploy run`` does, and measure what is found as COCO does.

    Every image runs in the bundle's smallest bucket that holds it. One image is in memory at a time, and of what was
    found boxes, scores and the masks' run lengths. Images are worked on in chunks, as in :func:`evaluate_bundle`.

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
        workers: As for :func:`evaluate_bundle`.
        state: As for :func:`evaluate_bundle`.
        progress: Called with a message and the fraction done.
        on_failure: As for :func:`evaluate_bundle`.

    Raises:
        BundleError: The folder is no bundle.
        InputError: The file is no COCO annotation file or holds no objects, its categories are not the network's
            classes, images are missing, or none could be run.
        UsageError: A bundle of no detector, no annotations, a limit below 1, a runtime that cannot be had, another
            bundle with other classes, fewer than 1 worker, or a state of another run.
        OutputError: The state cannot be written, or a process was killed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    classes = bundle.manifest.detector().classes
    dataset, source, notes = _opened(bundle, data, annotations, limit)
    chosen = spread(len(dataset), limit)
    choice = choose_runtime(bundle, runtime)
    sides = [Side(bundle.path, choice, threads, native)]
    if against is not None:
        second = against if isinstance(against, Bundle) else Bundle.open(against)
        if second.manifest.detector().classes != classes:
            raise UsageError(f"{second.path} has other classes than {bundle.path}: there is nothing to compare.")
        asked = choose_runtime(second, runtime if isinstance(runtime, str) else runtime.runtime)
        sides.append(Side(second.path, asked, threads, native))
    images = _fingerprint(dataset)
    parts = chunk_results(
        _Work(tuple(sides), data, annotations, limit, images),
        chosen,
        identity={"kind": KIND, "images_sha256": images, "bundles": [side.identity() for side in sides]},
        workers=workers,
        state=state,
        progress=progress,
        on_part=telling(on_failure),
    )
    failures = tuple(Failure.from_json(failure) for part in parts for failure in part["failures"])
    count = sum(len(part["images"]) for part in parts)
    if not count:
        raise InputError(f"None of the {len(chosen)} images could be run. {failures[0].error}")
    first, *others = (_together(parts, place, dataset) for place in range(len(sides)))
    return DetectionEvaluation(
        network=bundle.manifest.network.name,
        source=source,
        images=count,
        classes=len(dataset.classes),
        detections=first.metrics.detections,
        boxes=first.metrics.boxes,
        masks=first.metrics.masks,
        inputs={f"{height}x{width}": number for (height, width), number in sorted(first.inputs.items())},
        rates=first.rates,
        ms=first.ms,
        runtime=first.about["runtime"],
        runtime_why=choice.reason,
        threads=first.about["threads"],
        precision=first.about["precision"],
        operators=first.about["operators"],
        failures=failures,
        notes=notes,
        against=_comparison(sides[1], others[0], parts) if others else None,
    )


@dataclass(frozen=True)
class _Work:
    """Detects objects in the images of a chunk; it can be pickled."""

    sides: tuple[Side, ...]
    data: str | os.PathLike[str] | AnnotatedImages
    annotations: str | os.PathLike[str] | None
    limit: int | None
    images_sha256: str

    @contextmanager
    def __call__(self) -> Iterator[Work]:
        dataset, _, _ = _opened(self.sides[0].bundle, self.data, self.annotations, self.limit)
        require_same_list(_fingerprint(dataset), self.images_sha256, self.data)
        with ExitStack() as stack:
            sessions = [stack.enter_context(open_bundle(side.bundle, **side.options)) for side in self.sides]
            yield functools.partial(_detected, sessions, dataset)


def _detected(sessions: Sequence[BundleSession], dataset: AnnotatedImages, indices: Sequence[int], tick: Tick) -> Part:
    """What one bundle finds in images, or two in turn."""
    images: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for index in indices:
        name = _name(dataset, index)
        try:
            image = dataset[index].image
            results = [detect_image(session, name, image) for session in sessions]
        except UsageError:
            raise
        except DyndeployError as error:
            failures.append(Failure(name, error).to_json())
        else:
            found = [_plain(result, dataset) for result in results]
            pairs = {"pairs": _matched(*results)} if len(results) > 1 else {}
            images.append({"index": index, "found": found, **pairs})
        tick()
    networks = [session.network(session.bundle.manifest.input_size) for session in sessions]
    return {
        "images": images,
        "failures": failures,
        "about": [about(network.info, network.code) for network in networks],
    }


def _plain(result: DetectionResult, dataset: AnnotatedImages) -> dict[str, Any]:
    """What a bundle found in an image, in plain JSON types."""
    return {
        "ms": result.ms,
        "input": list(result.input_size),
        "rates": dict(result.rates),
        "masked": result.detections.masks is not None,
        "results": result.detections.to_coco(dataset.category_ids),
    }


@dataclass(frozen=True)
class _Found:
    """What a bundle found in all images."""

    metrics: CocoMetrics
    ms: float
    rates: dict[str, float]
    inputs: Counter[tuple[int, int]]
    about: Mapping[str, Any]


def _together(parts: Sequence[Part], place: int, dataset: AnnotatedImages) -> _Found:
    """Put together what one of the bundles found."""
    measure, count, ms = CocoMeasure(dataset), 0, 0.0
    rates: dict[str, float] = {}
    inputs: Counter[tuple[int, int]] = Counter()
    computed = one_about(part["about"][place] for part in parts)
    for part in parts:
        for image in part["images"]:
            found = image["found"][place]
            count, ms = count + 1, ms + found["ms"]
            height, width = found["input"]
            inputs[height, width] += 1
            for name, rate in found["rates"].items():
                rates[name] = rates.get(name, 0.0) + rate
            measure.take(image["index"], found["results"], masked=found["masked"])
    return _Found(measure.metrics(), ms / count, {name: rate / count for name, rate in rates.items()}, inputs, computed)


def _comparison(side: Side, found: _Found, parts: Sequence[Part]) -> DetectionComparison:
    pairs: Counter[str] = Counter()
    for part in parts:
        for image in part["images"]:
            pairs.update(image["pairs"])
    return DetectionComparison(
        bundle=str(side.path),
        network=side.bundle.manifest.network.name,
        precision=found.about["precision"],
        operators=found.about["operators"],
        boxes=found.metrics.boxes,
        masks=found.metrics.masks,
        ms=found.ms,
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


def _fingerprint(dataset: AnnotatedImages) -> str:
    """A checksum of the list of images, and of what is annotated in them."""
    everything = range(len(dataset))
    return fingerprint([json_text(dataset.coco(everything), indent=None), *(_name(dataset, i) for i in everything)])
