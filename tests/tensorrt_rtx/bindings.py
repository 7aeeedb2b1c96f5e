"""NVIDIA's ``tensorrt`` package over the libraries of TensorRT-RTX, which are those of TensorRT 11 by other names.

The package's own libraries weigh gigabytes and want a GPU to build. Links give TensorRT-RTX's the names that the
bindings ask for, and the one function that they want of the library of NVIDIA's own plugins stands in.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from dataclasses import replace
from pathlib import Path

from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage

FOLDER_VARIABLE = "DYNDEPLOY_TENSORRT_BINDINGS"
"""A folder into which ``pip install --no-deps --target`` has put ``tensorrt-cu13-bindings`` 11.4."""

MODULE, VERSION = "tensorrt_bindings", "11.4.0.106"
_STAND_IN = "int initLibNvInferPlugins(void* logger, const char* space) { (void)logger; (void)space; return 1; }\n"


def folder() -> Path | None:
    """Where the bindings are, if they are here."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    found = importlib.util.find_spec(MODULE)
    return None if found is None or found.origin is None else Path(found.origin).parents[1]


def bindings_package(rtx: BuilderPackage, bindings: Path, scratch: Path) -> BuilderPackage:
    """The bindings as a builder; the stand-in is compiled into ``scratch``."""
    source, plugins = scratch / "plugins.c", scratch / "libnvinfer_plugin.so.11"
    source.write_text(_STAND_IN, encoding="utf-8")
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(plugins)], check=True)
    libraries = rtx.library_folders[0]
    links = {
        "libnvinfer.so.11": libraries / "libtensorrt_rtx.so.1",
        "libnvonnxparser.so.11": libraries / "libtensorrt_onnxparser_rtx.so.1",
        plugins.name: plugins,
    }
    return replace(rtx, module=MODULE, text=VERSION, links={**rtx.links, **links}, packages=(bindings,))
