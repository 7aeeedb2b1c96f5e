"""Detectors' engines in NVIDIA's own builder, without a GPU: built, or refused for the reason that is on the list."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from onnx import TensorProto, helper

import dyndeploy
from dyndeploy import ExportSettings
from dyndeploy.errors import DyndeployError
from dyndeploy.graphs.passes import Context, write_boxes
from dyndeploy.ops.boxes import BOXES, PYRAMID_ROI_ALIGN
from dyndeploy.runtimes.cuda import find_gpus
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, build_ahead
from dyndeploy.runtimes.tensorrt_rtx import build_bundle_ahead
from dyndeploy.targets.platforms import refused_ahead


@pytest.mark.vision("torchvision", "cv2")
def test_the_dense_detector_is_built(rtx: BuilderPackage, tmp_path: Path) -> None:
    from tests.detectors import CLASSES, lively_detector

    network = lively_detector("retinanet", "channel")
    bundle = dyndeploy.export_model(network, tmp_path / "b", ExportSettings(target="rtx4090"), class_names=CLASSES)
    (built,) = build_bundle_ahead(bundle, package=rtx)
    assert built.graph == "part0" and built.metadata["engine_bytes"] > 100_000
    assert sum(layer["plugin"] for layer in built.metadata["layers"]) == 16


def has_gpu() -> bool:
    with contextlib.suppress(DyndeployError):
        return bool(find_gpus())
    return False


def test_reading_of_regions_is_refused_for_its_reason(rtx: BuilderPackage) -> None:
    """On a machine with a GPU it is built."""
    inputs = ["fine", "coarse", "boxes", "levels"]
    node = helper.make_node(PYRAMID_ROI_ALIGN, inputs, ["y"], name="p/y", domain=BOXES, strides=[4, 8], size=7)
    shapes = {"fine": (1, 8, 32, 32), "coarse": (1, 8, 16, 16), "boxes": (10, 4)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    values.append(helper.make_tensor_value_info("levels", TensorProto.INT64, (10,)))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (10, 8, 7, 7))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(BOXES, 1)]
    model = helper.make_model(helper.make_graph([node], "g", values, [output]), opset_imports=opsets, ir_version=10)
    write_boxes(model, Context({}, ["y"], 20, 10, None, "rtx4090", runtime="tensorrt"))
    if has_gpu():
        assert build_ahead(model, package=rtx).engine
        return
    with pytest.raises(DyndeployError) as caught:
        build_ahead(model, package=rtx)
    reason = refused_ahead()["RoiAlign"]
    assert str(caught.value) == f"TensorRT {rtx.text} does not build RoiAlign on a machine without a GPU: {reason}."
