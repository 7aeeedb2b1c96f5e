"""Bundles that stay open and take images in memory."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dyndeploy
from dyndeploy.errors import BundleError, DyndeployError, UsageError
from dyndeploy.inference import classify, open_bundle
from tests.bundles import tiny_bundle
from tests.detectors import detector_bundle, one_worker, photographs

vision = pytest.mark.vision("torchvision", "cv2")


def test_arrays_are_classified_as_files_are(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", batch=2)
    rng = np.random.default_rng(0)
    paths, images = [], []
    for index, shape in enumerate([(20, 31, 3), (40, 17, 3), (16, 16, 3)]):
        images.append(rng.integers(0, 256, shape, np.uint8))
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(images[-1]).save(paths[-1])
    expected = classify(bundle, paths)
    with dyndeploy.open_bundle(bundle) as session:
        found = session.classify(images)
        again = session.classify(images[1:2])
        assert session.buckets == ()
        with pytest.raises(UsageError, match="tiny is no detector"):
            session.detect(images)
    assert [(each.image, each.label, each.confidence) for each in found] == [
        (str(index), each.label, each.confidence) for index, each in enumerate(expected)
    ]
    assert again[0].label == found[1].label
    with pytest.raises(DyndeployError, match="The session is closed"):
        session.classify(images)
    session.close()


def test_what_is_no_bundle_or_no_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        open_bundle(tmp_path)
    with pytest.raises(UsageError, match="runtime"):
        open_bundle(tiny_bundle(tmp_path / "b"), runtime="onnx")


@vision
@one_worker
def test_each_image_runs_at_the_smallest_size_that_holds_it(caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "dyndeploy.inference"]

    wide = photographs()[0]
    tall = np.ascontiguousarray(np.rot90(wide))
    with dyndeploy.open_bundle(detector_bundle("retinanet").path, threads=1) as session, caplog.at_level(logging.INFO):
        assert session.buckets == ((128, 128), (96, 128))
        found = list(session.detect_each([wide, tall, wide]))
        assert [(each.bucket, each.resized) for each in found] == [
            ((96, 128), (85, 128)),
            ((128, 128), (128, 85)),
            ((96, 128), (85, 128)),
        ]
        assert not told()
        np.testing.assert_array_equal(found[0].detections.boxes, found[2].detections.boxes)
        assert set(found[0].rates) == {mask.name for mask in session.bundle.manifest.masks}
        assert all(each.ms > 0 and each.host_ms > 0 for each in found)
        boxes = found[1].detections.boxes
        assert boxes[:, 2].max() <= tall.shape[1] and boxes[:, 3].max() <= tall.shape[0]
        # What is too large for all of them is resized further, which is said once.
        larger = list(session.detect_each([wide, wide], size=(256, 256)))
        assert [(each.bucket, each.resized) for each in larger] == [((96, 128), (85, 128))] * 2
        assert told() == [
            "an image of 427x640 pixels fits none of the sizes that laud_retinanet_small was exported at (128x128, "
            "96x128): such images are resized further. Export it with --input-size 192x256 as well, and they are not"
        ]
        assert session.detect([]) == []
        with pytest.raises(UsageError, match=r"gives no logits.*Use detect\(\)"):
            session.classify([wide])


@vision
@one_worker
def test_masks_are_in_the_pixels_of_the_image() -> None:
    image = photographs()[1]
    with dyndeploy.open_bundle(detector_bundle("mask_rcnn")) as session:
        (found,) = session.detect([image])
    assert found.masks is not None and found.masks.shape == (len(found), *image.shape[:2])
    for box, mask in zip(found.boxes, found.masks, strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows):
            assert box[0] - 1 <= columns.min() and columns.max() <= box[2] + 1
            assert box[1] - 1 <= rows.min() and rows.max() <= box[3] + 1
