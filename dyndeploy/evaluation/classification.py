"""Accuracy of a bundle on labelled images."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dyndeploy.bundle import LOGITS, Bundle
from dyndeploy.bundle.reference_names import exit_logits
from dyndeploy.data import DIGITS, ImageFolderDataset, LabelledImages, images_of_classes, spread
from dyndeploy.errors import InputError, UsageError
from dyndeploy.exits.scores import NEVER
from dyndeploy.files import shown
from dyndeploy.inference import Failure, Item, OpenBundle, Result, opened_bundle
from dyndeploy.runtimes.base import Array
from dyndeploy.runtimes.choice import RuntimeChoice, choose_runtime
from dyndeploy.runtimes.staged import chosen_thresholds, stage_precision

SCHEMA_VERSION = 1
KIND = "evaluation"

TOP = 5
"""How many of the first classes count for the second accuracy; all of them where there are fewer."""

Progress = Callable[[str, float], None]
OnFailure = Callable[[Failure], None]


@dataclass(frozen=True)
class ExitAccuracy:
    """One exit of a network that exits early.

    Attributes:
        exit: Its number, from 1.
        share: Share of the images that leave there.
        accuracy: Top-1 of its classifier on all images, in [0, 1]: what the network is worth cut off there.
        accuracy_there: Top-1 among the images that leave there; None where none does.
    """

    exit: int
    share: float
    accuracy: float
    accuracy_there: float | None


@dataclass(frozen=True)
class BundleComparison:
    """What another bundle gives for the same images.

    Attributes:
        bundle: Its folder, as it was given.
        network: Its name.
        precision: What it computed in.
        operators: As for :class:`BundleEvaluation`.
        top1: Its top-1, a share in [0, 1].
        top5: Its top-5.
        ms: Mean wall-clock time of the network per image, measured in turn with the first bundle.
        both_right: Images whose first class is the label in both.
        only_first_right: In the first bundle only.
        only_other_right: In the other one only.
        none_right: In none of them.
        changed: Images whose first class differs.
        exits_changed: Images that leave at another exit; None unless both exit early.
        mask_bits: Bits of masks that both have, over all images; each network decides by itself.
        mask_flips: How many of them differ.
        flips: The same by mask.
    """

    bundle: str
    network: str
    precision: str
    operators: str | None
    top1: float
    top5: float
    ms: float
    both_right: int
    only_first_right: int
    only_other_right: int
    none_right: int
    changed: int
    exits_changed: int | None
    mask_bits: int
    mask_flips: int
    flips: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**vars(self), "flips": dict(self.flips), "ms_is": "measured"}


@dataclass(frozen=True)
class BundleEvaluation:
    """What a bundle is worth on labelled images. Accuracies are shares in [0, 1].

    Attributes:
        network: Its name.
        source: Where the images come from, in words.
        images: How many were classified; those that failed are not among them.
        top1: Share of the images whose first class is the label, each at the exit that it takes.
        top5: Share whose label is among the first :data:`TOP` classes.
        classes: Number of classes.
        exits: One per exit; empty for a network without exits.
        thresholds: Least confidence of every exit but the last; None without exits.
        rates: Share of active bits of every mask by name, averaged over the images; empty without masks.
        ms: Mean wall-clock time of the network per image, measured; reading the image is not in it.
        runtime: What ran the network, with its version.
        runtime_why: Why that did.
        threads: Threads that computed.
        precision: What the network computed in.
        operators: Which code ran the dynamic operators (:func:`dyndeploy.runtimes.native.operator_code`); None without
            such operators.
        failures: Images that could not be read or classified.
        notes: What a reader should know.
        against: What another bundle gives for the same images; None unless one was named.
    """

    network: str
    source: str
    images: int
    top1: float
    top5: float
    classes: int
    exits: tuple[ExitAccuracy, ...]
    thresholds: tuple[float, ...] | None
    rates: Mapping[str, float]
    ms: float
    runtime: str
    runtime_why: str
    threads: int
    precision: str
    operators: str | None
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = field(default=())
    against: BundleComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types (see ``docs/running.md``)."""
        plain = {**vars(self), "exits": [vars(entry) for entry in self.exits], "rates": dict(self.rates)}
        plain["failures"] = [failure.to_json() for failure in self.failures]
        plain["thresholds"] = None if self.thresholds is None else list(self.thresholds)
        plain["notes"] = list(self.notes)
        plain["against"] = None if self.against is None else self.against.to_json()
        return {"schema_version": SCHEMA_VERSION, "kind": KIND, **plain, "ms_is": "measured"}


