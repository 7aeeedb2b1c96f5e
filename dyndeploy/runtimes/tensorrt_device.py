"""What this machine and a board do alike with TensorRT: build by a plan, run, capture a run, time the layers.

It is sent to a board as it stands, so that the engine that is measured there is the one that the host describes. It
runs on Python 3.6 with nothing but the standard library and imports nothing of dyndeploy. Versions 8.2 to 11 are told
apart by asking the installed package; everything that is asked for by name was read in the bindings of 8.2.1, 8.5.3,
8.6.1, 10.3, 10.16 and 11.1.
"""

import ctypes
import os
import re
from typing import Any, Callable, Dict, List, Mapping, Set, Tuple

CAPTURE_THREAD_LOCAL = 1

Plan = Dict[str, Any]


class RefusedError(Exception):
    """TensorRT refused; the message says what."""


def parse_version(text: str) -> Tuple[int, ...]:
    """``"8.2.1.8"`` as numbers; letters behind a number (``"10.0.0b6"``) are dropped."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[a-z+]", text)[0]))


RTX = "RTX "
"""Stands before the version of TensorRT-RTX, which counts from 1 but has the interface of TensorRT 11."""

RTX_INTERFACE = (11, 0)


def version_text(trt: Any) -> str:
    """A package's version as it is written: ``"8.2.1.8"``, or ``"RTX 1.7.1.116"``."""
    rtx = str(getattr(trt, "__name__", "")).startswith("tensorrt_rtx")
    return (RTX if rtx else "") + str(trt.__version__)


def interface_version(text: str) -> Tuple[int, ...]:
    """Numbers of the TensorRT whose functions a version (see :func:`version_text`) has."""
    return RTX_INTERFACE if text.startswith(RTX) else parse_version(text)


def _interface(trt: Any) -> Tuple[int, ...]:
    return interface_version(version_text(trt))


def creators(trt: Any) -> Set[Tuple[str, str]]:
    """Name and version of every registered plugin creator."""
    registry = trt.get_plugin_registry()
    found = registry.all_creators if _interface(trt) >= (10,) else registry.plugin_creator_list
    # Creators of an interface that the bindings do not know are listed as None.
    return {(creator.name, creator.plugin_version) for creator in found if creator is not None}


# ---------------------------------------------------------------- building


