"""Who is timed against the static twin: our operators in every form that runs here, and static networks elsewhere.

All of them live in one process. The instruction set of the operator library is read when a session registers it, so
sessions of several sets can be timed in turn.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dyndeploy.runtimes import OnnxRuntimeSession, find_cpu_library
from dyndeploy.runtimes.native import ISA_VARIABLE, NativeLibrary, native_library

Feeds = Mapping[str, npt.NDArray[Any]]
Run = Callable[[], Any]
BEST, BODIES, BF16, INT8 = "best", "bodies", "bf16", "int8"
OPENVINO_FP32, OPENVINO_BF16, OPENVINO_INT8, ORT_INT8 = "openvino-fp32", "openvino-bf16", "openvino-int8", "ort-int8"
STATICS = (OPENVINO_FP32, OPENVINO_BF16, OPENVINO_INT8, ORT_INT8)


@dataclass(frozen=True)
class Dynamic:
    """The dynamic network with our operators.

    Attributes:
        name: :data:`BEST`, the name of another instruction set, :data:`BF16`, :data:`INT8` or :data:`BODIES`; of
            INT8 on another instruction set or in bodies ``"int8-..."``.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        isa: What ``DYNDEPLOY_CPU_ISA`` is while a session is opened; None leaves it.
        precision: Of the bottlenecks; in :data:`INT8` it runs the INT8 copy of the network.
    """

    name: str
    native: str = "auto"
    isa: str | None = None
    precision: str = "fp32"

    def open(
        self, model: str | os.PathLike[str] | onnx.ModelProto, threads: int, *, profile: bool = False
    ) -> OnnxRuntimeSession:
        """A session of a dynamic graph."""
        with _environment(self.isa):
            return OnnxRuntimeSession(
                model, threads=threads, native=self.native, precision=self.precision, profile=profile
            )


@dataclass(frozen=True)
class Static:
    """The static twin, in another runtime or precision.

    Attributes:
        name: One of :data:`STATICS`.
        quantised: Whether it runs the INT8 copy of the twin.
        hint: OpenVINO's inference precision; None: ONNX Runtime.
    """

    name: str
    quantised: bool
    hint: str | None

    def open(self, model: Path, threads: int, stack: ExitStack) -> Callable[[Feeds], Run]:
        """What makes runs of the model on given inputs; closed with the stack."""
        if self.hint is not None:
            return _openvino(model, threads, self.hint)
        session = stack.enter_context(OnnxRuntimeSession(model, threads=threads, native="off"))
        outputs = [session.outputs[0].name]
        return lambda feeds: session.bind({info.name: feeds[info.name] for info in session.inputs}, outputs)


@contextlib.contextmanager
def _environment(isa: str | None) -> Iterator[None]:
    before = os.environ.get(ISA_VARIABLE)
    if isa is not None:
        os.environ[ISA_VARIABLE] = isa
    try:
        yield
    finally:
        if isa is not None:
            os.environ.pop(ISA_VARIABLE)
        if before is not None:
            os.environ[ISA_VARIABLE] = before


def library_of(native: str) -> NativeLibrary | None:
    """The operator library of ``"auto"``, ``"off"`` or a path."""
    if native == "off":
        return None
    return find_cpu_library() if native == "auto" else native_library(native)


def dynamics(native: str, wanted: tuple[str, ...] | None) -> tuple[list[Dynamic], list[str]]:
    """Our forms that run here, and lines about those that do not.

    Args:
        native: A library, ``"auto"``, or ``"off"``: function bodies only.
        wanted: Names; None takes all.
    """
    library = library_of(native)
    found, left_out = [], []
    if library is None:
        left_out.append("the operator library: " + ("switched off" if native == "off" else "not built"))
    else:
        found.append(Dynamic(BEST, native))
        found += [Dynamic(name, native, isa=name) for name in _others(library, "fp32")]
        if library.instruction_set(INT8) is not None:
            found.append(Dynamic(INT8, native, precision=INT8))
            found += [Dynamic(f"{INT8}-{name}", native, name, INT8) for name in _others(library, INT8)]
        else:
            left_out.append(f"{INT8}: this library has no operators in integers")
        if library.instruction_set(BF16) is not None:
            found.append(Dynamic(BF16, native, precision="bf16"))
        else:
            left_out.append(f"{BF16}: this processor or library has no BF16 instructions")
    found += [Dynamic(BODIES, "off"), Dynamic(f"{INT8}-{BODIES}", "off", precision=INT8)]
    return [entry for entry in found if wanted is None or entry.name in wanted], left_out


def _others(library: NativeLibrary, precision: str) -> list[str]:
    """Instruction sets of this machine that are not the best one, unless the environment names one."""
    if os.environ.get(ISA_VARIABLE):
        return []
    return [name for name in library.instruction_sets(precision)[1:] if name != "generic"]  # That is for tests.


def statics(wanted: tuple[str, ...] | None) -> tuple[list[Static], list[str]]:
    """Static networks elsewhere that run here, and lines about those that do not."""
    known = (
        Static(OPENVINO_FP32, False, "f32"),
        Static(OPENVINO_BF16, False, "bf16"),
        Static(OPENVINO_INT8, True, "f32"),
        Static(ORT_INT8, True, None),
    )
    asked = [entry for entry in known if wanted is None or entry.name in wanted]
    try:
        import openvino
    except ImportError:
        missing = [entry.name for entry in asked if entry.hint is not None]
        left_out = (
            [f"{', '.join(missing)}: the package openvino is not installed (pip install openvino)"] if missing else []
        )
        return [entry for entry in asked if entry.hint is None], left_out
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" in capabilities or OPENVINO_BF16 not in {entry.name for entry in asked}:
        return asked, []
    return [entry for entry in asked if entry.name != OPENVINO_BF16], [
        f"{OPENVINO_BF16}: OpenVINO finds no BF16 instructions on this processor"
    ]


def _openvino(path: Path, threads: int, hint: str) -> Callable[[Feeds], Run]:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # Who else is timed may run where it likes, too.
    }  # fmt: skip
    compiled = core.compile_model(core.read_model(path), "CPU", options)
    request = compiled.create_infer_request()
    names = [item.get_any_name() for item in compiled.inputs]

    def bind(feeds: Feeds) -> Run:
        tensors = {name: openvino.Tensor(np.ascontiguousarray(feeds[name]), shared_memory=True) for name in names}

        def run() -> None:
            for name, tensor in tensors.items():
                request.set_tensor(name, tensor)
            request.infer()

        return run

    return bind
