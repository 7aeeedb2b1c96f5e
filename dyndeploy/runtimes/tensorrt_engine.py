"""From a bundle to an engine: plugin library, build, engine cache, timing cache, ``trtexec`` command lines.

An engine is a cache, never the product: it runs only with the TensorRT and on the device it was built with. It is
found again by a key over all that shaped it; what that was stands in a file beside it. Whatever is found and cannot be
used is made again, and the log says so in one line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from dyndeploy import files
from dyndeploy.bundle import INPUT, Bundle, PartInfo
from dyndeploy.errors import BundleError, DyndeployError, InputError, OutputError, UsageError
from dyndeploy.graphs.passes import with_all_bodies
from dyndeploy.graphs.tensorrt import missing_creators, required_creators
from dyndeploy.ops import OPERATORS
from dyndeploy.precisions import precision_of
from dyndeploy.runtimes import tensorrt_device, tensorrt_inspector
from dyndeploy.runtimes.base import TENSORRT
from dyndeploy.runtimes.host_program import HostProgram, ProgramError
from dyndeploy.runtimes.native import (
    TENSORRT_LIBRARY_VARIABLE,
    NativeLibrary,
    find_tensorrt_library,
    native_library,
)
from dyndeploy.runtimes.onnxruntime import OnnxRuntimeSession
from dyndeploy.runtimes.tensorrt_api import TensorRT
from dyndeploy.runtimes.tensorrt_device import RTX, parse_version
from dyndeploy.runtimes.tensorrt_plan import BuildOptions, BuildPlan, plan_build

if TYPE_CHECKING:
    import onnx

    from dyndeploy.runtimes.cuda import GpuInfo

CACHE_VARIABLE = "DYNDEPLOY_CACHE"
"""Environment variable that names the folder of caches; without it, the user's cache folder."""

ENGINES = "engines"
"""Folder of engines, and of what is kept beside them, inside a bundle's folder and outside its seal."""

TIMING_CACHE = "timing.cache"
ENGINE_SCHEMA = 3
"""Of an engine's key and of the file beside it, which the C++ runtime makes as well."""

_LOG = logging.getLogger("dyndeploy.tensorrt")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is built; the defaults live here and nowhere else.

    Attributes:
        precision: ``"fp32"``, ``"fp16"``, or None for the bundle's plan.
        strongly_typed: Types in the graph instead of builder flags; None takes flags where they exist.
        static: Build the static twin instead of the dynamic network.
        library: Plugin library: ``"auto"`` or a path.
        cache: Folder of engines and of what is kept beside them; None is that of the bundle (:func:`engine_folder`), of
            graphs outside a bundle :func:`cache_folder`.
        options: Workspace, TF32 and CUDA graphs.
        rates: Activation rates by mask at which TensorRT times the plugins; None takes those of the bundle's reference
            images.
        runtime: ``"tensorrt"``, or ``"tensorrt_rtx"``.
    """

    precision: str | None = None
    strongly_typed: bool | None = None
    static: bool = False
    library: str | os.PathLike[str] = "auto"
    cache: str | os.PathLike[str] | None = None
    options: BuildOptions = field(default_factory=BuildOptions)
    rates: Mapping[str, float] | None = None
    runtime: str = TENSORRT

    def of(self, bundle: Bundle) -> EngineSettings:
        """The settings with what a bundle says where they leave it open: precision, folder and rates.

        Raises:
            UsageError: INT8 of a bundle that was exported in something else.
        """
        manifest = bundle.manifest
        asked = self.precision or manifest.precision
        if precision_of(asked).in_graph and manifest.precision != asked:
            raise UsageError(
                f"The bundle {bundle.path} was exported in {manifest.precision}: an INT8 engine needs a bundle of "
                "'export --precision int8' with a calibration table ('dyndeploy quantize'). Or build it in fp16."
            )
        return replace(
            self,
            precision=asked,
            cache=self.cache or engine_folder(bundle),
            rates=manifest.reference.rates if self.rates is None else self.rates,
        )


@dataclass(frozen=True)
class EngineFile:
    """A built engine.

    Attributes:
        path: The engine.
        plan: How it was built.
        metadata: What it was built from and with; also in the JSON file beside it.
        library: Plugin library that must be loaded before it, or None if it needs none.
        cached: It was found, not built.
    """

    path: Path
    plan: BuildPlan
    metadata: dict[str, Any]
    library: NativeLibrary | None
    cached: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"path": str(self.path), "cached": self.cached, **self.metadata}


def engine_folder(bundle: Bundle) -> Path:
    """Where the engines of a bundle are kept: inside it; where it cannot be written, in :func:`cache_folder`."""
    folder = bundle.path / ENGINES
    if os.access(folder if folder.is_dir() else bundle.path, os.W_OK | os.X_OK):
        return folder
    _LOG.warning("dyndeploy: %s cannot be written: engines are kept in %s.", bundle.path, cache_folder())
    return cache_folder()


def cache_folder() -> Path:
    """Folder of engines outside a bundle: below ``DYNDEPLOY_CACHE``, else below the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named) / "engines"
    folder = files.user_folder("XDG_CACHE_HOME", ".cache")
    if folder is None:
        raise UsageError(f"There is no home folder to keep engines in: set HOME, XDG_CACHE_HOME or {CACHE_VARIABLE}.")
    return folder / "engines"


