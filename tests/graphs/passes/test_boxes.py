"""Placeholders of boxes as standard operators, in ONNX Runtime beside rules written out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from dyndeploy.errors import ExportError
from dyndeploy.graphs.passes import Context, write_boxes
from dyndeploy.graphs.passes.finish import attach_functions
from dyndeploy.graphs.rules import check_structure
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.boxes import BOXES, KEEP_BOXES, PYRAMID_ROI_ALIGN
from dyndeploy.runtimes import OnnxRuntimeSession


def run(
    op_type: str, feeds: dict[str, np.ndarray], result: tuple[int, ...], dtype: int, *, own: str = "", **attributes: Any
) -> Any:
    """``own``: the operator of ours that takes the placeholder's place."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    node = helper.make_node(op_type, list(feeds), ["y"], name="post-processing/x", domain=BOXES, **attributes)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", dtype, result)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(BOXES, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    context = Context({}, ["y"], 18, 10, None, "cpu", inputs=list(feeds))
    write_boxes(model, context)
    assert [node.op_type for node in model.graph.node if node.domain] == [own] * bool(own)
    assert {entry.domain for entry in model.opset_import} == {"", DOMAIN} if own else {""}
    attach_functions(model, context)
    check_structure(model, "the test")
    onnx.checker.check_model(model, full_check=not own)
    with OnnxRuntimeSession(model) as session:
        return session.run(feeds)["y"]


def greedy(
    boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, iou: float, score: float, limit: int
) -> list[int]:
    """Suppression by its definition."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] <= score:
            continue
        for other in kept:
            low, high = np.maximum(boxes[index, :2], boxes[other, :2]), np.minimum(boxes[index, 2:], boxes[other, 2:])
            shared = np.maximum(high - low, 0).prod()
            areas = [(boxes[i, 2:] - boxes[i, :2]).prod() for i in (index, other)]
            if groups[index] == groups[other] and shared > iou * (sum(areas) - shared):
                break
        else:
            kept.append(int(index))
    return (kept + [-1] * limit)[:limit]


@pytest.mark.parametrize("limit", [5, 40])
def test_suppression_keeps_the_best_of_each_group(limit: int) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (30, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (30, 2))], 1).astype(np.float32)
    scores = rng.choice(np.linspace(0, 1, 11), 30).astype(np.float32)  # Many are equal.
    groups = rng.integers(0, 3, 30)
    feeds = {"boxes": boxes, "scores": scores, "groups": groups}
    options = {"iou_threshold": 0.5, "score_threshold": 0.3, "limit": limit}
    found = run(KEEP_BOXES, feeds, (limit,), TensorProto.INT64, **options)
    expected = greedy(boxes, scores, groups, 0.5, float(np.float32(0.3)), limit)
    assert found.tolist() == expected
    assert (limit == 40) == (-1 in expected)


def test_no_box_above_the_threshold() -> None:
    feeds = {
        "boxes": np.zeros((3, 4), np.float32),
        "scores": np.full(3, 0.5, np.float32),
        "groups": np.zeros(3, np.int64),
    }
    # The threshold itself is not above it.
    found = run(KEEP_BOXES, feeds, (4,), TensorProto.INT64, iou_threshold=0.5, score_threshold=0.5, limit=4)
    assert found.tolist() == [-1] * 4


@pytest.mark.parametrize("chosen", [(0, 1, 0, 1), (1, 1, 1, 1)])
def test_boxes_are_read_from_their_level_in_their_order(chosen: tuple[int, ...]) -> None:
    columns = np.arange(16, dtype=np.float32)
    # Values are where they stand, in pixels of the input, so that a bin holds the middle of what it covers.
    fine = np.broadcast_to(columns * 4 + 2, (1, 2, 16, 16)) * np.array([1, -1], np.float32).reshape(1, 2, 1, 1)
    coarse = np.broadcast_to(columns[:8] * 8 + 4, (1, 2, 8, 8)) * np.array([10, -10], np.float32).reshape(1, 2, 1, 1)
    boxes = np.array([[8, 8, 24, 24], [16, 8, 48, 40], [12, 4, 20, 12], [20, 20, 52, 52]], np.float32)
    feeds = {
        "fine": np.ascontiguousarray(fine),
        "coarse": np.ascontiguousarray(coarse),
        "boxes": boxes,
        "levels": np.array(chosen, np.int64),
    }
    found = run(PYRAMID_ROI_ALIGN, feeds, (4, 2, 2, 2), TensorProto.FLOAT, strides=[4, 8], size=2)
    factor = np.array([1.0, 10.0])[list(chosen)]
    quarter = (boxes[:, 2] - boxes[:, 0]) / 4
    expected = np.stack([boxes[:, 0] + quarter, boxes[:, 2] - quarter], 1) * factor[:, None]
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(found[:, 1, 1], -expected, rtol=1e-5)


@pytest.mark.parametrize("last", [4, 5])
def test_pyramids_of_four_levels_are_read_by_an_operator_of_ours(last: int) -> None:
    rng = np.random.default_rng(1)
    sizes = [(25, 38), (13, 19), (7, 10), (last, 5)]
    feeds: dict[str, np.ndarray] = {
        f"p{level}": rng.standard_normal((1, 3, *size)).astype(np.float32) for level, size in enumerate(sizes)
    }
    corners = rng.uniform(0, 70, (9, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 90, (9, 2))], 1).astype(np.float32)
    feeds |= {"boxes": boxes, "levels": np.arange(9) % 4}
    # A last map that covers more than the one before is read by standard operators.
    own = "PyramidRoiAlign" if last == 4 else ""
    found = run(PYRAMID_ROI_ALIGN, feeds, (9, 3, 7, 7), TensorProto.FLOAT, own=own, strides=[4, 8, 16, 32], size=7)
    expected = OPERATORS["PyramidRoiAlign"].reference(
        *map(torch.from_numpy, feeds.values()), strides=[4, 8, 16, 32], size=7
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_a_runtime_without_rules_is_refused() -> None:
    node = helper.make_node(KEEP_BOXES, ["a"], ["y"], name="x/y", domain=BOXES)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(BOXES, 1)]
    model = helper.make_model(helper.make_graph([node], "g", [], []), opset_imports=opsets)
    with pytest.raises(ExportError, match="NonMaxSuppression"):
        write_boxes(model, Context({}, ["y"], 18, 10, None, "nano", runtime="another"))
    # TensorRT reads regions; boxes are the host's.
    with pytest.raises(ExportError, match=r"x/y: tensorrt has no rule for KeepBoxes \(nano\)"):
        write_boxes(model, Context({}, ["y"], 18, 10, None, "nano", runtime="tensorrt"))
