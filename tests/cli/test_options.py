"""Options over all commands: one name has one meaning, and what every command has."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections import defaultdict
from typing import Annotated, get_args, get_origin

import pytest
import typer.models

from dyndeploy.cli import COMMANDS, run
from dyndeploy.cli._options import MEANINGS, complete_device, complete_network, complete_recipe, complete_target
from dyndeploy.cli._verbosity import note, verbosity

ELSEWHERE = {
    ("profile", "--json"): "as contracted, it takes a file",
    ("export", "--calibration"): "as contracted, a calibration of the network, not of the device",
}
"""Command and option that may mean something else, with the reason."""


def declared() -> dict[str, dict[str, typer.models.OptionInfo]]:
    """Option -> command -> how it is declared."""
    found: dict[str, dict[str, typer.models.OptionInfo]] = defaultdict(dict)
    for command, module in COMMANDS.items():
        function = getattr(importlib.import_module(f"dyndeploy.cli.{module}"), module)
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            for info in get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else ():
                if isinstance(info, typer.models.OptionInfo):
                    # Typer takes the first name for a default until it looks at the parameter.
                    names = [name for name in (info.default, *(info.param_decls or ())) if str(name).startswith("--")]
                    for name in names or [f"--{parameter.name.replace('_', '-')}"]:
                        found[name][command] = info
    return found


def test_an_option_of_several_commands_means_the_same_in_all_of_them() -> None:
    for name, commands in declared().items():
        commands = {command: info for command, info in commands.items() if (command, name) not in ELSEWHERE}
        if len(commands) > 1:
            first = MEANINGS.get(name) or re.split(r"(?<=[:.]) ", str(next(iter(commands.values())).help))[0]
            for command, info in commands.items():
                assert str(info.help).startswith(first), f"{command} {name}: {info.help}"


def test_every_shared_meaning_is_used() -> None:
    assert MEANINGS.keys() <= declared().keys()


def test_help_hides_nothing_that_looks_like_markup() -> None:
    for name, commands in declared().items():
        for command, info in commands.items():
            assert not re.search(r"\[[a-z]", str(info.help)), f"{command} {name}"


@pytest.mark.parametrize("arguments", [("-h",), ("models", "-h"), ("models", "--help")])
def test_help_is_short_too(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert "Usage: dyndeploy" in capsys.readouterr().out


def test_quiet_says_no_notes_and_keeps_errors(
    tmp_path: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "laud_resnet14_small", "--mode", "layer", "-o", f"{tmp_path}/b"]
    assert run(arguments) == 0
    assert "weights are random" in capsys.readouterr().err
    assert run([*arguments[:-1], f"{tmp_path}/c", "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert logging.getLogger("dyndeploy").level == logging.ERROR
    assert run(["export", "-q", "nothing", "-o", f"{tmp_path}/d"]) == 2
    assert "Unknown model 'nothing'" in capsys.readouterr().err
    note("shown")  # until the next command, what the last one was asked holds
    assert capsys.readouterr().err == ""
    verbosity.choose(verbose=False, quiet=False)
    note("shown")
    assert capsys.readouterr().err == "Note: shown\n"


def test_verbose_says_where_an_error_arose(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "nowhere"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert run(["verify", "nowhere", "--verbose"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and "bundle/folder.py" in error
    assert error.rstrip().splitlines()[-1].startswith("dyndeploy: ")


def test_names_are_completed() -> None:
    assert complete_network("laud_resnet5") == ["laud_resnet50"]
    assert complete_target("nan") == ["nano"]
    assert "nano" in complete_device("") and complete_device("cp") == ["cpu"]
    spatial = "digits-laud-resnet14-small-spatial"
    assert complete_recipe("digits-laud-resnet14") == [spatial, f"{spatial}-int8"]


def test_completion_can_be_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_DYNDEPLOY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "dyndeploy verif")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "dyndeploy verif")
    run([])
    assert "verify" in capsys.readouterr().out
