"""Bottlenecks in integers: the reference, and how an FP32 bottleneck becomes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dyndeploy.errors import UsageError
from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops import _quantized as integers
from dyndeploy.ops._excitation import excited_maps
from dyndeploy.ops.base import Array, Attributes, Quantization
from dyndeploy.ops.gates import CHANNEL
from dyndeploy.ops.masks import dilate_mask, upsample_mask

if TYPE_CHECKING:
    import torch

LAYERS = ("1", "2", "3", "d")
"""Convolutions by the suffix of their constants."""

EXCITATION = ("ws", "bs", "we", "be", "me")
"""Constants of a squeeze-and-excitation."""

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
    """The bottleneck on floats that hold integers; exact in double precision, but for a squeeze-and-excitation.

    Args:
        x: (N, H, W, C), in [0, 255].
        weights: ``w1``, ``b1``, ``m1`` and so on of the operator. With ``ws``, ``bs``, ``we``, ``be`` and ``me`` a
            squeeze-and-excitation follows the 3x3, and channels that are skipped are zero.
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
    excites = "ws" in weights
    pixels = None
    if spatial is not None:
        size = ((extent - 1) // stride + 1 for extent in x.shape[1:3])
        pixels = _bits(upsample_mask(spatial, *size)[:, 0].unsqueeze(-1), x.dtype)

    def layer(name: str, sums: torch.Tensor) -> torch.Tensor:
        return integers.requantise(sums, given[f"b{name}"], given[f"m{name}"]).to(x.dtype)

    def hidden(name: str, sums: torch.Tensor) -> torch.Tensor:
        bits = None
        if channel is not None:
            bits = _bits(channel, x.dtype).repeat_interleave(sums.shape[-1] // channel.shape[1], 1)[:, None, None, :]
        before, behind = (None, bits) if excites else (bits, None)
        result = layer(name, sums if before is None else sums * before).clamp(0, integers.ACTIVATION_LIMIT)
        return result if behind is None else result * behind

    first = hidden("1", F.linear(x, given["w1"]))
    second = hidden("2", shared.conv3x3(first, given["w2"], None, dilation, stride, group))
    if excites:
        second = _excited(second, weights, pixels if attributes.get(shared.POOL_ACTIVE.name) else None)
    residual = layer("3", F.linear(second, given["w3"]))
    identity = layer("d", F.linear(x[:, ::stride, ::stride], given["wd"])) if "wd" in given else x
    computed = (identity + residual).clamp(0, integers.ACTIVATION_LIMIT)
    if pixels is None:
        return computed
    skipped = identity.clamp(0, integers.ACTIVATION_LIMIT)
    return pixels * computed + (1 - pixels) * skipped


def _excited(hidden: torch.Tensor, weights: Mapping[str, torch.Tensor], active: torch.Tensor | None) -> torch.Tensor:
    """Channels scaled by a gate computed from their means, in [0, 255] of another scale.

    The sums of the means are exact. The gate is one of floats, ``sigmoid(we relu(ws mean + bs) + be)``, and libraries
    round sums and exponentials differently: where ``hidden * (gate * me)`` all but lies between two integers, results
    may differ by one.

    Args:
        hidden: (N, Ho, Wo, M), floats that hold integers.
        weights: ``ws`` (S, M), whose values are multiplied by the scale of ``hidden``, ``bs`` (S,), ``we`` (M, S),
            ``be`` (M,) and ``me`` (M,), the scale of ``hidden`` over that of the result.
        active: Pixels to average over, 0 and 1 (N, Ho, Wo, 1), or None for all. Of no pixel the mean is 0.
    """
    import torch
    import torch.nn.functional as F

    if active is None:
        sums, counts = hidden.sum((1, 2)), torch.full_like(hidden[:, 0, 0, :1], hidden.shape[1] * hidden.shape[2])
    else:
        sums, counts = (hidden * active).sum((1, 2)), active.sum((1, 2)).clamp(min=1)
    mean = sums.to(torch.float32) / counts.to(torch.float32)
    gate = torch.sigmoid(F.linear(F.relu(F.linear(mean, weights["ws"], weights["bs"])), weights["we"], weights["be"]))
    factors = (gate * weights["me"])[:, None, None]
    result = integers.round_half_even(hidden.to(torch.float32) * factors)
    return result.clamp(0, integers.ACTIVATION_LIMIT).to(hidden.dtype)


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
    excites: bool = False,
    **attributes: Any,
) -> torch.Tensor:
    """What the operators in integers compute, to the bit.

    Args:
        x: (N, H, W, C) uint8.
        weights: ``w1`` (M, C) int8, ``b1`` (M,) int32, ``m1`` (M,) float32, ``w2`` (M, M / group, 3, 3), ``b2``,
            ``m2``, ``w3`` (Co, M), ``b3``, ``m3`` and with a projection ``wd`` (Co, C), ``bd``, ``md``.
        spatial: See :func:`integer_bottleneck`.
        channel: See :func:`integer_bottleneck`.
        excites: Whether ``ws``, ``bs``, ``we``, ``be`` and ``me`` stand behind ``m2``; see :func:`_excited`.
        attributes: Of the operator.

    Returns:
        (N, Ho, Wo, Co) uint8.
    """
    import torch

    names = [f"{kind}{layer}" for layer in LAYERS for kind in "wbm"]
    if excites:
        names[6:6] = EXCITATION
    result = integer_bottleneck(
        x.double(),
        # A call without a projection has no values for its names.
        dict(zip(names, weights, strict=False)),
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
    projection, excites = "wd" in inputs, "ws" in inputs
    arguments = (tuple(inputs), dict(gates))
    return Quantization(
        operator=f"Quantized{operator}",
        points=("h1", "h2", "h3") if excites else ("h1", "h2"),
        output=True,
        shared=not projection,
        observe=partial(_observe, arguments),
        convert=partial(_convert, operator, projection),
        simulate=partial(_simulate, arguments),
        restore=_restore,
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
    height, width = ((extent - 1) // stride + 1 for extent in x.shape[1:3])
    active = torch.ones(x.shape[0], height, width, 1, dtype=torch.bool, device=x.device)
    if masks["spatial"] is not None:
        active = shared.active_outputs(masks["spatial"], height, width)
    w1, b1, w2, b2 = (values[name] for name in ("w1", "b1", "w2", "b2"))
    read_by_mean = active
    maps: tuple[torch.Tensor, ...]
    if "ws" in values:
        excitation = [values[name] for name in ("ws", "bs", "we", "be")]
        pooled = active if attributes.get(shared.POOL_ACTIVE.name) else None
        if pooled is None:  # whatever is computed at all of an image is computed whole
            read_by_mean = active.any(2, keepdim=True).any(1, keepdim=True).expand_as(active)
        maps = excited_maps(
            x, (w1, b1, w2, b2), excitation, channel, pooled, stride=stride, dilation=dilation, group=group
        )
    else:
        maps = shared.hidden_maps(x, w1, b1, w2, b2, channel, stride=stride, dilation=dilation, group=group)
    identity = F.linear(x[:, ::stride, ::stride], values["wd"], values["bd"]) if "wd" in values else x
    updated = F.relu(identity + F.linear(maps[-1], values["w3"], values["b3"]))
    read = dilate_mask(read_by_mean.permute(0, 3, 1, 2).to(x.dtype), x.shape[1], x.shape[2], stride, dilation)
    needed = read.permute(0, 2, 3, 1) > 0
    channels = torch.ones_like(maps[0][:, :1, :1], dtype=torch.bool)
    if channel is not None:
        channels = (channel > 0).repeat_interleave(maps[0].shape[-1] // channel.shape[1], 1)[:, None, None, :]
    if "wd" in values:  # a projection is computed everywhere, and rounded to the scale of y
        output = torch.where(active, updated, F.relu(identity)).reshape(-1)
    else:
        output = updated[active.expand_as(updated)]
    where = zip(("h1", "h2", "h3"), maps, (needed, read_by_mean, active), strict=False)
    return {**{point: hidden[(pixels & channels).expand_as(hidden)] for point, hidden, pixels in where}, "y": output}


def _constants(
    values: Mapping[str, torch.Tensor], scales: Mapping[str, float], weight_bits: int
) -> dict[str, torch.Tensor]:
    """Constants of the operator in integers, as floats with gradients."""
    import torch

    constants: dict[str, torch.Tensor] = {}
    for name in LAYERS:
        if f"w{name}" in values:
            source, target = _POINTS[name]
            if name == "3" and "ws" in values:
                source = "h3"
            kinds = integers.linear_constants(
                values[f"w{name}"], values[f"b{name}"], (scales[source], scales[target]), weight_bits
            )
            constants |= {f"{kind}{name}": value for kind, value in zip("wbm", kinds, strict=True)}
        if name == "2" and "ws" in values:
            scale = float(np.float32(scales["h2"]))
            ratio = torch.full_like(values["be"], scale / float(np.float32(scales["h3"])), dtype=torch.float32)
            squeeze = values["ws"].to(torch.float32) * scale
            floats = (squeeze, *(values[key].to(torch.float32) for key in ("bs", "we", "be")), ratio)
            constants |= dict(zip(EXCITATION, floats, strict=True))
    return constants


def _convert(
    operator: str, projection: bool, weights: Mapping[str, Array], scales: Mapping[str, float], weight_bits: int
) -> dict[str, Array]:
    import torch

    integers.require_scales(operator, scales, ("x", "h1", "h2", *(["h3"] if "ws" in weights else []), "y"))
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
    integers.require_finite(operator, {name: floats[name] for name in EXCITATION if name in floats})
    types = {"w": np.int8, "b": np.int32, "m": np.float32}
    return {name: value.astype(np.float32 if name in EXCITATION else types[name[0]]) for name, value in floats.items()}


def _restore(weights: Mapping[str, Array]) -> dict[str, Array]:
    restored = {name: value for name, value in weights.items() if name in EXCITATION and name != "me"}
    for name in LAYERS:
        if f"w{name}" in weights:
            weight, multiplier = weights[f"w{name}"].astype(np.float64), weights[f"m{name}"].astype(np.float64)
            if name == "3" and "me" in weights:
                weight = weight * weights["me"]
            restored[f"w{name}"] = (weight * multiplier.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
            restored[f"b{name}"] = (weights[f"b{name}"] * multiplier).astype(np.float32)
    return restored


def _simulate(
    arguments: _Arguments,
    inputs: Sequence[torch.Tensor],
    attributes: Attributes,
    scales: Mapping[str, float],
    weight_bits: int,
) -> torch.Tensor:
    import torch

    values = dict(zip(arguments[0], inputs, strict=True))
    x = values["x"].to(torch.promote_types(values["x"].dtype, torch.float32))
    # Half floats hold no sums of products.
    with torch.autocast(x.device.type, enabled=False):
        result = integer_bottleneck(
            integers.quantize_activation(x, scales["x"]),
            _constants(values, scales, weight_bits),
            **_masks(arguments, values),
            attributes=attributes,
        )
    return result * float(np.float32(scales["y"]))
