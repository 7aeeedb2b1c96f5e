"""A bundle on images and arrays, whatever it gives."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dyndeploy import finite
from dyndeploy.bundle import LOGITS, Bundle, NetworkInfo
from dyndeploy.bundle.reference_names import exit_logits
from dyndeploy.confidences import confidences
from dyndeploy.data import load_image, with_folders
from dyndeploy.errors import DyndeployError, InputError, UsageError, unknown_name
from dyndeploy.runtimes import OnnxRuntimeSession, Session, TensorRTSession, open_parts, open_staged
from dyndeploy.runtimes.base import ENGINE_RUNTIMES, Array, SessionInfo
from dyndeploy.runtimes.choice import RuntimeChoice, choose_runtime
from dyndeploy.runtimes.native import operator_code
from dyndeploy.runtimes.onnxruntime import PROVIDER_OF
from dyndeploy.runtimes.staged import StagedSession
from dyndeploy.runtimes.tensorrt_engine import EngineSettings


@dataclass(frozen=True)
class Classification:
    """What a bundle says about an image.

    Attributes:
        image: Path of the image.
        label: Index of the class.
        confidence: Its softmax probability.
        ms: Wall-clock time of the network on this image, without reading and preprocessing it; of a batch an equal
            part.
        exit: The exit that was taken, from 1; None for a network without exits.
        rates: Share of active bits of every mask by name; empty for a network without masks.
        class_name: Name of the class; None where the bundle holds no names.
        operators: Which code ran the dynamic operators (:func:`dyndeploy.runtimes.native.operator_code`); None
            without such operators.
        runtime: What ran it, and why that (:meth:`dyndeploy.runtimes.choice.RuntimeChoice.to_json`).
    """

    image: str
    label: int
    confidence: float
    ms: float
    exit: int | None = None
    rates: dict[str, float] = field(default_factory=dict)
    class_name: str | None = None
    operators: str | None = None
    runtime: dict[str, str] = field(default_factory=dict)

    @property
    def mean_rate(self) -> float:
        """Mean of :attr:`rates`; NaN where there are none."""
        return float(np.mean(list(self.rates.values()))) if self.rates else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What a network gives for one image, or for one batch of arrays.

    Attributes:
        outputs: Arrays by name, masks excepted.
        ms: Wall-clock time of the network, without reading the inputs; of a batch of images an equal part.
        exit: The exit that was taken, from 1; None for a network without exits.
        rates: Share of active bits of every mask by name.
        image: Path of the image; None for arrays.
        operators: As for :class:`Classification`.
        runtime: As for :class:`Classification`.
        masks: Masks by name, of 0 and 1; empty where the network hands none out.
    """

    outputs: dict[str, Array]
    ms: float
    exit: int | None
    rates: dict[str, float]
    image: str | None = None
    operators: str | None = None
    runtime: dict[str, str] = field(default_factory=dict)
    masks: dict[str, Array] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; of every output its shape, type and range."""
        return {
            "image": self.image,
            "outputs": {
                name: {"shape": list(value.shape), "dtype": value.dtype.name, "min": finite.number(value.min()),
                       "max": finite.number(value.max()), "mean": finite.number(value.mean())}
                for name, value in self.outputs.items()
            },
            "ms": self.ms,
            "exit": self.exit,
            "rates": self.rates,
            "operators": self.operators,
            "runtime": self.runtime,
        }  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """An image that gave no result.

    Attributes:
        image: Its path.
        error: Why; the message names the file where the file is to blame.
    """

    image: str
    error: DyndeployError

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"image": self.image, "error": str(self.error)}

    @classmethod
    def from_json(cls, plain: Mapping[str, str]) -> Failure:
        """The same from what :meth:`to_json` gives; of the error its message."""
        return cls(plain["image"], DyndeployError(plain["error"]))


def run_inputs(
    bundle: Bundle | str | os.PathLike[str],
    inputs: Sequence[Mapping[str, Array]],
    *,
    runtime: str | RuntimeChoice = "onnxruntime",
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    native: str | os.PathLike[str] = "auto",
) -> list[Result]:
    """Run a bundle on arrays, one batch after the other.

    The first batch runs once before it is timed, because a first run allocates memory.

    Args:
        bundle: The bundle or its folder.
        inputs: Arrays by name, with the bundle's batch as first axis.
        runtime: One of :data:`~dyndeploy.runtimes.base.RUNTIMES`, ``"auto"``, or what
            :func:`~dyndeploy.runtimes.choice.choose_runtime` chose.
        threads: Threads that compute, in ONNX Runtime.
        thresholds: Of a network that exits early: least confidence of every exit but the last; None for the bundle's.
        native: Of a network with masks, as for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.

    Raises:
        BundleError: The folder is no bundle.
        InputError: An input is missing, or of another shape or type.
        UsageError: A runtime that is unknown or cannot be had, or thresholds that are missing or do not fit.
    """
    if not inputs:
        raise UsageError("Give at least one input.")
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    masks, results = bundle.manifest.masks, []
    with opened_bundle(bundle, runtime=runtime, threads=threads, thresholds=thresholds, native=native) as network:
        for feeds in inputs:
            outputs, number, ms = network.run(feeds)
            taken = {mask.name: outputs.pop(mask.name) for mask in masks if mask.name in outputs}
            choice = network.choice.to_json()
            results.append(
                Result(outputs, ms, number, _rates(taken), operators=network.code, runtime=choice, masks=taken)
            )
    return results


def run_images(
    bundle: Bundle | str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str]],
    *,
    runtime: str | RuntimeChoice = "onnxruntime",
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    native: str | os.PathLike[str] = "auto",
) -> Iterator[Result | Failure]:
    """Run a bundle on image files; each result comes as soon as it is there, and only one batch is in memory.

    A bundle of a larger batch is fed as many images at a time, the last batch filled up. An image that fails gives a
    :class:`Failure`, in its place; the rest goes on. A folder stands for all images in it and in its sub-folders.

    Args:
        bundle: The bundle or its folder.
        images: Paths of image files and folders.
        runtime: As for :func:`run_inputs`.
        threads: As for :func:`run_inputs`.
        thresholds: As for :func:`run_inputs`.
        native: As for :func:`run_inputs`.

    Raises:
        BundleError: The folder is no bundle.
        InputError: A folder holds no image, or cannot be looked into.
        UsageError: A runtime that is unknown or cannot be had, a bundle that takes no images, or thresholds that are
            missing or do not fit.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    preprocessing, size = bundle.manifest.images()
    items = (
        Item(os.fspath(path), functools.partial(load_image, path, preprocessing, size)) for path in with_folders(images)
    )
    with opened_bundle(bundle, runtime=runtime, threads=threads, thresholds=thresholds, native=native) as network:
        yield from network.run_each(items)


