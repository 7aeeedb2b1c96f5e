"""Calibration recipes and tables of calib/: they are read, and fit what models/ trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dyndeploy.errors import InputError
from dyndeploy.nets.factories import default_options
from dyndeploy.quantization import CalibrationTable
from dyndeploy.quantization.recipe import CalibrationRecipe, load_calibration_recipe

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "calib").glob("*.yaml"))
TABLES = sorted((ROOT / "calib").glob("*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_of_networks_that_are_trained(path: Path) -> None:
    recipe = load_calibration_recipe(path)
    assert recipe.options.keys() <= default_options(recipe.network).keys()
    trained = ROOT / "models" / path.name
    if trained.exists():
        model = yaml.safe_load(trained.read_text(encoding="utf-8"))["model"]
        assert (recipe.network, recipe.options) == (model["name"], model["options"])
    assert recipe.images >= 128 and recipe.weight_bits == 7


def test_there_are_recipes_and_a_table() -> None:
    assert len(RECIPES) >= 9 and len(TABLES) >= 1


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_are_small_and_whole(path: Path) -> None:
    table = CalibrationTable.load(path)
    recipe = load_calibration_recipe(path.with_suffix(".yaml"))
    assert (table.network, table.mode, table.method) == (recipe.network, recipe.options["mode"], recipe.method)
    assert table.images == recipe.images and table.sensitivity is not None
    assert all(item.histogram is None and item.scale > 0 for item in table.tensors.values())
    assert {point.split("/")[0] for point in table.tensors} == set(table.precision)
    assert path.stat().st_size < 20_000


def test_defaults_are_those_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("network: laud_resnet50\n")
    assert load_calibration_recipe(path) == CalibrationRecipe("laud_resnet50")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("network: [", "is not valid YAML"),
        ("- a\n", "must be an object"),
        ("images: 3\n", "network is missing"),
        ("network: n\nimage: 3\n", "image is unknown; a recipe has network, options"),
        ("network: n\nimages: 0\n", "images must be a whole number of at least 1"),
        ("network: n\nmethod: best\n", "method must be one of minmax"),
        ("network: n\nweight_bits: 4\n", "weight_bits must be 7 or 8"),
        ("network: n\nper_channel: 1\n", "per_channel must be true or false"),
        ("network: n\nmax_accuracy_drop: 2\n", "max_accuracy_drop must be a finite number"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        load_calibration_recipe(path)
