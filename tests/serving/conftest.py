"""The library of the runtime, which models of a server load."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.plugins.conftest import onnxruntime_library, runtime_build

__all__ = ["onnxruntime_library", "runtime_build"]  # fixtures


@pytest.fixture(scope="session")
def runtime_library(request: pytest.FixtureRequest) -> Path:
    """``libdyndeploy.so`` that DYNDEPLOY_RUNTIME names, else the one that tests build."""
    named = os.environ.get("DYNDEPLOY_RUNTIME")
    return Path(named) if named else request.getfixturevalue("runtime_build").library
