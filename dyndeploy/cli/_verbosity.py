"""How much a command says on stderr: ``-q`` only errors, ``-v`` also the reasons behind them."""

from __future__ import annotations

import inspect
import logging
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from dyndeploy.cli._arguments import printable

_PARAMETERS = {
    "verbose": Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more: every step, what libraries log, where an error arose.")
    ],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Say less: results and errors, no progress or notes.")],
}


class Verbosity:
    """What the user asked for; a process runs one command at a time."""

    def __init__(self) -> None:
        self.verbose = False
        self.quiet = False

    def choose(self, *, verbose: bool, quiet: bool) -> None:
        """Take over what a command line says; where it says both, errors are explained and nothing else is said."""
        self.verbose, self.quiet = verbose, quiet
        logging.getLogger("dyndeploy").setLevel(logging.ERROR if quiet else logging.NOTSET)
        if verbose:
            logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO, stream=sys.stderr)


verbosity = Verbosity()
"""That of the command that runs."""


def tell(message: object) -> None:
    """Say something on stderr beside the result, unless asked to be quiet."""
    if not verbosity.quiet:
        typer.echo(printable(message), err=True)


def note(message: object) -> None:
    """Say on stderr what a user should know beside the result, unless asked to be quiet."""
    tell(f"Note: {message}")


def explain(error: BaseException) -> None:
    """Show where an error arose, where asked to say more."""
    if verbosity.verbose:
        typer.echo(printable("".join(traceback.format_exception(error)).rstrip()), err=True)


def with_verbosity(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options ``-v`` and ``-q``, so that they may stand after its name like all others."""
    signature = inspect.signature(command, eval_str=True)

    @wraps(command)
    def call(*args: Any, verbose: bool, quiet: bool, **kwargs: Any) -> Any:
        verbosity.choose(verbose=verbose, quiet=quiet)
        return command(*args, **kwargs)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in _PARAMETERS.items()
    ]
    parameters = [*signature.parameters.values(), *added]
    # Typer reads either, depending on its version, and evaluates no names that stand in another module.
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call
