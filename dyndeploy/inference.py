"""Inputs in, outputs out: what ``dyndeploy run`` does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dyndeploy import finite
from dyndeploy.bundle import LOGITS, Bundle, Manifest
from dyndeploy.confidences import confidences
from dyndeploy.data import load_image
from dyndeploy.errors import DyndeployError, InputError, UsageError, unknown_name
from dyndeploy.runtimes import NativeUse, OnnxRuntimeSession, Session, TensorRTSession, open_staged
from dyndeploy.runtimes.base import Array
from dyndeploy.runtimes.native import operator_code
from dyndeploy.runtimes.staged import RUNTIMES


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
    """

    image: str
    label: int
    confidence: float
    ms: float
    exit: int | None = None
    rates: dict[str, float] = field(default_factory=dict)
    class_name: str | None = None
    operators: str | None = None

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
    """

    outputs: dict[str, Array]
    ms: float
    exit: int | None
    rates: dict[str, float]
    image: str | None = None
    operators: str | None = None

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


def run_inputs(
    bundle: Bundle | str | os.PathLike[str],
    inputs: Sequence[Mapping[str, Array]],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    native: str | os.PathLike[str] = "auto",
) -> list[Result]:
    """Run a bundle on arrays, one batch after the other.

    The first batch runs once before it is timed, because a first run allocates memory.

    Args:
        bundle: The bundle or its folder.
        inputs: Arrays by name, with the bundle's batch as first axis.
        runtime: ``"onnxruntime"`` or ``"tensorrt"``.
        threads: Threads that compute, in ONNX Runtime.
        thresholds: Of a network that exits early: least confidence of every exit but the last; None for the bundle's.
        native: Of a network with masks, as for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.

    Raises:
        BundleError: The folder is no bundle.
        InputError: An input is missing, or of another shape or type.
        UsageError: Unknown runtime, or thresholds that are missing or do not fit.
    """
    if not inputs:
        raise UsageError("Give at least one input.")
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    masks, results = bundle.manifest.masks, []
    with _opened(bundle, runtime, threads, thresholds, native) as run:
        for feeds in inputs:
            outputs, number, ms = run.timed(feeds)
            rates = {mask.name: float(outputs.pop(mask.name).mean()) for mask in masks if mask.name in outputs}
            results.append(Result(outputs, ms, number, rates, operators=run.code))
    return results


def run_images(
    bundle: Bundle | str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str]],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    native: str | os.PathLike[str] = "auto",
) -> Iterator[Result | Failure]:
    """Run a bundle on image files; each result comes as soon as it is there, and only one batch is in memory.

    A bundle of a larger batch is fed as many images at a time, the last batch filled up. An image that fails gives a
    :class:`Failure`, in its place; the rest goes on.

    Args:
        bundle: The bundle or its folder.
        images: Paths of image files.
        runtime: As for :func:`run_inputs`.
        threads: As for :func:`run_inputs`.
        thresholds: As for :func:`run_inputs`.
        native: As for :func:`run_inputs`.

    Raises:
        BundleError: The folder is no bundle.
        UsageError: Unknown runtime, a bundle that takes no images, or thresholds that are missing or do not fit.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = bundle.manifest
    preprocessing, size = manifest.images()
    batch = manifest.batch if manifest.exits is None else 1
    waiting: list[str] = []
    read: list[Array] = []
    with _opened(bundle, runtime, threads, thresholds, native) as run:
        for path in images:
            try:
                read.append(load_image(path, preprocessing, size))
                waiting.append(os.fspath(path))
            except InputError as error:
                # Nobody waits for images that may come later, and the order stays.
                yield from _run_batch(manifest, run, waiting, read, batch)
                waiting, read = [], []
                yield Failure(os.fspath(path), error)
            if len(read) == batch:
                yield from _run_batch(manifest, run, waiting, read, batch)
                waiting, read = [], []
        yield from _run_batch(manifest, run, waiting, read, batch)


