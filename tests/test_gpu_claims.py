"""No GPU and no board has run any of this yet: a figure for one must say where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for folder in ("", "docs", "plugins", "benchmarks", "examples")
    for path in (ROOT / folder).glob("*.md" if folder in ("", "docs") else "**/*.md")
    if path.name != "CHANGELOG.md"
)
DEVICE = re.compile(
    r"\b(GPUs?|TensorRT(-RTX)?|CUDA|Jetsons?|Nano|TX1|TX2|Xavier|Orin|RTX ?\d+|V100|A100|H100|H200|sm_\d+|boards?|"
    r"Maxwell|Pascal|tensor cores)\b"
)
CLAIM = re.compile(
    r"\d(x| ?(ms|us|%|TB/s|GB/s|TFLOP/s))(?!\w)|"
    r"\b(faster|slower|twice|a quarter of|times as|the fastest|saves?|skips)\b"
)
LABEL = re.compile(
    r"\b(predict\w*|modelled|device models?|fit\w*|published|built ahead|not run|unverified|no (board|GPU)|"
    r"data sheets?|(not|never|nothing)( been| has)? (yet )?(run|measured|confirmed)|counted|open until|"
    r"only (a GPU|hardware))\b",
    re.IGNORECASE,
)


def unlabelled(text: str) -> list[str]:
    """Paragraphs that claim something of a GPU in figures, without a label in them, before them or in the heading."""
    found = []
    # Code is no claim; a table counts with what introduces it.
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for section in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        heading, _, body = section.partition("\n") if section.startswith("#") else ("", "", section)
        parts = [part for part in re.split(r"\n\s*\n", body.strip()) if part]
        labelled = [bool(LABEL.search(part)) for part in parts]
        for index, part in enumerate(parts):
            claims = [s for s in _sentences(part) if DEVICE.search(s) and CLAIM.search(s)]
            near = LABEL.search(heading) or labelled[index] or (index and labelled[index - 1])
            if claims and not near:
                found += claims
    return found


def _sentences(part: str) -> list[str]:
    if part.startswith("|"):
        return part.splitlines()
    return re.split(r"(?<=[.:;])\s+", part.replace("\n", " "))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_figures_for_gpus_are_labelled(page: Path) -> None:
    assert unlabelled(page.read_text(encoding="utf-8")) == []


def test_pages_about_gpus_say_that_none_has_run_this() -> None:
    said = re.compile(
        r"\bno (board|GPU|figure)\b|\bnone has\b|\b(has|have) not been run\b|\bnot yet run\b|\bnot run\b", re.IGNORECASE
    )
    # Generated from the options' help, which claims nothing.
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES if path.name != "commands.md"}
    about = {path: text for path, text in pages.items() if len(DEVICE.findall(text)) >= 10}
    assert ROOT / "README.md" in about and ROOT / "docs" / "tensorrt.md" in about
    assert [str(path.relative_to(ROOT)) for path, text in about.items() if not said.search(text)] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("On a Nano it is 1.7x as fast.", 1),
        ("On a Nano it is predicted to be 1.7x as fast.", 0),
        ("## Predictions\n\nNot measured.\n\n| Nano | 12 ms |", 0),
        ("## Times\n\n| Nano | 12 ms |\n| TX2 | 5 ms |", 2),
        ("```\nNano 1.7x\n```", 0),
        ("On this CPU it takes 12 ms.", 0),
    ],
)
def test_the_test_sees_claims(text: str, count: int) -> None:
    assert len(unlabelled(text)) == count
