from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy import Bundle, export_model
from dyndeploy.bundle import Manifest, sealed, write_manifest
from dyndeploy.errors import BundleError
from tests.bundles import tiny_bundle
from tests.export.conftest import lively_network

CHECKSUM = "content does not match its checksum"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("b") / "bundle", mode="both").path


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(written, tmp_path / "bundle"))


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bundle.json").read_text())


def test_manifest_round_trip(bundle: Bundle) -> None:
    assert bundle.damaged_files() == {}
    value = json.loads(json.dumps(bundle.manifest.to_json()))
    assert Manifest.from_json(value) == bundle.manifest
    assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest
    write_manifest(bundle.path, bundle.manifest)
    assert Bundle.open(bundle.path) == bundle


def test_an_exported_bundle_is_intact_and_readable(tmp_path: Path) -> None:
    bundle = export_model(lively_network("layer"), tmp_path / "bundle")
    assert bundle.damaged_files() == {}
    assert [node.name for node in bundle.load_model().graph.input] == [item.name for item in bundle.manifest.inputs]
    reference = bundle.reference()
    assert reference["input"].dtype == np.float32
    assert {f"margin/{mask.name}" for mask in bundle.manifest.masks} <= set(reference)
    for mask in bundle.manifest.masks:
        np.testing.assert_array_equal(reference[mask.name], reference[f"margin/{mask.name}"] >= 0)


