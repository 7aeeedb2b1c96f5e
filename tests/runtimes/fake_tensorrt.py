"""A ``tensorrt`` and a ``pycuda`` without a GPU, per version of TensorRT. Test code.

The classes carry exactly those names that the Python bindings of the version define (a test compares them with names
recorded from the real packages), so that asking for a name of another version is an AttributeError, as it would be on
a board. What an engine computes is computed for real, in NumPy: an "engine" is the graph that the parser was given.
"""

from __future__ import annotations

import ctypes
import enum
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dyndeploy.graphs.tensorrt import HALF_ONLY
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.runtimes import cuda, tensorrt_ahead, tensorrt_api, tensorrt_rtx
from dyndeploy.runtimes.cuda import FoundGpu
from dyndeploy.runtimes.native import NativeLibrary
from dyndeploy.runtimes.tensorrt_layers import EngineLayers
from dyndeploy.runtimes.tensorrt_plan import BuildPlan
from tests.remote.fakes.inspection import inspection
from tests.runtimes.tensorrt_reference import evaluate

PLUGINS = {name: spec for name, spec in OPERATORS.items() if "tensorrt" in spec.kernels}
"""Operators that have a plugin."""

LIBRARY = "libdyndeploy_tensorrt.so"
VERSIONS = ("8.2.1.8", "8.5.3.1", "8.6.1.6", "10.3.0", "11.4.0.106")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT8 = "int8"
    INT32 = "int32"
    BOOL = "bool"


class ILogger:
    class Severity(enum.IntEnum):
        WARNING = 2

    def __init__(self) -> None:
        self.ready = True


class Logger(ILogger):
    WARNING = 2

    def __init__(self, severity: int = 2) -> None:
        self.severity = severity


class Creator:
    def __init__(self, name: str) -> None:
        self.name, self.plugin_version, self.plugin_namespace = name, "1", ""


RTX_VERSION = "1.7.1.116"


class World:
    """What the fake modules share: registry, what was asked of the builder, memory of the device.

    Args:
        version: Of TensorRT; or of TensorRT-RTX, which has the names of 11.
        rtx: Whether it is that.
    """

    def __init__(self, version: str, *, rtx: bool = False) -> None:
        self.version, self.rtx = version, rtx
        self.gpu = FoundGpu("Fake Nano", "5.3")
        self.kernels: list[bytes] = []  # what contexts of TensorRT-RTX were given
        self.registered: list[Creator] = []
        self.library_operators = list(PLUGINS)  # what the plugin library registers when it is loaded
        self.loads: list[tuple[str, str]] = []
        self.builds: list[dict[str, Any]] = []
        self.memory: dict[int, np.ndarray] = {}
        self.executions: list[str] = []
        self.contexts = 0
        self.freed = 0
        self.fails: set[str] = set()
        self.exported: object = object()  # the functions of the plugin library

    def load(self, how: str, path: str) -> object:
        if "load" in self.fails:
            raise OSError("undefined symbol: getInferLibVersion")
        self.loads.append((how, path))
        if how == "dlopen" and "static registration" in self.fails:
            return object()
        self.registered += [Creator(name) for name in self.library_operators]
        return object()


