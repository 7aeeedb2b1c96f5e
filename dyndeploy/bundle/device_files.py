"""What a bundle's device/ folder holds: what a board runs, and the plugin sources, as data of this package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from dyndeploy.files import shipped_folder

DEVICE_FOLDER = "device"
"""Name of the folder inside a bundle."""

AGENT = "agent.py"
MODULES = {
    "loop": "measure/loop.py",
    "tensorrt_device": "runtimes/tensorrt_device.py",
    "tensorrt_inspector": "runtimes/tensorrt_inspector.py",
}
"""Files of this package that the agent's jobs run as they stand, by module name; below the package."""

PLUGINS = "plugins"

PLUGIN_FOLDERS = ("kernels/cuda", "adapters/common", "adapters/tensorrt")
"""Below ``plugins/``: what a board builds."""

_SUFFIXES = {".h", ".cuh", ".cu", ".cpp", ".cmake", ".map", ".md"}


def plugin_sources() -> dict[str, Path]:
    """Sources of the TensorRT plugins by path relative to ``plugins/``; empty where the package came without them."""
    root = shipped_folder(PLUGINS)
    found = [path for folder in PLUGIN_FOLDERS for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return {
        path.relative_to(root).as_posix(): path
        for path in found
        if path.suffix in _SUFFIXES or path.name == "CMakeLists.txt"
    }


def board_modules() -> dict[str, bytes]:
    """The files that the agent's jobs run, by module name; they need Python 3.6 and its standard library only."""
    return {name: (resources.files("dyndeploy") / path).read_bytes() for name, path in MODULES.items()}


def device_files() -> dict[str, bytes]:
    """Content of the device/ folder by relative path."""
    agent = resources.files("dyndeploy") / "remote" / AGENT
    modules = {f"{name}.py": content for name, content in board_modules().items()}
    sources = {f"{PLUGINS}/{name}": path.read_bytes() for name, path in plugin_sources().items()}
    return {AGENT: agent.read_bytes(), **modules, **sources}


def write_device_folder(bundle: Path) -> None:
    """Write the device/ folder into the folder of a bundle."""
    for name, content in device_files().items():
        path = bundle / DEVICE_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