def _run_batch(
    manifest: Manifest, run: _Runner, names: Sequence[str], images: Sequence[Array], batch: int
) -> Iterator[Result | Failure]:
    """The results of up to a batch of images, which is filled up with the last one."""
    if not images:
        return
    filled = np.stack([*images, *[images[-1]] * (batch - len(images))])
    try:
        outputs, number, ms = run.timed({manifest.inputs[0].name: filled})
    except UsageError:
        raise
    except DyndeployError as error:
        if len(names) == 1:
            yield Failure(names[0], error)
            return
        # One image may have spoilt the others' batch.
        for name, image in zip(names, images, strict=True):
            yield from _run_batch(manifest, run, [name], [image], batch)
        return
    for row, name in enumerate(names):
        own = {key: value[row : row + 1] if value.shape[:1] == (batch,) else value for key, value in outputs.items()}
        rates = {mask.name: float(own.pop(mask.name).mean()) for mask in manifest.masks if mask.name in own}
        yield Result(own, ms / len(names), number, rates, name, run.code)


def classify_images(
    bundle: Bundle | str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str]],
    *,
    runtime: str = "onnxruntime",
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
    for result in run_images(bundle, images, **options):
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
        )


def classify(
    bundle: Bundle | str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    runtime: str = "onnxruntime",
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
        UsageError: No image, unknown runtime, a bundle without logits, or thresholds that are missing or do not fit.
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
    arrays = {}
    for name, path in paths.items():
        try:
            value = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"Cannot read {path} as an array: {error}. Write it with numpy.save.") from error
        if not isinstance(value, np.ndarray):
            raise InputError(f"{path} holds several arrays: write one with numpy.save for each input.")
        arrays[name] = value
    return arrays


_Run = Callable[[Mapping[str, Array]], tuple[dict[str, Array], int | None]]
"""Inputs -> outputs and masks, and the exit that was taken."""

_Timed = Callable[[Mapping[str, Array]], tuple[dict[str, Array], int | None, float]]
"""The same with the milliseconds that it took."""


@dataclass(frozen=True)
class _Runner:
    """A bundle that is open: how to run it, and which code its dynamic operators run in."""

    timed: _Timed
    code: str | None


@contextmanager
def _opened(
    bundle: Bundle, runtime: str, threads: int, thresholds: Sequence[float] | None, native: str | os.PathLike[str]
) -> Iterator[_Runner]:
    """Open a bundle's session; its first run is made twice, because the very first one allocates memory."""
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    manifest = bundle.manifest
    if manifest.exits is None and thresholds is not None:
        raise UsageError(f"{manifest.network.name} has no exits: leave the thresholds out.")
    with ExitStack() as stack:
        if manifest.exits is not None:
            run, used = _staged(stack, bundle, runtime, threads, thresholds)
        else:
            run, used = _whole(stack, bundle, runtime, threads, native)
        warm = False

        def timed(feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int | None, float]:
            nonlocal warm
            if not warm:
                run(feeds)
                warm = True
            start = time.perf_counter()
            outputs, number = run(feeds)
            return outputs, number, 1e3 * (time.perf_counter() - start)

        yield _Runner(timed, operator_code(manifest.operator_types, asdict(used)))


def _staged(
    stack: ExitStack, bundle: Bundle, runtime: str, threads: int, thresholds: Sequence[float] | None
) -> tuple[_Run, NativeUse]:
    session = stack.enter_context(open_staged(bundle, runtime, threads=threads, thresholds=thresholds))
    name = bundle.manifest.inputs[0].name

    def run(feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int | None]:
        result = session.run(feeds[name])
        return {LOGITS: result.logits}, int(result.exits[0])

    return run, session.info.native


def _whole(
    stack: ExitStack, bundle: Bundle, runtime: str, threads: int, native: str | os.PathLike[str]
) -> tuple[_Run, NativeUse]:
    session: Session
    if runtime == "onnxruntime":
        precision = bundle.manifest.cpu_precision
        session = OnnxRuntimeSession(bundle.model, threads=threads, native=native, precision=precision)
    else:
        session, _ = TensorRTSession.from_bundle(bundle)
    stack.enter_context(session)

    def run(feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int | None]:
        return session.run(feeds), None

    return run, session.info.native
