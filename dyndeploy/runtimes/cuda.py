"""The GPU as a runtime needs it, through pycuda: the package that JetPack users have beside TensorRT."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import DyndeployError

_CAPTURE_THREAD_LOCAL = 1


@dataclass(frozen=True)
class GpuInfo:
    """What an engine depends on besides TensorRT.

    Attributes:
        name: Of the device.
        compute_capability: E.g. ``"5.3"``.
        cuda: CUDA version that pycuda was built with.
        driver: CUDA version that the driver speaks.
    """

    name: str
    compute_capability: str
    cuda: str
    driver: str

    def to_json(self) -> dict[str, str]:
        """Plain JSON types."""
        return asdict(self)


class Gpu:
    """A device and its primary context; a context manager that leaves no context behind.

    Args:
        index: Which device.

    Raises:
        DyndeployError: pycuda or a device is missing.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            self._driver: Any = importlib.import_module("pycuda.driver")
            self._driver.init()
            device = self._driver.Device(index)
            self._context: Any = device.retain_primary_context()
        except (ImportError, OSError) as error:
            raise DyndeployError(
                f"pycuda cannot be imported ({error}). Install 'dyndeploy[tensorrt]'; on a Jetson it needs the CUDA "
                "toolkit's headers (pip install pycuda)."
            ) from error
        except Exception as error:
            raise DyndeployError(f"No CUDA device can be used: {error}. Is the driver installed?") from error
        self._context.push()
        major, minor = device.compute_capability()
        driver = self._driver.get_driver_version()
        self.info = GpuInfo(
            name=str(device.name()),
            compute_capability=f"{major}.{minor}",
            cuda=".".join(map(str, self._driver.get_version())),
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
        )

    def __enter__(self) -> Gpu:
        """Return the device."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the context."""
        self.close()

    def close(self) -> None:
        """Leave the context; closing twice is allowed."""
        if self._context is not None:
            context, self._context = self._context, None
            context.pop()
            context.detach()

    def stream(self) -> Any:
        """A new stream."""
        return self._driver.Stream()

    def pinned(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Page-locked host memory, which copies at full speed and asynchronously."""
        array: npt.NDArray[Any] = self._driver.pagelocked_empty(shape, np.dtype(dtype))
        return array

    def allocate(self, size: int) -> Any:
        """Device memory; ``int()`` of it is its address."""
        return self._driver.mem_alloc(max(1, size))

    def upload(self, device: Any, host: npt.NDArray[Any], stream: Any) -> None:
        """Copy to the device, on the stream."""
        self._driver.memcpy_htod_async(device, host, stream)

    def download(self, host: npt.NDArray[Any], device: Any, stream: Any) -> None:
        """Copy to the host, on the stream."""
        self._driver.memcpy_dtoh_async(host, device, stream)

    def timed(self, enqueue: Callable[[], None], stream: Any, runs: int) -> list[float]:
        """Milliseconds of each run between two events on the stream."""
        times = []
        start, stop = self._driver.Event(), self._driver.Event()
        for _ in range(runs):
            start.record(stream)
            enqueue()
            stop.record(stream)
            stop.synchronize()
            times.append(float(start.time_till(stop)))
        return times


class CudaGraph:
    """A captured run, launched as a whole.

    pycuda has no graphs, so the driver library is called itself; it is there wherever pycuda works.

    Args:
        enqueue: Puts the run on the stream; has run once before, so that nothing is allocated lazily any more.
        stream: pycuda stream.
        library: The driver library; None loads the system's.

    Raises:
        DyndeployError: The run cannot be captured (then it still can be enqueued).
    """

    def __init__(self, enqueue: Callable[[], None], stream: Any, library: Any = None) -> None:
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1") if library is None else library
            instantiate = getattr(self._cuda, "cuGraphInstantiateWithFlags", None)
        except OSError as error:
            raise DyndeployError(f"CUDA graphs are not available: {error}.") from error
        self._stream = ctypes.c_void_p(int(stream.handle))
        self._graph, self._executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._check("begin capture", self._cuda.cuStreamBeginCapture_v2(self._stream, _CAPTURE_THREAD_LOCAL))
        try:
            enqueue()
        finally:
            # Always ended: a stream that still captures refuses everything else.
            ended = self._cuda.cuStreamEndCapture(self._stream, ctypes.byref(self._graph))
        self._check("end capture", ended)
        if instantiate is not None:
            result = instantiate(ctypes.byref(self._executable), self._graph, ctypes.c_ulonglong(0))
        else:  # CUDA 10.2 to 11.3: a node and a log that nobody asks for
            result = self._cuda.cuGraphInstantiate(
                ctypes.byref(self._executable), self._graph, None, None, ctypes.c_size_t(0)
            )
        self._check("instantiate", result)

    def launch(self) -> None:
        """Put the captured run on its stream."""
        self._check("launch", self._cuda.cuGraphLaunch(self._executable, self._stream))

    def close(self) -> None:
        """Free the graph; closing twice is allowed."""
        if self._executable:
            self._cuda.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()
        if self._graph:
            self._cuda.cuGraphDestroy(self._graph)
            self._graph = ctypes.c_void_p()

    def _check(self, step: str, result: int) -> None:
        if result:
            self.close()
            raise DyndeployError(f"CUDA graphs are not available: '{step}' failed with CUDA error {result}.")