def make_tensorrt(world: World) -> types.ModuleType:
    """A module that has what TensorRT of the world's version has, as far as an engine builder is concerned."""
    version = (11,) if world.rtx else numbers(world.version)
    trt = types.ModuleType("tensorrt_rtx_bindings" if world.rtx else "tensorrt")
    trt.__version__ = world.version  # type: ignore[attr-defined]

    class Flags(enum.IntEnum):
        if version < (11,):
            EXPLICIT_BATCH = 0
        if version >= (10,):
            STRONGLY_TYPED = 1

    class BuilderFlag(enum.Enum):
        if version < (11,):
            FP16 = "fp16"
            INT8 = "int8"
            OBEY_PRECISION_CONSTRAINTS = "obey"
        TF32 = "tf32"

    class ProfilingVerbosity(enum.Enum):
        LAYER_NAMES_ONLY = 0
        DETAILED = 1
        NONE = 2

    class MemoryPoolType(enum.Enum):
        WORKSPACE = 0

    class TensorIOMode(enum.Enum):
        NONE = 0
        INPUT = 1
        OUTPUT = 2

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def serialize(self) -> memoryview:
            return memoryview(self.data + b"+")

    class Config:
        __slots__ = ("asked", "profiling_verbosity", *(["max_workspace_size"] if version < (10,) else []))

        def __init__(self) -> None:
            self.asked: dict[str, Any] = {"flags": {BuilderFlag.TF32}}

        if version >= (8, 4):

            def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
                self.asked["workspace"] = pool_size

        def set_flag(self, flag: BuilderFlag) -> None:
            self.asked["flags"].add(flag)

        def clear_flag(self, flag: BuilderFlag) -> None:
            self.asked["flags"].discard(flag)

        def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
            return TimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False
            self.asked["timing_cache"] = cache
            return True

        def get_timing_cache(self) -> TimingCache:
            return self.asked["timing_cache"]

    class IProfiler:
        def __init__(self) -> None:
            self.ready = True

    class Tensor:
        def __init__(self, dtype: DataType) -> None:
            self.dtype = dtype

    class Layer:
        __slots__ = ("name", "num_outputs", "asked_outputs", "_dtype", *(["precision"] if version < (11,) else []))

        def __init__(self, name: str, dtype: DataType) -> None:
            self.name, self.num_outputs, self._dtype = name, 1, dtype
            self.asked_outputs: dict[int, DataType] = {}

        def get_output(self, index: int) -> Tensor:
            return Tensor(self._dtype)

        if version < (11,):

            def set_output_type(self, index: int, dtype: DataType) -> None:
                self.asked_outputs[index] = dtype

    class Network:
        def __init__(self, flags: int) -> None:
            self.flags, self.model, self.layers = flags, b"", []

        @property
        def num_layers(self) -> int:
            return len(self.layers)

        def get_layer(self, index: int) -> Layer:
            return self.layers[index]

    class OnnxParser:
        def __init__(self, network: Network, logger: Logger) -> None:
            assert isinstance(logger, ILogger)
            self._network, self._errors = network, []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> str:
            return self._errors[index]

        def parse(self, model: bytes, path: str | None = None) -> bool:
            parsed = onnx.ModelProto.FromString(bytes(model))
            known = {creator.name for creator in world.registered}
            for index, node in enumerate(parsed.graph.node):
                if node.domain == DOMAIN and node.op_type not in known:
                    self._errors.append(f"In node {index} ({node.op_type}): Plugin not found")
            self._network.model = bytes(model)
            self._network.layers = [
                Layer(node.name, DataType.INT32 if node.op_type == "Shape" else DataType.FLOAT)
                for node in parsed.graph.node
            ]
            return not self._errors

    class Builder:
        def __init__(self, logger: Logger) -> None:
            assert isinstance(logger, ILogger)

        def create_network(self, flags: int = 0) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: Network, config: Config) -> memoryview | None:
            if "build" in world.fails:
                return None
            if version < (8, 4):
                config.asked["workspace"] = config.max_workspace_size
            world.builds.append(
                {
                    "network_flags": network.flags,
                    "flags": {flag.name for flag in config.asked["flags"]},
                    "workspace": config.asked["workspace"],
                    "timing_cache": config.asked["timing_cache"].data,
                    "verbosity": config.profiling_verbosity.name,
                    "float_layers": {layer.name for layer in network.layers if layer.asked_outputs},
                }
            )
            return memoryview(pickle.dumps((world.version, network.model)))

    class Context:
        def __init__(self, engine: Any) -> None:
            self._engine, self._addresses, self.profiler = engine, {}, None

        if version < (10,):

            def execute_async_v2(self, bindings: list[int], stream_handle: int, input_consumed: Any = None) -> bool:
                world.executions.append("v2")
                return self._execute(dict(zip(self._engine._names, bindings, strict=True)))

        if version >= (8, 5):

            def set_tensor_address(self, name: str, memory: int) -> None:
                assert isinstance(memory, int)
                self._addresses[name] = memory

            def execute_async_v3(self, stream_handle: int) -> bool:
                world.executions.append("v3")
                return self._execute(self._addresses)

        def _execute(self, addresses: dict[str, int]) -> bool:
            if "execute" in world.fails:
                return False
            graph = self._engine._model.graph
            feeds = {}
            for value in graph.input:
                shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                feeds[value.name] = world.memory[addresses[value.name]].view(dtype).reshape(shape)
            for name, result in evaluate(self._engine._model, feeds).items():
                world.memory[addresses[name]][:] = np.ascontiguousarray(result).view(np.uint8).reshape(-1)
            for node in graph.node if self.profiler is not None else ():
                self.profiler.report_layer_time(node.name, 0.25)
            return True

    class RuntimeCache:
        """Compiled kernels: after a run there are some."""

        def __init__(self) -> None:
            self._data = b"compiled"

        def deserialize(self, blob: bytes) -> bool:
            world.kernels.append(blob)
            return "kernels" not in world.fails

        def serialize(self) -> memoryview:
            return memoryview(self._data)

    class RuntimeConfig:
        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            assert isinstance(cache, RuntimeCache)
            return True

    class Diagnostics(enum.IntFlag):
        VERSION_MISMATCH = 1
        MALFORMED_ENGINE = 32

    class LayerInformationFormat(enum.Enum):
        ONELINE = 0
        JSON = 1

    class EngineInspector:
        def __init__(self, model: onnx.ModelProto) -> None:
            self._model = model

        def get_engine_information(self, format: LayerInformationFormat) -> str:
            assert format is LayerInformationFormat.JSON
            if "inspector" in world.fails:
                return ""
            half = any(item.name == HALF_ONLY and item.i for node in self._model.graph.node for item in node.attribute)
            kind = "float32" if "half plugins" in world.fails or not half else "float16"
            return inspection(self._model, version[0], kind)

    class Engine:
        def __init__(self, model: onnx.ModelProto) -> None:
            self._model = model
            self._values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
            self._names = list(self._values)
            self._inputs = {value.name for value in model.graph.input}

        def _shape(self, name: str) -> tuple[int, ...]:
            return tuple(dim.dim_value for dim in self._values[name].type.tensor_type.shape.dim)

        def _type(self, name: str) -> DataType:
            kind = self._values[name].type.tensor_type.elem_type
            return DataType(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name)

        def create_execution_context(self, runtime_config: Any = None) -> Context:
            assert runtime_config is None or world.rtx
            return Context(self)

        if world.rtx:

            def create_runtime_config(self) -> RuntimeConfig:
                return RuntimeConfig()

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self._model)

        if version < (10,):

            @property
            def num_bindings(self) -> int:
                return len(self._names)

            def get_binding_name(self, index: int) -> str:
                return self._names[index]

            def binding_is_input(self, index: int) -> bool:
                return self._names[index] in self._inputs

            def get_binding_shape(self, index: int) -> tuple[int, ...]:
                return self._shape(self._names[index])

            def get_binding_dtype(self, index: int) -> DataType:
                return self._type(self._names[index])

        if version >= (8, 5):

            @property
            def num_io_tensors(self) -> int:
                return len(self._names)

            def get_tensor_name(self, index: int) -> str:
                return self._names[index]

            def get_tensor_mode(self, name: str) -> TensorIOMode:
                return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return self._shape(name)

            def get_tensor_dtype(self, name: str) -> DataType:
                return self._type(name)

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            assert isinstance(logger, ILogger)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            if "deserialise" in world.fails:
                return None
            built_with, model = pickle.loads(serialized_engine)
            return Engine(onnx.ModelProto.FromString(model)) if built_with == world.version else None

        if world.rtx:

            def get_engine_validity(self, buffer: bytes) -> tuple[int, int]:
                return 2, int(Diagnostics.VERSION_MISMATCH)

    class Registry:
        if version < (11,):

            @property
            def plugin_creator_list(self) -> list[Creator]:
                # From 10 on the bindings list creators of the old interface only.
                return list(world.registered) if version < (10,) else []

        if version >= (10,):

            @property
            def all_creators(self) -> list[Creator]:
                return list(world.registered)

        if version >= (8, 6):

            def load_library(self, plugin_path: str) -> object:
                return world.load("load_library", plugin_path)

    registry = Registry()
    for value in (Logger, ILogger, IProfiler, Builder, OnnxParser, Runtime, BuilderFlag, ProfilingVerbosity):
        setattr(trt, value.__name__, value)
    trt.NetworkDefinitionCreationFlag = Flags  # type: ignore[attr-defined]
    trt.IBuilderConfig, trt.INetworkDefinition, trt.ILayer = Config, Network, Layer  # type: ignore[attr-defined]
    trt.ICudaEngine, trt.IExecutionContext = Engine, Context  # type: ignore[attr-defined]
    trt.IPluginRegistry = Registry  # type: ignore[attr-defined]
    if world.rtx:
        trt.IRuntimeConfig, trt.IRuntimeCache = RuntimeConfig, RuntimeCache  # type: ignore[attr-defined]
        trt.EngineInvalidityDiagnostics = Diagnostics  # type: ignore[attr-defined]
    trt.EngineInspector, trt.LayerInformationFormat = EngineInspector, LayerInformationFormat  # type: ignore[attr-defined]
    trt.get_plugin_registry = lambda: registry  # type: ignore[attr-defined]
    trt.init_libnvinfer_plugins = lambda logger, namespace: True  # type: ignore[attr-defined]
    for name, dtype in (("float32", DataType.FLOAT), ("float16", DataType.HALF), ("int32", DataType.INT32)):
        setattr(trt, name, dtype)
    if version >= (8, 4):
        trt.MemoryPoolType = MemoryPoolType  # type: ignore[attr-defined]
    if version >= (8, 5):
        trt.TensorIOMode = TensorIOMode  # type: ignore[attr-defined]
    return trt


