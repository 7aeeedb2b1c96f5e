"""A stand-in for the tensorrt package: the calls that the agent makes, over ONNX Runtime.

``FAKE_TENSORRT`` chooses the version. What a version of the real package lacks does not exist here either: bindings are
gone in 10, tensors by name begin with 8.5, ``max_workspace_size`` ends with 8.6. ``FAKE_TENSORRT_LACKS`` names a plugin
that is not registered, ``FAKE_TENSORRT_WRONG`` adds an error to every output that ``FAKE_TENSORRT_WRONG_OUTPUTS`` names
(``logits``), ``FAKE_TENSORRT_TYPE`` is the type that plugins run in whatever was asked for, ``FAKE_TENSORRT_NO_GRAPH``
takes CUDA graphs away. What was asked of the builder is appended to the file that ``FAKE_TENSORRT_LOG`` names.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from pycuda import driver

_WRONG = os.environ.get("FAKE_TENSORRT_WRONG_OUTPUTS", "logits").split()
__version__ = os.environ.get("FAKE_TENSORRT", "8.2.1.8")
_VERSION = tuple(int(part) for part in __version__.split("."))[:2]


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.ready = True


class IProfiler:
    def __init__(self) -> None:
        self.ready = True


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.IntEnum):
    DETAILED = 1


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


if _VERSION < (10, 0):
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0})
else:
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
_FLAGS = {"FP16": 0, "INT8": 1, "TF32": 7, "OBEY_PRECISION_CONSTRAINTS": 12}
BuilderFlag = enum.IntEnum("BuilderFlag", _FLAGS if _VERSION < (11, 0) else {"TF32": 7})
float32, float16, int32 = "float32", "float16", "int32"


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    assert logger.ready
    return True


class _Registry:
    @property
    def plugin_creator_list(self) -> list[Any]:
        from dyndeploy.ops import OPERATORS

        names = (name for name, spec in OPERATORS.items() if "tensorrt" in spec.kernels)
        creators = [type("Creator", (), {"name": name, "plugin_version": "1"}) for name in names]
        return [creator for creator in creators if creator.name != os.environ.get("FAKE_TENSORRT_LACKS")]

    if _VERSION >= (10, 0):
        all_creators = plugin_creator_list


def get_plugin_registry() -> _Registry:
    return _Registry()


_TYPES = {"tensor(float)": float32, "tensor(int32)": int32}


class _Tensor:
    dtype = float32


class _Layer:
    num_outputs = 1

    def __init__(self, name: str) -> None:
        self.name, self.types = name, {}

    def get_output(self, index: int) -> _Tensor:
        return _Tensor()

    def set_output_type(self, index: int, dtype: str) -> None:
        self.types[index] = dtype


class _Network:
    def __init__(self, flags: int) -> None:
        self.flags, self.model, self.layers = flags, b"", []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]


class OnnxParser:
    num_errors = 1

    def __init__(self, network: _Network, logger: ILogger) -> None:
        self.network = network

    def parse(self, data: bytes) -> bool:
        import onnx

        self.network.model = data
        self.network.layers = [_Layer(node.name) for node in onnx.load_from_string(data).graph.node]
        return len(data) > 10

    def get_error(self, index: int) -> str:
        return "the graph is empty"


class _TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"t"


class _Config:
    def __init__(self) -> None:
        self.flags: set[BuilderFlag] = {BuilderFlag.TF32}
        self.profiling_verbosity = None
        self.workspace = 0
        if _VERSION < (10, 0):
            self.max_workspace_size = 0

    if _VERSION >= (8, 4):

        def set_memory_pool_limit(self, pool: int, size: int) -> None:
            self.workspace = size

    def set_flag(self, flag: int) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: int) -> None:
        self.flags.discard(flag)

    def create_timing_cache(self, content: bytes) -> _TimingCache:
        return _TimingCache(content)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> _TimingCache:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        assert logger.ready
        if "FAKE_TENSORRT_NO_GPU" in os.environ:
            logger.log(ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int) -> _Network:
        # Before 10, ONNX graphs need the explicit batch flag; 10 and later have it always.
        assert _VERSION >= (10, 0) or flags & 1
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes:
        assert config.profiling_verbosity is not None and BuilderFlag.TF32 not in config.flags
        if "FAKE_TENSORRT_LOG" in os.environ:
            asked = {
                "network_flags": network.flags,
                "flags": sorted(flag.name for flag in config.flags),
                "workspace": config.workspace or getattr(config, "max_workspace_size", 0),
                "float_layers": [layer.name for layer in network.layers if layer.types],
            }
            with open(os.environ["FAKE_TENSORRT_LOG"], "a") as stream:
                stream.write(json.dumps(asked) + "\n")
        asked = "float16" if any(flag.name == "FP16" for flag in config.flags) else "float32"
        return b"PLAN" + os.environ.get("FAKE_TENSORRT_TYPE", asked).encode() + network.model


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.profiler: Any = None
        self.addresses: dict[str, int] = {}

    def _execute(self) -> bool:
        # A captured run is not carried out: a launch does it.
        if _CAPTURED is not None:
            _CAPTURED.append(self._execute)
            return True
        feeds = {}
        for value in self.engine.session.get_inputs():
            memory = driver.MEMORY[self.addresses[value.name]]
            feeds[value.name] = np.frombuffer(memory, _TYPES[value.type]).reshape(value.shape)
        names = [value.name for value in self.engine.session.get_outputs()]
        error = float(os.environ.get("FAKE_TENSORRT_WRONG", "0"))
        for name, value in zip(names, self.engine.session.run(names, feeds), strict=True):
            memory = driver.MEMORY[self.addresses[name]]
            memory[:] = (value + value.dtype.type(error if name in _WRONG else 0)).tobytes()
        if self.profiler is not None:
            for layer in self.engine.layers:
                self.profiler.report_layer_time(layer, 0.25)
        return True

    if _VERSION < (10, 0):

        def execute_async_v2(self, bindings: list[int], stream_handle: int) -> bool:
            self.addresses = dict(zip(self.engine.names, bindings, strict=True))
            return self._execute()

    if _VERSION >= (8, 5):

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            return self._execute()


class LayerInformationFormat(enum.IntEnum):
    ONELINE = 0
    JSON = 1


class _Inspector:
    def __init__(self, model: bytes, kind: str) -> None:
        self.model, self.kind = model, kind

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        import onnx
        from inspection import inspection

        assert form is LayerInformationFormat.JSON
        return inspection(onnx.load_from_string(self.model), _VERSION[0], self.kind)


class _Engine:
    def __init__(self, kind: str, model: bytes) -> None:
        import onnx

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.names = [value.name for value in self.values]
        self.inputs = {value.name for value in self.session.get_inputs()}
        self.layers = [node.name for node in onnx.load_from_string(model).graph.node]

        self.kind, self.model = kind, model

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector(self.model, self.kind)

    def create_execution_context(self) -> _Context:
        return _Context(self)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[self.names.index(name)].shape)

    if _VERSION < (10, 0):

        @property
        def num_bindings(self) -> int:
            return len(self.names)

        def get_binding_name(self, index: int) -> str:
            return self.names[index]

        def get_binding_shape(self, index: int) -> tuple[int, ...]:
            return self._shape(self.names[index])

        def get_binding_dtype(self, index: int) -> str:
            return _TYPES[self.values[index].type]

        def binding_is_input(self, index: int) -> bool:
            return self.names[index] in self.inputs

    if _VERSION >= (8, 5):

        @property
        def num_io_tensors(self) -> int:
            return len(self.names)

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._shape(name)

        def get_tensor_dtype(self, name: str) -> str:
            return _TYPES[self.values[self.names.index(name)].type]


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert logger.ready

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        return _Engine(plan[4:11].decode(), plan[11:]) if plan.startswith(b"PLAN") else None


_CAPTURED: list[Callable[[], bool]] | None = None


class _Cuda:
    """libcuda with the calls of graphs."""

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        global _CAPTURED
        if "FAKE_TENSORRT_NO_GRAPH" in os.environ:
            return 900
        assert stream.value == 7
        _CAPTURED = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        global _CAPTURED
        assert _CAPTURED is not None
        graph._obj.value = len(_GRAPHS) + 1
        _GRAPHS.append(_CAPTURED)
        _CAPTURED = None
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        executable._obj.value = graph.value
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        for run in _GRAPHS[executable.value - 1]:
            assert run()
        return 0


_GRAPHS: list[list[Callable[[], bool]]] = []
_load = ctypes.CDLL
ctypes.CDLL = lambda name, *a, **k: _Cuda() if name == "libcuda.so.1" else _load(name, *a, **k)  # type: ignore[misc, assignment]