def plugin_library(choice: str | os.PathLike[str] = "auto") -> NativeLibrary:
    """The library of TensorRT plugins, which the log names with its checksum.

    Args:
        choice: ``"auto"`` asks ``DYNDEPLOY_TENSORRT_LIBRARY``, then the package; anything else is a path.

    Raises:
        UsageError: There is none.
    """
    try:
        library = find_tensorrt_library() if choice == "auto" else native_library(choice)
    except UsageError as error:
        raise UsageError(f"There is no plugin library to load: {error}") from error
    if library is None:
        raise UsageError(
            "The dynamic operators need TensorRT plugins, and no plugin library was found. Build plugins/ on this "
            f"machine (see plugins/README.md) and name the library with --plugins or {TENSORRT_LIBRARY_VARIABLE}."
        )
    _LOG.info("TensorRT plugins: %s (sha256 %s)", library.path, library.sha256)
    return library


def require_creators(api: TensorRT, library: NativeLibrary, model: onnx.ModelProto) -> None:
    """Load the plugins of a graph; raises ``DyndeployError`` that names the operators without a creator."""
    needed = [(name, str(OPERATORS[name].version)) for name in required_creators(model)]
    api.load_plugins(library, needed)
    missing = missing_creators(model, api.creators())
    if missing:
        raise DyndeployError(
            f"No plugin creator for {', '.join(missing)}: {library.path} (sha256 {library.sha256[:12]}) was loaded "
            f"into TensorRT {api.text} and registers none. Build the library of this release of dyndeploy."
        )


def _source(bundle: Bundle, static: bool) -> onnx.ModelProto:
    return bundle.load_static() if static else bundle.load_model()


def build_engine(
    bundle: Bundle,
    gpu: GpuInfo,
    settings: EngineSettings | None = None,
    *,
    api: TensorRT | None = None,
    progress: Progress = lambda message: None,
) -> EngineFile:
    """Build a bundle's engine for this machine, or find it in the cache.

    Args:
        bundle: Any bundle; its graph must use operators that TensorRT knows.
        gpu: The device (:attr:`Gpu.info <dyndeploy.runtimes.cuda.Gpu.info>`); its context is current.
        settings: How the engine is built; None takes the defaults.
        api: TensorRT; None imports it.
        progress: Called with a line at the start of each step.

    Raises:
        UsageError: No plan for the precision, or no plugin library.
        DyndeployError: TensorRT is missing, a plugin is missing, or parser or builder refused.
        OutputError: The cache cannot be written.
    """
    require_one_graph(bundle, settings or EngineSettings())
    settings = (settings or EngineSettings()).of(bundle)
    return build_graph_engine(_source(bundle, settings.static), gpu, settings, api=api, progress=progress)


