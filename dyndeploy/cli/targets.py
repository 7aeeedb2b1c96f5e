"""``dyndeploy targets``: what bundles can be made for, and what each target can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
        paying = _break_even_json(_break_even(target))
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


def _break_even(target: Target) -> dict[str, Any]:
    """Return where skipping can pay, by precision, batch and stage; no stages where the processor is any."""
    from dyndeploy.prediction.break_even import BATCHES, break_even, published_break_even

    precision = "fp16" if target.precisions["fp16"].supported else "fp32"
    found: dict[str, Any] = {"precision": precision, "batches": {}, "published": ()}
    if target.name != PORTABLE:
        batches = BATCHES if target.is_card else BATCHES[:1]
        found["batches"] = {batch: break_even(target.name, precision, batch) for batch in batches}
        found["published"] = published_break_even(target.name, precision)
    return found


def _break_even_json(found: Mapping[str, Any]) -> dict[str, Any]:
    stages = {batch: [asdict(stage) for stage in each] for batch, each in found["batches"].items()}
    return {
        "kind": "predicted",
        "precision": found["precision"],
        "stages": stages.get(1, []),
        "batches": {str(batch): each for batch, each in stages.items()},
        "published": [asdict(each) for each in found["published"]],
    }


def _print_break_even(target: Target) -> None:
    from dyndeploy.prediction.break_even import SHOWN, network_title, where_it_cannot_pay

    found = _break_even(target)
    if not found["batches"]:
        typer.echo("Where skipping pays here, 'dyndeploy profile' measures.")
        return
    batches: Mapping[int, tuple[BreakEven, ...]] = found["batches"]
    typer.echo(f"Where skipping can pay, predicted: {network_title()}; {found['precision']}, batch 1.")
    print_table(
        ("stage", "static ms", *(f"ms at rate {rate:g}" for rate in SHOWN), "pays up to rate"),
        [
            (
                stage.stage, f"{stage.static_ms:.3g}", *(f"{stage.dynamic_ms[rate]:.3g}" for rate in SHOWN),
                _rate(stage.rate),
            )
            for stage in batches[1]
        ],
    )  # fmt: skip
    if len(batches) > 1:
        typer.echo("Predicted rates up to which skipping pays, by batch:")
        print_table(
            ("batch", *(stage.stage for stage in batches[1])),
            [(batch, *(_rate(stage.rate) for stage in stages)) for batch, stages in batches.items()],
        )
    for batch, stages in batches.items():
        if none := where_it_cannot_pay(stages):
            where = "anywhere" if len(none) == len(stages) else _in_words(none)
            typer.echo(
                f"At batch {batch} skipping cannot pay {where}: predicted to cost more than it saves at any rate."
            )
    if found["published"]:
        typer.echo("The whole network, predicted, beside published figures of the static one, in ms per image:")
        print_table(
            (
                "batch", "static, published", "static, predicted", *(f"at rate {rate:g}" for rate in SHOWN),
                "pays up to rate", "published by",
            ),
            [
                (
                    each.batch, f"{each.static_ms:.3g}", f"{each.predicted_static_ms:.3g}",
                    *(f"{each.dynamic_ms[rate]:.3g}" for rate in SHOWN),
                    _rate(each.rate), f"{each.runtime}: {each.source}",
                )
                for each in found["published"]
            ],
        )  # fmt: skip


def _in_words(stages: Sequence[str]) -> str:
    named = ", ".join(stage for stage in stages if stage != "all")
    return " and ".join([*([f"in {named}"] if named else []), *(["over all stages"] if "all" in stages else [])])


def _rate(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.3g}"
