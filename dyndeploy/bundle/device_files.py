"""What a bundle's device/ folder holds: what a board runs and builds, as data of this package."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from dyndeploy.bundle.device_readme import Carried, device_readme
from dyndeploy.bundle.manifest import Manifest
from dyndeploy.files import shipped_folder
from dyndeploy.targets import load_device, load_target

DEVICE_FOLDER = "device"
"""Name of the folder inside a bundle."""

AGENT = "agent.py"
PROGRAMS = (AGENT, "by_hand.py")
"""Files of ``dyndeploy/remote`` that are programs on a board."""

MODULES = {
    "loop": "measure/loop.py",
    "tensorrt_device": "runtimes/tensorrt_device.py",
    "tensorrt_inspector": "runtimes/tensorrt_inspector.py",
}
"""Files of this package that the agent's jobs run as they stand, by module name; below the package."""

HOST_PROGRAM = "runtimes/host_program.py"
"""As :data:`MODULES`, for networks in parts: runs what the host computes between engines; needs NumPy as well."""

BINDING = "runtime/python/dyndeploy_runtime.py"
"""The runtime in Python, below ``plugins/``."""

README = "README.md"
BUILD = "build.json"
"""How the plugins are built for the bundle's target: what the agent is told over SSH, for builds by hand."""

PLUGINS = "plugins"
PLUGIN_FOLDERS = ("kernels/cuda", "adapters/common", "adapters/tensorrt")
"""Below ``plugins/``: what the plugin library is built from."""

RUNTIME_FOLDERS = ("runtime", "adapters/onnxruntime/abi.h")
"""Below ``plugins/``: what, with :data:`PLUGIN_FOLDERS`, the runtime for applications is built from."""

LIBRARY = "libdyndeploy_tensorrt.so"
PLUGIN_PROJECT = "adapters/tensorrt"
"""Folder of the CMake project, below ``plugins/``, that makes :data:`LIBRARY`."""

PREBUILT = "prebuilt"
PREBUILT_VARIABLE = "DYNDEPLOY_PREBUILT"
"""Names a folder of prebuilt files in the place of the installed one."""

PREBUILT_FILES = ("dyndeploy-run", "libdyndeploy.so", "libdyndeploy_ort_cpu.so")
_EXECUTABLE = "dyndeploy-run"

_SUFFIXES = {".h", ".cuh", ".cu", ".cpp", ".cmake", ".map", ".md"}


def plugin_sources() -> dict[str, Path]:
    """Sources of the TensorRT plugins by path relative to ``plugins/``; empty where the package came without them."""
    return _sources(PLUGIN_FOLDERS)


def runtime_sources() -> dict[str, Path]:
    """Sources of the runtime for applications by path relative to ``plugins/``; those of plugins are not repeated."""
    return _sources(RUNTIME_FOLDERS)


def _sources(parts: tuple[str, ...]) -> dict[str, Path]:
    root = shipped_folder(PLUGINS)
    found = [
        path
        for part in parts
        for path in ([root / part] if (root / part).is_file() else sorted((root / part).rglob("*")))
        if path.is_file()
    ]
    return {
        path.relative_to(root).as_posix(): path
        for path in found
        if path.suffix in _SUFFIXES or path.name == "CMakeLists.txt"
    }


def prebuilt_files() -> dict[str, Path]:
    """Libraries and programs that were built for boards, as ``aarch64/libdyndeploy.so``; empty where there are none.

    ``.ci/wheel`` puts them into wheels; :data:`PREBUILT_VARIABLE` names another folder.
    """
    named = os.environ.get(PREBUILT_VARIABLE)
    root = Path(named) if named else Path(str(resources.files("dyndeploy"))) / PREBUILT
    return {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.glob("*/*"))
        if path.name in PREBUILT_FILES and path.is_file()
    }


def board_modules(*, parts: bool = False) -> dict[str, bytes]:
    """The files that the agent's jobs run, by module name; they need Python 3.6 and its standard library only.

    Args:
        parts: Of a network in parts also what runs its host programs, which needs NumPy.
    """
    paths = {**MODULES, **({Path(HOST_PROGRAM).stem: HOST_PROGRAM} if parts else {})}
    return {name: (resources.files("dyndeploy") / path).read_bytes() for name, path in paths.items()}


def plugin_build(target: str) -> dict[str, Any]:
    """How the plugin library is built for a target, as the agent's job ``plugins`` takes it (without ``sources``)."""
    architecture = (load_device(target).hardware.compute_capability or "").replace(".", "")
    return {
        "library": LIBRARY,
        "project": PLUGIN_PROJECT,
        "definitions": {
            "CMAKE_BUILD_TYPE": "Release",
            "DYNDEPLOY_CUDA_KERNELS": "ON",
            "DYNDEPLOY_CUDA_ARCHITECTURES": architecture,
        },
        "architecture": architecture,
    }


def device_files(manifest: Manifest) -> dict[str, bytes]:
    """Content of the device/ folder by relative path.

    Args:
        manifest: Of the bundle, for a target with TensorRT; its ``files`` may be those without this folder.
    """
    remote = resources.files("dyndeploy") / "remote"
    programs = {name: (remote / name).read_bytes() for name in PROGRAMS}
    in_parts = manifest.detection is not None and bool(manifest.detection.parts)
    modules = {f"{name}.py": content for name, content in board_modules(parts=in_parts).items()}
    sources = {**plugin_sources(), **runtime_sources()}
    build = plugin_build(manifest.target)
    binding = shipped_folder(PLUGINS) / BINDING
    # Jetsons are aarch64; what a workstation is, its user knows.
    jetson = bool(load_target(manifest.target).power_modes)
    prebuilt = {name: path for name, path in prebuilt_files().items() if not jetson or name.startswith("aarch64/")}
    texts = {
        BUILD: json.dumps(build, indent=2) + "\n",
        README: device_readme(manifest, build, _carried(sources, prebuilt)),
    }
    return {
        **programs,
        **modules,
        **({binding.name: binding.read_bytes()} if binding.is_file() else {}),
        **{f"{PLUGINS}/{name}": path.read_bytes() for name, path in sources.items()},
        **{f"{PREBUILT}/{name}": path.read_bytes() for name, path in prebuilt.items()},
        **{name: text.encode() for name, text in texts.items()},
    }


def _carried(sources: dict[str, Path], prebuilt: dict[str, Path]) -> Carried:
    program = sources.get("runtime/program/arguments.cpp")
    return Carried(
        runtime="runtime/CMakeLists.txt" in sources,
        plugins=f"{PLUGIN_PROJECT}/CMakeLists.txt" in sources,
        # What the README promises is what these sources can.
        tensorrt=any(name.startswith("runtime/") and "tensorrt" in name for name in sources),
        cameras=program is not None and "csi://" in program.read_text(encoding="utf-8"),
        prebuilt=tuple(sorted({name.split("/")[0] for name in prebuilt})),
    )


def write_device_folder(bundle: Path, manifest: Manifest) -> None:
    """Write the device/ folder into the folder of a bundle."""
    for name, content in device_files(manifest).items():
        path = bundle / DEVICE_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if path.name == _EXECUTABLE:
            path.chmod(0o755)
