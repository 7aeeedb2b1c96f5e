"""The losses of detectors, worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dyndeploy.nets import create_model
from dyndeploy.nets.detection_losses import (
    MMDETECTION,
    NOTHING,
    PROPOSAL,
    REGION,
    REGION_WITH_MASK,
    RETINANET,
    TORCHVISION,
    UNCLEAR,
    Losses,
    Overlap,
    Regions,
    Sampling,
    assigned,
    focal_losses,
    mask_losses,
    mask_targets,
    matched,
    proposal_losses,
    region_losses,
    sampled,
    sampled_regions,
)

pytestmark = pytest.mark.vision("torchvision")


def coder(deviations: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Any:
    from dyndeploy.nets.detector import box_coder

    return box_coder(deviations)


def target(boxes: list[list[float]], labels: list[int], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64), **more}


# Of the object (0, 0, 10, 10): IoU 1, 0.8, 0.45, 0.2 and 0.
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4.5], [0, 0, 10, 2], [20, 20, 30, 30]])
OBJECT = torch.tensor([[0.0, 0, 10, 10]])


def test_what_belongs_to_an_object() -> None:
    assert assigned(OBJECT, BOXES, RETINANET).tolist() == [0, 0, UNCLEAR, NOTHING, NOTHING]
    assert assigned(OBJECT, BOXES, PROPOSAL).tolist() == [0, 0, UNCLEAR, NOTHING, NOTHING]
    assert assigned(OBJECT, BOXES, REGION).tolist() == [0, 0, NOTHING, NOTHING, NOTHING]
    assert assigned(torch.zeros(0, 4), BOXES, RETINANET).tolist() == [NOTHING] * 5
    assert assigned(OBJECT, torch.zeros(0, 4), RETINANET).tolist() == []


def test_an_object_keeps_its_best_boxes_all_of_them() -> None:
    far = torch.tensor([[0.0, 0, 10, 4.5], [0, 5.5, 10, 10], [0, 0, 10, 2], [20, 20, 30, 30]])
    # Both overlap it by 0.45: too little, but nothing overlaps it more.
    assert assigned(OBJECT, far, RETINANET).tolist() == [0, 0, NOTHING, NOTHING]
    assert assigned(OBJECT, far, REGION).tolist() == [NOTHING] * 4
    # Below the least that a best box must have.
    assert assigned(OBJECT, far, REGION_WITH_MASK).tolist() == [NOTHING] * 4
    assert assigned(OBJECT, far[2:], PROPOSAL).tolist() == [NOTHING, NOTHING]
    assert assigned(OBJECT, far[2:], RETINANET).tolist() == [0, NOTHING]
    # Nothing overlaps it at all.
    assert assigned(OBJECT, far[3:], RETINANET).tolist() == [NOTHING]


def test_of_two_objects_with_one_best_box_the_last_takes_it() -> None:
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 40]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [20, 20, 30, 30]])
    # Box 0 overlaps object 0 by 0.9 and object 1 by 5/9, and is the best of both.
    assert assigned(objects, boxes, RETINANET).tolist() == [1, 2]
    assert assigned(objects, boxes, Overlap(0.5, 0.4)).tolist() == [0, 2]


def test_samples_are_half_objects_at_most_and_follow_the_seed() -> None:
    owners = torch.tensor([0] * 40 + [NOTHING] * 100 + [UNCLEAR] * 60)
    torch.manual_seed(3)
    positive, negative = sampled(owners, Sampling(32, 0.25))
    assert (len(positive), len(negative)) == (8, 24)
    assert positive.max() < 40
    assert 40 <= negative.min() <= negative.max() < 140
    torch.manual_seed(3)
    again = sampled(owners, Sampling(32, 0.25))
    assert torch.equal(again[0], positive)
    assert torch.equal(again[1], negative)
    few = sampled(torch.tensor([0, NOTHING, UNCLEAR]), Sampling(32, 0.5))
    assert (few[0].tolist(), few[1].tolist()) == ([0], [1])


def test_focal_loss_and_distances_by_hand() -> None:
    logits = torch.zeros(2, 5, 2)
    logits[0, 0] = torch.tensor([2.0, -1.0])
    deltas = torch.zeros(2, 5, 4)
    targets = [target([[0, 0, 10, 10]], [0]), target([], [])]
    inside = [torch.ones(5, dtype=torch.bool)] * 2
    found = focal_losses(logits, deltas, BOXES, inside, targets, coder())

    def focal(logit: float, positive: bool) -> float:
        p = 1 / (1 + math.exp(-logit))
        return 0.25 * (1 - p) ** 2 * -math.log(p) if positive else 0.75 * p**2 * -math.log(1 - p)

    # Image 0: anchor 0 and 1 hold class 0, 2 is unclear, 3 and 4 are background; image 1: all are background.
    first = focal(2, True) + focal(-1, False) + focal(0, True) + focal(0, False) + 4 * focal(0, False)
    expected = (first + 10 * focal(0, False)) / 3  # two anchors with objects, and one at least of the second image
    assert float(found["classification"]) == pytest.approx(expected, rel=1e-6)
    # Anchor 1 is 8 high and must become 10: its centre moves by an eighth of its height.
    assert float(found["bbox_regression"]) == pytest.approx((0.125 + math.log(10 / 8)) / 3, rel=1e-6)
    outside = [torch.tensor([True, False, True, True, True]), inside[1]]
    less = focal_losses(logits, deltas, BOXES, outside, targets, coder())
    assert float(less["bbox_regression"]) == 0
    expected = (first - focal(0, True) - focal(0, False) + 10 * focal(0, False)) / 2
    assert float(less["classification"]) == pytest.approx(expected, rel=1e-6)


def test_proposals_by_hand() -> None:
    logits = torch.zeros(1, 5, 1)
    logits[0, 0], logits[0, 4] = 1.0, -2.0
    inside = [torch.ones(5, dtype=torch.bool)]
    found = proposal_losses(logits, torch.zeros(1, 5, 4), BOXES, inside, [target([[0, 0, 10, 10]], [0])], coder())
    # All four that are clear are drawn: two with the object, two without.
    expected = (math.log(1 + math.exp(-1)) + math.log(2) + math.log(2) + math.log(1 + math.exp(-2))) / 4
    assert float(found["objectness"]) == pytest.approx(expected, rel=1e-6)
    assert float(found["rpn_bbox_regression"]) == pytest.approx((0.125 + math.log(10 / 8)) / 4, rel=1e-6)
    # Without any object: five of background, and mmdetection counts one more.
    nothing = proposal_losses(logits * 0, torch.zeros(1, 5, 4), BOXES, inside, [target([], [])], coder())
    assert float(nothing["objectness"]) == pytest.approx(5 * math.log(2) / 6, rel=1e-6)
    assert float(nothing["rpn_bbox_regression"]) == 0


def test_regions_by_hand() -> None:
    torch.manual_seed(0)
    what = target([[0, 0, 10, 10]], [1])
    found = sampled_regions(BOXES, what, REGION)
    # The object itself, its two proposals, and three of background.
    assert len(found.owners) == 3
    assert found.owners.tolist() == [0, 0, 0]
    assert len(found.boxes) == 6
    assert torch.equal(found.boxes[0], OBJECT[0])
    regions = Regions(BOXES[[1, 4]], torch.tensor([0]))
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]], requires_grad=True)
    deltas = torch.zeros(2, 8)
    deltas[0, 4:] = torch.tensor([0.0, 0.5, 0.0, 0.0])
    losses = region_losses(logits, deltas, [regions], [what], coder((0.1, 0.1, 0.2, 0.2)))
    entropy = math.log(2 + math.e) - 1, math.log(2 + math.exp(2)) - 2
    assert float(losses["classification"].detach()) == pytest.approx(sum(entropy) / 2, rel=1e-6)
    assert float(losses["bbox_regression"]) == pytest.approx((1.25 - 0.5 + 5 * math.log(10 / 8)) / 2, rel=1e-5)
    losses["classification"].backward()
    empty = Regions(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    nothing = region_losses(torch.zeros(0, 3), torch.zeros(0, 8), [empty], [target([], [])], coder())
    assert [float(value) for value in nothing.values()] == [0, 0]


def test_masks_by_hand() -> None:
    masks = torch.zeros(1, 20, 20, dtype=torch.uint8)
    masks[0, :10, :5] = 1
    what = target([[0, 0, 10, 10]], [1], masks=masks)
    regions = Regions(torch.tensor([[0.0, 0, 10, 10], [12, 12, 18, 18]]), torch.tensor([0]))
    wanted = mask_targets(regions, what, 4)
    # The left half of the box.
    assert wanted.int().tolist() == [[[1, 1, 0, 0]] * 4]
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, :, :2] = 3.0
    loss = mask_losses(logits, [regions], [what])["mask"]
    assert float(loss) == pytest.approx((math.log(1 + math.exp(-3)) + math.log(2)) / 2, rel=1e-6)
    none = Regions(regions.boxes, torch.zeros(0, dtype=torch.int64))
    assert float(mask_losses(torch.zeros(0, 3, 4, 4), [none], [what])["mask"]) == 0


def test_torchvisions_matching_gives_boxes_to_what_they_overlap_most() -> None:
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 40]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [20, 20, 30, 24], [50, 50, 60, 60]])
    # Box 0 is the best of objects 0 and 1 and overlaps 0 more; box 1 is the best of object 2, though only by 0.2.
    assert matched(objects, boxes, PROPOSAL).tolist() == [0, 2, NOTHING]
    assert assigned(objects, boxes, PROPOSAL).tolist() == [1, NOTHING, NOTHING]
    for rule in (REGION, REGION_WITH_MASK):
        assert matched(objects, boxes, rule).tolist() == [0, NOTHING, NOTHING]
    assert matched(OBJECT, BOXES, RETINANET).tolist() == [0, 0, UNCLEAR, NOTHING, NOTHING]
    assert matched(torch.zeros(0, 4), boxes, RETINANET).tolist() == [NOTHING] * 3
    assert matched(objects, torch.zeros(0, 4), RETINANET).tolist() == []


SEVERAL = [
    ([[3.0, 5, 40, 30], [10, 12, 30, 60], [50, 2, 63, 20]], [2, 0, 1]),
    ([], []),
    ([[8.0, 8, 20, 50]], [1]),
]


def case(channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Logits and deltas of 200 anchors in three images, one of which is empty."""
    random = torch.Generator().manual_seed(2)
    corners = torch.rand(200, 2, generator=random) * 44
    anchors = torch.cat([corners, corners + 6 + torch.rand(200, 2, generator=random) * 30], 1)
    logits = torch.randn(3, 200, channels, generator=random)
    deltas = 0.4 * torch.randn(3, 200, 4, generator=random)
    return logits, deltas, anchors, [target(*each) for each in SEVERAL]


