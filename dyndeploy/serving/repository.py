"""A model repository: the folder that a stock ``tritonserver`` loads."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dyndeploy import files
from dyndeploy.bundle import BRANCHED, MODEL, Bundle
from dyndeploy.bundle.device_files import BINDING, PLUGINS, prebuilt_files
from dyndeploy.errors import InputError, OutputError, UsageError
from dyndeploy.processors import usable_processors
from dyndeploy.runtimes.native import find_cpu_library, find_tensorrt_library, native_library
from dyndeploy.serving.config import (
    BACKENDS,
    CONFIG,
    LABELS,
    ONNXRUNTIME,
    PYTHON,
    TENSORRT,
    class_names,
    python_config,
    tensor_config,
)
from dyndeploy.serving.policy import Measured, Policy, make_policy, read_measured
from dyndeploy.serving.text_format import text_format
from dyndeploy.targets import load_target

RUNTIME_LIBRARY = "libdyndeploy.so"
RUNTIME_VARIABLE = "DYNDEPLOY_RUNTIME"
"""Environment variable that names :data:`RUNTIME_LIBRARY`, as for the binding."""
TENSORRT_MODULE = "libdyndeploy_runtime_tensorrt.so"
_BUNDLE, _ENGINE = "bundle", "model.plan"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_JETSONS = "aarch64"


@dataclass(frozen=True)
class ServingOptions:
    """What is asked for.

    Attributes:
        backend: One of :data:`~dyndeploy.serving.config.BACKENDS`.
        profiles: Files of ``dyndeploy profile``; each has to be of one of the bundles.
        instances: Processes that serve a model; None: from the profile, else 1.
        threads: Threads that compute in each; None: the profile's, else 1.
        processors: Of the server; None: this machine's.
        latency_ms: Bound from arrival at the runtime to the result; 0: throughput alone counts. Of the Python backend.
        runtime: ``"onnxruntime"`` or ``"tensorrt"``; None: that of the bundle's target. Of the Python backend.
        native: The operator library: ``"auto"``, ``"off"``, or its path.
        library: ``libdyndeploy.so``; None looks for it.
        onnxruntime: ONNX Runtime's shared library; None: that of the package here; ``"system"``: what the server finds.
        engines: Folder of engines of ``dyndeploy engine -o``, for TensorRT's backend.
        link: Whether bundles are linked, not copied.
        update: Whether a repository that exists gets a new version of each bundle.
        served_at: Where the server sees the repository; None: where it is written.
    """

    backend: str = PYTHON
    profiles: Sequence[str | os.PathLike[str]] = ()
    instances: int | None = None
    threads: int | None = None
    processors: int | None = None
    latency_ms: float = 0.0
    runtime: str | None = None
    native: str = "auto"
    library: str | os.PathLike[str] | None = None
    onnxruntime: str | None = None
    engines: Path | None = None
    link: bool = False
    update: bool = False
    served_at: str | None = None


@dataclass(frozen=True)
class ServedModel:
    """A model that was written.

    Attributes:
        name: As clients ask for it.
        version: Its version, from 1.
        bundle: What it runs.
        policy: How it is served.
        notes: What a reader should know.
    """

    name: str
    version: int
    bundle: Path
    policy: Policy
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """All of a model that is to be written."""

    name: str
    bundle: Bundle
    policy: Policy
    config: str
    files: Mapping[str, Path]
    """Copied into the version's folder, by name there."""
    notes: tuple[str, ...]


def write_repository(
    bundles: Mapping[str, Path], output: str | os.PathLike[str], options: ServingOptions
) -> tuple[ServedModel, ...]:
    """Write a model repository, or add a version of each bundle to one that exists.

    Args:
        bundles: Folders of bundles by name of the model.
        output: The repository.
        options: How.

    Raises:
        UsageError: A bundle cannot be served so, names or options do not fit.
        BundleError: A bundle is damaged.
        InputError: A profile cannot be read.
        OutputError: The repository exists and ``options.update`` is not set, or cannot be written. Nothing was changed.
    """
    repository = Path(output)
    if options.backend not in BACKENDS:
        raise UsageError(f"There is no backend '{options.backend}'. Known: {', '.join(BACKENDS)}.")
    for name in bundles:
        if not _NAME.fullmatch(name):
            raise UsageError(f"'{name}' cannot be a model's name: it takes letters, digits, '_', '-' and '.'.")
    if not options.update and os.path.lexists(repository) and (not repository.is_dir() or any(repository.iterdir())):
        raise OutputError(
            f"{repository} exists, and a server may be reading it. Choose another folder, or add a new version of each "
            "model to it with --update."
        )
    opened = {name: Bundle.open(path) for name, path in bundles.items()}
    measured = _measured(opened, options.profiles)
    models = [_model(name, bundle, measured.get(name), repository, options) for name, bundle in opened.items()]
    if not options.update:
        with files.atomic_directory(repository) as temporary:
            for model in models:
                _write_version(temporary / model.name / "1", model, options)
                _write_texts(temporary / model.name, model)
        versions = [1] * len(models)
    else:
        for model in models:
            _require_same_interface(repository / model.name, model)
        versions = [_add_version(repository / model.name, model, options) for model in models]
    return tuple(
        ServedModel(model.name, version, model.bundle.path, model.policy, model.notes)
        for model, version in zip(models, versions, strict=True)
    )


