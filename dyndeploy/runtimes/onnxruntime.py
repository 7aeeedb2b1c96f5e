"""ONNX Runtime: on the CPU, or through its CUDA and TensorRT providers where onnxruntime-gpu is installed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dyndeploy.bundle import TensorInfo
from dyndeploy.errors import BundleError, DyndeployError, InputError, UsageError, unknown_name
from dyndeploy.precisions import CPU_PRECISIONS, PRECISIONS
from dyndeploy.processors import usable_processors
from dyndeploy.runtimes.base import ANY_SIZE, ONNXRUNTIME, ONNXRUNTIME_CUDA, Array, NativeUse, Session, SessionInfo
from dyndeploy.runtimes.native import CPU_PROVIDER, ISA_VARIABLE, NativeLibrary, find_cpu_library, native_library
from dyndeploy.runtimes.onnxruntime_package import SWAP, conflict, import_onnxruntime, installed_distributions

if TYPE_CHECKING:
    import onnx

PROVIDER = CPU_PROVIDER
PROVIDERS = {"cpu": PROVIDER, "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""ONNX Runtime's names of the providers that a session can be opened with."""

PROVIDER_OF = {ONNXRUNTIME: "cpu", ONNXRUNTIME_CUDA: "cuda"}
"""Of :data:`PROVIDERS`, what a runtime of :data:`~dyndeploy.runtimes.base.RUNTIMES` means."""

TENSORRT_DOMAIN = "trt.plugins"
"""Domain under which ONNX Runtime offers TensorRT plugins."""

# Every error reaches us as an exception; logged as well, it would be a second, coloured line on stderr.
_LOG_FATAL_ONLY = 4
_MAX_THREADS_PER_CPU = 4
_ELEMENT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


_NodeKey = tuple[str, str, int, tuple[int, ...]]
"""Name, operator type and how many nodes of both came before in the run."""


@dataclass(frozen=True)
class NodeTime:
    """Time of one node of the graph that ran.

    Attributes:
        name: Node name; that of a node inlined from a function body, or fused, is ONNX Runtime's.
        op_type: ONNX operator type.
        microseconds: Median over the runs. A control-flow node includes the nodes of its branches.
        fastest: Of the runs, in microseconds: what the node takes when nothing interrupts it.
        shape: Of its first input; empty where the runtime does not tell.
    """

    name: str
    op_type: str
    microseconds: float
    fastest: float
    shape: tuple[int, ...] = ()