@pytest.mark.parametrize("name", ["model.onnx", "static.onnx", "reference.npz"])
def test_one_flipped_byte_is_found(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert bundle.damaged_files() == {name: CHECKSUM}
    with pytest.raises(BundleError, match=name):
        bundle.require_intact()


def test_missing_file_is_found(bundle: Bundle) -> None:
    bundle.model.unlink()
    assert bundle.damaged_files() == {"model.onnx": "missing"}


def test_the_seal_is_the_hash_of_everything_else() -> None:
    # Written out, so that another program can check a bundle by the documented rule.
    text = '{"a":[1,2.5],"b":"\\u00e9"}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert sealed({"b": "é", "a": (1, 2.5)}) == {"b": "é", "a": (1, 2.5), "manifest_sha256": expected}
    assert sealed({"b": "é", "manifest_sha256": "stale", "a": [1, 2.5]})["manifest_sha256"] == expected


def test_a_changed_manifest_is_found_but_can_be_looked_at(bundle: Bundle) -> None:
    path = bundle.path / "bundle.json"
    value = manifest_of(bundle.path)
    path.write_text(json.dumps(value, indent=1, sort_keys=True))
    assert Bundle.open(bundle.path).damaged_files() == {}, "layout is no content"

    path.write_text(json.dumps({**value, "static_macs": value["static_macs"] + 1}))
    changed = Bundle.open(bundle.path)
    assert changed.manifest.static_macs == value["static_macs"] + 1
    assert changed.damaged_files() == {"bundle.json": CHECKSUM}
    with pytest.raises(BundleError, match=r"bundle\.json \(content"):
        changed.require_intact()

    del value["manifest_sha256"]
    path.write_text(json.dumps(value))
    assert Bundle.open(bundle.path).damaged_files() == {"bundle.json": "carries no manifest_sha256"}
    path.write_text("{")
    assert "not valid JSON" in bundle.damaged_files()["bundle.json"]
    path.unlink()
    assert "No such file" in bundle.damaged_files()["bundle.json"]


MALFORMED: list[tuple[str, Any, str]] = [
    ("schema_version", 99, "schema version 99"),
    ("schema_version", True, "schema version True"),
    *(
        (name, value, f"{name} must be a whole number of at least 1")
        for name in ("batch", "opset", "ir_version", "static_macs")
        for value in (0, -1, True, 1.0, "1", None)
    ),
    ("input_size", [1, 2, 3], "input_size must be a list of 2"),
    ("input_size", [32, 0], r"input_size\[1\] must be"),
    ("input_size", "32", "input_size must be a list"),
    ("target", 3, "target must be a non-empty text"),
    ("precision", "", "precision must be a non-empty text"),
    ("inputs", [], "inputs must be a list that is not empty"),
    ("outputs", [], "outputs must be a list that is not empty"),
    ("inputs.0.dtype", 1, r"inputs\[0\]\.dtype must be"),
    ("inputs.0.shape", [1, 3, 0, 16], r"inputs\[0\]\.shape\[2\] must be"),
    ("outputs.0.shape", [], r"outputs\[0\]\.shape must be a list that is not empty"),
    ("outputs.0.name", "input", "inputs, outputs and masks name 'input' twice"),
    ("masks", [{"surprise": 1}], r"masks\[0\]\.kind is missing"),
    ("masks", {}, "masks must be a list"),
    ("masks.0.kind", "temporal", r"masks\[0\]\.kind must be one of spatial, channel, layer"),
    ("masks.0.shape", [1, 2], r"masks\[0\]\.shape must be of rank 4"),
    ("masks.0.name", "logits", "name 'logits' twice"),
    ("operators.0.version", 0, r"operators\[0\]\.version must be"),
    ("operators.0", None, r"operators\[0\] must be an object"),
    ("network.granularity", [2, 0], r"network\.granularity\[1\] must be"),
    ("network.num_classes", 0, r"network\.num_classes must be"),
    ("network.options", [], r"network\.options must be an object"),
    ("network.checkpoint_sha256", "abc", r"network\.checkpoint_sha256 must be a SHA-256"),
    ("preprocessing.mean", [0.5, 0.5], r"preprocessing\.mean must be a list of 3"),
    ("preprocessing.std", [0.5, 0, 0.5], r"preprocessing\.std must be positive"),
    ("preprocessing.mean", [0, 0, float("nan")], r"preprocessing\.mean\[2\] must be a finite number"),
    ("preprocessing.mean", [0, 0, 10**400], r"preprocessing\.mean\[2\] must be a finite number"),
    ("preprocessing.resize", "16", r"preprocessing\.resize must be"),
    ("reference.images", 0, r"reference\.images must be"),
    ("reference.rates", {"mask/a": 1.5}, r"reference\.rates\['mask/a'\] must be a finite number in \[0, 1\]"),
    ("reference.flops_ratio", -0.1, r"reference\.flops_ratio must be"),
    ("network_spec", [], "network_spec must be an object"),
    ("files", {"model.onnx": "00"}, r"files\['model\.onnx'\] must be a SHA-256"),
    ("files", {"../../etc/passwd": "0" * 64}, "a path inside the bundle"),
    ("files", {"/etc/passwd": "0" * 64}, "a path inside the bundle"),
    ("files", {}, r"files lists no checksum of model\.onnx, reference\.npz, static\.onnx"),
    ("tools", {"torch": 2}, r"tools\['torch'\] must be"),
    ("notes", "none", "notes must be a list"),
]


def put(value: dict[str, Any], place: str, item: Any) -> dict[str, Any]:
    value = copy.deepcopy(value)
    *path, last = (int(part) if part.isdigit() else part for part in place.split("."))
    inner: Any = value
    for part in path:
        inner = inner[part]
    inner[last] = item
    return value


@pytest.mark.parametrize(("place", "item", "message"), MALFORMED)
def test_malformed_manifest(bundle: Bundle, place: str, item: Any, message: str) -> None:
    value = put(manifest_of(bundle.path), place, item)
    (bundle.path / "bundle.json").write_text(json.dumps(value))
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path)


