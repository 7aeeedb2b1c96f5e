"""TensorRT-RTX where it is installed (``pip install 'dyndeploy[rtx]'``); ``DYNDEPLOY_REQUIRE_RTX=1`` demands it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dyndeploy.errors import DyndeployError
from dyndeploy.runtimes.native import NativeLibrary, native_library
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, rtx_package
from tests.tensorrt.test_contract import HEADERS, NO_HEADERS, build

VERSION = next((version for version in sorted(HEADERS, reverse=True) if version.startswith("11.")), None)
"""Of the headers at hand those that TensorRT-RTX has the interface of."""


@pytest.fixture(scope="session")
def rtx() -> BuilderPackage:
    try:
        return rtx_package()
    except DyndeployError as error:
        if os.environ.get("DYNDEPLOY_REQUIRE_RTX"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def built(rtx: BuilderPackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract test and the library, with kernels that record their calls."""
    folder = tmp_path_factory.mktemp("contract")
    if VERSION is None:
        pytest.skip(NO_HEADERS)
    build(folder, HEADERS[VERSION], f"-DTENSORRT_LIBRARY={rtx.library_folders[0] / 'libtensorrt_rtx.so.1'}")
    return folder


@pytest.fixture(scope="session")
def library(built: Path) -> NativeLibrary:
    return native_library(built / "adapter" / "libdyndeploy_tensorrt.so")
