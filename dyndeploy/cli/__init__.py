"""The command line: one file per command; each builds arguments, calls the API and prints."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from dyndeploy.cli._arguments import printable
from dyndeploy.cli._progress import interrupt
from dyndeploy.cli._verbosity import explain, verbosity, with_verbosity
from dyndeploy.errors import DyndeployError
from dyndeploy.files import STORAGE_ERRORS, reason_of
from dyndeploy.processors import share_processors

COMMANDS = {
    "models": "models",
    "targets": "targets",
    "train": "train",
    "export": "export",
    "quantize": "quantize",
    "verify": "verify",
    "calibrate": "calibrate",
    "evaluate": "evaluate",
    "run": "run",
    "watch": "watch",
    "engine": "engine",
    "probe": "probe",
    "profile": "profile",
    "predict": "predict",
    "compare": "compare",
    "calibrate-device": "calibrate_device",
    "plan": "plan",
    "device": "device",
    "serve-config": "serve_config",
    "demo": "demo",
}
"""Command -> module of this package that holds a function of the same name."""

INTERRUPTED = 130
_HELP = {"help_option_names": ["-h", "--help"]}


class _InterruptedError(Exception):
    """Ctrl-C inside a command; typer would turn it into exit code 1."""


def _interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise _InterruptedError from None

    return call


def build_app(commands: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """Build the application with the given commands only."""
    app = typer.Typer(
        name="dyndeploy",
        help="Deploy dynamic vision networks so that the computation they skip becomes time saved.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=_HELP,
    )
    app.callback(invoke_without_command=True)(_before_commands)
    for command in commands:
        module = importlib.import_module(f"dyndeploy.cli.{COMMANDS[command]}")
        function = with_verbosity(getattr(module, COMMANDS[command]))
        app.command(command, context_settings=_HELP)(_interruptible(function))
    return app


def _print_version(value: bool) -> None:
    if value:
        from dyndeploy import __version__

        typer.echo(__version__)
        raise typer.Exit


def _before_commands(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Deploy dynamic vision networks so that the computation they skip becomes time saved."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 all well, 2 wrong usage or impossible request, 1 any other failure."""
    interrupt.install()
    share_processors()
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal's encoding lacks, or be no text in any encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line on arguments and return the exit code."""
    # Only the named command is imported: a command pays for its own dependencies, not for those of all others.
    named = [argument for argument in arguments if argument in COMMANDS][:1]
    verbosity.choose(verbose=False, quiet=False)
    try:
        application = typer.main.get_command(build_app(named or tuple(COMMANDS)))
        application(args=list(arguments), prog_name="dyndeploy")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        # Of other commands --json is a switch; this one's needs a value, and the parser does not say which.
        if code == 2 and named == ["profile"] and arguments[-1] == "--json":
            _say("give --json a file to write, or '-' for stdout: '--json -'.")
        return code
    except DyndeployError as error:
        explain(error)
        _say(str(error))
        return error.exit_code
    except OSError as error:
        explain(error)
        _say(_describe(error))
        return 1
    except (KeyboardInterrupt, _InterruptedError):
        _say("interrupted; nothing half-written was left.")
        return INTERRUPTED
    return 0


def _say(message: str) -> None:
    # A terminal that was closed takes no message.
    with contextlib.suppress(OSError):
        typer.echo(f"dyndeploy: {printable(message)}", err=True)


def _describe(error: OSError) -> str:
    """What the system refused, for a user."""
    reason = reason_of(error)
    if isinstance(error.filename, (str, bytes)):
        return f"cannot use {os.fsdecode(error.filename)}: {reason}."
    # No name: what the commands write goes through checked paths, so that this is stdout or stderr itself.
    if error.errno in STORAGE_ERRORS | {errno.EPIPE, errno.EBADF}:
        return f"cannot write the output: {reason}."
    return f"the system refused: {reason}."
