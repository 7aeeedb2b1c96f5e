"""dyndeploy's own builder path inside NVIDIA's ``tensorrt`` package.

``python through_bindings.py FOLDER LIBRARY STAND_INS``

FOLDER takes the cache; LIBRARY is the plugin library; STAND_INS is 1 where stand-ins are registered beforehand. Prints
what came of it as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorrt_bindings

from dyndeploy.errors import DyndeployError
from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes.cuda import GpuInfo
from dyndeploy.runtimes.tensorrt_api import TensorRT
from dyndeploy.runtimes.tensorrt_engine import TIMING_CACHE, EngineSettings, build_engine
from dyndeploy.runtimes.tensorrt_stand_ins import register_stand_ins
from tests.bundles import tiny_bundle

GPU = GpuInfo("no GPU", "8.6", "13.0", "13.0")


def main(folder: Path, library: Path, stand_ins: bool) -> dict[str, Any]:
    """See the module."""
    # What the package 'tensorrt' does, which is nothing but this name.
    sys.modules["tensorrt"] = tensorrt_bindings
    api = TensorRT.load()
    plugins = [spec for spec in OPERATORS.values() if "tensorrt" in spec.kernels]
    kept = register_stand_ins(tensorrt_bindings, plugins, []) if stand_ins else []
    bundle = tiny_bundle(folder / "b", mode="both")
    settings = EngineSettings(library=library, cache=folder / "cache")
    engines = []
    for precision in ("fp32", "fp16"):
        for static in (False, True):
            chosen = replace(settings, precision=precision, static=static)
            built = build_engine(bundle, GPU, chosen, api=api)
            again = build_engine(bundle, GPU, chosen, api=api)
            engines.append(
                {
                    "cached": [built.cached, again.cached],
                    "same": built.path == again.path and built.metadata == again.metadata,
                    "bytes": built.path.stat().st_size,
                    "plan": built.metadata["plan"],
                    "operators": built.metadata["operators"],
                }
            )
    try:
        api.engine(built.path.read_bytes())
        refused = ""
    except DyndeployError as error:
        refused = str(error)
    return {
        "version": api.version,
        "text": api.text,
        "creators": sorted(name for name, _ in api.creators() if name in OPERATORS),
        "stand_ins": len(kept),
        "engines": engines,
        "timing_cache": (folder / "cache" / TIMING_CACHE).stat().st_size,
        "files": len(list((folder / "cache").glob("*.engine"))),
        "refused": refused,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1")))
