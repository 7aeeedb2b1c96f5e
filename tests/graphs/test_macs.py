from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.forced import forced_masks
from dyndeploy.graphs.inspect import group_of
from dyndeploy.graphs.macs import MacCounter
from tests.bundles import BLOCK_MACS, HEAD_MACS, MODES, STATIC_MACS, STEM_MACS, tiny_models

MASKERS = {  # MACs of the maskers of the two blocks
    "spatial": (8 * 16, 16 * 16),
    "layer": (8, 16),
    "channel": (8 * 2, 16 * 2),
    "both": (8 * 16 + 8 * 2, 16 * 16 + 16 * 2),
}


def test_static_twin_by_hand() -> None:
    count = MacCounter(tiny_models(batch=3)[1]).count()
    assert {name: macs.tolist() for name, macs in count.blocks.items()} == {
        "stem": [STEM_MACS] * 3,
        "layer1.0": [BLOCK_MACS["layer1.0"]] * 3,
        "layer2.0": [BLOCK_MACS["layer2.0"]] * 3,
        "head": [HEAD_MACS] * 3,
    }
    assert count.per_sample.tolist() == [STATIC_MACS] * 3


@pytest.mark.parametrize("mode", MODES)
def test_everything_active_costs_the_static_twin_and_the_maskers(mode: str) -> None:
    model, _, masks = tiny_models(mode, batch=2)
    count = MacCounter(model).count(forced_masks(masks, 1.0, 0))
    first, second = MASKERS[mode]
    assert count.blocks["layer1.0"].tolist() == [BLOCK_MACS["layer1.0"] + first] * 2
    assert count.blocks["layer2.0"].tolist() == [BLOCK_MACS["layer2.0"] + second] * 2
    assert count.per_sample.tolist() == [STATIC_MACS + first + second] * 2


@pytest.mark.parametrize("mode", MODES)
def test_nothing_active_leaves_maskers_and_the_projection(mode: str) -> None:
    model, _, masks = tiny_models(mode)
    count = MacCounter(model).count(forced_masks(masks, 0.0, 0))
    first, second = MASKERS[mode]
    assert count.blocks["layer1.0"].tolist() == [64 * 8 * 16 + first]
    assert count.blocks["layer2.0"].tolist() == [second]


def test_one_corner_patch_by_hand() -> None:
    model, _, masks = tiny_models("spatial", batch=2)
    values = forced_masks(masks, 0.0, 0)
    values["mask/layer2.0/spatial"][1, 0, 0, 0] = 1
    count = MacCounter(model).count(values)
    # A 2x2 patch in the corner of an 8x8 map needs a 3x3 corner of conv1.
    patch = 9 * 16 * 4 + 4 * 9 * 4 * 4 + 4 * 4 * 16
    assert count.blocks["layer2.0"].tolist() == [256, 256 + patch]


def test_one_channel_group_by_hand() -> None:
    model, _, masks = tiny_models("channel")
    values = forced_masks(masks, 0.5, 0)
    count = MacCounter(model).count(values)
    # Two of four hidden channels everywhere: half of conv1 and conv3, a quarter of conv2.
    assert count.blocks["layer2.0"].tolist() == [64 * 16 * 2 + 64 * 9 * 2 * 2 + 64 * 2 * 16 + 32]


def test_shapes_stored_in_the_file_are_not_needed() -> None:
    model, _, masks = tiny_models()
    assert len(model.graph.value_info) == 0
    del model.functions[:]
    assert MacCounter(model).count(forced_masks(masks, 1.0, 0)).per_sample[0] > STATIC_MACS


def test_matmul_gemm_and_grouped_convolution_by_hand() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="a/conv", group=2, strides=[2, 2], pads=[1] * 4),
        helper.make_node("Reshape", ["c", "shape"], ["r"], name="a/reshape"),
        helper.make_node("MatMul", ["r", "m"], ["p"], name="b/matmul"),
        helper.make_node("Reshape", ["p", "flat"], ["f"], name="b/reshape"),
        helper.make_node("Gemm", ["f", "g"], ["y"], name="c", transA=1),
    ]

    def weight(name: str, *dims: int) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, dims, np.zeros(int(np.prod(dims))).tolist())

    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 9, 7))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (11, 13))],
        [
            weight("w", 6, 2, 3, 3),
            weight("m", 20, 11),
            weight("g", 6, 13),
            helper.make_tensor("shape", TensorProto.INT64, (3,), [1, 6, 20]),
            helper.make_tensor("flat", TensorProto.INT64, (2,), [6, 11]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    count = MacCounter(model).count()
    assert {name: float(macs[0]) for name, macs in count.blocks.items()} == {
        "a": 6 * 5 * 4 * 2 * 9,
        "b": 6 * 20 * 11,
        "other": 11 * 6 * 13,
    }


def test_transposed_convolution_by_hand() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="heads/up", kernel_shape=[2, 2], strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros((6, 4, 2, 2), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    assert MacCounter(model).count().per_sample.tolist() == [5 * 5 * 6 * 4 * 4]


@pytest.mark.parametrize("fill", ["mean", "weights"])
def test_a_mean_written_as_a_product_is_no_product(fill: str) -> None:
    """As the layout pass writes it; the twin's ReduceMean counts nothing, so neither may this."""
    row = np.full((1, 20), 1 / 20, np.float32)
    row[0, 0] += fill == "weights"
    node = helper.make_node("MatMul", ["row", "x"], ["y"], name="head/MatMul")
    graph = helper.make_graph(
        [node],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 20, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 1, 8))],
        [numpy_helper.from_array(row, "row")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    wanted = 0 if fill == "mean" else 20 * 8
    assert MacCounter(model).count().blocks["head"].tolist() == [wanted] * 2


def test_missing_masks_and_open_sizes_are_refused() -> None:
    model, static, _ = tiny_models()
    with pytest.raises(UsageError, match=r"mask/layer1\.0/spatial"):
        MacCounter(model).count()
    static.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(BundleError, match="static batch"):
        MacCounter(static)


def test_groups_are_the_first_part_of_a_name() -> None:
    assert [group_of(name) for name in ("layer1.0/conv1", "stem/a/b", "Conv_3", "", "/x")] == [
        "layer1.0",
        "stem",
        "other",
        "other",
        "other",
    ]
