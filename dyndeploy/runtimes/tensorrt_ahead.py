"""Engines built ahead of time, on a machine without a GPU, by a builder that NVIDIA publishes for that.

TensorRT-RTX (``pip install 'dyndeploy[rtx]'``) builds for GPUs that are not there. Each engine is built in a process of
its own, because the parser ends the process where it cannot go on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.graphs.inspect import all_graphs, all_nodes
from dyndeploy.graphs.tensorrt import required_creators
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.runtimes import tensorrt_inspector, tensorrt_worker
from dyndeploy.runtimes.native import NativeLibrary
from dyndeploy.runtimes.tensorrt_device import RTX
from dyndeploy.runtimes.tensorrt_layers import EngineLayers, read_layers, wrong_layers
from dyndeploy.runtimes.tensorrt_plan import FAMILY, BuildOptions, BuildPlan, plan_build
from dyndeploy.runtimes.tensorrt_stand_ins import described
from dyndeploy.targets.platforms import refused_ahead

if TYPE_CHECKING:
    import onnx

RTX_BINDINGS, RTX_LIBRARIES = "tensorrt_rtx_bindings", "tensorrt_rtx_libs"
_DISTRIBUTIONS = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")
RTX_CAPABILITIES = ("7.5", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities of the GPUs that TensorRT-RTX supports."""

WORKER = ("-m", tensorrt_worker.__name__)
_LAST_WORDS = 5
_NO_DRIVER = re.compile(r"\n?\[checkMacros\.cpp::catchCudaError::\d+\][^\n]*cudaError 35[^\n.;]*[.;]?")
"""What TensorRT adds to every error where there is no GPU; it would lead astray."""

_NO_DRIVER_IN = re.compile(r"CUDA driver version is insufficient|Cuda Error in \w+: 35")
"""Says that there is no GPU."""


@dataclass(frozen=True)
class BuilderPackage:
    """A package that can build engines without a GPU.

    Attributes:
        module: What a process imports.
        text: Its version, as :func:`dyndeploy.runtimes.tensorrt_device.version_text` says it.
        library_folders: Folders of its libraries.
        links: Further names for its libraries: those under which its parts look for each other.
        packages: Further folders in which the process looks for Python packages.
    """

    module: str
    text: str
    library_folders: tuple[Path, ...]
    links: Mapping[str, Path] = field(default_factory=dict)
    packages: tuple[Path, ...] = ()

    @contextmanager
    def process_environment(self) -> Iterator[dict[str, str]]:
        """Variables with which a new process finds all that it needs, for as long as the context lasts."""
        with tempfile.TemporaryDirectory(prefix="dyndeploy-") as folder:
            for name, library in self.links.items():
                (Path(folder) / name).symlink_to(library)
            folders = [folder, *map(str, self.library_folders), *_paths(os.environ.get("LD_LIBRARY_PATH"))]
            # The process sees the packages that this one sees.
            packages = [*map(str, self.packages), *(str(Path(entry).resolve()) for entry in sys.path)]
            paths = {"LD_LIBRARY_PATH": os.pathsep.join(folders), "PYTHONPATH": os.pathsep.join(packages)}
            yield {**os.environ, **paths}


def _paths(text: str | None) -> list[str]:
    return [part for part in (text or "").split(os.pathsep) if part]


