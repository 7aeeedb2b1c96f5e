"""Detections from classes and masks of queries, against PyTorch's resizing and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dyndeploy.errors import BundleError, NotFiniteError, UsageError
from dyndeploy.tasks.detection import DetectionTask, Placement

TASK = DetectionTask(masks=True, decoding="queries", detections=6)


def outputs(seed: int, queries: int = 4, classes: int = 3, cells: tuple[int, int] = (8, 16)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = F.interpolate(torch.from_numpy(rng.normal(size=(2, queries, 2, 3))).float(), size=cells, mode="bicubic")
    return {
        "class_logits": rng.normal(size=(2, queries, classes + 1)).astype(np.float32),
        "mask_logits": smooth.numpy() * 3,
    }


@pytest.mark.parametrize("image", [(41, 83), (20, 37), (29, 60)], ids=["larger", "smaller", "equal"])
def test_masks_are_those_of_two_bilinear_resizings(image: tuple[int, int]) -> None:
    found, placement = outputs(0), Placement(*image, (29, 60))
    detections = TASK.decode(found, placement, row=1)
    whole = F.interpolate(torch.from_numpy(found["mask_logits"][1:]), size=(32, 64), mode="bilinear")
    logits = F.interpolate(whole[:, :, :29, :60], size=image, mode="bilinear")[0].numpy()
    probabilities = torch.from_numpy(found["class_logits"][1]).softmax(-1)[:, :-1].numpy()
    best = np.sort(probabilities.flatten())[::-1][:6]
    expected = []
    for query, label in np.argwhere(probabilities >= best[-1]):
        mask = logits[query] > 0
        mean = (1 / (1 + np.exp(-logits[query][mask]))).sum() / (mask.sum() + 1e-6)
        rows, columns = np.nonzero(mask)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        expected.append((probabilities[query, label] * mean, label, box, mask))
    expected.sort(key=lambda one: -one[0])
    assert len(detections) == len(expected) == 6
    for index, (score, label, box, mask) in enumerate(expected):
        assert detections.scores[index] == pytest.approx(score, abs=1e-6)
        assert detections.labels[index] == label
        np.testing.assert_array_equal(detections.boxes[index], box)
        assert detections.masks is not None
        assert (detections.masks[index] != mask).sum() <= 1


def test_a_query_may_have_several_labels_and_an_empty_mask_has_no_box() -> None:
    classes = np.full((1, 2, 3), -20.0, np.float32)
    classes[0, 0] = (2.0, 2.0, 0.0)
    classes[0, 1, 2] = 5.0
    masks = np.full((1, 2, 2, 2), -1.0, np.float32)
    masks[0, 0] = 1.0
    detections = DetectionTask(masks=True, decoding="queries", detections=3).decode(
        {"class_logits": classes, "mask_logits": masks}, Placement(8, 8, (8, 8))
    )
    assert detections.labels[:2].tolist() == [0, 1]
    share = np.exp(2) / (2 * np.exp(2) + 1)
    probability = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(detections.scores, [share * probability] * 2 + [0], rtol=1e-5)
    np.testing.assert_array_equal(detections.boxes, [[0, 0, 8, 8]] * 2 + [[0] * 4])
    assert detections.masks is not None
    assert detections.masks.sum((1, 2)).tolist() == [64, 64, 0]


def test_what_does_not_fit_is_said() -> None:
    good, placement = outputs(0), Placement(20, 40, (29, 60))
    with pytest.raises(BundleError, match="mask_logits is missing"):
        TASK.decode({"class_logits": good["class_logits"]}, placement)
    with pytest.raises(BundleError, match="do not fit each other"):
        TASK.decode({**good, "mask_logits": good["mask_logits"][:, :3]}, placement)
    with pytest.raises(BundleError, match="do not cover an image of 29x65"):
        TASK.decode(good, Placement(20, 40, (29, 65)))
    good["mask_logits"][0, 0, 0, 0] = np.nan
    with pytest.raises(NotFiniteError, match="mask_logits"):
        TASK.decode(good, placement)
    with pytest.raises(UsageError, match="decoding"):
        DetectionTask(decoding="panoptic")


@pytest.mark.vision("cv2")
def test_resized_pixels_are_rounded_only_where_the_task_says_so() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    whole, exact = (
        DetectionTask(size=(48, 48), divisor=1, rounding=rounding, mean=(0.0,) * 3, std=(1.0,) * 3).prepare(image)[0][
            "input"
        ]
        for rounding in (True, False)
    )
    expected = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None].float(), size=(32, 48), mode="bilinear")
    np.testing.assert_allclose(exact, expected, atol=0.01)
    np.testing.assert_array_equal(whole, whole.round())
    assert 0.3 < np.abs(whole - exact).max() < 1
