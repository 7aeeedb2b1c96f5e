"""Random instances of every dynamic operator, for the tests of all its faces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from dyndeploy.ops import OPERATORS, Element, OperatorSpec, Role

QUANTIZED = "Quantized"
"""How the names of operators in integers begin."""
CONVERSIONS = ("QuantizeBytes", "DequantizeBytes")
"""Where bytes begin and end."""


@dataclass(frozen=True, repr=False)
class Case:
    """One operator with concrete inputs (in ONNX order) and attributes."""

    spec: OperatorSpec
    inputs: tuple[torch.Tensor, ...]
    attributes: dict[str, Any]

    def __repr__(self) -> str:
        return f"Case({self.spec.name}, shapes={self.shapes}, {self.attributes})"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(tensor.shape) for tensor in self.inputs]

    def reference(self) -> torch.Tensor:
        return self.spec.reference(*self.inputs, **self.attributes)

    def masks(self) -> dict[str, Any]:
        return {name: self.inputs[self.spec.input_index(name)].numpy() for name in self.spec.mask_inputs()}


def _bits(generator: torch.Generator, shape: tuple[int, ...], rate: float) -> torch.Tensor:
    return (torch.rand(*shape, generator=generator) < rate).float()


def build(
    name: str,
    *,
    seed: int = 0,
    batch: int = 1,
    size: tuple[int, int] = (8, 8),
    channels: int = 8,
    hidden: int = 6,
    out_channels: int = 12,
    stride: int = 1,
    dilation: int = 1,
    group: int = 1,
    mask_size: tuple[int, int] = (2, 2),
    channel_groups: int = 3,
    rate: float = 0.5,
    pool_active: int = 1,
    head_mode: int = 0,
    token_mlp: int = 1,
    normalise: int = 1,
) -> Case:
    """Build a case; parameters that an operator does not have are ignored."""
    if name.startswith(f"{QUANTIZED}Image"):
        return image_case(
            seed=seed, batch=batch, size=size, channels=channels % 4 + 1, out_channels=out_channels, kernel=(3, 3),
            stride=stride, pads=(1, 1, 1, 1), pool=3 if group == 1 else 1, zero_point=seed * 37 % 256,
        )  # fmt: skip
    if name.startswith(QUANTIZED):
        twin = build(
            name.removeprefix(QUANTIZED), seed=seed, batch=batch, size=size, channels=channels, hidden=hidden,
            out_channels=out_channels, stride=stride, dilation=dilation, group=group, mask_size=mask_size,
            channel_groups=channel_groups, rate=rate, pool_active=pool_active,
        )  # fmt: skip
        return in_integers(twin, seed)
    spec = OPERATORS[name]
    generator = torch.Generator().manual_seed(seed)
    if name == "PyramidRoiAlign":
        return _of_regions(spec, generator, size, channels, hidden, stride, out_channels)
    if spec.kind == "deformable_attention":
        return _of_points(spec, generator, batch, size, channels, hidden, channel_groups, stride)
    if len(spec.inputs[0].shape) == 3:
        return _of_tokens(
            spec, generator, batch, math.prod(size) % 23 + 1, channels, hidden, channel_groups, rate, head_mode,
            token_mlp, normalise,
        )  # fmt: skip

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(batch, *size, channels).relu()
    if name in CONVERSIONS:
        bytes_read = spec.inputs[0].element is Element.UINT8
        return Case(spec, ((x * 100).round().clamp(0, 255).to(torch.uint8) if bytes_read else x,), {"scale": 0.0125})
    if name == "SpatialMasker":
        attributes: dict[str, Any] = {
            "mask_height": min(mask_size[0], size[0]),
            "mask_width": min(mask_size[1], size[1]),
        }
        return Case(spec, (x, normal(2, channels), normal(2) * 0.1), attributes)
    if name.startswith("ChannelMasker"):
        layers = [normal(5, channels), normal(5)] if name.endswith("Hidden") else []
        width = 5 if layers else channels
        return Case(spec, (x, *layers, normal(channel_groups, width), normal(channel_groups) * 0.1), {})
    projection, excites = name.endswith("Projection"), "SE" in name
    if not projection:
        stride, out_channels = 1, channels
    out_size = [(extent - 1) // stride + 1 for extent in size]
    spatial = _bits(generator, (batch, 1, *(min(m, o) for m, o in zip(mask_size, out_size, strict=True))), rate)
    channel = _bits(generator, (batch, channel_groups), rate)
    masks = {
        "Spatial": [spatial],
        "Layer": [_bits(generator, (batch, 1, 1, 1), rate)],
        "Channel": [channel],
        "SpatialChannel": [spatial, channel],
    }[name.removesuffix("Projection").removesuffix("Bottleneck").removesuffix("SE")]
    weights = [
        normal(hidden, channels) / channels**0.5,
        normal(hidden),
        normal(hidden, hidden // group, 3, 3) / (9 * hidden // group) ** 0.5,
        normal(hidden),
        *((normal(3, hidden), normal(3), normal(hidden, 3), normal(hidden)) if excites else ()),
        normal(out_channels, hidden) / hidden**0.5,
        normal(out_channels),
    ]
    if projection:
        weights += [normal(out_channels, channels) / channels**0.5, normal(out_channels)]
    attributes = {
        "strides": [stride] * 2,
        "dilations": [dilation] * 2,
        "pads": [dilation] * 4,
        "group": group,
    }
    if excites and "Spatial" in name:
        attributes["pool_active"] = pool_active
    return Case(spec, (x, *masks, *weights), attributes)


def image_case(
    *,
    seed: int = 0,
    batch: int = 1,
    size: tuple[int, int] = (8, 8),
    channels: int = 3,
    out_channels: int = 12,
    kernel: tuple[int, int] = (7, 7),
    stride: int = 2,
    pads: tuple[int, int, int, int] = (3, 3, 3, 3),
    pool: int = 3,
    zero_point: int = 114,
    limit: int = 64,
) -> Case:
    """A convolution of images in integers; ``pool``: of windows of this size, 1: none."""
    generator = torch.Generator().manual_seed(seed)
    shape = (out_channels, channels, *kernel)
    scale, depth = 0.02, math.prod(shape[1:])
    x = torch.randn(batch, channels, *size, generator=generator)
    halves = (torch.randint(-200, 200, x.shape, generator=generator) + 0.5) * scale
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, halves, x)
    inputs = (
        x,
        torch.randint(-limit, limit + 1, shape, generator=generator, dtype=torch.int8),
        torch.randint(-20000, 20000, shape[:1], generator=generator, dtype=torch.int32),
        (0.3 + torch.rand(out_channels, generator=generator)) / (50 * depth**0.5),
    )
    attributes: dict[str, Any] = {
        "strides": [stride] * 2,
        "pads": list(pads),
        "pool_shape": [pool] * 2,
        "pool_strides": [(pool + 1) // 2] * 2,
        "pool_pads": [pool // 2] * 4,
        "scale": scale,
        "zero_point": zero_point,
    }
    return Case(OPERATORS["QuantizedImageConvolution"], inputs, attributes)


def _of_regions(
    spec: OperatorSpec,
    generator: torch.Generator,
    size: tuple[int, int],
    channels: int,
    boxes: int,
    stride: int,
    side: int,
) -> Case:
    """Boxes on a pyramid, some of which lie outside it or are empty; coordinates are exact in half precision."""
    strides = [stride * 2**level for level in range(4)]
    sizes = [tuple(-(-extent // 2**level) for extent in size) for level in range(4)]
    maps = [torch.randn(1, channels, *extent, generator=generator) for extent in sizes]
    corners = torch.randint(-8, 4 * stride * max(size) + 8, (boxes, 2, 2), generator=generator) / 4
    ordered = torch.cat([corners.min(1).values, corners.max(1).values], 1)
    levels = torch.randint(-1, 6, (boxes,), generator=generator)
    return Case(spec, (*maps, ordered, levels), {"strides": strides, "size": side % 9 + 1})


def _of_points(
    spec: OperatorSpec,
    generator: torch.Generator,
    batch: int,
    size: tuple[int, int],
    channels: int,
    queries: int,
    heads: int,
    points: int,
) -> Case:
    """Points on maps, and some outside them; coordinates are exact in half precision, some on a cell's middle."""
    levels = int(spec.inputs[1].shape[3])
    sizes = [tuple(-(-extent // 2**level) for extent in size) for level in range(levels)]
    value = torch.randn(batch, sum(map(math.prod, sizes)), heads, channels, generator=generator)
    shape = (batch, queries, heads, levels, points)
    locations = torch.randint(-32, 96, (*shape, 2), generator=generator) / 64
    # Now and then a point is far away.
    far = torch.rand(*shape, 2, generator=generator) < 0.02
    locations = torch.where(far, locations * 1000, locations)
    weights = torch.randn(*shape, generator=generator).flatten(3).softmax(-1).view(shape)
    return Case(spec, (value, locations, weights), {"sizes": [side for extent in sizes for side in extent]})


def in_integers(twin: Case, seed: int, *, limit: int = 64) -> Case:
    """The operator in integers with random constants, and the inputs and masks of its FP32 twin.

    Sums of products of random signs are some 5000 for every square root of their depth: the multipliers bring them to
    the range of a byte, and beyond.
    """
    assert twin.spec.quantization is not None
    spec = OPERATORS[twin.spec.quantization.operator]
    generator = torch.Generator().manual_seed(seed + 1)
    values = {port.name: value for port, value in zip(twin.spec.inputs, twin.inputs, strict=True)}
    values["x"] = (values["x"] * 100).round().clamp(0, 255).to(torch.uint8)
    depth, shape = 1, torch.Size()
    for port in spec.inputs:
        # A multiplier has the shape of the bias before it.
        shape = values[port.name].shape if port.name in values else shape
        if port.element is Element.INT8:
            values[port.name] = torch.randint(-limit, limit + 1, shape, generator=generator, dtype=torch.int8)
            depth = math.prod(shape[1:])
        elif port.element is Element.INT32:
            values[port.name] = torch.randint(-20000, 20000, shape, generator=generator, dtype=torch.int32)
        elif port.name == "ws":
            values["ws"] = values["ws"] / 50
        elif port.name == "me":
            values["me"] = 0.5 + torch.rand(shape, generator=generator)
        elif port.name not in values:
            values[port.name] = (0.3 + torch.rand(shape, generator=generator)) / (50 * depth**0.5)
    return Case(spec, tuple(values[port.name] for port in spec.inputs), twin.attributes)


def _of_tokens(
    spec: OperatorSpec,
    generator: torch.Generator,
    batch: int,
    tokens: int,
    head_size: int,
    hidden: int,
    heads: int,
    rate: float,
    head_mode: int,
    token_mlp: int,
    normalise: int,
) -> Case:
    """A transformer block or one of its maskers."""
    width = heads * head_size

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(batch, tokens, width)
    if spec.decides:
        attributes: dict[str, Any] = {"epsilon": 1e-6, "normalise": normalise}
        if spec.name == "TokenMasker":
            weights = (normal(width), normal(1) * 0.1)
            attributes["kept"] = min(tokens, normalise)
        else:
            rows = 1 if spec.name == "ClassTokenLayerMasker" else heads
            weights = (normal(rows, width), normal(rows) * 0.1)
        return Case(spec, (x, *weights), attributes)
    sizes = {"N": batch, "T": tokens, "D": width, "A": heads, "d": head_size, "F": hidden * heads, "3": 3, "1": 1}
    inputs = [x]
    for port in spec.inputs[1:]:
        shape = tuple(sizes[symbol] for symbol in port.shape)
        if port.role is Role.MASK:
            inputs.append(_bits(generator, shape, rate))
        elif port.name.startswith("w_"):
            depth = math.prod(shape[1:]) if port.name == "w_proj" else shape[-1]
            inputs.append(normal(*shape) / depth**0.5)
        else:
            inputs.append(normal(*shape))
    attributes = {"epsilon": 1e-6, "scale": head_size**-0.5, "token_mlp": token_mlp, "head_mode": head_mode}
    if "capacity" in {attribute.name for attribute in spec.attributes}:
        attributes["capacity"] = 1 + (tokens - 1) * 2 // 3
    return Case(spec, tuple(inputs), attributes)


@st.composite
def any_case(draw: st.DrawFn, name: str) -> Case:
    """Random sizes, odd and non-square ones included; rates 0, 1 and between."""
    group = draw(st.sampled_from([1, 1, 2, 3]))
    hidden = 6 * draw(st.integers(1, 2))
    return build(
        name,
        seed=draw(st.integers(0, 2**31)),
        batch=draw(st.integers(1, 3)),
        size=(draw(st.integers(1, 13)), draw(st.integers(1, 13))),
        channels=draw(st.integers(1, 9)),
        hidden=hidden,
        out_channels=draw(st.integers(1, 9)),
        stride=draw(st.sampled_from([1, 2])),
        dilation=draw(st.sampled_from([1, 1, 2])),
        group=group,
        mask_size=(draw(st.integers(1, 7)), draw(st.integers(1, 7))),
        channel_groups=draw(st.sampled_from([1, 2, 3, 6])),
        rate=draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])),
        pool_active=draw(st.sampled_from([0, 1])),
        head_mode=draw(st.sampled_from([0, 1, 2])),
        token_mlp=draw(st.sampled_from([0, 1])),
        normalise=draw(st.sampled_from([0, 1])),
    )
