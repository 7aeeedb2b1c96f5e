"""A bundle that stays open and takes images in memory."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from dyndeploy.bundle import LOGITS, Bundle, Manifest, bucket_folder
from dyndeploy.data import FloatArray, image_input, rgb_pixels
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.inference.running import Classification, Failure, Item, OpenBundle, classified, opened_bundle
from dyndeploy.runtimes.base import AUTO, Array
from dyndeploy.runtimes.choice import RuntimeChoice, choose_runtime
from dyndeploy.tasks.detection import Detections, Placement

_LOG = logging.getLogger("dyndeploy.inference")

Size = tuple[int, int]


@dataclass(frozen=True)
class Detected:
    """What a detector gives for one image.

    Attributes:
        detections: In the image's own pixels.
        bucket: (H, W) of the input that it ran at.
        resized: (h, w) of the image in that input.
        ms: Wall-clock time of the network, in milliseconds; of a batch an equal part.
        host_ms: Wall-clock time of preparing the image and decoding the outputs, in milliseconds.
        rates: Share of active bits of every mask by name.
        masks: The backbone's masks by name, of 0 and 1, (1, ...).
    """

    detections: Detections
    bucket: Size
    resized: Size
    ms: float
    host_ms: float
    rates: dict[str, float] = field(default_factory=dict)
    masks: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """An image as a detector's inputs.

    Attributes:
        place: Of the image among all.
        bucket: (H, W) of the input.
        feeds: Inputs of batch 1 by name.
        placement: Where the image lies in the input.
        seconds: That it took.
    """

    place: int
    bucket: Size
    feeds: dict[str, FloatArray]
    placement: Placement
    seconds: float


class Preparation:
    """Makes inputs of images for one of a detector's buckets; tells once where an image fits none.

    Args:
        manifest: Of the detector's bundle.
    """

    def __init__(self, manifest: Manifest) -> None:
        info = manifest.detector()
        self._task, self._name = info.task(), manifest.network.name
        self._buckets = tuple(bucket.size for bucket in info.buckets)
        self._told = False

    def __call__(self, place: int, image: Any, size: Size | None = None) -> Prepared:
        """Prepare what :func:`dyndeploy.data.rgb_pixels` takes; ``size`` bounds the sides of the resized image."""
        start = time.perf_counter()
        pixels = rgb_pixels(image)
        height, width = pixels.shape[:2]
        bucket, fits = self._task.bucket(height, width, self._buckets, size)
        if not fits and not self._told:
            self._told = True
            _LOG.warning(
                "an image of %dx%d pixels fits none of the sizes that %s was exported at (%s): such images are "
                "resized further. Export it with --input-size %s as well, and they are not",
                height,
                width,
                self._name,
                ", ".join(map(bucket_folder, self._buckets)),
                bucket_folder(self._task.padded(*self._task.resized(height, width, size))),
            )
        feeds, placement = self._task.prepare(pixels, bucket=bucket, size=size)
        return Prepared(place, bucket, feeds, placement, time.perf_counter() - start)


def filled_batch(group: Sequence[Prepared], batch: int) -> dict[str, FloatArray]:
    """Inputs of up to a batch of images of one bucket, filled up with the last one."""
    filled = [*group, *[group[-1]] * (batch - len(group))]
    return {name: np.concatenate([item.feeds[name] for item in filled]) for name in group[0].feeds}


def detected(manifest: Manifest, group: Sequence[Prepared], outputs: Mapping[str, Array], ms: float) -> list[Detected]:
    """What a detector found in each image of a batch.

    Args:
        manifest: Of the bundle that ran.
        group: The images.
        outputs: Of the network for :func:`filled_batch`, masks included.
        ms: That the network took.
    """
    task, found = manifest.detector().task(), []
    for row, item in enumerate(group):
        start = time.perf_counter()
        detections = task.decode(outputs, item.placement, row)
        host = item.seconds + time.perf_counter() - start
        masks = {mask.name: outputs[mask.name][row : row + 1] for mask in manifest.masks}
        rates = {name: float(mask.mean()) for name, mask in masks.items()}
        found.append(
            Detected(detections, item.bucket, item.placement.resized, ms / len(group), 1e3 * host, rates, masks)
        )
    return found


class BundleSession:
    """An open bundle, from :func:`open_bundle`; a context manager.

    Of a detector with several sizes of inputs each is opened when the first image needs it.

    Attributes:
        bundle: The bundle.
        choice: What runs it, and why that.
    """

    def __init__(
        self, bundle: Bundle, choice: RuntimeChoice, threads: int, native: str | os.PathLike[str] = "auto"
    ) -> None:
        self.bundle, self.choice = bundle, choice
        self._options: dict[str, Any] = {"runtime": choice, "threads": threads, "native": native}
        self._stack = ExitStack()
        self._open: dict[Size | None, OpenBundle] = {}
        self._prepare = None if bundle.manifest.detection is None else Preparation(bundle.manifest)
        self._closed = False
        # What cannot be opened is told now.
        self.network(bundle.manifest.input_size)

    def __enter__(self) -> BundleSession:
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the session."""
        self.close()

    def close(self) -> None:
        """Free what the session holds; closing twice is allowed, running afterwards is not."""
        self._closed = True
        self._open.clear()
        self._stack.close()

    @property
    def buckets(self) -> tuple[Size, ...]:
        """Sizes (H, W) of a detector's inputs; empty of other networks."""
        info = self.bundle.manifest.detection
        return () if info is None else tuple(bucket.size for bucket in info.buckets)

    def network(self, size: Size | None) -> OpenBundle:
        """Return what runs inputs of a size: of a detector one of :attr:`buckets`, else the bundle's.

        Raises:
            DyndeployError: The session is closed.
            BundleError: A bucket's folder is missing or damaged.
        """
        if self._closed:
            raise DyndeployError("The session is closed. Open the bundle again.")
        if size not in self._open:
            info = self.bundle.manifest.detection
            folders = {} if info is None else {bucket.size: bucket.folder for bucket in info.buckets}
            folder = folders.get(size, "") if size is not None else ""
            own = self.bundle if not folder else Bundle.open(self.bundle.path / folder)
            self._open[size] = self._stack.enter_context(opened_bundle(own, **self._options))
        return self._open[size]

    # ------------------------------------------------------------ detectors

    def detect(self, images: Sequence[Any], size: Size | None = None) -> list[Detections]:
        """Detect objects.

        Args:
            images: 8-bit RGB arrays (H, W, 3) of any size, or what :func:`dyndeploy.data.rgb_pixels` makes that of.
            size: Longest and shortest side that images are resized to; None for the bundle's.

        Returns:
            One result per image, in that image's own pixels.

        Raises:
            UsageError: The network is no detector, or no such images.
            NotFiniteError: The network gave NaN or infinite values.
        """
        return [found.detections for found in self.detect_each(images, size)]

    def detect_each(self, images: Iterable[Any], size: Size | None = None) -> Iterator[Detected]:
        """As :meth:`detect`, with times and rates; each result comes as soon as it and all before it are there.

        Images wait until their bucket's batch is full, or no image is left.
        """
        batch = self.bundle.manifest.batch
        prepare = self._prepare or Preparation(self.bundle.manifest)
        waiting: dict[Size, list[Prepared]] = {}
        done: dict[int, Detected] = {}
        following = 0
        for place, image in enumerate(images):
            item = prepare(place, image, size)
            group = waiting.setdefault(item.bucket, [])
            group.append(item)
            if len(group) == batch:
                done |= self._detected(waiting.pop(item.bucket))
            while following in done:
                yield done.pop(following)
                following += 1
        for group in waiting.values():
            done |= self._detected(group)
        for place in sorted(done):
            yield done[place]

    def _detected(self, group: Sequence[Prepared]) -> dict[int, Detected]:
        """The results of up to a batch of images of one bucket, by their places."""
        manifest = self.bundle.manifest
        outputs, _, ms = self.network(group[0].bucket).run(filled_batch(group, manifest.batch))
        found = detected(manifest, group, outputs, ms)
        return {item.place: one for item, one in zip(group, found, strict=True)}

    # ------------------------------------------------------------ classifiers

    def classify(self, images: Sequence[Any]) -> list[Classification]:
        """Classify images, prepared as files are.

        Args:
            images: 8-bit RGB arrays (H, W, 3) of any size, or what :func:`dyndeploy.data.rgb_pixels` makes that of.

        Returns:
            One result per image; its ``image`` is the image's place among them, from 0.

        Raises:
            UsageError: The network gives no logits, takes no images, or no such images.
            NotFiniteError: The network gave NaN or infinite values.
        """
        manifest = self.bundle.manifest
        if LOGITS not in {info.name for info in manifest.outputs}:
            way = "Use detect()." if manifest.detection is not None else "Use dyndeploy.inference.run_inputs()."
            raise UsageError(f"{manifest.network.name} gives no logits: there is no class to tell. {way}")
        preprocessing, size = manifest.images()
        items = [
            Item(str(place), functools.partial(image_input, rgb_pixels(image), preprocessing, size))
            for place, image in enumerate(images)
        ]
        found = []
        for result in classified(self.network(manifest.input_size).run_each(items), manifest.network):
            if isinstance(result, Failure):
                raise result.error
            found.append(result)
        return found


def open_bundle(
    bundle: Bundle | str | os.PathLike[str],
    *,
    runtime: str | RuntimeChoice = AUTO,
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
) -> BundleSession:
    """Open a bundle to run images in memory, one call after the other.

    Args:
        bundle: The bundle or its folder.
        runtime: One of :data:`~dyndeploy.runtimes.base.RUNTIMES`, ``"auto"``, or what
            :func:`~dyndeploy.runtimes.choice.choose_runtime` chose.
        threads: Threads that compute, in ONNX Runtime.
        native: Of a network with masks, as for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.

    Returns:
        A context manager: ``with open_bundle(path) as session: session.detect([image])``.

    Raises:
        BundleError: The folder is no bundle.
        UsageError: A runtime that is unknown or cannot be had.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    return BundleSession(bundle, choose_runtime(bundle, runtime), threads, native)
