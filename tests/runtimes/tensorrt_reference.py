"""The repacked operators of a TensorRT copy in NumPy: storage as the graph says, sums in float. Test code.

Written from the layout in the plugins' header, not from the packing code: a mistake in one of them shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from dyndeploy.ops import DOMAIN, OPERATORS, Element
from tests.plugins.reference import MASKS, Transformer, row_logits, transformer

PLUGINS = {name: spec for name, spec in OPERATORS.items() if "tensorrt" in spec.kernels}
"""Operators that have a plugin."""

MIXED = False
"""Let half weights meet float activations, as they stand in the graph of a plan with builder flags."""


def relu(value: np.ndarray) -> np.ndarray:
    return np.maximum(value, 0)


def upsampled(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, 1, mh, mw) as (N, Ho, Wo, 1), nearest."""
    rows = np.arange(height) * mask.shape[2] // height
    columns = np.arange(width) * mask.shape[3] // width
    return (mask[:, 0][:, rows][:, :, columns] > 0.5)[..., None]


def bottleneck(
    x: np.ndarray,
    spatial: np.ndarray | None,
    channel: np.ndarray | None,
    weights: dict[str, np.ndarray],
    *,
    stride: int,
    dilation: int,
    group: int,
    pool_active: bool = False,
) -> np.ndarray:
    kind = x.dtype
    projection, excites = "wd" in weights, "ws" in weights
    matrices = {"w1", "w2", "w3", "wd", "ws", "we"}
    for name in matrices & set(weights):
        assert weights[name].dtype == kind or (MIXED and weights[name].dtype == np.float16), name
    for name in set(weights) - matrices:
        assert weights[name].dtype == np.float32, name
    w = {name: value.astype(np.float32) for name, value in weights.items()}
    a = x.astype(np.float32)
    batch, height, width, _ = x.shape
    hidden, per_group = w["w1"].shape[1], w["w1"].shape[1] // group
    # The transformed weights of Winograd's algorithm, of which boards alone make use, may stand behind the taps.
    assert w["w2"].shape[1] == 9 * per_group or (group == 1 and w["w2"].shape[1] == 25 * per_group)
    w["w2"] = w["w2"][:, : 9 * per_group]
    assert w["w2"].shape == (group, 9 * per_group, per_group)
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    active = np.ones((batch, 1, 1, hidden), bool)
    first = relu(a @ w["w1"] + w["b1"])
    if channel is not None:
        active = np.repeat(channel > 0.5, hidden // channel.shape[1], axis=1)[:, None, None, :]
        first = np.where(active, first - (0 if excites else relu(w["b1"])), 0)
    first = first.astype(kind).astype(np.float32)
    padded = np.pad(first, ((0, 0), (dilation,) * 2, (dilation,) * 2, (0, 0)))
    second = np.zeros((batch, out_height, out_width, hidden), np.float32)
    for tap in range(9):
        ky, kx = divmod(tap, 3)
        ys = np.arange(out_height) * stride + ky * dilation
        xs = np.arange(out_width) * stride + kx * dilation
        seen = padded[:, ys][:, :, xs]
        for g in range(group):
            part = slice(g * per_group, (g + 1) * per_group)
            rows = w["w2"][g, tap * per_group : (tap + 1) * per_group]
            second[..., part] += seen[..., part] @ rows
    if channel is None or excites:
        second = np.where(active, relu(second + w["b2"]), 0)
    else:
        border = np.zeros((out_height, out_width), int)
        y, z = np.arange(out_height) * stride, np.arange(out_width) * stride
        border |= (y - dilation < 0)[:, None] * 1 | (y + dilation >= height)[:, None] * 2
        border |= (z - dilation < 0)[None] * 4 | (z + dilation >= width)[None] * 8
        assert w["border_bias"].shape == (16, hidden)
        second = np.where(active, relu(second + w["border_bias"][border]) - relu(w["b2"]), 0)
    second = second.astype(kind).astype(np.float32)
    shown = None if spatial is None else upsampled(spatial, out_height, out_width)
    if excites:
        pixels = np.ones((batch, out_height, out_width, 1), bool) if shown is None or not pool_active else shown
        mean = (second * pixels).sum((1, 2)) / np.maximum(pixels.sum((1, 2)), 1)
        gate = relu(mean @ w["ws"] + w["bs"]) @ w["we"] + w["be"]
        second = (second / (1 + np.exp(-gate))[:, None, None]).astype(kind).astype(np.float32)
    third = second @ w["w3"] + (w["b3"] if channel is None or excites else w["skipped_output"])
    identity = a[:, ::stride, ::stride] @ w["wd"] + w["bd"] if projection else a
    output = relu(identity + third)
    if shown is not None:
        output = np.where(shown, output, relu(identity) if projection else identity)
    return output.astype(kind)


def pooled(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Adaptive average pooling of (N, H, W, C) to (N, height, width, C)."""
    result = np.empty((x.shape[0], height, width, x.shape[3]), np.float32)
    for i in range(height):
        for j in range(width):
            rows = slice(i * x.shape[1] // height, -(-(i + 1) * x.shape[1] // height))
            columns = slice(j * x.shape[2] // width, -(-(j + 1) * x.shape[2] // width))
            result[:, i, j] = x[:, rows, columns].mean((1, 2))
    return result


def masker(name: str, x: np.ndarray, layers: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    assert all(layer.dtype == np.float32 for layer in layers)
    x = x.astype(np.float32)
    if "Token" in name:
        rows = x if name == "TokenMasker" else x[:, 0]
        options = {"normalise": bool(attributes["normalise"]), "epsilon": attributes["epsilon"]}
        bits = (row_logits(rows, np.atleast_2d(layers[0]), layers[1], **options) >= 0).astype(np.float32)
        if name == "TokenMasker":
            bits[:, : attributes["kept"]] = 1
            return bits[..., 0]
        return bits[:, :, None, None] if name == "ClassTokenLayerMasker" else bits
    if name == "SpatialMasker":
        logits = pooled(x, attributes["mask_height"], attributes["mask_width"]) @ layers[0].T + layers[1]
        return (logits >= 0).astype(np.float32).transpose(0, 3, 1, 2)
    features = x.mean((1, 2))
    if len(layers) == 4:
        features = relu(features @ layers[0].T + layers[1])
    return (features @ layers[-2].T + layers[-1] >= 0).astype(np.float32)


def transformer_block(given: dict[str, np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    x = given["x"]
    masks = {key: given[key] for key in MASKS if key in given}
    assert all(mask.dtype == np.float32 for mask in masks.values())
    weights = {key: value for key, value in given.items() if key not in {"x", *masks}}
    for key, value in weights.items():
        matrix = key in ("w_qkv", "w_proj", "w_fc1", "w_fc2")
        assert value.dtype == (x.dtype if matrix else np.float32) or (matrix and MIXED and value.dtype == np.float16)
    width, _, heads, inner = weights["w_qkv"].shape
    # Inputs first in the layout of the plugin, last in that of the operator.
    axes = {"w_qkv": (1, 2, 3, 0), "w_proj": (2, 0, 1), "w_fc1": (1, 0), "w_fc2": (1, 0)}
    plain = {key: value.astype(np.float32) for key, value in weights.items()}
    plain |= {key: np.ascontiguousarray(plain[key].transpose(order)) for key, order in axes.items()}
    block = Transformer(width, heads, inner, weights["w_fc1"].shape[1], **attributes)
    return transformer(block, plain, x.astype(np.float32), masks).astype(x.dtype)


def sampled(name: str, inputs: tuple[np.ndarray, ...], attributes: dict[str, Any]) -> np.ndarray:
    """What reads maps and neither decides nor skips: as PyTorch computes it, from the types that a plugin takes."""
    spec, tensors = OPERATORS[name], []
    for port, value in zip(spec.inputs, inputs, strict=True):
        wanted = {Element.DATA: inputs[0].dtype, Element.FLOAT: np.float32, Element.INDEX: np.int32}[port.element]
        assert value.dtype == wanted, (name, port.name, value.dtype)
        wide = np.int64 if port.element is Element.INDEX else value.dtype
        tensors.append(torch.from_numpy(np.ascontiguousarray(value.astype(wide))))
    own = {attribute.name: attributes[attribute.name] for attribute in spec.attributes}
    found: np.ndarray = spec.reference(*tensors, **own).numpy()
    return found


def run_operator(name: str, inputs: tuple[np.ndarray, ...], attributes: dict[str, Any]) -> np.ndarray:
    spec = OPERATORS[name]
    names = [port.name for port in spec.inputs]
    if not spec.gates and not spec.decides:
        return sampled(name, inputs, attributes)
    if "Masker" in name:
        return masker(name, inputs[0], list(inputs[1:]), attributes)
    if "Channel" in name and "ws" not in names:
        names += ["border_bias", "skipped_output"]
    given = dict(zip(names, inputs, strict=True))
    if "Transformer" in name:
        return transformer_block(given, attributes)
    x = given.pop("x")
    masks = {key: given.pop(key) for key in list(given) if key.endswith("mask")}
    for mask in masks.values():
        assert mask.dtype == np.float32
    return bottleneck(
        x,
        next((mask for mask in masks.values() if mask.ndim == 4), None),
        next((mask for mask in masks.values() if mask.ndim == 2), None),
        given,
        stride=int(attributes["strides"][0]),
        dilation=int(attributes["dilations"][0]),
        group=int(attributes["group"]),
        pool_active=bool(attributes.get("pool_active", 0)),
    )


def _operator_run(name: str) -> type[OpRun]:
    def _run(self: OpRun, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        assert attributes.pop("plugin_version") == "1"
        assert attributes.pop("plugin_namespace") == ""
        return (run_operator(name, inputs, attributes),)

    return type(name, (OpRun,), {"op_domain": DOMAIN, "_run": _run})


RUNS = [_operator_run(name) for name in PLUGINS]


def evaluate(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a TensorRT copy; every intermediate must have the type that the graph gives it."""
    names = [value.name for value in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model, new_ops=RUNS).run(None, feeds), strict=True))


def check_types(typed: onnx.ModelProto) -> None:
    """Raise unless every standard operator of a typed FP16 copy gets inputs of the types that ONNX allows."""
    model = onnx.ModelProto()
    model.CopyFrom(typed)
    for node in model.graph.node:
        if node.domain == DOMAIN and node.output[0] not in {value.name for value in model.graph.output}:
            kind = onnx.TensorProto.FLOAT16 if "Bottleneck" in node.op_type else onnx.TensorProto.FLOAT
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], kind, None))
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
