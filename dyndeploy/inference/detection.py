"""A detector's bundle on image files and on frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dyndeploy.bundle import Bundle, Manifest
from dyndeploy.data import ByteArray, read_image, with_folders
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.inference.running import Failure
from dyndeploy.inference.session import BundleSession, Detected, open_bundle
from dyndeploy.runtimes.base import Array
from dyndeploy.runtimes.choice import RuntimeChoice
from dyndeploy.tasks.detection import Detections


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """What a detector finds in one image.

    Attributes:
        image: Path of the image, or what it is called.
        width: Of the image, in pixels, turned upright.
        height: Of the image, in pixels, turned upright.
        detections: In the image's own pixels.
        category_ids: COCO's category of each class.
        ms: Wall-clock time of the network on this image, without what the host does; of a batch an equal part.
        host_ms: Wall-clock time of preparing the image and decoding the outputs.
        input_size: (H, W) of the input that it ran at.
        resized: (h, w) of the image in that input.
        rates: Share of active bits of every mask by name; empty for a network without masks.
        masks: The backbone's masks by name, of 0 and 1.
        operators: Which code ran the dynamic operators (:func:`dyndeploy.runtimes.native.operator_code`); None
            without such operators.
        runtime: What ran it, and why that (:meth:`dyndeploy.runtimes.choice.RuntimeChoice.to_json`).
        pixels: The image itself: 8-bit RGB, (height, width, 3).
    """

    image: str
    width: int
    height: int
    detections: Detections
    category_ids: tuple[int, ...]
    ms: float
    host_ms: float
    input_size: tuple[int, int]
    resized: tuple[int, int]
    rates: dict[str, float]
    masks: dict[str, Array] = field(repr=False)
    operators: str | None
    runtime: dict[str, str]
    pixels: ByteArray = field(repr=False)

    @property
    def mean_rate(self) -> float:
        """Mean of :attr:`rates`; NaN where there are none."""
        return float(np.mean(list(self.rates.values()))) if self.rates else float("nan")

    def with_detections(self, detections: Detections) -> DetectionResult:
        """The same with some of the detections only."""
        return replace(self, detections=detections)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types (see ``docs/detection.md``); raises ``UsageError`` for masks without pycocotools."""
        return {
            "image": self.image,
            "width": self.width,
            "height": self.height,
            "detections": self.detections.to_coco(self.category_ids),
            "ms": self.ms,
            "host_ms": self.host_ms,
            "input_size": list(self.input_size),
            "exit": None,
            "rates": self.rates,
            "operators": self.operators,
            "runtime": self.runtime,
        }


def detect_images(
    bundle: Bundle | str | os.PathLike[str] | BundleSession,
    images: Iterable[str | os.PathLike[str]],
    *,
    runtime: str | RuntimeChoice = "onnxruntime",
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
) -> Iterator[DetectionResult | Failure]:
    """Detect objects in image files; each result comes as soon as it is there, and one batch is in memory.

    An image that fails gives a :class:`Failure`, in its place; the rest goes on. A folder stands for all images in it
    and in its sub-folders.

    Args:
        bundle: The bundle, its folder, or a session of it, which stays open.
        images: Paths of image files and folders.
        runtime: As for :func:`~dyndeploy.inference.run_inputs`.
        threads: As for :func:`~dyndeploy.inference.run_inputs`.
        native: As for :func:`~dyndeploy.inference.run_inputs`.

    Raises:
        BundleError: The folder is no bundle.
        InputError: A folder holds no image, or cannot be looked into.
        UsageError: A bundle of no detector, or a runtime that cannot be had.
    """
    if not isinstance(bundle, BundleSession):
        with open_bundle(bundle, runtime=runtime, threads=threads, native=native) as session:
            yield from detect_images(session, images)
        return
    batch = bundle.bundle.manifest.batch
    bundle.bundle.manifest.detector()
    names: list[str] = []
    read: list[ByteArray] = []
    for path in with_folders(images):
        try:
            read.append(read_image(path))
            names.append(os.fspath(path))
        except InputError as error:
            # Nobody waits for images that may come later, and the order stays.
            yield from _each(bundle, names, read)
            names, read = [], []
            yield Failure(os.fspath(path), error)
        if len(read) == batch:
            yield from _each(bundle, names, read)
            names, read = [], []
    yield from _each(bundle, names, read)


def detect_image(session: BundleSession, name: str, pixels: ByteArray) -> DetectionResult:
    """Detect objects in one image (height, width, 3) in memory; ``name`` is what its result calls it.

    Raises:
        UsageError: The network is no detector.
        NotFiniteError: The network gave NaN or infinite values.
    """
    return _results(session, [name], [pixels])[0]


def _each(
    session: BundleSession, names: Sequence[str], images: Sequence[ByteArray]
) -> Iterator[DetectionResult | Failure]:
    """The results of up to a batch of images."""
    if not images:
        return
    try:
        yield from _results(session, names, images)
    except UsageError:
        raise
    except DyndeployError as error:
        if len(names) == 1:
            yield Failure(names[0], error)
            return
        # One image may have spoilt the others' batch.
        for name, image in zip(names, images, strict=True):
            yield from _each(session, [name], [image])


def _results(session: BundleSession, names: Sequence[str], images: Sequence[ByteArray]) -> list[DetectionResult]:
    manifest, runtime = session.bundle.manifest, session.choice.to_json()
    return [
        detection_result(manifest, name, pixels, one, session.network(one.bucket).code, runtime)
        for name, pixels, one in zip(names, images, session.detect_each(images), strict=True)
    ]


def detection_result(
    manifest: Manifest, name: str, pixels: ByteArray, found: Detected, operators: str | None, runtime: dict[str, str]
) -> DetectionResult:
    """The result of an image.

    Args:
        manifest: Of the detector's bundle.
        name: Of the image.
        pixels: The image itself.
        found: What was found in it.
        operators: As of :class:`DetectionResult`, like what follows.
        runtime: What ran it.
    """
    info = manifest.detector()
    # Where nobody told COCO's categories, the classes' own numbers stand for them.
    categories = info.category_ids or tuple(range(manifest.network.num_classes or len(info.classes)))
    height, width = pixels.shape[:2]
    return DetectionResult(
        image=name,
        width=width,
        height=height,
        detections=found.detections,
        category_ids=categories,
        ms=found.ms,
        host_ms=found.host_ms,
        input_size=found.bucket,
        resized=found.resized,
        rates=found.rates,
        masks=found.masks,
        operators=operators,
        runtime=runtime,
        pixels=pixels,
    )
