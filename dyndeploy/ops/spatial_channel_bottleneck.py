"""SpatialChannelBottleneck: active patches of a spatial mask and active groups of hidden channels together.

Source: LAUDNet (TPAMI 2024), mode "both". Channel masks act as in ``ChannelBottleneck`` (before the bias), the
spatial mask as in ``SpatialBottleneck`` (on the residual branch after its last BatchNorm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops._geometry import (
    Geometry,
    bottleneck_geometry,
    require_channel_mask,
    require_spatial_mask,
)
from dyndeploy.ops._quantized_bottleneck import quantization
from dyndeploy.ops.base import Attributes, Shape
from dyndeploy.ops.channel_bottleneck import (
    MASK as CHANNEL_MASK,
)
from dyndeploy.ops.channel_bottleneck import (
    StaticParts,
    residual_branch,
    static_parts,
)
from dyndeploy.ops.gates import CHANNEL, PATCH
from dyndeploy.ops.spatial_bottleneck import MASK as SPATIAL_MASK

if TYPE_CHECKING:
    import torch

NAME = "SpatialChannelBottleneck"

MASKS = (replace(SPATIAL_MASK, name="spatial_mask"), replace(CHANNEL_MASK, name="channel_mask"))


def reference(
    x: torch.Tensor,
    spatial_mask: torch.Tensor,
    channel_mask: torch.Tensor,
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
    """Compute the operator densely and select; shapes as in the two operators it joins.

    Args:
        x: (N, H, W, C), non-negative where there is no projection.
        spatial_mask: (N, 1, mh, mw), active where above 0.5 (NaN is not).
        channel_mask: (N, G), likewise.
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
    import torch
    import torch.nn.functional as F

    branch = residual_branch(
        x, channel_mask, w1, b1, w2, b2, w3, b3, stride=strides[0], dilation=dilations[0], group=group
    )
    identity = shared.shortcut(x, wd, bd, strides[0])
    active = shared.active_outputs(spatial_mask, branch.shape[1], branch.shape[2])
    return torch.where(active, F.relu(identity + branch), identity if wd is None else F.relu(identity))


def spatial_channel_geometry(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Geometry:
    """Sizes, of shapes that fit.

    Raises:
        UsageError: They do not.
    """
    geometry = bottleneck_geometry(name, shapes[0], shapes[3:], attributes)
    require_spatial_mask(name, shapes[1], geometry)
    require_channel_mask(name, shapes[2], geometry)
    return geometry


def _sample_body(
    b: Body,
    inputs: Mapping[str, Value],
    sizes: shared.Sizes,
    static: StaticParts,
    bias2_rows: Value,
    tables: shared.PatchTables,
    samples: Sequence[Value],
) -> Value:
    """One sample: x (H, W, C), spatial (1, mh, mw), channel (G,) -> rows (Ho Wo, Co)."""
    x, spatial_mask, channel_mask = samples
    projection = "wd" in inputs
    active = shared.active_set(b, spatial_mask, tables)
    identity = shared.shortcut_rows(b, inputs, sizes, x)
    groups = b.reshape(b.op("NonZero", channel_mask), -1)

    def run(inner: Body) -> Value:
        channels = inner.reshape(inner.gather(static.channels, groups), -1)
        count = inner.dim(channels, 0)
        group_size = inner.dim(static.channels, 1)

        def per_channel(vector: Value) -> Value:
            return inner.gather(vector, channels)

        rows = inner.gather(inner.reshape(x, -1, sizes.channels), active.needed)
        bias1, constant1 = per_channel(inputs["b1"]), per_channel(static.constant1)
        hidden = inner.op("Relu", inner.linear(rows, inner.gather(inputs["w1"], channels), bias1)) - constant1
        hidden = inner.gather(shared.with_zero_row(inner, hidden, bias1), active.neighbours)
        hidden = inner.reshape(hidden, -1, count * 9)
        # (out, tap, in group, in channel of the group): a selected group is one contiguous run.
        w2 = inner.op("Transpose", static.w2, perm=[0, 2, 3, 1])
        w2 = inner.reshape(inner.gather(w2, channels), count, 9, -1, group_size)
        w2 = inner.reshape(inner.gather(w2, groups, axis=2), count, -1)
        bias2 = inner.gather(inner.op("GatherND", bias2_rows, active.pixels), channels, axis=1)
        hidden = inner.op("Relu", inner.op("Gemm", hidden, w2, bias2, transB=1)) - per_channel(static.constant2)
        w3 = inner.gather(static.w3, shared.with_last(inner, channels, sizes.hidden))
        return shared.residual_rows(inner, identity, active.pixels, hidden, w3, static.bias3)

    def constants_only(inner: Body) -> Value:
        return inner.op("Relu", inner.op("GatherND", identity, active.pixels) + static.bias3)

    updated = b.branch(b.op("Less", 0, b.dim(groups, 0)), run, constants_only)
    return shared.scatter_rows(b, identity, active.pixels, updated, projection)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    sizes = shared.body_sizes(b, inputs)
    static = static_parts(b, inputs, sizes, b.dim(inputs["channel_mask"], 1))
    bias2_rows = b.op("Transpose", b.reshape(static.bias2, sizes.hidden, -1), perm=[1, 0])
    mask_size = b.dim(inputs["spatial_mask"], 2), b.dim(inputs["spatial_mask"], 3)
    tables = shared.patch_tables(b, sizes, b.value(1), mask_size, strided="wd" in inputs)
    everything = b.op("And", *(shared.all_ones(b, inputs[name]) for name in ("spatial_mask", "channel_mask")))

    def dense(inner: Body) -> Value:
        return shared.dense_map(inner, inputs, sizes, inputs["x"])

    def sparse(inner: Body) -> Value:
        return inner.for_each_sample(
            [inputs["x"], inputs["spatial_mask"], inputs["channel_mask"]],
            lambda each, samples: _sample_body(each, inputs, sizes, static, bias2_rows, tables, samples),
        )

    return shared.to_map(b, b.branch(everything, dense, sparse), sizes)


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck on active patches and active hidden channels",
    masks=MASKS,
    gates={"spatial_mask": PATCH, "channel_mask": CHANNEL},
    reference=reference,
    geometry=spatial_channel_geometry,
    body=_body,
    quantization=quantization,
)
