"""Bottlenecks with a squeeze-and-excitation behind the 3x3, as RegNetY's: what their operators share.

Source: "Designing Network Design Spaces" (Radosavovic et al., CVPR 2020); masks as in LAUD-RegNetY (Han et al., TPAMI
2024). The channel mask stands behind the ReLUs of conv1 and conv2, so a skipped channel is zero: the 3x3, the mean, the
squeeze-and-excitation and the last 1x1 may leave it out, exactly. The spatial mask multiplies the residual branch after
its last BatchNorm, as everywhere; but a mean over the whole map reads what it skips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops.gates import BLOCK, CHANNEL, PATCH

if TYPE_CHECKING:
    import torch


WEIGHTS = 12
"""Weights and biases of an operator with a projection."""


def excited(
    hidden: torch.Tensor,
    ws: torch.Tensor,
    bs: torch.Tensor,
    we: torch.Tensor,
    be: torch.Tensor,
    active: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scale channels by a gate computed from their means.

    Args:
        hidden: (N, Ho, Wo, M).
        ws: (S, M).
        bs: (S,).
        we: (M, S).
        be: (M,).
        active: Pixels to average over, boolean (N, Ho, Wo, 1); None for all. Of no pixel the mean is 0.

    Returns:
        (N, Ho, Wo, M).
    """
    import torch
    import torch.nn.functional as F

    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if active is None:
        mean = wide.mean((1, 2))
    else:
        mean = (wide * active).sum((1, 2)) / active.sum((1, 2)).clamp(min=1)
    gate = torch.sigmoid(F.linear(F.relu(F.linear(mean.to(hidden.dtype), ws, bs)), we, be))
    return hidden * gate[:, None, None]


