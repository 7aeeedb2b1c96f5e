"""What pyproject.toml declares: used, and possible together."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
"""Packages that are imported by another name."""
UNSEEN = {"onnxscript"}
"""What PyTorch's exporter imports."""


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


def test_extras_that_messages_name_exist() -> None:
    for path in (*(ROOT / "dyndeploy").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        for extra in re.findall(r"dyndeploy\[(\w+)\]", path.read_text(encoding="utf-8")):
            assert extra in PROJECT["optional-dependencies"], path
