"""The TensorRT plugins against TensorRT's headers and, where it is set up, the real TensorRT 8.5.3.1; no GPU.

Headers are not part of this repository. They are looked for in every folder of ``DYNDEPLOY_TENSORRT_HEADERS`` (one per
version, each with ``include/NvInferRuntime.h``), in ``TENSORRT_ROOT`` and on the system. The real library is what
``python tests/tensorrt/setup_tensorrt.py`` has made (see there).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.graphs.tensorrt import HALF_ONLY, LARGEST_BATCH, TIMED_MASKS, TIMING_RATES, TUNING
from dyndeploy.ops import OPERATORS
from tests.tensorrt import setup_tensorrt

PLUGINS = {name: spec for name, spec in OPERATORS.items() if "tensorrt" in spec.kernels}
"""Operators that have a plugin."""

HERE = Path(__file__).parent
TOOLS = all(map(shutil.which, ("cmake", "c++")))
ENTRY_POINTS = {"getCreators", "getPluginCreators", "setLoggerFinder", "DyndeployKernels"}
ENTRY_POINTS |= {"DyndeployTimedTactics", "DyndeployReadTimedTactics"}


def header_roots() -> dict[str, Path]:
    """Folders with ``include/NvInferRuntime.h`` by version, such as ``8.5``."""
    roots = [Path(root) for root in (os.environ.get("TENSORRT_ROOT"), "/usr/local/tensorrt", "/usr") if root]
    if folder := os.environ.get("DYNDEPLOY_TENSORRT_HEADERS"):
        roots = [*sorted(Path(folder).iterdir()), *roots]
    found: dict[str, Path] = {}
    for root in roots:
        for include in (root / "include", *root.glob("include/*-linux-gnu")):
            if (include / "NvInferRuntime.h").exists():
                found.setdefault(header_version(include), include)
    return found


def header_version(include: Path) -> str:
    """``major.minor`` of the headers."""
    text = (include / "NvInferVersion.h").read_text()
    names = re.findall(r"#define (?:NV_TENSORRT|TRT)_(MAJOR|MINOR)\w* (\d+)", text)
    return ".".join(dict(names)[part] for part in ("MAJOR", "MINOR"))


HEADERS = header_roots()
NO_HEADERS = "no TensorRT headers: set DYNDEPLOY_TENSORRT_HEADERS or TENSORRT_ROOT"


def real_tensorrt() -> dict[str, str] | None:
    """What setup_tensorrt.py has made, if anything."""
    try:
        return setup_tensorrt.read(setup_tensorrt.default_folder())
    except FileNotFoundError:
        return None


REAL = real_tensorrt()


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """The command's output; the test fails with all of it when the command fails."""
    result = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def build(folder: Path, include: Path, *options: str) -> str:
    """Configure and build the contract test; warnings are errors."""
    settings = [f"-DTENSORRT_INCLUDE_DIR={include}", "-DCMAKE_BUILD_TYPE=Debug", *options]
    result = subprocess.run(["cmake", "-S", str(HERE), "-B", str(folder), *settings], capture_output=True, text=True)
    log: str = result.stdout + result.stderr
    if "no cuda_runtime_api.h" in log:
        pytest.skip("no CUDA headers: set CUDA_HOME")
    assert result.returncode == 0, log
    return log + run("cmake", "--build", folder)


@pytest.mark.skipif(not TOOLS, reason="no cmake or no C++ compiler")
@pytest.mark.parametrize(
    "version", sorted(HEADERS) or [pytest.param("none", marks=pytest.mark.skip(reason=NO_HEADERS))]
)
def test_contract_with_the_headers_of(version: str, tmp_path: Path) -> None:
    has_v3 = int(version.split(".")[0]) >= 10
    log = build(tmp_path, HEADERS[version], "-DTENSORRT_LIBRARY=TENSORRT_LIBRARY-NOTFOUND")
    assert "warning" not in log
    programs = ["contract", "contract_v2"] if has_v3 else ["contract"]
    interfaces = ["IPluginV3", "IPluginV2DynamicExt"] if has_v3 else ["IPluginV2DynamicExt"]
    for program, interface in zip(programs, interfaces, strict=True):
        summary = run(tmp_path / program).splitlines()[-1]
        match = re.fullmatch(rf"TensorRT {version} headers, {interface}: (\d+) checks, 0 failed", summary)
        assert match and int(match[1]) > 7000, summary


