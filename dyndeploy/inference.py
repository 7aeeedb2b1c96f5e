"""Inputs in, outputs out: what ``dyndeploy run`` does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dyndeploy.bundle import LOGITS, Bundle
from dyndeploy.confidences import confidences
from dyndeploy.data import load_image
from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.runtimes import OnnxRuntimeSession, Session, TensorRTSession, open_staged
from dyndeploy.runtimes.base import Array
from dyndeploy.runtimes.staged import RUNTIMES


@dataclass(frozen=True)
class Classification:
    """What a bundle says about an image.

    Attributes:
        image: Path of the image.
        label: Index of the class.
        confidence: Its softmax probability.
        ms: Wall-clock time of the network on this image, without reading and preprocessing it.
        exit: The exit that was taken, from 1; None for a network without exits.
        rates: Share of active bits of every mask by name; empty for a network without masks.
        class_name: Name of the class; None where the bundle holds no names.
    """

    image: str
    label: int
    confidence: float
    ms: float
    exit: int | None = None
    rates: dict[str, float] = field(default_factory=dict)
    class_name: str | None = None

    @property
    def mean_rate(self) -> float:
        """Mean of :attr:`rates`; NaN where there are none."""
        return float(np.mean(list(self.rates.values()))) if self.rates else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What a network gives for one batch of inputs.

    Attributes:
        outputs: Arrays by name, masks excepted.
        ms: Wall-clock time of the network, without reading the inputs.
        exit: The exit that was taken, from 1; None for a network without exits.
        rates: Share of active bits of every mask by name.
    """

    outputs: dict[str, Array]
    ms: float
    exit: int | None
    rates: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; of every output its shape, type and range."""
        return {
            "outputs": {
                name: {"shape": list(value.shape), "dtype": value.dtype.name, "min": _number(value.min()),
                       "max": _number(value.max()), "mean": _number(value.mean())}
                for name, value in self.outputs.items()
            },
            "ms": self.ms,
            "exit": self.exit,
            "rates": self.rates,
        }  # fmt: skip


def _number(value: Any) -> float | None:
    """A number of JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


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
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    if not inputs:
        raise UsageError("Give at least one input.")
    manifest = bundle.manifest
    results = []
    with ExitStack() as stack:
        if manifest.exits is not None:
            run = _staged(stack, bundle, runtime, threads, thresholds)
        else:
            if thresholds is not None:
                raise UsageError(f"{manifest.network.name} has no exits: leave the thresholds out.")
            run = _whole(stack, bundle, runtime, threads, native)
        run(inputs[0])
        for feeds in inputs:
            start = time.perf_counter()
            outputs, number = run(feeds)
            ms = 1e3 * (time.perf_counter() - start)
            rates = {mask.name: float(outputs.pop(mask.name).mean()) for mask in manifest.masks if mask.name in outputs}
            results.append(Result(outputs, ms, number, rates))
    return results


def classify(
    bundle: Bundle | str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    native: str | os.PathLike[str] = "auto",
) -> list[Classification]:
    """Classify image files one by one.

    Args:
        bundle: The bundle or its folder.
        images: Paths of JPEG or PNG files.
        runtime: As for :func:`run_inputs`.
        threads: As for :func:`run_inputs`.
        thresholds: As for :func:`run_inputs`.
        native: As for :func:`run_inputs`.

    Raises:
        BundleError: The folder is no bundle.
        InputError: An image cannot be read.
        UsageError: Unknown runtime, a bundle of a larger batch or without logits, or thresholds that are missing or do
            not fit.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = bundle.manifest
    if LOGITS not in {info.name for info in manifest.outputs}:
        raise UsageError(f"{manifest.network.name} gives no logits: there is no class to tell. Use run_inputs().")
    results = run_inputs(
        bundle, read_images(bundle, images), runtime=runtime, threads=threads, thresholds=thresholds, native=native
    )
    found = []
    for path, result in zip(images, results, strict=True):
        logits = result.outputs[LOGITS]
        label, names = int(logits[0].argmax()), manifest.network.class_names
        found.append(
            Classification(
                os.fspath(path),
                label,
                float(confidences(logits)[0]),
                result.ms,
                result.exit,
                result.rates,
                names[label] if names else None,
            )
        )
    return found


def read_images(bundle: Bundle, images: Sequence[str | os.PathLike[str]]) -> list[dict[str, Array]]:
    """Inputs of a bundle from image files, one image each.

    Every file is read before anything runs: a missing one should cost no time.

    Raises:
        InputError: An image cannot be read.
        UsageError: No image, or a bundle that takes no single images.
    """
    if not images:
        raise UsageError("Give at least one image.")
    manifest = bundle.manifest
    preprocessing, size = manifest.images()
    if manifest.batch != 1 and manifest.exits is None:
        raise UsageError(f"The bundle runs batches of {manifest.batch}, not single images. Export it with --batch 1.")
    name = manifest.inputs[0].name
    return [{name: load_image(path, preprocessing, size)[None]} for path in images]


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


def _staged(stack: ExitStack, bundle: Bundle, runtime: str, threads: int, thresholds: Sequence[float] | None) -> _Run:
    session = stack.enter_context(open_staged(bundle, runtime, threads=threads, thresholds=thresholds))
    name = bundle.manifest.inputs[0].name

    def run(feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int | None]:
        result = session.run(feeds[name])
        return {LOGITS: result.logits}, int(result.exits[0])

    return run


def _whole(stack: ExitStack, bundle: Bundle, runtime: str, threads: int, native: str | os.PathLike[str]) -> _Run:
    session: Session
    if runtime == "onnxruntime":
        precision = bundle.manifest.cpu_precision
        session = OnnxRuntimeSession(bundle.model, threads=threads, native=native, precision=precision)
    else:
        session, _ = TensorRTSession.from_bundle(bundle)
    stack.enter_context(session)

    def run(feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int | None]:
        return session.run(feeds), None

    return run
