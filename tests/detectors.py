"""Small detectors that find something with random weights, and bundles of them, exported once per worker.

Every export takes half a minute, so all tests of these bundles run in one worker (pytest --dist loadgroup).
"""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dyndeploy
from dyndeploy import Bundle, ExportSettings
from dyndeploy.data import ByteArray, read_image, sample_photographs

SIZES = ((128, 128), (96, 128))
QUERY_DETECTORS = ("ddq_detr", "mask2former")
CLASSES = tuple(map(str, range(10)))

one_worker = pytest.mark.xdist_group("detectors")


@functools.cache
def photographs() -> list[ByteArray]:
    return [read_image(path) for path in sample_photographs()]


@torch.no_grad()
def _spread(network: nn.Module, layer: nn.Module, width: float, shift: float = 0.0) -> None:
    """Give a layer's results a standard deviation and a bias."""
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    found: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: found.append(output.flatten()))
    network(images, torch.tensor([[128.0, 128.0]]))
    handle.remove()
    layer.weight.mul_(width / float(torch.cat(found).std()))
    layer.bias.fill_(shift)


@functools.cache
def lively_detector(kind: str, mode: str) -> Any:
    """A detector whose maskers decide differently and which finds objects."""
    torch.manual_seed(0)
    options = {"encoder_layers": 1, "queries": 30, "detections": 60} if kind in QUERY_DETECTORS else {}
    network = dyndeploy.create_model(f"laud_{kind}_small", mode=mode, **options).eval()
    for module in network.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    for name, parameter in network.named_parameters():
        if "masker" in name:
            parameter.data.normal_(0, 0.3 if name.endswith("weight") else 0.05)
        if re.search(r"(sampling_offsets|attention_weights|reg\.\d+\.4|cls\.\d+)\.weight$", name):
            parameter.data.normal_(0, 0.1)
        # Else norm after norm makes all queries alike.
        if kind == "mask2former" and name.endswith(("out_proj.weight", "output_proj.weight", "fc2.weight")):
            parameter.data.mul_(0.3)
    if kind in QUERY_DETECTORS:
        return network
    if kind == "retinanet":
        _spread(network, network.head.classification_head.cls_logits, 1.5, -3.0)
        _spread(network, network.head.regression_head.bbox_reg, 0.4)
    else:
        _spread(network, network.rpn.cls_logits, 1.5)
        _spread(network, network.rpn.bbox_pred, 0.3)
        _spread(network, network.roi_heads.box_predictor.cls_score, 2.0)
        _spread(network, network.roi_heads.box_predictor.bbox_pred, 1.0)
    if kind == "mask_rcnn":
        _spread(network, network.roi_heads.mask_predictor.mask_fcn_logits, 3.0)
    return network


@functools.cache
def detector_bundle(kind: str) -> Bundle:
    """RetinaNet with channel masks at two sizes; the others with layer masks, Mask R-CNN with its static twin."""
    folder = tempfile.TemporaryDirectory(prefix="dyndeploy-detector-")
    _KEPT.append(folder)
    retina = kind == "retinanet"
    settings = ExportSettings(input_sizes=SIZES) if retina else ExportSettings(static=kind == "mask_rcnn")
    if kind in QUERY_DETECTORS:
        settings = ExportSettings(input_size=SIZES[1])
    network = lively_detector(kind, "channel" if retina else "layer")
    return dyndeploy.export_model(network, Path(folder.name) / "b", settings, class_names=CLASSES)


_KEPT: list[Any] = []
"""Folders that last as long as the worker."""
