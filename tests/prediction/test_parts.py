"""A detector's graph is priced by part, and what it does with boxes by the traffic of its work."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.graphs.shapes import known_sizes, static_shapes
from dyndeploy.ops import OPERATORS
from dyndeploy.prediction import GraphWalker, Kernel, Prediction, predict, read_nodes
from tests.bundles import parted_bundle

MAP, BOXES, LIMIT, KEPT, SIDE = 16, 300, 40, 20, 7


def _detector() -> onnx.ModelProto:
    """Boxes from a map: a choice by score, suppression, and reading of two maps by level, as export writes them."""

    def node(kind: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
        names = outputs.split()
        return helper.make_node(kind, inputs.split(), names, name=f"post-processing/{kind}_{names[0]}", **attributes)

    align = {
        "output_height": SIDE, "output_width": SIDE, "coordinate_transformation_mode": "half_pixel",
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="stem/Conv"),
        helper.make_node("Conv", ["c", "w"], ["m"], name="body.0/Conv"),
        helper.make_node("Resize", ["m", "", "scales"], ["up"], name="neck/Resize", mode="nearest"),
        helper.make_node("Conv", ["m", "w"], ["raw"], name="heads/Conv"),
        node("Reshape", "raw all", "flat"),
        node("TopK", "flat limit", "values index"),
        node("Gather", "table index", "boxes", axis=0),
        node("Unsqueeze", "boxes first", "boxes1"),
        node("Unsqueeze", "values both", "scores"),
        node("NonMaxSuppression", "boxes1 scores kept iou", "found"),
        node("Gather", "found two", "some", axis=1),
        node("Concat", "some empty", "filled", axis=0),
        node("Slice", "filled zero kept", "kept_index"),
        node("Gather", "boxes kept_index", "regions", axis=0),
        node("Gather", "levels kept_index", "level", axis=0),
    ]
    for index, map_ in enumerate(("m", "up")):
        nodes += [
            node("Equal", f"level level{index}", f"is{index}"),
            node("NonZero", f"is{index}", f"at{index}"),
            node("Reshape", f"at{index} all", f"row{index}"),
            node("Gather", f"regions row{index}", f"boxes_of{index}", axis=0),
            node("Mul", f"row{index} zero", f"image{index}"),
            node("RoiAlign", f"{map_} boxes_of{index} image{index}", f"read{index}", **align),
        ]
    nodes += [node("Concat", "read0 read1", "y", axis=0)]
    constants = {
        "w": np.zeros((8, 8, 1, 1), np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "table": np.zeros((8 * MAP * MAP, 4), np.float32),
        "levels": np.zeros(BOXES, np.int64),
        "all": np.array([-1]),
        "limit": np.array([BOXES]),
        "kept": np.array([KEPT]),
        "iou": np.array([0.5], np.float32),
        "first": np.array([0]),
        "both": np.array([0, 1]),
        "two": np.array(2),
        "zero": np.array([0]),
        "empty": np.full(KEPT, -1),
        "level0": np.array(0),
        "level1": np.array(1),
    }
    made = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, MAP, MAP))],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _kernels(kind: str) -> list[Kernel]:
    return [kernel for kernel in GraphWalker(_detector()).graph().kernels if kernel.kind == kind]


def test_how_many_boxes_there_are_is_assumed_and_said() -> None:
    shapes = known_sizes(_detector(), assume=True).shapes
    assert (shapes["found"], shapes["regions"]) == ((KEPT, 3), (KEPT, 4))
    assert (shapes["at0"], shapes["read1"]) == ((1, KEPT // 2), (KEPT // 2, 8, SIDE, SIDE))
    assert shapes["y"] == (KEPT, 8, SIDE, SIDE)
    assert static_shapes(_detector())["found"] == (-1, 3)
    (note,) = read_nodes(_detector()).notes
    assert f"NonMaxSuppression_found gives {KEPT}, the most it may leave" in note
    assert f"NonZero_at0 gives {KEPT // 2}, one of 2 equal parts" in note


def test_work_on_boxes_is_traffic() -> None:
    (suppression,) = _kernels("suppression")
    boxes, scores, found = 4 * BOXES, BOXES, 3 * KEPT
    assert suppression.read_bytes == 4 * (boxes + scores + 4 * BOXES * KEPT / 2)
    assert suppression.written_bytes == 8 * found
    first, second = _kernels("regions")
    written = KEPT // 2 * 8 * SIDE * SIDE
    samples = 3 * 3  # 21 cells of a map in 7 bins.
    arguments = KEPT // 2 * (4 + 2)
    assert first.read_bytes == 4 * (8 * MAP * MAP + arguments + 4 * samples * written)
    assert second.read_bytes - first.read_bytes == 4 * 3 * 8 * MAP * MAP
    assert first.written_bytes == 4 * written
    top, *_ = _kernels("topk")
    assert top.read_bytes == 4 * 8 * MAP * MAP
    assert GraphWalker(_detector()).graph().unknown == ()


def test_samples_on_a_grid_read_four_pixels_each() -> None:
    made = helper.make_node("GridSample", ["x", "grid"], ["y"], name="heads/sample", mode="linear")
    shapes = {"x": (1, 8, 20, 30), "grid": (1, 50, 4, 2)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8, 50, 4))
    model = helper.make_model(
        helper.make_graph([made], "g", values, [output]), opset_imports=[helper.make_opsetid("", 20)]
    )
    (kernel,) = GraphWalker(model).graph().kernels
    assert (kernel.kind, kernel.macs) == ("sampling", 0)
    assert kernel.written_bytes == 4 * 8 * 200
    assert kernel.read_bytes == 4 * (8 * 600 + 400 + 4 * 8 * 200)
    assert any("1 of sampling" in note for note in predict(model, "nano").notes)


@pytest.mark.parametrize("device", ["nano", "v100"])
def test_parts_add_up_to_the_whole(device: str) -> None:
    prediction = predict(_detector(), device)
    assert [block.name for block in prediction.blocks] == ["stem", "body.0", "neck", "heads", "post-processing"]
    parts = {part.name: part for part in prediction.parts}
    assert list(parts) == ["backbone", "neck", "heads", "post-processing"]
    assert sum(part.latency_ms for part in parts.values()) == pytest.approx(prediction.latency_ms)
    assert sum(part.share for part in parts.values()) == pytest.approx(1)
    assert [parts[name].macs for name in parts] == [2 * 64 * MAP**2, 0, 64 * MAP**2, 0]
    assert any("2 of regions, 1 of suppression, 3 of topk" in note for note in prediction.notes)
    value = json.loads(json.dumps(prediction.to_json()))
    assert value["parts"][0]["name"] == "backbone"
    assert Prediction.from_json(value) == prediction


def test_parts_are_no_blocks_of_a_bundle(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = parted_bundle(tmp_path_factory.mktemp("parted"), mode="layer")
    prediction = predict(bundle, "nano", rate=[0.5, 0.25])
    assert {block.name: block.mode for block in prediction.blocks} == {
        "stem": "static",
        "layer1.0": "layer",
        "layer2.0": "layer",
        "neck": "static",
        "heads": "static",
        "post-processing": "static",
    }
    assert [part.name for part in prediction.parts] == ["backbone", "neck", "heads", "post-processing"]


def test_deformable_attention_reads_four_cells_a_sample() -> None:
    spec = OPERATORS["MultiscaleDeformableAttention3"]
    attributes = {"sizes": [8, 6, 4, 3, 2, 2]}
    shapes = {"value": (1, 64, 2, 16), "locations": (1, 50, 2, 3, 4, 2), "weights": (1, 50, 2, 3, 4)}
    made = helper.make_node(spec.name, list(shapes), ["y"], name="neck/attention", domain="dyndeploy", **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 50, 2, 16))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("dyndeploy", 1)]
    model = helper.make_model(helper.make_graph([made], "g", values, [output]), opset_imports=opsets)
    (kernel,) = GraphWalker(model).graph().kernels
    assert (kernel.kind, kernel.macs) == ("deformable_attention", 0)
    assert kernel.read_bytes == 4 * (64 * 32 + 3 * 50 * 2 * 12)
    assert kernel.written_bytes == 4 * 50 * 32
    assert kernel.launches is not None
    (launch,) = kernel.launches
    assert launch.moved == 4 * (50 * 12 * (4 * 32 + 3 * 2) + 50 * 32)
    assert any("1 of deformable_attention" in note for note in predict(model, "nano").notes)