def build_stage_engines(
    bundle: Bundle,
    gpu: GpuInfo,
    settings: EngineSettings | None = None,
    *,
    api: TensorRT | None = None,
    progress: Progress = lambda message: None,
) -> list[EngineFile]:
    """As :func:`build_engine`, for a network of several engines: one per stage or part, in order.

    Args:
        bundle: Of stages with a fixed batch size, or with parts.
        gpu: As for :func:`build_engine`, like all that follow.
        settings: How the engines are built.
        api: TensorRT; None imports it.
        progress: Called with a line at the start of each step.

    Raises:
        UsageError: The stages leave the batch size open.
    """
    settings = (settings or EngineSettings()).of(bundle)
    built = []
    for label, model in engine_graphs(bundle):

        def told(message: str, label: str = label) -> None:
            progress(f"{label}: {message}")

        built.append(build_graph_engine(model, gpu, settings, api=api, progress=told))
    return built


def engine_graphs(bundle: Bundle) -> list[tuple[str, onnx.ModelProto]]:
    """The graphs of a network of several engines, each with what to call it: ``"exit 2"`` or ``"part0"``.

    Raises:
        UsageError: Stages leave the batch size open.
    """
    if bundle.parts:
        return [(Path(part.file).stem, model) for part, model in bundle.load_engine_parts()]
    require_fixed_batch(bundle)
    return [
        (f"exit {stage.exit}", model) for stage, model in zip(bundle.exits.stages, bundle.load_stages(), strict=True)
    ]


def require_one_graph(bundle: Bundle, settings: EngineSettings) -> None:
    """Raise ``UsageError`` for a bundle whose target runs it in parts: it is no single engine."""
    if not bundle.parts:
        return
    target = bundle.manifest.target
    if settings.static:
        raise UsageError(
            f"{bundle.path} runs in parts on {target}, its static twin too, and this step takes one engine. "
            "'dyndeploy profile --device' measures the twin; for its engines alone export the static network."
        )
    raise UsageError(
        f"{bundle.path} is no single engine: {target} runs it in {len(bundle.parts)} parts, with the host in between. "
        "'dyndeploy engine', 'run', 'verify' and 'profile --device NAME' take it; this step does not in this release."
    )


def require_fixed_batch(bundle: Bundle) -> None:
    """Raise ``UsageError`` for stages whose batch size is open, as those for a CPU are: an engine has one."""
    if bundle.exits.dynamic_batch:
        raise UsageError(
            f"The stages of {bundle.path} were exported for {bundle.manifest.target} and take any number of images; an "
            "engine has one batch size. Export the network again with --target, e.g. --target nano."
        )


def build_graph_engine(
    source: onnx.ModelProto,
    gpu: GpuInfo,
    settings: EngineSettings,
    *,
    api: TensorRT | None = None,
    progress: Progress = lambda message: None,
) -> EngineFile:
    """As :func:`build_engine`, for a graph outside a bundle; no precision means FP32."""
    api = api or TensorRT.load()
    progress("preparing the graph for TensorRT")
    plan, model = plan_build(
        source,
        settings.precision or "fp32",
        api.text,
        strongly_typed=settings.strongly_typed,
        options=settings.options,
        rates=settings.rates,
    )
    library = plugin_library(settings.library) if plan.plugins else None
    plan = plan.with_library(None if library is None else library.sha256)
    content = model.SerializeToString(deterministic=True)
    folder = cache_folder() if settings.cache is None else Path(settings.cache)
    further = {"schema": ENGINE_SCHEMA, **gpu.to_json(), "inputs": graph_inputs(model)}
    built_from, path, beside = engine_place(folder, plan, content, further)
    if library is not None:
        require_creators(api, library, model)
    origin = source_sha256(source)
    found = found_engine(path, beside, built_from, origin)
    if found is not None:
        _LOG.info("engine found in the cache: %s", path)
        return EngineFile(path, plan, found, library, cached=True)

    progress("building the engine (minutes on a board)")
    start = time.monotonic()
    timing, timed_with = folder / TIMING_CACHE, {"tensorrt": api.text, **gpu.to_json()}
    # Another library may have other tiles.
    tactics = folder / tensorrt_device.TACTICS
    tactics_of = {**timed_with, "library": "" if library is None else library.sha256}
    # The path is claimed first: a folder that cannot be written costs no build.
    with files.atomic_file(path) as temporary:
        if library is not None:
            tensorrt_device.read_tactics(str(library.path), kept_data(tactics, tactics_of))
        engine, timings = api.build(content, plan, kept_data(timing, timed_with))
        layers, note = api.read_back(engine, plan)
        temporary.write_bytes(engine)
    if note:
        _LOG.warning("%s", note)
    metadata = {
        "built_from": built_from,
        "engine_sha256": hashlib.sha256(engine).hexdigest(),
        "operators": [name for name, _ in plan.plugins],
        "plan": plan.precision_plan.description,
        "plugin_library": None if library is None else str(library.path),
        "layers": layers,
        "plugin_layers": tensorrt_inspector.plugin_facts(
            layers or [], plan.to_json(), None if library is None else str(library.path)
        ),
        "layers_note": note,
        "build_seconds": round(time.monotonic() - start, 1),
        "graph": source.graph.name,
        "source_sha256": origin,
    }
    # Last: an engine without its metadata is not taken for a whole one.
    files.write_json(beside, metadata)
    keep_data(timing, timings, timed_with)
    if library is not None and (timed := tensorrt_device.timed_tactics(str(library.path))):
        keep_data(tactics, timed, tactics_of)
    return EngineFile(path, plan, metadata, library, cached=False)


