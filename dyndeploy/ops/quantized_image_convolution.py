"""QuantizedImageConvolution: the first layers of a network in integers, from float images to bytes channels last.

A dense convolution of few input channels with the ReLU and the max pooling behind it. The image is quantised as
QuantizeLinear does, padding stands for 0, the sums are requantised by the arithmetic of
:mod:`dyndeploy.ops._quantized`, and of every window the largest byte is taken. Nothing is skipped, so that there are
no masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, numpy_helper

from dyndeploy.errors import UsageError
from dyndeploy.ops import _quantized as integers
from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops.base import (
    Array,
    Attribute,
    Attributes,
    Counts,
    Element,
    KernelSpec,
    OperatorSpec,
    Port,
    Rates,
    Role,
    Shape,
    StandardLayer,
    Work,
    no_counts,
    per_image,
)

if TYPE_CHECKING:
    import torch

NAME = "QuantizedImageConvolution"

MAX_CHANNELS = 4
"""Of an image. More fill the vectors of other kernels."""
MAX_KERNEL_ROWS = 9
"""Rows of a kernel, and of a pooling window; the native kernels add up one product for each."""

_LARGEST = 2**15
"""Other extents are smaller."""


def reference(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    m: torch.Tensor,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    pool_shape: Sequence[int],
    pool_strides: Sequence[int],
    pool_pads: Sequence[int],
    scale: float,
    zero_point: int,
) -> torch.Tensor:
    """Compute the operator, to the bit.

    Args:
        x: (N, C, H, W) float32 images; NaN counts as the smallest number.
        w: (Co, C, R, S) int8.
        b: (Co,) int32, in units of ``scale`` and the weights' scales.
        m: (Co,) float32 multipliers.
        strides: Of the convolution: rows, columns.
        pads: Rows above, columns before, rows below, columns behind.
        pool_shape: Rows and columns of a window; 1 and 1 where nothing is pooled.
        pool_strides: As ``strides``.
        pool_pads: As ``pads``; what is padded is never the largest.
        scale: ``x`` is about ``scale * (q - zero_point)``.
        zero_point: In [0, 255].

    Returns:
        (N, Ho, Wo, Co) uint8.
    """
    import torch
    import torch.nn.functional as F

    step = torch.tensor(scale, dtype=torch.float32).expand(1)
    low, high = -float(zero_point), float(integers.ACTIVATION_LIMIT - zero_point)
    whole = (x.to(torch.float32) / step).nan_to_num(low).round().clamp(low, high).double()
    top, left, bottom, right = pads
    sums = F.conv2d(F.pad(whole, (left, right, top, bottom)), w.double(), stride=tuple(strides))
    result = integers.requantise(sums.permute(0, 2, 3, 1), b.double(), m).clamp(0, integers.ACTIVATION_LIMIT)
    top, left, bottom, right = pool_pads
    # What is padded is 0, the least that there is.
    padded = F.pad(result.permute(0, 3, 1, 2), (left, right, top, bottom))
    pooled = F.max_pool2d(padded, tuple(pool_shape), tuple(pool_strides))
    return pooled.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(f"{NAME}: {message}.")


def _pair(attributes: Attributes, name: str, least: int) -> tuple[int, ...]:
    values = tuple(int(value) for value in attributes[name])
    _require(all(least <= value < _LARGEST for value in values), f"{name} {list(values)}")
    return values


def _convolved(shapes: Sequence[Shape], attributes: Attributes) -> tuple[int, int]:
    """Rows and columns in front of the pooling; checks everything."""
    x, w, b, m = shapes
    _require(len(x) == 4 and 1 <= x[1] <= MAX_CHANNELS, f"x must be (N, 1..{MAX_CHANNELS}, H, W), not {x}")
    _require(
        len(w) == 4 and w[1] == x[1] and 1 <= w[2] <= MAX_KERNEL_ROWS and w[3] >= 1,
        f"w must be (Co, {x[1]}, 1..{MAX_KERNEL_ROWS}, S), not {w}",
    )
    for name, shape in (("b", b), ("m", m)):
        _require(shape == w[:1], f"{name} must be {w[:1]}, not {shape}")
    scale, zero_point = float(attributes["scale"]), int(attributes["zero_point"])
    _require(math.isfinite(scale) and scale >= float(np.finfo(np.float32).tiny), f"scale {scale}")
    _require(0 <= zero_point <= integers.ACTIVATION_LIMIT, f"zero_point {zero_point}")
    return _windows("w", x[2:], w[2:], _pair(attributes, "strides", 1), _pair(attributes, "pads", 0))


def _windows(
    what: str, size: Sequence[int], window: Sequence[int], strides: Sequence[int], pads: Sequence[int]
) -> tuple[int, int]:
    """How many windows there are in rows and columns."""
    found = []
    for axis in (0, 1):
        room = size[axis] + pads[axis] + pads[axis + 2] - window[axis]
        _require(room >= 0, f"{what}: a window of {list(window)} is larger than {list(size)} with pads {list(pads)}")
        found.append(room // strides[axis] + 1)
    return found[0], found[1]


def _infer_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    size = _convolved(shapes, attributes)
    window, pads = _pair(attributes, "pool_shape", 1), _pair(attributes, "pool_pads", 0)
    _require(window[0] <= MAX_KERNEL_ROWS, f"pool_shape {list(window)} has more than {MAX_KERNEL_ROWS} rows")
    _require(
        all(pad < window[axis % 2] for axis, pad in enumerate(pads)),
        f"pool_pads {list(pads)} must be smaller than pool_shape {list(window)}",
    )
    rows, columns = _windows("pool", size, window, _pair(attributes, "pool_strides", 1), pads)
    return shapes[0][0], rows, columns, shapes[1][0]


def _work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
    rows, columns = _convolved(shapes, attributes)
    weights = math.prod(shapes[1])
    return Work(
        macs=per_image(rows * columns * weights, shapes),
        read=4.0 * math.prod(shapes[0]),
        written=1.0 * math.prod(_infer_shape(shapes, attributes)),
        weights=1.0 * weights,
    )


def _sizes(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Mapping[str, float]:
    batch, _, _, outputs = _infer_shape(shapes, attributes)
    rows, columns = _convolved(shapes, attributes)
    channels, height, width = shapes[0][1:]
    kernel = shapes[1][2] * shapes[1][3]
    return {
        "batch": batch, "h": height, "w": width, "oh": rows, "ow": columns, "cin": channels * kernel, "cmid": 0,
        "cout": outputs,
    }  # fmt: skip


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    def number(value: Any) -> Value:
        return b.op("Constant", value=numpy_helper.from_array(np.asarray(value)))

    zero_point = b.op("Cast", b.integer("zero_point"), to=TensorProto.UINT8)
    one, zero = number(np.float32(1)), number(np.uint8(0))
    image = b.op("QuantizeLinear", inputs["x"], b.number("scale"), zero_point)
    # With scales of 1 on both sides, the weights' scales are the multipliers: see convolved() of the bottlenecks.
    result = b.op(
        "QLinearConv",
        image,
        one,
        zero_point,
        inputs["w"],
        inputs["m"],
        number(np.int8(0)),
        one,
        zero,
        inputs["b"],
        strides=AttributeRef("strides"),
        pads=AttributeRef("pads"),
    )
    pooled = b.op(
        "MaxPool",
        result,
        kernel_shape=AttributeRef("pool_shape"),
        strides=AttributeRef("pool_strides"),
        pads=AttributeRef("pool_pads"),
    )
    return b.op("Transpose", pooled, perm=[0, 2, 3, 1])


def from_layers(
    weight: Array,
    bias: Array | None,
    convolution: Mapping[str, Any],
    pooling: Mapping[str, Any] | None,
    *,
    scales: tuple[float, float],
    zero_point: int,
    weight_bits: int,
) -> tuple[OperatorSpec, dict[str, Array], dict[str, Any]] | None:
    """The operator for a standard convolution, the ReLU and the max pooling behind it, and a transpose to (N, H, W, C).

    Args:
        weight: (Co, C / group, R, S).
        bias: (Co,).
        convolution: Attributes of the ONNX node.
        pooling: Those of the MaxPool; None where there is none.
        scales: Of the image and of the output.
        zero_point: Of the image; that of the output is 0.
        weight_bits: 7 or 8.

    Returns:
        The operator, its weights by port name and its attributes; None where it does not compute such layers.

    Raises:
        UsageError: Constants that leave the range of the arithmetic.
    """
    import torch

    for given in (convolution, pooling or {}):
        if any(given.get(name, default) != default for name, default in _DEFAULTS.items()):
            return None
    if weight.ndim != 4 or weight.shape[1] > MAX_CHANNELS or weight.shape[2] > MAX_KERNEL_ROWS:
        return None
    pool = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4} | dict(pooling or {})
    attributes: dict[str, Any] = {
        "strides": list(convolution.get("strides", [1, 1])),
        "pads": list(convolution.get("pads", [0] * 4)),
        "pool_shape": list(pool["kernel_shape"]),
        "pool_strides": list(pool["strides"]),
        "pool_pads": list(pool["pads"]),
        "scale": float(np.float32(scales[0])),
        "zero_point": zero_point,
    }
    integers.require_scales(NAME, {"x": scales[0], "y": scales[1]}, ("x", "y"))
    biases = np.zeros(len(weight), np.float32) if bias is None else bias
    integers.require_finite(NAME, {"w": weight, "b": biases})
    with torch.no_grad():
        given_weight, given_bias = (torch.from_numpy(np.array(value, np.float32)) for value in (weight, biases))
        found = integers.linear_constants(given_weight, given_bias, scales, weight_bits)
        w, b, m = (value.numpy() for value in found)
    integers.require_range(NAME, "w", w, b, m)
    constants: dict[str, Array] = {"w": w.astype(np.int8), "b": b.astype(np.int32), "m": m.astype(np.float32)}
    return SPECS[0], constants, attributes


def _standard(weights: Mapping[str, Array], attributes: Attributes) -> list[StandardLayer]:
    # Padding stands for 0, as that of a convolution of floats does; the image is not rounded.
    multiplier = weights["m"].astype(np.float64)
    weight = weights["w"] * (multiplier / float(attributes["scale"])).reshape(-1, 1, 1, 1)
    constants = {"w": weight.astype(np.float32), "b": (weights["b"] * multiplier).astype(np.float32)}
    around = {name: list(attributes[name]) for name in ("strides", "pads")}
    layers = [
        StandardLayer("Conv", constants, {**around, "kernel_shape": list(weight.shape[2:])}),
        StandardLayer("Relu", {}, {}),
    ]
    window = list(attributes["pool_shape"])
    if window != [1, 1] or list(attributes["pool_strides"]) != [1, 1]:
        pool = {"strides": list(attributes["pool_strides"]), "pads": list(attributes["pool_pads"])}
        layers.append(StandardLayer("MaxPool", {}, {"kernel_shape": window, **pool}))
    return [*layers, StandardLayer("Transpose", {}, {"perm": [0, 2, 3, 1]})]


_DEFAULTS = {"dilations": [1, 1], "group": 1, "auto_pad": b"NOTSET", "ceil_mode": 0, "storage_order": 0}
"""Attributes of standard layers with which this operator computes them."""


SPECS = (
    OperatorSpec(
        name=NAME,
        version=1,
        kind="quantized_image_convolution",
        summary="Convolution, ReLU and max pooling of float images in integers, to bytes channels last.",
        inputs=(
            Port("x", Role.ACTIVATION, ("N", "C", "H", "W"), Element.FLOAT),
            Port("w", Role.WEIGHT, ("Co", "C", "R", "S"), Element.INT8),
            Port("b", Role.WEIGHT, ("Co",), Element.INT32),
            Port("m", Role.WEIGHT, ("Co",), Element.FLOAT),
        ),
        outputs=(Port("y", Role.ACTIVATION, ("N", "Ho", "Wo", "Co"), Element.UINT8),),
        attributes=(
            Attribute("strides", 2),
            Attribute("pads", 4),
            Attribute("pool_shape", 2),
            Attribute("pool_strides", 2),
            Attribute("pool_pads", 4),
            Attribute("scale", type=float),
            Attribute("zero_point"),
        ),
        gates={},
        reference=reference,
        infer_shape=_infer_shape,
        body=_body,
        counts=no_counts,
        expected=no_counts,
        work=_work,
        sizes=_sizes,
        kernels={"cpu": KernelSpec(precisions=("int8",))},
        standard=_standard,
    ),
)