def evaluate_bundle(
    bundle: Bundle | str | os.PathLike[str],
    data: str | os.PathLike[str] | LabelledImages,
    *,
    limit: int | None = None,
    runtime: str | RuntimeChoice = "onnxruntime",
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    native: str | os.PathLike[str] = "auto",
    against: Bundle | str | os.PathLike[str] | None = None,
    progress: Progress = lambda message, fraction: None,
    on_failure: OnFailure = lambda failure: None,
) -> BundleEvaluation:
    """Classify labelled images one by one, as ``dyndeploy run`` does, and count what is right.

    Every image of a network that exits early is run twice: timed, until it leaves; and through all exits, so that each
    exit's own accuracy is known. One image is in memory at a time, or one batch.

    Args:
        bundle: The bundle or its folder.
        data: A folder with one sub-folder of images per class; ``"digits"``: scikit-learn's held-out digits; or images
            in memory, whose labels are the network's class indices.
        limit: At most so many images, spread evenly over the classes; None for all.
        runtime: As for :func:`~dyndeploy.inference.run_inputs`.
        threads: Threads that compute, in ONNX Runtime.
        thresholds: Least confidence of every exit but the last; None for the bundle's. Without either every image goes
            to the last exit, and a note says so.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        against: Another bundle that takes the same images, e.g. the same network in another precision: it runs them in
            turn, with thresholds of its own, and what differs is counted.
        progress: Called with a message and the fraction done.
        on_failure: Called with every image that fails, at once; the rest goes on.

    Raises:
        BundleError: The folder is no bundle.
        InputError: The folder's classes are not the network's, or none of the images could be classified.
        UsageError: A bundle without logits, a limit below 1, a runtime that cannot be had, thresholds that do not fit,
            or another bundle that takes other images or has other classes.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    network = bundle.manifest.network
    if bundle.manifest.detection is not None:
        raise UsageError(f"{network.name} is a detector: dyndeploy.evaluate_detector() measures it.")
    if network.num_classes is None:
        raise UsageError(f"{network.name} gives no logits: there is no class to be right about.")
    dataset, source = _opened_images(bundle, data)
    chosen = spread(len(dataset), limit)
    choice = choose_runtime(bundle, runtime)
    used, notes = _thresholds(bundle, choice.runtime, thresholds)
    counts = _Counts(bundle, len(chosen), progress, on_failure)
    options: dict[str, Any] = {"threads": threads, "native": native, "every_exit": True}
    with ExitStack() as stack:
        opened = stack.enter_context(opened_bundle(bundle, runtime=choice, thresholds=used, **options))
        other = None
        if against is not None:
            second = against if isinstance(against, Bundle) else Bundle.open(against)
            _require_same_images(bundle, second)
            asked = choose_runtime(second, runtime if isinstance(runtime, str) else runtime.runtime)
            limits, more = _thresholds(second, asked.runtime, None)
            notes += tuple(f"{second.path}: {note}" for note in more)
            other = stack.enter_context(opened_bundle(second, runtime=asked, thresholds=limits, **options))
        counts.add_all(opened, other, dataset, chosen)
    return counts.result(
        opened,
        source=source,
        thresholds=None if used is None else tuple(used[: len(bundle.exits.stages) - 1]),
        notes=notes,
    )


def _opened_images(
    bundle: Bundle, data: str | os.PathLike[str] | LabelledImages
) -> tuple[LabelledImages | ImageFolderDataset, str]:
    """Images whose labels are the network's, and where they come from."""
    if isinstance(data, LabelledImages):
        return data, "images in memory"
    preprocessing, size = bundle.manifest.images()
    network = bundle.manifest.network
    dataset = images_of_classes(data, preprocessing, size, names=network.class_names, count=network.num_classes)
    return dataset, "scikit-learn's held-out digits" if os.fspath(data) == DIGITS else shown(data)


