"""The page of two measurements side by side."""

from __future__ import annotations

import os

from dyndeploy import files
from dyndeploy.reporting.page import Table, decimals, ms, percent, render_page, times
from dyndeploy.reporting.pairs import Figure, Pair, PairRow
from dyndeploy.reporting.svg import Bars, bar_chart


def write_pair_report(path: str | os.PathLike[str], pair: Pair) -> None:
    """Write the page of two measurements, atomically.

    Args:
        path: The HTML file.
        pair: From :func:`~dyndeploy.reporting.compare_files`.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write_text(path, render_pair_report(pair))


def render_pair_report(pair: Pair) -> str:
    """Return the page that :func:`write_pair_report` writes."""
    same = [fact for fact in pair.facts if fact not in pair.differences]
    speedups = [row for row in pair.rows if row.one.speedup is not None]
    return render_page(
        "pair.html.j2",
        title=f"{pair.one} and {pair.other}",
        top=_top(pair),
        pair=pair,
        differences=Table(
            "What differs",
            ("what", pair.one, pair.other),
            [(f.what, f.one, f.other) for f in pair.differences],
        ),
        facts=Table("The rest", ("what", pair.one, pair.other), [(f.what, f.one, f.other) for f in same]),
        times=_times_table(pair),
        speedups=_speedups_table(pair, speedups),
        energies=_energy_table(pair),
        time_chart=_chart(pair, "times", "Time per image, measured", "ms per image", "ms"),
        speedup_chart=_chart(pair, "speedups", "Speed-up, measured", "realised speed-up", "speedup")
        if speedups
        else "",
    )


_FIRST = ("network", "machine", "threads", "operators", "precision")
"""What stands at the top whether it differs or not."""


def _top(pair: Pair) -> list[tuple[str, str]]:
    shown = [fact for fact in pair.facts if fact.what in _FIRST or fact in pair.differences]
    return [
        (f"{fact.what.capitalize()} (differs)", f"{fact.one} | {fact.other}")
        if fact.differs
        else (fact.what.capitalize(), fact.one)
        for fact in shown
    ]


def mark(different: bool) -> str:
    """A word for a table: whether a difference is more than noise."""
    return "differs" if different else "within noise"


def _range(spread: tuple[float, float] | None) -> str:
    return "-" if spread is None else f"{spread[0]:.4g} to {spread[1]:.4g}"


def _times_table(pair: Pair) -> Table:
    def cells(row: PairRow) -> tuple[str, ...]:
        one, other = row.one, row.other
        change = f"{row.time_ratio - 1:+.1%}"
        spreads = (_range(one.spread), _range(other.spread))
        return one.name, ms(one.ms), spreads[0], ms(other.ms), spreads[1], change, mark(row.beyond_noise)

    return Table(
        "Times, measured",
        ("what", f"{pair.one}, ms", "p25 to p75", f"{pair.other}, ms", "p25 to p75", "change", "beyond noise"),
        [cells(row) for row in pair.rows],
        file="times.csv",
        fields=("name", "one_ms", "one_p25_ms", "one_p75_ms", "other_ms", "other_p25_ms", "other_p75_ms", "time_ratio",
                "beyond_noise"),
        values=[
            (row.one.name, *_timed(row.one), *_timed(row.other), row.time_ratio, row.beyond_noise) for row in pair.rows
        ],
        marked=frozenset(index for index, row in enumerate(pair.rows) if row.beyond_noise),
    )  # fmt: skip


def _energy_table(pair: Pair) -> Table:
    rows = [row for row in pair.rows if row.one.mj is not None or row.other.mj is not None]

    def cell(value: float | None) -> str:
        return "-" if value is None else decimals(value)

    def change(row: PairRow) -> str:
        return f"{row.other.mj / row.one.mj - 1:+.1%}" if row.one.mj and row.other.mj is not None else "-"

    return Table(
        "Energy per image, measured",
        ("what", f"{pair.one}, mJ", f"{pair.other}, mJ", "change"),
        [(row.one.name, cell(row.one.mj), cell(row.other.mj), change(row)) for row in rows],
        file="energy.csv",
        fields=("name", "one_mj", "other_mj"),
        values=[(row.one.name, row.one.mj, row.other.mj) for row in rows],
    )


def _timed(figure: Figure) -> tuple[float | None, ...]:
    return (figure.ms, *(figure.spread or (None, None)))


def _speedups_table(pair: Pair, rows: list[PairRow]) -> Table:
    def side(figure: Figure) -> tuple[str, ...]:
        spread = figure.speedup_spread
        known = "-" if spread is None else f"{decimals(spread[0])} to {decimals(spread[1])}"
        return times(figure.speedup), known, percent(figure.realisation)

    def values(figure: Figure) -> tuple[float | None, ...]:
        return figure.speedup, *(figure.speedup_spread or (None, None)), figure.ideal_speedup, figure.realisation

    columns = [(f"{name}, realised", "p25 to p75", "realisation") for name in (pair.one, pair.other)]
    fields = ("speedup", "speedup_p25", "speedup_p75", "ideal_speedup", "realisation")
    return Table(
        "Speed-ups, measured",
        ("what", "ideal", *columns[0], *columns[1], "beyond noise"),
        [(row.one.name, _ideal(row), *side(row.one), *side(row.other), mark(row.speedup_beyond_noise)) for row in rows],
        file="speedups.csv",
        fields=("name", *(f"one_{name}" for name in fields), *(f"other_{name}" for name in fields), "beyond_noise"),
        values=[(row.one.name, *values(row.one), *values(row.other), row.speedup_beyond_noise) for row in rows],
        marked=frozenset(index for index, row in enumerate(rows) if row.speedup_beyond_noise),
    )


def _ideal(row: PairRow) -> str:
    ideal = [times(figure.ideal_speedup) for figure in (row.one, row.other)]
    return ideal[0] if ideal[0] == ideal[1] else " | ".join(ideal)


def _chart(pair: Pair, identifier: str, title: str, x_label: str, what: str) -> str:
    rows = [row for row in pair.rows if getattr(row.one, what) is not None]
    if not rows:
        return ""
    return bar_chart(
        [row.one.name for row in rows],
        [
            Bars(pair.one, "static", [getattr(row.one, what) for row in rows]),
            Bars(pair.other, "measured", [getattr(row.other, what) for row in rows]),
        ],
        identifier=identifier,
        title=title,
        description="The table below has the numbers.",
        x_label=x_label,
        reference=1.0 if what == "speedup" else None,
    )
