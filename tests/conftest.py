"""Processors are shared: between the workers of a test run, and with whatever else runs on the machine."""

from __future__ import annotations

import os

from dyndeploy.processors import share_processors, usable_processors

share_processors()
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_processors() // _workers)))


def pytest_xdist_auto_num_workers() -> int:
    return usable_processors()
