"""Pictures of detections: where boxes are drawn, what of a mask lies over the image, and average precisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dyndeploy.bundle import MaskInfo
from dyndeploy.inference import DetectionResult
from dyndeploy.measure import Profile
from dyndeploy.reporting import ReportExtras, detection_gallery, mask_overlay, precision_table, render_report
from dyndeploy.reporting.gallery import GalleryItem, data_uri, group_grid
from dyndeploy.tasks.coco import AveragePrecision, ClassPrecision
from dyndeploy.tasks.detection import Detections
from dyndeploy.tasks.drawing import colour

GREY = (96, 96, 96)
SPATIAL = MaskInfo("mask/layer1.0/spatial", "layer1.0", "spatial", (1, 1, 4, 4))
CHANNEL = MaskInfo("mask/layer1.0/channel", "layer1.0", "channel", (1, 6))
BLOCK = MaskInfo("mask/layer2.0/layer", "layer2.0", "layer", (1, 1, 1, 1))
DULL = MaskInfo("mask/layer3.0/spatial", "layer3.0", "spatial", (1, 1, 4, 4))


def result(seed: int = 0, **changes: Any) -> DetectionResult:
    """A grey image of 96 x 64 in an input of 96 x 96, with padding below it: one sure detection, one unsure one."""
    rng = np.random.default_rng(seed)
    boxes = np.array([[0, 0, 48, 32], [48, 32, 96, 64]], np.float32)
    masks = {
        SPATIAL.name: rng.integers(0, 2, (1, 1, 4, 4)).astype(np.float32),
        CHANNEL.name: np.array([[1, 0, 1, 0, 1, 0]], np.float32),
        BLOCK.name: np.ones((1, 1, 1, 1), np.float32),
        DULL.name: np.ones((1, 1, 4, 4), np.float32),
    }
    values: dict[str, Any] = {
        "image": "photos/a.png", "width": 96, "height": 64, "category_ids": (1, 2), "ms": 1.0, "host_ms": 0.5,
        "detections": Detections(boxes, np.array([0.9, 0.1], np.float32), np.array([1, 0])),
        "input_size": (96, 96), "resized": (64, 96), "rates": {}, "masks": masks, "operators": None, "runtime": {},
        "pixels": np.full((64, 96, 3), 128, np.uint8),
    }  # fmt: skip
    return DetectionResult(**values | changes)


@pytest.mark.vision("cv2")
def test_what_is_found_beside_what_is_computed() -> None:
    found = result()
    items = detection_gallery([found], [SPATIAL, CHANNEL, BLOCK, DULL], ["cat", "dog"], blocks=2)
    # A block that is always computed and one that computes everything show nothing.
    spatial, channel = items
    assert "; layer1.0, spatial mask: " in spatial.caption and "; layer1.0, channel mask: " in channel.caption
    assert spatial.caption.startswith("a.png: 1 detection; ")
    assert spatial.image.shape == spatial.overlay.shape == channel.overlay.shape == (256, 384, 3)
    # The sure one is framed in its class's colour, the unsure one is not drawn.
    assert tuple(spatial.image[127, 150]) == colour(1)
    assert (spatial.image[130:, 200:] == 128).all()
    # The image fills two thirds of the mask's rows, which do not end where a patch ends.
    mask = found.masks[SPATIAL.name][0, 0]
    for row, column in ((0, 0), (0, 3), (1, 1), (2, 2)):
        y, x = round((row + 0.3) * 256 / (4 * 64 / 96)), round((column + 0.5) * 384 / 4)
        computed = tuple(spatial.overlay[y, x]) == (128, 128, 128)
        assert computed == (mask[row, column] > 0.5), (row, column)
    share = mask[:3].mean()
    assert f"spatial mask: {share:.0%} computed" in spatial.caption and "channel mask: 50% computed" in channel.caption


@pytest.mark.vision("cv2")
def test_a_network_without_masks_shows_what_it_finds() -> None:
    [item] = detection_gallery([result(masks={})], [], ["cat", "dog"])
    assert item.caption == "a.png: 1 detection" and (item.overlay == 128).all() and (item.image != 128).any()


def test_padding_is_no_part_of_an_overlay() -> None:
    image = np.full((40, 40, 3), 128, np.uint8)
    mask = np.zeros((4, 4), np.float32)
    mask[:2, :2] = 1
    # Where the image fills a quarter of the input, all of it is computed.
    whole = mask_overlay(image, mask, (0.5, 0.5))
    assert (whole[2:-2, 2:-2] == 128).all()
    quarter = mask_overlay(image, mask)
    assert (quarter[2:18, 2:18] == 128).all() and (quarter[22:] < 128).all()


def test_groups_are_cells() -> None:
    grid = group_grid(np.zeros((40, 60, 3), np.uint8), np.array([1, 0, 0, 0, 0, 1], np.float32))
    assert grid.shape == (40, 60, 3)
    orange = (grid == (230, 159, 0)).all(-1)
    assert orange[10, 10] and orange[30, 50] and orange.mean() == pytest.approx(2 / 6, abs=0.05)
    # Five groups in a grid of six places leave one empty.
    assert (group_grid(np.zeros((40, 60, 3), np.uint8), np.ones(5, np.float32))[30, 50] == 255).all()


def test_average_precisions_are_a_table_and_photographs_are_small(profile: Profile) -> None:
    classes = (ClassPrecision("cat", 0.25, 0.5, 0.1, 3), ClassPrecision("<dog>", None, None, None, 0))
    table = precision_table(AveragePrecision(0.25, 0.5, 0.2, None, 0.25, None, classes))
    assert table.rows == [("all classes", "3", "0.250", "0.500", "0.200"), ("cat", "3", "0.250", "0.500", "0.100"),
                          ("<dog>", "0", "-", "-", "-")]  # fmt: skip
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (256, 384, 3), np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg;base64,") and len(data_uri(noise)) < noise.size
    item = GalleryItem(noise, noise, "a.png: 2 detections")
    page = render_report(profile, (), ReportExtras(gallery=(item,), gallery_title="Found & computed", tables=(table,)))
    for text in ("Found &amp; computed", 'class="gallery wide"', "&lt;dog&gt;", "a.png: 2 detections", "precision.csv"):
        assert text in page
    small = ReportExtras(gallery=(GalleryItem(noise[:8, :8], noise[:8, :8], "small"),))
    assert 'class="gallery"' in render_report(profile, (), small)
