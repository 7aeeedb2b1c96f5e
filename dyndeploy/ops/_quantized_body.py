"""Pieces of the ONNX bodies of bottlenecks in integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops._bottleneck import ActiveSet, Sizes
from dyndeploy.ops._quantized import ACTIVATION_LIMIT


def _number(b: Body, value: Any) -> Value:
    return b.op("Constant", value=numpy_helper.from_array(np.asarray(value)))


def unit(b: Body, zero_point: int = 0) -> tuple[Value, Value]:
    """Scale 1 and a zero point: numbers that stand for themselves, shifted."""
    return _number(b, np.float32(1)), _number(b, np.uint8(zero_point))


def bytes_of(b: Body, values: Value) -> Value:
    """Floats rounded, half to even, and saturated to uint8."""
    return b.op("QuantizeLinear", values, *unit(b))


def floats_of(b: Body, values: Value, zero_point: int = 0) -> Value:
    """uint8 as floats, less a zero point."""
    return b.op("DequantizeLinear", values, *unit(b, zero_point))


def convolved(
    b: Body,
    maps: Value,
    weight: Value,
    inputs: Mapping[str, Value],
    name: str,
    *,
    zero_point: int = 0,
    **attributes: AttributeRef,
) -> Value:
    """``clamp(requantise(conv(maps)) + zero_point, 0, 255)``, channels last; the weight is (out, in, k, k).

    With scales of 1 on both sides, QLinearConv multiplies by the weights' scales alone, which are the multipliers: one
    product in single precision, rounded half to even. ONNX Runtime takes transposed maps for what they are, and
    computes channels last.
    """
    one, zero = unit(b)
    # Releases of ONNX Runtime before 1.31 leave out a constant bias of the graph around a branch, if the zero points
    # are constants of the branch: reshaped here, it is one, too.
    bias = b.reshape(b.unsqueeze(inputs[f"b{name}"], 0), -1)
    result = b.op(
        "QLinearConv",
        b.op("Transpose", maps, perm=[0, 3, 1, 2]),
        one,
        zero,
        weight,
        inputs[f"m{name}"],
        _number(b, np.int8(0)),
        *unit(b, zero_point),
        bias,
        **attributes,
    )
    return b.op("Transpose", result, perm=[0, 2, 3, 1])


def pointwise(
    b: Body, maps: Value, inputs: Mapping[str, Value], name: str, *, zero_point: int = 0, **attributes: AttributeRef
) -> Value:
    """A 1x1 convolution; see :func:`convolved`."""
    weight = b.unsqueeze(inputs[f"w{name}"], 2, 3)
    return convolved(b, maps, weight, inputs, name, zero_point=zero_point, **attributes)


def wide(b: Body, maps: Value, inputs: Mapping[str, Value], name: str) -> Value:
    """``requantise`` of a 1x1 convolution with its 16 bits, channels last, as floats that hold integers."""
    sums = b.op("MatMulInteger", maps, b.op("Transpose", inputs[f"w{name}"], perm=[1, 0]))
    return rounded(b, sums + inputs[f"b{name}"], inputs[f"m{name}"])


def scaled(b: Body, sums: Value, multiplier: Value) -> Value:
    """The product of sums, as floats, with the multipliers of their last axis."""
    return b.op("Cast", sums, to=TensorProto.FLOAT) * multiplier


def rounded(b: Body, sums: Value, multiplier: Value) -> Value:
    """``requantise`` of sums that have their bias."""
    ends = (_number(b, np.float32(end)) for end in (-(2**15), 2**15 - 1))
    return b.op("Clip", b.op("Round", scaled(b, sums, multiplier)), *ends)


def added(b: Body, x: Value, hidden: Value, inputs: Mapping[str, Value]) -> Value:
    """``clamp(identity + requantise(w3 hidden), 0, 255)`` at the same pixels of ``x`` and ``hidden``, (., ., ., Co).

    Of what is added to a byte, that in [-255, 255] is all that matters: one byte for what is positive, one for what is
    negative. Adding one after the other saturates no sum too early, for one of them is zero. Two such products are
    faster than one of 32 bits that is scaled, rounded, added and saturated in passes of its own, as long as they are
    short. Behind a projection, 16 bits are added.
    """
    if "wd" in inputs:
        return bytes_of(b, wide(b, x, inputs, "d") + wide(b, hidden, inputs, "3"))

    def at_once(inner: Body) -> Value:
        ends = (0, ACTIVATION_LIMIT)
        return added_bytes(inner, x, *(pointwise(inner, hidden, inputs, "3", zero_point=end) for end in ends))

    def in_passes(inner: Body) -> Value:
        sums = inner.op("MatMulInteger", hidden, inner.op("Transpose", inputs["w3"], perm=[1, 0])) + inputs["b3"]
        return added_floats(inner, x, sums, inputs)

    return b.branch(b.op("Less", b.dim(inputs["w1"], 0), _LONG_PRODUCT), at_once, in_passes)


_LONG_PRODUCT = 256
"""Hidden channels from which on it takes longer to compute the last 1x1 twice than to scale it in passes of its own:
measured on a processor with VNNI; others, whose products are slower, gain from fewer channels on."""


def added_floats(b: Body, x: Value, sums: Value, inputs: Mapping[str, Value]) -> Value:
    """``clamp(x + requantise(sums), 0, 255)``; what would saturate at 16 bits does so here."""
    return bytes_of(b, floats_of(b, x) + b.op("Round", scaled(b, sums, inputs["m3"])))


def added_bytes(b: Body, x: Value, positive: Value, negative: Value) -> Value:
    """``clamp(x + (positive + negative - 255), 0, 255)``, where one of the two adds nothing."""
    total = bytes_of(b, floats_of(b, x) + floats_of(b, positive))
    return bytes_of(b, floats_of(b, total) + floats_of(b, negative, ACTIVATION_LIMIT))


def strided(b: Body, x: Value, sizes: Sizes) -> Value:
    """The pixels that a projection reads, (N, Ho, Wo, C)."""
    ends = b.op("Concat", b.unsqueeze(sizes.height, 0), b.unsqueeze(sizes.width, 0), axis=0)
    return b.op("Slice", x, [0, 0], ends, [1, 2], b.attribute("strides"))


def skipped_map(b: Body, inputs: Mapping[str, Value], x: Value) -> Value:
    """What skipped pixels are, (N, Ho, Wo, Co): ``x``, or the projection."""
    return pointwise(b, x, inputs, "d", strides=AttributeRef("strides")) if "wd" in inputs else x


Selected = Callable[[Body, str, Value, Value | None], Value]
"""``(body, layer, its output, samples of its rows) -> the output with constants for skipped channels``.

