"""One face for the TensorRT Python APIs of 8.2 to 11: what changed between versions is told apart here only.

Everything that this file asks for by name was read in the bindings of 8.2.1, 8.5.3, 8.6.1, 10.3, 10.16 and 11.1.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dyndeploy.bundle import TensorInfo
from dyndeploy.errors import BundleError, DyndeployError
from dyndeploy.graphs.tensorrt import PrecisionPlan
from dyndeploy.runtimes.native import NativeLibrary

OLDEST = (8, 2)


def parse_version(text: str) -> tuple[int, ...]:
    """``"8.2.1.8"`` as numbers; letters behind a number (``"10.0.0b6"``) are dropped."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[a-z+]", text)[0]))


@dataclass(frozen=True)
class BuildOptions:
    """What a build takes besides the graph.

    Attributes:
        workspace_mib: Scratch memory that a layer may use, in MiB.
        tf32: Let FP32 convolutions round their inputs to TF32 on GPUs that have it.
    """

    workspace_mib: int = 1024
    tf32: bool = False


class TensorRT:
    """An installed TensorRT.

    Args:
        module: The ``tensorrt`` package.

    Attributes:
        version: Numbers of its version.
    """

    def __init__(self, module: Any) -> None:
        self._trt = module
        self.version = parse_version(str(module.__version__))
        self._logger = module.Logger(module.Logger.WARNING)

    @classmethod
    def load(cls) -> TensorRT:
        """Import TensorRT; raises ``DyndeployError`` if it is missing or older than 8.2."""
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
    def text(self) -> str:
        """The version as written."""
        return str(self._trt.__version__)

    # ------------------------------------------------------------ plugins

    def creators(self) -> set[tuple[str, str]]:
        """Name and version of every registered plugin creator."""
        registry = self._trt.get_plugin_registry()
        found = registry.all_creators if self.version >= (10,) else registry.plugin_creator_list
        # Creators of an interface that the bindings do not know are listed as None.
        return {(creator.name, creator.plugin_version) for creator in found if creator is not None}

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

    def build(
        self,
        model: bytes,
        plan: PrecisionPlan,
        options: BuildOptions,
        *,
        keep_float: Iterable[str] = (),
        timing_cache: bytes = b"",
    ) -> tuple[bytes, bytes]:
        """Build an engine.

        Args:
            model: A serialised TensorRT copy; its plugins are loaded.
            plan: Precision plan.
            options: See :class:`BuildOptions`.
            keep_float: Nodes that compute in float under builder flags.
            timing_cache: Of an earlier build on this machine, or empty.

        Returns:
            The serialised engine, and the timing cache afterwards.

        Raises:
            DyndeployError: The parser or the builder refused.
        """
        trt = self._trt
        builder = trt.Builder(self._logger)
        network = builder.create_network(self._network_flags(plan))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(model):
            errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise DyndeployError(f"TensorRT {self.text} cannot read the graph: {errors or 'it gives no reason'}.")
        config = builder.create_builder_config()
        if self.version >= (8, 4):
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        else:
            config.max_workspace_size = options.workspace_mib << 20
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # TF32 is on by default and would cost FP32 engines three digits unasked.
        (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
        if plan.half and not plan.typed:
            config.set_flag(trt.BuilderFlag.FP16)
            self._keep_float(network, config, set(keep_float))
        cache = config.create_timing_cache(timing_cache)
        config.set_timing_cache(cache, ignore_mismatch=False)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise DyndeployError(
                f"TensorRT {self.text} could not build the engine; its own messages stand above. If memory ran out, "
                f"lower the workspace (now {options.workspace_mib} MiB) or close other programs."
            )
        return bytes(engine), bytes(config.get_timing_cache().serialize())

    def _network_flags(self, plan: PrecisionPlan) -> int:
        flags = self._trt.NetworkDefinitionCreationFlag
        bits = 0
        if self.version < (10,):  # later networks always have an explicit batch; 11 no longer knows the flag
            bits |= 1 << int(flags.EXPLICIT_BATCH)
        if plan.typed and self.version < (11,):
            bits |= 1 << int(flags.STRONGLY_TYPED)
        return bits

    def _keep_float(self, network: Any, config: Any, names: set[str]) -> None:
        kept = False
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.name not in names:
                continue
            outputs = range(layer.num_outputs)
            if any(layer.get_output(i).dtype != self._trt.float32 for i in outputs):
                continue  # arithmetic on shapes
            kept = True
            layer.precision = self._trt.float32
            for output in outputs:
                layer.set_output_type(output, self._trt.float32)
        if kept:
            config.set_flag(self._trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)

    # ------------------------------------------------------------ running

    def engine(self, data: bytes) -> Engine:
        """Deserialise an engine whose plugins are loaded; raises ``BundleError`` if TensorRT refuses it."""
        runtime = self._trt.Runtime(self._logger)
        engine = runtime.deserialize_cuda_engine(data)
        context = None if engine is None else engine.create_execution_context()
        if context is None:
            raise BundleError(
                f"TensorRT {self.text} refuses the engine; its own messages stand above. Engines run only with the "
                "TensorRT version and on the device they were built with: build it again here."
            )
        return Engine(self, runtime, engine, context)

    def dtype_name(self, dtype: Any) -> str:
        """NumPy name of a TensorRT type."""
        # trt.nptype would do, but up to 8.5 it fails with current NumPy.
        for name in ("float32", "float16", "int32", "int8", "bool", "int64", "uint8"):
            if dtype == getattr(self._trt, name, None):
                return name
        raise DyndeployError(f"TensorRT type {dtype} has no NumPy counterpart.")

    @property
    def module(self) -> Any:
        """The ``tensorrt`` package."""
        return self._trt


class Engine:
    """A deserialised engine with static shapes and its execution context."""

    def __init__(self, api: TensorRT, runtime: Any, engine: Any, context: Any) -> None:
        self._by_name = api.version >= (8, 5)
        # The runtime must outlive its engines.
        self._runtime, self._engine, self._context = runtime, engine, context
        self.inputs: tuple[TensorInfo, ...] = ()
        self.outputs: tuple[TensorInfo, ...] = ()
        self._order: list[str] = []
        for name, is_input, shape, dtype in self._tensors(api):
            info = TensorInfo(name, tuple(int(size) for size in shape), api.dtype_name(dtype))
            self._order.append(name)
            if is_input:
                self.inputs += (info,)
            else:
                self.outputs += (info,)

    def _tensors(self, api: TensorRT) -> list[tuple[str, bool, Sequence[int], Any]]:
        engine = self._engine
        if self._by_name:
            names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
            mode = api.module.TensorIOMode.INPUT
            return [
                (
                    name,
                    engine.get_tensor_mode(name) == mode,
                    engine.get_tensor_shape(name),
                    engine.get_tensor_dtype(name),
                )
                for name in names
            ]
        return [
            (
                engine.get_binding_name(index),
                engine.binding_is_input(index),
                engine.get_binding_shape(index),
                engine.get_binding_dtype(index),
            )
            for index in range(engine.num_bindings)
        ]

    def enqueuer(self, addresses: Mapping[str, int]) -> Callable[[int], bool]:
        """Fix the device addresses of all inputs and outputs.

        Returns:
            A function that puts one run on a stream (given by its handle) and says whether that succeeded.
        """
        context = self._context
        if self._by_name:
            for name in self._order:
                context.set_tensor_address(name, addresses[name])
            return lambda stream: bool(context.execute_async_v3(stream))
        bindings = [addresses[name] for name in self._order]
        return lambda stream: bool(context.execute_async_v2(bindings, stream))

    def close(self) -> None:
        """Free context, engine and runtime, in the order that TensorRT needs."""
        self._context = None
        self._engine = None
        self._runtime = None
