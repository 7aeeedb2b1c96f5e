"""What a bundle's device/ folder holds: the agent and the plugin sources, as data of this package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from dyndeploy.files import shipped_folder

DEVICE_FOLDER = "device"
"""Name of the folder inside a bundle."""

AGENT = "agent.py"
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


def device_files() -> dict[str, bytes]:
    """Content of the device/ folder by relative path."""
    agent = resources.files("dyndeploy") / "remote" / AGENT
    sources = {f"{PLUGINS}/{name}": path.read_bytes() for name, path in plugin_sources().items()}
    return {AGENT: agent.read_bytes(), **sources}


def write_device_folder(bundle: Path) -> None:
    """Write the device/ folder into the folder of a bundle."""
    for name, content in device_files().items():
        path = bundle / DEVICE_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
