"""What the pages share: one template environment, tables that can be saved, and how numbers are written.

A page is one file that asks nothing of a network. Its tables are links to CSV (``data:`` URIs, made here, which need no
script); a small script (``templates/page.js``) draws charts into PNG files. Without scripts the page only lacks that.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any
from urllib.parse import quote

Rows = list[tuple[str, str]]

_SHORT = 14


@dataclass(frozen=True)
class Table:
    """A table of a page, for readers and as a CSV file for programs.

    Attributes:
        label: What it holds: read out by screen readers, and its heading on paper.
        columns: Headings.
        rows: Cells as they are shown; the first one names the row.
        file: Name of the CSV file; empty for a table that cannot be saved.
        fields: Columns of the file.
        values: Its rows, numbers in full precision; None becomes an empty cell.
        marked: Indices of rows that stand out.
    """

    label: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    file: str = ""
    fields: Sequence[str] = ()
    values: Sequence[Sequence[object]] = field(default=(), repr=False)
    marked: frozenset[int] = frozenset()

    @property
    def words(self) -> bool:
        """Whether cells need a line each on a phone, where short ones stand in two columns."""
        return any(len(cell) > _SHORT for row in self.rows for cell in row[1:])

    @property
    def csv(self) -> str:
        """The file as a ``data:`` URI."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(self.fields)
        writer.writerows(self.values)
        return "data:text/csv;charset=utf-8," + quote(stream.getvalue(), errors="backslashreplace")


def render_page(template: str, **content: Any) -> str:
    """Fill a template of this package; everything that is not marked as safe is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dyndeploy.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ms": ms, "times": times, "percent": percent, "decimals": decimals}
    script = resources.files("dyndeploy.reporting").joinpath("templates", "page.js").read_text(encoding="utf-8")
    # The page's policy allows this script by its checksum, and no other: not one in a network's name.
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(**content, script=script, script_checksum=checksum)


def ms(value: float | None) -> str:
    """Milliseconds with three decimals, or one where there are 100 of them."""
    return "-" if value is None else f"{value:.3f}" if value < 100 else f"{value:.1f}"


def times(value: float | None) -> str:
    """A factor."""
    return "-" if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    """A share in per cent."""
    return "-" if value is None else f"{value:.1%}"


def decimals(value: float | None) -> str:
    """A number with two decimals."""
    return "-" if value is None else f"{value:.2f}"


def measured_on(
    machine: Mapping[str, Any], threads: object, code: str | None, *more: tuple[str, Any]
) -> list[tuple[str, str]]:
    """What stands at the top of a page: on what, and with which code, its times were measured."""
    facts = [
        ("Machine", machine.get("gpu") or machine.get("cpu")),
        ("Threads", threads),
        ("Operators", code),
        *more,
        ("Measured", str(machine.get("date") or "")[:16].replace("T", " ")),
    ]
    return [(label, str(value)) for label, value in facts if value]


def machine_rows(machine: Mapping[str, Any], *more: tuple[str, Any]) -> Rows:
    """What is known of a machine, and more facts about the measurement before the date; empty ones are left out."""
    cores, load, frequency = machine.get("physical_cores"), machine.get("load_average"), machine.get("frequency_mhz")
    facts = [
        ("Processor", machine.get("cpu")),
        ("Vector instructions", ", ".join(machine.get("isa") or []) or None),
        ("Cores", f"{cores} physical, {machine.get('logical_cores')} logical" if cores else None),
        ("Memory", f"{machine['memory_gb']:g} GB" if machine.get("memory_gb") else None),
        ("Operating system", machine.get("os")),
        ("Clock", f"{frequency:.0f} MHz, governor {machine.get('governor') or 'unknown'}" if frequency else None),
        ("Load before", " / ".join(f"{value:.2f}" for value in load) if load else None),
        *more,
        *machine.get("device_facts", {}).items(),
        ("Date", machine.get("date")),
    ]
    return [(label, str(value)) for label, value in facts if value]


def version_rows(machine: Mapping[str, Any], tools: Mapping[str, Any]) -> Rows:
    """Versions of the packages that measured, and of those that exported."""
    here = {**machine.get("versions", {}), "python": machine.get("python")}
    rows = [(f"{name} (measuring)", str(value)) for name, value in sorted(here.items()) if value]
    return rows + [(f"{name} (exporting)", str(value)) for name, value in sorted(tools.items())]
