"""The API reference, built from docstrings: ``python docs/api.py FOLDER`` (needs ``pip install 'dyndeploy[docs]'``).

Pages are made of the package and of its public parts. A docstring that is missing on a public name, or that pdoc warns
about, fails the build.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import types
import warnings
from pathlib import Path

import pdoc

import dyndeploy

MODULES = (
    "dyndeploy",
    "dyndeploy.blocks",
    "dyndeploy.bundle",
    "dyndeploy.data",
    "dyndeploy.errors",
    "dyndeploy.exits",
    "dyndeploy.export",
    "dyndeploy.measure",
    "dyndeploy.nets",
    "dyndeploy.ops",
    "dyndeploy.planning",
    "dyndeploy.prediction",
    "dyndeploy.remote",
    "dyndeploy.reporting",
    "dyndeploy.runtimes",
    "dyndeploy.serving",
    "dyndeploy.targets",
    "dyndeploy.training",
    "dyndeploy.verification",
    "dyndeploy.watching",
)
"""What is documented: the package, and those of its parts that a user imports from."""


UNREAD = "Error parsing type annotation"
"""Of an annotation that only a type checker can read; pdoc then shows it as it is written, which is what we want."""


def resolve(module: types.ModuleType) -> None:
    """Put names that a module imports on first use into it, where pdoc looks for them."""
    for name in module.__all__:
        setattr(module, name, getattr(module, name))


def undocumented(module: types.ModuleType) -> list[str]:
    """Public classes and functions of a module that say nothing about themselves."""
    members = ((name, getattr(module, name)) for name in getattr(module, "__all__", ()))
    return [
        f"{module.__name__}.{name} has no docstring"
        for name, value in members
        if (inspect.isclass(value) or inspect.isfunction(value)) and not (value.__doc__ or "").strip()
    ]


def build(folder: Path) -> list[str]:
    """Write the pages; gives what is wrong with them."""
    resolve(dyndeploy)
    pdoc.render.configure(docformat="google", footer_text=f"dyndeploy {dyndeploy.__version__}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*MODULES, output_directory=folder)
    problems = [str(warning.message) for warning in caught if UNREAD not in str(warning.message)]
    return problems + [line for name in MODULES for line in undocumented(importlib.import_module(name))]


def main(arguments: list[str] | None = None) -> None:
    """Build the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    # Else a default that happens to be the value of a variable, as the path of Python is of "$_", is a warning.
    os.environ["PDOC_DISPLAY_ENV_VARS"] = "1"
    problems = build(options.folder)
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(list(options.folder.rglob('*.html')))} pages in {options.folder}")


if __name__ == "__main__":
    main()