def test_torchvisions_focal_losses_are_its_own() -> None:
    from torchvision.models.detection import _utils
    from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

    logits, deltas, anchors, targets = case(3)
    inside = [torch.ones(200, dtype=torch.bool), torch.zeros(200, dtype=torch.bool), torch.ones(200, dtype=torch.bool)]
    found = focal_losses(logits, deltas, anchors, inside, targets, coder(), TORCHVISION)
    theirs = SimpleNamespace(
        proposal_matcher=_utils.Matcher(0.5, 0.4, allow_low_quality_matches=True), head=RetinaNetHead(8, 1, 3)
    )
    outputs = {"cls_logits": logits, "bbox_regression": deltas}
    expected = RetinaNet.compute_loss(theirs, targets, outputs, [anchors] * 3)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(value.detach()) for name, value in expected.items()}, rel=1e-5
    )
    own = focal_losses(logits, deltas, anchors, inside, targets, coder())
    assert all(abs(float(own[name]) / float(found[name]) - 1) > 0.01 for name in found)


def test_torchvisions_proposal_losses_are_its_own() -> None:
    from torchvision.models.detection.rpn import RegionProposalNetwork

    logits, deltas, anchors, targets = case(1)
    inside = [torch.ones(200, dtype=torch.bool)] * 3
    torch.manual_seed(4)
    found = proposal_losses(logits, deltas, anchors, inside, targets, coder(), Sampling(32, 0.5), TORCHVISION)
    limits = {"training": 1, "testing": 1}
    theirs = RegionProposalNetwork(None, None, 0.7, 0.3, 32, 0.5, limits, limits, 0.7)
    labels, boxes = theirs.assign_targets_to_anchors([anchors] * 3, targets)
    wanted = theirs.box_coder.encode(boxes, [anchors] * 3)
    torch.manual_seed(4)
    objectness, regression = theirs.compute_loss(logits.flatten(0, 1), deltas.flatten(0, 1), labels, wanted)
    assert float(found["objectness"]) == pytest.approx(float(objectness), rel=1e-5)
    assert float(found["rpn_bbox_regression"]) == pytest.approx(float(regression), rel=1e-5)
    torch.manual_seed(4)
    own = proposal_losses(logits, deltas, anchors, inside, targets, coder(), Sampling(32, 0.5))
    assert float(own["rpn_bbox_regression"]) != pytest.approx(float(regression), rel=0.01)