def _require_same_images(first: Bundle, second: Bundle) -> None:
    """Refuse a bundle that cannot be compared with another, image by image."""
    one, two = first.manifest, second.manifest
    if one.images() != two.images():
        raise UsageError(
            f"{second.path} takes other images than {first.path} (size, or how they become the input): the two cannot "
            "be compared image by image."
        )
    names = one.network.class_names, two.network.class_names
    if one.network.num_classes != two.network.num_classes or (all(names) and names[0] != names[1]):
        raise UsageError(f"{second.path} has other classes than {first.path}: there is nothing to compare.")


def _thresholds(
    bundle: Bundle, runtime: str, thresholds: Sequence[float] | None
) -> tuple[Sequence[float] | None, tuple[str, ...]]:
    """The thresholds to run with, and a note where there are none to be had."""
    if bundle.manifest.exits is None:
        return thresholds, ()
    known = chosen_thresholds(bundle, thresholds, stage_precision(bundle, runtime))
    if known is not None:
        return known, ()
    return (NEVER,) * (len(bundle.exits.stages) - 1), (
        "The bundle holds no thresholds: every image ran to the last exit. Find some with 'dyndeploy calibrate'.",
    )


class _Counts:
    """Counts what is right, image by image.

    Args:
        bundle: What is evaluated.
        total: How many images there are.
        progress: Is told how far it is.
        on_failure: Is told what fails.
    """

    def __init__(self, bundle: Bundle, total: int, progress: Progress, on_failure: OnFailure) -> None:
        manifest = bundle.manifest
        self._bundle, self._total, self._progress, self._on_failure = bundle, total, progress, on_failure
        self._exits = [] if manifest.exits is None else [stage.exit for stage in bundle.exits.stages]
        self._images = self._top1 = self._top5 = 0
        self._ms = 0.0
        self._rates: dict[str, float] = {}
        self._left, self._right_there, self._right = (dict.fromkeys(self._exits, 0) for _ in range(3))
        self._failures: list[Failure] = []
        self._against: _Against | None = None

    def add_all(
        self,
        opened: OpenBundle,
        other: OpenBundle | None,
        dataset: LabelledImages | ImageFolderDataset,
        indices: Sequence[int],
    ) -> None:
        """Run the images, and those of another bundle in turn; results come in their order."""
        labels = [_label(dataset, index) for index in indices]
        results: Iterator[tuple[Result | Failure, ...]] = zip(opened.run_each(_items(dataset, indices)), strict=True)
        if other is not None:
            self._against = _Against(other)
            results = zip(
                opened.run_each(_items(dataset, indices)), other.run_each(_items(dataset, indices)), strict=True
            )
        for done, (given, label) in enumerate(zip(results, labels, strict=True), 1):
            failed = next((each for each in given if isinstance(each, Failure)), None)
            if failed is not None:
                self._failures.append(failed)
                self._on_failure(failed)
            else:
                first, *second = (each for each in given if isinstance(each, Result))
                self._add(first, label)
                if self._against is not None:
                    self._against.add(first, second[0], label)
            self._progress(f"classified {done} of {self._total} images", done / self._total)

    def _add(self, result: Result, label: int) -> None:
        logits = result.outputs[LOGITS][0]
        self._images += 1
        self._ms += result.ms
        right = int(logits.argmax()) == label
        self._top1 += right
        self._top5 += label in np.argsort(-logits, kind="stable")[:TOP]
        for name, rate in result.rates.items():
            self._rates[name] = self._rates.get(name, 0.0) + rate
        if result.exit is not None:
            self._left[result.exit] += 1
            self._right_there[result.exit] += right
            for number in self._exits:
                self._right[number] += int(result.outputs[exit_logits(number)][0].argmax()) == label

    def result(
        self, opened: OpenBundle, *, source: str, thresholds: tuple[float, ...] | None, notes: tuple[str, ...]
    ) -> BundleEvaluation:
        """What was counted; raises ``InputError`` where nothing could be."""
        if not self._images:
            raise InputError(f"None of the {self._total} images could be classified. {self._failures[0].error}")
        manifest, count, info = self._bundle.manifest, self._images, opened.info
        assert manifest.network.num_classes is not None
        return BundleEvaluation(
            network=manifest.network.name,
            source=source,
            images=count,
            top1=self._top1 / count,
            top5=self._top5 / count,
            classes=manifest.network.num_classes,
            exits=tuple(
                ExitAccuracy(
                    number,
                    self._left[number] / count,
                    self._right[number] / count,
                    self._right_there[number] / self._left[number] if self._left[number] else None,
                )
                for number in self._exits
            ),
            thresholds=thresholds,
            rates={name: total / count for name, total in self._rates.items()},
            ms=self._ms / count,
            runtime=f"{info.runtime} {info.version}",
            runtime_why=opened.choice.reason,
            threads=info.threads,
            precision=info.precision,
            operators=opened.code,
            failures=tuple(self._failures),
            notes=notes,
            against=None if self._against is None else self._against.result(),
        )