def classify_images(
    bundle: Bundle | str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str]],
    *,
    runtime: str | RuntimeChoice = "onnxruntime",
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    native: str | os.PathLike[str] = "auto",
) -> Iterator[Classification | Failure]:
    """Classify image files, each as soon as it is read; arguments and errors are those of :func:`run_images`.

    Raises:
        UsageError: Also for a bundle without logits.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    network = bundle.manifest.network
    if LOGITS not in {info.name for info in bundle.manifest.outputs}:
        raise UsageError(f"{network.name} gives no logits: there is no class to tell. Use run_images().")
    options: dict[str, Any] = {"runtime": runtime, "threads": threads, "thresholds": thresholds, "native": native}
    yield from classified(run_images(bundle, images, **options), network)


def classified(results: Iterable[Result | Failure], network: NetworkInfo) -> Iterator[Classification | Failure]:
    """What results with logits say about their images; a failure stays one.

    Args:
        results: Of a network with logits.
        network: The bundle's, for the names of the classes.
    """
    for result in results:
        if isinstance(result, Failure):
            yield result
            continue
        logits = result.outputs[LOGITS]
        label, names = int(logits[0].argmax()), network.class_names
        yield Classification(
            result.image or "",
            label,
            float(confidences(logits)[0]),
            result.ms,
            result.exit,
            result.rates,
            names[label] if names else None,
            result.operators,
            result.runtime,
        )


def classify(
    bundle: Bundle | str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    runtime: str | RuntimeChoice = "onnxruntime",
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    native: str | os.PathLike[str] = "auto",
) -> list[Classification]:
    """Classify image files, all of which must be fit for it; :func:`classify_images` goes on where one is not.

    Args:
        bundle: The bundle or its folder.
        images: Paths of image files.
        runtime: As for :func:`run_inputs`.
        threads: As for :func:`run_inputs`.
        thresholds: As for :func:`run_inputs`.
        native: As for :func:`run_inputs`.

    Raises:
        BundleError: The folder is no bundle.
        InputError: An image cannot be read.
        UsageError: No image, a runtime that cannot be had, a bundle without logits, or thresholds that are missing or
            do not fit.
    """
    if not images:
        raise UsageError("Give at least one image.")
    found = []
    for result in classify_images(
        bundle, images, runtime=runtime, threads=threads, thresholds=thresholds, native=native
    ):
        if isinstance(result, Failure):
            raise result.error
        found.append(result)
    return found


def read_arrays(bundle: Bundle, paths: Mapping[str, str | os.PathLike[str]]) -> dict[str, Array]:
    """Inputs of a bundle from ``.npy`` files by name.

    Raises:
        InputError: A file cannot be read as one array.
        UsageError: The bundle has no input of a name, or one is missing.
    """
    known = [info.name for info in bundle.manifest.inputs]
    for name in paths:
        if name not in known:
            raise unknown_name("input", name, known)
    missing = [name for name in known if name not in paths]
    if missing:
        raise UsageError(f"The inputs {', '.join(missing)} are missing: give --input NAME=FILE.npy for each.")
    return {name: read_array(path) for name, path in paths.items()}


def read_array(path: str | os.PathLike[str]) -> Array:
    """The array in a ``.npy`` file; raises ``InputError`` where it cannot be read as one."""
    try:
        value = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"Cannot read {path} as an array: {error}. Write it with numpy.save.") from error
    if not isinstance(value, np.ndarray):
        raise InputError(f"{path} holds several arrays: write one with numpy.save for each input.")
    return value


_Run = Callable[[Mapping[str, Array]], tuple[dict[str, Array], int | None]]
"""Inputs -> outputs and masks, and the exit that was taken."""

_More = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Inputs -> further outputs, which are not timed."""


