"""What the pages share: one template environment, and how numbers are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = list[tuple[str, str]]


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
    return environment.get_template(template).render(**content)


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
