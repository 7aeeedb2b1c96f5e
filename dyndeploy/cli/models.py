"""``dyndeploy models``: the networks there are."""

from __future__ import annotations

from typing import Any

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson

_PREDICT_ONLY = "predict only"
_NOTHING: dict[str, Any] = {
    "family": _PREDICT_ONLY,
    "input_size": None,
    "options": {},
    "modes": [],
    "exits": None,
    "parameters": None,
    "macs": None,
    "exit_macs": [],
    "published": [],
    "recipes": [],
    "predict_only": True,
}
"""Of a name that is no network to build."""


def models(as_json: AsJson = False) -> None:
    """List the networks: those that are registered, and those that only 'predict' knows."""
    from dyndeploy.nets import model_info, model_names
    from dyndeploy.prediction.zoo import predict_only_names

    only = predict_only_names()
    if as_json:
        print_json([*_cards(), *({"name": name, **_NOTHING, "description": text} for name, text in only.items())])
        return
    infos = [model_info(name) for name in model_names()]
    rows = [(info.name, info.family, "x".join(map(str, info.input_size)), info.description) for info in infos]
    rows += [(name, _PREDICT_ONLY, "any", description) for name, description in only.items()]
    print_table(("name", "family", "input", "description"), rows)


def _cards() -> list[dict[str, Any]]:
    """The card of every registered network, with the recipes that train it."""
    from dyndeploy.nets import model_names
    from dyndeploy.nets.cards import model_card
    from dyndeploy.training.recipe import recipes_by_network

    recipes = recipes_by_network()
    return [
        {**model_card(name).to_json(), "recipes": list(recipes.get(name, ())), "predict_only": False}
        for name in model_names()
    ]
