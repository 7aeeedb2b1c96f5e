"""Blocks and a network on boards, modelled from the kernels' table, beside published times of static TensorRT."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dyndeploy.prediction import AnalyticalModel, GraphWalker, Kernel
from dyndeploy.prediction.own_kernels import own_kernels
from dyndeploy.prediction.zoo import zoo_nodes
from dyndeploy.targets.devices import Device, device_names, load_device

NETWORK, TWIN = "laud_resnet50", "resnet50"
OPTIONS: Mapping[str, Any] = {"mode": "spatial", "granularity": (4, 4, 2, 1)}
RATES = (1.0, 0.75, 0.5, 0.25, 0.1)
ENDS = {"optimistic": 0.0, "pessimistic": 1.0}
PUBLISHED = Path(__file__).parents[1] / "predictor" / "published_latency.csv"
STATIC_LAUNCHES = 3


def published_ms(device: str, precision: str) -> float | None:
    """Published latency of the static network with TensorRT at batch 1; None where there is none."""
    with PUBLISHED.open() as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            key = row["device"], row["network"], row["precision"], row["batch"], row["runtime"]
            if key == (device, TWIN, precision, "1", "tensorrt"):
                return float(row["ms_per_image"])
    return None


def _kernels(precision: str, rate: float) -> Sequence[Kernel]:
    walker = GraphWalker(zoo_nodes(NETWORK, OPTIONS, batch=1), precision=precision, runtime="tensorrt")
    return walker.graph(rate).kernels


def network_ms(device: Device, precision: str, rate: float, end: float) -> tuple[float, dict[str, float]]:
    """Milliseconds of the network and of each of its blocks, maskers included."""
    kernels = _kernels(precision, rate)
    ms, _, _ = AnalyticalModel(device, precision, "tensorrt", end=end).price(kernels)
    blocks: dict[str, float] = {}
    for kernel, value in zip(kernels, ms, strict=True):
        if kernel.block is not None:
            blocks[kernel.block] = blocks.get(kernel.block, 0.0) + float(value)
    return float(ms.sum()), blocks


def break_even(device: Device, precision: str, static: float, end: float) -> float:
    """Highest rate, in hundredths, at which the network is as fast as ``static`` ms; 0: none."""
    low, high = 0, 100
    while low < high:
        rate = (low + high + 1) // 2
        if network_ms(device, precision, rate / 100, end)[0] <= static:
            low = rate
        else:
            high = rate - 1
    return low / 100


def launches_of_blocks(precision: str) -> dict[str, int]:
    """Launches of every block: those of its operators, and one for anything else."""
    counts: dict[str, int] = {}
    for kernel in _kernels(precision, 0.5):
        if kernel.block is not None:
            launches = kernel.launches or ()
            transforms = 2 * sum(launch.patches > 0 for launch in launches)
            counts[kernel.block] = counts.get(kernel.block, 0) + max(1, len(launches) + transforms)
    return counts


def report(table: Path) -> tuple[dict[str, Any], str]:
    """Figures as JSON, and as text; ``table`` is that of the kernels."""
    results: list[dict[str, Any]] = []
    lines: list[str] = []
    for name in device_names():
        device = load_device(name)
        for precision in ("fp16", "fp32"):
            if device.is_local or own_kernels(device.hardware.compute_capability, precision, table=table) is None:
                continue
            static = published_ms(name, precision)
            found: dict[str, Any] = {"device": name, "precision": precision, "published_static_ms": static, "rates": {}}
            lines += [f"\n{device.title}, {precision}, batch 1, modelled (optimistic-pessimistic)", ""]
            lines += ["| rate | network ms | last block of each stage, us |", "|---|---|---|"]
            for rate in RATES:
                ends = {label: network_ms(device, precision, rate, end) for label, end in ENDS.items()}
                stages = sorted({block.partition(".")[0] for block in ends["optimistic"][1]})
                last = {s: max(b for b in ends["optimistic"][1] if b.startswith(s)) for s in stages}
                found["rates"][str(rate)] = {
                    label: {"network_ms": round(total, 4), "blocks_ms": {b: round(v, 5) for b, v in blocks.items()}}
                    for label, (total, blocks) in ends.items()
                }
                totals = "-".join(f"{total:.2f}" for total, _ in ends.values())
                blocks = ", ".join("-".join(f"{1e3 * b[last[s]]:.0f}" for _, b in ends.values()) for s in stages)
                lines.append(f"| {rate:g} | {totals} | {blocks} |")
            if static is not None:
                found["break_even"] = {label: break_even(device, precision, static, end) for label, end in ENDS.items()}
                lines.append(
                    f"\nStatic TensorRT, published: {static} ms. Modelled break-even at rate "
                    + "-".join(f"{found['break_even'][label]:.2f}" for label in ENDS)
                    + "."
                )
            results.append(found)
    counts = launches_of_blocks("fp16")
    most, every = max(counts.values()), sum(counts.values())
    lines.append(
        f"\nLaunches: {most} of a block at most, {every} of all; a static block has {STATIC_LAUNCHES}. "
        "Kernels of further tiles, which end at once, are priced and not counted."
    )
    return {"basis": "modelled", "network": NETWORK, "boards": results, "launches": counts}, "\n".join(lines)
