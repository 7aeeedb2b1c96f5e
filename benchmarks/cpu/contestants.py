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

from dyndeploy.bundle import Bundle
from dyndeploy.runtimes import OnnxRuntimeSession, find_cpu_library
from dyndeploy.runtimes.native import ISA_VARIABLE, NativeLibrary, native_library

Feeds = Mapping[str, npt.NDArray[Any]]
Run = Callable[[], Any]
BEST, BODIES, BF16 = "best", "bodies", "bf16"
OPENVINO_FP32, OPENVINO_BF16, OPENVINO_INT8, ORT_INT8 = "openvino-fp32", "openvino-bf16", "openvino-int8", "ort-int8"
STATICS = (OPENVINO_FP32, OPENVINO_BF16, OPENVINO_INT8, ORT_INT8)


@dataclass(frozen=True)
class Dynamic:
    """The dynamic network with our operators.

    Attributes:
        name: :data:`BEST`, the name of another instruction set, :data:`BF16` or :data:`BODIES`.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        isa: What ``DYNDEPLOY_CPU_ISA`` is while a session is opened; None leaves it.
        precision: Of the bottlenecks.
    """

    name: str
    native: str = "auto"
    isa: str | None = None
    precision: str = "fp32"

    def open(self, model: str | os.PathLike[str] | onnx.ModelProto, threads: int) -> OnnxRuntimeSession:
        """A session of a dynamic graph."""
        with _environment(self.isa):
            return OnnxRuntimeSession(model, threads=threads, native=self.native, precision=self.precision)


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
        if not os.environ.get(ISA_VARIABLE):
            others = [name for name in library.instruction_sets()[1:] if name != "generic"]  # That is for tests.
            found += [Dynamic(name, native, isa=name) for name in others]
        if library.instruction_set(BF16) is not None:
            found.append(Dynamic(BF16, native, precision="bf16"))
        else:
            left_out.append(f"{BF16}: this processor or library has no BF16 instructions")
    found.append(Dynamic(BODIES, "off"))
    return [entry for entry in found if wanted is None or entry.name in wanted], left_out


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


def quantised_twin(bundle: Bundle, path: Path, samples: int = 8) -> Path:
    """The static twin in INT8 (Q/DQ, U8S8, weights per channel), calibrated with crops of scikit-learn's photographs.

    Only its speed is of interest: weights of a benchmark are random. A file that is there already is taken.
    """
    if path.exists():
        return path
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    assert bundle.static is not None
    (info,) = bundle.manifest.inputs

    class Crops(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(_crops(info.shape, max(1, samples // info.shape[0])))

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {info.name: batch}

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(bundle.static), str(prepared))
    quantize_static(
        str(prepared), str(path), Crops(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def _crops(shape: tuple[int, ...], count: int) -> Iterator[npt.NDArray[np.float32]]:
    """Batches (N, 3, H, W) of random crops, about normalised."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images  # (427, 640, 3), uint8
    random = np.random.default_rng(0)
    batch, channels, height, width = shape
    for _ in range(count):
        crops = np.empty((batch, height, width, channels), np.float32)
        for crop in crops:
            photograph = photographs[random.integers(len(photographs))]
            top, left = (
                random.integers(photograph.shape[0] - height + 1),
                random.integers(photograph.shape[1] - width + 1),
            )
            crop[...] = photograph[top : top + height, left : left + width]
        yield np.ascontiguousarray((crops / 255 - 0.45) / 0.225).transpose(0, 3, 1, 2).copy()