def build(trt: Any, logger: Any, model: bytes, plan: Plan, timing_cache: bytes) -> Tuple[bytes, bytes]:
    """Build an engine exactly as a plan says.

    Args:
        trt: The ``tensorrt`` package.
        logger: Takes TensorRT's messages.
        model: A serialised TensorRT copy; its plugins are loaded.
        plan: JSON of a :class:`dyndeploy.runtimes.tensorrt_plan.BuildPlan`.
        timing_cache: Timing cache of an earlier build with the same software on this device, or empty.

    Returns:
        The serialised engine, and the timing cache afterwards.

    Raises:
        RefusedError: The plan is for another TensorRT, a plugin is missing, or TensorRT has no GPU, cannot read the
            graph or cannot build it.
    """
    text = version_text(trt)
    version = interface_version(text)
    if text != plan["tensorrt"]:
        raise RefusedError("the engine was planned for TensorRT %s, and this is %s" % (plan["tensorrt"], text))
    known = creators(trt)
    lacking = sorted(name for name, number in plan["plugins"] if (name, number) not in known)
    if lacking:
        raise RefusedError("no TensorRT plugin is registered for %s" % ", ".join(lacking))
    try:
        builder = trt.Builder(logger)
    except TypeError:
        # What the bindings make of a null pointer.
        raise RefusedError("TensorRT %s cannot use the GPU" % text) from None
    flags = 0
    if version < (10,):  # later networks always have an explicit batch; 11 no longer knows the flag
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if plan["typed"] and version < (11,):
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise RefusedError("TensorRT %s cannot read the graph: %s" % (text, errors[:2000] or "it gives no reason"))
    config = builder.create_builder_config()
    if version >= (8, 4):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan["workspace_mib"] << 20)
    else:
        config.max_workspace_size = plan["workspace_mib"] << 20
    # Without it, layers have no names to map times by.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # TF32 is on by default and would cost FP32 engines three digits unasked.
    (config.set_flag if plan["tf32"] else config.clear_flag)(trt.BuilderFlag.TF32)
    _set_capabilities(trt, config, text, plan.get("capabilities", []))
    if plan["precision"] in ("fp16", "int8") and not plan["typed"]:
        config.set_flag(trt.BuilderFlag.FP16)
        _keep_float(trt, network, config, set(plan["float_layers"]))
    if plan.get("integers") and not plan["typed"]:
        # The graph says which layers and with what scales: no calibrator is asked.
        config.set_flag(trt.BuilderFlag.INT8)
    config.set_timing_cache(config.create_timing_cache(timing_cache), False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RefusedError(
            "TensorRT %s could not build the engine; if memory ran out, lower the workspace (now %d MiB) or close "
            "other programs" % (text, plan["workspace_mib"])
        )
    return bytes(memoryview(engine)), bytes(memoryview(config.get_timing_cache().serialize()))


def _set_capabilities(trt: Any, config: Any, text: str, capabilities: List[str]) -> None:
    """Say which GPUs the engine is for, where that is not the one at hand."""
    if not capabilities:
        return
    known = getattr(trt, "ComputeCapability", None)
    wanted = [getattr(known, "SM" + capability.replace(".", ""), None) for capability in capabilities]
    if None in wanted:
        raise RefusedError("TensorRT %s cannot build for compute capability %s" % (text, ", ".join(capabilities)))
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        config.set_compute_capability(capability, index)


def _keep_float(trt: Any, network: Any, config: Any, names: Set[str]) -> None:
    """Pin layers and their outputs to float."""
    kept = False
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name not in names:
            continue
        outputs = range(layer.num_outputs)
        if any(layer.get_output(i).dtype != trt.float32 for i in outputs):
            continue  # arithmetic on shapes
        kept = True
        layer.precision = trt.float32
        for output in outputs:
            layer.set_output_type(output, trt.float32)
    if kept:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


# ---------------------------------------------------------------- what plugins have timed

TACTICS = "tactics.cache"
"""Name of the file beside TensorRT's timing cache with what :func:`timed_tactics` tells.

From TensorRT 10 on the sizes of the plugins' tiles are tactics, whose times are in the timing cache. Before, plugins
time them for themselves, and this is their cache.
"""


def read_tactics(library: str, content: bytes) -> int:
    """Give a plugin library what it told of an earlier build on this device; returns how many lines it took.

    Args:
        library: Its path; it is loaded.
        content: Of :func:`timed_tactics`; anything else is left aside.
    """
    function = _exported(library, "DyndeployReadTimedTactics")
    if function is None or not content or b"\0" in content:
        return 0
    return max(0, int(function(ctypes.c_char_p(content))))


def timed_tactics(library: str) -> bytes:
    """What a library's plugins have timed in this process, and what was read; empty for nothing."""
    function = _exported(library, "DyndeployTimedTactics")
    if function is None:
        return b""
    size = int(function(None, ctypes.c_int32(0)))
    text = ctypes.create_string_buffer(max(0, size) + 1)
    function(text, ctypes.c_int32(len(text)))
    return text.value


def _exported(library: str, name: str) -> Any:
    """A function of a library that is loaded, returning a 32-bit integer; None where it has none of that name."""
    try:
        # Not loaded anew: what is asked is what registered the plugins.
        function = getattr(ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_NOW), name)
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_int32
    return function


# ---------------------------------------------------------------- running


def engine_tensors(trt: Any, engine: Any) -> List[Tuple[str, bool, Tuple[int, ...], Any]]:
    """Name, whether it is an input, shape and TensorRT type of every input and output, in the engine's order."""
    if _by_name(trt):
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        mode = trt.TensorIOMode.INPUT
        return [
            (
                name,
                engine.get_tensor_mode(name) == mode,
                tuple(int(size) for size in engine.get_tensor_shape(name)),
                engine.get_tensor_dtype(name),
            )
            for name in names
        ]
    return [
        (
            engine.get_binding_name(index),
            bool(engine.binding_is_input(index)),
            tuple(int(size) for size in engine.get_binding_shape(index)),
            engine.get_binding_dtype(index),
        )
        for index in range(engine.num_bindings)
    ]


