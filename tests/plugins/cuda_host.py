"""The CUDA kernels built for this machine, which plays the GPU."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "plugins" / "kernels" / "cuda"
INTERFACE = Path(__file__).with_name("kernels_cuda_c.cpp")
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def build(folder: Path) -> Path:
    """The kernels and their C interface as a library for this machine."""
    library = folder / "libdyndeploy_cuda_host.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            assert COMPILER is not None
            sources = [*sorted(KERNELS.glob("*.cu")), *sorted((KERNELS / "host").glob("*.cpp")), INTERFACE]
            partial = library.with_suffix(".partial")
            command = [
                COMPILER,
                "-std=c++14",
                "-O2",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-fPIC",
                "-shared",
                "-fvisibility=hidden",
            ]
            command += [f"-I{KERNELS}", "-DDYNDEPLOY_CUDA_HOST", "-x", "c++", *map(str, sources), "-o", str(partial)]
            subprocess.run(command, check=True, timeout=900)
            partial.replace(library)
    return library


def load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.dyn_check_bottleneck.restype = ctypes.c_char_p
    library.dyn_bottleneck_workspace.restype = ctypes.c_size_t
    library.dyn_check_quantized_bottleneck.restype = ctypes.c_char_p
    library.dyn_quantized_bottleneck_workspace.restype = ctypes.c_size_t
    library.dyn_channel_masker_workspace.restype = ctypes.c_size_t
    library.dyn_check_transformer.restype = ctypes.c_char_p
    library.dyn_transformer_workspace.restype = ctypes.c_size_t
    return library


def host_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the library in ``DYNDEPLOY_CUDA_HOST_LIBRARY``, or of one build for all workers of a test run."""
    named = os.environ.get("DYNDEPLOY_CUDA_HOST_LIBRARY")
    if named is not None:
        return named
    if COMPILER is None:
        pytest.skip("no C++ compiler for the host build of the CUDA kernels")
    files = sorted([*KERNELS.rglob("*.h"), *KERNELS.rglob("*.cu"), *KERNELS.rglob("*.cpp"), INTERFACE])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"cuda-host-{digest}"
    folder.mkdir(exist_ok=True)
    return str(build(folder))
