"""The benchmark's results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import limits
import small
from contestants import BEST, INT8, OPENVINO_INT8, ORT_INT8

Row = dict[str, Any]
HEAD = (
    "| network | mode | granularity | batch | threads | contestant | rate | static ms | ms | GF/s static | GF/s "
    "| ideal | realised | spread | realisation (by CPU time) |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)
INT8_HEAD = (
    "| network | mode | batch | threads | contestant | rate | ms | over static FP32 (quartiles) | over ort-int8 "
    "| over openvino-int8 | ideal | share of ideal over its own rate 1.0 | model size over FP32 | load |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)
BLOCK_HEAD = (
    "| network | mode | rate | blocks | static ms | dynamic ms | ideal | realised | realisation |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    """One row of a table."""
    cpu, rate = row["realised_speedup_cpu"], row["rate"]
    by_cpu = "" if cpu is None else f" ({cpu / row['ideal_speedup']:.2f})"
    masks = "static" if rate is None else f"{rate:.2f}" + (" (data)" if row["masks"] == "data" else "")
    low, high = row["realised_spread"]
    share = "" if rate is None else f"{row['realisation']:.2f}{by_cpu}"
    return (
        f"| {row['network']} | {row['mode']} | {row['granularity']} | {row['batch']} | {row['threads']} "
        f"| {row['contestant']} | {masks} | {row['static_ms']:.2f} | {row['median_ms']:.2f} "
        f"| {row['static_gflops']:.0f} | {row['gflops']:.0f} | {row['ideal_speedup']:.2f} "
        f"| {row['realised_speedup']:.2f} | {low:.2f} .. {high:.2f} | {share} |"
    )


def table(rows: Sequence[Row]) -> str:
    """All rows."""
    return "\n".join([HEAD, *map(line, rows)])


def int8_table(rows: Sequence[Row]) -> str:
    """Every contestant in INT8 and our best form in FP32: over both static INT8 networks, and over its own rate 1.0."""
    by_key = {_key(row): row for row in rows}
    lines = [INT8_HEAD]
    for row in rows:
        contestant, rate = row["contestant"], row["rate"]
        if row["masks"] == "data" or not contestant.startswith((BEST, INT8, ORT_INT8, OPENVINO_INT8)):
            continue
        configuration, speed = _key(row)[:-2], limits.speed_of(row)
        over = [by_key.get((*configuration, name, None)) for name in (ORT_INT8, OPENVINO_INT8)]
        ratios = ["" if other is None else f"{speed / limits.speed_of(other):.2f}" for other in over]
        own, share = by_key.get((*configuration, contestant, 1.0)), ""
        if own is not None:
            share = f"{speed / limits.speed_of(own) * own['ideal_speedup'] / row['ideal_speedup']:.2f}"
        done, of = row.get("integer_convolutions", (None, None))
        integers = "" if done is None else f" ({done} of {of} convolutions in integers)"
        low, high = row["realised_spread"]
        lines.append(
            f"| {row['network']} | {row['mode']} | {row['batch']} | {row['threads']} | {contestant}{integers} "
            f"| {'static' if rate is None else f'{rate:.2f}'} | {row['median_ms']:.2f} "
            f"| {speed:.2f} ({low:.2f} .. {high:.2f}) | {ratios[0]} | {ratios[1]} | {row['ideal_speedup']:.2f} "
            f"| {share} | {row['size_ratio']:.3f} | {row['load']:.1f} |"
        )
    return "\n".join(lines)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("network", "mode", "granularity", "batch", "threads", "contestant", "rate"))


def threads_table(rows: Sequence[Row]) -> str:
    """Milliseconds of the twin and of our best form by number of threads: more threads than cores must not collapse."""
    counts = sorted({row["threads"] for row in rows})
    names = ("network", "mode", "granularity", "batch", "rate")
    cells: dict[tuple[Any, ...], dict[int, str]] = {}
    for row in rows:
        if row["contestant"] == BEST:
            times = f"{row['static_ms']:.2f} / {row['median_ms']:.2f}"
            cells.setdefault(tuple(row[name] for name in names), {})[row["threads"]] = times
    lines = [
        f"| {' | '.join(names)} | {' | '.join(f'{count} thread(s)' for count in counts)} |",
        f"|{'---|' * (len(names) + len(counts))}",
    ]
    for key, times in cells.items():
        if len(times) > 1:
            lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(times.get(count, '') for count in counts)} |")
    return "\n".join(lines)


def stage_of(block: str) -> str:
    """``layer3.0`` -> ``layer3.0``; ``layer3.7`` -> ``layer3, others``: the first block of a stage is another kind."""
    stage, _, index = block.partition(".")
    return block if index == "0" else f"{stage}, others"


def breakdown(rows: Sequence[Row]) -> str:
    """Where the time of one image goes on one thread: blocks of a kind added up, and the rest of the network."""
    lines = [BLOCK_HEAD]
    for row in rows:
        parts: dict[str, list[dict[str, Any]]] = {}
        for block in row["blocks"]:
            parts.setdefault(stage_of(block["name"]), []).append(block)
        for part in row["rest"]:
            parts[part["name"]] = [part]
        for name, blocks in parts.items():
            static, dynamic = (sum(block[key] for block in blocks) for key in ("static_ms", "dynamic_ms"))
            head = f"| {row['network']} | {row['mode']} | {row['rate']:.2f} | {name} | {static:.2f} | {dynamic:.2f} "
            if not dynamic or not static or any(block["ideal_speedup"] is None for block in blocks):
                lines.append(f"{head}| | | |")
                continue
            needed = sum(block["static_ms"] / block["ideal_speedup"] for block in blocks)
            lines.append(f"{head}| {static / needed:.2f} | {static / dynamic:.2f} | {needed / dynamic:.2f} |")
    return "\n".join(lines)


def machine_line(result: Row) -> str:
    """The processor, its instruction sets and caches, and what ran on it."""
    machine, sets = result["machine"], result["instruction_sets"]
    caches = ", ".join(f"{level} {size >> 10} KiB" for level, size in (machine.get("caches") or {}).items())
    peaks = ", ".join(f"{value:.0f} GF/s on {threads} thread(s)" for threads, value in result["peak_gflops"].items())
    versions = {**machine.get("versions", {}), **result.get("versions", {})}
    return (
        f"Measured, masks forced. {machine.get('cpu')} with {', '.join(machine.get('isa') or [])}; "
        f"{machine.get('usable_cores')} cores; caches of a core: {caches or 'unknown'}; {machine.get('date')}. "
        f"ONNX Runtime {versions.get('onnxruntime')}, OpenVINO {versions.get('openvino') or 'not installed'}. "
        f"The operator library runs {', '.join(sets) or 'nothing'} here; *best* is {result['best']}. "
        f"Operators: {', '.join(sorted({row['operators'] for row in result['rows'] if row.get('operators')}))}. "
        f"Peak of a matrix product: {peaks}."
    )


def notes(result: Row) -> list[str]:
    """What a reader has to know of this machine or run."""
    found = [f"Environment: {name}={value}." for name, value in result["environment"].items()]
    if any(flag.startswith("amx") for flag in result["machine"].get("isa") or ()):
        found.append(
            "The processor has AMX, which OpenVINO's BF16 and INT8 and ONNX Runtime's INT8 use, our kernels in BF16; "
            "with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment OpenVINO does without."
        )
    return found


def page(result: Row) -> str:
    """Everything."""
    rows, blocks, few = result["rows"], result["blocks"], result["small"]
    others = [name for name in result["instruction_sets"][1:] if any(row["contestant"] == name for row in rows)]
    own = [row for row in rows if row["contestant"] not in others]
    parts = [
        "# Realisation on a CPU",
        machine_line(result),
        *notes(result),
        *(f"Left out: {line}." for line in result["left_out"]),
        *(f"Option of the networks: {name}={value}." for name, value in result.get("options", {}).items()),
        "Every contestant of a configuration ran in one process and one loop, in turn, with the static FP32 twin in "
        "ONNX Runtime just before and after each run: *realised* is the typical ratio of the times. *best*, "
        "another instruction set, *bf16* (BF16 bottlenecks) and *int8* are the dynamic network with the operator "
        "library, *bodies* without it; *openvino-...* and *ort-int8* are the static twin elsewhere, in INT8 with the "
        "scales of *int8*.",
    ]
    if own:
        # A set that the environment names has another machine's limits, against another machine's twin.
        if result["best"] == next(iter(result["instruction_sets"]), None):
            parts += ["## Limits", limits.section(own, result["granularities"][0], result["best"])]
        if any(row["contestant"].startswith(INT8) for row in rows):
            same = [row for row in rows if row["granularity"] == result["granularities"][0]]
            parts += [
                "## INT8",
                "Speeds on one thread are ratios of processor times, here and in the limits of INT8; the quartiles are "
                "those of wall times. *load* is the machine's, over the minute before.",
                *filter(None, [limits.sizes(same)]),
                int8_table(same),
            ]
        parts += ["## Threads: twin / best, ms", threads_table(own), "## All configurations", table(own)]
    for name in others:
        parts += [
            f"## {name} kernels against the same twin",
            f"The twin runs on all that the processor has ({result['best']}): on a machine of {name} it is slower.",
            table([row for row in rows if row["contestant"] == name]),
        ]
    if few["rows"]:
        parts += ["## Small networks and odd sizes", small.demo_limits(few["rows"]), table(few["rows"])]
    if few["costs"]:
        parts += [
            "## Fixed cost of an operator",
            "Microseconds a call [quartiles]: a model of one operator on a map of 4 x 4 pixels and 16 channels, less a "
            "model of one Relu, in turn.",
            small.costs_table(few["costs"]),
        ]
    if blocks:
        parts += [f"## Where the time goes: {BEST}, 1 thread, batch 1", breakdown(blocks)]
    return "\n\n".join(parts) + "\n"
