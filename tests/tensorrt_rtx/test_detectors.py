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
from dyndeploy.ops import DOMAIN, OPERATORS, Element
from dyndeploy.ops.boxes import BOXES, PYRAMID_ROI_ALIGN
from dyndeploy.runtimes.cuda import find_gpus
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, build_ahead
from dyndeploy.runtimes.tensorrt_rtx import build_bundle_ahead
from dyndeploy.targets.platforms import refused_ahead
from tests.ops.cases import CONVERSIONS, build

PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "fp16"])


@pytest.mark.vision("torchvision", "cv2")
@PRECISIONS
def test_the_dense_detector_is_built(rtx: BuilderPackage, precision: str, tmp_path: Path) -> None:
    from tests.detectors import CLASSES, lively_detector

    network, settings = lively_detector("retinanet", "channel"), ExportSettings(target="rtx4090", precision=precision)
    bundle = dyndeploy.export_model(network, tmp_path / "b", settings, class_names=CLASSES)
    (built,) = build_bundle_ahead(bundle, package=rtx)
    assert built.graph == "part0" and built.metadata["engine_bytes"] > 100_000
    assert sum(layer["plugin"] for layer in built.metadata["layers"]) == 16
    assert built.metadata["plan"].startswith(precision)


@pytest.mark.vision("torchvision", "cv2", "transformers")
@PRECISIONS
@pytest.mark.parametrize(("kind", "engines", "layers"), [("mask2former", 1, 1), ("ddq_detr", 3, 3)])
def test_detectors_of_queries_are_built(
    rtx: BuilderPackage, kind: str, engines: int, layers: int, precision: str, tmp_path: Path
) -> None:
    from tests.detectors import CLASSES, lively_detector

    settings = ExportSettings(target="rtx4090", input_size=(96, 128), precision=precision)
    bundle = dyndeploy.export_model(lively_detector(kind, "layer"), tmp_path / "b", settings, class_names=CLASSES)
    built = build_bundle_ahead(bundle, package=rtx)
    assert [engine.graph for engine in built] == [f"part{2 * place}" for place in range(engines)]
    plugins = [layer for engine in built for layer in engine.metadata["layers"] if layer["plugin"]]
    assert len([layer for layer in plugins if "DeformableAttention" in str(layer["nodes"])]) == layers


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


READERS = [
    name
    for name, spec in OPERATORS.items()
    if "tensorrt" in spec.kernels and not spec.gates and not spec.decides and name not in CONVERSIONS
]
"""Operators that read maps, and neither decide nor skip."""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", READERS)
def test_plugins_that_read_maps_are_built(rtx: BuilderPackage, name: str, precision: str) -> None:
    """Whole numbers of 64 bits become 32-bit ones on the way; coordinates stay floats in half."""
    case = build(name, channels=8, size=(16, 24), stride=2)
    ports = [(port.name, tensor.numpy()) for port, tensor in zip(case.spec.inputs, case.inputs, strict=True)]
    values = [
        helper.make_tensor_value_info(port, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for port, value in ports
    ]
    bookkeeping = {"plugin_version": "1", "plugin_namespace": ""}
    names = [port for port, _ in ports]
    read = helper.make_node(name, names, ["r"], name="heads/read", domain=DOMAIN, **case.attributes, **bookkeeping)
    layer = helper.make_node("Relu", ["r"], ["y"], name="heads/relu")
    shape = case.spec.infer_shape(case.shapes, case.attributes)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    graph = helper.make_graph([read, layer], "g", values, [output])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[case.spec.function(20)])
    (plugin,) = build_ahead(model, precision, package=rtx).built.plugins()
    data = "float16" if precision == "fp16" else "float32"
    kinds = {Element.DATA: data, Element.FLOAT: "float32", Element.INDEX: "int32"}
    assert [tensor.type for tensor in plugin.inputs] == [kinds[port.element] for port in case.spec.inputs]
