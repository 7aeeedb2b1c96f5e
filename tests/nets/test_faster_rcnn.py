"""Faster R-CNN: proposals, what is read from the pyramid, and what the box head says of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dyndeploy.errors import UsageError
from dyndeploy.nets import create_model
from dyndeploy.nets.faster_rcnn import BOX_SIZE, Proposals

pytestmark = pytest.mark.vision("torchvision")

IMAGE = torch.tensor([64.0, 64.0])


def narrow(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"size": (64, 64), "pyramid_channels": 8, "width_mult": 0.2, "hidden": 16, "num_classes": 2}
    return create_model("faster_rcnn_small", **{**sizes, **options}).eval()


def silent(network: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Maps of the proposal head for an image of 64x64 in which nothing stands out."""
    sides = [-(-64 // stride) for stride in network.strides]
    return [(torch.full((1, 3, side, side), -9.0), torch.zeros(1, 12, side, side)) for side in sides]


def test_levels_and_anchors_of_the_published_ones() -> None:
    with torch.device("meta"):
        network: Any = create_model("laud_faster_rcnn_resnet50")
    assert network.strides == (4, 8, 16, 32, 64)
    assert network.scales == (8.0,)
    assert [layer[0].in_channels for layer in network.neck.fpn.inner_blocks] == [256, 512, 1024, 2048]
    assert (network.rpn.cls_logits.out_channels, network.rpn.bbox_pred.out_channels) == (3, 12)
    heads = network.roi_heads
    assert (heads.box_head.fc6.in_features, heads.box_head.fc6.out_features) == (256 * 49, 1024)
    assert (heads.box_predictor.cls_score.out_features, heads.box_predictor.bbox_pred.out_features) == (81, 320)
    # P6 is every other pixel of P5.
    pyramid = narrow().neck([torch.randn(1, stage[-1].out_channels, 16 >> k, 16 >> k)
                             for k, stage in enumerate(narrow().backbone.stages())])  # fmt: skip
    assert torch.equal(pyramid[4], pyramid[3][:, :, ::2, ::2])


def test_proposals_are_the_best_anchors_that_do_not_overlap() -> None:
    network = narrow(proposals=4)
    first, second = network.strides[:2]
    maps = silent(network)
    # Two cells of level 0 beside each other, whose square anchors overlap by more than 0.7, and one of level 1.
    maps[0][0][0, 1, 3, 3], maps[0][0][0, 1, 3, 4], maps[1][0][0, 1, 2, 2] = 3.0, 2.0, 1.0
    # Shrunk to nothing: left out, however sure.
    maps[0][0][0, 1, 9, 9] = 9.0
    maps[0][1][0, 4, 9, 9] = 1e4
    found = network.propose(maps, IMAGE)
    assert found.boxes.shape == (4, 4)

    def square(stride: int, row: int, column: int) -> list[float]:
        x, y, half = column * stride, row * stride, 4 * stride
        return [max(0, x - half), max(0, y - half), min(64, x + half), min(64, y + half)]

    assert found.boxes[0].tolist() == square(first, 3, 3)
    # The same place on another level is no neighbour.
    assert found.boxes[1].tolist() == square(second, 2, 2)
    widths, heights = found.boxes[:, 2] - found.boxes[:, 0], found.boxes[:, 3] - found.boxes[:, 1]
    assert bool(((widths > 0) & (heights > 0))[found.there].all())
    assert square(first, 3, 4) not in found.boxes.tolist()


def test_regions_are_read_from_the_level_that_their_size_asks_for() -> None:
    network = narrow()
    edge = int(2 * 14 * network.strides[0])
    pyramid = [torch.full((1, 8, 5 * edge // stride, 5 * edge // stride), float(level))
               for level, stride in enumerate(network.strides)]  # fmt: skip
    boxes = torch.tensor([[edge, edge, edge + side, edge + side] for side in (0.9 * edge, edge, 2 * edge, 4 * edge)])
    read = network.read(pyramid, boxes, BOX_SIZE)
    assert read.shape == (4, 8, 7, 7)
    # The last level is for proposals alone.
    assert read[:, 0, 3, 3].tolist() == [0, 1, 2, 3] and len(pyramid) == 5


def test_the_background_is_the_last_class_and_deltas_are_of_classes() -> None:
    network = narrow()
    proposals = Proposals(
        torch.tensor([[8.0, 8, 24, 24], [30, 30, 50, 40], [0, 0, 0, 0]]), torch.tensor([True, True, False])
    )
    logits = torch.tensor([[2.0, 0.0, 1.0], [-5.0, -5.0, 5.0], [9.0, 9.0, 0.0]])
    deltas = torch.zeros(3, 8)
    deltas[0, 0:4] = torch.tensor([1.0, 0.0, 5 * math.log(2), 0.0])
    network.raw, network.propose = lambda pyramid: silent(network), lambda raw, size: proposals
    network.read, network.classify = lambda *given: None, lambda regions: (logits, deltas)
    boxes, scores, labels, count = network.boxes([], IMAGE)
    odds = [math.exp(value) for value in (2, 0, 1)]
    assert int(count) == 2
    assert labels[:2].tolist() == [0, 1]
    assert scores[:2].tolist() == pytest.approx([odds[0] / sum(odds), odds[1] / sum(odds)])
    # Class 0 moves by a tenth of its width and becomes twice as wide; class 1 stays.
    assert boxes[0].tolist() == pytest.approx([1.6, 8, 33.6, 24], abs=1e-4)
    assert boxes[1].tolist() == pytest.approx([8, 8, 24, 24], abs=1e-5)
    assert not boxes[2:].any() and not scores[2:].any()


def test_the_last_layers_begin_small() -> None:
    predictor = narrow(hidden=256, num_classes=80).roi_heads.box_predictor
    for layer, spread in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert float(layer.weight.detach().std()) == pytest.approx(spread, rel=0.05) and not layer.bias.any()


@pytest.mark.parametrize("name", ["candidates", "proposals", "hidden"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_options_that_do_not_fit_are_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        create_model("laud_faster_rcnn_small", **{name: value})
