"""``dyndeploy evaluate``: accuracy of a bundle on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyndeploy.cli._arguments import numbers, print_json, print_table, printable
from dyndeploy.cli._options import (
    AsJson,
    BundleFolder,
    LabelledData,
    Limit,
    Native,
    Runtime,
    State,
    Threads,
    Thresholds,
    Workers,
)
from dyndeploy.cli._progress import progress_bar
from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    from dyndeploy.evaluation import BundleComparison, BundleEvaluation, DetectionComparison, DetectionEvaluation
    from dyndeploy.inference import Failure


def evaluate(
    bundle: BundleFolder,
    data: LabelledData,
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Of a detector: COCO annotations of the images in --data; 'digit_scenes' as data need none.",
        ),
    ] = None,
    limit: Limit = None,
    thresholds: Thresholds = None,
    runtime: Runtime = "auto",
    threads: Threads = 1,
    native: Native = "auto",
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Another bundle for the same images, e.g. the network in another precision: classes and mask bits, or "
            "detections, that differ are counted.",
        ),
    ] = None,
    workers: Workers = 1,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of a bundle as it is deployed, with the exits taken and the masks' rates.

    Of a detector the average precision of boxes and masks is measured, against COCO annotations. An image that cannot
    be read is said to be so; the rest goes on, and the exit code is 1 at the end.
    """
    from dyndeploy.bundle import Bundle
    from dyndeploy.chunks import speaks_for_all
    from dyndeploy.evaluation import DetectionEvaluation, evaluate_bundle, evaluate_detector

    opened = Bundle.open(bundle)
    options: dict[str, Any] = {
        "limit": limit, "runtime": runtime, "threads": threads, "native": native, "against": against,
        "workers": workers, "state": state, "on_failure": _say,
    }  # fmt: skip
    result: BundleEvaluation | DetectionEvaluation
    with progress_bar() as progress:
        if opened.manifest.detection is not None:
            if thresholds is not None:
                raise UsageError(f"{opened.manifest.network.name} has no exits: leave the thresholds out.")
            result = evaluate_detector(opened, data, annotations, **options, progress=progress)
        else:
            if annotations is not None:
                raise UsageError(
                    f"{opened.manifest.network.name} is no detector: leave --annotations out; --data holds one "
                    "sub-folder per class."
                )
            limits = None if thresholds is None else numbers("--thresholds", thresholds)
            result = evaluate_bundle(opened, data, **options, thresholds=limits, progress=progress)
    if not speaks_for_all():
        return
    if as_json:
        print_json({"bundle": str(bundle), **result.to_json()})
    elif isinstance(result, DetectionEvaluation):
        _print_detection(result)
    else:
        _print(result)
    if result.failures:
        total = result.images + len(result.failures)
        typer.echo(f"dyndeploy: {len(result.failures)} of {total} images failed.", err=True)
        raise typer.Exit(1)


def _say(failure: Failure) -> None:
    from dyndeploy.chunks import speaks_for_all

    if not speaks_for_all():
        return
    typer.echo(f"dyndeploy: {printable(failure.error)}", err=True)


def _print(result: BundleEvaluation) -> None:
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
    _print_runtime(result)


def _print_runtime(result: BundleEvaluation | DetectionEvaluation) -> None:
    """What ran, and what a reader should know."""
    from dyndeploy.runtimes.native import BODIES_NOTE, FALLBACK_BODIES

    code = "" if result.operators is None else f"; dynamic operators: {result.operators}"
    typer.echo(f"{result.runtime}, {result.threads} thread(s), {result.precision}{code}. {result.runtime_why}.")
    if result.operators == FALLBACK_BODIES:
        typer.echo(f"Note: {BODIES_NOTE}")
    for note in result.notes:
        typer.echo(printable(f"Note: {note}"))


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


def _print_detection(result: DetectionEvaluation) -> None:
    """Average precisions, and how long it took."""
    typer.echo(
        printable(
            f"{result.network} on {result.images} images of {result.classes} classes, {result.source}: "
            f"{result.ms:.3f} ms per image in the network, measured."
        )
    )
    kinds = [("boxes", result.boxes), *([] if result.masks is None else [("masks", result.masks)])]
    rows = [(kind, found) for kind, found in kinds]
    if result.against is not None:
        other = result.against
        rows = [(f"this bundle, {kind}", found) for kind, found in kinds]
        rows.append((f"{other.bundle}, boxes", other.boxes))
        rows += [] if other.masks is None else [(f"{other.bundle}, masks", other.masks)]
    print_table(
        ("average precision", "AP", "AP50", "AP75", "small", "medium", "large"),
        [(name, *map(_share, (a.ap, a.ap50, a.ap75, a.small, a.medium, a.large))) for name, a in rows],
    )
    names = [f"{kind} {what}" for kind, _ in kinds for what in ("AP", "AP50", "AP75")]
    found = zip(*(precision.classes for _, precision in kinds), strict=True)
    print_table(
        ("class", "objects", *names),
        [
            (each[0].name, each[0].objects, *(_share(v) for one in each for v in (one.ap, one.ap50, one.ap75)))
            for each in found
        ],
    )
    if len(result.inputs) > 1:
        print_table(("input", "images"), list(result.inputs.items()))
    if result.rates:
        print_table(("mask", "mean rate"), [(name, f"{rate:.3f}") for name, rate in result.rates.items()])
    if result.against is not None:
        _print_detections_against(result, result.against)
    _print_runtime(result)


def _print_detections_against(result: DetectionEvaluation, other: DetectionComparison) -> None:
    typer.echo(
        printable(
            f"{other.bundle} ({other.precision}): {other.ms:.3f} ms per image in the network, measured in turn. Of the "
            f"detections with a score of at least {other.least_score:g}, {other.matched} are in both, "
            f"{other.only_first} in this bundle only, {other.only_other} in the other only."
        )
    )


def _share(value: float | None) -> str:
    """A precision; a dash where there is nothing to find."""
    return "-" if value is None else f"{value:.3f}"
