"""How many processors this process may use, and threads that leave them to others while they wait."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_SPIN_COUNT = "2000"
"""Turns that an OpenMP thread waits awake, some ten microseconds: enough from one loop of a network to the next on an
idle machine, and little of a time slice that others wait for on a busy one (libgomp's own default is milliseconds)."""


def processor_quota() -> float | None:
    """Processors' worth of time that the container or service of this process may use, or None without a limit.

    The strictest limit of all control groups above the process counts, of version 2 and version 1.
    """
    found = []
    for line in (system_text(_OWN_CGROUPS) or "0::/").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        folder = root / path.strip("/")
        # Inside a container the path may be that of the host, and the container's own group is the root.
        groups = {folder, *folder.parents, root}
        found += [_limit(group, 1 if controllers else 2) for group in groups if {root} & {group, *group.parents}]
    return min((limit for limit in found if limit is not None), default=None)


def usable_processors() -> int:
    """Processors that this process may use, at least one: its affinity, within its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = processor_quota()
    return processors if quota is None else max(1, min(processors, int(quota)))


def share_processors() -> None:
    """Make numeric libraries that are loaded later keep to :func:`usable_processors`, and wait asleep.

    It sets ``OMP_NUM_THREADS`` (where a quota says less than the affinity, which they know themselves) and
    ``GOMP_SPINCOUNT``, unless the user has: OpenMP, which PyTorch computes with, reads them when it is loaded. Threads
    that spin take the processors from whoever they wait for.
    """
    if processor_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_processors()))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def _limit(group: Path, version: int) -> float | None:
    if version == 2:
        parts = (system_text(group / "cpu.max") or "").split()
    else:
        parts = [system_text(group / name) or "" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        return None
    return int(parts[0]) / int(parts[1])


def system_text(path: Path) -> str | None:
    """What a file of the system says; None where it is missing, unreadable or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