Without samples it is a map of whole samples (N, ., ., M), else one of rows (1, 1, P, M) that are of the samples (P,).
"""


def hidden_map(b: Body, inputs: Mapping[str, Value], sizes: Sizes, x: Value, select: Selected | None = None) -> Value:
    """What the first 1x1 and the 3x3 leave, for whole samples (K, H, W, C); (K, Ho, Wo, M)."""
    maps = pointwise(b, x, inputs, "1")
    if select is not None:
        maps = select(b, "1", maps, None)
    # Reshaped here, so that it is a constant of the graph at hand, even of a branch.
    weight = b.reshape(b.reshape(inputs["w2"], -1), sizes.hidden, b.dim(inputs["w2"], 1), b.value(3), b.value(3))
    maps = convolved(
        b,
        maps,
        weight,
        inputs,
        "2",
        strides=AttributeRef("strides"),
        dilations=AttributeRef("dilations"),
        pads=AttributeRef("pads"),
        group=AttributeRef("group", AttributeRef.INT),
    )
    return maps if select is None else select(b, "2", maps, None)


def dense_map(b: Body, inputs: Mapping[str, Value], sizes: Sizes, x: Value, select: Selected | None = None) -> Value:
    """The bottleneck of whole samples (K, H, W, C), bytes; (K, Ho, Wo, Co)."""
    hidden = hidden_map(b, inputs, sizes, x, select)
    if "ws" in inputs:
        hidden = excited_map(b, inputs, sizes, hidden)
    return added(b, strided(b, x, sizes) if "wd" in inputs else x, hidden, inputs)


def as_row(b: Body, rows: Value, width: Value | int) -> Value:
    """Rows (P, K) as a map of one row, (1, 1, P, K)."""
    return b.reshape(rows, 1, 1, -1, width)


def w2_rows(b: Body, w2: Value, sizes: Sizes) -> Value:
    """See :func:`dyndeploy.ops._bottleneck.w2_rows`; by way of floats, for runtimes select among few types."""
    rows = shared.w2_rows(b, b.op("Cast", w2, to=TensorProto.FLOAT), sizes)
    return b.op("Cast", rows, to=TensorProto.INT8)


def sparse_hidden(
    b: Body, inputs: Mapping[str, Value], sizes: Sizes, x: Value, active: ActiveSet, select: Selected | None = None
) -> Value:
    """What the first 1x1 and the 3x3 leave of samples x (K, H, W, C) at the active pixels: a row (1, 1, P, M).

    There is an active pixel at least.
    """
    rows = b.gather(b.reshape(x, -1, sizes.channels), active.needed)
    maps = pointwise(b, as_row(b, rows, sizes.channels), inputs, "1")
    if select is not None:
        maps = select(b, "1", maps, active.needed // (sizes.height * sizes.width))
    rows = with_zero_row(b, b.reshape(maps, -1, sizes.hidden), sizes.hidden)
    taps = b.gather(rows, active.neighbours)
    group = b.integer("group")

    def of_groups(inner: Body) -> Value:
        # The inputs of a group of the 3x3 side by side.
        split = inner.reshape(taps, -1, 9, group, sizes.hidden // group)
        return inner.reshape(inner.op("Transpose", split, perm=[0, 2, 1, 3]), 1, 1, -1, sizes.hidden * 9)

    grouped = b.branch(b.op("Less", 1, group), of_groups, lambda inner: as_row(inner, taps, sizes.hidden * 9))
    last = b.op("Transpose", inputs["w2"], perm=[0, 2, 3, 1])
    weight = b.reshape(last, sizes.hidden, -1, 1, 1)
    maps = convolved(b, grouped, weight, inputs, "2", group=AttributeRef("group", AttributeRef.INT))
    if select is not None:
        maps = select(b, "2", maps, b.reshape(active.pixels, -1) // (sizes.out_height * sizes.out_width))
    return maps


def added_at(b: Body, inputs: Mapping[str, Value], sizes: Sizes, pixels: Value, hidden: Value) -> Value:
    """The output with the residual of ``hidden`` (1, 1, P, M) at these pixels; rows (N Ho Wo, Co)."""
    x = inputs["x"]
    source = strided(b, x, sizes) if "wd" in inputs else x
    source = b.op("GatherND", b.reshape(source, -1, sizes.channels), pixels)
    updated = b.reshape(added(b, as_row(b, source, sizes.channels), hidden, inputs), -1, sizes.out_channels)
    base = b.reshape(skipped_map(b, inputs, x), -1, sizes.out_channels)
    return b.op("ScatterND", base, pixels, updated)


def with_zero_row(b: Body, rows: Value, width: Value) -> Value:
    """``[0; rows]`` of bytes."""
    size = b.op("Concat", [1], b.unsqueeze(width, 0), axis=0)
    return b.op("Concat", b.op("Expand", _number(b, np.uint8(0)), size), rows, axis=0)


def skipped_constants(b: Body, inputs: Mapping[str, Value], name: str) -> Value:
    """What skipped channels are behind a convolution: ``clamp(requantise(0), 0, 255)``, (M,)."""
    return bytes_of(b, scaled(b, inputs[f"b{name}"], inputs[f"m{name}"]))


def any_active(b: Body, mask: Value) -> Value:
    """Whether anything of a mask is 1, as a scalar."""
    return b.op("Cast", b.op("ReduceMax", mask, keepdims=0), to=TensorProto.BOOL)


def spatial_body(
    b: Body, inputs: Mapping[str, Value], sizes: Sizes, mask: Value, select: Selected | None = None
) -> Value:
    """The body of operators that skip pixels; ``mask`` (N, 1, mh, mw) is 0 and 1.

    With a squeeze-and-excitation over whole maps, the samples of a batch of which any pixel is active are computed
    whole, up to the last 1x1.
    """
    mask_size = b.dim(mask, 2), b.dim(mask, 3)
    tables = shared.patch_tables(b, sizes, sizes.batch, mask_size, strided="wd" in inputs)

    def dense(inner: Body) -> Value:
        return dense_map(inner, inputs, sizes, inputs["x"], select)

    def over_active(inner: Body) -> Value:
        active = shared.active_set(inner, mask, tables)
        hidden = sparse_hidden(inner, inputs, sizes, inputs["x"], active, select)
        if "ws" in inputs:
            hidden = excited_rows(inner, inputs, sizes, hidden, active.pixels)
        return added_at(inner, inputs, sizes, active.pixels, hidden)

    def over_all(inner: Body) -> Value:
        pixels = shared.active_pixels(inner, mask, tables)
        maps = excited_map(inner, inputs, sizes, hidden_map(inner, inputs, sizes, inputs["x"], select))
        rows = inner.op("GatherND", inner.reshape(maps, -1, sizes.hidden), pixels)
        return added_at(inner, inputs, sizes, pixels, as_row(inner, rows, sizes.hidden))

    def sparse(inner: Body) -> Value:
        if "ws" not in inputs:
            return over_active(inner)
        pools_active = inner.op("Cast", inner.integer(shared.POOL_ACTIVE.name), to=TensorProto.BOOL)
        return inner.branch(pools_active, over_active, over_all)

    def skip(inner: Body) -> Value:
        return skipped_map(inner, inputs, inputs["x"])

    def some(inner: Body) -> Value:
        # Convolutions take no maps without pixels.
        return inner.branch(any_active(inner, mask), sparse, skip)

    return shared.to_map(b, b.branch(shared.all_ones(b, mask), dense, some), sizes)


def layer_body(b: Body, inputs: Mapping[str, Value]) -> Value:
    """The body of operators that skip whole samples: those that run are gathered, and computed densely."""
    mask, x, sizes = inputs["mask"], inputs["x"], shared.body_sizes(b, inputs)

    def skip(inner: Body) -> Value:
        return skipped_map(inner, inputs, x)

    def run_all(inner: Body) -> Value:
        return dense_map(inner, inputs, sizes, x)

    def run_some(inner: Body) -> Value:
        samples = inner.reshape(inner.op("NonZero", inner.reshape(mask, -1)), -1)
        updated = dense_map(inner, inputs, sizes, inner.gather(x, samples))
        return inner.op("ScatterND", skip(inner), inner.unsqueeze(samples, 1), updated)

    def run_any(inner: Body) -> Value:
        return inner.branch(shared.all_ones(inner, mask), run_all, run_some)

    def run(inner: Body) -> Value:
        # A batch of one that is known in advance keeps one copy of the weights.
        return inner.branch(inner.op("Equal", sizes.batch, 1), run_all, run_any)

    return shared.to_map(b, b.branch(any_active(b, mask), run, skip), sizes)


# ---------------------------------------------------------------- squeeze-and-excitation


def _factors(b: Body, inputs: Mapping[str, Value], sums: Value, counts: Value) -> Value:
    """What scales the channels, from sums (K, M) over that many pixels: floats (K, M)."""
    mean = b.op("Div", b.op("Cast", sums, to=TensorProto.FLOAT), counts)
    squeezed = b.op("Relu", b.linear(mean, inputs["ws"], inputs["bs"]))
    return b.op("Sigmoid", b.linear(squeezed, inputs["we"], inputs["be"])) * inputs["me"]


def _sums(b: Body, maps: Value, sizes: Sizes, width: Value | int) -> Value:
    """Sums over the pixels of maps of bytes, int32 (K, width)."""
    pixels = sizes.out_height * sizes.out_width
    ones = b.op("Expand", _number(b, np.uint8(1)), b.op("Concat", [1], [1], b.unsqueeze(pixels, 0), axis=0))
    return b.reshape(b.op("MatMulInteger", ones, b.reshape(maps, -1, pixels, width)), -1, width)


def _excited(b: Body, hidden: Value, factors: Value) -> Value:
    return bytes_of(b, b.op("Cast", hidden, to=TensorProto.FLOAT) * factors)


def excited_map(b: Body, inputs: Mapping[str, Value], sizes: Sizes, hidden: Value) -> Value:
    """Whole maps (K, Ho, Wo, M), their channels scaled by gates of the means over all pixels."""
    pixels = b.op("Cast", sizes.out_height * sizes.out_width, to=TensorProto.FLOAT)
    factors = _factors(b, inputs, _sums(b, hidden, sizes, sizes.hidden), pixels)
    return _excited(b, hidden, b.unsqueeze(factors, 1, 2))


def excited_rows(b: Body, inputs: Mapping[str, Value], sizes: Sizes, hidden: Value, pixels: Value) -> Value:
    """Rows (1, 1, P, M) of these pixels, their channels scaled by gates of the means over the pixels of a sample."""
    count = sizes.batch * sizes.out_height * sizes.out_width

    def on_map(rows: Value, width: Value | int) -> Value:
        """Sums per sample, by way of a map, on which a pixel that is listed twice stands once."""
        last = b.value([width]) if isinstance(width, int) else b.unsqueeze(width, 0)
        zeros = b.op("Expand", _number(b, np.uint8(0)), b.op("Concat", b.unsqueeze(count, 0), last, axis=0))
        return _sums(b, b.op("ScatterND", zeros, pixels, rows), sizes, width)

    rows = b.reshape(hidden, -1, sizes.hidden)
    size = b.op("Concat", b.unsqueeze(b.dim(rows, 0), 0), [1], axis=0)
    counts = on_map(b.op("Expand", _number(b, np.uint8(1)), size), 1)
    counts = b.op("Max", b.op("Cast", counts, to=TensorProto.FLOAT), _number(b, np.float32(1)))
    factors = _factors(b, inputs, on_map(rows, sizes.hidden), counts)
    factors = b.gather(factors, b.reshape(pixels, -1) // (sizes.out_height * sizes.out_width))
    return _excited(b, hidden, b.unsqueeze(factors, 0, 1))


# ---------------------------------------------------------------- channels


def selection(b: Body, inputs: Mapping[str, Value], mask: Value, sizes: Sizes) -> Selected:
    """Constants for the channels that a mask (N, G) of 0 and 1 skips, in maps (N, ., ., M).

    With a squeeze-and-excitation they are zero.
    """
    groups = b.dim(mask, 1)
    shape = b.op("Concat", [1], [1], b.unsqueeze(sizes.hidden // groups, 0), axis=0)
    bits = b.reshape(b.op("Expand", b.unsqueeze(mask, 2), shape), sizes.batch, 1, 1, sizes.hidden)
    computed = b.op("Cast", bits, to=TensorProto.BOOL)
    rows = b.reshape(computed, -1, sizes.hidden)

    def select(inner: Body, name: str, maps: Value, samples: Value | None) -> Value:
        taken = computed if samples is None else inner.unsqueeze(inner.gather(rows, samples), 0, 1)
        constants = _number(inner, np.uint8(0)) if "ws" in inputs else skipped_constants(inner, inputs, name)
        return inner.op("Where", taken, maps, constants)

    return select
