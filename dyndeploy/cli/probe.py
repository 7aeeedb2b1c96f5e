"""``dyndeploy probe``: does the runtime at hand really skip the branch that is not taken?"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, Native, Plugins, complete_target, option


def probe(
    target: Annotated[
        str, option("--target", detail="For a board, run this on the board.", autocompletion=complete_target)
    ] = "cpu",
    output: Annotated[
        Path | None, option("--output", "-o", metavar="FILE", detail="'dyndeploy targets --probe' reads it.")
    ] = None,
    native: Native = "auto",
    plugins: Plugins = "auto",
    repeats: Annotated[int, option("--repeats", min=1)] = 15,
    as_json: AsJson = False,
) -> None:
    """Measure a heavy branch of If, taken against not taken."""
    from dyndeploy import files
    from dyndeploy.measure.laziness import probe_laziness
    from dyndeploy.targets import load_target

    # The output path is claimed first, so that an impossible one costs no measurement.
    with nullcontext() if output is None else files.atomic_file(output) as claimed:
        record = probe_laziness(target, native=native, plugins=plugins, rounds=repeats)
        if claimed is not None:
            files.write_json(claimed, record.to_json())
    if as_json:
        print_json(record.to_json())
        return
    rows = [("convolutions", record.standard), ("dynamic operators", record.operators)]
    print_table(
        ("branch of", "taken ms", "not taken ms", "ratio", "skipped"),
        [
            (name, f"{times.taken:.3f}", f"{times.not_taken:.3f}", f"{times.ratio:.1%}", "yes" if times.lazy else "NO")
            for name, times in rows
            if times is not None
        ],
        title=f"{record.target}: {record.runtime} {record.version}, {record.device}",
    )
    if record.note:
        typer.echo(f"Note: {record.note}")
    taken, reason = load_target(record.target).takes_branches(record)
    typer.echo(f"Branches (If) {'skip' if taken else 'save nothing'}: {reason}.")
    if output is not None:
        typer.echo(f"Written to {output}.")
