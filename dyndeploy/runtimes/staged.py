"""Early exits that really exit: the stages of a network one after the other, until one is confident enough.

Source: Han et al., Dynamic Perceiver for Efficient Visual Recognition, ICCV 2023, section 3.4: an image leaves at the
first exit whose largest softmax probability reaches the exit's threshold.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import CONFIDENCE, LOGITS, Bundle, StageInfo, TensorInfo
from dyndeploy.errors import DyndeployError, InputError, UsageError, unknown_name
from dyndeploy.finite import require_finite
from dyndeploy.runtimes.base import ANY_SIZE, ENGINE_RUNTIMES, RUNTIMES, Array, Session, SessionInfo, checked_tensor
from dyndeploy.runtimes.onnxruntime import PROVIDER_OF, OnnxRuntimeSession
from dyndeploy.runtimes.tensorrt import TensorRTSession
from dyndeploy.runtimes.tensorrt_engine import EngineSettings, require_fixed_batch

_ADVICE = "A weight of this exit's stage, or of one before it, is damaged: verify the bundle."

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StagedResult:
    """What :meth:`StagedSession.run` returns, one row per image in the order of the images.

    Attributes:
        logits: Of the exit that was taken, (N, classes).
        exits: Its number in the network, from 1, (N,).
        confidences: Largest softmax probability there, (N,).
    """

    logits: Floats
    exits: npt.NDArray[np.int64]
    confidences: Floats


def first_reached(confident: npt.ArrayLike, thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """Index of the first stage whose confidence reaches its threshold.

    Args:
        confident: Confidences (stages, N).
        thresholds: One per stage; the last is ``-inf``.

    Returns:
        Stages from 0, (N,).
    """
    reached = np.asarray(confident, np.float32) >= np.asarray(thresholds, np.float32)[:, None]
    result: npt.NDArray[np.int64] = reached.argmax(0)
    return result


class _Chain(ABC):
    """The stages on one image; every stage reads what the ones before it left in place."""

    @abstractmethod
    def start(self, image: Array) -> None:
        """Take an image (1, 3, H, W)."""

    @abstractmethod
    def run(self, stage: int) -> float:
        """Run a stage and return its confidence: all that the host reads of it."""

    @abstractmethod
    def logits(self, stage: int) -> Array:
        """Logits (1, classes) of a stage that ran; overwritten by the next image."""


class _HostChain(_Chain):
    """Stages whose tensors lie in host memory: bound once, nothing is copied between them."""

    def __init__(self, stages: Sequence[StageInfo], sessions: Sequence[Session]) -> None:
        self._image = _single(stages[0].inputs[0])
        tensors = {stages[0].inputs[0].name: self._image}
        self._calls: list[Callable[[], None]] = []
        self._logits: list[Array] = []
        self._confidences: list[Array] = []
        for stage, session in zip(stages, sessions, strict=True):
            outputs = {info.name: _single(info) for info in stage.outputs}
            self._calls.append(session.bind({info.name: tensors[info.name] for info in stage.inputs}, outputs))
            self._logits.append(outputs.pop(LOGITS))
            self._confidences.append(outputs.pop(CONFIDENCE))
            tensors |= outputs

    def start(self, image: Array) -> None:
        np.copyto(self._image, image)

    def run(self, stage: int) -> float:
        self._calls[stage]()
        return float(self._confidences[stage][0])

    def logits(self, stage: int) -> Array:
        return self._logits[stage]


class _DeviceChain(_Chain):
    """Engines whose tensors stay on the device: a stage's inputs are the buffers that the ones before it wrote."""

    def __init__(self, stages: Sequence[StageInfo], sessions: Sequence[TensorRTSession]) -> None:
        self._sessions = sessions
        self._input = stages[0].inputs[0].name
        self._image: dict[str, Array] = {}

    def start(self, image: Array) -> None:
        self._image = {self._input: image}

    def run(self, stage: int) -> float:
        session = self._sessions[stage]
        session.execute((CONFIDENCE,), None if stage else self._image)
        return float(session.host(CONFIDENCE)[0])

    def logits(self, stage: int) -> Array:
        return self._sessions[stage].read(LOGITS)


