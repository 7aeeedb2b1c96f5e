"""The GPU as a runtime needs it, through pycuda: the package that JetPack users have beside TensorRT.

Which GPUs there are is asked of the driver itself: that needs no package.
"""

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
from dyndeploy.runtimes import tensorrt_device

_CAPABILITY = (75, 76)
"""``CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`` and ``_MINOR`` of cuda.h."""


@dataclass(frozen=True)
class GpuInfo:
    """What an engine depends on besides TensorRT.

    Attributes:
        name: The GPU's own name.
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


@dataclass(frozen=True)
class FoundGpu:
    """A GPU of this machine.

    Attributes:
        name: Its own name, e.g. ``"NVIDIA GeForce RTX 4090"``.
        compute_capability: E.g. ``"8.9"``.
    """

    name: str
    compute_capability: str

    def __str__(self) -> str:
        """E.g. ``"NVIDIA GeForce RTX 4090 (compute capability 8.9)"``."""
        return f"{self.name} (compute capability {self.compute_capability})"


def find_gpus(library: Any = None) -> tuple[FoundGpu, ...]:
    """The GPUs that CUDA's driver offers to this process, in its order; no context is made.

    Args:
        library: The driver's library; None loads the system's.

    Raises:
        DyndeployError: There is none; the message is why.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1") if library is None else library
    except OSError:
        raise DyndeployError("no NVIDIA GPU was found (the driver's libcuda.so.1 is not installed)") from None

    def call(name: str, *arguments: Any) -> None:
        result = getattr(cuda, name)(*arguments)
        if result:
            raise DyndeployError(f"no NVIDIA GPU was found ({name} of the driver failed with CUDA error {result})")

    def number(name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        call(name, ctypes.byref(value), *arguments)
        return value.value

    call("cuInit", 0)
    found = []
    for index in range(number("cuDeviceGetCount")):
        device = number("cuDeviceGet", index)
        text = ctypes.create_string_buffer(256)
        call("cuDeviceGetName", text, len(text), device)
        major, minor = (number("cuDeviceGetAttribute", each, device) for each in _CAPABILITY)
        found.append(FoundGpu(text.value.decode("utf-8", "replace"), f"{major}.{minor}"))
    if not found:
        raise DyndeployError("no NVIDIA GPU was found (the driver offers none to this process)")
    return tuple(found)


def find_gpu(index: int = 0) -> FoundGpu:
    """One of :func:`find_gpus` by its index; raises ``DyndeployError`` where there is none."""
    found = find_gpus()
    if index >= len(found):
        raise DyndeployError(f"no NVIDIA GPU {index} was found (this process sees {len(found)})")
    return found[index]


def require_pycuda() -> Any:
    """The module ``pycuda.driver``; raises ``DyndeployError`` where it cannot be imported."""
    try:
        return importlib.import_module("pycuda.driver")
    except (ImportError, OSError) as error:
        raise DyndeployError(
            f"pycuda cannot be imported ({error}). Install it with 'pip install pycuda', which needs the CUDA toolkit "
            "(nvcc and headers)."
        ) from error


class Gpu:
    """A device and its primary context; a context manager that leaves no context behind.

    Args:
        index: Which device.

    Raises:
        DyndeployError: pycuda or a device is missing.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = require_pycuda()
        try:
            self._driver.init()
            device = self._driver.Device(index)
            self._context: Any = device.retain_primary_context()
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


class CudaGraph(tensorrt_device.CudaGraph):
    """A captured run, launched as a whole; raises ``DyndeployError`` where that is impossible."""

    refused = DyndeployError
