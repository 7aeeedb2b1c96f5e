"""The page of every command and its options, made from the functions in ``dyndeploy/cli``.

It reads their signatures and not the parser, whose words for types and defaults change with the release of Typer.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from dyndeploy.cli import COMMANDS

INTRODUCTION = """# Every command and its options

*Made from the functions in `dyndeploy/cli` by `python docs/generate.py`; edit those, not this page.*

`dyndeploy COMMAND -h` says the same in a terminal. Every command also takes `-h` (help), `-v` (say more: every step,
what libraries log, where an error arose) and `-q` (say less: only results and errors). `dyndeploy --version` prints the
version. `dyndeploy --install-completion` teaches your shell to complete names with the Tab key.

Results go to stdout; progress and notes go to stderr. The exit code is 0 where all went well, 2 where the command was
used in a wrong way or asks for something impossible, and 1 after any other failure.
"""

PAGES = {
    "models": "networks.md",
    "targets": "tensorrt.md",
    "train": "training.md",
    "export": "bundle.md",
    "verify": "bundle.md",
    "quantize": "quantization.md",
    "calibrate": "calibration.md",
    "evaluate": "running.md",
    "run": "running.md",
    "watch": "watching.md",
    "engine": "tensorrt.md",
    "probe": "tensorrt.md",
    "profile": "profiling.md",
    "predict": "prediction.md",
    "compare": "profiling.md",
    "calibrate-device": "prediction.md",
    "plan": "planning.md",
    "device": "devices.md",
    "serve-config": "serving.md",
    "demo": "../README.md",
}
"""Page that tells how to use a command."""

_PLACEHOLDERS = {str: "TEXT", int: "N", float: "X", Path: "PATH"}
_DEFAULT = re.compile(r"\s*\(default: ((?:[^()]|\([^()]*\))*)\)")


def commands_page() -> str:
    """Every command: what it does, how it is called, its arguments and options."""
    functions = {
        name: getattr(importlib.import_module(f"dyndeploy.cli.{module}"), module) for name, module in COMMANDS.items()
    }
    rows = [f"| [`{name}`](#{name}) | {_what(function)[0]} |" for name, function in functions.items()]
    overview = ["| command | what it does |", "|---|---|", *rows, ""]
    return "\n".join([INTRODUCTION, *overview, *(_section(name, function) for name, function in functions.items())])


def _what(function: Any) -> list[str]:
    """A command's help, a paragraph an entry."""
    return [" ".join(paragraph.split()) for paragraph in (inspect.getdoc(function) or "").split("\n\n")]


def _section(name: str, function: Any) -> str:
    entries = list(_entries(function))
    rows = [f"| {entry.shown} | {entry.default} | {entry.meaning} |" for entry in entries]
    usage = " ".join(filter(None, ("dyndeploy", name, *(entry.usage for entry in entries), "[OPTIONS]")))
    table = "\n".join(["| argument or option | default | meaning |", "|---|---|---|", *rows])
    more = f"More: [{PAGES[name].removeprefix('../')}]({PAGES[name]})."
    return "\n\n".join([f"## {name}", *_what(function), f"```text\n{usage}\n```", table, more]) + "\n"


class Entry(typing.NamedTuple):
    """An argument or option: its names, its default, its meaning, and its part of the usage line."""

    shown: str
    default: str
    meaning: str
    usage: str


def _entries(function: Any) -> Iterator[Entry]:
    """Arguments first, then options, each in the order of the function."""
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    made = [(parameter, *typing.get_args(parameter.annotation)[:2]) for parameter in parameters]
    for parameter, kind, info in made:
        if isinstance(info, ArgumentInfo):
            yield _argument(parameter, kind, info)
    for parameter, kind, info in made:
        if isinstance(info, OptionInfo):
            yield _option(parameter, kind, info)


def _argument(parameter: inspect.Parameter, kind: Any, info: ArgumentInfo) -> Entry:
    inner = _inner(kind)
    choices = "|".join(choice.value for choice in inner) if _is_enum(inner) else ""
    shown = (info.metavar or choices or parameter.name.upper()).strip("[]")
    several = "..." if _is_list(kind) else ""
    required = parameter.default is parameter.empty
    default, meaning = _words(parameter, info)
    bracketed = shown if "|" not in shown else f"{{{shown}}}"
    usage = f"{bracketed}{several}" if required else f"[{shown}{several}]"
    return Entry(_code(f"{shown}{several}"), default, meaning, usage)


def _option(parameter: inspect.Parameter, kind: Any, info: OptionInfo) -> Entry:
    names = option_names(parameter.name, kind, info)
    inner = _inner(kind)
    value = "" if inner is bool else f" {info.metavar or _PLACEHOLDERS[inner]}"
    default, meaning = _words(parameter, info)
    shown = ", ".join(_code(f"{name}{value}") if name.startswith("--") else _code(name) for name in names)
    required = parameter.default is parameter.empty
    return Entry(shown, default, meaning, f"{names[0]}{value}" if required else "")


def option_names(parameter: str, kind: Any, info: OptionInfo) -> list[str]:
    """What is typed, long names first; a switch that declares no name, or two with a slash, can also be turned off."""
    declared = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    given = [name for pair in declared for name in pair.split("/") if name[:1] == "-"]
    if not any(name.startswith("--") for name in given):
        long = parameter.replace("_", "-")
        switch = _inner(kind) is bool and not given
        given += [f"--{long}", f"--no-{long}"] if switch else [f"--{long}"]
    return sorted(given, key=lambda name: not name.startswith("--"))


def _words(parameter: inspect.Parameter, info: ArgumentInfo | OptionInfo) -> tuple[str, str]:
    """Default and meaning."""
    text = " ".join((info.help or "").split()).replace("|", "\\|").replace("<", "&lt;")
    said = _DEFAULT.search(text)
    meaning = _DEFAULT.sub("", text)
    value = parameter.default
    if value is parameter.empty:
        return "must be given", meaning
    if said:
        return said[1], meaning
    if value is True:
        return "on", meaning
    return ("" if value is None or value is False else f"`{value}`"), meaning


def _inner(kind: Any) -> Any:
    """The type of one value: ``int`` of ``list[int] | None``."""
    arguments = [one for one in typing.get_args(kind) if one is not type(None)]
    return _inner(arguments[0]) if arguments else kind


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list or any(_is_list(one) for one in typing.get_args(kind))


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")
