"""What a board builds is configured by JetPack 4's CMake, 3.10: a newer command, or a rule that it lacks, fails.

TensorRT's headers and library are empty files, since nothing is compiled; nvcc is the real one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
CMAKE = os.environ.get("DYNDEPLOY_OLD_CMAKE")
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))

pytestmark = pytest.mark.skipif(CMAKE is None, reason="DYNDEPLOY_OLD_CMAKE names no CMake 3.10 (.ci/old-cmake)")


def configured(project: str, build: Path, **definitions: object) -> str:
    """Configure a project; what was said."""
    build.mkdir()
    done = subprocess.run(
        [str(CMAKE), *(f"-D{name}={value}" for name, value in definitions.items()), str(PLUGINS / project)],
        cwd=build, capture_output=True, text=True, check=False,
        env={**os.environ, "CUDACXX": str(CUDA / "bin" / "nvcc")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # It goes on after some errors, and may end with 0.
    assert "Error" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def tensorrt(tmp_path: Path) -> Path:
    """The names of a TensorRT installation."""
    for name in ("NvInfer.h", "NvInferRuntime.h", "NvInferVersion.h", "NvOnnxParser.h"):
        (tmp_path / "tensorrt" / "include").mkdir(parents=True, exist_ok=True)
        (tmp_path / "tensorrt" / "include" / name).touch()
    (tmp_path / "tensorrt" / "lib").mkdir()
    (tmp_path / "tensorrt" / "lib" / "libnvinfer.so").touch()
    return tmp_path / "tensorrt"


def test_it_is_that_of_the_boards() -> None:
    done = subprocess.run([str(CMAKE), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cmake version 3.10.")


def test_the_runtime(tmp_path: Path) -> None:
    said = configured("runtime", tmp_path / "build", DYNDEPLOY_TENSORRT_INCLUDE="OFF", DYNDEPLOY_WERROR="ON")
    assert "Build files have been written" in said
    rules = (tmp_path / "build" / "CMakeFiles" / "Makefile2").read_text()
    assert "dyndeploy-run.dir" in rules and "dyndeploy_runtime_tensorrt.dir" not in rules


@pytest.mark.skipif(not (CUDA / "include" / "cuda_runtime_api.h").exists(), reason="no CUDA headers")
def test_the_runtimes_tensorrt(tmp_path: Path, tensorrt: Path) -> None:
    said = configured("runtime", tmp_path / "build", DYNDEPLOY_TENSORRT_INCLUDE=tensorrt / "include")
    assert f"TensorRT of the runtime: {tensorrt / 'include'}" in said
    assert "dyndeploy_runtime_tensorrt.dir" in (tmp_path / "build" / "CMakeFiles" / "Makefile2").read_text()


@pytest.mark.skipif(not (CUDA / "bin" / "nvcc").exists(), reason="no nvcc")
def test_the_plugins(tmp_path: Path, tensorrt: Path) -> None:
    said = configured(
        "adapters/tensorrt",
        tmp_path / "build",
        TENSORRT_ROOT=tensorrt,
        DYNDEPLOY_CUDA_KERNELS="ON",
        DYNDEPLOY_CUDA_ARCHITECTURES=53,
    )
    assert "for sm 53" in said
    link = (tmp_path / "build" / "CMakeFiles" / "dyndeploy_tensorrt.dir" / "link.txt").read_text()
    # Device code is not linked: the folder of the plugins has no rule for it.
    assert "libdyndeploy_cuda_kernels.a" in link and "cmake_device_link" not in link
