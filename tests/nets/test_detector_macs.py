"""Multiply-accumulates of detectors' backbones, as LAUDNet's reference code counts them, and the parts they tell."""

from __future__ import annotations

import pytest
import torch

from dyndeploy.nets import create_model

pytestmark = pytest.mark.vision("torchvision")


@pytest.mark.parametrize(
    ("mode", "size", "giga"), [("channel", (800, 1216), 151.42), ("layer", (320, 480), 23.88)], ids=["channel", "layer"]
)
def test_dense_macs_of_the_published_backbone(mode: str, size: tuple[int, int], giga: float) -> None:
    with torch.device("meta"):
        network = create_model("laud_retinanet_resnet101", mode=mode, channel_granularity=2)
    assert round(network.full_flops(size) / 1e9, 2) == giga


def test_parts_are_modules_that_there_are() -> None:
    for name, modules in {
        "laud_retinanet_small": {"backbone": "backbone", "neck": "neck", "head": "heads"},
        "laud_mask_rcnn_small": {"backbone": "backbone", "neck": "neck", "rpn": "heads", "roi_heads": "heads"},
    }.items():
        network = create_model(name)
        assert network.facts().parts == modules
        assert set(modules) == {child for child, _ in network.named_children()}
