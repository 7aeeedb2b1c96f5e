"""Which runtime runs a bundle on this machine: the one place that decides, and says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dyndeploy.bundle import Bundle
from dyndeploy.errors import DyndeployError, UsageError, unknown_name
from dyndeploy.precisions import PRECISIONS
from dyndeploy.runtimes.base import (
    AUTO,
    ENGINE_RUNTIMES,
    ONNXRUNTIME,
    ONNXRUNTIME_CUDA,
    RUNTIMES,
    TENSORRT,
    TENSORRT_RTX,
)
from dyndeploy.runtimes.cuda import FoundGpu, find_gpu, require_pycuda
from dyndeploy.runtimes.onnxruntime import require_provider
from dyndeploy.runtimes.tensorrt_ahead import require_capability
from dyndeploy.runtimes.tensorrt_api import TensorRT
from dyndeploy.runtimes.tensorrt_engine import plugin_library, require_fixed_batch
from dyndeploy.targets import Target, device_of_gpu, load_device, load_target


@dataclass(frozen=True)
class RuntimeChoice:
    """What runs a bundle here.

    Attributes:
        runtime: One of :data:`~dyndeploy.runtimes.base.RUNTIMES`.
        why: The reason, as a clause.
        gpu: What it runs on; None for the CPU.
        passed_over: Why none of the better ones was taken, by name; empty where the user named one.
    """

    runtime: str
    why: str
    gpu: FoundGpu | None = None
    passed_over: Mapping[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """One line for a reader: what runs, where, why, and why nothing better does."""
        where = "" if self.gpu is None else f" on {self.gpu}"
        return f"Runtime: {RUNTIMES[self.runtime]}{where}: {self.reason}."

    @property
    def reason(self) -> str:
        """:attr:`why` with what was passed over."""
        names: dict[str, list[str]] = {}
        for name, why in self.passed_over.items():
            names.setdefault(why, []).append(name)
        return "; ".join([self.why, *(f"not {' or '.join(which)}, because {why}" for why, which in names.items())])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"name": self.runtime, "why": self.reason}


def engine_runtimes(target: Target) -> tuple[str, ...]:
    """The runtimes that have engines for a target, best first; none for a CPU.

    TensorRT-RTX comes first where it supports the GPU: its engines are there already if they were built ahead of time.
    """
    if target.runtime != TENSORRT:
        return ()
    return (TENSORRT_RTX, TENSORRT) if target.ahead_of_time else (TENSORRT,)


def choose_runtime(bundle: Bundle, asked: str | RuntimeChoice = AUTO, *, device: int = 0) -> RuntimeChoice:
    """Decide what runs a bundle on this machine.

    A runtime that was asked for is taken or refused. Left to itself, a bundle for a CPU runs there; one for a GPU runs
    in the first of these that can be had: TensorRT-RTX where it supports the bundle's target, TensorRT, ONNX Runtime's
    CUDA provider, ONNX Runtime on the CPU.

    Args:
        bundle: The bundle.
        asked: ``"auto"``, one of :data:`~dyndeploy.runtimes.base.RUNTIMES`, or a choice that was made already.
        device: Index of the GPU.

    Raises:
        UsageError: The runtime is unknown, or cannot be had; the message is why.
    """
    if isinstance(asked, RuntimeChoice):
        return asked
    if asked not in (AUTO, *RUNTIMES):
        raise unknown_name("runtime", asked, (AUTO, *RUNTIMES))
    target = load_target(bundle.manifest.target)
    if asked != AUTO:
        try:
            gpu = _usable(asked, bundle, device)
        except DyndeployError as error:
            raise UsageError(f"The runtime {asked} cannot be had here: {_clause(error)}.") from error
        return RuntimeChoice(asked, "it was asked for", gpu)
    if target.runtime != TENSORRT:
        return RuntimeChoice(ONNXRUNTIME, f"the bundle was exported for {target.name}")
    passed: dict[str, str] = {}
    for runtime in (*engine_runtimes(target), ONNXRUNTIME_CUDA):
        try:
            gpu = _usable(runtime, bundle, device)
        except DyndeployError as error:
            passed[runtime] = _clause(error)
            continue
        assert gpu is not None
        return RuntimeChoice(runtime, _reason(target, gpu), gpu, passed)
    return RuntimeChoice(ONNXRUNTIME, f"the bundle was exported for {target.name}", None, passed)


def choose_engine_runtime(bundle: Bundle, asked: str = AUTO, *, device: int = 0) -> RuntimeChoice:
    """As :func:`choose_runtime`, among those that run an engine here; for a bundle for a CPU that is TensorRT.

    Raises:
        UsageError: None of them can be had; the message is why.
    """
    if asked not in (AUTO, *ENGINE_RUNTIMES):
        raise unknown_name("runtime of engines", asked, (AUTO, *ENGINE_RUNTIMES))
    if asked == AUTO:
        known = engine_runtimes(load_target(bundle.manifest.target))
        if len(known) > 1:
            choice = choose_runtime(bundle, device=device)
            if choice.runtime in ENGINE_RUNTIMES:
                return choice
            raise UsageError(f"No runtime of engines can be had here: {choice.reason}.")
        asked = TENSORRT
    return choose_runtime(bundle, asked, device=device)


def _clause(error: Exception) -> str:
    """An error's message as a part of a sentence."""
    return str(error).rstrip(".")


def _reason(target: Target, gpu: FoundGpu) -> str:
    if device_of_gpu(gpu.name) == target.name:
        return f"the bundle was exported for {target.name}"
    return f"the bundle was exported for {target.name}, which this GPU is not"


def _usable(runtime: str, bundle: Bundle, device: int) -> FoundGpu | None:
    """The GPU that a runtime would use, None for the CPU; raises ``DyndeployError`` where it cannot run the bundle."""
    if runtime == ONNXRUNTIME:
        return None
    gpu = find_gpu(device)
    if runtime == ONNXRUNTIME_CUDA:
        require_provider("cuda")
        precision = bundle.manifest.precision
        if precision == "bf16":
            raise UsageError("the bundle computes in bf16, and the function bodies that run on a GPU compute in fp32")
        if PRECISIONS[precision].in_graph:
            raise UsageError(f"the bundle computes in {precision}, and its operators in integers run on a CPU only")
        return gpu
    if runtime == TENSORRT_RTX:
        require_capability(gpu.compute_capability)
    TensorRT.load(runtime)
    require_pycuda()
    if bundle.manifest.exits is not None:
        require_fixed_batch(bundle)
    if bundle.manifest.operators:
        plugin_library()
    return gpu


def require_this_gpu(name: str, device: int = 0) -> FoundGpu:
    """The GPU of this machine, if it is the device of that name.

    Args:
        name: Of a device, e.g. ``"rtx4090"``.
        device: Index of the GPU.

    Raises:
        UsageError: There is no GPU, or it is another one; the message has both names.
    """
    wanted = load_device(name)
    try:
        gpu = find_gpu(device)
    except DyndeployError as error:
        raise UsageError(
            f"The device {name} is a GPU, and here {_clause(error)}. Measure on the machine that has it, or with "
            f"--host user@address; 'dyndeploy predict BUNDLE --device {name}' predicts a latency without one."
        ) from error
    capability = wanted.hardware.compute_capability
    if device_of_gpu(gpu.name) != wanted.name or capability not in (None, gpu.compute_capability):
        raise UsageError(
            f"The device {name} was asked for ({wanted.title}, compute capability {capability}), and this machine has "
            f"{gpu}. Name what is there, or measure where the {name} is with --host user@address."
        )
    return gpu
