"""Bottlenecks in integers: the reference, how an FP32 bottleneck becomes one, and the pieces of the bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, numpy_helper

from dyndeploy.errors import UsageError
from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops import _quantized as integers
from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops._bottleneck import ActiveSet, Sizes
from dyndeploy.ops.base import Array, Attributes, Quantization
from dyndeploy.ops.gates import CHANNEL
from dyndeploy.ops.masks import dilate_mask, upsample_mask

if TYPE_CHECKING:
    import torch

LAYERS = ("1", "2", "3", "d")
"""Convolutions by the suffix of their constants."""

_POINTS = {"1": ("x", "h1"), "2": ("h1", "h2"), "3": ("h2", "y"), "d": ("x", "y")}
"""Whose scales the input and output of a convolution have."""


def integer_bottleneck(
    x: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    *,
    spatial: torch.Tensor | None,
    channel: torch.Tensor | None,
    attributes: Attributes,
) -> torch.Tensor:
    """The bottleneck on floats that hold integers; exact in double precision.

    Args:
        x: (N, H, W, C), in [0, 255].
        weights: ``w1``, ``b1``, ``m1`` and so on of the operator.
        spatial: (N, 1, mh, mw), or None where all pixels are computed.
        channel: (N, G), or None where all channels are computed.
        attributes: Of the operator.

    Returns:
        (N, Ho, Wo, Co), in [0, 255].
    """
    import torch.nn.functional as F

    stride, dilation, group = (
        int(attributes["strides"][0]),
        int(attributes["dilations"][0]),
        int(attributes["group"]),
    )
    given = {name: value.to(x.dtype) for name, value in weights.items()}

    def layer(name: str, sums: torch.Tensor) -> torch.Tensor:
        return integers.requantise(sums, given[f"b{name}"], given[f"m{name}"]).to(x.dtype)

    def hidden(name: str, sums: torch.Tensor) -> torch.Tensor:
        if channel is not None:
            bits = _bits(channel, x.dtype).repeat_interleave(sums.shape[-1] // channel.shape[1], 1)
            sums = sums * bits[:, None, None, :]
        return layer(name, sums).clamp(0, integers.ACTIVATION_LIMIT)

    first = hidden("1", F.linear(x, given["w1"]))
    second = hidden("2", shared.conv3x3(first, given["w2"], None, dilation, stride, group))
    residual = layer("3", F.linear(second, given["w3"]))
    identity = layer("d", F.linear(x[:, ::stride, ::stride], given["wd"])) if "wd" in given else x
    computed = (identity + residual).clamp(0, integers.ACTIVATION_LIMIT)
    if spatial is None:
        return computed
    skipped = identity.clamp(0, integers.ACTIVATION_LIMIT)
    bits = _bits(upsample_mask(spatial, *computed.shape[1:3])[:, 0].unsqueeze(-1), x.dtype)
    return bits * computed + (1 - bits) * skipped


def _bits(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask as 0 and 1, with a straight-through gradient where the mask has one."""
    bits = shared.active_bits(mask).to(dtype)
    return bits + (mask - mask.detach()).to(dtype) if mask.requires_grad else bits


def reference(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    *,
    spatial: torch.Tensor | None = None,
    channel: torch.Tensor | None = None,
    **attributes: Any,
) -> torch.Tensor:
    """What the operators in integers compute, to the bit.

    Args:
        x: (N, H, W, C) uint8.
        weights: ``w1`` (M, C) int8, ``b1`` (M,) int32, ``m1`` (M,) float32, ``w2`` (M, M / group, 3, 3), ``b2``,
            ``m2``, ``w3`` (Co, M), ``b3``, ``m3`` and with a projection ``wd`` (Co, C), ``bd``, ``md``.
        spatial: See :func:`integer_bottleneck`.
        channel: See :func:`integer_bottleneck`.
        attributes: Of the operator.

    Returns:
        (N, Ho, Wo, Co) uint8.
    """
    import torch

    names = [f"{kind}{layer}" for layer in LAYERS for kind in "wbm"]
    result = integer_bottleneck(
        x.double(),
        # A call without a projection has no values for its names.
        dict(zip(names, weights)),  # noqa: B905
        spatial=spatial,
        channel=channel,
        attributes=attributes,
    )
    return result.to(torch.uint8)


# ---------------------------------------------------------------- from an FP32 bottleneck


