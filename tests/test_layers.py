"""Data flows one way: nothing lower imports anything higher."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dyndeploy"
FLOORS = (
    {"errors"},
    {"finite", "processors"},
    {"files", "fields"},
    {"chunks"},
    {"ops", "data", "confidences", "precisions"},
    {"targets", "blocks", "tasks"},
    {"nets", "bundle"},
    {"graphs"},
    {"runtimes"},
    {"quantization"},
    {"export"},
    {"prediction"},
    {"training", "inference"},
    {"measure"},
    {"exits"},
    {"verification", "reporting", "remote", "device_calibration", "planning", "evaluation", "serving"},
    {"demo", "watching"},
    {"cli"},
)
"""Rooms from the ground up; a room may import its own floor only within itself."""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "dyndeploy" else [f"dyndeploy.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("dyndeploy.")}
    return found & set(LEVEL)


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py") and not path.name.startswith("_")}
    assert rooms - {"py", "lib", "models", "plugins"} == set(LEVEL)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_lower_imports_anything_higher(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # The public API may name everything.
    for other in imported_rooms(path) - {room}:
        assert LEVEL[other] < LEVEL[room], f"{room} imports {other}"