class OnnxRuntimeSession(Session):
    """A model in ONNX Runtime.

    Args:
        model: Path of an ONNX file, or the model itself.
        threads: Threads that compute one run, at most four per processor that this process may use.
        native: ``"auto"`` uses the operator library if one is found (:func:`find_cpu_library`), ``"off"`` runs the
            function bodies, anything else is the path of a library.
        precision: What the dynamic bottlenecks compute in: ``"fp32"``; ``"bf16"``, which takes an operator library and
            a processor with BF16 instructions, while everything else in the model, the maskers too, stays in FP32; or
            ``"int8"``: the model itself says what computes in it, with the library or without.
        profile: Record the time of every node; read it with :meth:`node_times`. Makes runs slower.
        shared: Compute with the threads and in the scratch memory that all such sessions of the process share; the
            first one that asks sizes the thread pool. Sessions that run in turn must share: each waits with spinning
            threads of its own otherwise, and finds its memory cold. :attr:`pool_note` says where that is impossible.
        provider: ``"cpu"``; ``"cuda"``, where the function bodies run on the GPU; or ``"tensorrt"``, where the TensorRT
            plugins run (:func:`~dyndeploy.runtimes.tensorrt_engine.plugin_library` finds them). A GPU that cannot be
            used is an error, never a silent fall to the CPU.
        in_order: Run nodes in the order in which the graph lists them, as far as data allows. ONNX Runtime otherwise
            leaves for the end what only an output needs: where masks come from outside, all maskers.

    Attributes:
        pool_note: Why the session has threads of its own although it was to share, else empty.

    Raises:
        InputError: The file does not exist.
        BundleError: ONNX Runtime cannot load the model.
        UsageError: Bad thread count or precision, no library at the path, or none that knows the precision.
        DyndeployError: The operator library cannot be loaded.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | onnx.ModelProto,
        *,
        threads: int = 1,
        native: str | os.PathLike[str] = "auto",
        precision: str = "fp32",
        profile: bool = False,
        shared: bool = False,
        provider: str = "cpu",
        in_order: bool = False,
    ) -> None:
        onnxruntime = require_provider(provider)

        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise UsageError(f"threads={threads!r} is not valid: give a whole number of at least 1.")
        processors = usable_processors()
        if threads > _MAX_THREADS_PER_CPU * processors:
            raise UsageError(
                f"threads={threads} is not valid: this process may use {processors} processors, give at most "
                f"{_MAX_THREADS_PER_CPU * processors} threads."
            )
        if precision not in CPU_PRECISIONS:
            raise unknown_name("precision", precision, CPU_PRECISIONS)
        # The operator library computes on the CPU: on a GPU the copies to it and back would cost more than it saves.
        library = _library("off" if native == "auto" and provider != "cpu" else native)
        in_graph = PRECISIONS[precision].in_graph
        # What the library computes the operators in that leave the choice to it.
        chosen = "fp32" if in_graph else precision
        if chosen != "fp32" and library is None:
            state = "switched off" if native == "off" else "not built"
            raise UsageError(
                f"{precision} needs the operator library, which is {state}: function bodies compute in fp32. Run with "
                "the library, or export with --precision fp32."
            )
        source, label = _source(model)
        used = NativeUse() if library is None else NativeUse(str(library.path), library.sha256)
        providers: list[Any] = [PROVIDERS[provider]]
        if provider == "tensorrt":
            source, plugins = _plugin_model(source)
            if plugins is not None:
                used = NativeUse(str(plugins.path), plugins.sha256)
                providers = [(PROVIDERS[provider], {"trt_extra_plugin_lib_paths": str(plugins.path)})]
        if provider != "cpu":
            providers.append(PROVIDER)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _LOG_FATAL_ONLY
        # One thread is the caller's own: there is no pool to share.
        self.pool_note = _size_shared_pool(threads) if shared and threads > 1 else ""
        if _shared_threads is None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            # Workers that keep spinning after a run would take the cores from the session that is timed next.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        else:
            # From here on ONNX Runtime refuses sessions with threads of their own.
            _require_shared_size(threads)
            options.use_per_session_threads = False
        if shared and provider == "cpu":
            _share_memory()
            options.add_session_config_entry("session.use_env_allocators", "1")
        if in_order:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        # No API tells an operator library how many threads it may cut its work for; it reads this when registered.
        options.add_session_config_entry("dyndeploy.threads", str(threads))
        options.add_session_config_entry("dyndeploy.precision", chosen)
        self._profile_folder: Path | None = None
        self._recorded: list[dict[_NodeKey, float]] | None = None
        if library is not None:
            try:
                options.register_custom_ops_library(str(library.path))
            except Exception as error:
                if "bf16 needs" in str(error):
                    raise UsageError(
                        f"This machine cannot run bf16: {error} Export with --precision fp32, or run on such a machine."
                    ) from error
                if ISA_VARIABLE in str(error):
                    raise UsageError(f"{error}. Unset {ISA_VARIABLE}, or name one of these.") from error
                raise DyndeployError(
                    f"ONNX Runtime {onnxruntime.__version__} cannot load the operator library {library.path}: {error} "
                    "Build it again, or run with native='off'."
                ) from error
            if chosen != "fp32" and chosen not in (known := library.precisions()):
                raise UsageError(
                    f"The operator library {library.path} computes in {', '.join(known)} only and would ignore "
                    f"{precision}. Build it again from this version of dyndeploy, or export with --precision fp32."
                )
            # The library has just read the environment, and answers from it once more.
            used = replace(used, instruction_set=library.instruction_set(precision))
            if in_graph and precision not in library.precisions():
                used = NativeUse()  # older than operators in integers, which run as function bodies
        if profile:
            self._profile_folder = Path(tempfile.mkdtemp(prefix="dyndeploy-profile-"))
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile_folder / "nodes")
        try:
            self._session: Any = onnxruntime.InferenceSession(source, options, providers=providers)
        except Exception as error:
            self._remove_profile()
            raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {label}: {error}") from error
        if PROVIDERS[provider] not in self._session.get_providers():
            self._release()
            raise DyndeployError(
                f"ONNX Runtime {onnxruntime.__version__} could not start its {PROVIDERS[provider]} and would run on "
                "the CPU. Check that the versions of CUDA, cuDNN and TensorRT are those it was built for."
            )
        super().__init__(
            [_tensor_info(value) for value in self._session.get_inputs()],
            [_tensor_info(value) for value in self._session.get_outputs()],
            SessionInfo(
                runtime="onnxruntime",
                version=onnxruntime.__version__,
                threads=threads,
                provider=PROVIDERS[provider],
                native=used,
                precision=precision,
            ),
        )

    def __enter__(self) -> OnnxRuntimeSession:
        """Return the session."""
        return self

    def _run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        with _clear_errors():
            return dict(zip(outputs, self._session.run(list(outputs), feeds), strict=True))

    def _bind(self, feeds: dict[str, Array], outputs: Mapping[str, Array | None]) -> Callable[[], None]:
        from onnxruntime import OrtValue

        session, infos = self._session, {info.name: info for info in self.outputs}
        with _clear_errors():
            binding = session.io_binding()
            values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name, array in outputs.items():
                info = infos[name]
                if array is not None:
                    values[f"output:{name}"] = OrtValue.ortvalue_from_numpy(array)
                    binding.bind_ortvalue_output(name, values[f"output:{name}"])
                    continue
                if ANY_SIZE in info.shape:
                    binding.bind_output(name)
                    continue
                values[f"output:{name}"] = OrtValue.ortvalue_from_shape_and_type(list(info.shape), np.dtype(info.dtype))
                binding.bind_ortvalue_output(name, values[f"output:{name}"])

        # Values on the CPU share the memory of the arrays: both live as long as the function does.
        alive = (values, feeds, outputs)

        def call() -> None:
            assert alive
            session.run_with_iobinding(binding)

        return call

    def node_times(self, runs: slice = slice(1, None)) -> list[NodeTime]:
        """Time of every node of the optimised graph, in order of execution.

        The first call ends the recording: later runs are not in it. It may be called again for other runs.

        Args:
            runs: Which runs to take, counted from 0. The default leaves out the first, which allocates memory.

        Raises:
            UsageError: The session does not profile, or made none of these runs.
        """
        self._require_open()
        if self._profile_folder is not None:
            folder, self._profile_folder = self._profile_folder, None
            try:
                with _clear_errors():
                    path = Path(self._session.end_profiling())
                self._recorded = _read_runs(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise DyndeployError(f"Cannot read the node profile that ONNX Runtime wrote: {error}") from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        if self._recorded is None:
            raise UsageError("This session records no node times: open it with profile=True.")
        selected = self._recorded[runs]
        if not selected:
            raise UsageError(f"The session recorded {len(self._recorded)} runs, none of them in {runs}: run it first.")
        durations: dict[_NodeKey, list[float]] = {}
        for run in selected:
            for key, microseconds in run.items():
                durations.setdefault(key, []).append(microseconds)
        return [
            NodeTime(key[0], key[1], statistics.median(times), min(times), key[3]) for key, times in durations.items()
        ]

    def _release(self) -> None:
        if self._profile_folder is not None:
            # The session's destructor would write an unread profile: end it while its folder still exists.
            self._session.end_profiling()
            self._remove_profile()
        self._session = None

    def _remove_profile(self) -> None:
        if self._profile_folder is not None:
            shutil.rmtree(self._profile_folder, ignore_errors=True)
            self._profile_folder = None


def require_provider(provider: str) -> Any:
    """The module ``onnxruntime``, if it has a provider of :data:`PROVIDERS`; raises ``UsageError`` where not."""
    onnxruntime = import_onnxruntime()
    if provider not in PROVIDERS:
        raise unknown_name("provider", provider, PROVIDERS)
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise UsageError(f"onnxruntime {onnxruntime.__version__} has no {PROVIDERS[provider]}. {_gpu_advice()}")
    return onnxruntime


# ONNX Runtime has one shared pool and one shared allocator per process, and tells nothing about them.
_shared_threads: int | None = None
_shared_memory = False


def _size_shared_pool(threads: int) -> str:
    """Give the process's thread pool its size, once; returns why there can be none, or nothing.

    A process-wide setting that ONNX Runtime offers for sessions that run in turn, and the only way to share threads.
    """
    global _shared_threads
    onnxruntime = import_onnxruntime()

    if _shared_threads is None:
        try:
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
        except AttributeError:
            return f"onnxruntime {onnxruntime.__version__} cannot size the shared thread pool from Python"
        except Exception as error:
            raise DyndeployError(
                f"ONNX Runtime's shared thread pool of this process was sized by somebody else ({error}). Open the "
                "network in a process of its own."
            ) from error
        _shared_threads = threads
    return ""


def _require_shared_size(threads: int) -> None:
    if threads != _shared_threads:
        raise UsageError(
            f"threads={threads} is not possible any more: this process's sessions share a pool of {_shared_threads} "
            "threads, as a network with early exits needs, and ONNX Runtime has one such pool for good. Give "
            f"threads={_shared_threads}, or start another process."
        )


def _share_memory() -> None:
    """Give the process the allocator that shared sessions take their scratch memory from, once."""
    global _shared_memory
    onnxruntime = import_onnxruntime()

    if not _shared_memory:
        kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
        onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use), None)
        _shared_memory = True


def _gpu_advice() -> str:
    if "onnxruntime-gpu" in installed_distributions():
        return conflict() or "onnxruntime-gpu is installed, but finds no GPU of this kind: check its CUDA and TensorRT."
    return f"The package for GPUs takes its place: {SWAP}"


def _library(native: str | os.PathLike[str]) -> NativeLibrary | None:
    if native == "off":
        return None
    return find_cpu_library() if native == "auto" else native_library(native)


def _source(model: str | os.PathLike[str] | onnx.ModelProto) -> tuple[str | bytes, str]:
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if not path.is_file():
            raise InputError(f"There is no model at {path}.")
        try:
            str(path).encode()
        except UnicodeEncodeError:  # ONNX Runtime opens names that are UTF-8.
            return path.read_bytes(), str(path)
        return str(path), str(path)
    return model.SerializeToString(), f"the graph '{model.graph.name}'"


def _plugin_model(source: str | bytes) -> tuple[bytes, NativeLibrary | None]:
    """The TensorRT copy with its operators in ONNX Runtime's domain of plugins, and the library that has them."""
    import onnx

    from dyndeploy.graphs.inspect import all_nodes
    from dyndeploy.graphs.tensorrt import PrecisionPlan, required_creators, tensorrt_model
    from dyndeploy.graphs.tensorrt_bytes import with_plugin_bytes
    from dyndeploy.ops import DOMAIN
    from dyndeploy.runtimes.tensorrt_engine import plugin_library

    original = onnx.load(source) if isinstance(source, str) else onnx.ModelProto.FromString(source)
    copy = tensorrt_model(with_plugin_bytes(original), PrecisionPlan("fp32", typed=False))
    library = plugin_library() if required_creators(copy) else None
    for node in all_nodes(copy.graph):
        if node.domain == DOMAIN:
            node.domain = TENSORRT_DOMAIN
    for entry in copy.opset_import:
        if entry.domain == DOMAIN:
            entry.domain = TENSORRT_DOMAIN
    return copy.SerializeToString(), library


