from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dyndeploy import files
from dyndeploy.bundle import MANIFEST, REFERENCE, Bundle, write_manifest
from dyndeploy.graphs.forced import PREFIX, forced_feeds, forced_masks, overlay_forced_masks
from dyndeploy.remote import DeviceClient, DeviceEntry, LocalTransport
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.bundles import tiny_bundle


def verifiable_bundle(folder: Path, mode: str = "spatial") -> Bundle:
    """A tiny bundle whose reference tensors are complete, as those that the exporter writes."""
    bundle = tiny_bundle(folder, mode=mode)
    masks = bundle.manifest.masks
    images = bundle.reference()["input"]
    columns: dict[str, list[np.ndarray]] = {}
    with (
        OnnxRuntimeSession(bundle.model, native="off") as own,
        OnnxRuntimeSession(overlay_forced_masks(bundle.load_model(), masks), native="off") as overlay,
    ):
        for index, image in enumerate(images[:, None]):
            drawn = forced_masks(masks, 0.5, seed=index)
            forced = overlay.run({"input": image, **forced_feeds(drawn, masks)})
            entry = {"input": image, **own.run({"input": image})}
            entry |= {f"margin/{mask.name}": np.ones(mask.shape, np.float32) for mask in masks}
            entry |= {PREFIX + name: value for name, value in drawn.items()} | {f"{PREFIX}logits": forced["logits"]}
            for name, value in entry.items():
                columns.setdefault(name, []).append(value)
    np.savez(folder / REFERENCE, **{name: np.concatenate(parts) for name, parts in columns.items()})
    manifest = bundle.manifest
    manifest.files.update({path.name: files.sha256(path) for path in folder.iterdir() if path.name != MANIFEST})
    write_manifest(folder, manifest)
    return Bundle.open(folder)


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
