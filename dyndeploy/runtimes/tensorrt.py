"""Engines of TensorRT and TensorRT-RTX behind the interface of every session, with pycuda for memory and streams."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dyndeploy.bundle import Bundle, TensorInfo
from dyndeploy.errors import BundleError, DyndeployError
from dyndeploy.runtimes.base import TENSORRT, TENSORRT_RTX, Array, NativeUse, Session, SessionInfo
from dyndeploy.runtimes.cuda import CudaGraph, Gpu
from dyndeploy.runtimes.native import NativeLibrary
from dyndeploy.runtimes.tensorrt_api import TensorRT
from dyndeploy.runtimes.tensorrt_device import RTX
from dyndeploy.runtimes.tensorrt_engine import (
    EngineFile,
    EngineSettings,
    Progress,
    build_graph_engine,
    keep_data,
    kept_data,
    load_metadata,
    plugin_library,
    require_one_graph,
)
from dyndeploy.runtimes.tensorrt_rtx import build_rtx_engine

if TYPE_CHECKING:
    import onnx

KERNELS = ".kernels"
"""Ending of the file beside an engine of TensorRT-RTX that keeps what was compiled of it for the GPU."""

_LOG = logging.getLogger("dyndeploy.tensorrt")


class TensorRTSession(Session):
    """An engine on this machine's GPU.

    Device buffers and page-locked host buffers are allocated once. Where CUDA graphs work, a run is captured after
    its first execution and launched as a whole from then on; :attr:`graph_note` says why where it is not.

    Args:
        engine: An engine file with its metadata beside it, which say which of the two built it.
        library: Plugin library: ``"auto"``, a path, or a library that was found already.
        cuda_graph: Capture runs in a CUDA graph where possible.
        device: Index of the GPU.

    Attributes:
        gpu: What the engine runs on.
        graph_note: Empty while CUDA graphs are in use, else the reason.

    Raises:
        BundleError: The engine is damaged, or TensorRT refuses it.
        UsageError: No plugin library.
        DyndeployError: TensorRT, pycuda or a device is missing, or the library lacks a plugin.
    """

    def __init__(
        self,
        engine: str | os.PathLike[str],
        *,
        library: str | os.PathLike[str] | NativeLibrary = "auto",
        cuda_graph: bool = True,
        device: int = 0,
    ) -> None:
        path = Path(engine)
        plan = load_metadata(path)["built_from"]["plan"]
        api = TensorRT.load(TENSORRT_RTX if plan["tensorrt"].startswith(RTX) else TENSORRT)
        self._open(path, library, api, Gpu(device), cuda_graph=cuda_graph)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        settings: EngineSettings | None = None,
        *,
        device: int = 0,
        progress: Progress = lambda message: None,
    ) -> tuple[TensorRTSession, EngineFile]:
        """Build the bundle's engine here (or find it in the cache) and open it.

        Returns:
            The session, and the engine that it runs.

        Raises:
            UsageError: The bundle is no single engine; also as the other ways to open one.
        """
        require_one_graph(bundle, settings or EngineSettings())
        settings = (settings or EngineSettings()).of(bundle)
        model = bundle.load_static() if settings.static else bundle.load_model()
        return cls.from_graph(model, settings, device=device, progress=progress)

    @classmethod
    def from_graph(
        cls,
        model: onnx.ModelProto,
        settings: EngineSettings | None = None,
        *,
        device: int = 0,
        before: Sequence[TensorRTSession] = (),
        progress: Progress = lambda message: None,
    ) -> tuple[TensorRTSession, EngineFile]:
        """As :meth:`from_bundle`, for a graph outside a bundle.

        Args:
            model: The graph.
            settings: How the engine is built; None takes the defaults.
            device: Index of the GPU.
            before: Sessions whose outputs this one reads where they lie on the device, for its inputs of the same
                names; they stay open longer than this one. :meth:`execute` runs on them.
            progress: Called with a line at the start of each step.
        """
        settings = settings or EngineSettings()
        api = TensorRT.load(settings.runtime)

        def opened(*, anew: bool) -> tuple[TensorRTSession, EngineFile]:
            gpu, session = Gpu(device), cls.__new__(cls)
            try:
                if settings.runtime == TENSORRT_RTX:
                    built = build_rtx_engine(model, gpu.info, settings, progress=progress)
                else:
                    built = build_graph_engine(model, gpu.info, settings, api=api, progress=progress)
                library = built.library or "auto"
                try:
                    session._open(built.path, library, api, gpu, cuda_graph=built.plan.cuda_graph, before=before)
                except BundleError as error:
                    if anew or not built.cached:
                        raise
                    # Whole by its checksum, and still not what this machine reads.
                    _LOG.warning("dyndeploy: The engine %s cannot be used: %s It is built again.", built.path, error)
                    built.path.unlink(missing_ok=True)
                else:
                    return session, built
            except BaseException:
                gpu.close()
                raise
            return opened(anew=True)

        return opened(anew=False)

    def _open(
        self,
        path: Path,
        library: str | os.PathLike[str] | NativeLibrary,
        api: TensorRT,
        gpu: Gpu,
        *,
        cuda_graph: bool,
        before: Sequence[TensorRTSession] = (),
    ) -> None:
        try:
            plan = load_metadata(path)["built_from"]["plan"]
            needed = [(name, version) for name, version in plan["plugins"]]
            native = NativeUse()
            if needed:
                found = library if isinstance(library, NativeLibrary) else plugin_library(library)
                built_with = plan["library_sha256"]
                if found.sha256 != built_with:
                    _LOG.warning("the engine was built with another plugin library (sha256 %s)", built_with)
                api.load_plugins(found, needed)
                missing = sorted({name for name, version in needed} - {name for name, _ in api.creators()})
                if missing:
                    raise DyndeployError(
                        f"No plugin creator for {', '.join(missing)} in {found.path}: the engine cannot be read. "
                        "Build the library of this release of dyndeploy."
                    )
                native = NativeUse(str(found.path), found.sha256)
            # TensorRT-RTX compiles kernels for the GPU when an engine runs there: once, if they are kept.
            self._kernels = path.with_suffix(KERNELS)
            self._made_with = {"tensorrt": api.text, **gpu.info.to_json()}
            self._kept = kept_data(self._kernels, self._made_with) if api.runtime == TENSORRT_RTX else b""
            self._engine = api.engine(path.read_bytes(), self._kept)
            if self._kept and not self._engine.kernels_taken:
                _LOG.warning("dyndeploy: The cache %s is refused by TensorRT-RTX. A new one is begun.", self._kernels)
            self._gpu = gpu
            self.gpu = gpu.info
            self._stream = gpu.stream()
            tensors = (*self._engine.inputs, *self._engine.outputs)
            given = {info.name: session._device[info.name] for session in before for info in session.outputs}
            self._linked = {info.name for info in self._engine.inputs} & set(given)
            self._device: dict[str, Any] = {
                info.name: given[info.name] if info.name in self._linked else gpu.allocate(_bytes(info))
                for info in tensors
            }
            self._host = {info.name: gpu.pinned(info.shape, info.dtype) for info in tensors}
            self._enqueue = self._engine.enqueuer({name: int(memory) for name, memory in self._device.items()})
        except BaseException:
            gpu.close()
            raise
        self._graph: CudaGraph | None = None
        self._loaded: Mapping[str, Array] | None = None
        self.graph_note = "the first run is not captured" if cuda_graph else "switched off"
        self._capture_next = cuda_graph
        super().__init__(
            self._engine.inputs,
            self._engine.outputs,
            SessionInfo(
                api.runtime,
                api.text,
                1,
                f"{gpu.info.name}, compute {gpu.info.compute_capability}",
                native,
                plan["precision"],
            ),
        )

    def __enter__(self) -> TensorRTSession:
        """Return the session."""
        return self

    def timed_run(self, feeds: Mapping[str, Array]) -> Callable[[], float]:
        """Prepare runs that are timed on the device.

        Args:
            feeds: As for :meth:`run`; checked once, here.

        Returns:
            A function that runs the network once on these inputs and returns the milliseconds between two events
            around the run. Inputs are uploaded before the first event, and only where another run came between.
        """
        self._require_open()
        checked = self._checked_feeds(feeds)

        def call() -> float:
            with _clear_errors():
                self._load(checked)
                return self._gpu.timed(self._execute, self._stream, 1)[0]

        return call

    def layer_times(self, feeds: Mapping[str, Array], runs: int) -> list[tuple[str, float]]:
        """Fastest time of every layer of the engine.

        Args:
            feeds: As for :meth:`run`.
            runs: Runs to take the fastest of.

        Returns:
            Names of layers with milliseconds.
        """
        self._require_open()
        with _clear_errors():
            self._load(self._checked_feeds(feeds))
            self._stream.synchronize()
            addresses = {name: int(memory) for name, memory in self._device.items()}
            return self._engine.layer_times(addresses, self._stream, runs)

    def _load(self, feeds: Mapping[str, Array]) -> None:
        """Upload inputs, unless they are those that lie on the device already."""
        if self._loaded is not feeds:
            self._upload(feeds)
            self._loaded = feeds

    def _upload(self, feeds: Mapping[str, Array]) -> None:
        self._loaded = None
        for name, array in feeds.items():
            np.copyto(self._host[name], array)
            self._gpu.upload(self._device[name], self._host[name], self._stream)

    def _run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self.execute(outputs, feeds)
        return {name: self._host[name].copy() for name in outputs}

    def _bind(self, feeds: dict[str, Array], outputs: Mapping[str, Array | None]) -> Callable[[], None]:
        def call() -> None:
            self.execute(outputs, feeds)
            for name, array in outputs.items():
                if array is not None:
                    np.copyto(array, self._host[name])

        return call

    def execute(self, outputs: Iterable[str], feeds: Mapping[str, Array] | None = None) -> None:
        """Run on what lies on the device, and wait.

        Args:
            outputs: Which outputs to bring to the host (see :meth:`read`); the others stay on the device.
            feeds: Inputs to upload first, unchecked; the others are what a session before this one, or the last run,
                left there.
        """
        with _clear_errors():
            self._upload(feeds or {})
            self._execute()
            self._download(outputs)

    def read(self, name: str) -> Array:
        """Bring an output of the last run to the host; the array is overwritten by the next run."""
        with _clear_errors():
            self._download((name,))
        return self._host[name]

    def host(self, name: str) -> Array:
        """The host's copy of an output that :meth:`execute` brought there; always the same array."""
        return self._host[name]

    def _download(self, names: Iterable[str]) -> None:
        for name in names:
            self._gpu.download(self._host[name], self._device[name], self._stream)
        self._stream.synchronize()

    def _execute(self) -> None:
        """Put one run on the stream."""
        if self._graph is not None:
            self._graph.launch()
            return
        self._enqueue_once()
        if self._capture_next:
            # Only a second run can be captured: the first may allocate.
            self._capture_next = False
            self._stream.synchronize()
            try:
                self._graph = CudaGraph(self._enqueue_once, self._stream)
                self.graph_note = ""
            except DyndeployError as error:
                self.graph_note = str(error)
                _LOG.info("running without a CUDA graph: %s", error)

    def _enqueue_once(self) -> None:
        if not self._enqueue(int(self._stream.handle)):
            raise DyndeployError("TensorRT could not enqueue the run; its own messages stand above.")

    def _release(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        compiled = self._engine.kernels()
        if compiled and compiled != self._kept:
            keep_data(self._kernels, compiled, self._made_with)
        self._engine.close()
        for name, memory in self._device.items():
            if name not in self._linked:
                memory.free()
        self._device.clear()
        self._host.clear()
        # Freed while the context is current.
        self._stream = None
        self._gpu.close()


def _bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * np.dtype(info.dtype).itemsize


@contextlib.contextmanager
def _clear_errors() -> Any:
    try:
        yield
    except DyndeployError:
        raise
    except Exception as error:
        raise DyndeployError(f"TensorRT failed: {error}") from error
