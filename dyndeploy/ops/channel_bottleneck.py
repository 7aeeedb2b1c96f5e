"""ChannelBottleneck: a residual bottleneck that skips groups of hidden channels, exactly.

Source: LAUDNet (TPAMI 2024), channel mode of LAUD-ResNet. There the mask multiplies the convolution's result BEFORE
BatchNorm, so a skipped channel is not zero but the constant ``relu(bias)``, which the next convolution sees, with
zero padding at the borders. With ``relu(m z + b) = relu(b) + m (relu(z + b) - relu(b))`` for m in {0, 1} only the
varying part needs computing; what the constants contribute is static.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops._geometry import Geometry, bottleneck_geometry, require_channel_mask
from dyndeploy.ops._quantized_bottleneck import quantization
from dyndeploy.ops.base import Attributes, Element, Port, Role, Shape
from dyndeploy.ops.gates import CHANNEL

if TYPE_CHECKING:
    import torch

NAME = "ChannelBottleneck"
MASK = Port("mask", Role.MASK, ("N", "G"), Element.FLOAT)


def residual_branch(
    x: torch.Tensor,
    mask: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    w3: torch.Tensor,
    b3: torch.Tensor,
    *,
    stride: int,
    dilation: int,
    group: int,
) -> torch.Tensor:
    """The branch with masked hidden channels, NHWC, before the shortcut is added."""
    import torch.nn.functional as F

    bits = shared.active_bits(mask).to(x.dtype)
    _, hidden = shared.hidden_maps(x, w1, b1, w2, b2, bits, stride=stride, dilation=dilation, group=group)
    return F.linear(hidden, w3, b3)


def reference(
    x: torch.Tensor,
    mask: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    w3: torch.Tensor,
    b3: torch.Tensor,
    wd: torch.Tensor | None = None,
    bd: torch.Tensor | None = None,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    group: int,
) -> torch.Tensor:
    """Compute the operator densely; shapes as in :mod:`dyndeploy.ops.spatial_bottleneck`.

    Args:
        x: (N, H, W, C).
        mask: (N, G), active where above 0.5 (NaN is not); group i covers the channels i M / G ... (i + 1) M / G - 1.
        w1: (M, C).
        b1: (M,).
        w2: (M, M / group, 3, 3).
        b2: (M,).
        w3: (Co, M).
        b3: (Co,).
        wd: (Co, C) or None.
        bd: (Co,) or None.
        strides: Of the 3x3.
        dilations: Of the 3x3.
        pads: Equal to the dilation.
        group: Of the 3x3.

    Returns:
        (N, Ho, Wo, Co).
    """
    import torch.nn.functional as F

    branch = residual_branch(x, mask, w1, b1, w2, b2, w3, b3, stride=strides[0], dilation=dilations[0], group=group)
    return F.relu(shared.shortcut(x, wd, bd, strides[0]) + branch)


def channel_geometry(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Geometry:
    """Sizes, of shapes that fit.

    Raises:
        UsageError: They do not.
    """
    geometry = bottleneck_geometry(name, shapes[0], shapes[2:], attributes)
    require_channel_mask(name, shapes[1], geometry)
    return geometry


@dataclass(frozen=True)
class StaticParts:
    """What depends on weights and shapes only; folded to constants at load.

    Attributes:
        constant1: relu(b1), (M,): a skipped channel after conv1.
        constant2: relu(b2), (M,): a skipped channel after conv2.
        bias2: conv2 of the constant map (zero padding) plus b2, (1, M, Ho, Wo).
        bias3: b3 + w3 relu(b2), (Co,).
        w2: The 3x3 with spread groups (M, M, 3, 3).
        w3: w3 transposed, so that a channel is a row, and ``bias3`` as the last row, (M + 1, Co).
        channels: Channel indices of every group, (G, M / G).
    """

    constant1: Value
    constant2: Value
    bias2: Value
    bias3: Value
    w2: Value
    w3: Value
    channels: Value


def static_parts(b: Body, inputs: Mapping[str, Value], sizes: shared.Sizes, groups: Value) -> StaticParts:
    """Write the constants of exact channel skipping."""
    constant1, constant2 = b.op("Relu", inputs["b1"]), b.op("Relu", inputs["b2"])
    shape = b.op("Concat", [1], *(b.unsqueeze(size, 0) for size in (sizes.hidden, sizes.height, sizes.width)), axis=0)
    bias2 = b.op(
        "Conv",
        b.op("Expand", b.unsqueeze(constant1, 0, 2, 3), shape),
        inputs["w2"],
        inputs["b2"],
        strides=AttributeRef("strides"),
        dilations=AttributeRef("dilations"),
        pads=AttributeRef("pads"),
        group=AttributeRef("group", AttributeRef.INT),
    )
    bias3 = b.op("MatMul", inputs["w3"], constant2) + inputs["b3"]
    return StaticParts(
        constant1=constant1,
        constant2=constant2,
        bias2=bias2,
        bias3=bias3,
        w2=shared.dense_w2(b, inputs["w2"], sizes),
        w3=shared.biased_w3(b, inputs["w3"], bias3),
        channels=b.reshape(b.arange(sizes.hidden), groups, -1),
    )


def _sample_body(
    b: Body, inputs: Mapping[str, Value], sizes: shared.Sizes, static: StaticParts, x: Value, mask: Value
) -> Value:
    """One sample: x (H, W, C), mask (G,) -> rows (Ho Wo, Co)."""
    identity = shared.shortcut_rows(b, inputs, sizes, x)
    groups = b.reshape(b.op("NonZero", mask), -1)
    count = b.dim(groups, 0)
    ones = b.ones(inputs["b3"], 1, sizes.out_height * sizes.out_width)

    def run(inner: Body) -> Value:
        channels = inner.reshape(inner.gather(static.channels, groups), -1)
        column = inner.unsqueeze(channels, 1)

        def per_channel(vector: Value) -> Value:
            return inner.op("GatherND", inner.unsqueeze(vector, 1), column)

        # Channels are rows here, so that picking weights copies whole rows and conv2 sees NCHW.
        rows = inner.reshape(x, -1, sizes.channels)
        w1, bias1 = inner.gather(inputs["w1"], channels), per_channel(inputs["b1"])
        hidden = inner.op("Relu", inner.op("Gemm", w1, rows, bias1, transB=1)) - per_channel(static.constant1)
        hidden = inner.reshape(hidden, 1, -1, sizes.height, sizes.width)
        # Of an output channel, the weights of a group of input channels are contiguous: one copy for each.
        all_groups, group_size = inner.dim(static.channels, 0), inner.dim(static.channels, 1)
        w2 = inner.reshape(static.w2, sizes.hidden * all_groups, group_size * 9)
        w2 = inner.gather(w2, inner.unsqueeze(channels * all_groups, 1) + groups)
        w2 = inner.reshape(w2, inner.dim(channels, 0), inner.dim(channels, 0), 3, 3)
        convolved = inner.op(
            "Conv",
            hidden,
            w2,
            strides=AttributeRef("strides"),
            dilations=AttributeRef("dilations"),
            pads=AttributeRef("pads"),
        )
        hidden = inner.op("Relu", convolved + inner.gather(static.bias2, channels, axis=1))
        hidden = inner.reshape(hidden, inner.dim(channels, 0), -1) - per_channel(static.constant2)
        # A row of ones for the bias, so that the product adds the identity.
        hidden = inner.op("Concat", hidden, ones, axis=0)
        w3 = inner.gather(static.w3, shared.with_last(inner, channels, sizes.hidden))
        return inner.op("Relu", inner.op("Gemm", hidden, w3, identity, transA=1))

    def skip(inner: Body) -> Value:
        return inner.op("Relu", inner.op("Add", identity, static.bias3))

    return b.branch(b.op("Less", 0, count), run, skip)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    sizes = shared.body_sizes(b, inputs)
    static = static_parts(b, inputs, sizes, b.dim(inputs["mask"], 1))

    def dense(inner: Body) -> Value:
        return shared.dense_map(inner, inputs, sizes, inputs["x"])

    def sparse(inner: Body) -> Value:
        return inner.for_each_sample(
            [inputs["x"], inputs["mask"]],
            lambda each, sample: _sample_body(each, inputs, sizes, static, *sample),
        )

    return shared.to_map(b, b.branch(shared.all_ones(b, inputs["mask"]), dense, sparse), sizes)


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck on the active hidden channels, skipped channels exact",
    masks=(MASK,),
    gates={"mask": CHANNEL},
    reference=reference,
    geometry=channel_geometry,
    body=_body,
    quantization=quantization,
)
