from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dyndeploy import Bundle, export_model
from dyndeploy.bundle import Manifest
from dyndeploy.errors import BundleError
from tests.export.conftest import lively_network


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(lively_network("layer"), tmp_path_factory.mktemp("b") / "bundle").path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(exported, tmp_path / "bundle"))


def test_manifest_round_trip(bundle: Bundle) -> None:
    value = json.loads(json.dumps(bundle.manifest.to_json()))
    assert Manifest.from_json(value) == bundle.manifest


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz"])
def test_one_flipped_byte_is_found(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert bundle.damaged_files() == {name: "content does not match its checksum"}
    with pytest.raises(BundleError, match=name):
        bundle.require_intact()


def test_missing_file_is_found(bundle: Bundle) -> None:
    bundle.model.unlink()
    assert bundle.damaged_files() == {"model.onnx": "missing"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(schema_version=99), "schema version 99"),
        (lambda value: value.pop("opset"), "malformed"),
        (lambda value: value.update(masks=[{"surprise": 1}]), "malformed"),
        (lambda value: value.update(input_size=[1, 2, 3]), "malformed"),
    ],
)
def test_malformed_manifest(bundle: Bundle, change: object, message: str) -> None:
    path = bundle.path / "bundle.json"
    value = json.loads(path.read_text())
    change(value)  # type: ignore[operator]
    path.write_text(json.dumps(value))
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(tmp_path / "file")
    (tmp_path / "bundle.json").write_text("{ not json")
    with pytest.raises(BundleError, match="not valid JSON"):
        Bundle.open(tmp_path)


def test_reference_tensors(bundle: Bundle) -> None:
    reference = bundle.reference()
    assert reference["input"].dtype == np.float32
    assert {f"margin/{mask.name}" for mask in bundle.manifest.masks} <= set(reference)
    for mask in bundle.manifest.masks:
        np.testing.assert_array_equal(reference[mask.name], reference[f"margin/{mask.name}"] >= 0)
    (bundle.path / "reference.npz").write_bytes(b"PK broken")
    with pytest.raises(BundleError, match="Cannot read"):
        bundle.reference()
