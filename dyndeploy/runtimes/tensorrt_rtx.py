"""Engines of a bundle, built ahead of time by TensorRT-RTX: on any machine, for the GPU of the bundle's target.

They are caches, like all engines: they lie in ``engines/`` in the bundle's folder, outside its seal, each with a file
beside it that says what it was built from, with which plugins, and which layers it has.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyndeploy import files
from dyndeploy.bundle import Bundle
from dyndeploy.errors import UsageError
from dyndeploy.graphs.tensorrt import required_creators
from dyndeploy.runtimes.native import NativeLibrary
from dyndeploy.runtimes.tensorrt_ahead import (
    AheadEngine,
    BuilderPackage,
    build_checked,
    require_capability,
    rtx_package,
)
from dyndeploy.runtimes.tensorrt_engine import (
    EngineFile,
    EngineSettings,
    cache_folder,
    engine_graphs,
    engine_place,
    found_engine,
    plugin_library,
    require_one_graph,
    source_sha256,
)
from dyndeploy.runtimes.tensorrt_plan import BuildPlan, plan_build
from dyndeploy.targets import Target, load_device, load_target, target_names

if TYPE_CHECKING:
    import onnx

    from dyndeploy.runtimes.cuda import GpuInfo

DYNAMIC, STATIC = "dynamic", "static twin"
AHEAD_SCHEMA = 1
"""Of the key of an engine that was built ahead of time."""


@dataclass(frozen=True)
class AheadFile:
    """An engine file that was built and never run.

    Attributes:
        graph: What it computes: ``"dynamic"``, ``"exit 2"`` (the stage up to that exit), ``"part0"`` (of a network that
            runs in parts) or ``"static twin"``.
        path: The engine.
        metadata: What it was built from and with, its layers, the memory that it needs; also in the file beside it.
        cached: It was found, not built.
    """

    graph: str
    path: Path
    metadata: dict[str, Any]
    cached: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"graph": self.graph, "path": str(self.path), "cached": self.cached, **self.metadata}


def ahead_target(bundle: Bundle) -> Target:
    """The target of a bundle; raises ``UsageError`` unless TensorRT-RTX builds for its GPU."""
    target = load_target(bundle.manifest.target)
    if not target.ahead_of_time:
        known = ", ".join(name for name in target_names() if load_target(name).ahead_of_time)
        raise UsageError(
            f"TensorRT-RTX has no engines for {target.name}: it builds ahead of time for {known}. Engines for "
            f"{target.name} are built where it is: 'dyndeploy engine' there, or --trtexec for the lines to type."
        )
    return target


def build_bundle_ahead(
    bundle: Bundle,
    settings: EngineSettings | None = None,
    *,
    package: BuilderPackage | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[AheadFile, ...]:
    """Build the engines of a bundle for its target's GPU, which need not be here, or find them.

    Args:
        bundle: A bundle for a target of TensorRT-RTX.
        settings: How engines are built; None takes the defaults. With a plugin library that is found it is used, else
            stand-ins, which give the same engine.
        package: The builder; None takes the installed TensorRT-RTX.
        progress: Called with a line at the start of each engine.

    Returns:
        The dynamic network, or each of its stages or engines, and the static twin where the bundle has one.

    Raises:
        UsageError: The target has no such engines, or there is no plan for the precision.
        DyndeployError: TensorRT-RTX is missing, or refused a graph.
        OutputError: An engine cannot be written.
    """
    target = ahead_target(bundle)
    settings = (settings or EngineSettings()).of(bundle)
    capability = require_capability(str(load_device(target.name).hardware.compute_capability))
    target.require_precision(str(settings.precision))
    builder = _Builder(settings, capability, package or rtx_package(), _library(settings))
    found = []
    for graph, source in _graphs(bundle, static_only=settings.static):
        progress(f"building the engine of {bundle.manifest.network.name}, {graph}, for {target.title}")
        found.append(builder.build(graph, source))
    return tuple(found)


def build_rtx_engine(
    source: onnx.ModelProto,
    gpu: GpuInfo,
    settings: EngineSettings,
    *,
    package: BuilderPackage | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> EngineFile:
    """As :func:`~dyndeploy.runtimes.tensorrt_engine.build_graph_engine`, by TensorRT-RTX, to run here.

    It is the engine that is built ahead of time with the same plugin library for GPUs of this compute capability.

    Args:
        source: The graph.
        gpu: The device.
        settings: How the engine is built; no precision means FP32.
        package: The builder; None takes the installed TensorRT-RTX.
        progress: Called with a line at the start.

    Raises:
        UsageError: TensorRT-RTX does not support the GPU, there is no plan for the precision, or no plugin library.
        DyndeployError: TensorRT-RTX is missing, or refused the graph.
        OutputError: The engine cannot be written.
    """
    capability = require_capability(gpu.compute_capability)
    library = plugin_library(settings.library) if required_creators(source) else None
    progress("building the engine with TensorRT-RTX")
    made = _Builder(settings, capability, package or rtx_package(), library).build(source.graph.name, source)
    plan = BuildPlan.from_json({**made.metadata["built_from"]["plan"], "cuda_graph": settings.options.cuda_graph})
    return EngineFile(made.path, plan, made.metadata, library, made.cached)


def _library(settings: EngineSettings) -> NativeLibrary | None:
    if settings.library != "auto":
        return plugin_library(settings.library)
    with suppress(UsageError):
        return plugin_library()
    return None


def _graphs(bundle: Bundle, *, static_only: bool) -> Iterator[tuple[str, onnx.ModelProto]]:
    if not static_only:
        if bundle.manifest.exits is None and not bundle.parts:
            yield DYNAMIC, bundle.load_model()
        else:
            yield from engine_graphs(bundle)
    if static_only:
        require_one_graph(bundle, EngineSettings(static=True))
    # What runs in parts has a twin for verification only.
    if static_only or (bundle.static is not None and not bundle.parts):
        yield STATIC, bundle.load_static()


@dataclass(frozen=True)
class _Builder:
    settings: EngineSettings
    capability: str
    package: BuilderPackage
    library: NativeLibrary | None

    def build(self, graph: str, source: onnx.ModelProto) -> AheadFile:
        plan, copy = plan_build(
            source,
            self.settings.precision or "fp32",
            self.package.text,
            strongly_typed=self.settings.strongly_typed,
            options=self.settings.options,
            capabilities=(self.capability,),
            rates=self.settings.rates,
        )
        library = self.library if plan.plugins else None
        plan = plan.with_library(None if library is None else library.sha256)
        content = copy.SerializeToString(deterministic=True)
        folder = cache_folder() if self.settings.cache is None else Path(self.settings.cache)
        built_from, path, beside = engine_place(folder, plan, content, {"schema": AHEAD_SCHEMA})
        origin = source_sha256(source)
        metadata = found_engine(path, beside, built_from, origin)
        if metadata is not None:
            return AheadFile(graph, path, metadata, cached=True)
        start = time.monotonic()
        # The path is claimed first: a folder that cannot be written costs no build.
        with files.atomic_file(path) as temporary:
            made = build_checked(source, plan, copy, self.package, library)
            temporary.write_bytes(made.engine)
        metadata = {
            "built_from": built_from,
            "engine_sha256": hashlib.sha256(made.engine).hexdigest(),
            **_described(made),
            "build_seconds": round(time.monotonic() - start, 1),
            "source_sha256": origin,
        }
        # Last: an engine without its metadata is not taken for a whole one.
        files.write_json(beside, metadata)
        return AheadFile(graph, path, metadata, cached=False)


def _described(made: AheadEngine) -> dict[str, Any]:
    return {**made.metadata(), "engine_bytes": len(made.engine), "plan": made.plan.precision_plan.description}
