from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dyndeploy.data import sample_photographs
from dyndeploy.errors import BundleError, NotFiniteError, UsageError
from dyndeploy.tasks import detection
from dyndeploy.tasks.detection import Detections, DetectionTask, Placement, box_iou, compare, mask_iou, paste_masks

TASK = DetectionTask()


def detections(*rows: tuple[float, ...], masks: np.ndarray | None = None) -> Detections:
    """Rows of x1, y1, x2, y2, score, label."""
    table = np.asarray(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5], masks)


@pytest.mark.parametrize(
    ("image", "size", "bucket", "wanted"),
    [
        ((427, 640), None, None, (800, 1199)),
        ((427, 640), (480, 320), None, (320, 480)),
        ((427, 640), (320, 480), None, (320, 480)),
        ((427, 640), (321, 215), None, (214, 321)),
        ((640, 427), None, None, (1199, 800)),
        ((8000, 50), None, None, (1333, 8)),
        ((1, 8000), None, None, (1, 1333)),
        ((1, 1), None, None, (800, 800)),
        ((427, 640), None, (800, 1344), (800, 1199)),
        ((640, 427), None, (800, 1344), (800, 534)),
        ((427, 640), None, (320, 320), (214, 320)),
    ],
)
def test_sizes_after_resizing(
    image: tuple[int, int], size: tuple[int, int] | None, bucket: tuple[int, int] | None, wanted: tuple[int, int]
) -> None:
    assert TASK.resized(*image, size, bucket) == wanted


def test_a_resized_image_never_exceeds_its_bucket() -> None:
    rng = np.random.default_rng(0)
    for height, width, down, right in rng.integers(1, 3000, (500, 4)).tolist():
        inside = TASK.resized(height, width, (4000, 4000), (down, right))
        assert inside[0] <= down and inside[1] <= right
        assert inside[0] == down or inside[1] == right


@pytest.mark.parametrize(
    ("image", "size", "wanted"),
    [
        ((427, 640), None, ((800, 1344), True)),
        ((640, 427), None, ((1344, 800), True)),
        ((427, 640), (480, 320), ((320, 480), True)),
        ((640, 427), (480, 320), ((800, 1344), True)),
        ((427, 640), (2000, 1400), ((800, 1344), False)),
        ((640, 427), (2000, 1400), ((1344, 800), False)),
    ],
)
def test_the_smallest_input_that_holds_an_image_is_chosen(
    image: tuple[int, int], size: tuple[int, int] | None, wanted: tuple[tuple[int, int], bool]
) -> None:
    assert TASK.bucket(*image, [(800, 1344), (1344, 800), (320, 480)], size) == wanted


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(UsageError, match="no side may be below 1"):
        TASK.resized(427, 640, (0, 800))
    with pytest.raises(UsageError, match="in 0x32"):
        TASK.resized(427, 640, bucket=(0, 32))


@pytest.mark.vision("cv2")
def test_an_input_is_that_of_the_reference() -> None:
    # Mean, standard deviation, largest magnitude and first sample that mmdetection 2.21's pipeline gives for the two
    # photographs at (480, 320).
    wanted = {
        "china.jpg": (0.5059229044070324, 1.4807312744221155, 2.640000104904175, 0.8618031740188599),
        "flower.jpg": (-0.9128579998706351, 1.0601289846225572, 2.231783390045166, -2.0836544036865234),
    }
    for path in sample_photographs():
        feeds, placement = TASK.prepare(Image.open(path), size=(480, 320))
        values = feeds["input"].astype(np.float64)
        found = (values.mean(), values.std(ddof=1), np.abs(values).max(), values.flat[0])
        assert found == pytest.approx(wanted[path.name], rel=1e-11)
        assert feeds["input"].shape == (1, 3, 320, 480) and feeds["input"].flags.c_contiguous
        assert feeds["image_size"].tolist() == [[320, 480]] and feeds["image_size"].dtype == np.float32
        assert placement == Placement(427, 640, (320, 480))
        assert placement.scale == pytest.approx((0.75, 320 / 427))


@pytest.mark.vision("cv2")
@pytest.mark.parametrize(("bucket", "shape"), [(None, (224, 352)), ((256, 320), (256, 320))])
def test_padding_is_zero_after_normalising(bucket: tuple[int, int] | None, shape: tuple[int, int]) -> None:
    image = np.full((213, 321, 3), 255, np.uint8)
    feeds, placement = TASK.prepare(image, bucket, size=(321, 213))
    height, width = placement.resized
    values = feeds["input"][0]
    assert values.shape == (3, *shape)
    white = (255 - np.array(TASK.mean)) / TASK.std
    wanted = np.broadcast_to(white[:, None, None], (3, height, width))
    np.testing.assert_allclose(values[:, :height, :width], wanted, rtol=1e-6)
    assert not values[:, height:].any() and not values[:, :, width:].any()


