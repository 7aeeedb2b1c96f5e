"""``dyndeploy verify``: does a bundle compute what PyTorch computed?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    threads: Annotated[int, typer.Option(help="Threads of the session.")] = 1,
    native: Annotated[str, typer.Option(help="auto, off, or the path of an operator library.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Check a bundle: files, opset and operators of its target, masks, outputs under equal masks."""
    from dyndeploy.verification import verify_bundle

    report = verify_bundle(bundle, threads=threads, native=native)
    if as_json:
        print_json(report.to_json())
    else:
        print_table(
            ("check", "result", "detail"),
            [(check.name, "ok" if check.passed else "FAILED", check.detail) for check in report.checks],
            title=str(bundle),
        )
    if not report.passed:
        raise typer.Exit(1)
