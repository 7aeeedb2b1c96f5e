"""Every Python block of the README and of docs/ runs."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dyndeploy.ops import OPERATORS

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^(?:<!-- needs ([\w, ]+) -->\n)?```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
"""Packages that a block needs and that only some runs have stand in a comment before it."""
BLOCKS = [
    pytest.param(text, id=f"{page.name}-{index}", marks=[pytest.mark.vision(*needs.split(", "))] if needs else [])
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for index, (needs, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
]


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("text", BLOCKS)
def test_block_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    operators = set(OPERATORS)
    try:
        exec(compile(text, "documentation", "exec"), {"__name__": "documentation"})
    finally:
        for name in set(OPERATORS) - operators:
            OPERATORS.remove(name)


def test_links_point_to_files() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """Where links into a page may point: its headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_point_to_headings() -> None:
    found = 0
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            found += 1
            assert anchor in anchors(page.parent / link if link else page), f"{page.name}: {link}#{anchor}"
    assert found > 20


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "img").glob("*.svg")), ids=lambda path: path.stem)
def test_pictures_say_what_they_show_and_fit_dark_pages(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    texts = {element.tag.rsplit("}", 1)[-1]: (element.text or "").strip() for element in root.iter()}
    assert root.get("role") == "img" and texts["title"] and texts["desc"]
    assert "prefers-color-scheme: dark" in texts["style"]
    x, y, width, height = map(float, root.get("viewBox", "").split())
    assert (x, y) == (0, 0) and (width, height) == (float(root.get("width", 0)), float(root.get("height", 0)))
