"""Detectors: from PyTorch to a graph of standard operators with fixed shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper

import dyndeploy
from dyndeploy import ExportSettings
from dyndeploy.bundle import BucketInfo, Manifest
from dyndeploy.cli import run
from dyndeploy.errors import UsageError
from dyndeploy.export.detection import category_ids, coco_classes
from dyndeploy.graphs.inspect import group_of, operator_attributes
from dyndeploy.graphs.parts import BACKBONE, HEADS, NECK, PARTS, has_parts, part_of
from dyndeploy.nets import TrainedNetwork, save_checkpoint
from dyndeploy.nets.trained import TRAINED
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.tasks.detection import compare
from tests.detectors import (
    CLASSES,
    QUERY_DETECTORS,
    SIZES,
    detector_bundle,
    lively_detector,
    one_worker,
    one_worker_of_queries,
    photographs,
)

vision = pytest.mark.vision("torchvision", "cv2")
queries = pytest.mark.vision("torchvision", "cv2", "transformers")


@vision
@one_worker
def test_a_bundle_says_how_it_detects() -> None:
    bundle = detector_bundle("retinanet")
    manifest = bundle.manifest
    assert manifest.task == "detection" and manifest.network.name == "laud_retinanet_small"
    assert {info.name: info.shape for info in manifest.inputs} == {"input": (1, 3, 128, 128), "image_size": (1, 2)}
    assert {info.name: (info.shape, info.dtype) for info in manifest.outputs} == {
        "boxes": ((1, 100, 4), "float32"),
        "scores": ((1, 100), "float32"),
        "labels": ((1, 100), "int64"),
        "count": ((1,), "int64"),
    }
    assert [mask.name for mask in manifest.masks][:2] == [
        "mask/backbone.layer1.0/channel",
        "mask/backbone.layer1.1/channel",
    ]
    info = manifest.detector()
    assert info.task() == lively_detector("retinanet", "channel").task
    assert info.classes == manifest.network.class_names == CLASSES
    assert info.category_ids == tuple(range(1, 11)) and manifest.network.num_classes == 10
    assert (info.detections, info.score_threshold, info.masks) == (100, 0.05, False)
    assert info.buckets == (BucketInfo((128, 128)), BucketInfo((96, 128), "96x128"))
    assert manifest.preprocessing is None and manifest.input_size == (128, 128)
    assert Manifest.from_json(manifest.to_json()) == manifest
    inner = dyndeploy.Bundle.open(bundle.path / "96x128")
    assert inner.manifest.input_size == (96, 128) and inner.damaged_files() == bundle.damaged_files() == {}
    assert inner.manifest.detector().buckets == (BucketInfo((96, 128)),)
    masks = detector_bundle("mask_rcnn").manifest
    assert masks.detector().masks and masks.outputs[-1].shape == (1, 100, 28, 28)
    assert any("mask" in step for step in masks.detector().host)


@vision
@one_worker
@pytest.mark.parametrize(("kind", "size"), [("retinanet", SIZES[0]), ("retinanet", SIZES[1]), ("mask_rcnn", SIZES[0])])
def test_onnx_runtime_finds_what_pytorch_finds(kind: str, size: tuple[int, int]) -> None:
    bundle, network = detector_bundle(kind), lively_detector(kind, "channel" if kind == "retinanet" else "layer")
    path = bundle.path if size == SIZES[0] else bundle.path / "96x128"
    with OnnxRuntimeSession(path / "model.onnx") as session, torch.no_grad():
        for image in photographs():
            feeds, placement = network.task.prepare(image, bucket=size)
            outputs = network(*map(torch.from_numpy, feeds.values())).outputs()
            expected = network.task.decode({name: value.numpy() for name, value in outputs.items()}, placement)
            found = compare(network.task.decode(session.run(feeds), placement), expected)
            assert (found.matched, found.missed, found.extra) == (100, 0, 0)
            # In pixels of the photograph, which is five times as large as the input.
            assert found.box < 0.02 and found.score < 1e-4
            assert kind == "retinanet" or found.mask_iou > 0.98


@queries
@one_worker_of_queries
@pytest.mark.parametrize("kind", QUERY_DETECTORS)
def test_detectors_of_queries_find_what_pytorch_finds(kind: str) -> None:
    bundle, network = detector_bundle(kind), lively_detector(kind, "layer")
    assert bundle.manifest.detector().task() == network.task
    for image in photographs():
        feeds, placement = network.task.prepare(image, bucket=SIZES[1])
        with torch.no_grad():
            outputs = network(*map(torch.from_numpy, feeds.values())).outputs()
        expected = network.task.decode({name: value.numpy() for name, value in outputs.items()}, placement)
        with dyndeploy.open_bundle(bundle) as session:
            (found,) = session.detect([image], size=SIZES[1][::-1])
        difference = compare(found, expected)
        assert (difference.matched, difference.missed, difference.extra) == (60, 0, 0)
        assert difference.box < 0.02 and difference.score < 1e-4
        assert difference.mask_iou is None if kind == "ddq_detr" else difference.mask_iou > 0.99
        assert len(np.unique(found.boxes.round(2), axis=0)) > 5 and found.scores.std() > 0.001


@queries
@one_worker_of_queries
def test_queries_have_fixed_places_and_parts() -> None:
    detector, masks = (detector_bundle(kind) for kind in QUERY_DETECTORS)
    assert {info.name: info.shape for info in detector.manifest.outputs} == {
        "boxes": (1, 60, 4),
        "scores": (1, 60),
        "labels": (1, 60),
        "count": (1,),
    }
    assert {info.name: info.shape for info in masks.manifest.outputs} == {
        "class_logits": (1, 30, 11),
        "mask_logits": (1, 30, 48, 64),
    }
    info = masks.manifest.detector()
    assert (info.decoding, info.mask_stride, info.rounding, info.masks) == ("queries", 2, False, True)
    assert any(step.startswith("boxes: around the masks") for step in info.host)
    for bundle, parts in ((detector, set(PARTS)), (masks, {BACKBONE, NECK, HEADS})):
        model = bundle.load_model()
        nodes = model.graph.node
        assert {node.domain for node in nodes} == {"", "dyndeploy"}
        assert has_parts(group_of(node.name) for node in nodes)
        assert {part_of(node.name) for node in nodes} == parts
        kinds = [node.op_type for node in nodes]
        assert kinds.count("NonMaxSuppression") == (2 if bundle is detector else 0)
        # One per layer of deformable attention, whose body reads each level.
        levels, layers = (4, 1 + 2) if bundle is detector else (3, 1)
        assert kinds.count(f"MultiscaleDeformableAttention{levels}") == layers
        (body,) = (function for function in model.functions if function.name.startswith("MultiscaleDeformable"))
        assert [node.op_type for node in body.node].count("GridSample") == levels


@vision
@one_worker
def test_nothing_found_is_no_error() -> None:
    bundle = detector_bundle("mask_rcnn")
    model = bundle.load_model()
    thresholds = [item for item in model.graph.initializer if item.name.endswith("score_threshold")]
    # The larger one is the detections', the other the proposals'.
    last = max(thresholds, key=lambda item: float(numpy_helper.to_array(item)))
    assert float(numpy_helper.to_array(last)) == pytest.approx(0.05)
    last.CopyFrom(numpy_helper.from_array(np.float32(2), last.name))
    info = bundle.manifest.detector()
    feeds, placement = info.task().prepare(photographs()[0], bucket=SIZES[0])
    with OnnxRuntimeSession(model) as session:
        outputs = session.run(feeds)
    assert outputs["count"].tolist() == [0] and not outputs["boxes"].any() and not outputs["scores"].any()
    assert len(info.task().decode(outputs, placement)) == 0


@vision
@one_worker
def test_the_graph_has_standard_operators_and_no_python() -> None:
    model = detector_bundle("mask_rcnn").load_model()
    assert {node.domain for node in model.graph.node} == {"", "dyndeploy"}
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("NonMaxSuppression") == 2
    # Of boxes and of masks; the body has a standard operator for each of the four levels.
    regions = [node for node in model.graph.node if node.op_type == "PyramidRoiAlign"]
    assert [operator_attributes(node) for node in regions] == [
        {"strides": [2, 4, 8, 16], "size": 7},
        {"strides": [2, 4, 8, 16], "size": 14},
    ]
    body = next(function for function in model.functions if function.name == "PyramidRoiAlign")
    assert {node.domain for node in body.node} == {""}
    assert [node.op_type for node in body.node].count("RoiAlign") == 4
    static = detector_bundle("mask_rcnn").load_static()
    own = {node.op_type for node in static.graph.node if node.domain}
    assert own == {"PyramidRoiAlign"}, "a static twin decides nothing, and reads regions the same way"


@vision
@one_worker
def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    network = lively_detector("retinanet", "channel")

    def export(settings: ExportSettings, **options: object) -> None:
        dyndeploy.export_model(network, tmp_path / "b", settings, **options)

    with pytest.raises(UsageError, match=r"100x130 does not fit.*multiples of 32. The next one is 128x160"):
        export(ExportSettings(input_size=(100, 130)))
    with pytest.raises(UsageError, match="The next one is 128x128"):
        export(ExportSettings(input_sizes=((128, 128), (100, 100))))
    with pytest.raises(UsageError, match=r"in bf16: how far that moves boxes was never measured.*Use fp32, or fp16"):
        export(ExportSettings(precision="bf16"))
    with pytest.raises(UsageError, match="fp16 cannot be exported for cpu: ONNX Runtime's CPU provider converts"):
        export(ExportSettings(precision="fp16"))
    with pytest.raises(UsageError, match="leave example_inputs and preprocessing out"):
        export(ExportSettings(), example_inputs=torch.zeros(1, 3, 128, 128))
    assert not (tmp_path / "b").exists()


@vision
@one_worker
def test_names_of_coco_bring_its_categories() -> None:
    names, ids = coco_classes()
    assert len(names) == len(ids) == 80 and (names[0], ids[0], names[-1], ids[-1]) == ("person", 1, "toothbrush", 90)
    assert category_ids(names) == ids
    assert category_ids(names[::-1]) == tuple(range(1, 81))
    assert category_ids(()) == ()


@vision
def test_categories_must_be_those_of_the_classes(tmp_path: Path) -> None:
    network = lively_detector("retinanet", "channel")
    for ids in ((1, 2), (1,) * 10, (-1, *range(9))):
        with pytest.raises(UsageError, match=f"category_ids has {len(ids)} numbers for 10 class names"):
            dyndeploy.export_model(network, tmp_path / "b", class_names=CLASSES, category_ids=ids)
    with pytest.raises(UsageError, match="is no detector: leave category_ids out"):
        classifier = dyndeploy.create_model("laud_resnet14_small", mode="channel")
        dyndeploy.export_model(classifier, tmp_path / "b", category_ids=(1, 2))


@vision
def test_what_a_checkpoint_knows_of_its_classes_reaches_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"thing {index}" for index in range(10)]
    given: list[tuple[Any, Any]] = []

    def told(*arguments: Any, class_names: Any, category_ids: Any, **options: Any) -> None:
        given.append((class_names, category_ids))
        raise UsageError("told")

    monkeypatch.setattr("dyndeploy.export.export_model", told)
    network = lively_detector("retinanet", "channel")
    official = {"meta": {"CLASSES": tuple(names), "epoch": 12}, "state_dict": network.state_dict(), "optimizer": {}}
    torch.save(official, tmp_path / "epoch_12.pth")
    trained = TrainedNetwork("laud_retinanet_small", class_names=tuple(names), category_ids=tuple(range(20, 30)))
    save_checkpoint(network, tmp_path / "own.pt", **{TRAINED: trained.as_dict()})
    call = ["export", "laud_retinanet_small", "--mode", "channel", "-o", str(tmp_path / "b"), "--checkpoint"]
    for file, more in (("epoch_12.pth", ()), ("own.pt", ()), ("own.pt", ("--class-names", str(tmp_path / "names")))):
        (tmp_path / "names").write_text("\n".join(CLASSES))
        assert run([*call, str(tmp_path / file), *more]) == 2
    assert given == [(names, None), (names, tuple(range(20, 30))), (list(CLASSES), None)]


def test_several_sizes_are_for_detectors(tmp_path: Path) -> None:
    network = dyndeploy.create_model("laud_resnet14_small", mode="channel")
    with pytest.raises(UsageError, match="is no detector: it has one input size"):
        dyndeploy.export_model(network, tmp_path / "b", ExportSettings(input_sizes=((64, 64), (32, 64))))


def test_sizes_must_differ_and_agree() -> None:
    assert ExportSettings(input_sizes=((64, 64), (32, 64))).input_size == (64, 64)
    with pytest.raises(UsageError, match="given twice: 64x64, 64x64"):
        ExportSettings(input_sizes=((64, 64), (64, 64)))
    with pytest.raises(UsageError, match="differ: give one of them"):
        ExportSettings(input_size=(32, 32), input_sizes=((64, 64),))
    with pytest.raises(UsageError, match="16x64 is too small"):
        ExportSettings(input_sizes=((64, 64), (16, 64)))
