"""What a manifest says of a detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.bundle import BucketInfo, DetectionInfo, Manifest, TensorInfo
from dyndeploy.errors import BundleError, UsageError
from dyndeploy.tasks.detection import DetectionTask
from tests.bundles import SIZE, tiny_bundle

NAMES = tuple(f"class {index}" for index in range(10))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    base = tiny_bundle(tmp_path / "b").manifest
    info = DetectionInfo(
        classes=NAMES,
        category_ids=tuple(range(1, 11)),
        size=(1333, 800),
        divisor=8,
        mean=(1.0, 2.0, 3.0),
        std=(4.0, 5.0, 6.0),
        detections=7,
        score_threshold=0.05,
        masks=False,
        rounding=True,
        decoding="boxes",
        mask_stride=4,
        host=("resize",),
        buckets=(BucketInfo((SIZE, SIZE)), BucketInfo((8, 24), "8x24")),
    )
    return replace(
        base,
        network=replace(base.network, class_names=NAMES),
        preprocessing=None,
        inputs=(TensorInfo("input", (1, 3, SIZE, SIZE), "float32"), TensorInfo("image_size", (1, 2), "float32")),
        outputs=(
            TensorInfo("boxes", (1, 7, 4), "float32"),
            TensorInfo("scores", (1, 7), "float32"),
            TensorInfo("labels", (1, 7), "int64"),
            TensorInfo("count", (1,), "int64"),
        ),
        detection=info,
    )


def test_it_is_read_as_it_was_written(manifest: Manifest, tmp_path: Path) -> None:
    written = manifest.to_json()
    assert written["task"] == manifest.task == "detection"
    assert Manifest.from_json(written) == manifest
    assert manifest.detector().task() == DetectionTask((1333, 800), 8, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), detections=7)
    with pytest.raises(UsageError, match="is a detector: images of any size"):
        manifest.images()


def test_other_bundles_say_nothing_of_it(tmp_path: Path) -> None:
    manifest = tiny_bundle(tmp_path / "b").manifest
    assert manifest.task == "classification" and not {"task", "detection"} & set(manifest.to_json())
    with pytest.raises(UsageError, match="tiny is no detector"):
        manifest.detector()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda value: value["detection"].update(classes=["other"]), "detection.classes"),
        (lambda value: value["detection"].update(category_ids=[1, 2]), "detection.category_ids"),
        (lambda value: value["detection"].update(divisor=0), "detection.divisor"),
        (lambda value: value["detection"].update(std=[1, 0, 1]), "detection.std"),
        (lambda value: value["detection"].update(masks=True), "outputs"),
        (lambda value: value["outputs"].reverse(), "outputs"),
        (lambda value: value["inputs"].pop(), "inputs"),
        (lambda value: value["detection"]["buckets"].reverse(), "detection.buckets"),
        (lambda value: value["detection"]["buckets"][1].update(folder="../8x24"), "detection.buckets"),
        (lambda value: value["detection"]["buckets"].append({"size": [8, 24], "folder": "8x24"}), "detection.buckets"),
        (lambda value: value["detection"].pop("host"), "detection.host"),
    ],
)
def test_what_does_not_belong_together_is_named(manifest: Manifest, change: Callable[[Any], Any], place: str) -> None:
    import json

    value = json.loads(json.dumps(manifest.to_json()))
    change(value)
    with pytest.raises(BundleError, match=place.replace(".", r"\.")):
        Manifest.from_json(value)
