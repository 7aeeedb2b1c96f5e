"""Writes what the pages take from the code: every command, every recipe key, and the table of networks.

    python docs/generate.py            # writes docs/commands.md, docs/recipes.md, the table in docs/networks.md, and
                                       # models/counts.json, from which that table and 'dyndeploy models' are
    python docs/generate.py --check    # says what is out of date, and exits with 1

The words come from docstrings, the figures from networks that are built without weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))  # Also where a test loads this file.

from commands_page import commands_page

from dyndeploy.files import read_text, write_text
from dyndeploy.nets import model_info, model_names
from dyndeploy.nets.cards import COUNTS, STATIC, ModelCard, counts_text, model_card
from dyndeploy.training.recipe import Recipe

DOCS = Path(__file__).parent
COUNTS_FILE = DOCS.parent / "models" / COUNTS
COMMANDS, RECIPES, NETWORKS = DOCS / "commands.md", DOCS / "recipes.md", DOCS / "networks.md"
BEGIN, END = "<!-- made by docs/generate.py -->", "<!-- end -->"


def main(arguments: list[str] | None = None) -> None:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    made = {COUNTS_FILE: counts_text(), **pages()}
    stale = [path for path, text in made.items() if not path.exists() or read_text(path) != text]
    if options.check:
        if stale:
            sys.exit(f"out of date: {', '.join(path.name for path in stale)}; run python docs/generate.py")
        return
    for path in stale:
        write_text(path, made[path])


def pages() -> dict[Path, str]:
    """Text of every page, by its path."""
    before, _, rest = read_text(NETWORKS).partition(BEGIN)
    _, _, after = rest.partition(END)
    table = f"{before}{BEGIN}\n{networks_table()}{END}{after}"
    return {COMMANDS: commands_page(), RECIPES: recipes_page(), NETWORKS: table}


# ---------------------------------------------------------------- recipes

RECIPES_INTRODUCTION = """# Recipe keys

*Made from the docstrings in `dyndeploy/training/recipe.py` by `python docs/generate.py`; edit those, not this page.*

A recipe is a YAML file with everything that a training run depends on. [Training](training.md) tells how a run goes;
this page lists every key. A key without a default must be given. A key that is not listed here is refused, so that a
typing error cannot go unnoticed. The default `none` means that nothing is set; the column on the right says what that
does.
"""


def recipes_page() -> str:
    """Every key of a recipe, section by section."""
    parts = [RECIPES_INTRODUCTION, *(_section(title, kind) for title, kind in _sections(Recipe, ""))]
    return "\n".join(parts)


def _sections(kind: type[Any], title: str) -> Iterator[tuple[str, type[Any]]]:
    yield title, kind
    for field in dataclasses.fields(kind):
        inner = _dataclass_in(typing.get_type_hints(kind)[field.name])
        if inner is not None:
            name = _key(field) if not title else f"{title}.{_key(field)}"
            is_mapping = typing.get_origin(typing.get_type_hints(kind)[field.name]) is dict
            yield from _sections(inner, f"{name}.PATTERN" if is_mapping else name)


def _section(title: str, kind: type[Any]) -> str:
    text, attributes = described(kind)
    hints = typing.get_type_hints(kind)
    rows = [
        f"| `{_key(field)}` | {_type_words(hints[field.name])} | {_default(field)} | {attributes[field.name]} |"
        for field in dataclasses.fields(kind)
    ]
    heading = f"## `{title}`" if title else "## At the top"
    return "\n".join([heading, "", text, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def described(kind: type[Any]) -> tuple[str, dict[str, str]]:
    """What a class says about itself, and about each of its attributes."""
    text, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", attributes, re.MULTILINE)
    return _flat(text), {name: _flat(words) for name, words in entries}


def _flat(text: str) -> str:
    """A docstring's words as one line of Markdown."""
    text = re.sub(r":\w+:`[~.]?([^`]+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def _key(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("key", field.name))


def _dataclass_in(hint: Any) -> type[Any] | None:
    if dataclasses.is_dataclass(hint):
        return typing.cast("type[Any]", hint)
    return next((found for inner in typing.get_args(hint) if (found := _dataclass_in(inner)) is not None), None)


_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}


def _type_words(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return "section"
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_words(one) for one in inner if one is not type(None))
    if origin is tuple:
        one = _type_words(inner[0])
        return f"list of {one}s" if inner[-1] is Ellipsis else f"list of {len(inner)} {one}s"
    if origin is dict:
        return "sections by pattern" if _dataclass_in(hint) else "keys and values"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "must be given" if field.default_factory is dataclasses.MISSING else "empty"
    if dataclasses.is_dataclass(field.default):
        return "as below"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if value is None:
        return "none"
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}`"


# ---------------------------------------------------------------- networks


CHECKPOINTS = {
    "laud_regnet": "LAUDNet's, LASNet's, torchvision's RegNetY of the same size (the maskers stay fresh)",
    "laud_resnet": "LAUDNet's, LASNet's, torchvision's ResNet of the same blocks (the maskers stay fresh)",
    "ada_vit": "AdaViT's, timm's DeiT and ViT of the same sizes (the policies then compute everything)",
    "detector": "LAUDNet's detectors (mmdetection 2.x), torchvision's; a classifier starts a backbone",
    "dyn_perceiver": "Dynamic Perceiver's, torchvision's file of the backbone (to train from)",
}
"""What loads besides files of our own, by family."""


def networks_table() -> str:
    """Every registered network: its modes or exits, size, parameters and multiply-accumulates."""
    parts = []
    for family in dict.fromkeys(model_info(name).family for name in model_names()):
        rows = [" | ".join(_network_cells(name)) for name in model_names(family)]
        loads = CHECKPOINTS.get(family)
        parts += [
            f"**{family}**. Checkpoints that load:\n{f'{loads}, and our own' if loads else 'our own'}.\n",
            "| name | modes | input | parameters | GMACs at full rate | best published top-1 |\n"
            "|---|---|---|---|---|---|",
            *(f"| {row} |" for row in rows),
            "",
        ]
    return "\n".join(parts)


def _network_cells(name: str) -> tuple[str, ...]:
    card = model_card(name)
    size = f"{card.info.input_size[0]} x {card.info.input_size[1]}"
    modes = ", ".join(card.modes) if card.exits == 1 else f"{card.exits} exits"
    return f"`{name}`", modes, size, f"{card.parameters / 1e6:.2f} M", f"{card.macs / 1e9:.3f}", _published(card)


def _published(card: ModelCard) -> str:
    """The best published accuracy of the dynamic network, and where it stands."""
    dynamic = [each for each in card.published if each.mode != STATIC]
    if not dynamic:
        return ""
    best = max(dynamic, key=lambda each: each.top1_percent)
    macs = "" if best.gmacs is None else f" at {best.gmacs:g} GMACs"
    return f"{best.top1_percent:g} %{macs} ({best.mode}; {best.source})"


if __name__ == "__main__":
    main()
