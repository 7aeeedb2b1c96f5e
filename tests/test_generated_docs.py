"""What the pages take from the code is up to date."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer

from dyndeploy.cli import COMMANDS, build_app
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


def test_commands_are_current(generate: ModuleType) -> None:
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == generate.commands_page(), SAID


def test_the_page_lists_what_the_parser_takes(generate: ModuleType) -> None:
    _, *parts = re.split(r"^## (.+)$", generate.commands_page(), flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    parser = typer.main.get_command(build_app())
    assert list(sections) == list(COMMANDS) == list(parser.commands)
    for name, command in parser.commands.items():
        taken = {word for each in command.params for word in (*each.opts, *each.secondary_opts) if word[0] == "-"}
        written = {
            word.split()[0].strip("`")
            for cells in re.findall(r"^\| (`-.*?`) \| ", sections[name], re.MULTILINE)
            for word in cells.split(", ")
        }
        assert written == taken - {"-h", "--help", "-v", "--verbose", "-q", "--quiet"}, name


def test_the_page_of_commands_says_what_must_be_given_and_what_else_is_taken(generate: ModuleType) -> None:
    lines = generate.commands_page().splitlines()
    assert "dyndeploy export [NETWORK|RUN] --output DIR [OPTIONS]" in lines
    assert "dyndeploy device {add|list|remove|probe|clean} [NAME] [HOST] [OPTIONS]" in lines
    assert (
        "| `--native auto\\|off\\|PATH` | `auto` | Operator library of ONNX Runtime: auto, off, or its path. |" in lines
    )
    assert any(line.startswith("| `--limit N` | all | ") for line in lines)
    assert any(line.startswith("| `--resume`, `--no-resume` | on | ") for line in lines)


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
