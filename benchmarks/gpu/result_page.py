"""A result of acceptance.py as Markdown: every figure says that it was measured, and which masks were forced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def page(result: Mapping[str, Any]) -> str:
    """The whole result."""
    parts = result["parts"]
    lines = [f"# On a GPU, {result['started']}", "", *_overview(parts)]
    machine = parts.get("machine", {}).get("facts")
    if machine:
        lines += ["", "## Machine", "", "| what | value | how |", "|---|---|---|"]
        lines += [f"| {fact['what']} | {fact['value']} | {fact['how']} |" for fact in machine]
    for name in ("blocks", "networks", "networks-again"):
        rows = parts.get(name, {}).get("rows")
        if rows:
            lines += ["", f"## {name.replace('-', ' ').capitalize()}", "", *_times(rows)]
    counters = parts.get("counters", {}).get("rows")
    if counters:
        lines += ["", "## Counters (measured by ncu)", "", *_counters(counters)]
    return "\n".join(lines)


def _overview(parts: Mapping[str, Any]) -> list[str]:
    lines = ["| part | what it shows | outcome | seconds |", "|---|---|---|---|"]
    for name, part in parts.items():
        outcome = part["status"] + (f": {part['why']}" if part.get("why") else "")
        if part.get("said"):
            outcome += f" ({part['said']})"
        lines.append(f"| {name} | {part['proves']} | {_cell(outcome)} | {part.get('seconds', '-')} |")
    return lines


def _times(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["what", "batch", "rate", "ms, measured", "cuDNN ms, measured", "speed-up, measured", "ideal, counted"]
    head += ["realisation", "error"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [
            row["what"],
            str(row["batch"]),
            f"{row['rate']:g} (forced)",
            f"{row['ms']:.4g}",
            f"{row['static_ms']:.4g} ({row['static']})",
            f"{row['speedup']:.2f}x ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})",
            f"{row['ideal']:.2f}x",
            f"{100 * row['speedup'] / row['ideal']:.0f} %",
            f"{row['error']:.1e}",
        ]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return lines


def _counters(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted({name for row in rows for name in row["metrics"]})
    lines = ["| kernel | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    cells = ([_cell(row["kernel"]), *(row["metrics"].get(name, "-") for name in names)] for row in rows)
    return [*lines, *(f"| {' | '.join(row)} |" for row in cells)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
