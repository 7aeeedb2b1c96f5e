"""How ``dyndeploy watch`` shows a session on a terminal, and in lines where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dyndeploy.cli._arguments import printable
from dyndeploy.watching import Calibration, Status

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Iterable[float | None]) -> str:
    """Numbers as bars from zero to the largest; a blank where there is none."""
    found = list(values)
    most = max((value for value in found if value is not None and math.isfinite(value)), default=0.0)
    return "".join(
        " " if value is None else _BARS[min(7, int(8 * min(value, most) / most)) if most else 0] for value in found
    )


def status_line(status: Status) -> str:
    """A status in one line."""
    reading, interval = status.reading, status.interval
    rate = status.images_per_second
    parts = [f"{reading.name}: {reading.counters.images} images" + ("" if rate is None else f", {rate:.1f}/s")]
    values, of = status.percentiles
    if values:
        parts.append(f"{_times(values)} ms {of}")
    shares, rates = interval.exit_shares or reading.counters.exit_shares, interval.mean_rates
    rates = rates or reading.counters.mean_rates
    if shares:
        parts.append("exits " + " ".join(f"{name}:{share:.0%}" for name, share in shares.items()))
    if rates:
        parts.append(f"mean rate {sum(rates.values()) / len(rates):.3f}")
    if reading.counters.failed:
        parts.append(f"{reading.counters.failed} failed")
    parts += _sensors(status)
    if reading.ended:
        parts.append("ended")
    return printable(", ".join(parts))


def drift_line(status: Status, window: int) -> str:
    """The verdict, or how far it is from one."""
    if status.drift is None:
        return f"drift: no verdict before {window} images; {status.pending} counted."
    return printable(status.drift.line)


def status_view(statuses: Sequence[Status], calibration: Calibration | None, window: int, rows: int) -> RenderableType:
    """A status with what happened before it.

    Args:
        statuses: The latest last; at least one.
        calibration: What shares and rates are shown beside, or None.
        window: Images that a verdict rests on.
        rows: Most masks that are listed.
    """
    status = statuses[-1]
    reading = status.reading
    facts = Table.grid(padding=(0, 2))
    rate = status.images_per_second
    values, of = status.percentiles
    history = [entry.percentiles[0].get("p95") for entry in statuses]
    failed = f", {reading.counters.failed} failed" if reading.counters.failed else ""
    lines = [
        ("images", f"{reading.counters.images}{failed}", ""),
        ("a second", "-" if rate is None else f"{rate:.1f}", sparkline(entry.images_per_second for entry in statuses)),
        ("p50, p95, p99", f"{_times(values)} ms" if values else "-", sparkline(history)),
        ("", of if values else "", ""),
    ]
    lines += [(name, text, "") for name, text in zip(("sensors", ""), _sensors(status), strict=False)]
    for row in lines:
        facts.add_row(*(Text(printable(cell)) for cell in row))
    parts: list[RenderableType] = [Text(printable(_title(status)), style="bold"), facts]
    exits, rates = reading.counters.exit_shares, reading.counters.mean_rates
    if exits:
        known = {} if calibration is None else calibration.exits
        parts.append(_shares("exit", exits, status.interval.exit_shares, known, rows))
    if rates:
        known = {} if calibration is None else calibration.rates
        parts.append(_shares("mask", rates, status.interval.mean_rates, known, rows))
    if calibration is not None:
        drifted = status.drift is not None and status.drift.drifted
        parts.append(Text(drift_line(status, window), style="bold red" if drifted else ""))
        if status.drift is not None and status.drift.comparisons:
            parts += [Text(printable(f"not compared: {reason}")) for reason in status.drift.untested]
    return Group(*parts)


def _title(status: Status) -> str:
    reading = status.reading
    more = [part for part in (reading.precision, reading.bundle) if part]
    return " ".join([reading.name, *(f"({part})" for part in more), *(["ended"] if reading.ended else [])])


def _shares(
    kind: str, whole: Mapping[str, float], recent: Mapping[str, float], known: Mapping[str, float], rows: int
) -> Table:
    table = Table(kind, "all images", "last interval", *(["calibration"] if known else []))
    names = list(whole)
    for name in names[:rows]:
        cells = [name, f"{whole[name]:.3f}", f"{recent[name]:.3f}" if name in recent else "-"]
        if known:
            cells.append(f"{known[name]:.3f}" if name in known else "-")
        table.add_row(*(Text(printable(cell)) for cell in cells))
    if len(names) > rows:
        table.add_row(Text(f"and {len(names) - rows} more"))
    return table


def _times(values: dict[str, float | None]) -> str:
    return " / ".join(
        "-" if value is None else f"{value:.2f}" if math.isfinite(value) else "over" for value in values.values()
    )


def _sensors(status: Status) -> list[str]:
    found, reading = [], status.reading
    power, hottest = reading.power, reading.hottest
    if power is not None:
        found.append(f"{power[0] / 1000:.2f} W ({power[1]})")
    elif reading.rails_mw:
        found.append(" ".join(f"{name} {mw / 1000:.2f} W" for name, mw in reading.rails_mw.items()))
    if hottest is not None:
        found.append(f"{hottest[1]:.0f} °C ({hottest[0]})")
    return found