@pytest.mark.vision("cv2")
@pytest.mark.parametrize("shape", [(1, 1), (8000, 50), (3, 40000), (1, 2)])
def test_odd_images_are_prepared(shape: tuple[int, int]) -> None:
    feeds, placement = TASK.prepare(np.full((*shape, 3), 9, np.uint8))
    assert min(feeds["input"].shape) >= 1 and max(placement.resized) <= 1333
    assert np.ptp(feeds["input"][0, 0, : placement.resized[0], : placement.resized[1]]) == 0


def test_an_image_of_its_final_size_needs_no_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    image = np.zeros((32, 64, 3), np.uint8)
    feeds, _ = TASK.prepare(image, size=(64, 32))
    assert feeds["input"].shape == (1, 3, 32, 64)
    with pytest.raises(UsageError, match=r"OpenCV.*pip install 'dyndeploy\[detection\]'"):
        TASK.prepare(image)


def outputs(**changed: np.ndarray) -> dict[str, np.ndarray]:
    found = {
        "boxes": np.array([[[3, 8, 30, 40], [0, 0, 48, 32], [0, 0, 0, 0]]], np.float32),
        "scores": np.array([[0.9, 0.8, 0]], np.float32),
        "labels": np.array([[4, 2, 0]]),
        "count": np.array([2]),
        "masks": np.ones((1, 3, 28, 28), np.float32),
    }
    return found | changed