def _measured(bundles: Mapping[str, Bundle], profiles: Iterable[str | os.PathLike[str]]) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for path in profiles:
        measured = read_measured(path)
        names = [name for name, bundle in bundles.items() if measured.is_of(bundle)]
        if not names:
            raise InputError(
                f"{path} was measured on other graphs than those of {', '.join(bundles)}. Profile these bundles."
            )
        found |= dict.fromkeys(names, measured)
    return found


def _model(name: str, bundle: Bundle, measured: Measured | None, repository: Path, options: ServingOptions) -> _Model:
    bundle.require_intact()
    processors = options.processors or usable_processors()
    policy = make_policy(bundle, measured, processors=processors, instances=options.instances, threads=options.threads)
    if options.backend == PYTHON:
        return _python_model(name, bundle, policy, options)
    return _tensor_model(name, bundle, policy, repository, options)


def _python_model(name: str, bundle: Bundle, policy: Policy, options: ServingOptions) -> _Model:
    manifest = bundle.manifest
    if manifest.detection is None:
        manifest.images()  # Refuses networks that take no images.
        if manifest.network.num_classes is None:
            raise UsageError(
                f"{manifest.network.name} gives no classes: Triton's Python backend serves classifiers and detectors."
            )
    target = load_target(manifest.target)
    runtime = options.runtime or target.runtime
    here = platform.machine()
    # Jetsons are aarch64; for anything else the server is taken to be a machine like this one.
    machine = _JETSONS if target.power_modes and runtime == TENSORRT else here
    libraries = {
        "model.py": Path(str(resources.files("dyndeploy") / "serving" / "triton_model.py")),
        Path(BINDING).name: _binding(),
        RUNTIME_LIBRARY: _runtime_library(options.library, machine),
    }
    notes = []
    operators = None if options.native == "off" else _operator_library(options.native, machine)
    if operators is not None:
        libraries[operators.name] = operators
    elif manifest.operator_types and runtime == ONNXRUNTIME:
        notes.append("no operator library: the dynamic operators run as function bodies")
    onnxruntime, plugins = "", ""
    if runtime == ONNXRUNTIME:
        found = None if options.onnxruntime == "system" else _onnxruntime_library(options.onnxruntime, machine)
        if found is None:
            notes.append("ONNX Runtime is the server's: it is looked for there, or named by DYNDEPLOY_ONNXRUNTIME")
        else:
            libraries[found.name] = found
            onnxruntime = found.name
    else:
        module = libraries[RUNTIME_LIBRARY].with_name(TENSORRT_MODULE)
        if module.is_file():
            libraries[TENSORRT_MODULE] = module
        tensorrt = find_tensorrt_library() if machine == here else None
        if tensorrt is not None:
            libraries[tensorrt.path.name] = tensorrt.path
            plugins = tensorrt.path.name
        notes.append("TensorRT and its plugins are the server's where this machine has none: see docs/serving.md")
    parameters = {
        "bundle": _BUNDLE,
        "target": manifest.target,
        "machine": machine,
        "runtime": runtime,
        "threads": str(policy.threads),
        "images_at_once": str(policy.images_at_once),
        "in_flight": str(policy.in_flight),
        "latency_ms": f"{options.latency_ms:g}",
        "library": RUNTIME_LIBRARY,
        "native": "off" if options.native == "off" else "auto" if operators is None else operators.name,
        "onnxruntime": onnxruntime,
        "plugins": plugins,
    }
    config = text_format(python_config(name, manifest, policy, parameters))
    return _Model(name, bundle, policy, _headed(config, policy), libraries, tuple(notes))


def _tensor_model(name: str, bundle: Bundle, policy: Policy, repository: Path, options: ServingOptions) -> _Model:
    manifest = bundle.manifest
    if manifest.detection is not None:
        raise UsageError(
            f"{manifest.network.name} is a detector: its images are resized and its boxes decoded outside its graph. "
            "Serve it with --backend python."
        )
    content: dict[str, Path] = {}
    libraries: list[str] = []
    notes = ["clients send prepared images: this backend neither decodes nor resizes"]
    if options.backend == ONNXRUNTIME:
        if manifest.exits is not None and bundle.branched is None:
            raise UsageError(
                f"{bundle.path} holds stages, and Triton's ONNX Runtime backend takes one graph. Export with --graph "
                "if, or serve it with --backend python."
            )
        content[MODEL] = bundle.path / (MODEL if manifest.exits is None else BRANCHED)
        operators = None if options.native == "off" else _operator_library(options.native, platform.machine())
        if operators is not None and manifest.operator_types:
            content[operators.name] = operators
            served = options.served_at or os.path.abspath(repository)
            # Of all versions the first one's: Triton loads an operator library once per server.
            libraries.append(os.path.join(served, name, "1", operators.name))
    else:
        content[_ENGINE] = _engine(bundle, options.engines)
        notes.append("the server needs --backend-config=tensorrt,plugins=PATH of libdyndeploy_tensorrt.so")
    config = text_format(tensor_config(name, manifest, options.backend, policy, libraries))
    return _Model(name, bundle, policy, _headed(config, policy), content, tuple(notes))


