"""The report of a calibration: what accuracy costs, where images leave, and how good each exit is."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from dyndeploy import files
from dyndeploy.exits import NEVER, Calibration, CalibrationResult, OperatingPoint
from dyndeploy.reporting.page import Rows, Table, machine_rows, measured_on, render_page
from dyndeploy.reporting.svg import Bars, Line, bar_chart, line_chart


def write_exits_report(path: str | os.PathLike[str], result: CalibrationResult) -> None:
    """Write the report of a calibration, atomically.

    Args:
        path: The HTML file.
        result: The calibration.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write_text(path, render_exits_report(result))


def render_exits_report(result: CalibrationResult) -> str:
    """Return the page that :func:`write_exits_report` writes."""
    calibration = result.calibration
    return render_page(
        "exits.html.j2",
        title=f"{result.network}: exit thresholds",
        result=result,
        calibration=calibration,
        summary=summarise(result),
        recommendations=[entry.describe(calibration.costs) for entry in calibration.dominated],
        warnings=calibration.warnings(),
        top=measured_on(
            result.machine,
            result.runtime.get("threads", "unknown"),
            None,
            ("Precision", result.precision),
            ("Costs", f"{calibration.costs.unit}, {calibration.costs.source}"),
        ),
        exits=_exits_table(calibration),
        sweep=_points_table("Official sweep", "sweep.csv", calibration, calibration.sweep),
        frontier=_points_table("Best thresholds", "frontier.csv", calibration, calibration.frontier),
        curve=_curve(calibration),
        histogram="" if calibration.chosen is None else _histogram(calibration, calibration.chosen),
        accuracies=_accuracies(calibration),
        facts=_facts(result),
    )


def summarise(result: CalibrationResult) -> str:
    """The result in a few sentences."""
    calibration = result.calibration
    chosen, constraint, held_out = calibration.chosen, calibration.constraint, calibration.held_out
    last = calibration.alone[-1]
    costs = calibration.costs
    whole = f"the last exit alone gets {last.accuracy:.2%} at {costs.format(last.cost)}"
    if chosen is None or constraint is None or held_out is None:
        return f"The official sweep of {len(calibration.sweep)} points; nothing was chosen. On the same images {whole}."
    return (
        f"With {constraint.describe(costs)}, the thresholds get {chosen.accuracy:.2%} of {calibration.images} "
        f"images right at {costs.format(chosen.cost)} per image, {last.cost / chosen.cost:.2f} times cheaper; "
        f"{whole}. On images that the thresholds were not chosen on: {held_out.accuracy:.2%} at "
        f"{costs.format(held_out.cost)}."
    )


def exit_rows(calibration: Calibration) -> list[tuple[str, ...]]:
    """Per exit: number, cost, accuracy alone, threshold, share of the images, accuracy among them."""
    chosen = calibration.chosen
    rows: list[tuple[str, ...]] = []
    for index, number in enumerate(calibration.exits):
        alone = calibration.alone[index]
        row: tuple[str, ...] = (
            str(number),
            calibration.costs.format(calibration.costs.values[index]),
            f"{alone.accuracy:.2%}",
        )
        if chosen is not None:
            accuracy = chosen.exit_accuracies[index]
            row += (
                format_threshold(chosen.thresholds[index]),
                f"{chosen.shares[index]:.1%}",
                "-" if accuracy is None else f"{accuracy:.2%}",
            )
        rows.append(row)
    return rows


def format_threshold(value: float) -> str:
    """Write a threshold; an exit that takes nothing, or all that gets there, is named so."""
    return "all" if value <= 0 else "off" if value >= NEVER else f"{value:.6f}"


def _exits_table(calibration: Calibration) -> Table:
    chosen, costs = calibration.chosen, calibration.costs.values
    more: Sequence[Sequence[object]] = [()] * len(costs)
    if chosen is not None:
        # The last exit takes all: -infinity, which JSON and CSV write as nothing.
        limits = [value if math.isfinite(value) else None for value in chosen.thresholds]
        more = list(zip(limits, chosen.shares, chosen.exit_accuracies, strict=True))
    extra = chosen is not None
    return Table(
        "Exits and thresholds, measured",
        ("exit", "cost", "accuracy alone", *(("threshold", "images", "accuracy there") if extra else ())),
        exit_rows(calibration),
        file="exits.csv",
        fields=("exit", "cost", "accuracy_alone", *(("threshold", "share", "accuracy_there") if extra else ())),
        values=[
            (number, cost, alone.accuracy, *rest)
            for number, cost, alone, rest in zip(calibration.exits, costs, calibration.alone, more, strict=True)
        ],
    )


