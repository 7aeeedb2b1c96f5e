"""``dyndeploy evaluate``: accuracy of a bundle on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import numbers, print_json, print_table, printable
from dyndeploy.cli._options import AsJson, BundleFolder, LabelledData, Limit, Native, Runtime, Threads, Thresholds
from dyndeploy.cli._progress import progress_bar

if TYPE_CHECKING:
    from dyndeploy.evaluation import BundleComparison, BundleEvaluation
    from dyndeploy.inference import Failure


def evaluate(
    bundle: BundleFolder,
    data: LabelledData,
    limit: Limit = None,
    thresholds: Thresholds = None,
    runtime: Runtime = "auto",
    threads: Threads = 1,
    native: Native = "auto",
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Another bundle for the same images, e.g. the network in another precision: classes and mask bits "
            "that differ are counted.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of a bundle as it is deployed, with the exits taken and the masks' rates.

    An image that cannot be read is said to be so; the rest goes on, and the exit code is 1 at the end.
    """
    from dyndeploy.evaluation import evaluate_bundle

    with progress_bar() as progress:
        result = evaluate_bundle(
            bundle,
            data,
            limit=limit,
            thresholds=None if thresholds is None else numbers("--thresholds", thresholds),
            runtime=runtime,
            threads=threads,
            native=native,
            against=against,
            progress=progress,
            on_failure=_say,
        )
    if as_json:
        print_json({"bundle": str(bundle), **result.to_json()})
    else:
        _print(result)
    if result.failures:
        total = result.images + len(result.failures)
        typer.echo(f"dyndeploy: {len(result.failures)} of {total} images failed.", err=True)
        raise typer.Exit(1)


def _say(failure: Failure) -> None:
    typer.echo(f"dyndeploy: {printable(failure.error)}", err=True)


def _print(result: BundleEvaluation) -> None:
    from dyndeploy.runtimes.native import BODIES_NOTE, FALLBACK_BODIES

    typer.echo(
        printable(
            f"{result.network} on {result.images} images of {result.classes} classes, {result.source}: top-1 "
            f"{result.top1:.2%}, top-5 {result.top5:.2%}; {result.ms:.3f} ms per image, measured."
        )
    )
    if result.exits:
        print_table(
            ("exit", "images that leave there", "accuracy there", "accuracy on all images"),
            [
                (
                    entry.exit,
                    f"{entry.share:.1%}",
                    "-" if entry.accuracy_there is None else f"{entry.accuracy_there:.2%}",
                    f"{entry.accuracy:.2%}",
                )
                for entry in result.exits
            ],
        )
    if result.rates:
        print_table(("mask", "mean rate"), [(name, f"{rate:.3f}") for name, rate in result.rates.items()])
    if result.against is not None:
        _print_against(result, result.against)
    code = "" if result.operators is None else f"; dynamic operators: {result.operators}"
    typer.echo(f"{result.runtime}, {result.threads} thread(s), {result.precision}{code}. {result.runtime_why}.")
    if result.operators == FALLBACK_BODIES:
        typer.echo(f"Note: {BODIES_NOTE}")
    for note in result.notes:
        typer.echo(f"Note: {note}")


def _print_against(result: BundleEvaluation, other: BundleComparison) -> None:
    """Both bundles side by side, and what differs."""
    print_table(
        ("", "top-1", "top-5", "ms per image", "precision"),
        [
            ("this bundle", f"{result.top1:.2%}", f"{result.top5:.2%}", f"{result.ms:.3f}", result.precision),
            (printable(other.bundle), f"{other.top1:.2%}", f"{other.top5:.2%}", f"{other.ms:.3f}", other.precision),
        ],
    )
    lines = [
        f"{other.changed} of {result.images} images change class: {other.only_first_right} are right in this bundle "
        f"only, {other.only_other_right} in the other only, {other.both_right} in both, {other.none_right} in none."
    ]
    if other.mask_bits:
        share = other.mask_flips / other.mask_bits
        worst = max(other.flips, key=lambda name: other.flips[name])
        most = f", most of them in {worst} ({other.flips[worst]})" if other.mask_flips else ""
        lines.append(f"{other.mask_flips} of {other.mask_bits} mask bits differ ({share:.3%}){most}.")
    if other.exits_changed is not None:
        lines.append(f"{other.exits_changed} of {result.images} images leave at another exit.")
    typer.echo(printable("\n".join(lines)))
