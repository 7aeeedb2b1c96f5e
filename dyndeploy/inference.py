"""Images in, classes out: what ``dyndeploy run`` does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dyndeploy.bundle import LOGITS, Bundle
from dyndeploy.confidences import confidences
from dyndeploy.data import load_image
from dyndeploy.errors import UsageError, unknown_name
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
    """

    image: str
    label: int
    confidence: float
    ms: float
    exit: int | None = None
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def mean_rate(self) -> float:
        """Mean of :attr:`rates`; NaN where there are none."""
        return float(np.mean(list(self.rates.values()))) if self.rates else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


_Outcome = tuple[Array, int | None, dict[str, float]]
"""Logits (1, classes), exit, rates."""


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

    The first image runs once before it is timed, because a first run allocates memory.

    Args:
        bundle: The bundle or its folder.
        images: Paths of JPEG or PNG files.
        runtime: ``"onnxruntime"`` or ``"tensorrt"``.
        threads: Threads that compute, in ONNX Runtime.
        thresholds: Of a network that exits early: least confidence of every exit but the last; None for the bundle's.
        native: Of a network with masks, as for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.

    Raises:
        BundleError: The folder is no bundle.
        InputError: An image cannot be read.
        UsageError: Unknown runtime, a bundle of a larger batch, or thresholds that are missing or do not fit.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    if not images:
        raise UsageError("Give at least one image.")
    manifest = bundle.manifest
    # Every file is read before a session is opened: a missing one should cost no time.
    arrays = [load_image(path, manifest.preprocessing, manifest.input_size)[None] for path in images]
    results = []
    with ExitStack() as stack:
        if manifest.exits is not None:
            run = _staged(stack, bundle, runtime, threads, thresholds)
        else:
            if thresholds is not None:
                raise UsageError(f"{manifest.network.name} has no exits: leave the thresholds out.")
            run = _whole(stack, bundle, runtime, threads, native)
        run(arrays[0])
        for path, array in zip(images, arrays, strict=True):
            start = time.perf_counter()
            logits, number, rates = run(array)
            ms = 1e3 * (time.perf_counter() - start)
            label, confidence = int(logits[0].argmax()), float(confidences(logits)[0])
            results.append(Classification(os.fspath(path), label, confidence, ms, number, rates))
    return results


def _staged(
    stack: ExitStack, bundle: Bundle, runtime: str, threads: int, thresholds: Sequence[float] | None
) -> Callable[[Array], _Outcome]:
    session = stack.enter_context(open_staged(bundle, runtime, threads=threads, thresholds=thresholds))

    def run(image: Array) -> _Outcome:
        result = session.run(image)
        return result.logits, int(result.exits[0]), {}

    return run


def _whole(
    stack: ExitStack, bundle: Bundle, runtime: str, threads: int, native: str | os.PathLike[str]
) -> Callable[[Array], _Outcome]:
    manifest = bundle.manifest
    if manifest.batch != 1:
        raise UsageError(f"The bundle runs batches of {manifest.batch}, not single images. Export it with --batch 1.")
    session: Session
    if runtime == "onnxruntime":
        precision = manifest.cpu_precision
        session = OnnxRuntimeSession(bundle.model, threads=threads, native=native, precision=precision)
    else:
        session, _ = TensorRTSession.from_bundle(bundle)
    stack.enter_context(session)

    def run(image: Array) -> _Outcome:
        results = session.run({manifest.inputs[0].name: image})
        return results[LOGITS], None, {mask.name: float(results[mask.name].mean()) for mask in manifest.masks}

    return run
