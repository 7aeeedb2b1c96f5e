"""Depthwise convolutions that are pooled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from dyndeploy.graphs.inspect import drop_unused
from dyndeploy.graphs.passes.batch_norm import is_linear, set_weights
from dyndeploy.graphs.passes.shared import Double, Links, attributes_of, set_attribute

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


def fold_pooled_depthwise(model: onnx.ModelProto, context: Context) -> None:
    """``fold::pooled_depthwise``: ``pool(conv(x) + x)`` of a depthwise convolution is one depthwise convolution.

    All three are linear, and windows of an average pool do not overlap: a k x k convolution averaged over s x s windows
    is a (k + s - 1) x (k + s - 1) convolution of stride s, with k² s² / (k + s - 1)² times fewer products. Only for
    ONNX Runtime: whether TensorRT has good kernels for windows as wide as 22 x 22 has not been measured.
    """
    if context.runtime != "onnxruntime":
        return
    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        links = Links(model)
        if not is_linear(conv, links) or not _keeps_size(conv, links):
            continue
        weight = links.value(conv.input[1])
        output, last = conv.output[0], conv
        removed = []
        add = links.only_reader(output)
        if add is not None and add.op_type == "Add" and conv.input[0] in add.input:
            weight = weight.copy()
            weight[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] += 1
            output, last = add.output[0], add
            removed.append(add)
        pool = links.only_reader(output)
        strides = (1, 1)
        if pool is not None and pool.op_type == "AveragePool" and _has_whole_windows(pool):
            strides = tuple(attributes_of(pool)["kernel_shape"])
            weight = _averaged(weight, *strides)
            last = pool
            removed.append(pool)
        if not removed:
            continue
        bias = np.zeros(len(weight)) if len(conv.input) < 3 else links.value(conv.input[2])
        set_weights(conv, weight, bias, links)
        set_attribute(conv, "strides", strides)
        set_attribute(conv, "kernel_shape", weight.shape[2:])
        conv.output[0] = last.output[0]
        for node in removed:
            model.graph.node.remove(node)
    drop_unused(model)


def _keeps_size(conv: onnx.NodeProto, links: Links) -> bool:
    """Whether a convolution is depthwise and gives a map of the size of its input."""
    weight, attributes = links.constants[conv.input[1]].dims, attributes_of(conv)
    if len(weight) != 4 or weight[1] != 1 or attributes.get("group", 1) != weight[0]:
        return False
    plain = set(attributes.get("strides", [1])) == set(attributes.get("dilations", [1])) == {1}
    return plain and list(attributes.get("pads", [0] * 4)) == [side // 2 for side in (*weight[2:], *weight[2:])]


def _has_whole_windows(pool: onnx.NodeProto) -> bool:
    attributes = attributes_of(pool)
    same = list(attributes["kernel_shape"]) == list(attributes.get("strides", []))
    dilated = set(attributes.get("dilations", [1])) != {1}
    return same and not any(attributes.get("pads", [])) and not attributes.get("ceil_mode", 0) and not dilated


def _averaged(weight: Double, rows: int, columns: int) -> Double:
    """A stride-1 kernel (C, 1, k, l) averaged over windows of rows x columns: (C, 1, k + rows - 1, l + columns - 1)."""
    count, _, height, width = weight.shape
    wide = np.zeros((count, 1, height + rows - 1, width + columns - 1))
    for row in range(rows):
        for column in range(columns):
            wide[:, :, row : row + height, column : column + width] += weight / (rows * columns)
    return wide