def excited_maps(
    x: torch.Tensor,
    convolutions: Sequence[torch.Tensor],
    excitation: Sequence[torch.Tensor],
    channel: torch.Tensor | None,
    active: torch.Tensor | None,
    *,
    stride: int,
    dilation: int,
    group: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the first 1x1 and the 3x3 leave behind ReLU and channel mask, and the latter scaled by its gate, NHWC.

    Args:
        x: (N, H, W, C).
        convolutions: ``w1``, ``b1``, ``w2``, ``b2``.
        excitation: ``ws``, ``bs``, ``we``, ``be``.
        channel: 0 and 1, (N, G), or None.
        active: See :func:`excited`.
        stride: Of the 3x3.
        dilation: Of the 3x3.
        group: Of the 3x3.
    """
    import torch.nn.functional as F

    w1, b1, w2, b2 = convolutions
    ws, bs, we, be = excitation
    bits = None
    if channel is not None:
        bits = channel.repeat_interleave(w1.shape[0] // channel.shape[1], dim=1)[:, None, None, :]
    first = F.relu(F.linear(x, w1, b1))
    first = first if bits is None else first * bits
    second = F.relu(shared.conv3x3(first, w2, b2, dilation, stride, group))
    second = second if bits is None else second * bits
    return first, second, excited(second, ws, bs, we, be, active)


def compute(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor | None],
    *,
    spatial: torch.Tensor | None = None,
    channel: torch.Tensor | None = None,
    strides: Sequence[int],
    dilations: Sequence[int],
    group: int,
    pool_active: int = 0,
) -> torch.Tensor:
    """Compute such a bottleneck densely and select: the semantics of all of its operators.

    Args:
        x: (N, H, W, C); non-negative where there is a spatial mask and no projection.
        weights: ``w1`` (M, C), ``b1`` (M,), ``w2`` (M, M / group, 3, 3), ``b2`` (M,), ``ws`` (S, M), ``bs`` (S,),
            ``we`` (M, S), ``be`` (M,), ``w3`` (Co, M), ``b3`` (Co,), ``wd`` (Co, C) or None, ``bd`` (Co,) or None.
        spatial: (N, 1, mh, mw), active where above 0.5 (NaN is not); None for everywhere.
        channel: (N, G), likewise; group i covers the channels i M / G ... (i + 1) M / G - 1; None for all.
        strides: Of the 3x3 and of the projection.
        dilations: Of the 3x3.
        group: Of the 3x3; groups of the mask may cross its groups.
        pool_active: 1 averages over the active pixels, 0 over all.

    Returns:
        (N, Ho, Wo, Co): ``relu(shortcut + f(x))`` on active pixels, ``relu(shortcut)`` elsewhere, where ``f`` is 1x1,
        ReLU, channel mask, 3x3, ReLU, channel mask, squeeze-and-excitation, 1x1.
    """
    import torch
    import torch.nn.functional as F

    w1, b1, w2, b2, ws, bs, we, be, w3, b3, wd, bd = weights
    assert w1 is not None and w2 is not None and w3 is not None
    assert ws is not None and bs is not None and we is not None and be is not None
    assert b1 is not None and b2 is not None
    identity = shared.shortcut(x, wd, bd, strides[0])
    active = None
    if spatial is not None:
        height, width = ((extent - 1) // strides[0] + 1 for extent in x.shape[1:3])
        active = shared.active_outputs(spatial, height, width)
    *_, hidden = excited_maps(
        x, (w1, b1, w2, b2), (ws, bs, we, be), None if channel is None else shared.active_bits(channel).to(x.dtype),
        active if pool_active else None, stride=strides[0], dilation=dilations[0], group=group,
    )  # fmt: skip
    updated = F.relu(identity + F.linear(hidden, w3, b3))
    if active is None:
        return updated
    return torch.where(active, updated, identity if wd is None else F.relu(identity))


def reference_of(kinds: Sequence[str]) -> Callable[..., torch.Tensor]:
    """The reference of an operator: :func:`compute` on its inputs and attributes.

    Args:
        kinds: Kinds of its masks, in the order of its inputs: of pixels or of the whole block, and of channels.
    """

    def reference(x: torch.Tensor, *tensors: torch.Tensor, **attributes: Any) -> torch.Tensor:
        masks = dict(zip(kinds, tensors, strict=False))
        weights = tensors[len(kinds) :]
        return compute(
            x,
            (*weights, *[None] * (WEIGHTS - len(weights))),
            spatial=masks.get(PATCH.name, masks.get(BLOCK.name)),
            channel=masks.get(CHANNEL.name),
            strides=attributes["strides"],
            dilations=attributes["dilations"],
            group=attributes["group"],
            pool_active=attributes.get(shared.POOL_ACTIVE.name, 0),
        )

    return reference


# ---------------------------------------------------------------- pieces of the ONNX bodies


def per_sample_body(masks: Mapping[str, str]) -> Callable[[Body, Mapping[str, Value]], Value]:
    """The body of an operator whose masks leave each sample something else.

    The 1x1 convolutions leave out pixels and channels. The 3x3 leaves out pixels where the mean does; it computes all
    channels, because the channels that a mask leaves of a group of the 3x3 differ from group to group.

    Args:
        masks: Names of its mask inputs by kind of gate.
    """

    def body(b: Body, inputs: Mapping[str, Value]) -> Value:
        sizes = shared.body_sizes(b, inputs)
        everything = [shared.all_ones(b, inputs[name]) for name in masks.values()]
        condition = everything[0] if len(everything) == 1 else b.op("And", *everything)
        tables = None
        if PATCH.name in masks:
            mask = inputs[masks[PATCH.name]]
            mask_size = b.dim(mask, 2), b.dim(mask, 3)
            tables = shared.patch_tables(b, sizes, b.value(1), mask_size, strided="wd" in inputs)

        def sparse(inner: Body) -> Value:
            def each(sample: Body, values: list[Value]) -> Value:
                x, *given = values
                return _Sample(inputs, sizes, tables, x, dict(zip(masks, given, strict=True))).rows(sample)

            return inner.for_each_sample([inputs["x"], *(inputs[name] for name in masks.values())], each)

        def dense(inner: Body) -> Value:
            return shared.dense_map(inner, inputs, sizes, inputs["x"])

        return shared.to_map(b, b.branch(condition, dense, sparse), sizes)

    return body


class _Sample:
    """One sample, whose hidden maps are (channels, pixels): picking channels copies whole rows.

    Args:
        inputs: Of the operator; masks are 0 and 1.
        sizes: Of the bottleneck.
        tables: Of the patches of one sample, or None where there is no spatial mask.
        x: (H, W, C).
        masks: By kind of gate, without the axis of the samples.
    """

    def __init__(
        self,
        inputs: Mapping[str, Value],
        sizes: shared.Sizes,
        tables: shared.PatchTables | None,
        x: Value,
        masks: Mapping[str, Value],
    ) -> None:
        self.inputs, self.sizes, self.tables, self.x = inputs, sizes, tables, x
        self.spatial, self.channel = masks.get(PATCH.name), masks.get(CHANNEL.name)
        self.channels: Value | None = None

    def rows(self, b: Body) -> Value:
        """The output as rows (Ho Wo, Co)."""
        identity = shared.shortcut_rows(b, self.inputs, self.sizes, self.x)
        if self.spatial is None:
            return self._any_channel(b, lambda inner: self._whole(inner, identity), identity, None)
        assert self.tables is not None
        tables, spatial = self.tables, self.spatial

        def run(b: Body) -> Value:
            pixels = shared.active_pixels(b, spatial, tables)

            def computed(inner: Body) -> Value:
                active = inner.op("Cast", inner.integer(shared.POOL_ACTIVE.name), to=TensorProto.BOOL)
                hidden = inner.branch(active, self._over_active, lambda last: self._over_all(last, pixels))
                w3 = self._picked(inner, shared.biased_w3(inner, self.inputs["w3"], self.inputs["b3"]), bias=True)
                return shared.residual_rows(inner, identity, pixels, hidden, w3, self.inputs["b3"])

            return self._any_channel(b, computed, identity, pixels)

        def update(b: Body) -> Value:
            pixels = shared.active_pixels(b, spatial, tables)
            return shared.scatter_rows(b, identity, pixels, run(b), "wd" in self.inputs)

        def skip(b: Body) -> Value:
            return b.op("Relu", identity) if "wd" in self.inputs else b.op("Identity", identity)

        some = b.op("Cast", b.op("ReduceMax", spatial, keepdims=0), to=TensorProto.BOOL)
        return b.branch(some, update, skip)

    def _any_channel(self, b: Body, run: Callable[[Body], Value], identity: Value, pixels: Value | None) -> Value:
        """``run`` where a channel is active; what the last 1x1 makes of none is its bias."""
        if self.channel is None:
            return run(b)
        groups = b.reshape(b.op("NonZero", self.channel), -1)
        table = b.reshape(b.arange(self.sizes.hidden), b.dim(self.channel, 0), -1)
        self.channels = b.reshape(b.gather(table, groups), -1)

        def bias_only(inner: Body) -> Value:
            rows = identity if pixels is None else inner.op("GatherND", identity, pixels)
            return inner.op("Relu", inner.op("Add", rows, self.inputs["b3"]))

        return b.branch(b.op("Less", 0, b.dim(groups, 0)), run, bias_only)

    def _picked(self, b: Body, rows: Value, *, bias: bool = False) -> Value:
        """Rows of the active channels; ``bias``: and the last one."""
        if self.channels is None:
            return rows
        return b.gather(rows, shared.with_last(b, self.channels, self.sizes.hidden) if bias else self.channels)

    def _spread(self, b: Body, rows: Value) -> Value:
        """Rows of the active channels among zeros, (M, columns)."""
        if self.channels is None:
            return rows
        shape = b.op("Concat", b.unsqueeze(self.sizes.hidden, 0), b.unsqueeze(b.dim(rows, 1), 0), axis=0)
        zero = b.unsqueeze(b.zeros_like(b.op("Slice", self.inputs["b1"], [0], [1])), 0)
        return b.op("ScatterND", b.op("Expand", zero, shape), b.unsqueeze(self.channels, 1), rows)

    def _conv1(self, b: Body, rows: Value) -> Value:
        """The first 1x1 of rows (pixels, C): (channels, pixels)."""
        w1, bias = self._picked(b, self.inputs["w1"]), self._picked(b, b.unsqueeze(self.inputs["b1"], 1))
        return b.op("Relu", b.op("Gemm", w1, rows, bias, transB=1))

    def _hidden_map(self, b: Body) -> Value:
        """The active channels behind the 3x3 over the whole map, (channels, Ho Wo)."""
        rows = self._spread(b, self._conv1(b, b.reshape(self.x, -1, self.sizes.channels)))
        maps = b.reshape(rows, 1, self.sizes.hidden, self.sizes.height, self.sizes.width)
        convolved = b.op(
            "Conv",
            maps,
            self.inputs["w2"],
            self.inputs["b2"],
            strides=AttributeRef("strides"),
            dilations=AttributeRef("dilations"),
            pads=AttributeRef("pads"),
            group=AttributeRef("group", AttributeRef.INT),
        )
        return self._picked(b, b.op("Relu", b.reshape(convolved, self.sizes.hidden, -1)))

    def _mean(self, b: Body, rows: Value) -> Value:
        """Means of rows (channels, pixels): (channels, 1)."""
        maps = b.unsqueeze(b.unsqueeze(rows, 0), 3)
        return b.reshape(b.op("GlobalAveragePool", maps), -1, 1)

    def _gate(self, b: Body, mean: Value) -> Value:
        """The factors of the active channels from their means, (channels, 1)."""
        ws = self.inputs["ws"]
        ws = ws if self.channels is None else b.gather(ws, self.channels, axis=1)
        squeezed = b.op("Relu", b.op("Gemm", ws, mean, b.unsqueeze(self.inputs["bs"], 1)))
        we, bias = self._picked(b, self.inputs["we"]), self._picked(b, b.unsqueeze(self.inputs["be"], 1))
        return b.op("Sigmoid", b.op("Gemm", we, squeezed, bias))

    def _whole(self, b: Body, identity: Value) -> Value:
        hidden = self._hidden_map(b)
        hidden = hidden * self._gate(b, self._mean(b, hidden))
        # A row of ones for the bias, so that the product adds the identity.
        ones = b.ones(self.inputs["b3"], 1, self.sizes.out_height * self.sizes.out_width)
        hidden = b.op("Concat", hidden, ones, axis=0)
        w3 = self._picked(b, shared.biased_w3(b, self.inputs["w3"], self.inputs["b3"]), bias=True)
        return b.op("Relu", b.op("Gemm", hidden, w3, identity, transA=1))

    def _over_all(self, b: Body, pixels: Value) -> Value:
        """Scaled hidden rows (P, channels) of active pixels, the means over the whole map."""
        hidden = self._hidden_map(b)
        gate = self._gate(b, self._mean(b, hidden))
        rows = b.op("GatherND", b.op("Transpose", hidden, perm=[1, 0]), pixels)
        return rows * b.op("Transpose", gate, perm=[1, 0])

    def _over_active(self, b: Body) -> Value:
        """Scaled hidden rows (P, channels) of active pixels, the means over these."""
        assert self.tables is not None and self.spatial is not None
        active, sizes = shared.active_set(b, self.spatial, self.tables), self.sizes
        needed = b.gather(b.reshape(self.x, -1, sizes.channels), active.needed)
        hidden = b.op("Transpose", self._spread(b, self._conv1(b, needed)), perm=[1, 0])
        taps = b.gather(shared.with_zero_row(b, hidden, self.inputs["b1"]), active.neighbours)
        group, width = b.integer("group"), b.dim(self.inputs["w2"], 1)
        taps = b.op("Transpose", b.reshape(taps, -1, 9, group, width), perm=[2, 0, 1, 3])
        taps = b.reshape(taps, group, -1, width * 9)
        w2 = b.op("Transpose", b.reshape(self.inputs["w2"], group, width, width, 9), perm=[0, 3, 2, 1])
        products = b.op("MatMul", taps, b.reshape(w2, group, width * 9, width))
        rows = b.reshape(b.op("Transpose", products, perm=[1, 0, 2]), -1, sizes.hidden) + self.inputs["b2"]
        rows = b.op("Relu", rows)
        rows = rows if self.channels is None else b.gather(rows, self.channels, axis=1)

        def mean(values: Value) -> Value:
            # Over the map, on which a pixel that is listed twice stands once.
            pixels = sizes.out_height * sizes.out_width
            shape = b.op("Concat", b.unsqueeze(pixels, 0), b.unsqueeze(b.dim(values, 1), 0), axis=0)
            zero = b.unsqueeze(b.zeros_like(b.op("Slice", self.inputs["b1"], [0], [1])), 0)
            scattered = b.op("ScatterND", b.op("Expand", zero, shape), active.pixels, values)
            return self._mean(b, b.op("Transpose", scattered, perm=[1, 0]))

        ones = b.ones(self.inputs["b1"], b.dim(active.pixels, 0), 1)
        gate = self._gate(b, b.op("Div", mean(rows), mean(ones)))
        return rows * b.op("Transpose", gate, perm=[1, 0])
