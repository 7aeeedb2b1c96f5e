"""Parsing and printing that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from dyndeploy import files
from dyndeploy.errors import UsageError


def per_stage_numbers(option: str, text: str) -> tuple[int, ...]:
    """Parse ``4-4-2-1`` (one whole number per stage) or a single number."""
    try:
        return tuple(int(part) for part in text.split("-"))
    except ValueError:
        raise UsageError(f"{option} takes whole numbers joined by '-', e.g. 4-4-2-1, not '{text}'.") from None


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Parse ``0.5,1.0``: numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes numbers in [0, 1] separated by commas, e.g. 0.5,1.0, not '{text}'.") from None


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Parse ``1,2,4``: whole numbers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes whole numbers separated by commas, e.g. 1,2,4, not '{text}'.") from None


def size(option: str, text: str) -> tuple[int, int]:
    """Parse ``HxW``, or one number for a square."""
    parts = text.lower().split("x")
    try:
        height, width = (int(part) for part in (parts * 2 if len(parts) == 1 else parts))
    except ValueError:
        raise UsageError(f"{option} takes HEIGHTxWIDTH, e.g. 224x320, or 224 for a square, not '{text}'.") from None
    return height, width


def named_sizes(entries: Sequence[str]) -> dict[str, int]:
    """Parse ``NAME=N`` of every ``--dim``: the name may hold anything, as exporters' names do."""
    sizes: dict[str, int] = {}
    for entry in entries:
        name, _, number = entry.rpartition("=")
        if not name or name in sizes or not number.isdecimal():
            raise UsageError(f"--dim takes NAME=N, each name once and N a whole number, not '{entry}'.")
        sizes[name] = int(number)
    return sizes


def named_files(entries: Sequence[str]) -> dict[str, Path]:
    """Parse ``NAME=FILE.npy`` of every ``--input``."""
    named: dict[str, Path] = {}
    for entry in entries:
        name, separator, path = entry.partition("=")
        if not separator or not name or not path or name in named:
            raise UsageError(f"--input takes NAME=FILE.npy, each name once, not '{entry}'.")
        named[name] = Path(path)
    return named


def lines(path: Path) -> tuple[str, ...]:
    """Read a text file's lines that are not empty; raises ``InputError`` where it cannot be read."""
    return tuple(line.strip() for line in files.read_text(path).splitlines() if line.strip())


def printable(text: object) -> str:
    """A user's text for a terminal: what no terminal shows as it is, such as the Escape key, becomes ``\\x1b``."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text))


def print_json(value: Any) -> None:
    """Write one JSON object to stdout; raises ``NotFiniteError`` where a number is NaN or infinite."""
    typer.echo(files.json_text(value))


def print_json_line(value: Any) -> None:
    """Write one JSON object to stdout as a line of its own, at once."""
    typer.echo(files.json_text(value, indent=None))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Write a table to stdout; wide enough not to cut anything when stdout is no terminal."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    if title is not None:
        console.print(_cell(title), style="table.title", soft_wrap=True)
    # Text, not strings: square brackets in a user's names are no markup.
    table = Table(*(Column(_cell(column), overflow="fold") for column in columns))
    for row in rows:
        table.add_row(*map(_cell, row))
    console.print(table)


def _cell(value: object) -> Text:
    return Text(printable(value))
