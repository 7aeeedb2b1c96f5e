"""``dyndeploy models``: the networks there are."""

from __future__ import annotations

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson


def models(as_json: AsJson = False) -> None:
    """List the registered networks."""
    from dyndeploy.nets import model_info, model_names

    infos = [model_info(name) for name in model_names()]
    if as_json:
        print_json(
            [
                {
                    "name": info.name,
                    "family": info.family,
                    "description": info.description,
                    "input_size": list(info.input_size),
                    "options": {key: list(v) if isinstance(v, tuple) else v for key, v in info.defaults.items()},
                }
                for info in infos
            ]
        )
        return
    rows = [(info.name, info.family, "x".join(map(str, info.input_size)), info.description) for info in infos]
    print_table(("name", "family", "input", "description"), rows)