@dataclass(frozen=True)
class Item:
    """An image that is read when its turn comes.

    Attributes:
        name: What to call it in results, usually its path.
        load: Gives the input (3, h, w); raises ``InputError`` where it cannot be read.
    """

    name: str
    load: Callable[[], Array]


class OpenBundle:
    """A bundle whose sessions are open, from :func:`opened_bundle`.

    Args:
        bundle: The bundle.
        info: What its sessions run on.
        choice: Why they run on that.
        run: Runs one batch.
        more: Gives what is not timed.

    Attributes:
        bundle: The bundle.
        info: Runtime, version, threads, operator library.
        choice: Which runtime it is, and why.
        code: Which code runs the dynamic operators; None without such operators.
    """

    def __init__(
        self, bundle: Bundle, info: SessionInfo, choice: RuntimeChoice, run: _Run, more: _More | None = None
    ) -> None:
        self.bundle, self.info, self.choice = bundle, info, choice
        self.code = operator_code(bundle.manifest.operator_types, asdict(info.native))
        self._run, self._more = run, more
        self._warm = False

    def run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int | None, float]:
        """Run one batch: outputs and masks, the exit that was taken, and the milliseconds that it took.

        The first batch is run twice, because the very first run allocates memory.
        """
        if not self._warm:
            self._run(feeds)
            self._warm = True
        start = time.perf_counter()
        outputs, number = self._run(feeds)
        ms = 1e3 * (time.perf_counter() - start)
        return outputs if self._more is None else outputs | self._more(feeds), number, ms

    def run_each(self, items: Iterable[Item]) -> Iterator[Result | Failure]:
        """Run images, a batch at a time; each result comes as soon as it is there, in the order of the images."""
        manifest = self.bundle.manifest
        batch = manifest.batch if manifest.exits is None else 1
        waiting: list[str] = []
        read: list[Array] = []
        for item in items:
            try:
                read.append(item.load())
                waiting.append(item.name)
            except InputError as error:
                # Nobody waits for images that may come later, and the order stays.
                yield from self._run_batch(waiting, read, batch)
                waiting, read = [], []
                yield Failure(item.name, error)
            if len(read) == batch:
                yield from self._run_batch(waiting, read, batch)
                waiting, read = [], []
        yield from self._run_batch(waiting, read, batch)

    def _run_batch(self, names: Sequence[str], images: Sequence[Array], batch: int) -> Iterator[Result | Failure]:
        """The results of up to a batch of images, which is filled up with the last one."""
        if not images:
            return
        manifest = self.bundle.manifest
        filled = np.stack([*images, *[images[-1]] * (batch - len(images))])
        try:
            outputs, number, ms = self.run({manifest.inputs[0].name: filled})
        except UsageError:
            raise
        except DyndeployError as error:
            if len(names) == 1:
                yield Failure(names[0], error)
                return
            # One image may have spoilt the others' batch.
            for name, image in zip(names, images, strict=True):
                yield from self._run_batch([name], [image], batch)
            return
        for row, name in enumerate(names):
            own = {
                key: value[row : row + 1] if value.shape[:1] == (batch,) else value for key, value in outputs.items()
            }
            masks = {mask.name: own.pop(mask.name) for mask in manifest.masks if mask.name in own}
            choice = self.choice.to_json()
            yield Result(own, ms / len(names), number, _rates(masks), name, self.code, choice, masks)