def quantization(operator: str, inputs: Sequence[str], gates: Mapping[str, str]) -> Quantization:
    """How an FP32 bottleneck becomes one in integers.

    Args:
        operator: ``op_type`` of the FP32 operator.
        inputs: Names of its inputs, in order.
        gates: Kind of decision by name of the mask input.
    """
    projection = "wd" in inputs
    arguments = (tuple(inputs), dict(gates))
    return Quantization(
        operator=f"Quantized{operator}",
        points=("h1", "h2"),
        output=True,
        shared=not projection,
        observe=partial(_observe, arguments),
        convert=partial(_convert, operator, projection),
        simulate=partial(_simulate, arguments),
    )


_Arguments = tuple[tuple[str, ...], Mapping[str, str]]


def _masks(arguments: _Arguments, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    masks: dict[str, torch.Tensor | None] = {"spatial": None, "channel": None}
    for name, kind in arguments[1].items():
        # The mask of a whole block is one patch.
        masks["channel" if kind == CHANNEL.name else "spatial"] = values[name]
    return masks


def _observe(arguments: _Arguments, inputs: Sequence[torch.Tensor], attributes: Attributes) -> dict[str, torch.Tensor]:
    import torch
    import torch.nn.functional as F

    values = dict(zip(arguments[0], inputs, strict=True))
    masks, x = _masks(arguments, values), values["x"]
    stride, dilation, group = (
        int(attributes["strides"][0]),
        int(attributes["dilations"][0]),
        int(attributes["group"]),
    )
    channel = None if masks["channel"] is None else _bits(masks["channel"], x.dtype)
    first, second = shared.hidden_maps(
        x, values["w1"], values["b1"], values["w2"], values["b2"], channel,
        stride=stride, dilation=dilation, group=group,
    )  # fmt: skip
    identity = F.linear(x[:, ::stride, ::stride], values["wd"], values["bd"]) if "wd" in values else x
    updated = F.relu(identity + F.linear(second, values["w3"], values["b3"]))
    height, width = updated.shape[1:3]
    active = torch.ones_like(updated[..., :1], dtype=torch.bool)
    if masks["spatial"] is not None:
        active = shared.active_outputs(masks["spatial"], height, width)
    read = dilate_mask(active.permute(0, 3, 1, 2).to(x.dtype), x.shape[1], x.shape[2], stride, dilation)
    needed = read.permute(0, 2, 3, 1) > 0
    if channel is not None:
        computed = (channel > 0).repeat_interleave(first.shape[-1] // channel.shape[1], 1)[:, None, None, :]
        of_first, of_second = needed & computed, active & computed
    else:
        of_first, of_second = needed, active
    if "wd" in values:  # a projection is computed everywhere, and rounded to the scale of y
        output = torch.where(active, updated, F.relu(identity)).reshape(-1)
    else:
        output = updated[active.expand_as(updated)]
    return {
        "h1": first[of_first.expand_as(first)],
        "h2": second[of_second.expand_as(second)],
        "y": output,
    }


def _constants(
    values: Mapping[str, torch.Tensor], scales: Mapping[str, float], weight_bits: int
) -> dict[str, torch.Tensor]:
    """Constants of the operator in integers, as floats with gradients."""
    constants: dict[str, torch.Tensor] = {}
    for name in LAYERS:
        if f"w{name}" in values:
            source, target = _POINTS[name]
            kinds = integers.linear_constants(
                values[f"w{name}"], values[f"b{name}"], (scales[source], scales[target]), weight_bits
            )
            constants |= {f"{kind}{name}": value for kind, value in zip("wbm", kinds, strict=True)}
    return constants


def _convert(
    operator: str, projection: bool, weights: Mapping[str, Array], scales: Mapping[str, float], weight_bits: int
) -> dict[str, Array]:
    import torch

    integers.require_scales(operator, scales, ("x", "h1", "h2", "y"))
    integers.require_finite(operator, weights)
    if not projection and np.float32(scales["x"]) != np.float32(scales["y"]):
        raise UsageError(
            f"{operator} cannot be quantised: its input and output need one scale, not {scales['x']} and "
            f"{scales['y']}, because pixels that are skipped are copied."
        )
    with torch.no_grad():
        tensors = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}
        floats = {name: value.numpy() for name, value in _constants(tensors, scales, weight_bits).items()}
    for name in LAYERS:
        if f"w{name}" in floats:
            integers.require_range(operator, f"w{name}", *(floats[f"{kind}{name}"] for kind in "wbm"))
    types = {"w": np.int8, "b": np.int32, "m": np.float32}
    return {name: value.astype(types[name[0]]) for name, value in floats.items()}


def _simulate(
    arguments: _Arguments,
    inputs: Sequence[torch.Tensor],
    attributes: Attributes,
    scales: Mapping[str, float],
    weight_bits: int,
) -> torch.Tensor:
    values = dict(zip(arguments[0], inputs, strict=True))
    result = integer_bottleneck(
        integers.quantize_activation(values["x"], scales["x"]),
        _constants(values, scales, weight_bits),
        **_masks(arguments, values),
        attributes=attributes,
    )
    return result * float(np.float32(scales["y"]))


# ---------------------------------------------------------------- pieces of the ONNX bodies


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
        ends = (0, integers.ACTIVATION_LIMIT)
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
    return bytes_of(b, floats_of(b, total) + floats_of(b, negative, integers.ACTIVATION_LIMIT))


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
    return added(b, strided(b, x, sizes) if "wd" in inputs else x, hidden, inputs)


def as_row(b: Body, rows: Value, width: Value | int) -> Value:
    """Rows (P, K) as a map of one row, (1, 1, P, K)."""
    return b.reshape(rows, 1, 1, -1, width)


def w2_rows(b: Body, w2: Value, sizes: Sizes) -> Value:
    """See :func:`dyndeploy.ops._bottleneck.w2_rows`; by way of floats, for runtimes select among few types."""
    rows = shared.w2_rows(b, b.op("Cast", w2, to=TensorProto.FLOAT), sizes)
    return b.op("Cast", rows, to=TensorProto.INT8)


def sparse_rows(
    b: Body,
    inputs: Mapping[str, Value],
    sizes: Sizes,
    x: Value,
    active: ActiveSet,
    select: Selected | None = None,
) -> Value:
    """The bottleneck of samples x (K, H, W, C) at the active pixels, of which there is one at least: rows (P, Co)."""
    rows = b.gather(b.reshape(x, -1, sizes.channels), active.needed)
    maps = pointwise(b, as_row(b, rows, sizes.channels), inputs, "1")
    if select is not None:
        maps = select(b, "1", maps, active.needed // (sizes.height * sizes.width))
    rows = with_zero_row(b, b.reshape(maps, -1, sizes.hidden), sizes.hidden)
    taps = as_row(b, b.gather(rows, active.neighbours), sizes.hidden * 9)
    maps = convolved(b, taps, b.unsqueeze(w2_rows(b, inputs["w2"], sizes), 2, 3), inputs, "2")
    if select is not None:
        maps = select(b, "2", maps, b.reshape(active.pixels, -1) // (sizes.out_height * sizes.out_width))
    source = strided(b, x, sizes) if "wd" in inputs else x
    source = b.op("GatherND", b.reshape(source, -1, sizes.channels), active.pixels)
    return b.reshape(added(b, as_row(b, source, sizes.channels), maps, inputs), -1, sizes.out_channels)


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
    """The body of operators that skip pixels; ``mask`` (N, 1, mh, mw) is 0 and 1."""
    mask_size = b.dim(mask, 2), b.dim(mask, 3)
    tables = shared.patch_tables(b, sizes, sizes.batch, mask_size, strided="wd" in inputs)

    def dense(inner: Body) -> Value:
        return dense_map(inner, inputs, sizes, inputs["x"], select)

    def sparse(inner: Body) -> Value:
        active = shared.active_set(inner, mask, tables)
        base = inner.reshape(skipped_map(inner, inputs, inputs["x"]), -1, sizes.out_channels)
        updated = sparse_rows(inner, inputs, sizes, inputs["x"], active, select)
        return inner.op("ScatterND", base, active.pixels, updated)

    def skip(inner: Body) -> Value:
        return skipped_map(inner, inputs, inputs["x"])

    def some(inner: Body) -> Value:
        # Convolutions take no maps without pixels.
        return inner.branch(any_active(inner, mask), sparse, skip)

    return shared.to_map(b, b.branch(shared.all_ones(b, mask), dense, some), sizes)


def selection(b: Body, inputs: Mapping[str, Value], mask: Value, sizes: Sizes) -> Selected:
    """Constants for the channels that a mask (N, G) of 0 and 1 skips, in maps (N, ., ., M)."""
    groups = b.dim(mask, 1)
    shape = b.op("Concat", [1], [1], b.unsqueeze(sizes.hidden // groups, 0), axis=0)
    bits = b.reshape(b.op("Expand", b.unsqueeze(mask, 2), shape), sizes.batch, 1, 1, sizes.hidden)
    computed = b.op("Cast", bits, to=TensorProto.BOOL)
    rows = b.reshape(computed, -1, sizes.hidden)

    def select(inner: Body, name: str, maps: Value, samples: Value | None) -> Value:
        taken = computed if samples is None else inner.unsqueeze(inner.gather(rows, samples), 0, 1)
        return inner.op("Where", taken, maps, skipped_constants(inner, inputs, name))

    return select
