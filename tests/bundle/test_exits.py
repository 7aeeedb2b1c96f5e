"""Stages and thresholds in the manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyndeploy.bundle import MANIFEST, Bundle, Manifest
from dyndeploy.errors import BundleError, UsageError
from tests.bundles import tiny_bundle
from tests.staged_bundles import EXITS, THRESHOLDS, staged_bundle


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return staged_bundle(tmp_path_factory.mktemp("staged") / "b")


def test_round_trip(written: Bundle) -> None:
    manifest = written.manifest
    text = json.dumps(manifest.to_json(), allow_nan=False)
    assert Manifest.from_json(json.loads(text)) == manifest
    assert json.loads(text)["exits"]["thresholds"]["fp32"]["values"] == [0.5, 0.4, None]
    assert [stage.exit for stage in written.exits.stages] == list(EXITS)
    assert [path.name for path in written.stages] == ["stage0.onnx", "stage1.onnx", "stage2.onnx"]
    assert len(written.load_stages()) == 3
    assert written.branched is None
    assert written.damaged_files() == {}


def test_thresholds_are_written_and_sealed(tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "b", thresholds=None)
    assert bundle.exits.thresholds == {}
    fp16 = replace(THRESHOLDS, values=(0.7, 0.6, -np.inf), accuracy=None)
    changed = bundle.with_thresholds("fp32", THRESHOLDS).with_thresholds("fp16", fp16)
    assert changed.exits.thresholds == {"fp32": THRESHOLDS, "fp16": fp16}
    assert Bundle.open(bundle.path).manifest == changed.manifest
    assert changed.damaged_files() == {}, "the manifest carries its own checksum"
    assert changed.with_thresholds("fp16", THRESHOLDS).exits.thresholds["fp16"] == THRESHOLDS
    for values in ((0.5, -np.inf), (0.5, 0.5, 0.5), (np.inf, 0.5, -np.inf)):
        with pytest.raises(UsageError):
            bundle.with_thresholds("fp32", replace(THRESHOLDS, values=values))
    content = json.loads((bundle.path / MANIFEST).read_text())
    content["exits"]["thresholds"]["fp32"]["values"][0] = 0.9
    (bundle.path / MANIFEST).write_text(json.dumps(content))
    assert "checksum" in Bundle.open(bundle.path).damaged_files()[MANIFEST]


def test_two_writers_lose_nothing_of_each_other(tmp_path: Path) -> None:
    one, two = (staged_bundle(tmp_path / "b", thresholds=None), Bundle.open(tmp_path / "b"))
    one.with_thresholds("fp32", THRESHOLDS)
    assert set(two.with_thresholds("fp16", THRESHOLDS).exits.thresholds) == {"fp32", "fp16"}
    shutil.rmtree(tmp_path / "b")
    other = staged_bundle(tmp_path / "b", batch=2, thresholds=None)
    with pytest.raises(BundleError, match=r"Another bundle was written.*nothing was stored"):
        two.with_thresholds("fp32", THRESHOLDS)
    assert Bundle.open(other.path).manifest == other.manifest


def test_networks_without_exits_are_as_before(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    assert "exits" not in bundle.manifest.to_json()
    assert bundle.manifest.exits is None
    for use in (lambda: bundle.exits, lambda: bundle.stages, lambda: bundle.with_thresholds("fp32", THRESHOLDS)):
        with pytest.raises(UsageError, match="has no exits"):
            use()


def test_a_step_for_one_graph_is_refused_with_what_to_do(written: Bundle) -> None:
    for use in (lambda: written.model, written.load_model):
        with pytest.raises(UsageError, match=r"exits early.*dyndeploy run"):
            use()
    with pytest.raises(BundleError, match="--graph if"):
        written.load_branched()


BAD: tuple[tuple[str, Any, str], ...] = (
    ("stages", [], r"exits\.stages must be a list that is not empty"),
    ("stages.0.exit", 2, r"exits\.stages must be in order"),
    ("stages.1.file", "stage0.onnx", "name 'stage0.onnx' twice"),
    ("stages.0.macs", 0, r"exits\.stages\[0\]\.macs"),
    ("stages.1.inputs.0.name", "x9", r"exits\.stages\[1\] must be a stage whose inputs earlier stages carry \(x9"),
    ("stages.1.inputs.0.shape", [1, 3, 8, 8], r"\(x1 differ\)"),
    ("stages.0.outputs.0.name", "scores", r"must be logits \.\.\. confidence"),
    ("thresholds.fp32.values", [0.5, None, None], "numbers, and null"),
    ("thresholds.fp32.values", [0.5, 0.4, 0.3], "numbers, and null"),
    ("thresholds.fp32.values", [0.5, None], "a list of 3"),
    ("thresholds.fp32.exit_shares", [0.5, 0.5, 1.5], r"exit_shares\[2\]"),
    ("dynamic_batch", 1, "true or false"),
    ("disabled", [0], r"disabled\[0\]"),
)


@pytest.mark.parametrize(("place", "value", "message"), BAD)
def test_a_malformed_manifest_is_named(place: str, value: Any, message: str, written: Bundle) -> None:
    content = json.loads(json.dumps(written.manifest.to_json()))
    item = content["exits"]
    *path, last = (int(key) if key.isdigit() else key for key in place.split("."))
    for key in path:
        item = item[key]
    item[last] = value
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(content)


def test_a_stage_without_checksum_is_no_bundle(tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "b")
    content = json.loads((bundle.path / MANIFEST).read_text())
    del content["files"]["stage1.onnx"]
    (bundle.path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"no checksum of stage1\.onnx"):
        Bundle.open(bundle.path)