def _tensor_info(value: Any) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else ANY_SIZE for size in value.shape)
    return TensorInfo(value.name, shape, _ELEMENT_TYPES.get(value.type, value.type))


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except DyndeployError:
        raise
    except Exception as error:
        raise DyndeployError(f"ONNX Runtime failed: {error}") from error


def _read_runs(events: list[dict[str, Any]]) -> list[dict[_NodeKey, float]]:
    """Microseconds of the nodes of every run, from the events of ONNX Runtime's trace."""
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    nodes = sorted(
        (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")),
        key=lambda e: (e["ts"], -e["dur"]),
    )
    recorded: list[dict[_NodeKey, float]] = []
    position = 0
    for start, end in runs:
        times: dict[_NodeKey, float] = {}
        count: dict[tuple[str, str], int] = {}
        covered = start
        while position < len(nodes) and nodes[position]["ts"] <= end:
            event = nodes[position]
            position += 1
            stop = event["ts"] + event["dur"]
            if event["ts"] < start or (stop <= covered and event["ts"] < covered):
                # Before the run, or inside a control-flow node whose time already contains it.
                continue
            covered = stop
            key = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
            # Nodes of inlined bodies may share a name: tell them apart by their order within the run.
            count[key] = count.get(key, -1) + 1
            times[(*key, count[key], _first_shape(event["args"]))] = float(event["dur"])
        recorded.append(times)
    return recorded


def _first_shape(arguments: dict[str, Any]) -> tuple[int, ...]:
    """Shape of a node's first input in ONNX Runtime's trace: ``[{"float": [1, 16, 8, 8]}, ...]``."""
    inputs = arguments.get("input_type_shape") or [{}]
    return tuple(next(iter(inputs[0].values()), ()))
