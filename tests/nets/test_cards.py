"""Model cards: figures that are counted, results that were published, and the command that lists both."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from _pytest.mark import ParameterSet

from dyndeploy.cli import run
from dyndeploy.nets import model_info, model_names
from dyndeploy.nets.cards import count, model_card, published_results
from dyndeploy.training import load_recipe, recipe_names
from dyndeploy.training.recipe import recipes_by_network

_WITHOUT_RECIPES = ("dyn_perceiver",)


def _counted_names() -> Iterator[ParameterSet]:
    """Every network; of detectors, which take long, one backbone and the small form of each kind."""
    for name in model_names():
        if model_info(name).family != "detector":
            yield pytest.param(name)
        elif name.endswith(("_resnet50", "_small")):
            yield pytest.param(name, marks=pytest.mark.vision("torchvision"))


@pytest.mark.parametrize("name", _counted_names())
def test_stored_figures_are_what_is_counted(name: str) -> None:
    card, counted = model_card(name), count(name)
    assert (card.parameters, card.macs, card.exit_macs) == counted, "run python docs/generate.py"
    assert card.exits == (len(counted.exit_macs) or 1)


def test_the_command_lists_figures_modes_exits_results_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    cards = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    small = cards["ada_deit_small"]
    assert (small["parameters"], small["macs"], small["exits"]) == (22_050_664, 4_598_882_304, 1)
    assert small["modes"] == ["token", "head", "layer", "all", "static"]
    assert {"ada-deit-small", "finetune-ada-deit-small"} <= set(small["recipes"])
    found = [(each["top1_percent"], each["gmacs"], each["source"]) for each in small["published"]]
    assert (77.3, 2.3, "AdaViT README") in found
    assert (79.9, None, "LAUDNet main figure") in found  # Of the static twin.
    perceiver = cards["reg800m_perceiver_t128"]
    assert perceiver["exits"] == 4 and perceiver["exit_macs"] == sorted(perceiver["exit_macs"])
    assert perceiver["macs"] == perceiver["exit_macs"][-1]
    assert cards["laud_resnet50"]["macs"] == 4_089_184_256
    assert cards["laud_resnet50"]["modes"] == ["spatial", "channel", "layer", "both", "static"]
    assert all(card["parameters"] for card in cards.values() if not card["predict_only"])


def test_every_published_configuration_has_a_recipe() -> None:
    recipes = {name: load_recipe(name) for name in recipe_names()}
    for result in published_results():
        if result.mode == "static":
            continue
        own = [recipe for recipe in recipes.values() if recipe.model.name == result.network]
        assert own, result
        if result.network.startswith("laud_"):
            assert any(recipe.model.options.get("mode") == result.mode for recipe in own), result
        elif result.network.startswith("ada_"):
            kinds = set(result.mode.replace("token_with_mlp", "token").split("+"))
            has = [
                {kind for kind in ("token", "head", "layer") if any(o.startswith(kind) for o in recipe.model.options)}
                for recipe in own
            ]
            assert kinds in has, result


def test_recipes_know_their_networks() -> None:
    by_network = recipes_by_network()
    assert set(by_network) <= set(model_names())
    assert sorted(name for names in by_network.values() for name in names) == list(recipe_names())


@pytest.mark.parametrize("name", ["ada-deit-small", "ada-t2t-vit-19"])
def test_published_accuracies_of_recipes_are_those_of_the_table(name: str) -> None:
    recipe = load_recipe(name)
    (result,) = [
        each for each in published_results() if each.network == recipe.model.name and each.source == "AdaViT README"
    ]
    assert recipe.checkpoint.accuracy == pytest.approx(result.top1_percent / 100)
    assert f"{result.top1_percent} % top-1 at {result.gmacs} GMACs" in str(recipe.checkpoint.note)
    assert recipe.checkpoint.url is None