def test_every_missing_field_is_named(bundle: Bundle) -> None:
    value = bundle.manifest.to_json()
    sections = {"network", "preprocessing", "reference"}
    for key in value.keys() - {"schema_version"}:
        with pytest.raises(BundleError, match=f"malformed: {key} is missing"):
            Manifest.from_json({name: item for name, item in value.items() if name != key})
        for inner in value[key].keys() - {"class_names"} if key in sections else ():
            section = {name: item for name, item in value[key].items() if name != inner}
            with pytest.raises(BundleError, match=rf"malformed: {key}\.{inner} is missing"):
                Manifest.from_json({**value, key: section})


def test_operators_are_unique(bundle: Bundle) -> None:
    value = bundle.manifest.to_json()
    value["operators"][1]["node"] = value["operators"][0]["node"]
    with pytest.raises(BundleError, match=r"operators name .* twice"):
        Manifest.from_json(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_field_is_a_bundle_error_or_valid(written: Path, data: st.DataObject) -> None:
    value = manifest_of(written)
    container: Any = value
    while True:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        key = data.draw(st.sampled_from(keys))
        inner = container[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        container = inner
    container[key] = data.draw(JSON)
    try:
        manifest = Manifest.from_json(value)
    except BundleError:
        return
    assert Manifest.from_json(manifest.to_json()).batch >= 1


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "static.onnx"])
def test_a_file_without_a_checksum_is_refused(bundle: Bundle, name: str) -> None:
    value = manifest_of(bundle.path)
    del value["files"][name]
    (bundle.path / "bundle.json").write_text(json.dumps(sealed(value)))
    with pytest.raises(BundleError, match=f"no checksum of {name}"):
        Bundle.open(bundle.path)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="Cannot open"):
        Bundle.open(tmp_path / ("x" * 5000))
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(tmp_path / "file")
    (tmp_path / "bundle.json").write_text("{ not json")
    with pytest.raises(BundleError, match="not valid JSON"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK broken", b"PK\x03\x04" + b"\0" * 40, b"\x93NUMPY", b"text"])
def test_unreadable_reference(bundle: Bundle, content: bytes) -> None:
    (bundle.path / "reference.npz").write_bytes(content)
    with pytest.raises(BundleError, match="Cannot read"):
        bundle.reference()


def test_reference_of_another_kind(bundle: Bundle) -> None:
    path = bundle.path / "reference.npz"
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(BundleError, match="single array"):
        bundle.reference()
    np.savez(path, input=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleError, match="Cannot read"):
        bundle.reference()
    path.unlink()
    with pytest.raises(BundleError, match="Cannot read"):
        bundle.reference()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_flipped_byte_of_the_reference_is_a_bundle_error_or_harmless(
    bundle: Bundle, save: Callable[..., None]
) -> None:
    path = bundle.path / "reference.npz"
    save(path, input=np.arange(12, dtype=np.float32).reshape(3, 4))
    content = path.read_bytes()
    failures = 0
    for index in range(len(content)):
        for bits in (1, 0xFF):
            path.write_bytes(content[:index] + bytes([content[index] ^ bits]) + content[index + 1 :])
            try:
                bundle.reference()
            except BundleError:
                failures += 1
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(BundleError):
            bundle.reference()
    assert failures > len(content) // 2


def test_graphs_are_read(bundle: Bundle) -> None:
    assert len(bundle.load_model().functions) > 0
    assert len(bundle.load_static().functions) == 0
    assert [item.name for item in bundle.load_static().graph.output] == ["logits"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"text", None])
def test_unreadable_graphs(bundle: Bundle, content: bytes | None) -> None:
    assert bundle.static is not None
    for path, load in ((bundle.model, bundle.load_model), (bundle.static, bundle.load_static)):
        half = path.read_bytes()[: path.stat().st_size // 2]
        path.write_bytes(half)
        with pytest.raises(BundleError, match=f"Cannot read .*{path.name}"):
            load()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BundleError, match=f"Cannot read .*{path.name}"):
            load()


def test_no_static_twin(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="--static"):
        tiny_bundle(tmp_path / "b", static=False).load_static()