def test_outputs_are_decoded_into_the_images_own_pixels() -> None:
    placement = Placement(63, 95, (32, 48))
    found = DetectionTask(masks=True).decode(outputs(), placement)
    assert found.labels.tolist() == [4, 2] and found.scores.tolist() == pytest.approx([0.9, 0.8])
    sx, sy = 95 / 48, 63 / 32
    np.testing.assert_allclose(found.boxes, [[3 * sx, 8 * sy, 30 * sx, 63], [0, 0, 95, 63]], rtol=1e-6)
    assert found.boxes.max() <= 95
    assert found.masks is not None and found.masks.shape == (2, 63, 95) and found.masks.dtype == np.bool_
    rows, columns = np.nonzero(found.masks[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 62, 6, 58)
    plain = TASK.decode(outputs(), placement)
    assert plain.masks is None and len(plain) == 2


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"count": np.array([4])}, BundleError, "says 4 of 3"),
        ({"boxes": np.zeros((1, 2, 4), np.float32)}, BundleError, r"'boxes' has the shape \(1, 2, 4\)"),
        ({"masks": np.zeros((1, 3, 28), np.float32)}, BundleError, "'masks' has the shape"),
        ({"scores": np.array([[0.9, np.nan, 0]], np.float32)}, NotFiniteError, "'scores' holds 1 NaN"),
    ],
)
def test_outputs_that_are_none_are_refused(changed: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DetectionTask(masks=True).decode(outputs(**changed), Placement(32, 48, (32, 48)))


def test_a_missing_output_is_named() -> None:
    without = outputs()
    del without["masks"]
    with pytest.raises(BundleError, match="masks is missing"):
        DetectionTask(masks=True).decode(without, Placement(32, 48, (32, 48)))


def grid_sampled(probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values at all pixels of the image, as mmdetection samples them, in PyTorch."""
    rows, columns = torch.arange(height).float() + 0.5, torch.arange(width).float() + 0.5
    values = []
    for mask, (x1, y1, x2, y2) in zip(torch.from_numpy(probabilities), torch.from_numpy(boxes), strict=True):
        x = (columns - x1) / (x2 - x1) * 2 - 1
        y = (rows - y1) / (y2 - y1) * 2 - 1
        x, y = (torch.where(torch.isinf(axis), 0, axis) for axis in (x, y))
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
        values.append(torch.nn.functional.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0])
    return torch.stack(values).numpy()


def test_masks_are_pasted_as_grid_sample_does() -> None:
    rng = np.random.default_rng(3)
    wrong = pixels = 0
    for height, width in ((50, 70), (1, 1), (7, 300), (211, 97)):
        corners = rng.uniform(-20, max(height, width) + 20, (60, 4)).astype(np.float32)
        boxes = np.concatenate([corners.reshape(-1, 2, 2).min(1), corners.reshape(-1, 2, 2).max(1)], 1)
        boxes[:10, 2:] = boxes[:10, :2] + rng.uniform(0.01, 2, (10, 2)).astype(np.float32)
        values = rng.uniform(0, 1, (60, 28, 28)).astype(np.float32)
        wanted = grid_sampled(values, boxes, height, width)
        found = paste_masks(values, boxes, height, width)
        differ = found != (wanted >= 0.5)
        assert np.abs(wanted[differ] - 0.5).max(initial=0) < 1e-5, "only where rounding decides"
        wrong, pixels = wrong + differ.sum(), pixels + found.sum()
    assert pixels > 90_000 and wrong < 5


def test_boxes_without_extent_take_the_middle_of_the_mask() -> None:
    values = np.zeros((2, 28, 28), np.float32)
    values[:, 13:15, :] = 1
    boxes = np.array([[5.25, 2, 5.25, 30], [10, 3, 10, 3]], np.float32)
    found = paste_masks(values, boxes, 32, 32)
    # The window around x = 5.25 is [4, 7); of the height 2-30 the two middle cells are rows 15 and 16.
    assert np.argwhere(found[0]).tolist() == [[row, column] for row in (15, 16) for column in (4, 5, 6)]
    assert np.argwhere(found[1]).tolist() == [[row, column] for row in (2, 3) for column in (9, 10)]


def test_a_large_image_takes_no_more_than_its_masks() -> None:
    import tracemalloc

    boxes = np.tile(np.array([[100, 100, 300, 250]], np.float32), (20, 1))
    tracemalloc.start()
    found = paste_masks(np.ones((20, 28, 28), np.float32), boxes, 3000, 4000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # At each corner of a box three pixels have more zeros than ones around them.
    assert found.sum() == 20 * (200 * 150 - 4 * 3)
    assert peak < found.nbytes + (1 << 20)


def test_detections_are_checked_and_sorted() -> None:
    masks = np.zeros((3, 2, 2), bool)
    masks[1] = True
    found = detections((0, 0, 1, 1, 0.5, 1), (0, 0, 2, 2, 0.9, 2), (0, 0, 3, 3, 0.5, 3), masks=masks)
    assert found.labels.tolist() == [2, 1, 3] and found.masks is not None and found.masks[0].all()
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
    assert found.select(0.6).labels.tolist() == [2]
    some = found.select(labels=[3, 1])
    assert some.labels.tolist() == [1, 3] and some.masks is not None and some.masks.shape == (2, 2, 2)
    assert len(detections()) == 0 and detections().boxes.shape == (0, 4)
    with pytest.raises(UsageError, match=r"boxes \(n, 4\)"):
        Detections(np.zeros((2, 4)), np.zeros(3), np.zeros(3))
    with pytest.raises(UsageError, match=r"\(1, height, width\), not \(2, 2\)"):
        detections((0, 0, 1, 1, 0.5, 1), masks=np.zeros((2, 2), bool))


def test_coco_results() -> None:
    found = detections((1, 2, 4, 8, 0.5, 1)).to_coco([10, 20], image_id=7)
    assert found == [{"image_id": 7, "category_id": 20, "bbox": [1, 2, 3, 6], "score": 0.5}]
    assert "image_id" not in detections((1, 2, 4, 8, 0.5, 1)).to_coco([10, 20])[0]
    with pytest.raises(UsageError, match="there are 1 categories"):
        detections((1, 2, 4, 8, 0.5, 1)).to_coco([10])
    assert detections().to_coco([]) == []


@pytest.mark.vision("pycocotools")
def test_coco_results_hold_masks() -> None:
    from pycocotools import mask as coco

    mask = np.random.default_rng(0).uniform(size=(1, 9, 13)) > 0.5
    item = json.loads(json.dumps(detections((1, 2, 4, 8, 0.5, 0), masks=mask).to_coco([3])))[0]
    assert item["segmentation"]["size"] == [9, 13]
    assert np.array_equal(coco.decode(item["segmentation"]), mask[0])


def test_overlaps() -> None:
    one = np.array([[0, 0, 4, 4], [1, 1, 1, 3]], np.float32)
    other = np.array([[2, 0, 6, 4], [0, 0, 4, 4], [9, 9, 10, 10]], np.float32)
    np.testing.assert_allclose(box_iou(one, other), [[1 / 3, 1, 0], [0, 0, 0]], rtol=1e-6)
    left, top = np.zeros((2, 4, 4), bool)
    left[:, :2] = top[:2] = True
    assert mask_iou(left, top) == pytest.approx(4 / 12)
    assert mask_iou(left, ~left) == 0 and mask_iou(left & ~left, left & ~left) == 1


BASE = ((0, 0, 10, 10, 0.9, 1), (20, 20, 40, 40, 0.5, 2), (5, 5, 5, 9, 0.5, 3))


def test_partners_keep_the_distance_that_is_asked_for() -> None:
    moved = detections((3, 0, 13, 10, 0.9, 1), (20, 20, 40, 40, 0.51, 2), BASE[2])
    base = detections(*BASE)
    assert compare(moved, base).missed == 0
    near = compare(moved, base, box=2.0)
    assert (near.matched, near.missed, near.extra, near.box) == (2, 1, 1, 0.0)
    sure = compare(moved, base, score=1e-3)
    assert (sure.matched, sure.missed, sure.extra, sure.score) == (2, 1, 1, 0.0)


def test_equal_sets_do_not_differ_whatever_the_order_of_equal_scores() -> None:
    other = detections(BASE[0], BASE[2], BASE[1])
    difference = compare(other, detections(*BASE))
    assert (difference.matched, difference.missed, difference.extra, difference.excused) == (3, 0, 0, 0)
    assert (difference.box, difference.score, difference.mask_iou) == (0, 0, None)


def test_differences_of_partners_are_the_worst_ones() -> None:
    masks = np.zeros((3, 50, 50), bool)
    masks[:, :10, :10] = True
    moved = masks.copy()
    moved[1, 9] = False
    found = detections((0, 0, 10, 10.5, 0.9, 1), (20, 20, 40, 40, 0.48, 2), (5, 5, 5, 9, 0.48, 3), masks=moved)
    difference = compare(found, detections(*BASE, masks=masks))
    assert (difference.matched, difference.missed, difference.extra) == (3, 0, 0)
    assert difference.box == pytest.approx(0.5) and difference.score == pytest.approx(0.02, abs=1e-6)
    assert difference.mask_iou == pytest.approx(0.9)


def test_a_pair_whose_masks_are_apart_is_none() -> None:
    masks = np.zeros((3, 50, 50), bool)
    masks[:, :10, :10] = True
    moved = masks.copy()
    moved[1, 9] = False
    moved[2, 9, 0] = False  # A single pixel is rounding.
    found, base = (detections(*BASE, masks=each) for each in (moved, masks))
    difference = compare(found, base, masks=0.9)
    assert (difference.matched, difference.missed, difference.extra) == (3, 0, 0)
    difference = compare(found, base, masks=0.95)
    assert (difference.matched, difference.missed, difference.extra, difference.mask_iou) == (2, 1, 1, 1.0)
    assert compare(found, base, masks=0.95, threshold=0.5).excused == 2, "its score says why, wherever its mask lies"
    assert compare(detections(*BASE), detections(*BASE), masks=1.0).matched == 3, "boxes alone have no masks"


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ((), (0, 3, 0, 0)),
        (BASE[:2], (2, 1, 0, 0)),
        ((BASE[0], BASE[1], (5, 5, 5, 9, 0.5, 4)), (2, 1, 1, 0)),
        ((*BASE, BASE[0]), (3, 0, 1, 0)),
        (((0, 0, 10, 10, 0.9, 2), *BASE[1:]), (2, 1, 1, 0)),
        (((0, 0, 4, 4, 0.9, 1), *BASE[1:]), (2, 1, 1, 0)),
        (((0, 0, 10, 10, 0.9, 1), BASE[1], (60, 60, 70, 70, 0.3, 3)), (2, 1, 1, 0)),
    ],
)
def test_what_has_no_partner_is_counted(found: tuple[tuple[float, ...], ...], counts: tuple[int, ...]) -> None:
    difference = compare(detections(*found), detections(*BASE))
    assert (difference.matched, difference.missed, difference.extra, difference.excused) == counts


def test_scores_at_the_threshold_are_excused() -> None:
    some = detections(*BASE, (50, 50, 60, 60, 0.05005, 1))
    assert compare(detections(*BASE), some).missed == 1
    near = compare(detections(*BASE), some, threshold=0.05)
    assert (near.missed, near.excused) == (0, 1)
    assert compare(some, detections(*BASE), threshold=0.05).extra == 0
    assert compare(detections(*BASE), some, threshold=0.05, margin=1e-5).missed == 1


def test_a_swap_at_the_end_of_a_full_list_is_excused() -> None:
    found = detections(BASE[0], BASE[1], (60, 60, 70, 70, 0.49995, 3))
    whole = compare(found, detections(*BASE), limit=3)
    assert (whole.matched, whole.missed, whole.extra, whole.excused) == (2, 0, 0, 2)
    assert compare(found, detections(*BASE), limit=4).missed == 1
    assert compare(found, detections(*BASE), limit=3, margin=1e-5).missed == 1
    far = detections(BASE[0], BASE[1], (60, 60, 70, 70, 0.3, 3))
    assert compare(far, detections(*BASE), limit=3).missed == 1, "a score of 0.3 could not displace one of 0.5"


def test_as_many_as_possible_are_matched() -> None:
    # The nearest pair first would leave the second box without a partner.
    expected = detections((0, 0, 10, 10, 0.9, 1), (2, 0, 12, 10, 0.9, 1))
    found = detections((1.1, 0, 11.1, 10, 0.9, 1), (5, 0, 15, 10, 0.9, 1))
    difference = compare(found, expected)
    assert difference.matched == 2 and difference.box == pytest.approx(3)


def test_opencv_and_pycocotools_are_not_imported_with_the_room() -> None:
    assert not {"cv2", "pycocotools"} & set(vars(detection))
