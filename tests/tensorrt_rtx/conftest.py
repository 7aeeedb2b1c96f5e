"""TensorRT-RTX where it is installed (``pip install 'dyndeploy[rtx]'``); ``DYNDEPLOY_REQUIRE_RTX=1`` demands it."""

from __future__ import annotations

import os

import pytest

from dyndeploy.errors import DyndeployError
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, rtx_package


@pytest.fixture(scope="session")
def rtx() -> BuilderPackage:
    try:
        return rtx_package()
    except DyndeployError as error:
        if os.environ.get("DYNDEPLOY_REQUIRE_RTX"):
            raise
        pytest.skip(str(error))