def _write_bytes(path: Path, data: bytes) -> None:
    with files.atomic_file(path) as temporary:
        temporary.write_bytes(data)


def graph_inputs(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes of a graph's inputs by name."""
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}


def engine_place(
    folder: Path, plan: BuildPlan, content: bytes, further: Mapping[str, Any]
) -> tuple[dict[str, Any], Path, Path]:
    """Where an engine is kept: what it is built from, its path by the key over that, and the file beside it.

    Args:
        folder: Of the engines.
        plan: How it is built.
        content: The TensorRT copy.
        further: What else makes it another engine: schema, device.

    The C++ runtime makes the same key from the same facts (``plugins/runtime/src/engine_files.cpp``).
    """
    # How an engine is run does not make it another one.
    shaping = {key: item for key, item in plan.to_json().items() if key != "cuda_graph"}
    built_from = {**further, "onnx_sha256": hashlib.sha256(content).hexdigest(), "plan": shaping}
    key = hashlib.sha256(json.dumps(built_from, sort_keys=True).encode()).hexdigest()[:24]
    return built_from, folder / f"{key}.engine", folder / f"{key}.json"


def cached_metadata(path: Path, beside: Path, built_from: dict[str, Any]) -> dict[str, Any] | None:
    """Metadata of an engine file if it is whole and was built from exactly that, else None."""
    try:
        metadata = files.read_json(beside)
        whole = metadata["built_from"] == built_from and metadata["engine_sha256"] == files.sha256(path)
    except (InputError, OSError, KeyError, TypeError):
        return None
    return dict(metadata) if whole else None


def source_sha256(source: onnx.ModelProto) -> str:
    """What tells that two engines are of one graph, whatever they were built with."""
    return hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()


def found_engine(path: Path, beside: Path, built_from: dict[str, Any], origin: str) -> dict[str, Any] | None:
    """As :func:`cached_metadata`; the log says why an engine of the graph that is there cannot be used.

    Args:
        path: The engine.
        beside: The file beside it.
        built_from: What it would be built from.
        origin: The graph's :func:`source_sha256`.
    """
    found = cached_metadata(path, beside, built_from)
    if found is None:
        why = _why_unusable(path, built_from, origin)
        if why:
            _LOG.warning("dyndeploy: %s. It is built again.", why)
    return found


def _why_unusable(path: Path, built_from: Mapping[str, Any], origin: str) -> str:
    """Why an engine of the same graph, which is there, is not the one that is wanted; empty where there is none."""
    if path.exists():
        return f"The engine {path} is damaged, or not whole"
    for beside in sorted(path.parent.glob("*.json")):
        try:
            metadata = files.read_json(beside)
            if metadata.get("source_sha256") == origin:
                differs = _differences(metadata["built_from"], built_from)
                if differs:
                    return f"The engine {beside.with_suffix('.engine')} was built {' and '.join(differs)}"
        except (InputError, OSError, AttributeError, KeyError, TypeError):
            continue
    return ""


