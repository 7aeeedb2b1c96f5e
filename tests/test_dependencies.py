"""What pyproject.toml declares: used, and possible together."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.runtimes import tensorrt_ahead
from dyndeploy.runtimes.onnxruntime_package import SWAP

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""Packages that are imported by another name."""
UNSEEN = {"onnxscript"}
"""What PyTorch's exporter imports."""
INDIRECT = {
    "dyndeploy_runtime": "beside a model that a server loads",
    "google": "protobuf, of onnx",
    "joblib": "of scikit-learn",
    "safetensors": "only for files of that kind",
    "triton_python_backend_utils": "of the server",
}
"""What is imported and not declared, and why it is there."""


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower()


def imported() -> set[str]:
    found = set()
    for path in (ROOT / "dyndeploy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                found |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_everything_declared_is_used_and_has_a_lowest_version(requirement: str) -> None:
    name = name_of(requirement)
    assert ">=" in requirement
    assert MODULES.get(name, name) in imported() or name in UNSEEN


def test_one_package_owns_onnxruntime() -> None:
    """An extra cannot take a dependency away."""
    every = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    assert [name_of(r) for r in every if name_of(r).startswith(("onnxruntime", "ort-"))] == ["onnxruntime"]


def test_what_is_imported_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    names = [name_of(r) for r in (*PROJECT["dependencies"], *(r for extra in extras.values() for r in extra))]
    declared = {MODULES.get(name, name) for name in names} | set(INDIRECT) | set(sys.stdlib_module_names)
    assert imported() - declared == {"dyndeploy"}


def test_the_extras_for_gpus_bring_what_is_imported() -> None:
    extras = {name: {name_of(r) for r in each} for name, each in PROJECT["optional-dependencies"].items()}
    assert extras["tensorrt"] == {"tensorrt", "pycuda"} <= imported()
    assert extras["rtx"] <= {*tensorrt_ahead._DISTRIBUTIONS, "tensorrt-rtx-cu13-libs"}
    known = packages_distributions()
    for module in (tensorrt_ahead.RTX_BINDINGS, tensorrt_ahead.RTX_LIBRARIES):
        # Known by name only where it is installed.
        assert known.get(module, ["tensorrt-rtx-cu13-libs"])[0].lower().replace("_", "-") in extras["rtx"]
    # The swap that messages name leaves one package of ONNX Runtime.
    assert "uninstall -y onnxruntime " in SWAP and SWAP.endswith("pip install onnxruntime-gpu")


def test_the_extra_for_detection_brings_what_is_imported() -> None:
    required = {
        str(node.args[0].value).split(".")[0]
        for path in (ROOT / "dyndeploy" / "tasks").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "required"
        if isinstance(node.args[0], ast.Constant)
    }
    extra = {name_of(requirement) for requirement in PROJECT["optional-dependencies"]["detection"]}
    assert {MODULES.get(name, name) for name in extra} == required | {"torchvision", "transformers"}


def test_extras_that_messages_name_exist() -> None:
    for path in (*(ROOT / "dyndeploy").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        for extra in re.findall(r"dyndeploy\[(\w+)\]", path.read_text(encoding="utf-8")):
            assert extra in PROJECT["optional-dependencies"], path
