"""QuantizedChannelBottleneck: a residual bottleneck that skips groups of hidden channels, exactly, in integers.

What :mod:`dyndeploy.ops.channel_bottleneck` computes in floats. The mask acts before the bias there, and so on the sums
here: a skipped channel is the constant ``clamp(requantise(0, b, m), 0, 255)``, which the next convolution sees, with
zero padding at the borders. The arithmetic is that of :mod:`dyndeploy.ops._quantized`; activations are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, numpy_helper

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops import _quantized_body as integers
from dyndeploy.ops import _quantized_bottleneck
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops.channel_bottleneck import MASK, channel_geometry
from dyndeploy.ops.gates import CHANNEL

if TYPE_CHECKING:
    import torch

NAME = "QuantizedChannelBottleneck"
_GATHERED = 0.5
"""Up to this share of active channels a body gathers their weights; above, copying costs more than products that are
not needed."""


def reference(x: torch.Tensor, mask: torch.Tensor, *weights: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """Compute the operator densely and select.

    Args:
        x: (N, H, W, C) uint8.
        mask: (N, G), active where above 0.5 (NaN is not); group i covers the channels i M / G ... (i + 1) M / G - 1.
        weights: See :func:`dyndeploy.ops._quantized_bottleneck.reference`.
        attributes: As of the FP32 operator.

    Returns:
        (N, Ho, Wo, Co) uint8.
    """
    return _quantized_bottleneck.reference(x, weights, channel=mask, **attributes)


@dataclass(frozen=True)
class StaticParts:
    """What depends on weights and shapes only; folded to constants at load.

    Attributes:
        constant1: What a skipped channel is after the first 1x1, uint8 (M,).
        constant2: After the 3x3, uint8 (M,).
        through: Sums of the 3x3's products with ``constant1`` of all channels, by output and tap, int32 (M, 9).
        bias3: ``b3`` and the sums of the last 1x1's products with ``constant2`` of all channels, int32 (1, Co).
        w2: The 3x3 with spread groups, (M, 9 M) in the order of output, tap and input.
        w3: The last 1x1 transposed, (M, Co).
        channels: Channel indices of every group, (G, M / G).
        slots: For each pixel and tap, 1 + the input pixel that it reads, 0 outside the map: (Ho Wo, 9).
        classes: Border class of every output pixel, (Ho Wo,); see ``_INSIDE``.
    """

    constant1: Value
    constant2: Value
    through: Value
    bias3: Value
    w2: Value
    w3: Value
    channels: Value
    slots: Value
    classes: Value


_AXIS = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 0], [0, 1, 0]], np.int32)
_INSIDE = np.einsum("ry,cx->rcyx", _AXIS, _AXIS).reshape(16, 9)
"""Which taps are inside the map, by border class: 4 x (above: 1, below: 2) + (left: 1, right: 2)."""


def _static_parts(b: Body, inputs: Mapping[str, Value], sizes: shared.Sizes) -> StaticParts:
    constant1, constant2 = (integers.skipped_constants(b, inputs, name) for name in "12")
    w2, w3 = integers.w2_rows(b, inputs["w2"], sizes), b.op("Transpose", inputs["w3"], perm=[1, 0])
    of_taps = b.op("Transpose", b.reshape(w2, sizes.hidden, 9, sizes.hidden), perm=[1, 2, 0])
    through = b.op("MatMulInteger", b.unsqueeze(constant1, 0), of_taps)
    through = b.op("Transpose", b.reshape(through, 9, sizes.hidden), perm=[1, 0])

    def taps(out_size: Value, size: Value) -> tuple[Value, Value]:
        """Input coordinates of the taps along one axis (out_size, 3), -1 outside; and the border classes."""
        at = b.unsqueeze(b.arange(out_size) * sizes.stride, 1) + b.value([-1, 0, 1]) * sizes.dilation
        inside = b.op("And", b.op("Less", -1, at), b.op("Less", at, size))
        outside = b.op("Cast", b.op("Not", inside), to=TensorProto.INT64)
        classes = b.op("ReduceSum", outside * b.value([1, 0, 2]), [1], keepdims=0)
        return b.op("Where", inside, at, -1), classes

    (rows, row_classes), (columns, column_classes) = (
        taps(sizes.out_height, sizes.height),
        taps(sizes.out_width, sizes.width),
    )
    source = b.unsqueeze(rows * sizes.width, 1, 3) + b.unsqueeze(columns, 0, 2) + 1
    inside = b.op("And", b.op("Less", -1, b.unsqueeze(rows, 1, 3)), b.op("Less", -1, b.unsqueeze(columns, 0, 2)))
    return StaticParts(
        constant1=constant1,
        constant2=constant2,
        through=through,
        bias3=b.op("MatMulInteger", b.unsqueeze(constant2, 0), w3) + inputs["b3"],
        w2=w2,
        w3=w3,
        channels=b.reshape(b.arange(sizes.hidden), b.dim(inputs["mask"], 1), -1),
        slots=b.reshape(b.op("Where", inside, source, 0), -1, 9),
        classes=b.reshape(b.unsqueeze(row_classes * 4, 1) + column_classes, -1),
    )


def _sample(
    b: Body, inputs: Mapping[str, Value], sizes: shared.Sizes, static: StaticParts, x: Value, mask: Value
) -> Value:
    """One sample: x (H, W, C), mask (G,) -> rows (Ho Wo, Co)."""
    groups = b.reshape(b.op("NonZero", mask), -1)
    pixels = b.reshape(x, -1, sizes.channels)
    identity = pixels
    if "wd" in inputs:
        identity = b.reshape(integers.strided(b, b.unsqueeze(x, 0), sizes), -1, sizes.channels)

    def run(inner: Body) -> Value:
        channels = inner.reshape(inner.gather(static.channels, groups), -1)
        count = inner.dim(channels, 0)

        def layer(name: str, sums: Value) -> Value:
            """``clamp(requantise(sums), 0, 255)`` of the active channels."""
            return integers.bytes_of(inner, integers.scaled(inner, sums, inner.gather(inputs[f"m{name}"], channels)))

        w1 = inner.op("Transpose", inner.gather(inputs["w1"], channels), perm=[1, 0])
        sums = inner.op("MatMulInteger", pixels, w1)
        hidden = layer("1", sums + inner.gather(inputs["b1"], channels))

        # Rows of output channels first, so that both gathers copy long runs.
        w2 = inner.op("Transpose", inner.gather(static.w2, channels), perm=[1, 0])
        w2 = inner.gather(inner.reshape(w2, 9, sizes.hidden, count), channels, axis=1)
        # What the active channels' constants would give is not there: with that of all, it leaves the skipped ones'.
        constant1 = inner.unsqueeze(inner.gather(static.constant1, channels), 0)
        own = inner.reshape(inner.op("MatMulInteger", constant1, w2), 9, count)
        skipped = inner.op("Transpose", inner.gather(static.through, channels), perm=[1, 0]) - own
        inside = inner.op("Constant", value=numpy_helper.from_array(_INSIDE))
        bias2 = inner.op("MatMul", inside, skipped) + inner.gather(inputs["b2"], channels)
        taps = inner.gather(integers.with_zero_row(inner, hidden, count), static.slots)
        sums = inner.op("MatMulInteger", inner.reshape(taps, -1, count * 9), inner.reshape(w2, count * 9, count))
        hidden = layer("2", sums + inner.gather(bias2, static.classes))

        w3 = inner.gather(static.w3, channels)
        constant2 = inner.unsqueeze(inner.gather(static.constant2, channels), 0)
        bias3 = inner.reshape(static.bias3 - inner.op("MatMulInteger", constant2, w3), -1)

        def in_passes(last: Body) -> Value:
            sums = last.op("MatMulInteger", hidden, w3) + bias3
            if "wd" in inputs:
                return integers.bytes_of(last, projected(last) + integers.rounded(last, sums, inputs["m3"]))
            return integers.added_floats(last, identity, sums, inputs)

        def at_once(last: Body) -> Value:
            weight = last.unsqueeze(last.op("Transpose", w3, perm=[1, 0]), 2, 3)
            maps = integers.as_row(last, hidden, count)
            residual = (
                last.reshape(
                    integers.convolved(last, maps, weight, {**inputs, "b3": bias3}, "3", zero_point=zero_point),
                    -1,
                    sizes.out_channels,
                )
                for zero_point in (0, 255)
            )
            return integers.added_bytes(last, identity, *residual)

        if "wd" in inputs:
            return in_passes(inner)
        # ONNX Runtime lays weights out anew that it does not know when it loads: only many pixels repay that.
        return inner.branch(inner.op("Less", count * 4, inner.dim(identity, 0)), at_once, in_passes)

    def projected(inner: Body) -> Value:
        return integers.wide(inner, identity, inputs, "d")

    def skip(inner: Body) -> Value:
        residual = integers.rounded(inner, static.bias3, inputs["m3"])
        if "wd" in inputs:
            return integers.bytes_of(inner, projected(inner) + residual)
        negative = inner.op("QuantizeLinear", residual, *integers.unit(inner, 255))
        return integers.added_bytes(inner, identity, integers.bytes_of(inner, residual), negative)

    return b.branch(b.op("Less", 0, b.dim(groups, 0)), run, skip)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    sizes = shared.body_sizes(b, inputs)
    static = _static_parts(b, inputs, sizes)
    select = integers.selection(b, inputs, inputs["mask"], sizes)

    def most(inner: Body) -> Value:
        return integers.dense_map(inner, inputs, sizes, inputs["x"], select)

    def some(inner: Body) -> Value:
        return inner.for_each_sample(
            [inputs["x"], inputs["mask"]], lambda each, sample: _sample(each, inputs, sizes, static, *sample)
        )

    share = b.op("ReduceMean", inputs["mask"], keepdims=0)
    many = b.op("Less", b.op("Constant", value_float=_GATHERED), share)
    return shared.to_map(b, b.branch(many, most, some), sizes)


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck on the active hidden channels, skipped channels exact, in integers",
    masks=(MASK,),
    gates={"mask": CHANNEL},
    reference=reference,
    geometry=channel_geometry,
    body=_body,
    quantized=True,
)