_ASKED_FOR = ("precision", "workspace_mib", "tf32", "tuning")
"""What makes another engine because the user wanted another one."""


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what surroundings an engine was built that are others now; none where it was asked for otherwise."""
    before, now = old["plan"], new["plan"]
    versions = before["tensorrt"], now["tensorrt"]
    if any(before[key] != now[key] for key in _ASKED_FOR) or len({text.startswith(RTX) for text in versions}) > 1:
        return []
    found = []
    if versions[0] != versions[1]:
        found.append(f"with TensorRT {versions[0]}, and this is {versions[1]}")
    elif before["typed"] != now["typed"]:
        return []
    found += [
        f"{what} {_of(old, keys)}, and this is {_of(new, keys)}"
        for what, keys in (("for", ("name", "compute_capability")), ("with CUDA and driver", ("cuda", "driver")))
        if _of(old, keys) != _of(new, keys)
    ]
    if before["capabilities"] != now["capabilities"]:
        texts = (" and ".join(plan["capabilities"]) or "that of another GPU" for plan in (before, now))
        found.append("for compute capability {}, and this is {}".format(*texts))
    if before["library_sha256"] != now["library_sha256"]:
        texts = (f"sha256 {str(plan['library_sha256'])[:12]}" for plan in (before, now))
        found.append("with another plugin library ({}, now {})".format(*texts).replace("sha256 None", "stand-ins"))
    return found


def _of(built_from: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return " ".join(str(built_from[key]) for key in keys if key in built_from)


def beside_of(path: Path) -> Path:
    """The JSON file beside a cached file."""
    return path.with_suffix(path.suffix + ".json")


def kept_data(path: Path, made_with: Mapping[str, str]) -> bytes:
    """What :func:`keep_data` kept, if it is whole and of the same surroundings; else nothing, and the log says why.

    Args:
        path: The file.
        made_with: TensorRT's version and the device, which refuse each other's data loudly.
    """
    if not path.exists():
        return b""
    try:
        data, beside = path.read_bytes(), files.read_json(beside_of(path))
        whole = beside.pop("sha256") == hashlib.sha256(data).hexdigest()
    except (InputError, OSError, KeyError, AttributeError, TypeError):
        whole = False
    if whole and beside == made_with:
        return data
    why = "is of another TensorRT or device" if whole else "is damaged, or not whole"
    _LOG.warning("dyndeploy: The cache %s %s. A new one is begun.", path, why)
    return b""


def keep_data(path: Path, data: bytes, made_with: Mapping[str, str]) -> None:
    """Keep data of TensorRT's beside the engines; where that fails, the log says so and nothing else is lost."""
    try:
        _write_bytes(path, data)
        files.write_json(beside_of(path), {**made_with, "sha256": hashlib.sha256(data).hexdigest()})
    except OutputError as error:
        _LOG.warning("dyndeploy: The cache %s could not be kept: %s", path, error)