def node_cases() -> dict[str, Any]:
    """Attributes of every operator, right ones and wrong ones."""
    cases: dict[str, Any] = {}
    for name, spec in PLUGINS.items():
        right = {attribute.name: [attribute.type(1)] * (attribute.length or 1) for attribute in spec.attributes}
        wrong = {f"without {key}": {k: v for k, v in right.items() if k != key} for key in right}
        wrong |= {f"{key} too long": {**right, key: [*values, values[0]]} for key, values in right.items()}
        wrong |= {f"{key} below zero": {**right, key: [-value for value in values]} for key, values in right.items()}
        cases[name] = {"attributes": right, "wrong": {**wrong, "unknown": {**right, "axis": [1]}}}
    return cases


@pytest.mark.skipif(not TOOLS, reason="no cmake or no C++ compiler")
@pytest.mark.skipif("8.5" not in HEADERS, reason=NO_HEADERS)
@pytest.mark.skipif(REAL is None, reason="no TensorRT 8.5.3.1: run python tests/tensorrt/setup_tensorrt.py")
def test_contract_with_the_real_library(tmp_path: Path) -> None:
    assert REAL is not None
    build(tmp_path, HEADERS["8.5"], f"-DTENSORRT_LIBRARY={REAL['tensorrt']}/libnvinfer.so.8")
    library = tmp_path / "adapter" / "libdyndeploy_tensorrt.so"
    exported = run("nm", "-D", "--defined-only", library).split()[2::3]
    assert set(exported) == ENTRY_POINTS
    environment = {key: value for key, value in REAL.items() if key.isupper()}

    only_libraries = {**os.environ, "LD_LIBRARY_PATH": environment["LD_LIBRARY_PATH"]}
    summary = run(tmp_path / "contract_loaded", library, env=only_libraries)
    assert re.search(r"TensorRT 8.5 headers, IPluginV2DynamicExt: \d{4,} checks, 0 failed", summary), summary

    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps(node_cases()))
    answer = subprocess.run(
        [REAL["python"], HERE / "python_contract.py", library, cases],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert sorted(said["added"]) == sorted(PLUGINS)
    for name, spec in PLUGINS.items():
        assert said["fields"][name] == {
            **{a.name: a.length or 1 for a in spec.attributes},
            HALF_ONLY: 1,
            LARGEST_BATCH: 1,
            TIMING_RATES: TIMED_MASKS,
            TUNING: 1,
        }


@pytest.mark.skipif(not TOOLS, reason="no cmake or no C++ compiler")
def test_without_tensorrt_the_adapter_is_skipped(tmp_path: Path) -> None:
    adapter = HERE.parents[1] / "plugins" / "adapters" / "tensorrt"
    (tmp_path / "empty").mkdir()
    log = run("cmake", "-S", adapter, "-B", tmp_path / "build", f"-DTENSORRT_ROOT={tmp_path / 'empty'}")
    assert "The TensorRT plugins are not built: no NvInferRuntime.h" in log
    assert "Set TENSORRT_ROOT" in log


def test_setup_reads_only_what_is_complete(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        setup_tensorrt.read(tmp_path)
    made = {"python": "p", "tensorrt": "t", "LD_LIBRARY_PATH": "l"}
    (tmp_path / setup_tensorrt.MARKER).write_text(json.dumps(made))
    assert setup_tensorrt.set_up(tmp_path) == made


def test_the_python_side_is_valid_for_its_python() -> None:
    compile((HERE / "python_contract.py").read_text(), "python_contract.py", "exec", dont_inherit=True)
    if vermin := shutil.which("vermin", path=str(Path(sys.executable).parent)):
        run(vermin, "-t=3.9-", "--no-tips", "--eval-annotations", HERE / "python_contract.py")
