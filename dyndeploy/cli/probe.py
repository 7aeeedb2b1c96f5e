"""``dyndeploy probe``: does the runtime at hand really skip the branch that is not taken?"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table


def probe(
    target: Annotated[str, typer.Option(help="See 'dyndeploy targets'; for a board, run this on the board.")] = "cpu",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the record here, for 'dyndeploy targets --probe'.")
    ] = None,
    native: Annotated[str, typer.Option(help="auto, off, or the path of ONNX Runtime's operator library.")] = "auto",
    plugins: Annotated[str, typer.Option(help="auto, or the path of the TensorRT plugin library.")] = "auto",
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Write the record to stdout.")] = False,
) -> None:
    """Measure a heavy branch of If, taken against not taken."""
    from dyndeploy import files
    from dyndeploy.measure.laziness import probe_laziness
    from dyndeploy.targets import load_target

    # The output path is claimed first, so that an impossible one costs no measurement.
    with nullcontext() if output is None else files.atomic_file(output) as claimed:
        record = probe_laziness(target, native=native, plugins=plugins, rounds=rounds)
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