def _by_name(trt: Any) -> bool:
    return _interface(trt) >= (8, 5)


def dtype_name(trt: Any, dtype: Any) -> str:
    """NumPy name of a TensorRT type; raises :class:`RefusedError` where there is none."""
    # trt.nptype would do, but up to 8.5 it fails with current NumPy.
    for name in ("float32", "float16", "int32", "int8", "bool", "int64", "uint8"):
        if dtype == getattr(trt, name, None):
            return name
    raise RefusedError("TensorRT type %s has no NumPy counterpart" % dtype)


def enqueuer(trt: Any, engine: Any, context: Any, addresses: Mapping[str, int]) -> Callable[[int], bool]:
    """Fix the device addresses of all inputs and outputs.

    Returns:
        A function that puts one run on a stream (given by its handle) and says whether that succeeded.
    """
    names = [tensor[0] for tensor in engine_tensors(trt, engine)]
    if _by_name(trt):
        for name in names:
            context.set_tensor_address(name, addresses[name])
        return lambda stream: bool(context.execute_async_v3(stream))
    bindings = [addresses[name] for name in names]
    return lambda stream: bool(context.execute_async_v2(bindings, stream))


def layer_times(trt: Any, engine: Any, addresses: Mapping[str, int], stream: Any, runs: int) -> List[Tuple[str, float]]:
    """Fastest time of every layer in milliseconds on what lies on the device.

    Args:
        trt: The ``tensorrt`` package.
        engine: Built with detailed names.
        addresses: Device address of every input and output.
        stream: A pycuda stream.
        runs: Runs to take the fastest of; one more comes before them.

    Returns:
        Names and times; a name that several layers have comes several times.

    Raises:
        RefusedError: The engine cannot be run.
    """
    base = trt.IProfiler

    class Profiler(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.times = []  # type: List[Tuple[str, float]]

        def report_layer_time(self, name: str, ms: float) -> None:
            self.times.append((name, ms))

    # Of its own: a context with a profiler synchronises after every layer.
    context = engine.create_execution_context()
    profiler = Profiler()
    context.profiler = profiler
    enqueue = enqueuer(trt, engine, context, addresses)
    fastest = {}  # type: Dict[Tuple[str, int], float]
    for number in range(runs + 1):
        profiler.times = []
        if not enqueue(int(stream.handle)):
            raise RefusedError("TensorRT could not run the engine")
        stream.synchronize()
        count = {}  # type: Dict[str, int]
        for name, ms in profiler.times if number else []:
            count[name] = count.get(name, -1) + 1
            key = (name, count[name])
            fastest[key] = min(ms, fastest.get(key, ms))
    return [(key[0], ms) for key, ms in fastest.items()]


class CudaGraph:
    """A captured run, launched as a whole.

    pycuda has no graphs, so the driver library is called itself; it is there wherever pycuda works.

    Args:
        enqueue: Puts the run on the stream; has run once before, so that nothing is allocated lazily any more.
        stream: pycuda stream.
        library: The driver library; None loads the system's.

    Raises:
        RefusedError: The run cannot be captured (then it still can be enqueued).
    """

    refused = RefusedError  # type: type

    def __init__(self, enqueue: Callable[[], None], stream: Any, library: Any = None) -> None:
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1") if library is None else library
            instantiate = getattr(self._cuda, "cuGraphInstantiateWithFlags", None)
        except OSError as error:
            raise self.refused("CUDA graphs are not available: %s." % error) from error
        self._stream = ctypes.c_void_p(int(stream.handle))
        self._graph, self._executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._check("begin capture", self._cuda.cuStreamBeginCapture_v2(self._stream, CAPTURE_THREAD_LOCAL))
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
            raise self.refused("CUDA graphs are not available: '%s' failed with CUDA error %s." % (step, result))
