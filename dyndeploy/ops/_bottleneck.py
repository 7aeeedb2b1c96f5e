"""What the bottleneck operators share: ports, PyTorch pieces, cost, and pieces of the ONNX bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops._geometry import Geometry
from dyndeploy.ops.base import Attribute, Attributes, Cost, Masks, OperatorSpec, Port, Role, Shape

if TYPE_CHECKING:
    import torch

BYTES_PER_ELEMENT = 4

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


def bottleneck_specs(
    name: str,
    summary: str,
    *,
    masks: tuple[Port, ...],
    reference: Callable[..., torch.Tensor],
    geometry: Callable[[str, Sequence[Shape], Attributes], Geometry],
    cost: Callable[[Geometry, Masks], Cost],
    body: Callable[[Body, Mapping[str, Value]], Value],
) -> tuple[OperatorSpec, OperatorSpec]:
    """Both variants of a bottleneck operator: identity and projection shortcut.

    Args:
        name: ``op_type`` of the variant with the identity; the other has the suffix ``Projection``.
        summary: One clause, without a full stop.
        masks: Mask inputs, which stand behind ``x``.
        reference: See :class:`OperatorSpec`.
        geometry: ``(op_type, input shapes, attributes) -> Geometry``; raises ``UsageError`` on a mismatch.
        cost: ``(geometry, masks by input name) -> Cost``.
        body: See :class:`OperatorSpec`.
    """

    def spec(op_type: str, projection: bool) -> OperatorSpec:
        return OperatorSpec(
            name=op_type,
            version=1,
            summary=summary + (", with a projection shortcut." if projection else "."),
            inputs=(X, *masks, *(WEIGHTS + PROJECTION_WEIGHTS if projection else WEIGHTS)),
            output=Y,
            attributes=CONV_ATTRIBUTES,
            reference=reference,
            infer_shape=lambda shapes, attributes: geometry(op_type, shapes, attributes).output_shape,
            body=body,
            cost=lambda shapes, attributes, bits: cost(geometry(op_type, shapes, attributes), bits),
            native_targets=frozenset({"cpu"}),
        )

    return spec(name, projection=False), spec(f"{name}Projection", projection=True)


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


def upsample_spatial_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Nearest-neighbour upsampling of (N, 1, mh, mw) to a boolean (N, Ho, Wo, 1) tensor."""
    import torch

    rows = torch.arange(height, device=mask.device) * mask.shape[2] // height
    columns = torch.arange(width, device=mask.device) * mask.shape[3] // width
    return (mask[:, 0][:, rows][:, :, columns] > 0.5).unsqueeze(-1)


# ---------------------------------------------------------------- cost


def bottleneck_cost(
    geometry: Geometry,
    active: npt.NDArray[np.bool_] | None = None,
    needed: npt.NDArray[np.bool_] | None = None,
    channels: npt.NDArray[np.bool_] | None = None,
) -> Cost:
    """Cost of a bottleneck whose 1x1 runs on ``needed``, whose 3x3 and last 1x1 run on ``active`` pixels.

    Args:
        geometry: Sizes.
        active: (N, Ho, Wo); None means all.
        needed: (N, H, W); None means all.
        channels: Active hidden channels (N, M); None means all.
    """
    g = geometry
    out_pixels, in_pixels = g.out_height * g.out_width, g.height * g.width
    full = np.full(g.batch, 1.0)
    act = full * out_pixels if active is None else active.sum((1, 2)).astype(np.float64)
    need = full * in_pixels if needed is None else needed.sum((1, 2)).astype(np.float64)
    if channels is None:
        hidden, pairs = full * g.hidden, full * (g.hidden**2 / g.group)
    else:
        per_group = channels.reshape(g.batch, g.group, -1).sum(2).astype(np.float64)
        hidden, pairs = per_group.sum(1), (per_group**2).sum(1)
    shortcut_macs = float(g.projection * out_pixels * g.channels * g.out_channels)
    macs = need * g.channels * hidden + act * 9 * pairs + act * hidden * g.out_channels + shortcut_macs
    dense = (
        in_pixels * g.channels * g.hidden
        + out_pixels * (9 * g.hidden**2 / g.group + g.hidden * g.out_channels)
        + shortcut_macs
    )
    touched = hidden.max() if len(hidden) else 0.0
    weights = g.channels * touched + 9 * touched**2 / g.group + touched * g.out_channels
    # A projection reads and writes every pixel; an identity shortcut is updated in place where it is active.
    reads = need.sum() * g.channels + (
        g.batch * out_pixels * g.channels + g.channels * g.out_channels if g.projection else 0.0
    )
    writes = (g.batch * out_pixels if g.projection else act.sum()) * g.out_channels
    return Cost(macs, full * dense, float(BYTES_PER_ELEMENT * (reads + writes + weights)))


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
    """Rows (N Ho Wo, Co) as a map (N, Ho, Wo, Co)."""
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


def active_set(b: Body, mask: Value, tables: PatchTables) -> ActiveSet:
    """Write the index lists of a mask."""
    bits = b.reshape(mask, -1)
    patches = b.op("NonZero", bits)
    pixels = b.reshape(b.gather(tables.pixels, patches), -1, 1)
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


def updated_rows(b: Body, identity: Value, pixels: Value, hidden: Value, weight: Value, bias: Value) -> Value:
    """``relu(identity[pixels] + hidden weight + bias)`` with weight (K, Co).

    The product adds the gathered identity itself, and its bias comes as one more row of the weight: two passes over
    the output less than with additions of their own.
    """
    one = b.op("Exp", b.zeros_like(b.op("Slice", bias, [0], [1])))
    every = b.op("Expand", one, b.op("Concat", b.unsqueeze(b.dim(identity, 0), 0), [1], axis=0))
    hidden = b.op("Concat", hidden, b.op("GatherND", every, pixels), axis=1)
    weight = b.op("Concat", weight, b.unsqueeze(bias, 0), axis=0)
    return b.op("Relu", b.op("Gemm", hidden, weight, b.op("GatherND", identity, pixels)))


def scatter_rows(b: Body, identity: Value, pixels: Value, updated: Value, projection: bool) -> Value:
    """``updated`` on the active pixels; elsewhere ``identity`` (that of a projection gets its ReLU)."""
    base = b.op("Relu", identity) if projection else identity
    return b.op("ScatterND", base, pixels, updated)
