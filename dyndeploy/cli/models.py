"""``dyndeploy models``: the networks there are."""

from __future__ import annotations

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson

_PREDICT_ONLY = "predict only"


def models(as_json: AsJson = False) -> None:
    """List the networks: those that are registered, and those that only 'predict' knows."""
    from dyndeploy.nets import model_info, model_names
    from dyndeploy.prediction.zoo import predict_only_names

    infos = [model_info(name) for name in model_names()]
    only = predict_only_names()
    if as_json:
        registered = [
            {
                "name": info.name,
                "family": info.family,
                "description": info.description,
                "input_size": list(info.input_size),
                "options": {key: list(v) if isinstance(v, tuple) else v for key, v in info.defaults.items()},
                "predict_only": False,
            }
            for info in infos
        ]
        others: list[dict[str, object]] = [
            {
                "name": name,
                "family": _PREDICT_ONLY,
                "description": description,
                "input_size": None,
                "options": {},
                "predict_only": True,
            }
            for name, description in only.items()
        ]
        print_json([*registered, *others])
        return
    rows = [(info.name, info.family, "x".join(map(str, info.input_size)), info.description) for info in infos]
    rows += [(name, _PREDICT_ONLY, "any", description) for name, description in only.items()]
    print_table(("name", "family", "input", "description"), rows)
