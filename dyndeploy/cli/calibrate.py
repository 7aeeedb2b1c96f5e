"""``dyndeploy calibrate``: exit thresholds for a budget or an accuracy."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, BundleFolder, LabelledData, Limit, Runtime, State, Threads, Workers, option
from dyndeploy.cli._progress import progress_bar
from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    from dyndeploy.exits import CalibrationResult, Constraint, CostsOf

_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def calibrate(
    bundle: BundleFolder,
    data: LabelledData,
    budget_flops: Annotated[
        str | None, typer.Option(metavar="X", help="Most multiply-accumulates per image on average, e.g. 600M.")
    ] = None,
    budget_ms: Annotated[
        float | None, option("--budget-ms", metavar="X", detail="On average, on this machine or by --costs.")
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(metavar="A", help="Least top-1 accuracy in [0, 1], as cheap as possible. (default: last exit's)"),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(metavar="P.json", help="Profile of this bundle on the device: costs are its milliseconds."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Only the 33 points of the official code; alone: list them, store nothing.")
    ] = False,
    keep_exits: Annotated[
        bool, typer.Option("--keep-exits", help="Never switch off an exit that an earlier one beats.")
    ] = False,
    limit: Limit = None,
    runtime: Runtime = "onnxruntime",
    precision: Annotated[str | None, option("--precision", detail="Of engines. (default: the bundle's)")] = None,
    threads: Threads = 1,
    workers: Workers = 1,
    state: State = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the bundle as it is.")] = False,
    report: Annotated[Path | None, option("--report", metavar="FILE", detail="Here of accuracy against cost.")] = None,
    as_json: AsJson = False,
) -> None:
    """Choose when images leave early, for a budget or an accuracy, and store it in the bundle."""
    constraint = _constraint(budget_flops, budget_ms, min_accuracy)
    if costs is not None and budget_flops is not None:
        raise UsageError("--costs gives milliseconds, --budget-flops counts MACs: leave one of them out.")

    from dyndeploy.bundle import Bundle
    from dyndeploy.chunks import Processes, speaks_for_all
    from dyndeploy.exits import (
        SEARCH,
        SWEEP,
        calibrate_bundle,
        counted_costs,
        measured_costs,
        profiled_costs,
        store_thresholds,
    )
    from dyndeploy.files import atomic_file, encoded
    from dyndeploy.reporting import render_exits_report

    if budget_ms is not None and costs is None and Processes.of_torchrun().count > 1:
        raise UsageError("What is measured while other processes compute is no cost: give a profile with --costs.")
    opened = Bundle.open(bundle)
    costs_of: CostsOf = counted_costs if budget_ms is None else measured_costs
    if costs is not None:
        costs_of = profiled_costs(costs)
    with ExitStack() as stack:
        page = stack.enter_context(atomic_file(report)) if report is not None and speaks_for_all() else None
        with progress_bar() as progress:
            result = calibrate_bundle(
                opened,
                data,
                constraint,
                costs=costs_of,
                method=SWEEP if sweep else SEARCH,
                switch_off=not keep_exits,
                limit=limit,
                runtime=runtime,
                precision=precision,
                threads=threads,
                workers=workers,
                state=state,
                progress=progress,
            )
        if not speaks_for_all():
            return
        stored = False
        try:
            if result.calibration.chosen is not None and not dry_run:
                store_thresholds(opened, result)
                stored = True
        finally:
            # Shown whether it can be stored and made a report of or not: it took long to find.
            if as_json:
                print_json(result.to_json() | {"stored": stored})
            else:
                _print(result)
        if page is not None:
            page.write_bytes(encoded(render_exits_report(result)))
    if as_json:
        return
    typer.echo(
        f"Stored in {bundle} for {result.precision}." if stored else f"{bundle} is as before: nothing was stored."
    )
    if report is not None:
        typer.echo(f"Report: {report}")


def _constraint(budget_flops: str | None, budget_ms: float | None, min_accuracy: float | None) -> Constraint | None:
    from dyndeploy.exits import Constraint

    given = {"--budget-flops": budget_flops, "--budget-ms": budget_ms, "--min-accuracy": min_accuracy}
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} exclude each other: give one of them.")
    if not named:
        return None
    if min_accuracy is not None:
        return Constraint(accuracy=min_accuracy)
    return Constraint(cost=budget_ms if budget_flops is None else _macs(budget_flops))


def _macs(text: str) -> float:
    """Parse ``600M``, ``1.2G`` or ``6e8``."""
    scale = _UNITS.get(text[-1:], 1.0)
    try:
        return float(text[:-1] if text[-1:] in _UNITS else text) * scale
    except ValueError:
        raise UsageError(f"--budget-flops takes a number of MACs, e.g. 600M, 1.2G or 6e8, not '{text}'.") from None


def _print(result: CalibrationResult) -> None:
    from dyndeploy.reporting import exit_rows, summarise

    calibration = result.calibration
    chosen = calibration.chosen
    columns = ("exit", "cost", "accuracy alone", *(("threshold", "images", "accuracy there") if chosen else ()))
    print_table(columns, exit_rows(calibration), title=f"{result.network}, {result.precision}, {result.source}")
    if calibration.method == "sweep":
        print_table(
            ("cost", "accuracy", "shares of the exits"),
            [
                (
                    calibration.costs.format(point.cost),
                    f"{point.accuracy:.2%}",
                    " / ".join(f"{share:.1%}" for share in point.shares),
                )
                for point in calibration.sweep
            ],
            title="official sweep",
        )
    typer.echo(summarise(result))
    for entry in calibration.dominated:
        typer.echo(entry.describe(calibration.costs))
    for warning in calibration.warnings():
        typer.echo(f"Note: {warning}")
