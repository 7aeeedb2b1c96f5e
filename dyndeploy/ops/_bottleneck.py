"""What the bottleneck operators share: ports, PyTorch pieces, work, constants of the plugins, pieces of the bodies."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from dyndeploy.errors import UsageError
from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops._geometry import Geometry
from dyndeploy.ops._launches import bottleneck_launches, quantized_bottleneck_launches
from dyndeploy.ops._library_work import library_terms
from dyndeploy.ops._winograd import transform_w2, transforms
from dyndeploy.ops._workspace import bottleneck_workspace, quantized_bottleneck_workspace
from dyndeploy.ops.base import (
    Array,
    Attribute,
    Attributes,
    Counts,
    Element,
    KernelSpec,
    Masks,
    OperatorSpec,
    Port,
    Quantization,
    Rates,
    Role,
    Shape,
    Work,
)
from dyndeploy.ops.densities import dilated_density
from dyndeploy.ops.gates import BLOCK, CHANNEL, PATCH, GateKind
from dyndeploy.ops.masks import dilate_mask, upsample_mask

if TYPE_CHECKING:
    import torch

CONV_ATTRIBUTES = (
    Attribute("strides", 2),
    Attribute("dilations", 2),
    Attribute("pads", 4),
    Attribute("group"),
)
X = Port("x", Role.ACTIVATION, ("N", "H", "W", "C"))
Y = Port("y", Role.ACTIVATION, ("N", "Ho", "Wo", "Co"))
WEIGHTS = (
    Port("w1", Role.WEIGHT, ("M", "C")),
    Port("b1", Role.WEIGHT, ("M",)),
    Port("w2", Role.WEIGHT, ("M", "M/group", "3", "3")),
    Port("b2", Role.WEIGHT, ("M",)),
    Port("w3", Role.WEIGHT, ("Co", "M")),
    Port("b3", Role.WEIGHT, ("Co",)),
)
PROJECTION_WEIGHTS = (
    Port("wd", Role.WEIGHT, ("Co", "C")),
    Port("bd", Role.WEIGHT, ("Co",)),
)

EXCITATION_WEIGHTS = (
    Port("ws", Role.WEIGHT, ("S", "M")),
    Port("bs", Role.WEIGHT, ("S",)),
    Port("we", Role.WEIGHT, ("M", "S")),
    Port("be", Role.WEIGHT, ("M",)),
)
"""Squeeze-and-excitation behind the 3x3: ``sigmoid(we relu(ws mean + bs) + be)`` scales the channels."""

POOL_ACTIVE = Attribute("pool_active")
"""1: a squeeze-and-excitation averages over active pixels; 0: over all, which are then all computed."""

IDENTITY = {"Ho": "H", "Wo": "W", "Co": "C"}
"""Sizes of the output that are those of the input where there is no projection."""


SLOWEST = "channel_slowest"


def snake_case(name: str) -> str:
    """``SpatialSEBottleneck`` as ``spatial_se_bottleneck``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def bottleneck_specs(
    name: str,
    summary: str,
    *,
    masks: tuple[Port, ...],
    gates: Mapping[str, GateKind],
    reference: Callable[..., torch.Tensor],
    geometry: Callable[[str, Sequence[Shape], Attributes], Geometry],
    body: Callable[[Body, Mapping[str, Value]], Value],
    skipped_kind: str | None = None,
    excites: bool = False,
    quantization: Callable[[str, Sequence[str], Mapping[str, str]], Quantization] | None = None,
    quantized: bool = False,
) -> tuple[OperatorSpec, OperatorSpec]:
    """Both variants of a bottleneck operator: identity and projection shortcut.

    Args:
        name: ``op_type`` of the variant with the identity; the other has the suffix ``Projection``.
        summary: One clause, without a full stop.
        masks: Mask inputs, which stand behind ``x``. What is above 0.5 is active, anything else (NaN, too) is not:
            bodies get them as 0 and 1.
        gates: Their kinds.
        reference: See :class:`OperatorSpec`.
        geometry: ``(op_type, input shapes, attributes) -> Geometry``; raises ``UsageError`` on a mismatch.
        body: See :class:`OperatorSpec`.
        skipped_kind: See :class:`OperatorSpec`.
        excites: Whether a squeeze-and-excitation follows the 3x3; one with patches has the attribute ``pool_active``.
            Its channel masks stand behind the ReLUs, so that skipped channels are zero.
        quantization: ``(op_type, names of the inputs, kind of decision by name of the mask) -> how it becomes an
            operator in integers``; None where it cannot.
        quantized: Whether it is one in integers: activations are bytes, and multipliers stand behind the biases.
            ``geometry`` gets the shapes without the multipliers'.
    """
    kinds = {kind.name: port for port, kind in gates.items()}
    geometry = _remembered(_without_multipliers(geometry, 1 + len(masks), excites) if quantized else geometry)
    x, y = (replace(port, element=Element.UINT8) if quantized else port for port in (X, Y))
    attributes_of = CONV_ATTRIBUTES + ((POOL_ACTIVE,) if excites and PATCH.name in kinds else ())

    def body_of_bits(b: Body, inputs: Mapping[str, Value]) -> Value:
        return body(b, {**inputs, **{port.name: mask_bits(b, inputs[port.name]) for port in masks}})

    def spec(op_type: str, projection: bool) -> OperatorSpec:
        excitation = EXCITATION_WEIGHTS if excites else ()
        weights = _sized(
            WEIGHTS[:4] + excitation + WEIGHTS[4:] + (PROJECTION_WEIGHTS if projection else ()), projection
        )
        if quantized:
            weights = tuple(port for weight in weights for port in _quantized_weight(weight))
        inputs = (x, *masks, *weights)
        positions = {port.name: index for index, port in enumerate(inputs)}

        def shape_of(shapes: Sequence[Shape], kind: GateKind) -> Shape | None:
            return shapes[positions[kinds[kind.name]]] if kind.name in kinds else None

        def counts(shapes: Sequence[Shape], attributes: Attributes, bits: Masks) -> Counts:
            given = {kind: bits[port] for kind, port in kinds.items()}
            return _counts(geometry(op_type, shapes, attributes), given, _pools_all(attributes))

        def expected(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Counts:
            geometry_ = geometry(op_type, shapes, attributes)
            used = _used_rates(geometry_, shape_of(shapes, PATCH), kinds, rates, _pools_all(attributes))
            return _expected(geometry_, used)

        def work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
            return bottleneck_work(geometry(op_type, shapes, attributes), counts, 1.0 if quantized else element)

        def sizes(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Mapping[str, float]:
            geometry_, patches = geometry(op_type, shapes, attributes), shape_of(shapes, PATCH)
            channels = shape_of(shapes, CHANNEL)
            used = _used_rates(geometry_, patches, kinds, rates, _pools_all(attributes))
            return _sizes(geometry_, patches, 1 if channels is None else channels[1], used)

        def further_rates(shapes: Sequence[Shape], attributes: Attributes, counts: Counts) -> Rates:
            g = geometry(op_type, shapes, attributes)
            if PATCH.name not in kinds:
                return {}
            active, conv2 = (
                float(counts[f"conv{number}_pixels"].mean()) / (g.out_height * g.out_width) for number in (3, 2)
            )
            conv1 = float(counts["conv1_pixels"].mean()) / (g.height * g.width)
            # Of pixels, which patches of different sizes cover by another share than their number says.
            return {PATCH.name: active, "conv1": conv1, "conv2": conv2}

        return OperatorSpec(
            name=op_type,
            version=1,
            kind=snake_case(name),
            summary=summary + (", with a projection shortcut." if projection else "."),
            inputs=inputs,
            outputs=_sized((y,), projection),
            attributes=attributes_of,
            gates=gates,
            reference=reference,
            infer_shape=lambda shapes, attributes: geometry(op_type, shapes, attributes).output_shape,
            body=body_of_bits,
            counts=counts,
            expected=expected,
            work=work,
            sizes=sizes,
            further_rates=further_rates,
            kernels=(_quantized_kernels if quantized else _kernels)(
                weights,
                projection,
                skips_pixels=not kinds.keys().isdisjoint({PATCH.name, BLOCK.name}),
                skips_channels=CHANNEL.name in kinds,
                excites=excites,
            ),
            skipped_kind=skipped_kind,
            quantization=None
            if quantization is None
            else quantization(
                op_type, [port.name for port in inputs], {port: kind.name for port, kind in gates.items()}
            ),
        )

    return spec(name, projection=False), spec(f"{name}Projection", projection=True)


def _pools_all(attributes: Attributes) -> bool:
    """Whether a squeeze-and-excitation needs every pixel of an image of which any pixel is active."""
    return not attributes.get(POOL_ACTIVE.name, 1)


def _quantized_weight(port: Port) -> tuple[Port, ...]:
    """A weight in integers; behind a bias its multipliers. A squeeze-and-excitation stays one of floats."""
    if port in EXCITATION_WEIGHTS:
        multiplier = (replace(port, name="me", element=Element.FLOAT),) if port.name == "be" else ()
        return (replace(port, element=Element.FLOAT), *multiplier)
    if len(port.shape) > 1:
        return (replace(port, element=Element.INT8),)
    return (
        replace(port, element=Element.INT32),
        replace(port, name=f"m{port.name[1:]}", element=Element.FLOAT),
    )


def _without_multipliers(
    geometry: Callable[[str, Sequence[Shape], Attributes], Geometry], others: int, excites: bool
) -> Callable[[str, Sequence[Shape], Attributes], Geometry]:
    """A geometry of weights with multipliers behind that many other inputs, from one without the multipliers."""
    floats = WEIGHTS[:4] + (EXCITATION_WEIGHTS if excites else ()) + WEIGHTS[4:] + PROJECTION_WEIGHTS
    names = [port.name for weight in floats for port in _quantized_weight(weight)]
    multipliers = [index for index, name in enumerate(names) if name.startswith("m")]

    def look_up(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Geometry:
        weights = shapes[others:]
        kept = (shape for index, shape in enumerate(weights) if index not in multipliers)
        found = geometry(name, (*shapes[:others], *kept), attributes)
        for index in multipliers[: sum(index < len(weights) for index in multipliers)]:
            bias, multiplier = weights[index - 1 : index + 1]
            if bias != multiplier:
                raise UsageError(f"{name}: the multipliers {multiplier} must have the shape of the bias {bias}.")
        return found

    return look_up


def _remembered(
    geometry: Callable[[str, Sequence[Shape], Attributes], Geometry],
) -> Callable[[str, Sequence[Shape], Attributes], Geometry]:
    """A geometry that is worked out once for the same objects in a row: whoever prices asks for it several times."""
    last: list[tuple[str, Sequence[Shape], Attributes, Geometry]] = []

    def look_up(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Geometry:
        if last:
            known, of_shapes, of_attributes, found = last[0]
            # Only what cannot have been changed in between is known again.
            if of_shapes is shapes and of_attributes is attributes and known == name and isinstance(shapes, tuple):
                return found
        found = geometry(name, shapes, attributes)
        last[:] = [(name, shapes, attributes, found)]
        return found

    return look_up


# ---------------------------------------------------------------- PyTorch pieces


def shortcut(x: torch.Tensor, wd: torch.Tensor | None, bd: torch.Tensor | None, stride: int) -> torch.Tensor:
    """Shortcut branch in NHWC: ``x`` itself, or the strided 1x1 projection."""
    import torch.nn.functional as F

    if wd is None:
        return x
    return F.linear(x[:, ::stride, ::stride], wd, bd)


def conv3x3(
    hidden: torch.Tensor, w2: torch.Tensor, bias: torch.Tensor | None, dilation: int, stride: int, group: int
) -> torch.Tensor:
    """The 3x3 convolution on an NHWC tensor, zero padding equal to the dilation."""
    import torch.nn.functional as F

    output = F.conv2d(hidden.permute(0, 3, 1, 2), w2, bias, stride, dilation, dilation, group)
    return output.permute(0, 2, 3, 1)


def hidden_maps(
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    channel: torch.Tensor | None,
    *,
    stride: int,
    dilation: int,
    group: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first 1x1 and the 3x3 leave behind their ReLUs, NHWC.

    ``channel`` are bits (N, G) that multiply both convolutions before their biases, or None.
    """
    import torch.nn.functional as F

    if channel is None:
        first = F.relu(F.linear(x, w1, b1))
        return first, F.relu(conv3x3(first, w2, b2, dilation, stride, group))
    bits = channel.repeat_interleave(w1.shape[0] // channel.shape[1], dim=1)[:, None, None, :]
    first = F.relu(bits * F.linear(x, w1) + b1)
    return first, F.relu(bits * conv3x3(first, w2, None, dilation, stride, group) + b2)


def active_bits(mask: torch.Tensor) -> torch.Tensor:
    """Which bits of a mask are active, boolean: those above 0.5. NaN is not."""
    bits: torch.Tensor = mask > 0.5
    return bits


def active_outputs(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A spatial mask (N, 1, mh, mw) over the output pixels, boolean (N, Ho, Wo, 1)."""
    return active_bits(upsample_mask(mask, height, width)[:, 0]).unsqueeze(-1)


# ---------------------------------------------------------------- work


def bottleneck_work(geometry: Geometry, counts: Counts, element: float) -> Work:
    """Work of a bottleneck: the one formula, for numbers, arrays and tensors alike.

    Args:
        geometry: Sizes.
        counts: Per image ``conv1_pixels`` (input pixels that the first 1x1 computes), ``conv2_pixels`` (output pixels
            of the 3x3), ``conv3_pixels`` (output pixels of the last 1x1), ``channels`` (hidden channels computed),
            ``channel_pairs`` (pairs of a computed input and output channel of the 3x3 in the same group), with a
            squeeze-and-excitation ``excited`` (0 or 1: whether it is computed); of the whole batch ``touched`` (hidden
            channels whose weights are read) and ``touched_pairs``.
        element: Bytes of an element.

    Returns:
        Work; the maps are read and written whole, because what is skipped is copied.
    """
    g = geometry
    in_pixels, out_pixels = g.batch * g.height * g.width, g.batch * g.out_height * g.out_width
    projection = g.projection * g.channels * g.out_channels
    squeezed = 2 * g.squeezed
    macs = (
        counts["conv1_pixels"] * counts["channels"] * g.channels
        + counts["conv2_pixels"] * counts["channel_pairs"] * 9
        + counts["conv3_pixels"] * counts["channels"] * g.out_channels
        + projection * (g.out_height * g.out_width)
        + (counts["excited"] * counts["channels"] * squeezed if squeezed else 0)
    )
    weights = counts["touched"] * (g.channels + g.out_channels + squeezed) + counts["touched_pairs"] * 9 + projection
    return Work(macs, element * in_pixels * g.channels, element * out_pixels * g.out_channels, weights * element)


def _counts(geometry: Geometry, masks: Mapping[str, Any], pools_all: bool) -> Counts:
    """Counts under masks by gate kind: arrays or tensors of shape (N,); ``pools_all``: see :func:`_pools_all`."""
    g = geometry
    any_mask = next(iter(masks.values()))
    one = _per_image_sum(any_mask) * 0 + 1
    pixels1, pixels2 = one * (g.height * g.width), one * (g.out_height * g.out_width)
    pixels3 = pixels2
    if PATCH.name in masks:
        active = upsample_mask(masks[PATCH.name], g.out_height, g.out_width)
        pixels3 = _per_image_sum(active)
        if pools_all:
            pixels1, pixels2 = pixels1 * (pixels3 > 0), pixels2 * (pixels3 > 0)
        else:
            pixels1 = _per_image_sum(dilate_mask(active, g.height, g.width, g.stride, g.dilation))
            pixels2 = pixels3
    elif BLOCK.name in masks:
        run = _per_image_sum(masks[BLOCK.name])
        pixels1, pixels2, pixels3 = pixels1 * run, pixels2 * run, pixels3 * run
    channels, pairs = one * g.hidden, one * (g.hidden * g.hidden / g.group)
    if CHANNEL.name in masks:
        mask = masks[CHANNEL.name]
        width = g.hidden // mask.shape[1]
        channels = _per_image_sum(mask) * width
        # A group of the mask may span several groups of the 3x3, or the other way round: both divide the channels.
        fine = math.lcm(mask.shape[1], g.group)
        per_group = _repeated(mask, fine // mask.shape[1]).reshape(mask.shape[0] * g.group, -1)
        in_group = _per_image_sum(per_group).reshape(mask.shape[0], g.group) * (g.hidden // fine)
        pairs = (in_group * in_group).sum(1)
        # Where no channel is left, the constants alone are added, and nothing is computed for them.
        pixels1 = pixels1 * (channels > 0)
    computed = pixels2 > 0
    return {
        "conv1_pixels": pixels1,
        "conv2_pixels": pixels2,
        "conv3_pixels": pixels3,
        "channels": channels,
        "channel_pairs": pairs,
        **({"excited": one * computed} if g.squeezed else {}),
        "touched": _largest(channels * computed),
        "touched_pairs": _largest(pairs * computed),
    }


def _expected(geometry: Geometry, rates: Rates) -> Counts:
    """Counts per image that random masks of these rates leave on average; see :func:`_used_rates`."""
    g = geometry
    channels = g.hidden * rates["channel"]
    touched = channels if rates["spatial"] > 0 else 0.0
    out_pixels = g.out_height * g.out_width
    return {
        "conv1_pixels": g.height * g.width * rates["conv1"],
        "conv2_pixels": out_pixels * rates["conv2"],
        "conv3_pixels": out_pixels * rates["spatial"],
        "channels": channels,
        "channel_pairs": channels * channels / g.group,
        **({"excited": rates["excited"]} if g.squeezed else {}),
        "touched": touched,
        "touched_pairs": touched * touched / g.group,
    }


def _used_rates(
    geometry: Geometry, patches: Shape | None, kinds: Collection[str], rates: Rates, pools_all: bool
) -> Rates:
    """The rates of the convolutions: ``spatial`` (also of whole blocks), ``channel``, ``conv1`` and ``conv2``.

    ``excited`` is the share of images that anything is computed of.

    A kind that the operator has no mask for computes everything. ``conv1`` and ``conv2`` may be given as measured;
    otherwise ``conv1`` is the expected dilation of random patches. ``channel_slowest``, the largest channel rate of the
    images of a batch, is passed on where it is given.
    """
    channel = rates.get(CHANNEL.name, 1.0) if CHANNEL.name in kinds else 1.0
    slowest = {SLOWEST: rates[SLOWEST]} if SLOWEST in rates else {}
    if patches is None:
        spatial = rates.get(BLOCK.name, 1.0) if BLOCK.name in kinds else 1.0
        used = {"spatial": spatial, "channel": channel, "conv1": spatial, "conv2": spatial, "excited": spatial}
        return {**used, **slowest}
    spatial = rates.get(PATCH.name, 1.0)
    excited = 1.0 - (1.0 - spatial) ** (patches[2] * patches[3])
    conv2 = rates.get("conv2", excited if pools_all else spatial)
    conv1 = rates.get("conv1", conv2 if pools_all else None)
    if conv1 is None:
        conv1 = dilated_density(
            conv2,
            in_size=(geometry.height, geometry.width),
            out_size=(geometry.out_height, geometry.out_width),
            mask_size=(patches[2], patches[3]),
            stride=geometry.stride,
            dilation=geometry.dilation,
        )
    used = {"spatial": spatial, "channel": channel, "conv1": conv1, "conv2": conv2, "excited": excited}
    return {**used, **slowest}


def _sizes(geometry: Geometry, patches: Shape | None, channel_groups: int, rates: Rates) -> Mapping[str, float]:
    g = geometry
    rows, columns = (1, 1) if patches is None else patches[2:]
    return {
        "batch": g.batch,
        "h": g.height,
        "w": g.width,
        "oh": g.out_height,
        "ow": g.out_width,
        "cin": g.channels,
        "cmid": g.hidden,
        "cout": g.out_channels,
        "k": 3,
        "stride": g.stride,
        "dilation": g.dilation,
        "groups": g.group,
        "projection": float(g.projection),
        **({"squeezed": g.squeezed, "rate_excited": rates["excited"]} if g.squeezed else {}),
        "mask_h": rows,
        "mask_w": columns,
        "patch": g.out_height / rows,
        "channel_groups": channel_groups,
        "rate": rates["spatial"],
        "rate_conv1": rates["conv1"],
        "rate_conv2": rates["conv2"],
        "channel_rate": rates["channel"],
        "rows1": g.batch * g.height * g.width * rates["conv1"],
        "rows2": g.batch * g.out_height * g.out_width * rates["spatial"],
        "hidden": float(round(g.hidden * rates["channel"])),
        **({"channel_rate_slowest": rates[SLOWEST]} if SLOWEST in rates else {}),
    }


def _per_image_sum(mask: Any) -> Any:
    rows = mask.reshape(mask.shape[0], -1)
    return rows.sum(1, dtype=np.float64) if isinstance(rows, np.ndarray) else rows.sum(1)


def _repeated(mask: Any, times: int) -> Any:
    """Every column of (N, G) that many times in a row."""
    return mask.repeat(times, 1) if isinstance(mask, np.ndarray) else mask.repeat_interleave(times, 1)


def _largest(values: Any) -> Any:
    return values.max() if len(values) else 0.0


# ---------------------------------------------------------------- the plugins' constants


def pack_matrix(weight: Array) -> Array:
    """A 1x1 convolution (out, in) as the kernels read it: (in, out)."""
    return np.ascontiguousarray(weight.T)


def pack_w2(weight: Array, group: int) -> Array:
    """The 3x3 (M, M / group, 3, 3) as (group, 9 M / group, M / group): row tap * M / group + input, column output."""
    width = weight.shape[1]
    split = weight.reshape(group, width, width, 3, 3)
    return np.ascontiguousarray(split.transpose(0, 3, 4, 2, 1)).reshape(group, 9 * width, width)


BORDER_CLASSES = 16
"""Rows of ``border_bias``: bit 0 says that the top taps lie outside the map, 1 the bottom, 2 the left, 3 the right."""


def border_bias(w2: Array, b1: Array, b2: Array, group: int) -> npt.NDArray[np.float32]:
    """What the 3x3 makes of skipped channels alone, per border class.

    A skipped channel of the first convolution is the constant ``relu(b1)``; zero padding lets only the taps inside
    the map see it. Summed in double precision.

    Args:
        w2: (M, M / group, 3, 3), as in the bundle.
        b1: (M,).
        b2: (M,).
        group: Of the 3x3.

    Returns:
        (16, M), ``b2`` included.
    """
    width = w2.shape[1]
    constants = np.maximum(b1.astype(np.float64), 0).reshape(group, width)
    split = w2.astype(np.float64).reshape(group, width, width, 3, 3)
    through = np.einsum("goiyx,gi->goyx", split, constants).reshape(-1, 3, 3)
    rows = np.empty((BORDER_CLASSES, w2.shape[0]))
    for border in range(BORDER_CLASSES):
        inside = np.ones((3, 3), np.bool_)
        inside[0] &= not border & 1
        inside[2] &= not border & 2
        inside[:, 0] &= not border & 4
        inside[:, 2] &= not border & 8
        rows[border] = b2 + through[:, inside].sum(1)
    return rows.astype(np.float32)


def skipped_output(w3: Array, b2: Array, b3: Array) -> npt.NDArray[np.float32]:
    """What the last 1x1 (Co, M) makes of skipped channels alone, ``b3`` included: (Co,). Summed in double precision."""
    constants = np.maximum(b2.astype(np.float64), 0)
    return (b3 + w3.astype(np.float64) @ constants).astype(np.float32)


CONSTANTS = (
    Port("border_bias", Role.WEIGHT, (str(BORDER_CLASSES), "M"), Element.FLOAT),
    Port("skipped_output", Role.WEIGHT, ("Co",), Element.FLOAT),
)


def _sized(ports: tuple[Port, ...], projection: bool) -> tuple[Port, ...]:
    if projection:
        return ports
    return tuple(replace(port, shape=tuple(IDENTITY.get(size, size) for size in port.shape)) for port in ports)


def _packed(port: Port) -> Port:
    if len(port.shape) == 1:
        return replace(port, element=Element.FLOAT)
    # 25: what Winograd's algorithm makes of them stands behind the nine taps.
    return replace(port, shape=("group", "9|25*M/group", "M/group") if len(port.shape) == 4 else port.shape[::-1])


def _kernels(
    weights: tuple[Port, ...],
    projection: bool,
    *,
    skips_pixels: bool,
    skips_channels: bool,
    excites: bool,
) -> Mapping[str, KernelSpec]:
    # Channels that are skipped behind their ReLU are zero and leave no constants.
    skips_to_constants = skips_channels and not excites
    skips_alone = not skips_channels and not excites

    def pack(weights: Mapping[str, Array], attributes: Attributes) -> dict[str, Array]:
        group = int(attributes["group"])
        packed = {
            name: pack_w2(value, group) if name == "w2" else pack_matrix(value) if value.ndim == 2 else value
            for name, value in weights.items()
        }
        strides, dilations = attributes["strides"], attributes["dilations"]
        if skips_alone and transforms(weights["w2"].shape[0], group, int(strides[0]), int(dilations[0])):
            packed["w2"] = np.concatenate([packed["w2"], transform_w2(weights["w2"])[None]], 1)
        if skips_to_constants:
            packed["border_bias"] = border_bias(weights["w2"], weights["b1"], weights["b2"], group)
            packed["skipped_output"] = skipped_output(weights["w3"], weights["b2"], weights["b3"])
        return packed

    constants = tuple(map(_packed, weights)) + (_sized(CONSTANTS, projection) if skips_to_constants else ())
    packed = KernelSpec(
        precisions=("fp32", "fp16"),
        pack=pack,
        constants=constants,
        launches=functools.partial(bottleneck_launches, skips_alone=skips_alone),
        workspace=bottleneck_workspace(pixels=skips_pixels, channels=skips_channels, excites=excites),
    )
    return {
        "cpu": KernelSpec(precisions=("fp32", "bf16"), terms=library_terms),
        "cuda": packed,
        "tensorrt": packed,
    }


def pack_quantized_w2(weight: Array) -> Array:
    """The 3x3 (M, M / group, 3, 3) as (M, 9, M / group): the inputs of a tap stand together."""
    return np.ascontiguousarray(weight.reshape(*weight.shape[:2], 9).transpose(0, 2, 1))


def _quantized_kernels(
    weights: tuple[Port, ...],
    projection: bool,
    *,
    skips_pixels: bool,
    skips_channels: bool,
    excites: bool,
) -> Mapping[str, KernelSpec]:
    """No kernels in integers have a squeeze-and-excitation."""
    if excites:
        return {}

    def pack(weights: Mapping[str, Array], attributes: Attributes) -> dict[str, Array]:
        return {name: pack_quantized_w2(value) if name == "w2" else value for name, value in weights.items()}

    packed = KernelSpec(
        precisions=("int8",),
        pack=pack,
        constants=tuple(replace(port, shape=("M", "9", "M/group")) if port.name == "w2" else port for port in weights),
        launches=functools.partial(
            quantized_bottleneck_launches, skips_alone=not skips_channels, skips_channels=skips_channels
        ),
        workspace=quantized_bottleneck_workspace(pixels=skips_pixels, channels=skips_channels, projection=projection),
    )
    return {"cpu": KernelSpec(precisions=("int8",)), "cuda": packed, "tensorrt": packed}


# ---------------------------------------------------------------- pieces of the ONNX bodies


@dataclass(frozen=True)
class Sizes:
    """Sizes of the bottleneck as int64 scalars inside a body."""

    batch: Value
    height: Value
    width: Value
    channels: Value
    hidden: Value
    out_channels: Value
    stride: Value
    dilation: Value
    out_height: Value
    out_width: Value


def body_sizes(b: Body, inputs: Mapping[str, Value]) -> Sizes:
    """Sizes from the shapes of ``x``, ``w1``, ``w3`` and the attributes of the 3x3."""
    x, w1, w3 = inputs["x"], inputs["w1"], inputs["w3"]
    stride = b.op("Gather", b.attribute("strides"), 0, axis=0)
    dilation = b.op("Gather", b.attribute("dilations"), 0, axis=0)
    height, width = b.dim(x, 1), b.dim(x, 2)
    return Sizes(
        batch=b.dim(x, 0),
        height=height,
        width=width,
        channels=b.dim(x, 3),
        hidden=b.dim(w1, 0),
        out_channels=b.dim(w3, 0),
        stride=stride,
        dilation=dilation,
        out_height=(height - 1) // stride + 1,
        out_width=(width - 1) // stride + 1,
    )


def dense_w2(b: Body, w2: Value, sizes: Sizes) -> Value:
    """The 3x3 kernel (M, M, 3, 3) with its groups spread to block-diagonal form (unchanged for one group)."""
    per_group = b.dim(w2, 1)
    tiled = b.op("Tile", w2, b.op("Concat", [1], b.op("Unsqueeze", sizes.hidden // per_group, [0]), [1, 1], axis=0))
    group = b.arange(sizes.hidden) // per_group
    same = b.op("Equal", b.unsqueeze(group, 1), group)
    return b.op("Where", b.unsqueeze(same, 2, 3), tiled, b.zeros_like(tiled))


def w2_rows(b: Body, w2: Value, sizes: Sizes) -> Value:
    """The 3x3 kernel as a matrix (M, 9 M) whose columns are ordered (tap, input channel)."""
    last = b.op("Transpose", dense_w2(b, w2, sizes), perm=[0, 2, 3, 1])
    return b.reshape(last, sizes.hidden, -1)


def shortcut_rows(b: Body, inputs: Mapping[str, Value], sizes: Sizes, x: Value | None = None) -> Value:
    """The shortcut before the final ReLU as rows (pixels, Co)."""
    x = inputs["x"] if x is None else x
    if "wd" not in inputs:
        return b.reshape(x, -1, sizes.channels)
    axis = -3  # counted from the end, so that it also holds for a single sample (H, W, C)
    ends = b.op("Concat", b.unsqueeze(sizes.height, 0), b.unsqueeze(sizes.width, 0), axis=0)
    strided = b.op("Slice", x, [0, 0], ends, [axis, axis + 1], b.attribute("strides"))
    return b.linear(b.reshape(strided, -1, sizes.channels), inputs["wd"], inputs["bd"])


def to_map(b: Body, rows: Value, sizes: Sizes) -> Value:
    """Rows (N Ho Wo, Co), or what is a map already, as a map (N, Ho, Wo, Co).

    Branches end with whichever they have: a runtime would copy what they reshape last.
    """
    return b.reshape(rows, sizes.batch, sizes.out_height, sizes.out_width, sizes.out_channels)


@dataclass(frozen=True)
class PatchTables:
    """What depends on the sizes of map and mask only; folded to constants at load.

    A patch of an uneven partition is padded by repeating its last row or column, so that every patch has the
    same number of entries; a pixel listed twice is computed twice with the same result.

    Attributes:
        pixels: Output pixels of every patch, (patches, largest patch).
        slots: For each of them and each tap, 1 + the input pixel it reads, 0 outside: (patches, 9 largest patch).
        centres: Mask position whose patch has its 3x3's centre at an input pixel, (batch, 1, H, W); one past the
            last position where there is none (stride 2).
        inputs: All input pixels, (batch H W,).
        strided: Whether ``centres`` refers to the position past the end.
    """

    pixels: Value
    slots: Value
    centres: Value
    inputs: Value
    strided: bool


@dataclass(frozen=True)
class ActiveSet:
    """Run-time index lists of a spatial mask with P active pixels (table entries) in K active patches.

    Attributes:
        pixels: Active output pixels, int64 (P, 1), indices into the rows of the output map.
        needed: Input pixels that the 3x3 reads at active pixels, int64 (D,), indices into the rows of the input.
        neighbours: For each active pixel and tap, the row of ``[0; conv1 results]`` to read, (1, K, 9 P / K).
    """

    pixels: Value
    needed: Value
    neighbours: Value


def patch_tables(b: Body, sizes: Sizes, batch: Value, mask_size: tuple[Value, Value], strided: bool) -> PatchTables:
    """Write the static tables for masks of ``mask_size`` over ``batch`` samples."""
    mask_height, mask_width = mask_size
    patches = mask_height * mask_width

    def patch_axis(out_size: Value, count: Value) -> Value:
        """Output coordinates of every patch along one axis, (count, largest patch)."""
        index = b.arange(count)
        start = (index * out_size + count - 1) // count
        end = ((index + 1) * out_size + count - 1) // count
        offset = b.arange((out_size + count - 1) // count)
        return b.op("Min", b.unsqueeze(start, 1) + offset, b.unsqueeze(end - 1, 1))

    def tap_axis(coordinates: Value, in_size: Value) -> tuple[Value, Value]:
        """Input coordinates of the three taps (count, largest patch, 3), and which of them are inside."""
        at = b.unsqueeze(coordinates * sizes.stride, 2) + b.value([-1, 0, 1]) * sizes.dilation
        return at, b.op("And", b.op("Less", -1, at), b.op("Less", at, in_size))

    y, x = patch_axis(sizes.out_height, mask_height), patch_axis(sizes.out_width, mask_width)
    sample = b.arange(batch)
    pixel = b.unsqueeze(y * sizes.out_width, 1, 3) + b.unsqueeze(x, 0, 2)
    first = sample * (sizes.out_height * sizes.out_width)
    pixel = b.unsqueeze(first, 1, 2, 3, 4) + b.unsqueeze(pixel, 0)

    in_y, inside_y = tap_axis(y, sizes.height)
    in_x, inside_x = tap_axis(x, sizes.width)
    # Axes: patch row, patch column, row and column in the patch, tap row, tap column.
    source = b.unsqueeze(in_y * sizes.width, 1, 3, 5) + b.unsqueeze(in_x, 0, 2, 4)
    inside = b.op("And", b.unsqueeze(inside_y, 1, 3, 5), b.unsqueeze(inside_x, 0, 2, 4))
    first = sample * (sizes.height * sizes.width) + 1
    slot = b.op("Where", b.unsqueeze(inside, 0), b.unsqueeze(first, 1, 2, 3, 4, 5, 6) + b.unsqueeze(source, 0), 0)

    row, column = b.arange(sizes.height), b.arange(sizes.width)
    patch_row = row // sizes.stride * mask_height // sizes.out_height
    patch_column = column // sizes.stride * mask_width // sizes.out_width
    centre = b.unsqueeze(patch_row * mask_width, 1) + patch_column
    centre = b.unsqueeze(sample * patches, 1, 2, 3) + b.unsqueeze(centre, 0, 1)
    if strided:
        off_row = b.op("Less", 0, row - row // sizes.stride * sizes.stride)
        off_column = b.op("Less", 0, column - column // sizes.stride * sizes.stride)
        centre = b.op("Where", b.op("Or", b.unsqueeze(off_row, 1), off_column), batch * patches, centre)
    return PatchTables(
        pixels=b.reshape(pixel, batch * patches, -1),
        slots=b.reshape(slot, batch * patches, -1),
        centres=centre,
        inputs=b.arange(batch * sizes.height * sizes.width),
        strided=strided,
    )


def mask_bits(b: Body, mask: Value) -> Value:
    """A mask as 0 and 1, float32: what is above 0.5 is active, NaN is not."""
    half = b.op("Constant", value_float=0.5)
    active = b.op("Greater", b.op("Cast", mask, to=TensorProto.FLOAT), half)
    return b.op("Cast", active, to=TensorProto.FLOAT)


def active_pixels(b: Body, mask: Value, tables: PatchTables) -> Value:
    """Active output pixels, int64 (P, 1), indices into the rows of the output map."""
    return b.reshape(b.gather(tables.pixels, b.op("NonZero", b.reshape(mask, -1))), -1, 1)


def active_set(b: Body, mask: Value, tables: PatchTables) -> ActiveSet:
    """Write the index lists of a mask."""
    bits = b.reshape(mask, -1)
    patches = b.op("NonZero", bits)
    pixels = active_pixels(b, mask, tables)
    if tables.strided:
        bits = b.op("Concat", bits, b.zeros_like(b.op("Slice", bits, [0], [1])), axis=0)
    # The mask at the 3x3's centres, grown by the 3x3: the input pixels it reads.
    grown = b.op(
        "MaxPool",
        b.gather(bits, tables.centres),
        kernel_shape=[3, 3],
        dilations=AttributeRef("dilations"),
        pads=AttributeRef("pads"),
    )
    grown = b.reshape(grown, -1)
    needed = b.op("Compress", tables.inputs, b.op("Cast", grown, to=TensorProto.BOOL))
    # The rank of a needed pixel among the needed ones is its row behind the zero row.
    rank = b.op("CumSum", b.op("Cast", grown, to=TensorProto.INT32), 0)
    rows = b.op("Concat", b.op("Cast", [0], to=TensorProto.INT32), rank, axis=0)
    return ActiveSet(pixels, needed, b.gather(rows, b.gather(tables.slots, patches)))


def with_zero_row(b: Body, rows: Value, like: Value) -> Value:
    """``[0; rows]``; ``like`` is a vector of the rows' width and type."""
    return b.op("Concat", b.unsqueeze(b.zeros_like(like), 0), rows, axis=0)


def with_last(b: Body, indices: Value, last: Value) -> Value:
    """Indices with one more."""
    return b.op("Concat", indices, b.unsqueeze(last, 0), axis=0)


def scatter_rows(b: Body, identity: Value, pixels: Value, updated: Value, projection: bool) -> Value:
    """``updated`` on the active pixels; elsewhere ``identity`` (that of a projection gets its ReLU)."""
    base = b.op("Relu", identity) if projection else identity
    return b.op("ScatterND", base, pixels, updated)


# ---------------------------------------------------------------- a block whose masks are all ones


def all_ones(b: Body, mask: Value) -> Value:
    """Whether nothing of a mask is 0, as a scalar."""
    return b.op("Cast", b.op("ReduceMin", mask, keepdims=0), to=TensorProto.BOOL)


def dense_map(b: Body, inputs: Mapping[str, Value], sizes: Sizes, x: Value) -> Value:
    """``relu(shortcut + f(x))`` for whole samples (K, H, W, C): convolutions, no list and no gather; (K, Ho, Wo, Co).

    ONNX Runtime's blocked convolutions are the fastest that it has, and add a sum and its ReLU themselves. They take
    no weights from the graph around a branch: the weights are reshaped here, and so become constants of the graph at
    hand. They add only what is in their layout already: a pool of single pixels, which changes nothing, brings the
    map there once for all who read it.
    """

    def convolution(maps: Value, name: str, **attributes: AttributeRef) -> Value:
        weight, bias = inputs[f"w{name}"], b.reshape(b.unsqueeze(inputs[f"b{name}"], 0), -1)
        if name == "2":
            sides = sizes.hidden, b.dim(weight, 1), b.value(3), b.value(3)
            weight = b.reshape(b.reshape(weight, -1), *sides)
        else:
            weight = b.unsqueeze(weight, 2, 3)
        return b.op("Conv", maps, weight, bias, **attributes)

    strides = AttributeRef("strides")
    around = {name: AttributeRef(name) for name in ("dilations", "pads")}
    maps = b.op("MaxPool", b.op("Transpose", x, perm=[0, 3, 1, 2]), kernel_shape=[1, 1])
    shortcut = convolution(maps, "d", strides=strides) if "wd" in inputs else maps
    maps = b.op("Relu", convolution(maps, "1"))
    maps = convolution(maps, "2", strides=strides, **around, group=AttributeRef("group", AttributeRef.INT))
    maps = b.op("Relu", maps)
    if "ws" in inputs:
        pooled = b.op("Relu", convolution(b.op("GlobalAveragePool", maps), "s"))
        maps = maps * b.op("Sigmoid", convolution(pooled, "e"))
    maps = b.op("Relu", convolution(maps, "3") + shortcut)
    return b.op("Transpose", maps, perm=[0, 2, 3, 1])


def biased_w3(b: Body, w3: Value, bias: Value) -> Value:
    """The last 1x1 (Co, M) with a bias as one more row, (M + 1, Co): a channel is a row."""
    return b.op("Concat", b.op("Transpose", w3, perm=[1, 0]), b.unsqueeze(bias, 0), axis=0)


def residual_rows(b: Body, identity: Value, pixels: Value, hidden: Value, weight: Value, bias: Value) -> Value:
    """``relu(identity[pixels] + hidden weight + bias)``, with ``bias`` also as the last row of ``weight`` (K + 1, Co).

    One product adds the gathered identity itself, which takes two passes over the output less than additions of
    their own.
    """
    every = b.ones(bias, b.dim(identity, 0), 1)
    hidden = b.op("Concat", hidden, b.op("GatherND", every, pixels), axis=1)
    return b.op("Relu", b.op("Gemm", hidden, weight, b.op("GatherND", identity, pixels)))
