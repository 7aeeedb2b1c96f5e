"""Detectors: from PyTorch to a graph of standard operators with fixed shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import dyndeploy
from dyndeploy import ExportSettings
from dyndeploy.bundle import BucketInfo, Manifest
from dyndeploy.errors import UsageError
from dyndeploy.export.detection import category_ids, coco_classes
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.tasks.detection import compare
from tests.detectors import CLASSES, SIZES, detector_bundle, lively_detector, photographs

vision = pytest.mark.vision("torchvision", "cv2")


@vision
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


@vision
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
def test_the_graph_has_standard_operators_and_no_python() -> None:
    model = detector_bundle("mask_rcnn").load_model()
    assert {node.domain for node in model.graph.node} == {"", "dyndeploy"}
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("NonMaxSuppression") == 2 and kinds.count("RoiAlign") == 8
    aligned = next(node for node in model.graph.node if node.op_type == "RoiAlign")
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in aligned.attribute}
    assert attributes["coordinate_transformation_mode"] == b"half_pixel" and attributes["sampling_ratio"] == 0
    static = detector_bundle("mask_rcnn").load_static()
    assert {node.domain for node in static.graph.node} == {""}


@vision
def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    network = lively_detector("retinanet", "channel")

    def export(settings: ExportSettings, **options: object) -> None:
        dyndeploy.export_model(network, tmp_path / "b", settings, **options)

    with pytest.raises(UsageError, match=r"100x130 does not fit.*multiples of 32. The next one is 128x160"):
        export(ExportSettings(input_size=(100, 130)))
    with pytest.raises(UsageError, match="The next one is 128x128"):
        export(ExportSettings(input_sizes=((128, 128), (100, 100))))
    with pytest.raises(UsageError, match="cannot be exported in fp16: how far that moves boxes was never measured"):
        export(ExportSettings(target="orin_nano", precision="fp16"))
    with pytest.raises(UsageError, match="cannot be exported in bf16: how far that moves boxes was never measured"):
        export(ExportSettings(precision="bf16"))
    with pytest.raises(UsageError, match="leave example_inputs and preprocessing out"):
        export(ExportSettings(), example_inputs=torch.zeros(1, 3, 128, 128))
    assert not (tmp_path / "b").exists()


@vision
def test_names_of_coco_bring_its_categories() -> None:
    names, ids = coco_classes()
    assert len(names) == len(ids) == 80 and (names[0], ids[0], names[-1], ids[-1]) == ("person", 1, "toothbrush", 90)
    assert category_ids(names) == ids
    assert category_ids(names[::-1]) == tuple(range(1, 81))
    assert category_ids(()) == ()


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
