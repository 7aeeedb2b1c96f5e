"""RetinaNet: its levels and anchors, what its maps mean, and the weights that it begins with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dyndeploy.errors import UsageError
from dyndeploy.nets import create_model
from dyndeploy.nets.retinanet import OCTAVE

pytestmark = pytest.mark.vision("torchvision")


def narrow(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"size": (64, 64), "pyramid_channels": 8, "tower": 1, "width_mult": 0.2, "num_classes": 3}
    return create_model("retinanet_small", **{**sizes, **options}).eval()


def silent(network: Any, height: int = 64, width: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Maps of the head for an image of this size in which nothing is found."""
    sides = [(-(-height // stride), -(-width // stride)) for stride in network.strides]
    classes = network.config.num_classes
    return [(torch.full((1, 9 * classes, *side), -9.0), torch.zeros(1, 36, *side)) for side in sides]


def test_levels_and_anchors_of_the_published_ones() -> None:
    with torch.device("meta"):
        network: Any = create_model("laud_retinanet_resnet50")
    assert network.strides == (8, 16, 32, 64, 128)
    assert network.scales == pytest.approx([4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)])
    assert pytest.approx([1, 1.259921, 1.587401], rel=1e-6) == OCTAVE
    head = network.head
    assert (head.classification_head.cls_logits.out_channels, head.regression_head.bbox_reg.out_channels) == (720, 36)
    assert len(head.classification_head.conv) == len(head.regression_head.conv) == 4
    # From C3 on, and P6 of C5.
    assert [layer[0].in_channels for layer in network.neck.fpn.inner_blocks] == [512, 1024, 2048]
    assert network.neck.extra.p6.in_channels == 2048


def test_small_ones_look_from_the_stride_that_fits_their_objects() -> None:
    network = narrow()
    assert network.strides == (8, 16, 32, 64)
    assert network.level(0, 8).base[4].tolist() == pytest.approx(
        [-10 * OCTAVE[1], -10 * OCTAVE[1]] + [10 * OCTAVE[1]] * 2
    )


def test_a_logit_is_an_anchor_of_a_class_in_a_cell() -> None:
    network = narrow()
    maps = silent(network)
    # Level 1, anchor 4 (square, the middle size), class 2, row 1, column 2; and a weaker one of another class.
    maps[1][0][0, 4 * 3 + 2, 1, 2] = 2.0
    maps[1][1][0, 4 * 4 : 5 * 4, 1, 2] = torch.tensor([0.1, -0.2, math.log(0.5), 0.0])
    maps[0][0][0, 0, 7, 7] = 0.5
    network.raw = lambda pyramid: maps
    boxes, scores, labels, count = network.detected([], torch.tensor([64.0, 64.0]))
    assert int(count) == 2
    assert scores[:3].tolist() == pytest.approx([torch.sigmoid(torch.tensor(v)).item() for v in (2.0, 0.5)] + [0])
    assert labels[:2].tolist() == [2, 0]
    side = 16 * 2.5 * OCTAVE[1]
    x, y = 2 * 16 + 0.1 * side, 1 * 16 - 0.2 * side
    expected = [x - side / 4, max(0, y - side / 2), x + side / 4, y + side / 2]
    assert boxes[0].tolist() == pytest.approx(expected, abs=1e-4)
    wide, high = 20 * math.sqrt(2), 20 / math.sqrt(2)
    # Clipped to the image, which the last cell's anchor reaches out of.
    assert boxes[1].tolist() == pytest.approx([56 - wide / 2, 56 - high / 2, 64, 56 + high / 2], abs=1e-4)
    # A smaller image clips further.
    clipped = network.detected([], torch.tensor([20.0, 30.0]))[0]
    assert clipped[0].tolist() == pytest.approx([expected[0], expected[1], 30, 20], abs=1e-4)


def test_scores_at_the_threshold_are_nothing() -> None:
    network = narrow(score_threshold=0.5)
    maps = silent(network)
    maps[0][0][0, 0, 0, 0], maps[0][0][0, 0, 4, 4] = 0.0, 1e-3
    network.raw = lambda pyramid: maps
    assert int(network.detected([], torch.tensor([64.0, 64.0]))[3]) == 1


def test_one_anchor_can_be_found_as_several_classes() -> None:
    network = narrow()
    maps = silent(network)
    maps[0][0][0, 0:3, 3, 3] = torch.tensor([1.0, -9.0, 2.0])
    network.raw = lambda pyramid: maps
    boxes, _, labels, count = network.detected([], torch.tensor([64.0, 64.0]))
    assert int(count) == 2 and labels[:2].tolist() == [2, 0] and torch.equal(boxes[0], boxes[1])


def test_between_p6_and_p7_there_is_no_relu_unless_they_come_from_the_pyramid() -> None:
    for source, channels in (("c5", 256), ("p5", 8)):
        network = narrow(last_levels=source, width_mult=0.5)
        maps = [torch.randn(1, stage[-1].out_channels, 8 // 2**k, 8 // 2**k)
                for k, stage in enumerate(list(network.backbone.stages())[2:])]  # fmt: skip
        pyramid = network.neck(maps)
        extra = network.neck.extra
        p6 = extra.p6(maps[-1] if source == "c5" else pyramid[1])
        torch.testing.assert_close(pyramid[2], p6)
        assert bool((p6 < 0).any())
        torch.testing.assert_close(pyramid[3], extra.p7(p6 if source == "c5" else p6.relu()))
        assert (extra.p6.in_channels == 8) == (source == "p5"), channels


def test_the_first_scores_are_rare_as_the_prior_says() -> None:
    bias = narrow().head.classification_head.cls_logits.bias
    assert F.sigmoid(bias).tolist() == pytest.approx([0.01] * len(bias), rel=1e-4)


def test_towers_begin_so_that_something_passes_through_few_channels() -> None:
    def first(network: Any, tower: str) -> float:
        return float(getattr(network.head, tower).conv[0][0].weight.detach().std())

    few, published = narrow(), narrow(pyramid_channels=256)
    for tower in ("classification_head", "regression_head"):
        assert first(few, tower) == pytest.approx(math.sqrt(2 / (8 * 9)), rel=0.15)
        assert first(published, tower) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tower": 5}, "tower"),
        ({"last_levels": "p6"}, "last_levels"),
        ({"first_stage": 5}, "first_stage"),
        ({"first_stage": True}, "first_stage"),
        ({"anchor_scale": 0}, "anchor_scale"),
        ({"anchor_scale": float("inf")}, "anchor_scale"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        create_model("laud_retinanet_small", **options)
