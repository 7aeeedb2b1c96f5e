"""The installed TensorRT of this machine; what changed between versions stands in :mod:`.tensorrt_device`."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dyndeploy.bundle import TensorInfo
from dyndeploy.errors import BundleError, DyndeployError
from dyndeploy.runtimes import tensorrt_device, tensorrt_inspector
from dyndeploy.runtimes.base import TENSORRT, TENSORRT_RTX
from dyndeploy.runtimes.native import NativeLibrary
from dyndeploy.runtimes.tensorrt_ahead import rtx_package
from dyndeploy.runtimes.tensorrt_plan import BuildPlan

OLDEST = (8, 2)


class TensorRT:
    """An installed TensorRT.

    Args:
        module: The ``tensorrt`` package.

    Attributes:
        version: Numbers of the version whose functions it has: its own, or for TensorRT-RTX those of TensorRT 11.
    """

    def __init__(self, module: Any) -> None:
        self._trt = module
        self.version = tensorrt_device.interface_version(self.text)
        self._logger = module.Logger(module.Logger.WARNING)

    @classmethod
    def load(cls, runtime: str = TENSORRT) -> TensorRT:
        """Import TensorRT, or TensorRT-RTX.

        Args:
            runtime: One of :data:`~dyndeploy.runtimes.base.ENGINE_RUNTIMES`.

        Raises:
            DyndeployError: It is missing, cannot be loaded, or is older than 8.2.
        """
        if runtime == TENSORRT_RTX:
            return cls(_rtx_module())
        try:
            module = importlib.import_module("tensorrt")
        except (ImportError, OSError) as error:
            raise DyndeployError(
                f"TensorRT's Python package cannot be imported ({error}). On a Jetson it comes with JetPack "
                "(python3-libnvinfer); elsewhere install 'dyndeploy[tensorrt]'."
            ) from error
        api = cls(module)
        if api.version < OLDEST:
            raise DyndeployError(f"TensorRT {api.text} is too old: 8.2 is the first version that is supported.")
        return api

    @property
    def runtime(self) -> str:
        """Which of :data:`~dyndeploy.runtimes.base.ENGINE_RUNTIMES` it is."""
        return TENSORRT_RTX if self.text.startswith(tensorrt_device.RTX) else TENSORRT

    @property
    def text(self) -> str:
        """The version as written; ``"RTX 1.7.1.116"`` for TensorRT-RTX."""
        return tensorrt_device.version_text(self._trt)

    # ------------------------------------------------------------ plugins

    def creators(self) -> set[tuple[str, str]]:
        """Name and version of every registered plugin creator."""
        return tensorrt_device.creators(self._trt)

    def load_plugins(self, library: NativeLibrary, needed: Iterable[tuple[str, str]]) -> None:
        """Load a plugin library unless every needed creator is registered already.

        Raises:
            DyndeployError: The library cannot be loaded, e.g. because it was built for another TensorRT, or has none of
                the creators.
        """
        wanted = set(needed)
        if self.creators() >= wanted:
            return
        why = "it registers no plugins"
        # Opening the library registers its creators with every version. load_library would register them a second
        # time, and may unload what then is still registered; it is left to libraries that only offer their creators.
        try:
            ctypes.CDLL(str(library.path), mode=ctypes.RTLD_GLOBAL)
            if self.version >= (8, 6) and not self.creators() & wanted:
                self._trt.get_plugin_registry().load_library(str(library.path))
        except (OSError, RuntimeError) as error:
            why = str(error)
        if not self.creators() & wanted:
            raise DyndeployError(
                f"TensorRT {self.text} cannot use the plugin library {library.path}: {why}. Build it on this machine, "
                "against the TensorRT that is installed here."
            )

    # ------------------------------------------------------------ building

    def build(self, model: bytes, plan: BuildPlan, timing_cache: bytes = b"") -> tuple[bytes, bytes]:
        """Build an engine.

        Args:
            model: A serialised TensorRT copy; its plugins are loaded.
            plan: How.
            timing_cache: Timing cache of an earlier build on this machine, or empty.

        Returns:
            The serialised engine, and the timing cache afterwards.

        Raises:
            DyndeployError: The parser or the builder refused.
        """
        try:
            return tensorrt_device.build(self._trt, self._logger, model, plan.to_json(), timing_cache)
        except tensorrt_device.RefusedError as error:
            raise DyndeployError(f"{_sentence(error)} TensorRT's own messages stand above.") from error

    def read_back(self, engine: bytes, plan: BuildPlan) -> tuple[list[dict[str, Any]] | None, str]:
        """Ask the inspector about an engine that was just built, and hold its plugins against the plan.

        Returns:
            The layers as of :func:`dyndeploy.runtimes.tensorrt_inspector.read_inspection` (None where they cannot be
            read), and why the types of a plugin could not be read: empty where all were seen.

        Raises:
            DyndeployError: A plugin reads or writes other types than the plan says.
        """
        layers, wrong, note = tensorrt_inspector.read_back(self._trt, self._logger, engine, plan.to_json())
        if wrong:
            raise DyndeployError(f"{_sentence(tensorrt_inspector.refusal(wrong))}")
        return layers, note

    # ------------------------------------------------------------ running

    def engine(self, data: bytes, kernels: bytes = b"") -> Engine:
        """Deserialise an engine whose plugins are loaded.

        Args:
            data: The engine.
            kernels: What :meth:`Engine.kernels` gave in an earlier run of it; TensorRT-RTX takes its compiled kernels
                from there, and compiles anew what does not fit.

        Raises:
            BundleError: TensorRT refuses it.
        """
        runtime = self._trt.Runtime(self._logger)
        engine = runtime.deserialize_cuda_engine(data)
        context = cache = None
        taken = False
        if engine is not None and self.runtime == TENSORRT_RTX:
            context, cache, taken = _cached_context(engine, kernels)
        elif engine is not None:
            context = engine.create_execution_context()
        if context is None:
            raise BundleError(
                f"TensorRT {self.text} refuses the engine{self._diagnosis(runtime, data)}; its own messages stand "
                "above. Engines run only with the TensorRT version and on the device they were built with: build it "
                "again here."
            )
        return Engine(self, runtime, engine, context, cache, kernels_taken=taken)

    def _diagnosis(self, runtime: Any, data: bytes) -> str:
        """What TensorRT-RTX says is wrong with an engine, in brackets; others do not say."""
        known = getattr(self._trt, "EngineInvalidityDiagnostics", None)
        if known is None:
            return ""
        _, found = runtime.get_engine_validity(data)
        words = [name.lower().replace("_", " ") for name, bit in known.__members__.items() if int(found) & int(bit)]
        return f" ({', '.join(words)})" if words else ""

    @property
    def module(self) -> Any:
        """The ``tensorrt`` package."""
        return self._trt


def _sentence(error: Exception | str) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _rtx_module() -> Any:
    package = rtx_package()
    try:
        for folder in package.library_folders:
            # The bindings find by name what is loaded already.
            for path in sorted(folder.glob("lib*.so.1"), reverse=True):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        return importlib.import_module(package.module)
    except (ImportError, OSError) as error:
        raise DyndeployError(
            f"TensorRT-RTX cannot be loaded ({error}). Install it again: pip install --force-reinstall "
            "'dyndeploy[rtx]'."
        ) from error


def _cached_context(engine: Any, kernels: bytes) -> tuple[Any, Any, bool]:
    """A context that keeps what it compiles; also the cache, and whether it took what an earlier one had kept."""
    config = engine.create_runtime_config()
    cache = config.create_runtime_cache()
    taken = bool(kernels) and bool(cache.deserialize(kernels))
    config.set_runtime_cache(cache)
    return engine.create_execution_context(config), cache, taken


class Engine:
    """A deserialised engine with static shapes and its execution context.

    Attributes:
        inputs: Names, shapes and NumPy types of its inputs.
        outputs: The same of its outputs.
        kernels_taken: Whether it uses kernels that an earlier run compiled.
    """

    def __init__(
        self, api: TensorRT, runtime: Any, engine: Any, context: Any, cache: Any = None, *, kernels_taken: bool = False
    ) -> None:
        # The runtime must outlive its engines, and the cache its contexts.
        self._runtime, self._engine, self._cache, self._context = runtime, engine, cache, context
        self.kernels_taken = kernels_taken
        self._trt = api.module
        try:
            tensors = [
                (is_input, TensorInfo(name, shape, tensorrt_device.dtype_name(self._trt, dtype)))
                for name, is_input, shape, dtype in tensorrt_device.engine_tensors(self._trt, engine)
            ]
        except tensorrt_device.RefusedError as error:
            raise DyndeployError(_sentence(error)) from error
        self.inputs = tuple(info for is_input, info in tensors if is_input)
        self.outputs = tuple(info for is_input, info in tensors if not is_input)

    def enqueuer(self, addresses: Mapping[str, int]) -> Callable[[int], bool]:
        """Fix the device addresses of all inputs and outputs.

        Returns:
            A function that puts one run on a stream (given by its handle) and says whether that succeeded.
        """
        return tensorrt_device.enqueuer(self._trt, self._engine, self._context, addresses)

    def layer_times(self, addresses: Mapping[str, int], stream: Any, runs: int) -> list[tuple[str, float]]:
        """Fastest time of every layer in milliseconds; raises ``DyndeployError`` if the engine cannot be run."""
        try:
            return tensorrt_device.layer_times(self._trt, self._engine, addresses, stream, runs)
        except tensorrt_device.RefusedError as error:
            raise DyndeployError(_sentence(error)) from error

    def kernels(self) -> bytes:
        """The kernels that TensorRT-RTX has compiled for this GPU, to be kept; empty where there are none to keep."""
        return b"" if self._cache is None else bytes(memoryview(self._cache.serialize()))

    def close(self) -> None:
        """Free context, engine and runtime, in the order that TensorRT needs."""
        self._context = None
        self._cache = None
        self._engine = None
        self._runtime = None
