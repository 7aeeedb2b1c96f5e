"""Files of detectors' weights: those of other packages, of other networks, and classifiers to start from."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dyndeploy.errors import CheckpointError
from dyndeploy.nets import create_model, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.vision("torchvision")

MMDETECTION = {
    "laud_retinanet_small": {
        "neck.lateral_convs.0.conv.weight": "neck.fpn.inner_blocks.0.0.weight",
        "neck.fpn_convs.2.conv.bias": "neck.fpn.layer_blocks.2.0.bias",
        "neck.fpn_convs.3.conv.weight": "neck.extra.p6.weight",
        "neck.fpn_convs.4.conv.weight": "neck.extra.p7.weight",
        "bbox_head.cls_convs.1.conv.weight": "head.classification_head.conv.1.0.weight",
        "bbox_head.reg_convs.0.conv.bias": "head.regression_head.conv.0.0.bias",
        "bbox_head.retina_cls.weight": "head.classification_head.cls_logits.weight",
        "bbox_head.retina_reg.bias": "head.regression_head.bbox_reg.bias",
    },
    "laud_mask_rcnn_small": {
        "neck.fpn_convs.3.conv.weight": "neck.fpn.layer_blocks.3.0.weight",
        "rpn_head.rpn_conv.weight": "rpn.conv.0.0.weight",
        "rpn_head.rpn_cls.bias": "rpn.cls_logits.bias",
        "rpn_head.rpn_reg.weight": "rpn.bbox_pred.weight",
        "roi_head.bbox_head.shared_fcs.0.weight": "roi_heads.box_head.fc6.weight",
        "roi_head.bbox_head.shared_fcs.1.bias": "roi_heads.box_head.fc7.bias",
        "roi_head.bbox_head.fc_cls.weight": "roi_heads.box_predictor.cls_score.weight",
        "roi_head.bbox_head.fc_reg.weight": "roi_heads.box_predictor.bbox_pred.weight",
        "roi_head.mask_head.convs.0.conv.weight": "roi_heads.mask_head.0.0.weight",
        "roi_head.mask_head.upsample.weight": "roi_heads.mask_predictor.conv5_mask.weight",
        "roi_head.mask_head.conv_logits.bias": "roi_heads.mask_predictor.mask_fcn_logits.bias",
    },
}
"""Names in mmdetection's files -> names here, as in its own lists of keys."""


NARROW: dict[str, Any] = {"pyramid_channels": 16, "width_mult": 0.2}
NARROW_REGIONS = {**NARROW, "hidden": 32}
"""All of the structure, little of the cost."""


def narrow(name: str, **options: Any) -> nn.Module:
    return create_model(name, **{**(NARROW if "retinanet" in name else NARROW_REGIONS), **options})


@pytest.fixture(scope="module")
def small() -> dict[str, nn.Module]:
    return {name: narrow(name) for name in ("laud_retinanet_small", "laud_faster_rcnn_small", "laud_mask_rcnn_small")}


@pytest.mark.parametrize("name", MMDETECTION)
def test_mmdetections_files_load(name: str, tmp_path: Path) -> None:
    # With as many levels as the published ones.
    network = narrow(name, **({"first_stage": 2} if "retinanet" in name else {}))
    own = {key: value.clone() for key, value in network.state_dict().items()}
    mapped = network.checkpoint_rules().other_names()  # type: ignore[operator]
    assert {other: mapped[other] for other in MMDETECTION[name]} == MMDETECTION[name]
    theirs = ("neck.lateral", "neck.fpn_convs", "bbox_head.", "rpn_head.", "roi_head.")
    inverse = {key: other for other, key in mapped.items() if other.startswith(theirs)}
    weights = {inverse.get(key, key): value + 1 if value.is_floating_point() else value for key, value in own.items()}
    assert set(MMDETECTION[name]) <= set(weights)
    meta = {"epoch": 12, "iter": 87960, "CLASSES": ("person", "bicycle"), "mmdet_version": "2.21.0"}
    torch.save(
        {"meta": meta, "state_dict": weights, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "e.pth"
    )
    report = load_checkpoint(network, tmp_path / "e.pth")
    assert (report.missing, report.unexpected, report.epoch) == ((), (), 12)
    # Names of other classes than the weights'.
    assert report.class_names == () and "names 2 classes and its weights have 10" in report.notes[0]
    for key, value in network.state_dict().items():
        assert torch.equal(value, own[key] + 1 if value.is_floating_point() else own[key]), key


NAMES = tuple(f"class {index}" for index in range(10))


@pytest.mark.parametrize(
    ("meta", "names", "note"),
    [
        ({"CLASSES": NAMES, "epoch": 12}, NAMES, False),
        ({"dataset_meta": {"classes": list(NAMES), "palette": [(1, 2, 3)]}, "epoch": 12}, NAMES, False),
        ({"dataset_meta": {"CLASSES": NAMES}}, NAMES, False),
        ({"CLASSES": NAMES[:3]}, (), True),
        ({"CLASSES": "person"}, (), False),
        ({"CLASSES": [*NAMES[:9], 5]}, (), False),
        ({"CLASSES": None, "dataset_meta": "x"}, (), False),
        ("a note", (), False),
    ],
)
def test_names_of_classes_and_the_epoch_are_read(
    small: dict[str, nn.Module], tmp_path: Path, meta: Any, names: tuple[str, ...], note: bool
) -> None:
    network = small["laud_retinanet_small"]
    torch.save({"meta": meta, "state_dict": network.state_dict(), "optimizer": {}}, tmp_path / "e.pth")
    report = load_checkpoint(network, tmp_path / "e.pth")
    assert report.class_names == names
    assert report.epoch == (12 if isinstance(meta, dict) and "epoch" in meta else None)
    assert any("its names are left out" in each for each in report.notes) == note
    # Where training starts, heads of other classes have no use for them.
    other = narrow("laud_retinanet_small", num_classes=4)
    started = load_checkpoint(other, tmp_path / "e.pth", classes=4)
    assert started.class_names == () and not any("names" in each for each in started.notes)


def test_a_message_hub_is_passed_over(
    small: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self._max_length, self._log_history = 1000000, np.arange(3.0)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    network = small["laud_retinanet_small"]
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"epoch": 12}, "resumed_keys": {}}
    content = {"meta": {"epoch": 12}, "state_dict": network.state_dict(), "message_hub": hub, "param_schedulers": []}
    torch.save(content, tmp_path / "epoch_12.pth")
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert load_checkpoint(network, tmp_path / "epoch_12.pth").missing == ()
    assert "mmengine" not in sys.modules


