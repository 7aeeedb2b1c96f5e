"""Bottlenecks in integers: the reference, how an FP32 bottleneck becomes one, and the pieces of the bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from dyndeploy.errors import UsageError
from dyndeploy.ops import _quantized as integers
from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops._bottleneck import Sizes, active_bits, active_outputs, conv3x3, hidden_maps, to_map
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
    second = hidden("2", conv3x3(first, given["w2"], None, dilation, stride, group))
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
    bits = active_bits(mask).to(dtype)
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
    first, second = hidden_maps(
        x, values["w1"], values["b1"], values["w2"], values["b2"], channel,
        stride=stride, dilation=dilation, group=group,
    )  # fmt: skip
    identity = F.linear(x[:, ::stride, ::stride], values["wd"], values["bd"]) if "wd" in values else x
    updated = F.relu(identity + F.linear(second, values["w3"], values["b3"]))
    height, width = updated.shape[1:3]
    active = torch.ones_like(updated[..., :1], dtype=torch.bool)
    if masks["spatial"] is not None:
        active = active_outputs(masks["spatial"], height, width)
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


def requantised(b: Body, sums: Value, inputs: Mapping[str, Value], name: str) -> Value:
    """``round_half_even(float32(sums + b) * m)``, the channels last; float, not yet saturated."""
    scaled = b.op("Cast", sums + inputs[f"b{name}"], to=TensorProto.FLOAT) * inputs[f"m{name}"]
    return b.op("Round", scaled)


def clipped(b: Body, values: Value, least: int, most: int) -> Value:
    """Floats kept within a range."""
    ends = (b.op("Constant", value_float=float(end)) for end in (least, most))
    return b.op("Clip", values, *ends)


def bytes_of(b: Body, values: Value) -> Value:
    """Floats that hold integers as uint8, saturated."""
    return b.op("Cast", clipped(b, values, 0, integers.ACTIVATION_LIMIT), to=TensorProto.UINT8)


def product(b: Body, rows: Value, weight: Value) -> Value:
    """``rows @ weight.T``: uint8 (..., K) and int8 (n, K) to int32 (..., n)."""
    return b.op("MatMulInteger", rows, b.op("Transpose", weight, perm=[1, 0]))


def identity_of(b: Body, inputs: Mapping[str, Value], sizes: Sizes) -> Value:
    """The shortcut as floats that hold integers, a map (N, Ho, Wo, Co); saturated to 16 bits where it is computed."""
    x = inputs["x"]
    if "wd" not in inputs:
        return b.op("Cast", x, to=TensorProto.FLOAT)
    ends = b.op("Concat", b.unsqueeze(sizes.height, 0), b.unsqueeze(sizes.width, 0), axis=0)
    strided = b.op("Slice", x, [0, 0], ends, [1, 2], b.attribute("strides"))
    return clipped(b, requantised(b, product(b, strided, inputs["wd"]), inputs, "d"), -(2**15), 2**15 - 1)


def dense_body(
    b: Body, inputs: Mapping[str, Value], sizes: Sizes, *, spatial: Value | None = None, channel: Value | None = None
) -> Value:
    """Everything computed, then selected; masks are 0 and 1."""

    def hidden(name: str, sums: Value) -> Value:
        if channel is not None:
            bits = b.op("Cast", channel, to=TensorProto.INT32)
            groups = b.dim(channel, 1)
            bits = b.unsqueeze(bits, 2)
            shape = b.op("Concat", [1], [1], b.unsqueeze(sizes.hidden // groups, 0), axis=0)
            bits = b.reshape(b.op("Expand", bits, shape), sizes.batch, 1, 1, sizes.hidden)
            sums = sums * bits
        return bytes_of(b, requantised(b, sums, inputs, name))

    first = hidden("1", product(b, inputs["x"], inputs["w1"]))
    convolved = b.op(
        "ConvInteger",
        b.op("Transpose", first, perm=[0, 3, 1, 2]),
        inputs["w2"],
        strides=AttributeRef("strides"),
        dilations=AttributeRef("dilations"),
        pads=AttributeRef("pads"),
        group=AttributeRef("group", AttributeRef.INT),
    )
    second = hidden("2", b.op("Transpose", convolved, perm=[0, 2, 3, 1]))
    residual = requantised(b, product(b, second, inputs["w3"]), inputs, "3")
    residual = clipped(b, residual, -(2**15), 2**15 - 1)
    identity = identity_of(b, inputs, sizes)
    computed = identity + residual
    if spatial is not None:
        # In float, because releases of ONNX Runtime select among few types.
        for axis, size in ((2, sizes.out_height), (3, sizes.out_width)):
            spatial = b.gather(spatial, b.arange(size) * b.dim(spatial, axis) // size, axis=axis)
        active = b.op(
            "Cast", b.reshape(spatial, sizes.batch, sizes.out_height, sizes.out_width, 1), to=TensorProto.BOOL
        )
        computed = b.op("Where", active, computed, identity)
    return to_map(b, bytes_of(b, computed), sizes)
