"""``dyndeploy targets``: what bundles can be made for, and what each target can run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, complete_target
from dyndeploy.targets import load_record, load_target, target_names


def targets(
    name: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="Show one in full.", autocompletion=complete_target)
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(help="Record of 'dyndeploy probe': whether branches skip is decided with it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the targets, or print one target's capabilities and what it refuses, with reasons."""
    if name is None:
        known = [load_target(each) for each in target_names()]
        if as_json:
            print_json([target.to_json() for target in known])
        else:
            print_table(
                ("name", "title", "runtime", "opset", "precisions"),
                [
                    (
                        target.name,
                        target.title,
                        f"{target.runtime} {target.runtime_version or ''}".strip(),
                        target.opset,
                        ", ".join(p for p, rule in target.precisions.items() if rule.supported),
                    )
                    for target in known
                ],
            )
        return
    target = load_target(name)
    taken, reason = target.takes_branches(None if probe is None else load_record(probe))
    if as_json:
        print_json(target.to_json() | {"branches": {"taken": taken, "reason": reason}})
        return
    typer.echo(f"{target.name}: {target.title}; {target.runtime} {target.runtime_version or ''}".rstrip())
    typer.echo(f"opset {target.opset}, IR {target.ir_version}; {target.software or 'this machine'}")
    print_table(
        ("dynamic operator", "version", "runs", "note"),
        [(row["operator"], row["version"], row["runs"], row["note"]) for row in target.capabilities()],
    )
    print_table(
        ("precision", "export", "reason"),
        [(p, "yes" if rule.supported else "refused", rule.reason) for p, rule in target.precisions.items()],
    )
    typer.echo(f"Branches (If) {'skip' if taken else 'save nothing'}: {reason}.")
    if target.refused:
        print_table(("refused", "reason"), list(target.refused.items()))