def test_torchvisions_region_and_mask_losses_are_its_own() -> None:
    from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss

    logits, deltas, boxes, targets = case(4)
    masks = torch.zeros(3, 64, 64, dtype=torch.uint8)
    masks[0, 5:22, 3:17] = masks[1, 13:50, 12:26] = masks[2, 3:9, 50:63] = 1
    for each in targets:
        each["masks"] = masks[: len(each["labels"])]
    regions = [sampled_regions(boxes, each, REGION_WITH_MASK, Sampling(40, 0.25), TORCHVISION) for each in targets]
    assert [len(found.boxes) for found in regions] == [40] * 3
    units, owners = coder((0.1, 0.1, 0.2, 0.2)), [found.owners for found in regions]
    found = region_losses(
        logits[:, :40].flatten(0, 1), deltas[:, :120].reshape(120, 12), regions, targets, units, TORCHVISION
    )
    # There the background is the first class, and has deltas as well.
    labels, wanted = [], []
    for each, own in zip(targets, regions, strict=True):
        labels.append(F.pad(each["labels"][own.owners] + 1, (0, 40 - len(own.owners))))
        encoded = units.encode_single(each["boxes"][own.owners], own.boxes[: len(own.owners)])
        wanted.append(F.pad(encoded, (0, 0, 0, 40 - len(encoded))))
    classes, distances = fastrcnn_loss(
        logits[:, :40].flatten(0, 1).roll(1, 1), F.pad(deltas[:, :120].reshape(120, 12), (4, 0)), labels, wanted
    )
    assert float(found["classification"]) == pytest.approx(float(classes), rel=1e-5)
    assert float(found["bbox_regression"]) == pytest.approx(float(distances), rel=1e-5)

    positive = [own.boxes[: len(own.owners)] for own in regions]
    maps = torch.randn(sum(map(len, owners)), 3, 7, 7, generator=torch.Generator().manual_seed(1))
    soft = mask_losses(maps, regions, targets, TORCHVISION)["mask"]
    expected = maskrcnn_loss(
        maps, positive, [each["masks"] for each in targets], [each["labels"] for each in targets], owners
    )
    assert float(soft) == pytest.approx(float(expected), rel=1e-5)
    assert float(mask_losses(maps, regions, targets)["mask"]) != pytest.approx(float(expected), rel=1e-3)


