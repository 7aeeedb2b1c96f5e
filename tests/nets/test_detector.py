"""What detectors share: anchors, boxes, the order of candidates, options, precision."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest
import torch

from dyndeploy.errors import UsageError
from dyndeploy.nets import create_model
from dyndeploy.nets.detector import (
    Level,
    base_anchors,
    best_of_maps,
    best_scores,
    box_coder,
    decoded,
    equals_as_sorted,
    placed,
    read_cells,
)

KINDS = ("retinanet", "faster_rcnn", "mask_rcnn")


def image(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_anchors_of_retinanet_by_hand() -> None:
    scales = [4 * 2 ** (step / 3) for step in range(3)]
    anchors = base_anchors(8, scales)
    assert anchors.shape == (9, 4)
    # Number = ratio * 3 + scale; height over width 0.5, 1, 2.
    side = 32 * 2 ** (1 / 3)
    assert anchors[4].tolist() == pytest.approx([-side / 2, -side / 2, side / 2, side / 2])
    wide, high = 32 * math.sqrt(2), 32 / math.sqrt(2)
    assert anchors[0].tolist() == pytest.approx([-wide / 2, -high / 2, wide / 2, high / 2])
    assert anchors[6].tolist() == pytest.approx([-high / 2, -wide / 2, high / 2, wide / 2])


def test_anchors_lie_on_the_corners_of_their_cells() -> None:
    levels = [Level(base_anchors(stride, (8.0,)), stride, width) for stride, width in ((4, 10), (8, 5))]
    boxes = placed(levels, (2, 1), torch.tensor([1, 1, 1]), torch.tensor([0, 23, 7]))
    assert boxes.tolist() == [[-16, -16, 16, 16], [-4, -8, 28, 24], [-16, -24, 48, 40]]
    every = levels[1].all(2)
    assert every.shape == (2 * 5 * 3, 4)
    assert every[3 * 7 + 1].tolist() == boxes[2].tolist()


@pytest.mark.vision("torchvision")
def test_deltas_become_boxes_within_the_image() -> None:
    boxes = torch.tensor([[10.0, 20, 30, 60], [10, 20, 30, 60], [0, 0, 8, 8]])
    deltas = torch.tensor([[0.5, -0.25, 0, math.log(2)], [0, 0, 0, 0], [0, 0, 100, 0]])
    found = decoded(box_coder((1.0, 1.0, 1.0, 1.0)), deltas, boxes, torch.tensor([70.0, 28.0]))
    assert found[0].tolist() == pytest.approx([20, 0, 28, 70])
    assert found[1].tolist() == [10, 20, 28, 60]
    assert found[2].tolist() == [0, 0, 28, 8]
    units = torch.tensor([0.1, 0.1, 0.2, 0.2])
    scaled = decoded(box_coder(units.tolist()), deltas / units, boxes, torch.tensor([70.0, 28.0]))
    torch.testing.assert_close(scaled, found)


def test_candidates_are_the_best_of_each_level() -> None:
    maps = [torch.arange(24.0).view(1, 2, 3, 4), torch.arange(4.0).view(1, 2, 1, 2)]
    best = best_of_maps(maps, 3)
    assert best.counts == (3, 3)
    # Cell by cell, of each the channels.
    assert list(zip(best.channels.tolist(), best.cells.tolist(), strict=True)) == [
        (1, 9), (1, 10), (1, 11), (1, 0), (0, 1), (1, 1),
    ]  # fmt: skip
    assert best.values.tolist() == [21, 22, 23, 2, 1, 3]
    sure = best_scores(maps, 3)
    assert torch.equal(
        sure.values, torch.cat([level.flatten().sort(descending=True).values[:3] for level in maps]).sigmoid()
    )
    deltas = [torch.arange(96.0).view(1, 8, 3, 4), torch.arange(16.0).view(1, 8, 1, 2)]
    read = read_cells(deltas, best.counts, 4 * best.channels, best.cells)
    assert read[0].tolist() == deltas[0][0, 4:8, 2, 1].tolist()
    assert read[4].tolist() == deltas[1][0, 0:4, 0, 1].tolist()


def test_of_equal_scores_the_first_comes_first() -> None:
    logits = torch.full((1, 3, 40, 50), 40.0)
    best = best_scores([logits], 10)
    assert best.values.tolist() == [1.0] * 10
    assert (best.cells * 3 + best.channels).tolist() == list(range(10))


def test_on_request_equal_scores_come_as_torch_sorts_them() -> None:
    torch.manual_seed(0)
    logits = torch.randint(0, 4, (1, 3, 40, 50)).float()
    with equals_as_sorted():
        best = best_scores([logits], 900)
    order = torch.sort(logits[0].permute(1, 2, 0).flatten().sigmoid(), descending=True).indices[:900]
    assert torch.equal(best.cells * 3 + best.channels, order)


@pytest.mark.vision("torchvision", "cv2")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "mode", ["spatial", "channel", "layer", "both", "static", ("spatial", "channel", "layer", "static")], ids=str
)
def test_every_mode_detects_in_images_of_any_size(kind: str, mode: Any) -> None:
    torch.manual_seed(0)
    network = create_model(f"laud_{kind}_small", mode=mode, num_classes=3, detections=5)
    for found, (height, width) in zip(network.detect([image(1, 1), image(37, 101)]), [(1, 1), (37, 101)], strict=True):
        assert len(found) <= 5
        assert np.all(found.boxes >= 0) and np.all(found.boxes <= [width, height, width, height])
        assert found.masks is None or found.masks.shape == (len(found), height, width)
    assert network.training


@pytest.mark.vision("torchvision")
def test_images_of_a_batch_do_not_touch_each_other() -> None:
    torch.manual_seed(0)
    network = create_model("laud_faster_rcnn_small", mode="layer", num_classes=3).double().eval()
    images, sizes = torch.randn(2, 3, 64, 96, dtype=torch.float64), torch.tensor([[64.0, 96.0], [40.0, 50.0]])
    with torch.no_grad():
        both = network(images, sizes)
        assert both.outputs()["boxes"].shape == (2, 100, 4)
        for index in range(2):
            one = network(images[index : index + 1], sizes[index : index + 1])
            assert int(one.counts) == int(both.counts[index])
            torch.testing.assert_close(one.boxes[0], both.boxes[index], rtol=1e-9, atol=1e-7)
    assert both.boxes[1].reshape(-1, 2).amax(0).tolist() <= [50, 40]
    assert float(both.flops) <= network.full_flops((64, 96))
    assert both.flops_ratio.shape == (8,)


@pytest.mark.vision("torchvision", "cv2")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_leave_boxes_in_pixels(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = create_model(f"{kind}_small", num_classes=3)
    anchors = network.level(2, 4).base.clone()
    network = network.to(dtype)
    assert torch.equal(network.level(2, 4).base.float(), anchors)
    found = network.detect([image(60, 80)])[0]
    assert found.boxes.dtype == np.float32


@pytest.mark.vision("torchvision")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": 5}, "size"),
        ({"size": (0, 3)}, "size"),
        ({"detections": 0}, "detections"),
        ({"score_threshold": 2}, "score_threshold"),
        ({"nms_threshold": True}, "nms_threshold"),
        ({"frozen_stages": 7}, "frozen_stages"),
        ({"frozen_stages": 1.0}, "frozen_stages"),
        ({"num_classes": 0}, "num_classes"),
        ({"tower": 0}, "tower"),
        ({"mode": "channel", "channel_granularity": 7}, "channel_granularity"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        create_model("laud_retinanet_small", **options)


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "torchvision":
            raise ImportError("No module named 'torchvision'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"dyndeploy\[detection\]"):
        create_model("laud_mask_rcnn_small")


@pytest.mark.vision("torchvision")
def test_frozen_stages_keep_still_in_training() -> None:
    network = create_model("laud_retinanet_small", frozen_stages=2).train()
    trained = {
        name.split(".")[1] for name, value in network.backbone.named_parameters(prefix="b") if value.requires_grad
    }
    assert trained == {"layer3", "layer4"}
    assert not any(m.training for m in network.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