def make_pycuda(world: World) -> types.ModuleType:
    """pycuda.driver with the host's memory as the device's."""
    driver = types.ModuleType("pycuda.driver")

    class Allocation:
        def __init__(self, size: int) -> None:
            self._address = 0x1000 + 0x100000 * len(world.memory)
            world.memory[self._address] = np.zeros(size, np.uint8)

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            world.freed += 1
            del world.memory[self._address]

    class Stream:
        handle = 77

        def synchronize(self) -> None: ...

    class Event:
        def record(self, stream: Stream) -> None: ...

        def synchronize(self) -> None: ...

        def time_till(self, other: Event) -> float:
            return 1.5

    class Context:
        def push(self) -> None:
            world.contexts += 1

        def pop(self) -> None:
            world.contexts -= 1

        def detach(self) -> None: ...

    class Device:
        def __init__(self, index: int) -> None:
            if "device" in world.fails:
                raise RuntimeError("cuDeviceGet failed: invalid device ordinal")

        def retain_primary_context(self) -> Context:
            return Context()

        def compute_capability(self) -> tuple[int, ...]:
            return tuple(map(int, world.gpu.compute_capability.split(".")))

        def name(self) -> str:
            return world.gpu.name

    def htod(dest: Allocation, src: np.ndarray, stream: Stream) -> None:
        world.memory[int(dest)][:] = src.reshape(-1).view(np.uint8)

    def dtoh(dest: np.ndarray, src: Allocation, stream: Stream) -> None:
        dest.reshape(-1).view(np.uint8)[:] = world.memory[int(src)]

    driver.init = lambda: None  # type: ignore[attr-defined]
    driver.get_version = lambda: (10, 2, 0)  # type: ignore[attr-defined]
    driver.get_driver_version = lambda: 10020  # type: ignore[attr-defined]
    driver.mem_alloc = Allocation  # type: ignore[attr-defined]
    driver.pagelocked_empty = np.empty  # type: ignore[attr-defined]
    driver.memcpy_htod_async, driver.memcpy_dtoh_async = htod, dtoh  # type: ignore[attr-defined]
    driver.Stream, driver.Event, driver.Device = Stream, Event, Device  # type: ignore[attr-defined]
    return driver


