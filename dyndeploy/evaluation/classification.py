"""Accuracy of a bundle on labelled images."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dyndeploy.bundle import LOGITS, Bundle
from dyndeploy.bundle.reference_names import exit_logits
from dyndeploy.chunks import Part, Tick, Work, chunk_results, require_same_list
from dyndeploy.data import DIGITS, ImageFolderDataset, LabelledImages, images_of_classes, spread
from dyndeploy.errors import InputError, UsageError
from dyndeploy.evaluation._sides import Side, about, one_about, telling
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
    workers: int = 1,
    state: str | os.PathLike[str] | None = None,
    progress: Progress = lambda message, fraction: None,
    on_failure: OnFailure = lambda failure: None,
) -> BundleEvaluation:
    """Classify labelled images one by one, as ``dyndeploy run`` does, and count what is right.

    Every image of a network that exits early is run twice: timed, until it leaves; and through all exits, so that each
    exit's own accuracy is known. One image is in memory at a time, or one batch.

    Images are worked on in chunks (:mod:`dyndeploy.chunks`): everything but the times is the same to the bit however
    many processes compute, also those of torchrun, and after a break.

    Args:
        bundle: The bundle or its folder.
        data: A folder with one sub-folder of images per class; ``"digits"``: scikit-learn's held-out digits; or images
            in memory, whose labels are the network's class indices.
        limit: At most so many images, spread evenly over the classes; None for all.
        runtime: As for :func:`~dyndeploy.inference.run_inputs`.
        threads: Threads that compute, in ONNX Runtime; each process has as many.
        thresholds: Least confidence of every exit but the last; None for the bundle's. Without either every image goes
            to the last exit, and a note says so.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        against: Another bundle that takes the same images, e.g. the same network in another precision: it runs them in
            turn, with thresholds of its own, and what differs is counted.
        workers: Processes that share the images; several start the script again that calls this, so it has to be
            guarded by ``if __name__ == "__main__":``.
        state: A folder that keeps what each chunk gave. A run that was broken off goes on from there; a changed image
            of the same name is not noticed.
        progress: Called with a message and the fraction done.
        on_failure: Called with every image that fails, of several processes when its chunk is done; the rest goes on.

    Raises:
        BundleError: The folder is no bundle.
        InputError: The folder's classes are not the network's, or none of the images could be classified.
        UsageError: A bundle without logits, a limit below 1, a runtime that cannot be had, thresholds that do not fit,
            another bundle that takes other images or has other classes, fewer than 1 worker, or a state of another
            run.
        OutputError: The state cannot be written, or a process was killed.
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
    sides = [Side(bundle.path, choice, threads, native, used)]
    if against is not None:
        second = against if isinstance(against, Bundle) else Bundle.open(against)
        _require_same_images(bundle, second)
        asked = choose_runtime(second, runtime if isinstance(runtime, str) else runtime.runtime)
        limits, more = _thresholds(second, asked.runtime, None)
        notes += tuple(f"{second.path}: {note}" for note in more)
        sides.append(Side(second.path, asked, threads, native, limits))
    images = dataset.fingerprint()
    parts = chunk_results(
        _Work(tuple(sides), data, images),
        chosen,
        identity={"kind": KIND, "images_sha256": images, "bundles": [side.identity() for side in sides]},
        workers=workers,
        state=state,
        said="classified",
        progress=progress,
        on_part=telling(on_failure),
    )
    total = _sum_of(parts)
    failures = tuple(Failure.from_json(failure) for failure in total["failures"])
    first, *others = total["sides"]
    count = first["images"]
    if not count:
        raise InputError(f"None of the {len(chosen)} images could be classified. {failures[0].error}")
    return BundleEvaluation(
        network=network.name,
        source=source,
        images=count,
        top1=first["top1"] / count,
        top5=first["top5"] / count,
        classes=network.num_classes,
        exits=tuple(
            ExitAccuracy(
                int(number), left / count, first["right"][number] / count,
                first["right_there"][number] / left if left else None,
            )
            for number, left in first["left"].items()
        ),
        thresholds=None if used is None else tuple(used[: len(bundle.exits.stages) - 1]),
        rates={name: rate / count for name, rate in first["rates"].items()},
        ms=first["ms"] / count,
        runtime=first["about"]["runtime"],
        runtime_why=choice.reason,
        threads=first["about"]["threads"],
        precision=first["about"]["precision"],
        operators=first["about"]["operators"],
        failures=failures,
        notes=notes,
        against=_comparison(sides[1], others[0], total["pairs"], count) if others else None,
    )  # fmt: skip


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


@dataclass(frozen=True)
class _Work:
    """Classifies the images of a chunk; it can be pickled."""

    sides: tuple[Side, ...]
    data: str | os.PathLike[str] | LabelledImages
    images_sha256: str

    @contextmanager
    def __call__(self) -> Iterator[Work]:
        dataset, _ = _opened_images(self.sides[0].bundle, self.data)
        require_same_list(dataset.fingerprint(), self.images_sha256, self.data)
        with ExitStack() as stack:
            opened = [
                stack.enter_context(
                    opened_bundle(side.bundle, **side.options, thresholds=side.thresholds, every_exit=True)
                )
                for side in self.sides
            ]
            yield functools.partial(_classified, opened, dataset)