def _headed(config: str, policy: Policy) -> str:
    return f"# Written by dyndeploy serve-config. {policy.source}.\n{config}"


def _binding() -> Path:
    path = files.shipped_folder(PLUGINS) / BINDING
    if not path.is_file():
        raise UsageError(f"This installation of dyndeploy lacks {path.name}. Install a wheel, or work in a checkout.")
    return path


def _runtime_library(named: str | os.PathLike[str] | None, machine: str) -> Path:
    given = named or os.environ.get(RUNTIME_VARIABLE)
    prebuilt = prebuilt_files().get(f"{machine}/{RUNTIME_LIBRARY}")
    found = Path(given) if given else prebuilt
    if found is None or not found.is_file():
        what = f"There is no {given}" if given else f"This installation carries no {RUNTIME_LIBRARY} for {machine}"
        raise UsageError(
            f"{what}. Build plugins/runtime there (docs/applications.md), and name it with --library or "
            f"{RUNTIME_VARIABLE}."
        )
    return found


def _operator_library(native: str, machine: str) -> Path | None:
    if native != "auto":
        return native_library(native).path
    if machine != platform.machine():
        return prebuilt_files().get(f"{machine}/libdyndeploy_ort_cpu.so")
    library = find_cpu_library()
    return None if library is None else library.path


def _onnxruntime_library(named: str | None, machine: str) -> Path | None:
    if named:
        path = Path(named)
        if not path.is_file():
            raise UsageError(f"There is no ONNX Runtime at {path}: name its shared library, or 'system'.")
        return path
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    return found[0] if found and machine == platform.machine() else None


def _engine(bundle: Bundle, engines: Path | None) -> Path:
    if engines is None:
        raise UsageError(
            f"TensorRT's backend loads an engine: build it with 'dyndeploy engine {bundle.path} -o DIR' on the GPU of "
            "the server, and give --engines DIR."
        )
    from dyndeploy.runtimes.tensorrt_engine import load_metadata

    found = sorted(path for path in engines.glob("*") if path.suffix != ".json" and path.with_suffix(".json").is_file())
    own = [path for path in found if load_metadata(path).get("source_sha256") == bundle.manifest.files.get(MODEL)]
    if len(own) != 1:
        raise UsageError(f"{engines} holds {len(own) or 'no'} engines of {bundle.path}: it takes one.")
    return own[0]


def _write_version(folder: Path, model: _Model, options: ServingOptions) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in model.files.items():
        shutil.copyfile(source, folder / name)
    if options.backend != PYTHON:
        return
    if options.link:
        (folder / _BUNDLE).symlink_to(model.bundle.path.resolve(), target_is_directory=True)
    else:
        shutil.copytree(model.bundle.path, folder / _BUNDLE)


def _write_texts(folder: Path, model: _Model) -> None:
    names = class_names(model.bundle.manifest)
    # A name with a line's end would move all that follow.
    texts = {LABELS: "".join(" ".join(name.split()) + "\n" for name in names), CONFIG: model.config}
    for name, text in texts.items():
        path = folder / name
        # A server that polls loads a model again whose files are newer.
        if text and not (path.is_file() and files.read_text(path) == text):
            files.write_text(path, text)


def _require_same_interface(folder: Path, model: _Model) -> None:
    """Refuse a version whose inputs or outputs are other ones: clients of the earlier one are being served."""
    if not (folder / CONFIG).is_file():
        return
    earlier, now = (_interface(text) for text in (files.read_text(folder / CONFIG), model.config))
    if earlier != now:
        raise UsageError(
            f"{model.bundle.path} has other inputs or outputs than the model '{model.name}' that is served: clients "
            "would break. Give it another name (NAME=BUNDLE)."
        )


def _interface(config: str) -> list[str]:
    """Those blocks of a configuration that say what goes in and comes out."""
    return re.findall(r"^(?:input|output) \{\n.*?^\}$", config, re.MULTILINE | re.DOTALL)


def _add_version(folder: Path, model: _Model, options: ServingOptions) -> int:
    with files.locked(folder.with_name(f"{folder.name}.versions")):
        taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
        version = max(taken, default=0) + 1
        if not taken:
            with files.atomic_directory(folder) as temporary:
                _write_version(temporary / "1", model, options)
                _write_texts(temporary, model)
            return version
        # The version is whole before Triton can see it, and the earlier one is served until the new one is ready.
        with files.atomic_directory(folder / str(version)) as temporary:
            _write_version(temporary, model, options)
        _write_texts(folder, model)
    return version