def install_rtx(monkeypatch: pytest.MonkeyPatch, folder: Path) -> World:
    """As :func:`install_fakes`, with TensorRT-RTX in place of TensorRT, on a GPU that it supports."""
    world = install_fakes(monkeypatch, RTX_VERSION, folder, rtx=True)
    world.gpu = FoundGpu("NVIDIA GeForce RTX 4090", "8.9")
    package = tensorrt_ahead.BuilderPackage("tensorrt_rtx_bindings", f"RTX {RTX_VERSION}", (folder,))
    for module in (tensorrt_api, tensorrt_rtx):
        monkeypatch.setattr(module, "rtx_package", lambda: package)

    def build(
        source: onnx.ModelProto, plan: BuildPlan, copy: onnx.ModelProto, package: object, library: NativeLibrary | None
    ) -> tensorrt_ahead.AheadEngine:
        world.builds.append({"plan": plan, "library": library})
        data = pickle.dumps((RTX_VERSION, copy.SerializeToString()))
        return tensorrt_ahead.AheadEngine(data, b"", plan, "", EngineLayers(()))

    monkeypatch.setattr(tensorrt_rtx, "build_checked", build)
    return world


def install_fakes(
    monkeypatch: pytest.MonkeyPatch, version: str, folder: Path, *, library: bool = True, rtx: bool = False
) -> World:
    """Put the fakes of a version in place of tensorrt, pycuda and the loader of libraries.

    Args:
        monkeypatch: Takes them back.
        version: Of TensorRT.
        folder: For caches and a file that stands for the plugin library.
        library: Let the environment name that file.
        rtx: The version is TensorRT-RTX's.
    """
    world = World(version, rtx=rtx)
    package = types.ModuleType("pycuda")
    package.driver = make_pycuda(world)  # type: ignore[attr-defined]
    trt = make_tensorrt(world)
    modules = {trt.__name__: trt, "pycuda": package, "pycuda.driver": package.driver}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    (folder / LIBRARY).write_bytes(b"plugins")
    if library:
        monkeypatch.setenv("DYNDEPLOY_TENSORRT_LIBRARY", str(folder / LIBRARY))
    else:
        monkeypatch.delenv("DYNDEPLOY_TENSORRT_LIBRARY", raising=False)
    monkeypatch.setenv("DYNDEPLOY_CACHE", str(folder / "cache"))
    monkeypatch.setattr(cuda, "find_gpus", lambda: (world.gpu,))

    def cdll(path: str, mode: int = 0) -> object:
        if path == "libcuda.so.1":
            raise OSError("no libcuda here")
        if mode & os.RTLD_NOLOAD:
            return world.exported
        return world.load("dlopen", path)

    monkeypatch.setattr(ctypes, "CDLL", cdll)
    return world


class FakeCuda:
    """libcuda with the calls of graphs. Capturing records nothing: a launch does what was enqueued then."""

    def __init__(self, *, flags_call: bool = True, fails: str = "") -> None:
        self.calls: list[str] = []
        self._fails = fails
        if flags_call:
            self.cuGraphInstantiateWithFlags = lambda *a: self._call("instantiate_flags", a[0])

    def _call(self, name: str, handle: Any = None) -> int:
        self.calls.append(name)
        if name == self._fails:
            return 900
        if handle is not None:
            handle._obj.value = 5
        return 0

    def cuStreamBeginCapture_v2(self, stream: ctypes.c_void_p, mode: int) -> int:
        assert stream.value == 77
        return self._call("begin")

    def cuStreamEndCapture(self, stream: ctypes.c_void_p, graph: Any) -> int:
        return self._call("end", graph)

    def cuGraphInstantiate(self, executable: Any, graph: Any, node: Any, log: Any, size: Any) -> int:
        return self._call("instantiate", executable)

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        return self._call("launch")

    def cuGraphExecDestroy(self, executable: Any) -> int:
        return self._call("destroy_executable")

    def cuGraphDestroy(self, graph: Any) -> int:
        return self._call("destroy_graph")
