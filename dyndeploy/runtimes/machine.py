"""What machine a measurement was taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dyndeploy.processors import processor_quota, system_text
from dyndeploy.runtimes.onnxruntime_package import conflict, installed_distributions

_ISA_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "asimdhp", "fphp",
    "sve", "sve2", "i8mm", "bf16",
)  # fmt: skip
_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CPUINFO = Path("/proc/cpuinfo")
_OLDEST_YEAR = 2024
"""No clock that is right says an earlier one."""
_DAY = 24 * 3600.0
_PACKAGES = ("dyndeploy", "onnx", "numpy")


def _cpuinfo() -> dict[str, str]:
    """First entry of ``/proc/cpuinfo`` with lower-case keys; empty elsewhere than on Linux."""
    entry: dict[str, str] = {}
    for line in (system_text(_CPUINFO) or "").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            entry.setdefault(key.strip().lower(), value.strip())
    return entry


def _caches() -> dict[str, int]:
    """Bytes of the data caches that the first processor sees, by level: ``L1d``, ``L2``, ``L3``; empty if unknown."""
    found: dict[str, int] = {}
    for entry in sorted(_CACHES.glob("index*")):
        level, kind, size = (system_text(entry / name) for name in ("level", "type", "size"))
        if level is None or size is None or kind not in ("Data", "Unified") or not size.removesuffix("K").isdigit():
            continue
        found[f"L{level}{'d' if kind == 'Data' else ''}"] = int(size.removesuffix("K")) << 10
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package == "dyndeploy":
            import dyndeploy

            return getattr(dyndeploy, "__version__", None)
        return None


def calendar_notes(board: str | None = None) -> list[str]:
    """Sentences about a clock that is wrong: most boards have no battery, and begin in 1970 or on their image's day.

    Args:
        board: What a board says that the time is (ISO 8601); None looks at this machine's clock alone.
    """
    here = datetime.now(timezone.utc)
    try:
        there = here if board is None else datetime.fromisoformat(board)
    except ValueError:
        return []
    there = there if there.tzinfo else there.replace(tzinfo=timezone.utc)
    if there.year >= _OLDEST_YEAR and abs((there - here).total_seconds()) < _DAY:
        return []
    whose = "This machine's" if board is None else "The board's"
    return [
        f"{whose} clock says {there:%Y-%m-%d %H:%M} UTC"
        + ("" if board is None else f", while it is {here:%Y-%m-%d %H:%M} here")
        + ": dates of what is written there are wrong, and downloads fail. Set it: 'sudo timedatectl set-ntp true', or "
        "'sudo date -s ...' without a network."
    ]


def machine_facts() -> dict[str, Any]:
    """Describe this machine and this moment as plain JSON types; what cannot be read is None.

    Returns:
        ``cpu``, ``architecture``, ``isa`` (vector instruction sets that matter to kernels), ``caches`` (bytes of
        the data caches that a core sees, by level: ``L1d``, ``L2``, ``L3``), ``physical_cores``,
        ``logical_cores``, ``usable_cores`` (affinity), ``cpu_quota`` (container limit in cores), ``memory_gb``,
        ``os``, ``governor``, ``frequency_mhz``, ``load_average``, ``python``, ``versions`` by package and
        ``date`` (UTC, ISO 8601); ``warnings`` where something is wrong with it.
    """
    import psutil

    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("features") or "").split())
    frequency = system_text(_CPUFREQ / "scaling_cur_freq")
    try:
        megahertz = float(frequency) / 1000 if frequency else float(info["cpu mhz"])
    except (KeyError, ValueError):
        megahertz = None
    affinity = getattr(os, "sched_getaffinity", None)
    load = getattr(os, "getloadavg", None)
    return {
        "cpu": info.get("model name") or info.get("model") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "isa": [flag for flag in _ISA_FLAGS if flag in flags],
        "caches": _caches(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(logical=True),
        "usable_cores": len(affinity(0)) if affinity else None,
        "cpu_quota": processor_quota(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 2),
        "os": f"{platform.system()} {platform.release()}",
        "governor": system_text(_CPUFREQ / "scaling_governor"),
        "frequency_mhz": megahertz,
        "load_average": list(load()) if load else None,
        "python": platform.python_version(),
        "versions": {
            "onnxruntime": next(iter(installed_distributions().values()), None),
            **{package: _version(package) for package in _PACKAGES},
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **({"warnings": [f"{several}."]} if (several := conflict()) else {}),
    }