def small(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"size": (64, 64), "pyramid_channels": 8, "tower": 1, "width_mult": 0.2}
    return create_model(f"laud_{kind}_small", mode="channel", channel_granularity=1, **sizes, **options).train()


@pytest.mark.parametrize("like", [MMDETECTION, TORCHVISION], ids=lambda like: like.name)
@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn", "mask_rcnn"])
def test_every_trained_weight_gets_a_gradient_with_and_without_objects(kind: str, like: Losses) -> None:
    network = small(kind)
    network.whose_losses = like
    images, size = torch.rand(2, 3, 64, 64), torch.tensor([[64.0, 64], [40, 60]])
    masks = torch.ones(1, 64, 64, dtype=torch.uint8)
    full = [target([[4, 4, 30, 30]], [2], masks=masks), target([], [], masks=masks[:0])]
    empty = [target([], [], masks=masks[:0])] * 2
    for targets in (full, empty):
        network.zero_grad()
        output = network(images, size, targets)
        total = torch.stack(list(output.losses.values())).sum() + output.flops / network.full_flops((64, 64))
        total.backward()
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in trained.values())
        assert not any(name.startswith(("backbone.conv1", "backbone.layer1")) for name in trained)
        assert any("masker" in name and bool(p.grad.any()) for name, p in trained.items())
    assert "backbone.layer2.0" in [record.name for record in output.masks]


def test_anchors_in_the_padding_of_other_images_do_not_count() -> None:
    network = small("retinanet", first_stage=2)
    maps = [(side, side) for side in (16, 8, 4, 2, 1)]
    inside = network.inside(maps, torch.tensor([[64.0, 64], [20, 33]]), 9)
    # The second image alone would be padded to 32 x 64.
    assert [int(own.sum()) for own in inside] == [9 * (256 + 64 + 16 + 4 + 1), 9 * (128 + 32 + 8 + 2 + 1)]
    assert bool(inside[1][: 9 * 8 * 16].all())
    assert not bool(inside[1][9 * 8 * 16 : 9 * 256].any())
    level = network.level(0, 16)
    assert level.all(2).shape == (2 * 16 * 9, 4)
    assert torch.equal(level.all(2)[9 * 17 + 4], level.at(torch.tensor([4]), torch.tensor([17]))[0])