EIGHTH: dict[str, Any] = {"width_mult": 0.125, "pyramid_channels": 32}
EIGHTH_REGIONS = {**EIGHTH, "hidden": 128}
"""Options of networks that are as wide as what :func:`torchvisions` gives."""


def torchvisions(make: str, **options: Any) -> dict[str, Tensor]:
    """Weights with torchvision's names, at random, an eighth as wide as its own."""
    from torchvision import models

    where = models if make == "resnet50" else models.detection
    with torch.device("meta"):
        network = getattr(where, make)(weights=None, **options)
    torch.manual_seed(0)
    weights = {}
    for key, value in network.state_dict().items():
        # Published files of detectors have frozen batch norms, which do not count batches.
        if not key.endswith("num_batches_tracked"):
            weights[key] = torch.rand([side // 8 if side >= 64 else side for side in value.shape])
    return weights


@pytest.mark.parametrize("make", ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"])
def test_torchvisions_regions_have_the_background_first(make: str, tmp_path: Path) -> None:
    weights = torchvisions(make, num_classes=4, weights_backbone=None)
    torch.save(weights, tmp_path / "tv.pth")
    name = "faster_rcnn_resnet50" if make.startswith("faster") else "mask_rcnn_resnet50"
    network = create_model(name, num_classes=3, **EIGHTH_REGIONS)
    report = load_checkpoint(network, tmp_path / "tv.pth")
    assert report.untrained == () and report.unexpected == ()
    assert "half-pixel" in report.notes[0]
    state = network.state_dict()
    scores = weights["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(state["roi_heads.box_predictor.cls_score.weight"], scores[[1, 2, 3, 0]])
    assert torch.equal(
        state["roi_heads.box_predictor.bbox_pred.bias"], weights["roi_heads.box_predictor.bbox_pred.bias"][4:]
    )
    assert torch.equal(state["neck.fpn.inner_blocks.3.0.weight"], weights["backbone.fpn.inner_blocks.3.0.weight"])
    if make.startswith("mask"):
        masks = weights["roi_heads.mask_predictor.mask_fcn_logits.weight"]
        assert torch.equal(state["roi_heads.mask_predictor.mask_fcn_logits.weight"], masks[1:])


def test_torchvisions_retinanet_has_its_last_levels_from_the_pyramid(tmp_path: Path) -> None:
    torch.save(torchvisions("retinanet_resnet50_fpn", num_classes=3, weights_backbone=None), tmp_path / "tv.pth")
    with pytest.raises(CheckpointError, match="last_levels='p5'"):
        load_checkpoint(create_model("retinanet_resnet50", num_classes=3, **EIGHTH), tmp_path / "tv.pth")
    network = create_model("retinanet_resnet50", num_classes=3, last_levels="p5", **EIGHTH)
    report = load_checkpoint(network, tmp_path / "tv.pth")
    assert report.untrained == () and report.unexpected == ()
    assert "torchvision" in report.notes[0]
    maps = [torch.randn(1, channels, 8 // 2**level, 8 // 2**level) for level, channels in enumerate((64, 128, 256))]
    *_, p5, p6, p7 = network.neck(maps)  # type: ignore[operator]
    extra: Any = network.neck.extra  # type: ignore[union-attr]
    torch.testing.assert_close(p6, extra.p6(p5))
    torch.testing.assert_close(p7, extra.p7(p6.clamp(min=0)))


def test_torchvisions_second_versions_are_refused(small: dict[str, nn.Module], tmp_path: Path) -> None:
    weights = dict(small["laud_retinanet_small"].state_dict())
    weights["head.classification_head.conv.0.1.weight"] = torch.ones(64)
    torch.save(weights, tmp_path / "v2.pth")
    with pytest.raises(CheckpointError, match="second versions"):
        load_checkpoint(small["laud_retinanet_small"], tmp_path / "v2.pth")


@pytest.mark.parametrize(
    ("file", "into", "kinds"),
    [
        ("laud_mask_rcnn_small", "laud_faster_rcnn_small", "it is a Mask R-CNN, and this network is a Faster R-CNN"),
        ("laud_faster_rcnn_small", "laud_mask_rcnn_small", "it is a Faster R-CNN, and this network is a Mask R-CNN"),
        ("laud_mask_rcnn_small", "laud_retinanet_small", "it is a Mask R-CNN, and this network is a RetinaNet"),
        ("laud_retinanet_small", "laud_mask_rcnn_small", "it is a RetinaNet, and this network is a Mask R-CNN"),
        pytest.param(
            "laud_retinanet_small",
            "laud_mask2former_small",
            "it is a RetinaNet, and this network is a Mask2Former",
            marks=pytest.mark.vision("transformers"),
        ),
        ("laud_ddq_detr_small", "laud_faster_rcnn_small", "it is a DDQ-DETR, and this network is a Faster R-CNN"),
    ],
)
def test_other_detectors_are_named(
    small: dict[str, nn.Module], file: str, into: str, kinds: str, tmp_path: Path
) -> None:
    other, network = (small[name] if name in small else create_model(name, width_mult=0.2) for name in (file, into))
    save_checkpoint(other, tmp_path / "other.pt")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=kinds):
        load_checkpoint(network, tmp_path / "other.pt")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    # Training starts from the backbone.
    report = load_checkpoint(network, tmp_path / "other.pt", classes=10)
    theirs, now = other.state_dict(), network.state_dict()
    assert all(
        torch.equal(value, theirs[key] if key.startswith("backbone.") else before[key]) for key, value in now.items()
    )
    assert set(report.missing) == {key for key in now if not key.startswith("backbone.")}


@pytest.mark.parametrize("name", ["laud_retinanet_small", "laud_mask_rcnn_small"])
def test_other_classes_are_counted(small: dict[str, nn.Module], name: str, tmp_path: Path) -> None:
    save_checkpoint(small[name], tmp_path / "ten.pt")
    network = narrow(name, num_classes=4)
    with pytest.raises(CheckpointError, match="num_classes=10"):
        load_checkpoint(network, tmp_path / "ten.pt")
    report = load_checkpoint(network, tmp_path / "ten.pt", classes=4)
    assert report.classes is not None and report.classes[1] == 4
    assert all("cls" in key or "bbox_pred" in key or "mask_fcn" in key for key in report.fresh)


def test_missing_heads_and_torn_files_are_told(small: dict[str, nn.Module], tmp_path: Path) -> None:
    network = small["laud_retinanet_small"]
    headless = {key: value for key, value in network.state_dict().items() if not key.startswith("head.")}
    torch.save(headless, tmp_path / "headless.pt")
    with pytest.raises(CheckpointError, match=r"lacks head\.classification_head"):
        load_checkpoint(network, tmp_path / "headless.pt")
    save_checkpoint(network, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(network, tmp_path / "torn.pt")


@pytest.mark.parametrize("mode", ["spatial", "static"])
def test_backbones_start_from_a_classifier(mode: str, tmp_path: Path) -> None:
    network = narrow("laud_mask_rcnn_small")
    classifier = create_model("laud_resnet26_small", mode=mode, width_mult=network.config.width_mult)  # type: ignore[union-attr]
    save_checkpoint(classifier, tmp_path / "classifier.pt")
    report = load_checkpoint(network, tmp_path / "classifier.pt", classes=10)
    assert report.fresh
    own = network.backbone.state_dict()  # type: ignore[union-attr,operator]
    for key, value in classifier.state_dict().items():
        assert key.startswith("fc.") or torch.equal(own[key], value), key


def test_backbones_start_from_torchvisions_classifier(tmp_path: Path) -> None:
    weights = torchvisions("resnet50")
    torch.save(weights, tmp_path / "resnet50.pth")
    network = create_model("laud_retinanet_resnet50_512", num_classes=3, **EIGHTH)
    report = load_checkpoint(network, tmp_path / "resnet50.pth", classes=3)
    assert all("masker" in key or not key.startswith("backbone.") for key in report.untrained)
    assert torch.equal(network.state_dict()["backbone.layer4.2.conv3.weight"], weights["layer4.2.conv3.weight"])