def rtx_package() -> BuilderPackage:
    """TensorRT-RTX as pip has installed it; raises ``DyndeployError`` that says how where it is not."""
    specs = [importlib.util.find_spec(name) for name in (RTX_BINDINGS, RTX_LIBRARIES)]
    version = next(filter(None, map(_version, _DISTRIBUTIONS)), None)
    if version is None or any(spec is None or not spec.submodule_search_locations for spec in specs):
        raise DyndeployError(
            "TensorRT-RTX, which builds engines without a GPU, is not installed. Get it with pip install "
            "'dyndeploy[rtx]' (Linux, x86-64 or ARM)."
        )
    folder = Path(next(iter(specs[1].submodule_search_locations)))  # type: ignore[union-attr, arg-type]
    # The parser opens the library by its bare name, which the wheel does not have, when a graph has a plugin.
    links = {path.name.removesuffix(".1"): path for path in sorted(folder.glob("lib*.so.1"))}
    return BuilderPackage(RTX_BINDINGS, f"{RTX}{version}", (folder,), links)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class AheadEngine:
    """An engine that was built and never run.

    Attributes:
        engine: The serialised engine.
        timing_cache: The builder's cache after the build.
        plan: How it was built.
        plugins: What stood for the plugins: a library with its checksum, or stand-ins; empty without plugins.
        built: Its layers.
    """

    engine: bytes
    timing_cache: bytes
    plan: BuildPlan
    plugins: str
    built: EngineLayers

    def metadata(self) -> dict[str, Any]:
        """What stands beside the engine, as plain JSON types."""
        plan = self.plan.to_json()
        layers = [{**layer.to_json(), "plugin": layer.is_plugin} for layer in self.built.layers]
        return {
            "plan": plan,
            "plugins": self.plugins,
            "layers": layers,
            "plugin_layers": tensorrt_inspector.plugin_facts(layers, plan),
            "layers_note": "",
            "activation_bytes": self.built.activation_bytes,
            "run": False,
        }


def build_ahead(
    source: onnx.ModelProto,
    precision: str = "fp32",
    *,
    capabilities: Sequence[str] = ("8.6",),
    library: NativeLibrary | None = None,
    options: BuildOptions | None = None,
    package: BuilderPackage | None = None,
) -> AheadEngine:
    """Build an engine for GPUs that need not be here, and check that its layers are those of the plan.

    Args:
        source: ``model.onnx``, ``static.onnx`` or a stage of a bundle.
        precision: ``"fp32"`` or ``"fp16"``.
        capabilities: Compute capabilities that it shall run on, e.g. ``("8.9",)``; empty leaves the choice to the
            builder.
        library: Plugins; None takes stand-ins, which give the same engine.
        options: Workspace, TF32 and CUDA graphs; None takes the defaults.
        package: The builder; None takes TensorRT-RTX.

    Raises:
        UsageError: There is no plan for the precision.
        DyndeployError: The builder is missing, refused the graph or ended, or built other plugins than the plan says.
    """
    package = package or rtx_package()
    plan, copy = plan_build(
        source, precision, package.text, strongly_typed=None, options=options, capabilities=capabilities
    )
    plan = plan.with_library(None if library is None else library.sha256)
    return build_checked(source, plan, copy, package, library)


def build_checked(
    source: onnx.ModelProto,
    plan: BuildPlan,
    copy: onnx.ModelProto,
    package: BuilderPackage,
    library: NativeLibrary | None,
) -> AheadEngine:
    """As :func:`build_ahead`, for the plan of a graph with its TensorRT copy."""
    _require_buildable(copy, package, library)
    try:
        made = build_planned(plan, copy, package, library)
    except DyndeployError as error:
        known = _known_refusal(copy, package, str(error))
        if not known:
            raise
        raise DyndeployError(known) from error
    require_planned(made, source)
    return made


def _require_buildable(copy: onnx.ModelProto, package: BuilderPackage, library: NativeLibrary | None) -> None:
    """Say beforehand what the builder would say in words of its own."""
    without = [name for name in required_creators(copy) if FAMILY not in OPERATORS[name].kernels]
    if without and library is None:
        raise DyndeployError(
            f"There is no TensorRT plugin for {', '.join(without)}: no engine can be built. On a CPU the operators run "
            "by their bodies (--target cpu)."
        )
    if not package.text.startswith(RTX):
        return
    for part in list(all_graphs(copy.graph))[1:]:
        for node in part.node:
            kernel = OPERATORS[node.op_type].kernels.get(FAMILY) if node.domain == DOMAIN else None
            if kernel is not None and kernel.workspace is not None:
                raise DyndeployError(
                    f"{node.name} ({node.op_type}) stands in a branch (If) and needs scratch memory, which TensorRT "
                    f"{package.text} cannot build. Leave it outside: the operator skips by itself."
                )


