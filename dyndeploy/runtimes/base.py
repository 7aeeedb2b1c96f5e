"""What every runtime offers: sessions that run one network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import TensorInfo
from dyndeploy.errors import DyndeployError, InputError, unknown_name
from dyndeploy.finite import not_finite, require_finite
from dyndeploy.runtimes.native import FALLBACK_BODIES

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

AUTO = "auto"
"""Asks for whatever is best of what is there, see :func:`dyndeploy.runtimes.choice.choose_runtime`."""

TENSORRT, TENSORRT_RTX, ONNXRUNTIME_CUDA, ONNXRUNTIME = "tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime"
RUNTIMES = {
    TENSORRT: "TensorRT",
    TENSORRT_RTX: "TensorRT-RTX",
    ONNXRUNTIME_CUDA: "ONNX Runtime's CUDA provider",
    ONNXRUNTIME: "ONNX Runtime on the CPU",
}
"""What can run a bundle, by the name that ``--runtime`` takes."""

ENGINE_RUNTIMES = (TENSORRT, TENSORRT_RTX)
"""Those that run an engine."""

ANY_SIZE = -1
"""Stands in a :class:`~dyndeploy.bundle.TensorInfo` shape for a size that the model leaves open."""


@dataclass(frozen=True)
class NativeUse:
    """Which code runs the dynamic operators.

    Attributes:
        path: The operator library, or None: the function bodies of standard operators run.
        sha256: Checksum of the library, or None.
        instruction_set: What the library computes with, e.g. ``"avx2"``; None where it does not say.
    """

    path: str | None = None
    sha256: str | None = None
    instruction_set: str | None = None

    @property
    def description(self) -> str:
        """The library with the start of its checksum and the instruction set, or ``"function bodies"``."""
        if self.path is None or self.sha256 is None:
            return FALLBACK_BODIES
        used = "" if self.instruction_set is None else f", {self.instruction_set}"
        return f"{self.path} (sha256 {self.sha256[:12]}{used})"


@dataclass(frozen=True)
class SessionInfo:
    """What a session runs on.

    Attributes:
        runtime: ``"onnxruntime"``, ``"tensorrt"``, ``"tensorrt_rtx"`` or ``"torch"``.
        version: Version of the runtime.
        threads: Threads that compute.
        provider: Execution provider or device.
        native: Which code runs the dynamic operators.
        precision: What the dynamic bottlenecks compute in.
    """

    runtime: str
    version: str
    threads: int
    provider: str
    native: NativeUse = NativeUse()
    precision: str = "fp32"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


class Session(ABC):
    """A loaded network. A context manager; it changes nothing outside itself.

    Attributes:
        inputs: What :meth:`run` wants.
        outputs: What :meth:`run` can give.
        info: Runtime, version, threads, operator library.
    """

    def __init__(self, inputs: Iterable[TensorInfo], outputs: Iterable[TensorInfo], info: SessionInfo) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.info = info
        self._closed = False

    def __enter__(self) -> Session:
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the session."""
        self.close()

    def close(self) -> None:
        """Free what the session holds; closing twice is allowed, running afterwards is not."""
        if not self._closed:
            self._closed = True
            self._release()

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None, *, finite: bool = True) -> dict[str, Array]:
        """Run the network once.

        Args:
            feeds: One array per input, by name.
            outputs: Names of the outputs to return; None returns all.
            finite: Refuse inputs and outputs that are not finite; verification, which reports them, does not.

        Returns:
            Output arrays by name.

        Raises:
            InputError: An input is missing, surplus, of the wrong shape or dtype, or not finite.
            UsageError: An output name is unknown.
            NotFiniteError: An output holds NaN or infinite values; the message names it.
            DyndeployError: The runtime failed.
        """
        self._require_open()
        results = self._run(self._checked_feeds(feeds, finite=finite), self._checked_outputs(outputs))
        if finite:
            self._require_finite(results)
        return results

    def bind(self, feeds: Feeds, outputs: Sequence[str] | Mapping[str, Array] | None = None) -> Callable[[], None]:
        """Prepare a run whose inputs and outputs stay in place: for timing, and for a chain of sessions.

        Every call reads the arrays of ``feeds`` where they are (the session keeps them alive), and writes its outputs
        to memory that is allocated once.

        Args:
            feeds: As for :meth:`run`; checked once, here.
            outputs: As for :meth:`run`; or an array for every output, by name, that the calls write to.

        Returns:
            A function that runs the network once and returns nothing.

        Raises:
            InputError: As for :meth:`run`, or an array does not fit its output.
        """
        self._require_open()
        into = outputs if isinstance(outputs, Mapping) else {}
        names = self._checked_outputs(None if outputs is None else list(outputs))
        infos = {info.name: info for info in self.outputs}
        for name, array in into.items():
            if checked_tensor(infos[name], array) is not array:
                raise InputError(f"The array for output '{name}' must be contiguous.")
        return self._bind(self._checked_feeds(feeds), {name: into.get(name) for name in names})

    @abstractmethod
    def _run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]: ...

    @abstractmethod
    def _bind(self, feeds: dict[str, Array], outputs: Mapping[str, Array | None]) -> Callable[[], None]:
        """As :meth:`bind`; an output with None goes to memory of the session's own."""

    @abstractmethod
    def _release(self) -> None:
        """Free what the session holds; called once."""

    def _require_open(self) -> None:
        if self._closed:
            raise DyndeployError("The session is closed. Open a new one.")

    def _require_finite(self, results: Mapping[str, Array]) -> None:
        """Raise ``NotFiniteError`` unless all outputs are finite."""
        precision = self.info.precision
        smaller = "" if precision == "fp32" else f", or the range of {precision} is too small for it"
        require_finite(
            results, f"A weight is damaged{smaller}: 'dyndeploy verify' on the bundle says where it comes from."
        )

    def _checked_outputs(self, outputs: Sequence[str] | None) -> list[str]:
        known = [info.name for info in self.outputs]
        for name in outputs or ():
            if name not in known:
                raise unknown_name("output", name, known)
        return known if outputs is None else list(outputs)

    def _checked_feeds(self, feeds: Feeds, *, finite: bool = True) -> dict[str, Array]:
        return checked_feeds(self.inputs, feeds, finite=finite)


