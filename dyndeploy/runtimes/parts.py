"""A network that its target runs as several engines, with host programs in between, behind one session."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dyndeploy.bundle import Bundle, PartInfo, TensorInfo
from dyndeploy.errors import BundleError, DyndeployError
from dyndeploy.graphs.passes import with_all_bodies
from dyndeploy.runtimes.base import ENGINE_RUNTIMES, Array, Session
from dyndeploy.runtimes.host_program import HostProgram
from dyndeploy.runtimes.onnxruntime import PROVIDER_OF, OnnxRuntimeSession
from dyndeploy.runtimes.tensorrt import TensorRTSession
from dyndeploy.runtimes.tensorrt_engine import EngineSettings, load_program

if TYPE_CHECKING:
    import onnx


class PartsSession(Session):
    """The parts of a bundle one after the other, opened by :func:`open_parts`.

    What one engine makes for another stays on the device; the host reads what its programs need.

    Args:
        bundle: A bundle with parts.
        steps: Session or program of each part, in order.
        static: Whether they are those of the static twin.

    Attributes:
        ms: Wall-clock milliseconds of each part in the last run, by the name of its file.
    """

    def __init__(self, bundle: Bundle, steps: Sequence[Session | HostProgram], *, static: bool = False) -> None:
        self._parts, self._steps = bundle.static_parts if static else bundle.parts, tuple(steps)
        manifest = bundle.manifest
        made = () if static else manifest.masks
        masks = tuple(TensorInfo(mask.name, mask.shape, "float32") for mask in made)
        first = next(step for step in steps if isinstance(step, Session))
        self.ms: dict[str, float] = {}
        super().__init__(manifest.inputs, (*manifest.outputs, *masks), first.info)

    def __enter__(self) -> PartsSession:
        """Return the session."""
        return self

    def _run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        values, self.ms = dict(feeds), {}
        for index, (part, step) in enumerate(zip(self._parts, self._steps, strict=True)):
            start = time.perf_counter()
            given = {info.name: values[info.name] for info in part.inputs if info.name in values}
            if isinstance(step, HostProgram):
                values |= _checked(part, step.run(given))
            elif isinstance(step, TensorRTSession):
                wanted = self._wanted(index, outputs)
                step.execute(wanted, given)
                values |= {name: step.host(name) for name in wanted}
            else:
                values |= step.run(given, finite=False)
            self.ms[part.file] = 1e3 * (time.perf_counter() - start)
        return {name: np.array(values[name]) for name in outputs}

    def _wanted(self, index: int, outputs: Sequence[str]) -> list[str]:
        """What the host reads of an engine: inputs of host programs behind it, and outputs of the network."""
        later = {info.name for part in self._parts[index + 1 :] if part.host for info in part.inputs} | set(outputs)
        return [info.name for info in self._parts[index].outputs if info.name in later]

    def _bind(self, feeds: dict[str, Array], outputs: Mapping[str, Array | None]) -> Callable[[], None]:
        def call() -> None:
            found = self._run(feeds, list(outputs))
            for name, array in outputs.items():
                if array is not None:
                    np.copyto(array, found[name])

        return call

    def _release(self) -> None:
        # An engine may read memory of the ones before it.
        for step in reversed(self._steps):
            if isinstance(step, Session):
                step.close()


def _checked(part: PartInfo, values: Mapping[str, Array]) -> dict[str, Array]:
    """What a program gave, as the manifest promises it to the parts behind."""
    for info in part.outputs:
        found = values[info.name]
        if found.shape != info.shape or found.dtype != np.dtype(info.dtype):
            raise BundleError(
                f"{part.file} gives '{info.name}' as {found.dtype} {found.shape}, and the manifest says {info.dtype} "
                f"{info.shape}. Export the bundle again."
            )
    return {name: np.ascontiguousarray(value) for name, value in values.items()}


def open_parts(
    bundle: Bundle,
    runtime: str = "onnxruntime",
    *,
    threads: int = 1,
    settings: EngineSettings | None = None,
    device: int = 0,
    native: str | os.PathLike[str] = "auto",
    static: bool = False,
    change: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model,
) -> PartsSession:
    """Open the parts of a bundle.

    Args:
        bundle: A bundle with parts (:attr:`~dyndeploy.bundle.Bundle.parts`).
        runtime: One of :data:`~dyndeploy.runtimes.base.RUNTIMES`: what runs the engines.
        threads: Threads that compute, in ONNX Runtime.
        settings: How engines are built.
        device: Index of the GPU.
        native: Of graphs with dynamic operators, as for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        static: Open those of the static twin.
        change: What becomes of an engine's graph before ONNX Runtime opens it; TensorRT is given graphs as they are.

    Raises:
        BundleError: A part cannot be read, or is not what the manifest says.
        DyndeployError: The bundle has no parts, or the runtime is missing.
    """
    parts = bundle.static_parts if static else bundle.parts
    if not parts:
        raise DyndeployError(f"{bundle.path} has no {'static twin in ' if static else ''}parts: it is one graph.")
    graphs = {part.file: model for part, model in bundle.load_engine_parts(static=static)}
    settings = replace((settings or EngineSettings()).of(bundle), runtime=runtime)
    steps: list[Session | HostProgram] = []
    with ExitStack() as stack:
        for part in parts:
            if part.host:
                steps.append(load_program(bundle, part))
                continue
            if runtime in ENGINE_RUNTIMES:
                before = [step for step in steps if isinstance(step, TensorRTSession)]
                session: Session = TensorRTSession.from_graph(
                    graphs[part.file], settings, device=device, before=before
                )[0]
            else:
                model = change(with_all_bodies(graphs[part.file]))
                session = OnnxRuntimeSession(model, threads=threads, native=native, provider=PROVIDER_OF[runtime])
            steps.append(stack.enter_context(session))
        opened = PartsSession(bundle, steps, static=static)
        stack.pop_all()
    return opened
