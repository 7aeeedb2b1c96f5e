from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.remote import DeviceClient, DeviceEntry, LocalTransport
from tests.bundles import tiny_bundle, with_reference


def verifiable_bundle(folder: Path, mode: str = "spatial") -> Bundle:
    """A tiny bundle whose reference tensors are complete, as those that the exporter writes."""
    return with_reference(tiny_bundle(folder, mode=mode))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return verifiable_bundle(tmp_path_factory.mktemp("remote") / "bundle")


@pytest.fixture
def entry(tmp_path: Path) -> DeviceEntry:
    return DeviceEntry("board", "local:", work=str(tmp_path / "agent"))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[DeviceClient]:
    with DeviceClient(LocalTransport(), work=str(tmp_path / "agent"), pause=0.05) as connected:
        yield connected
