"""Every example goes the whole way, and is short enough to read."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.examples.vit import StandInVit

OF_TIMM = ("dynamic_vit", "evit", "token_merging")
"""Those that take a ViT of timm's: here one that is built alike, and small."""
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load(path)
    if path.stem in OF_TIMM:
        module.main(tmp_path, StandInVit())
    else:
        module.main(tmp_path)
    assert capsys.readouterr().out


@pytest.mark.vision("timm")
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem in OF_TIMM], ids=lambda path: path.stem)
def test_examples_take_networks_of_timm(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timm = importlib.import_module("timm")
    load(path).main(tmp_path, timm.create_model("vit_tiny_patch16_224", img_size=64, depth=8))
    assert "kept" in capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80


def test_all_are_there() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "deploy", "dynamic_vit", "evit", "gated_residual", "mobile_exits", "own_block", "pyramid", "token_merging",
    ]  # fmt: skip


def test_the_list_names_every_example() -> None:
    text = (EXAMPLES[0].parent / "README.md").read_text(encoding="utf-8")
    assert all(f"[{path.name}]({path.name})" in text for path in EXAMPLES)