def checked_feeds(inputs: Sequence[TensorInfo], feeds: Feeds, *, finite: bool = True) -> dict[str, Array]:
    """Return ``feeds`` in the order of ``inputs`` if they are those, each as :func:`checked_tensor` returns it.

    Raises:
        InputError: One is missing, unknown, or does not fit.
    """
    expected = {info.name: info for info in inputs}
    missing = [name for name in expected if name not in feeds]
    surplus = [name for name in feeds if name not in expected]
    if missing or surplus:
        raise InputError(
            f"The network takes the inputs {list(expected)}, but got {list(feeds)}: "
            + "; ".join(
                f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", surplus)) if names
            )
            + "."
        )
    return {name: checked_tensor(info, feeds[name], finite=finite) for name, info in expected.items()}


def checked_tensor(info: TensorInfo, value: Array, *, finite: bool = True) -> Array:
    """Return ``value`` contiguous if it fits ``info``, and is finite where that is asked for.

    Raises:
        InputError: Wrong type, dtype or shape, or NaN or infinite values; the message has what was expected
            and what was given.
    """
    if not isinstance(value, np.ndarray):
        raise InputError(f"Input '{info.name}' must be a NumPy array, not {type(value).__name__}.")
    expected = f"{info.dtype} {_shape_text(info.shape)}"
    fits = len(value.shape) == len(info.shape) and all(
        want in (ANY_SIZE, got) for want, got in zip(info.shape, value.shape, strict=True)
    )
    if not fits or value.dtype.name != info.dtype:
        raise InputError(
            f"Input '{info.name}': expected {expected}, got {value.dtype.name} {_shape_text(value.shape)}."
        )
    bad = not_finite(value) if finite else ""
    if bad:
        raise InputError(
            f"Input '{info.name}': expected finite numbers, got {bad}. Check the image and its preprocessing."
        )
    # NumPy would make an array of one element of a single number.
    return value if value.flags.c_contiguous else np.ascontiguousarray(value)


def _shape_text(shape: Sequence[int]) -> str:
    return "(" + ", ".join("any" if size == ANY_SIZE else str(size) for size in shape) + ")"