def load_metadata(engine: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata of an engine file; raises ``BundleError`` if they are missing or belong to another file."""
    path = Path(engine)
    try:
        metadata = files.read_json(path.with_suffix(".json"))
        actual = files.sha256(path)
    except (InputError, OSError) as error:
        raise BundleError(f"Cannot read the engine {path}: {error} Build it again.") from error
    if not isinstance(metadata, dict) or metadata.get("engine_sha256") != actual:
        raise BundleError(f"{path} is not the engine that the file beside it describes. Build it again.")
    return metadata


def load_program(bundle: Bundle, part: PartInfo) -> HostProgram:
    """Read the program of a host part; raises ``BundleError`` where it is damaged or of another release."""
    try:
        program = HostProgram.load(bundle.path / part.file)
    except ProgramError as error:
        raise BundleError(str(error)) from error
    for kind, names, infos in (("reads", program.inputs, part.inputs), ("gives", program.outputs, part.outputs)):
        if names != [info.name for info in infos]:
            raise BundleError(f"{part.file} {kind} {', '.join(names)}: not what bundle.json says. Export it again.")
    return program


# ---------------------------------------------------------------- trtexec


@dataclass(frozen=True)
class TrtexecFiles:
    """What :func:`write_trtexec_files` wrote.

    Attributes:
        model: The TensorRT copy.
        inputs: Raw tensors by input name: real images, because random ones give a dynamic network wrong masks.
        plan: How the engine is built.
    """

    model: Path
    inputs: dict[str, Path]
    plan: BuildPlan


def write_trtexec_files(
    bundle: Bundle, folder: str | os.PathLike[str], version: str, settings: EngineSettings | None = None
) -> TrtexecFiles:
    """Write what ``trtexec`` needs: the TensorRT copy and a batch of reference images. Needs no TensorRT.

    Args:
        bundle: The bundle.
        folder: Where to; created if missing.
        version: Version of the TensorRT that will read it, e.g. ``"8.2.1"``.
        settings: How the engine is built; None takes the defaults.

    Raises:
        UsageError: The version cannot build the plan.
        OutputError: A file cannot be written.
    """
    settings = settings or EngineSettings()
    require_one_graph(bundle, settings)
    stem = "static" if settings.static else "model"
    inputs = {name: value[: bundle.manifest.batch] for name, value in bundle.reference_inputs().items()}
    return _trtexec_files(bundle, _source(bundle, settings.static), stem, inputs, folder, version, settings)


def write_stage_trtexec_files(
    bundle: Bundle, folder: str | os.PathLike[str], version: str, settings: EngineSettings | None = None
) -> list[TrtexecFiles]:
    """As :func:`write_trtexec_files`, for a network of several engines: per stage or part, in order.

    The inputs of each are what the ones before it compute from the reference images, on this machine's CPU.

    Args:
        bundle: Of stages with a fixed batch size, or with parts.
        folder: As for :func:`write_trtexec_files`, like all that follow.
        version: Of the TensorRT that will read it.
        settings: How the engines are built.

    Raises:
        UsageError: The stages leave the batch size open, or the version cannot build the plan.
        OutputError: A file cannot be written.
    """
    required_version(version)
    settings = settings or EngineSettings()
    if bundle.parts:
        return _part_trtexec_files(bundle, folder, version, settings)
    require_fixed_batch(bundle)
    batch = bundle.manifest.batch
    stages = bundle.exits.stages
    tensors: dict[str, Any] = {stages[0].inputs[0].name: bundle.reference()[INPUT][:batch]}
    written = []
    for index, (stage, model) in enumerate(zip(stages, bundle.load_stages(), strict=True)):
        inputs = {info.name: tensors[info.name] for info in stage.inputs}
        written.append(_trtexec_files(bundle, model, f"stage{index}", inputs, folder, version, settings))
        with OnnxRuntimeSession(model, native="off") as session:
            tensors |= session.run(inputs)
    return written


def _part_trtexec_files(
    bundle: Bundle, folder: str | os.PathLike[str], version: str, settings: EngineSettings
) -> list[TrtexecFiles]:
    batch, graphs = bundle.manifest.batch, {part.file: model for part, model in bundle.load_engine_parts()}
    tensors: dict[str, Any] = {name: value[:batch] for name, value in bundle.reference_inputs().items()}
    written = []
    for part in bundle.parts:
        inputs = {info.name: tensors[info.name] for info in part.inputs}
        if part.host:
            tensors |= load_program(bundle, part).run(inputs)
            continue
        model = graphs[part.file]
        written.append(_trtexec_files(bundle, model, Path(part.file).stem, inputs, folder, version, settings))
        native = "auto" if bundle.manifest.operators else "off"
        with OnnxRuntimeSession(with_all_bodies(model), native=native) as session:
            tensors |= session.run(inputs)
    return written


def _trtexec_files(
    bundle: Bundle,
    source: onnx.ModelProto,
    stem: str,
    inputs: Mapping[str, Any],
    folder: str | os.PathLike[str],
    version: str,
    settings: EngineSettings,
) -> TrtexecFiles:
    """Write one graph with a batch of its inputs."""
    required_version(version)
    settings = settings.of(bundle)
    plan, copy = plan_build(
        source,
        str(settings.precision),
        version,
        strongly_typed=settings.strongly_typed,
        options=settings.options,
        rates=settings.rates,
    )
    target = Path(folder)
    model = target / f"{stem}.{plan.precision}{'.typed' if plan.typed else ''}.trt.onnx"
    _write_bytes(model, copy.SerializeToString(deterministic=True))
    types = {
        value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in source.graph.input
    }
    paths = {}
    for name, value in inputs.items():
        if name in types:  # A twin may need fewer.
            paths[name] = target / f"{name.replace('/', '_')}.bin"
            _write_bytes(paths[name], np.ascontiguousarray(value, types[name]).tobytes())
    return TrtexecFiles(model, paths, plan)


def required_version(text: str) -> tuple[int, ...]:
    """Parse a TensorRT version that a user wrote; raises ``UsageError``."""
    version = parse_version(text)
    if len(version) < 2 or not (8, 2) <= version < (12,):
        raise UsageError(f"'{text}' is no TensorRT version that is supported: give one from 8.2 to 11, e.g. 8.5.3.")
    return version


def trtexec_commands(written: TrtexecFiles, plugins: str | None) -> list[str]:
    """Command lines that build and time an engine with ``trtexec``, every flag written out.

    Defaults changed between versions (11 spins, uses CUDA graphs and leaves transfers out), so that the same short
    command would measure different things.

    Args:
        written: From :func:`write_trtexec_files`.
        plugins: Path of the plugin library there; a plan without plugins needs none.

    Returns:
        The command that builds, and the one that measures.
    """
    plan = written.plan
    numbers = parse_version(plan.tensorrt)
    engine = written.model.with_suffix("").with_suffix(".engine")
    option = "staticPlugins" if numbers >= (8, 6) else "plugins"
    loaded = [f"--{option}={plugins}"] if plan.plugins and plugins is not None else []
    build = [f"--onnx={written.model}", f"--saveEngine={engine}", *loaded]
    if numbers >= (8, 4):
        build.append(f"--memPoolSize=workspace:{plan.workspace_mib}")
    else:
        build.append(f"--workspace={plan.workspace_mib}")
    if not plan.tf32:
        build.append("--noTF32")
    if plan.typed and numbers < (11,):
        build.append("--stronglyTyped")
    if plan.precision_plan.half and not plan.typed:
        build.append("--fp16")
        # 8.2 cannot name layers on the command line; the Python builder can.
        if plan.float_layers and numbers >= (8, 4):
            types = ",".join(f"{name}:fp32" for name in plan.float_layers)
            build += ["--precisionConstraints=obey", f"--layerPrecisions={types}", f"--layerOutputTypes={types}"]
    build += [f"--timingCacheFile={engine.with_name(TIMING_CACHE)}", "--profilingVerbosity=detailed"]
    build.append("--skipInference" if numbers >= (8, 6) else "--buildOnly")

    inputs = ",".join(f"{name}:{path}" for name, path in written.inputs.items())
    measure = [f"--loadEngine={engine}", *loaded, f"--loadInputs={inputs}", "--streams=1", "--device=0"]
    measure += ["--warmUp=500", "--duration=10", "--iterations=100", "--avgRuns=1"]
    measure.append("--percentile=50,90,99" if numbers >= (8, 5) else "--percentile=99")
    if numbers < (11,):  # what 11 does by itself; there these flags only bring warnings
        graph = ["--useCudaGraph"] if plan.cuda_graph else []
        measure += [*graph, "--useSpinWait", "--noDataTransfers", "--separateProfileRun"]
    measure += [f"--exportTimes={engine.with_suffix('.times.json')}", "--dumpProfile"]
    measure.append(f"--exportProfile={engine.with_suffix('.layers.json')}")
    return [shlex.join(["trtexec", *arguments]) for arguments in (build, measure)]
