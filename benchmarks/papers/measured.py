"""The published networks on this CPU: forced masks at the solved rates, or forced exits, beside the static twin.

Weights are random: latency does not depend on them. Each network and its twin take turns in one process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from points import Point, solved_rate

from dyndeploy import Bundle, ExportSettings, Profile, create_model, export_model, profile_bundle
from dyndeploy.measure.exits import ExitProfile, profile_exits
from dyndeploy.processors import usable_processors

SCHEMA = 1
BUSY = 0.5
"""Processes besides this one that make a machine a shared one, on average over a minute."""


def key_of(point: Point) -> str:
    """What stands for a measured network: its points differ in the rate only."""
    return point.network if point.exit is not None else f"{point.network} {point.mode} {point.granularity}".strip()


def measurable(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points that can be measured, by network: those that this release has, at a known rate or at an exit."""
    chosen = [p for p in points if p.known and not p.is_static and (p.exit is not None or solved_rate(p) is not None)]
    return {key: list(group) for key, group in groupby(chosen, key_of)}


def measure(points: list[Point], seconds: float, native: str = "auto") -> dict[str, Any]:
    """Measure one network at all its points, on one thread, one image at a time."""
    busy = os.getloadavg()[0] > BUSY
    torch.manual_seed(0)
    options = points[0].options()
    with tempfile.TemporaryDirectory() as folder:
        network = create_model(points[0].network, **options)
        bundle = export_model(network, Path(folder) / "bundle", ExportSettings(static=True))
        found = _exits(bundle, seconds) if points[0].exit is not None else _rates(bundle, points, seconds, native)
    return {**found, "shared_machine": busy, "processors": usable_processors()}


def _rates(bundle: Bundle, points: list[Point], seconds: float, native: str) -> dict[str, Any]:
    rates = [rate for point in points if (rate := solved_rate(point)) is not None]
    profile = profile_bundle(bundle, threads=1, rates=rates, min_seconds=seconds, native=native)
    return {
        **_facts(profile),
        "operators": profile.native["description"].rsplit("/", 1)[-1],
        "rows": list(_rate_rows(profile)),
    }


def _rate_rows(profile: Profile) -> Iterator[dict[str, Any]]:
    for result in profile.rates:
        yield {
            "rate": result.rate,
            "achieved_rate": result.achieved_rate,
            "gmacs": result.needed_macs / 1e9,
            "ms": result.samples.median,
            "static_ms": profile.static.median,
            "ideal_speedup": result.ideal_speedup,
            "speedup": result.realised_speedup,
            "speedup_cpu_time": result.realised_speedup_cpu,
        }


def _exits(bundle: Bundle, seconds: float) -> dict[str, Any]:
    profile = profile_exits(bundle, threads=1, min_seconds=seconds)
    rows = [
        {
            "exit": entry.exit,
            "gmacs": entry.macs / 1e9,
            "ms": entry.samples.median,
            "static_ms": profile.whole.median,
            "ideal_speedup": profile.whole_macs / entry.macs,
            "speedup": 1 / entry.relative,
            "speedup_cpu_time": None if entry.relative_cpu is None else 1 / entry.relative_cpu,
        }
        for entry in profile.exits
    ]
    return {**_facts(profile), "operators": None, "rows": rows}


def _facts(profile: Profile | ExitProfile) -> dict[str, Any]:
    machine = {key: profile.machine.get(key) for key in ("cpu", "isa", "date")}
    return {"machine": machine, "runtime": dict(profile.runtime), "threads": profile.threads}
