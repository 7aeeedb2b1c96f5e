"""TensorRT-RTX inside this process, as a session has it: ``python in_process.py ENGINE``. Prints JSON.

A process of its own, because the libraries offer their symbols to everything that is loaded later.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dyndeploy.errors import BundleError
from dyndeploy.runtimes.base import TENSORRT_RTX
from dyndeploy.runtimes.tensorrt_api import TensorRT
from tests.runtimes.fake_tensorrt import RTX_VERSION, World, make_tensorrt

NAMES = {
    "Runtime": ("deserialize_cuda_engine", "get_engine_validity"),
    "ICudaEngine": (
        "create_execution_context", "create_runtime_config", "num_io_tensors", "get_tensor_name", "get_tensor_mode",
        "get_tensor_shape", "get_tensor_dtype",
    ),
    "IRuntimeConfig": ("create_runtime_cache", "set_runtime_cache"),
    "IRuntimeCache": ("serialize", "deserialize"),
    "IExecutionContext": ("set_tensor_address", "execute_async_v3", "profiler"),
    "EngineInvalidityDiagnostics": ("VERSION_MISMATCH", "MALFORMED_ENGINE"),
}  # fmt: skip
"""What is asked of the package by name, or by the stand-in that the tests run engines with."""


def refusal(api: TensorRT, data: bytes) -> str:
    try:
        api.engine(data)
    except BundleError as error:
        return str(error)
    return ""


def main(engine: bytes) -> dict[str, Any]:
    """See the module."""
    api = TensorRT.load(TENSORRT_RTX)
    packages = {"real": api.module, "fake": make_tensorrt(World(RTX_VERSION, rtx=True))}
    return {
        "text": api.text,
        "runtime": api.runtime,
        "lacking": {
            which: sorted(
                f"{kind}.{name}"
                for kind, names in NAMES.items()
                for name in names
                if not hasattr(getattr(package, kind), name) and name not in ("profiler",)
            )
            for which, package in packages.items()
        },
        "whole": refusal(api, engine),
        "half": refusal(api, engine[:50]),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).read_bytes())))