def _single(info: TensorInfo) -> Array:
    """An array for one image."""
    return np.zeros((1, *info.shape[1:]), info.dtype)


class StagedSession:
    """The stages of a bundle, opened by :func:`open_staged`. A context manager.

    Attributes:
        bundle: What runs.
        info: Runtime, version, threads.
        thresholds: Least confidence of every stage (the last is ``-inf``), or None.
        note: What a reader of timings should know, e.g. that the stages could not share a thread pool; else empty.
    """

    def __init__(
        self, bundle: Bundle, sessions: Sequence[Session], thresholds: Sequence[float] | None, note: str = ""
    ) -> None:
        self.bundle = bundle
        self.info: SessionInfo = sessions[0].info
        self.thresholds = None if thresholds is None else _float32(thresholds)
        self.note = note
        self._stages = bundle.exits.stages
        self._sessions: tuple[Session, ...] = tuple(sessions)
        # With any number of images per run there is always a run of one.
        self._batch = None if bundle.exits.dynamic_batch else bundle.manifest.batch
        self._input = TensorInfo(self._stages[0].inputs[0].name, (ANY_SIZE, 3, *bundle.manifest.images()[1]), "float32")
        self._chain = self._open_chain() if self._batch in (None, 1) else None

    def _open_chain(self) -> _Chain:
        engines = [session for session in self._sessions if isinstance(session, TensorRTSession)]
        if len(engines) == len(self._sessions):
            return _DeviceChain(self._stages, engines)
        return _HostChain(self._stages, self._sessions)

    def __enter__(self) -> StagedSession:
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the session."""
        self.close()

    def close(self) -> None:
        """Free what the stages hold; closing twice is allowed, running afterwards is not."""
        self._chain = None
        sessions, self._sessions = self._sessions, ()
        # A stage may read memory of the ones before it.
        for session in reversed(sessions):
            session.close()

    def run(self, images: Array) -> StagedResult:
        """Classify images, each as far as it needs.

        Images that leave are taken out between the stages, so that later stages compute on the others only.

        Args:
            images: (N, 3, H, W), float32, for any N.

        Raises:
            UsageError: There are no thresholds.
            InputError: The images do not fit, or hold NaN or infinite values.
            NotFiniteError: The logits or the confidence of an exit on the way are not finite.
            DyndeployError: The runtime failed, or the session is closed.
        """
        thresholds = self._require_thresholds()
        images = self._checked(images)
        run = self._run_single if self._chain is not None and (len(images) == 1 or self._batch == 1) else self._run_many
        parts = [run(chunk, thresholds) for chunk in self._chunks(images)]
        return StagedResult(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.exits for part in parts]),
            np.concatenate([part.confidences for part in parts]),
        )

    def run_all(self, images: Array, *, finite: bool = True) -> tuple[Floats, ...]:
        """Run every stage on every image, whatever the confidences: for calibration.

        Args:
            images: (N, 3, H, W), float32, for any N.
            finite: As for :meth:`dyndeploy.runtimes.Session.run`.

        Returns:
            Logits (N, classes) of every stage.

        Raises:
            NotFiniteError: What a stage gives is not finite; the message names the exit.
        """
        columns: list[list[Array]] = [[] for _ in self._stages]
        for chunk in self._chunks(self._checked(images)):
            tensors: dict[str, Array] = {self._input.name: chunk}
            for index, column in enumerate(columns):
                results = self._run_stage(index, tensors, finite=finite)
                column.append(results[LOGITS])
                tensors |= results
        return tuple(np.concatenate(column) for column in columns)

    def bind(self, image: Array, *, stage: int | None = None) -> Callable[[], int]:
        """Prepare runs of one image, for timing.

        Args:
            image: (1, 3, H, W).
            stage: Leave at this stage (from 0) whatever the confidences, which are read and compared all the same;
                None lets the thresholds decide.

        Returns:
            A function that runs the image once and returns the stage where it left.

        Raises:
            UsageError: The bundle runs whole batches only, or there are no thresholds.
        """
        self._require_open()
        chain = self._chain
        if chain is None:
            raise UsageError(f"The bundle runs batches of {self._batch}: single images cannot be bound.")
        if stage is None:
            thresholds = self._require_thresholds()
        elif 0 <= stage < len(self._stages):
            thresholds = (math.inf,) * stage + (-math.inf,)
        else:
            raise UsageError(f"Stage {stage} is not among the {len(self._stages)} stages (from 0).")
        image = self._checked(image)
        if len(image) != 1:
            raise InputError(f"One image is bound at a time, not {len(image)}.")

        def call() -> int:
            chain.start(image)
            return self._leave(chain, thresholds)[0]

        return call

    # ------------------------------------------------------------ one image, many images

    def _run_single(self, images: Array, thresholds: Sequence[float]) -> StagedResult:
        assert self._chain is not None
        self._chain.start(images)
        stage, confidence = self._leave(self._chain, thresholds)
        logits = self._chain.logits(stage).copy()
        self._require_finite(stage, {LOGITS: logits})
        return StagedResult(
            logits,
            np.array([self._stages[stage].exit], np.int64),
            np.array([confidence], np.float32),
        )

    def _run_many(self, images: Array, thresholds: Sequence[float]) -> StagedResult:
        count, classes = len(images), self._stages[0].outputs[0].shape[1]
        result = StagedResult(
            np.empty((count, classes), np.float32), np.empty(count, np.int64), np.empty(count, np.float32)
        )
        waiting = np.arange(count)
        tensors: dict[str, Array] = {self._input.name: images}
        for index, stage in enumerate(self._stages):
            results = self._run_stage(index, tensors)
            leaves = results[CONFIDENCE] >= np.float32(thresholds[index])
            rows = waiting[leaves]
            result.logits[rows] = results[LOGITS][leaves]
            result.exits[rows] = stage.exit
            result.confidences[rows] = results[CONFIDENCE][leaves]
            if leaves.all():
                return result
            waiting = waiting[~leaves]
            tensors |= results
            needed = {info.name for later in self._stages[index + 1 :] for info in later.inputs}
            tensors = {name: tensors[name] for name in needed & set(tensors)}
            if leaves.any():
                tensors = {name: value[~leaves] for name, value in tensors.items()}
        raise AssertionError("the last threshold is minus infinity")

    def _leave(self, chain: _Chain, thresholds: Sequence[float]) -> tuple[int, float]:
        """Run stages until a threshold is reached; returns the stage and its confidence."""
        for stage, threshold in enumerate(thresholds):
            confidence = chain.run(stage)
            # Not a number reaches no threshold: the next exit would answer in silence.
            if not math.isfinite(confidence):
                self._require_finite(stage, {LOGITS: chain.logits(stage), CONFIDENCE: np.array([confidence])})
            if confidence >= threshold:
                return stage, confidence
        raise AssertionError("the last threshold is minus infinity")

    def _require_finite(self, stage: int, results: Mapping[str, Array]) -> None:
        require_finite({f"exit {self._stages[stage].exit}: {name}": value for name, value in results.items()}, _ADVICE)

    def _run_stage(self, index: int, tensors: Mapping[str, Array], *, finite: bool = True) -> dict[str, Array]:
        inputs = self._stages[index].inputs
        count = len(tensors[inputs[0].name])
        feeds = {info.name: filled(tensors[info.name], self._batch) for info in inputs}
        results = self._sessions[index].run(feeds, finite=False)
        if finite:
            self._require_finite(index, results)
        return results if self._batch is None else {name: value[:count] for name, value in results.items()}

    def _chunks(self, images: Array) -> list[Array]:
        size = self._batch or len(images)
        return [images[start : start + size] for start in range(0, len(images), size)]

    def _checked(self, images: Array) -> Array:
        self._require_open()
        images = checked_tensor(self._input, images)
        if not len(images):
            raise InputError("There are no images: give at least one.")
        return images

    def _require_open(self) -> None:
        if not self._sessions:
            raise DyndeployError("The session is closed. Open a new one.")

    def _require_thresholds(self) -> tuple[float, ...]:
        if self.thresholds is None:
            raise UsageError(
                f"The bundle {self.bundle.path} holds no exit thresholds for this precision. Find them with "
                f"'dyndeploy calibrate {self.bundle.path} --data DIR', or give thresholds."
            )
        return self.thresholds


def filled(value: Array, batch: int | None) -> Array:
    """The rows of ``value``, the last one repeated up to a static batch size."""
    if batch is None or len(value) == batch:
        return value
    return np.concatenate([value, np.repeat(value[-1:], batch - len(value), axis=0)])


def _float32(thresholds: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(np.float32(value)) for value in thresholds)


def stage_precision(bundle: Bundle, runtime: str, precision: str | None = None) -> str:
    """What the stages of a bundle compute in.

    Args:
        bundle: A staged bundle.
        runtime: One of :data:`~dyndeploy.runtimes.base.RUNTIMES`.
        precision: What was asked for; None for the bundle's. ONNX Runtime computes in what the graphs are written in
            (FP32, or INT8), whatever the bundle's engines compute in.

    Raises:
        UsageError: The runtime is unknown, or does not compute in the precision that was asked for.
    """
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    if runtime in ENGINE_RUNTIMES:
        return precision or bundle.manifest.precision
    computed = bundle.manifest.graph_precision
    if precision not in (None, computed):
        raise UsageError(
            f"ONNX Runtime computes the stages in {computed}, not in {precision}: confidences are rounded otherwise "
            "there, and thresholds of one precision do not hold for another. Use --runtime tensorrt on the device."
        )
    return computed


def chosen_thresholds(bundle: Bundle, thresholds: Sequence[float] | None, precision: str) -> tuple[float, ...] | None:
    """Thresholds of every stage: those given, else the bundle's for a precision, else None.

    Args:
        bundle: A staged bundle.
        thresholds: One number per stage, or for all stages but the last.
        precision: What the stages compute in.

    Raises:
        UsageError: Thresholds that do not fit the stages.
    """
    exits = bundle.exits
    if thresholds is None:
        stored = exits.thresholds.get(precision)
        return None if stored is None else stored.values
    values = tuple(float(value) for value in thresholds)
    if len(values) == len(exits.stages) - 1:
        values = (*values, -math.inf)
    exits.check_thresholds(values)
    return values


def open_staged(
    bundle: Bundle | str | os.PathLike[str],
    runtime: str = "onnxruntime",
    *,
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    precision: str | None = None,
    settings: EngineSettings | None = None,
    device: int = 0,
    native: str | os.PathLike[str] = "auto",
) -> StagedSession:
    """Open the stages of a bundle.

    Args:
        bundle: The bundle or its folder.
        runtime: One of :data:`~dyndeploy.runtimes.base.RUNTIMES`: ONNX Runtime has all stages on one thread pool, the
            others have one engine per stage.
        threads: Threads that compute, in ONNX Runtime.
        thresholds: One number per stage, or for all but the last, which always takes; None takes the bundle's for the
            precision. Without either, :meth:`StagedSession.run_all` works and :meth:`StagedSession.run` does not.
        precision: See :func:`stage_precision`.
        settings: How engines are built.
        device: Index of the GPU.
        native: Of stages with dynamic operators, as for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.

    Raises:
        BundleError: The folder is no bundle, or a stage cannot be loaded.
        UsageError: The network has no exits, the runtime is unknown or does not compute in the precision, or thresholds
            do not fit.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    precision = stage_precision(bundle, runtime, precision)
    values = chosen_thresholds(bundle, thresholds, precision)
    with ExitStack() as stack:
        opened: list[Session] = []
        note = ""
        if runtime not in ENGINE_RUNTIMES:
            native = native if bundle.manifest.operators else "off"
            options: dict[str, Any] = {"threads": threads, "native": native, "provider": PROVIDER_OF[runtime]}
            options["precision"] = precision
            for path in bundle.stages:
                session = stack.enter_context(OnnxRuntimeSession(path, **options, shared=True))
                note = session.pool_note and f"Every stage has threads of its own: {session.pool_note}."
                opened.append(session)
        else:
            require_fixed_batch(bundle)
            settings = replace((settings or EngineSettings(precision=precision)).of(bundle), runtime=runtime)
            engines: list[TensorRTSession] = []
            for model in bundle.load_stages():
                engine, _ = TensorRTSession.from_graph(model, settings, device=device, before=engines)
                engines.append(stack.enter_context(engine))
            opened = list(engines)
        session_of_stages = StagedSession(bundle, opened, values, note)
        stack.pop_all()
    return session_of_stages