def _rates(masks: Mapping[str, Array]) -> dict[str, float]:
    return {name: float(mask.mean()) for name, mask in masks.items()}


@contextmanager
def opened_bundle(
    bundle: Bundle,
    *,
    runtime: str | RuntimeChoice = "onnxruntime",
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    native: str | os.PathLike[str] = "auto",
    every_exit: bool = False,
) -> Iterator[OpenBundle]:
    """Open a bundle's sessions.

    Args:
        bundle: The bundle.
        runtime: As for :func:`run_inputs`.
        threads: As for :func:`run_inputs`.
        thresholds: As for :func:`run_inputs`.
        native: As for :func:`run_inputs`.
        every_exit: Of a network that exits early: let every image run through all exits as well, untimed. Their logits
            stand among the outputs by the names of :func:`~dyndeploy.bundle.reference_names.exit_logits`.

    Raises:
        UsageError: A runtime that is unknown or cannot be had, or thresholds that are missing or do not fit.
    """
    choice = choose_runtime(bundle, runtime)
    manifest = bundle.manifest
    if manifest.exits is None and thresholds is not None:
        raise UsageError(f"{manifest.network.name} has no exits: leave the thresholds out.")
    if manifest.exits is not None:
        with open_staged(bundle, choice.runtime, threads=threads, thresholds=thresholds, native=native) as session:
            yield OpenBundle(bundle, session.info, choice, *_staged(session, every_exit))
        return
    with _whole(bundle, choice.runtime, threads, native) as whole:
        yield OpenBundle(bundle, whole.info, choice, lambda feeds: (whole.run(feeds), None))


def _staged(session: StagedSession, every_exit: bool) -> tuple[_Run, _More | None]:
    name, stages = session.bundle.manifest.inputs[0].name, session.bundle.exits.stages

    def run(feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int | None]:
        result = session.run(feeds[name])
        return {LOGITS: result.logits}, int(result.exits[0])

    def more(feeds: Mapping[str, Array]) -> dict[str, Array]:
        every = session.run_all(feeds[name])
        return {exit_logits(stage.exit): logits for stage, logits in zip(stages, every, strict=True)}

    return run, more if every_exit else None


def _whole(bundle: Bundle, runtime: str, threads: int, native: str | os.PathLike[str]) -> Session:
    if runtime in ENGINE_RUNTIMES and bundle.parts:
        return open_parts(bundle, runtime)
    if runtime in ENGINE_RUNTIMES:
        return TensorRTSession.from_bundle(bundle, EngineSettings(runtime=runtime))[0]
    precision, provider = bundle.manifest.cpu_precision, PROVIDER_OF[runtime]
    return OnnxRuntimeSession(bundle.model, threads=threads, native=native, precision=precision, provider=provider)
