"""Measured energies as a table."""

from __future__ import annotations

from dyndeploy.measure.energy import Energy
from dyndeploy.reporting.page import Table, decimals


def energy_table(energy: Energy | None) -> Table | None:
    """Power and millijoules per image of everything that was measured; None without a sensor."""
    if energy is None:
        return None
    first = energy.entries[0].mj
    return Table(
        f"Energy per image, {energy.description}",
        ("what", "W", "ms", "mJ per image", "of that above idle, mJ", "of the first"),
        [
            (
                entry.name,
                decimals(entry.power_mw / 1000),
                decimals(entry.ms),
                decimals(entry.mj),
                decimals(entry.above(energy.idle_mw)),
                f"{entry.mj / first:.0%}" if first > 0 else "-",
            )
            for entry in energy.entries
        ],
        file="energy.csv",
        fields=("name", "power_mw", "ms", "mj_per_image", "mj_above_idle", "readings"),
        values=[
            (entry.name, entry.power_mw, entry.ms, entry.mj, entry.above(energy.idle_mw), entry.readings)
            for entry in energy.entries
        ],
    )
