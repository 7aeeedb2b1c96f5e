"""What all tests share: processors, and packages that not every run has.

Processors are shared between the workers of a test run, and with whatever else runs on the machine.
"""

from __future__ import annotations

import importlib.util
import os

import pytest

from dyndeploy.processors import share_processors, usable_processors

share_processors()
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_processors() // _workers)))


def pytest_xdist_auto_num_workers() -> int:
    return usable_processors()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("vision"):
        missing = [name for name in marker.args if importlib.util.find_spec(name) is None]
        if missing and os.environ.get("DYNDEPLOY_REQUIRE_VISION"):
            pytest.fail(f"needs {', '.join(missing)}, and DYNDEPLOY_REQUIRE_VISION forbids to skip")
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")
