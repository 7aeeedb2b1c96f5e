"""The C++ runtime, built once for all tests of a run."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

from dyndeploy.files import locked
from tests.tensorrt.test_contract import HEADERS

SOURCES = Path(__file__).parent.parent.parent / "plugins" / "runtime"


@dataclass(frozen=True)
class RuntimeBuild:
    """What a build of plugins/runtime gives."""

    library: Path
    program: Path
    unit_tests: Path
    fuzzer: Path
    engine_builder: Path
    stand_in: Path
    host_programs: Path


@pytest.fixture(scope="session")
def runtime_build(tmp_path_factory: pytest.TempPathFactory) -> RuntimeBuild:
    """The runtime in ``DYNDEPLOY_RUNTIME_BUILD``, else built here; several processes of tests share one build."""
    named = os.environ.get("DYNDEPLOY_RUNTIME_BUILD")
    if named:
        return _checked(Path(named))
    if shutil.which("cmake") is None or (shutil.which("g++") or shutil.which("clang++")) is None:
        pytest.skip("no cmake or no C++ compiler: the runtime is not built")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = shared / "runtime-build"
    # A build takes a minute or so, several where other work goes on.
    with locked(folder, seconds=900.0):
        if not (folder / "done").exists():
            _build(folder)
    return _checked(folder)


def newest_headers() -> Path | None:
    """Of the TensorRT headers at hand those with the parser's (see tests/tensorrt/test_contract.py)."""
    versions = sorted(HEADERS, key=lambda text: [int(part) for part in text.split(".")])
    return next((HEADERS[version] for version in reversed(versions) if has_parser(HEADERS[version])), None)


def has_parser(include: Path) -> bool:
    """Whether headers are those of a whole TensorRT: NVIDIA's repository lacks the parser's before 11."""
    return (include / "NvOnnxParser.h").exists()


def _build(folder: Path) -> None:
    configured = subprocess.run(
        ["cmake", "-S", str(SOURCES), "-B", str(folder), "-DDYNDEPLOY_WERROR=ON", "-DDYNDEPLOY_TESTS=ON",
         f"-DDYNDEPLOY_TENSORRT_INCLUDE={newest_headers() or ''}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "apt install" in configured.stderr:
        pytest.skip("rapidjson is missing: the runtime is not built")
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run(
        ["cmake", "--build", str(folder), "--parallel", "2"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (folder / "done").touch()


def _checked(folder: Path) -> RuntimeBuild:
    build = RuntimeBuild(
        folder / "libdyndeploy.so",
        folder / "dyndeploy-run",
        folder / "test_runtime",
        folder / "fuzz_runtime",
        folder / "build_engine",
        folder / "libstand_in_module.so",
        folder / "run_host_program",
    )
    for path in astuple(build):
        assert path.is_file()
    return build


@pytest.fixture(scope="session")
def onnxruntime_library() -> Path:
    """The shared library of the installed package onnxruntime, which 1.19 and newer carry."""
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} brings no libonnxruntime.so: the runtime is not run")
    return found[0]
