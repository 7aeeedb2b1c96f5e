"""``dyndeploy targets``: what bundles can be made for, and what each target can run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, complete_target
from dyndeploy.targets import PORTABLE, Target, load_record, load_target, target_names

if TYPE_CHECKING:
    from dyndeploy.prediction.break_even import BreakEven


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
        precision, stages = _break_even(target)
        paying = {"kind": "predicted", "precision": precision, "stages": [asdict(stage) for stage in stages]}
        print_json(target.to_json() | {"branches": {"taken": taken, "reason": reason}, "break_even": paying})
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
    _print_break_even(target)


def _break_even(target: Target) -> tuple[str, tuple[BreakEven, ...]]:
    """Return the precision of a target's engines, and where skipping can pay; no stages where the processor is any."""
    from dyndeploy.prediction.break_even import break_even

    precision = "fp16" if target.precisions["fp16"].supported else "fp32"
    return precision, () if target.name == PORTABLE else break_even(target.name, precision)


def _print_break_even(target: Target) -> None:
    from dyndeploy.prediction.break_even import SHOWN, network_title

    precision, stages = _break_even(target)
    if not stages:
        typer.echo("Where skipping pays here, 'dyndeploy profile' measures.")
        return
    typer.echo(f"Where skipping can pay, predicted: {network_title()}; {precision}, batch 1.")
    print_table(
        ("stage", "static ms", *(f"ms at rate {rate:g}" for rate in SHOWN), "pays up to rate"),
        [
            (
                stage.stage, f"{stage.static_ms:.3g}", *(f"{stage.dynamic_ms[rate]:.3g}" for rate in SHOWN),
                "none" if stage.rate is None else f"{stage.rate:.3g}",
            )
            for stage in stages
        ],
    )  # fmt: skip
