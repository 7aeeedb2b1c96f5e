"""Our declarations of ONNX Runtime's C API against its own header, where that can be had."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ADAPTER = HERE.parent.parent / "plugins" / "adapters" / "onnxruntime"
HEADER = "onnxruntime_c_api.h"


def _header_folder() -> Path:
    folders = [
        os.environ.get("DYNDEPLOY_ORT_INCLUDE", ""),
        "/usr/include/onnxruntime",
        "/usr/local/include/onnxruntime",
    ]
    for folder in filter(None, folders):
        if (Path(folder) / HEADER).is_file():
            return Path(folder)
    pytest.skip(f"no {HEADER} (set DYNDEPLOY_ORT_INCLUDE to its folder): positions and signatures are not checked")


def _compile(adapter: Path) -> subprocess.CompletedProcess[str]:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    command = [compiler, "-std=c++17", "-fsyntax-only", "-isystem", str(_header_folder()), "-I", str(adapter)]
    return subprocess.run([*command, str(HERE / "check_ort_abi.cpp")], capture_output=True, text=True, check=False)


def test_declarations_match_the_header() -> None:
    found = _compile(ADAPTER)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("F(61, GetDimensionsCount", "F(62, GetDimensionsCount", "GetDimensionsCount moved"),
        ("(const OrtValue*, int*)", "(const OrtValue*, float*)", "signature of IsTensor"),
        ("kInts = 2", "kInts = 3", "ORT_OP_ATTR_INTS"),
        (
            "MemoryType(DYNDEPLOY_ORT_CALL* GetInputMemoryType)",
            "void*(DYNDEPLOY_ORT_CALL* GetInputMemoryType)",
            "GetInput",
        ),
    ],
)
def test_the_check_can_fail(tmp_path: Path, before: str, after: str, said: str) -> None:
    text = (ADAPTER / "abi.h").read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "abi.h").write_text(text.replace(before, after), encoding="utf-8")
    found = _compile(tmp_path)
    assert found.returncode != 0
    assert said in found.stderr