def _classified(
    opened: Sequence[OpenBundle], dataset: LabelledImages | ImageFolderDataset, indices: Sequence[int], tick: Tick
) -> Part:
    """What images give in one bundle, or in two in turn."""
    sides, pairs, failures = [_Side(each) for each in opened], _Pairs(), []
    results = zip(*(each.run_each(_items(dataset, indices)) for each in opened), strict=True)
    for given, index in zip(results, indices, strict=True):
        failed = next((each for each in given if isinstance(each, Failure)), None)
        if failed is not None:
            failures.append(failed.to_json())
        else:
            label, found = _label(dataset, index), [each for each in given if isinstance(each, Result)]
            for side, result in zip(sides, found, strict=True):
                side.add(result, label)
            if len(found) > 1:
                pairs.add(found[0], found[1], label)
        tick()
    return {
        "sides": [{**vars(side.counts), "about": side.about} for side in sides],
        "pairs": vars(pairs),
        "failures": failures,
    }


class _SideCounts:
    """What is counted of one bundle, in plain JSON types; of exits by their number as text."""

    def __init__(self, exits: Sequence[int]) -> None:
        self.images = self.top1 = self.top5 = 0
        self.ms = 0.0
        self.rates: dict[str, float] = {}
        self.left, self.right, self.right_there = (dict.fromkeys(map(str, exits), 0) for _ in range(3))


class _Side:
    """Counts what is right in one bundle, image by image."""

    def __init__(self, opened: OpenBundle) -> None:
        bundle = opened.bundle
        self._exits = [] if bundle.manifest.exits is None else [stage.exit for stage in bundle.exits.stages]
        self.counts = _SideCounts(self._exits)
        self.about = about(opened.info, opened.code)

    def add(self, result: Result, label: int) -> None:
        counts, logits = self.counts, result.outputs[LOGITS][0]
        counts.images += 1
        counts.ms += result.ms
        right = int(logits.argmax()) == label
        counts.top1 += right
        counts.top5 += int(label in np.argsort(-logits, kind="stable")[:TOP])
        for name, rate in result.rates.items():
            counts.rates[name] = counts.rates.get(name, 0.0) + rate
        if result.exit is not None:
            counts.left[str(result.exit)] += 1
            counts.right_there[str(result.exit)] += right
            for number in self._exits:
                there = int(result.outputs[exit_logits(number)][0].argmax()) == label
                counts.right[str(number)] += there


class _Pairs:
    """Counts what another bundle does differently, image by image, in plain JSON types."""

    def __init__(self) -> None:
        self.both_right = self.only_first_right = self.only_other_right = self.none_right = 0
        self.changed = self.with_exits = self.exits_changed = self.mask_bits = 0
        self.flips: dict[str, int] = {}

    def add(self, first: Result, other: Result, label: int) -> None:
        one, two = (int(result.outputs[LOGITS][0].argmax()) for result in (first, other))
        self.changed += one != two
        self.both_right += one == label and two == label
        self.only_first_right += one == label and two != label
        self.only_other_right += one != label and two == label
        self.none_right += one != label and two != label
        if first.exit is not None and other.exit is not None:
            self.with_exits += 1
            self.exits_changed += first.exit != other.exit
        for name, mask in first.masks.items():
            if name in other.masks and other.masks[name].shape == mask.shape:
                self.mask_bits += mask.size
                self.flips[name] = self.flips.get(name, 0) + int((mask != other.masks[name]).sum())


def _sum_of(parts: Sequence[Part]) -> Part:
    """Sums over chunks in their order: of numbers, by name and place; lists of failures one after the other."""
    total = {**parts[0], "failures": list(parts[0]["failures"])}
    for part in parts[1:]:
        total["failures"] += part["failures"]
        total["pairs"] = _added(total["pairs"], part["pairs"])
        total["sides"] = [_added(one, other) for one, other in zip(total["sides"], part["sides"], strict=True)]
    return total


def _added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers by name, added; what says how they were computed has to be the same."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys([*one, *other]):
        if name == "about":
            found[name] = one_about([one[name], other[name]])
        elif isinstance(one.get(name, other.get(name)), Mapping):
            found[name] = _added(one.get(name, {}), other.get(name, {}))
        else:
            found[name] = one.get(name, 0) + other.get(name, 0)
    return found


def _comparison(side: Side, counts: Mapping[str, Any], pairs: Mapping[str, Any], images: int) -> BundleComparison:
    """What was counted of the other bundle."""
    about = counts["about"]
    return BundleComparison(
        bundle=str(side.path),
        network=side.bundle.manifest.network.name,
        precision=about["precision"],
        operators=about["operators"],
        top1=counts["top1"] / images,
        top5=counts["top5"] / images,
        ms=counts["ms"] / images,
        both_right=pairs["both_right"],
        only_first_right=pairs["only_first_right"],
        only_other_right=pairs["only_other_right"],
        none_right=pairs["none_right"],
        changed=pairs["changed"],
        exits_changed=pairs["exits_changed"] if pairs["with_exits"] else None,
        mask_bits=pairs["mask_bits"],
        mask_flips=sum(pairs["flips"].values()),
        flips=dict(pairs["flips"]),
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