def _known_refusal(copy: onnx.ModelProto, package: BuilderPackage, message: str) -> str:
    """Why TensorRT-RTX refuses an operator of a graph where there is no GPU, if that is what happened; else empty."""
    if not package.text.startswith(RTX) or not _NO_DRIVER_IN.search(message):
        return ""
    types = {node.op_type for node in all_nodes(copy.graph) if not node.domain}
    for name, why in refused_ahead().items():
        if name in types and f"operator: {name} " in message:
            return f"TensorRT {package.text} does not build {name} on a machine without a GPU: {why}."
    return ""


def require_planned(made: AheadEngine, source: onnx.ModelProto) -> None:
    """Raise ``DyndeployError`` unless an engine's layers are those of its plan."""
    problems = wrong_layers(made.built, source, half=made.plan.precision_plan.half)
    if problems:
        raise DyndeployError(f"The engine is not what its plan says: {'; '.join(problems)}.")


def build_planned(
    plan: BuildPlan,
    copy: onnx.ModelProto,
    package: BuilderPackage,
    library: NativeLibrary | None = None,
    worker: Sequence[str] = WORKER,
) -> AheadEngine:
    """As :func:`build_ahead`, for a plan with its TensorRT copy; the layers are not checked.

    Args:
        plan: The plan.
        copy: The graph that it is for.
        package: The builder.
        library: Plugins; None takes stand-ins.
        worker: What Python runs; takes the folder as its last argument.
    """
    with tempfile.TemporaryDirectory(prefix="dyndeploy-") as name, package.process_environment() as environment:
        folder = Path(name)
        request = {
            "module": package.module,
            "plan": plan.to_json(),
            "library": None if library is None else str(library.path),
        }
        (folder / tensorrt_worker.REQUEST).write_text(json.dumps(request), encoding="utf-8")
        (folder / tensorrt_worker.MODEL).write_bytes(copy.SerializeToString(deterministic=True))
        # Its own messages are in a file; what else it writes says why it could not even start.
        ended = subprocess.run(
            [sys.executable, *worker, str(folder)], env=environment, capture_output=True, text=True, errors="replace"
        )
        answer = _answer(folder, ended, package)
        return AheadEngine(
            (folder / tensorrt_worker.ENGINE).read_bytes(),
            (folder / tensorrt_worker.TIMINGS).read_bytes(),
            plan,
            _plugins(plan, library),
            read_layers(answer["messages"]),
        )


def _plugins(plan: BuildPlan, library: NativeLibrary | None) -> str:
    if not plan.plugins:
        return ""
    if library is None:
        return described(OPERATORS[name] for name, _ in plan.plugins)
    return f"{library.path.name} (sha256 {library.sha256})"


def _answer(folder: Path, ended: subprocess.CompletedProcess[str], package: BuilderPackage) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads((folder / tensorrt_worker.ANSWER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DyndeployError(_last_words(folder, ended, package)) from None
    if "refused" in answer:
        # What a plugin said is more to the point than what TensorRT made of it.
        reasons = answer["problems"] or answer["errors"]
        refused = _NO_DRIVER.sub("", answer["refused"])
        told = [reason for reason in dict.fromkeys(reasons) if reason not in refused and not _NO_DRIVER.match(reason)]
        raise DyndeployError(". ".join([refused[:1].upper() + refused[1:], *told[:_LAST_WORDS]]))
    return answer


def _last_words(folder: Path, ended: subprocess.CompletedProcess[str], package: BuilderPackage) -> str:
    how = f"with status {ended.returncode}"
    if ended.returncode < 0:
        how = f"by {signal.Signals(-ended.returncode).name}"
    try:
        messages = (folder / tensorrt_worker.MESSAGES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        messages = []
    said = [line for line in (*messages, *ended.stderr.splitlines()) if line.strip()]
    notable = [line for line in said if "ERROR" in line or "Error" in line] or said
    return (
        f"The builder of TensorRT {package.text} ended {how} before the engine was built. Its last messages: "
        f"{' | '.join(notable[-_LAST_WORDS:]) or 'none'}"
    )


def require_capability(capability: str) -> str:
    """A compute capability that TensorRT-RTX supports; raises ``UsageError`` with those that it does."""
    if capability not in RTX_CAPABILITIES:
        raise UsageError(
            f"TensorRT-RTX does not support compute capability {capability}: it has engines for "
            f"{', '.join(RTX_CAPABILITIES)}."
        )
    return capability
