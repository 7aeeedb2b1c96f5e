from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dyndeploy.bundle import Bundle
from tests.digits_bundles import digits_bundle


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return digits_bundle(tmp_path_factory.mktemp("staged") / "bundle")


@pytest.fixture
def bundle(original: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(original.path, tmp_path / "bundle"))
