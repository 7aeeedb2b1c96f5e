"""What the pages take from the code is up to date."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from dyndeploy.nets import model_names
from dyndeploy.training.recipe import DataRecipe, OptimizerRecipe, Recipe

DOCS = Path(__file__).parent.parent / "docs"
SAID = "run python docs/generate.py"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recipe_keys_are_current(generate: ModuleType) -> None:
    assert (DOCS / "recipes.md").read_text(encoding="utf-8") == generate.recipes_page(), SAID


@pytest.mark.parametrize("kind", [Recipe, DataRecipe, OptimizerRecipe])
def test_every_recipe_key_has_a_meaning(generate: ModuleType, kind: type) -> None:
    _, attributes = generate.described(kind)
    assert list(attributes) == [field.name for field in dataclasses.fields(kind)]
    assert all(attributes.values())


def test_types_and_defaults_are_in_words(generate: ModuleType) -> None:
    rows = generate.recipes_page().splitlines()
    assert any(row.startswith("| `lr` | number | must be given | Learning rate") for row in rows)
    assert any(row.startswith("| `import` | text | none |") for row in rows)
    assert any(row.startswith("| `input_size` | list of 2 whole numbers | none |") for row in rows)
    assert "## `optimizer.layers.PATTERN`" in rows


def test_the_table_has_every_network(generate: ModuleType) -> None:
    _, _, rest = (DOCS / "networks.md").read_text(encoding="utf-8").partition(generate.BEGIN)
    table = rest.partition(generate.END)[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(model_names()), SAID
    for name in ("laud_resnet50", "laud_resnet14_small", "resnet10_small_perceiver_t32"):  # All of them take a minute.
        assert f"| {' | '.join(generate._network_cells(name))} |" in table.splitlines(), SAID
