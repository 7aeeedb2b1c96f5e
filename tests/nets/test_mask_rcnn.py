"""Mask R-CNN: which of the mask head's maps belongs to a detection, and what the head reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dyndeploy.nets import create_model
from dyndeploy.nets.detection_losses import NOTHING, REGION_WITH_MASK, assigned
from dyndeploy.nets.mask_rcnn import MASK_SIZE

pytestmark = pytest.mark.vision("torchvision")


def narrow(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"size": (64, 64), "pyramid_channels": 8, "tower": 1, "width_mult": 0.2, "hidden": 16, "num_classes": 3}
    return create_model("mask_rcnn_small", **{**sizes, **options}).eval()


def test_the_mask_head_of_the_published_ones() -> None:
    with torch.device("meta"):
        network: Any = create_model("laud_mask_rcnn_resnet50")
    heads = network.roi_heads
    assert network.task.masks
    assert [layer[0].out_channels for layer in heads.mask_head] == [256] * 4
    predictor = heads.mask_predictor
    assert (predictor.conv5_mask.kernel_size, predictor.conv5_mask.stride) == ((2, 2), (2, 2))
    assert predictor.mask_fcn_logits.out_channels == 80
    assert network.mask_logits(torch.empty(5, 256, 14, 14, device="meta")).shape == (5, 80, 28, 28)


def test_a_mask_is_that_of_the_class_that_was_found() -> None:
    network = narrow(detections=4)
    found = (torch.tensor([[8.0, 8, 24, 24]] * 4), torch.tensor([0.9, 0.8, 0.0, 0.0]), torch.tensor([2, 0, 0, 0]),
             torch.tensor(2))  # fmt: skip
    asked: list[tuple[int, int]] = []

    def read(pyramid: Any, boxes: torch.Tensor, size: int) -> torch.Tensor:
        asked.append((len(boxes), size))
        return torch.zeros(len(boxes), 8, size, size)

    network.boxes, network.read = lambda pyramid, size: found, read
    network.mask_logits = lambda regions: torch.arange(3.0).view(1, 3, 1, 1).expand(4, 3, 28, 28)
    *same, masks = network.detected([], torch.tensor([64.0, 64.0]))
    assert asked == [(4, MASK_SIZE)]
    assert all(torch.equal(one, other) for one, other in zip(same, found, strict=True))
    assert masks.shape == (4, 28, 28) and masks.dtype == torch.float32
    assert masks[:, 5, 7].tolist() == pytest.approx(torch.sigmoid(torch.tensor([2.0, 0, 0, 0])).tolist())


def test_of_two_objects_whose_best_region_is_the_same_the_last_takes_it() -> None:
    # Faster R-CNN's rule gives it to the object that it overlaps most.
    objects, regions = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]]), torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 2]])
    assert type(narrow()).region_rule == REGION_WITH_MASK
    assert assigned(objects, regions, REGION_WITH_MASK).tolist() == [1, NOTHING]
    other: Any = create_model("faster_rcnn_small", width_mult=0.2, pyramid_channels=8, hidden=16)
    assert assigned(objects, regions, type(other).region_rule).tolist() == [0, NOTHING]


def test_masks_are_learned_where_there_are_objects_alone() -> None:
    network = narrow().train()
    pyramid = [torch.randn(2, 8, -(-64 // stride), -(-64 // stride)) for stride in network.strides]
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1]),
         "masks": torch.ones(1, 64, 64, dtype=torch.uint8)},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64),
         "masks": torch.zeros(0, 64, 64, dtype=torch.uint8)},
    ]  # fmt: skip
    losses = network.losses(pyramid, torch.tensor([[64.0, 64.0]] * 2), targets)
    assert set(losses) == {"objectness", "rpn_bbox_regression", "classification", "bbox_regression", "mask"}
    losses["mask"].backward()
    rows = network.roi_heads.mask_predictor.mask_fcn_logits.weight.grad.flatten(1).abs().sum(1)
    # The map of the object's class, and no other.
    assert rows[1] > 0 and rows[[0, 2]].tolist() == [0, 0]
