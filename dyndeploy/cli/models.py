"""``dyndeploy models``: the networks there are."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson
from dyndeploy.errors import UsageError

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


def models(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD", help="Only those with all of these in name, family or description."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the networks: those that are registered, by family, and those that only 'predict' knows."""
    from dyndeploy.nets import model_info, model_names
    from dyndeploy.prediction.zoo import predict_only_names

    infos = sorted(map(model_info, model_names()), key=lambda info: (info.family, info.name))
    rows = [(info.name, info.family, "x".join(map(str, info.input_size)), info.description) for info in infos]
    rows += [(name, _PREDICT_ONLY, "any", description) for name, description in predict_only_names().items()]
    asked = [word.lower() for word in words or ()]
    chosen = [row for row in rows if all(word in " ".join(row).lower() for word in asked)]
    if not chosen:
        raise UsageError(f"No network has {' and '.join(words or ())} in its name, family or description.")
    if as_json:
        print_json(_entries({row[0] for row in chosen}))
        return
    print_table(("name", "family", "input", "description"), chosen)
    if not asked:
        typer.echo(f"{len(rows)} names. Words choose among them: 'dyndeploy models {rows[0][1]}'.")


def _entries(names: Collection[str]) -> list[dict[str, Any]]:
    """The card of every registered network among these, with the recipes that train it, and the names besides."""
    from dyndeploy.nets import model_names
    from dyndeploy.nets.cards import model_card
    from dyndeploy.prediction.zoo import predict_only_names
    from dyndeploy.training.recipe import recipes_by_network

    recipes, only = recipes_by_network(), predict_only_names()
    cards = [
        {**model_card(name).to_json(), "recipes": list(recipes.get(name, ())), "predict_only": False}
        for name in model_names()
        if name in names
    ]
    others = ({"name": name, **_NOTHING, "description": text} for name, text in only.items() if name in names)
    return [*cards, *others]
