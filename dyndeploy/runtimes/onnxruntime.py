"""ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dyndeploy.bundle import TensorInfo
from dyndeploy.errors import BundleError, DyndeployError, InputError, UsageError
from dyndeploy.runtimes.base import ANY_SIZE, Array, NativeUse, Session, SessionInfo
from dyndeploy.runtimes.native import NativeLibrary, find_cpu_library, native_library

if TYPE_CHECKING:
    import onnx

PROVIDER = "CPUExecutionProvider"

_LOG_ERRORS_ONLY = 3
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


@dataclass(frozen=True)
class NodeTime:
    """Time of one node of the graph that ran.

    Attributes:
        name: Node name; that of a node inlined from a function body, or fused, is ONNX Runtime's.
        op_type: ONNX operator type.
        microseconds: Median over the runs. A control-flow node includes the nodes of its branches.
    """

    name: str
    op_type: str
    microseconds: float


class OnnxRuntimeSession(Session):
    """A model in ONNX Runtime's CPU provider.

    Args:
        model: Path of an ONNX file, or the model itself.
        threads: Threads that compute one run.
        native: ``"auto"`` uses the operator library if one is found (:func:`find_cpu_library`), ``"off"`` runs the
            function bodies, anything else is the path of a library.
        profile: Record the time of every node; read it with :meth:`node_times`. Makes runs slower.

    Raises:
        InputError: The file does not exist.
        BundleError: ONNX Runtime cannot load the model.
        UsageError: Bad thread count, or no library at the path.
        DyndeployError: The operator library cannot be loaded.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | onnx.ModelProto,
        *,
        threads: int = 1,
        native: str | os.PathLike[str] = "auto",
        profile: bool = False,
    ) -> None:
        import onnxruntime

        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise UsageError(f"threads={threads!r} is not valid: give a whole number of at least 1.")
        library = _library(native)
        source, label = _source(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _LOG_ERRORS_ONLY
        # Workers that keep spinning after a run would take the cores from the session that is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._profile_folder: Path | None = None
        if library is not None:
            try:
                options.register_custom_ops_library(str(library.path))
            except Exception as error:
                raise DyndeployError(
                    f"ONNX Runtime {onnxruntime.__version__} cannot load the operator library {library.path}: {error} "
                    "Build it again, or run with native='off'."
                ) from error
        if profile:
            self._profile_folder = Path(tempfile.mkdtemp(prefix="dyndeploy-profile-"))
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile_folder / "nodes")
        try:
            self._session: Any = onnxruntime.InferenceSession(source, options, providers=[PROVIDER])
        except Exception as error:
            self._remove_profile()
            raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {label}: {error}") from error
        self._profiling = profile
        super().__init__(
            [_tensor_info(value) for value in self._session.get_inputs()],
            [_tensor_info(value) for value in self._session.get_outputs()],
            SessionInfo(
                runtime="onnxruntime",
                version=onnxruntime.__version__,
                threads=threads,
                provider=PROVIDER,
                native=NativeUse() if library is None else NativeUse(str(library.path), library.sha256),
            ),
        )

    def __enter__(self) -> OnnxRuntimeSession:
        """Return the session."""
        return self

    def _run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        with _clear_errors():
            return dict(zip(outputs, self._session.run(list(outputs), feeds), strict=True))

    def _bind(self, feeds: dict[str, Array], outputs: Sequence[str]) -> Callable[[], None]:
        from onnxruntime import OrtValue

        session, infos = self._session, {info.name: info for info in self.outputs}
        with _clear_errors():
            binding = session.io_binding()
            values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in outputs:
                info = infos[name]
                if ANY_SIZE in info.shape:
                    binding.bind_output(name)
                    continue
                values[f"output:{name}"] = OrtValue.ortvalue_from_shape_and_type(list(info.shape), np.dtype(info.dtype))
                binding.bind_ortvalue_output(name, values[f"output:{name}"])

        # Values on the CPU share the memory of the arrays: both live as long as the function does.
        alive = (values, feeds)

        def call() -> None:
            assert alive
            session.run_with_iobinding(binding)

        return call

    def node_times(self, warmup: int = 1) -> list[NodeTime]:
        """End the profile and return the time of every node of the optimised graph, in order of execution.

        Args:
            warmup: First runs to leave out: they allocate memory.

        Raises:
            UsageError: The session does not profile, its profile was read before, or it made no more than
                ``warmup`` runs.
        """
        self._require_open()
        if not self._profiling or self._profile_folder is None:
            raise UsageError("This session records no node times: open it with profile=True and read them once.")
        self._profiling = False
        with _clear_errors():
            path = Path(self._session.end_profiling())
        try:
            events = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DyndeployError(f"Cannot read the node profile that ONNX Runtime wrote: {error}") from error
        finally:
            self._remove_profile()
        return _node_times(events, warmup)

    def _release(self) -> None:
        # An unread profile is written by the session's destructor: end it while its folder still exists.
        if self._profiling:
            self._session.end_profiling()
            self._profiling = False
        self._session = None
        self._remove_profile()

    def _remove_profile(self) -> None:
        if self._profile_folder is not None:
            shutil.rmtree(self._profile_folder, ignore_errors=True)
            self._profile_folder = None


def _library(native: str | os.PathLike[str]) -> NativeLibrary | None:
    if native == "off":
        return None
    return find_cpu_library() if native == "auto" else native_library(native)


def _source(model: str | os.PathLike[str] | onnx.ModelProto) -> tuple[str | bytes, str]:
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if not path.is_file():
            raise InputError(f"There is no model at {path}.")
        return str(path), str(path)
    return model.SerializeToString(), f"the graph '{model.graph.name}'"


def _tensor_info(value: Any) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else ANY_SIZE for size in value.shape)
    return TensorInfo(value.name, shape, _ELEMENT_TYPES.get(value.type, value.type))


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, DyndeployError):
        raise
    except Exception as error:
        raise DyndeployError(f"ONNX Runtime failed: {error}") from error


def _node_times(events: list[dict[str, Any]], warmup: int) -> list[NodeTime]:
    """Read ONNX Runtime's trace: node events between the events of the runs that contain them."""
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")[warmup:]
    if not runs:
        raise UsageError(f"The profile holds no run after {warmup} warm-up runs: run the session first.")
    nodes = sorted(
        (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")),
        key=lambda e: (e["ts"], -e["dur"]),
    )
    durations: dict[tuple[str, str, int], list[float]] = {}
    position = 0
    for start, end in runs:
        while position < len(nodes) and nodes[position]["ts"] < start:
            position += 1
        seen: dict[tuple[str, str], int] = {}
        covered = start
        while position < len(nodes) and nodes[position]["ts"] <= end:
            event = nodes[position]
            position += 1
            if event["ts"] + event["dur"] <= covered:
                # Inside a control-flow node, whose time already contains it.
                continue
            covered = event["ts"] + event["dur"]
            key = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
            # Nodes of inlined bodies may share a name: tell them apart by their order within the run.
            seen[key] = seen.get(key, -1) + 1
            durations.setdefault((*key, seen[key]), []).append(float(event["dur"]))
    return [NodeTime(name, op_type, statistics.median(times)) for (name, op_type, _), times in durations.items()]