def _points_table(label: str, file: str, calibration: Calibration, points: Sequence[OperatingPoint]) -> Table:
    names = [f"{what}_{exit}" for what in ("share", "threshold") for exit in calibration.exits]
    return Table(
        label,
        (_axis(calibration), "accuracy", "shares of the exits", "thresholds"),
        [
            (
                calibration.costs.format(point.cost),
                f"{point.accuracy:.2%}",
                " / ".join(f"{share:.1%}" for share in point.shares),
                " / ".join(format_threshold(value) for value in point.thresholds),
            )
            for point in points
        ],
        file=file,
        fields=("cost", "accuracy", *names),
        values=[
            (
                point.cost,
                point.accuracy,
                *point.shares,
                *(value if math.isfinite(value) else None for value in point.thresholds),
            )
            for point in points
        ],
    )


def _facts(result: CalibrationResult) -> Rows:
    calibration = result.calibration
    return machine_rows(
        result.machine,
        ("Images", f"{calibration.images}: {result.source}"),
        ("Costs", f"{calibration.costs.unit} per image, {calibration.costs.source}"),
        ("Precision", result.precision),
        ("Method", calibration.method),
        ("Runtime", f"{result.runtime.get('runtime')} {result.runtime.get('version')}"),
    )


# ---------------------------------------------------------------- charts


def _axis(calibration: Calibration) -> str:
    return f"{calibration.costs.scale[1]} per image"


def _curve(calibration: Calibration) -> str:
    size = calibration.costs.scale[0]

    def placed(points: Sequence[OperatingPoint]) -> list[tuple[float, float]]:
        return [(point.cost / size, 100 * point.accuracy) for point in points]

    held_out = calibration.held_out
    lines = [
        Line("best thresholds", "measured", placed(calibration.frontier), markers=False),
        Line("official sweep", "ideal", placed(calibration.sweep), markers=False),
        Line("one exit alone", "static", placed(calibration.alone), connect=False),
        Line("chosen", "data", placed([calibration.chosen]) if calibration.chosen else [], connect=False),
        Line(
            "chosen, on other images",
            "predicted p0",
            [(held_out.cost / size, 100 * held_out.accuracy)] if held_out else [],
            connect=False,
        ),
    ]
    lines = [line for line in lines if line.points]
    alone = "; ".join(
        f"exit {number}: {100 * point.accuracy:.1f} % at {calibration.costs.format(point.cost)}"
        for number, point in zip(calibration.exits, calibration.alone, strict=True)
    )
    return line_chart(
        lines,
        identifier="curve",
        title="Accuracy against cost over the thresholds",
        description=f"One exit alone: {alone}. The tables have the other numbers.",
        x_label=_axis(calibration),
        y_label="top-1 accuracy, %",
        x_low=min(x for line in lines for x, _ in line.points),
        x_high=max(x for line in lines for x, _ in line.points),
        y_low=min(y for line in lines for _, y in line.points),
    )


def _histogram(calibration: Calibration, chosen: OperatingPoint) -> str:
    series = [Bars("calibration images", "data", [100 * share for share in chosen.shares])]
    if calibration.held_out is not None:
        series.append(Bars("other images", "predicted p0", [100 * share for share in calibration.held_out.shares]))
    pairs = zip(calibration.exits, chosen.shares, strict=True)
    return bar_chart(
        [f"exit {number}" for number in calibration.exits],
        series,
        identifier="histogram",
        title="Where the images leave with the chosen thresholds",
        description="; ".join(f"exit {number}: {share:.1%}" for number, share in pairs),
        x_label="share of the images, %",
        form="{:.1f}".format,
    )


def _accuracies(calibration: Calibration) -> str:
    series = [Bars("all images", "static", [100 * point.accuracy for point in calibration.alone])]
    if calibration.chosen is not None:
        among = [None if value is None else 100 * value for value in calibration.chosen.exit_accuracies]
        series.append(Bars("images that leave there", "data", among))
    return bar_chart(
        [f"exit {number}" for number in calibration.exits],
        series,
        identifier="accuracies",
        title="Accuracy of each exit, on all images and on those that leave there",
        description="The table below has the numbers.",
        x_label="top-1 accuracy, %",
        form="{:.1f}".format,
    )