class _Against:
    """Counts what another bundle does differently, image by image."""

    def __init__(self, opened: OpenBundle) -> None:
        self._opened = opened
        self._right: dict[tuple[bool, bool], int] = {}
        self._images = self._changed = self._left_elsewhere = self._top5 = self._bits = 0
        self._exits = False
        self._ms = 0.0
        self._flips: dict[str, int] = {}

    def add(self, first: Result, other: Result, label: int) -> None:
        """Count one image."""
        logits = other.outputs[LOGITS][0]
        one, two = int(first.outputs[LOGITS][0].argmax()), int(logits.argmax())
        self._images += 1
        self._changed += one != two
        key = (one == label, two == label)
        self._right[key] = self._right.get(key, 0) + 1
        self._top5 += label in np.argsort(-logits, kind="stable")[:TOP]
        self._ms += other.ms
        if first.exit is not None and other.exit is not None:
            self._exits = True
            self._left_elsewhere += first.exit != other.exit
        for name, mask in first.masks.items():
            if name in other.masks and other.masks[name].shape == mask.shape:
                self._bits += mask.size
                self._flips[name] = self._flips.get(name, 0) + int((mask != other.masks[name]).sum())

    def result(self) -> BundleComparison:
        """What was counted."""
        info, right = self._opened.info, self._right
        counted = {(a, b): right.get((a, b), 0) for a in (True, False) for b in (True, False)}
        return BundleComparison(
            bundle=str(self._opened.bundle.path),
            network=self._opened.bundle.manifest.network.name,
            precision=info.precision,
            operators=self._opened.code,
            top1=(counted[True, True] + counted[False, True]) / self._images,
            top5=self._top5 / self._images,
            ms=self._ms / self._images,
            both_right=counted[True, True],
            only_first_right=counted[True, False],
            only_other_right=counted[False, True],
            none_right=counted[False, False],
            changed=self._changed,
            exits_changed=self._left_elsewhere if self._exits else None,
            mask_bits=self._bits,
            mask_flips=sum(self._flips.values()),
            flips=dict(self._flips),
        )


def _items(dataset: LabelledImages | ImageFolderDataset, indices: Sequence[int]) -> Iterator[Item]:
    for index in indices:
        name = str(dataset.samples[index][0]) if isinstance(dataset, ImageFolderDataset) else f"image {index}"
        yield Item(name, functools.partial(_load, dataset, index))


def _load(dataset: LabelledImages | ImageFolderDataset, index: int) -> Array:
    return dataset[index][0]


def _label(dataset: LabelledImages | ImageFolderDataset, index: int) -> int:
    """The class of an image, which need not be read for that."""
    return dataset.samples[index][1] if isinstance(dataset, ImageFolderDataset) else int(dataset.labels[index])
