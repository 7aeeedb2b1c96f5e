"""PyramidRoiAlign: what a pyramid of four maps holds in boxes, each read from its own level.

Average pooling of bilinear samples with half-pixel coordinates, as many samples per bin as it has cells
(torchvision's ``roi_align`` with ``aligned=True`` and ``sampling_ratio=0``). A sample's weights are those of its row
times those of its column, so that a box is two small products per channel. Nothing is skipped: there are no masks.

Along either axis, a box from pixel c on begins at c / s - 0.5 cells of a map of stride s. Each of its ``size`` bins is
``side / size`` cells long and has ``ceil`` of that many samples, at the middles of equal parts. A sample that lies more
than one cell outside the map counts as 0, one less far outside as the border.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dyndeploy.errors import UsageError
from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops.base import (
    Attribute,
    Attributes,
    Counts,
    Element,
    KernelSpec,
    Launch,
    OperatorSpec,
    Port,
    Rates,
    Role,
    Shape,
    Work,
    no_counts,
    per_image,
)

if TYPE_CHECKING:
    import torch

NAME = "PyramidRoiAlign"

LEVELS = 4
"""Maps of a pyramid that boxes are read from: P2 to P5."""

MOST_SAMPLES = 2**15
"""Of one bin along one axis; a box that asks for more, or whose sides are no numbers, gives 0."""


def reference(
    p0: torch.Tensor,
    p1: torch.Tensor,
    p2: torch.Tensor,
    p3: torch.Tensor,
    boxes: torch.Tensor,
    levels: torch.Tensor,
    *,
    strides: Sequence[int],
    size: int,
) -> torch.Tensor:
    """Compute the operator.

    Args:
        p0: (1, C, H, W), the finest map; ``p1`` to ``p3`` are the next ones.
        p1: See ``p0``.
        p2: See ``p0``.
        p3: See ``p0``.
        boxes: (N, 4): x1, y1, x2, y2 in pixels.
        levels: (N,) from 0; what lies outside is taken for the nearest.
        strides: Pixels per cell of each map.
        size: Side of the result.

    Returns:
        (N, C, size, size).
    """
    import torch

    result = p0.new_zeros(len(boxes), p0.shape[1], size, size)
    places = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    own = levels.long().clamp(0, LEVELS - 1)
    for level, (cells, stride) in enumerate(zip((p0, p1, p2, p3), strides, strict=True)):
        (chosen,) = torch.where(own == level)
        corners = places[chosen] * (1.0 / stride) - 0.5
        across = _weights(corners[:, 0], corners[:, 2], cells.shape[3], size).to(cells.dtype)
        down = _weights(corners[:, 1], corners[:, 3], cells.shape[2], size).to(cells.dtype)
        result[chosen] = torch.einsum("nih,chw,njw->ncij", down, cells[0], across)
    return result


def _weights(begin: torch.Tensor, end: torch.Tensor, cells: int, size: int) -> torch.Tensor:
    """Weights (N, size, cells) of the cells of one axis in each bin of boxes from ``begin`` to ``end`` (N,)."""
    import torch

    length = (end - begin) / size
    there = (length > 0) & (length <= MOST_SAMPLES)
    length = torch.where(there, length, 0.0)
    counts = torch.where(there, length.ceil(), 1.0)
    weights = begin.new_zeros(len(begin), size, cells)
    first = begin[:, None] + torch.arange(size, device=begin.device) * length[:, None]
    for sample in range(int(counts.max()) if len(counts) else 0):
        place = first + ((sample + 0.5) * length / counts)[:, None]
        counted = (there & (sample < counts))[:, None] & (place >= -1) & (place <= cells)
        place = torch.where(counted, place, 0.0).clamp(0, cells - 1)
        low = place.floor().long()
        high = (low + 1).clamp(max=cells - 1)
        share = counted / counts[:, None]
        weights.scatter_add_(2, low[..., None], (share * (1 - (place - low)))[..., None])
        weights.scatter_add_(2, high[..., None], (share * (place - low))[..., None])
    return weights


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(f"{NAME}: {message}.")


def _infer_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    *maps, boxes, levels = shapes
    strides, size = [int(stride) for stride in attributes["strides"]], int(attributes["size"])
    _require(size >= 1, f"size {size}")
    _require(strides[0] >= 1 and strides == sorted(strides), f"strides {strides} must be positive and rise")
    for index, cells in enumerate(maps):
        _require(len(cells) == 4 and cells[0] == 1, f"p{index} must be (1, C, H, W), not {cells}")
        _require(cells[1] == maps[0][1], f"p{index} has {cells[1]} channels where p0 has {maps[0][1]}")
        if index:
            # So that nobody mixes up the levels: each covers what the one before covers, its last cells may not.
            before, step = maps[index - 1], strides[index] / strides[index - 1]
            expected = tuple(math.ceil(side / step) for side in before[2:])
            _require(
                cells[2:] == expected,
                f"p{index} is {cells[2:]}, where p{index - 1} of {before[2:]} and the strides make it {expected}",
            )
    _require(len(boxes) == 2 and boxes[1] == 4, f"boxes must be (N, 4), not {boxes}")
    _require(levels == boxes[:1], f"levels must be {boxes[:1]}, not {levels}")
    return boxes[0], maps[0][1], size, size


def _work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
    *maps, boxes, levels = shapes
    read = sum(math.prod(cells) for cells in maps)
    return Work(
        macs=per_image(0, shapes),
        read=element * read + 4.0 * math.prod(boxes) + 8.0 * math.prod(levels),
        written=element * math.prod(_infer_shape(shapes, attributes)),
        weights=0.0,
    )


def _sizes(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Mapping[str, float]:
    _, channels, height, width = shapes[0]
    size, boxes = int(attributes["size"]), float(shapes[LEVELS][0])
    cells = float(sum(math.prod(cells[2:]) for cells in shapes[:LEVELS]))
    return {
        "batch": 1.0, "h": height, "w": width, "oh": size, "ow": size, "cin": channels, "cout": channels,
        "boxes": boxes, "cells": cells,
    }  # fmt: skip


_CELLS = 5.0
"""Cells under a bin along an axis, of a bin that is four cells wide: each is read once."""
_THREADS, _CHANNELS = 256.0, 32.0
"""Of a block of the CUDA kernel, for one box."""


def _launches(f: Mapping[str, float], element: float) -> Sequence[Launch]:
    """One launch: a block computes some channels of a box, of which a thread takes every so many outputs."""
    outputs = f["boxes"] * f["cout"] * f["oh"] * f["ow"]
    moved = (f["cells"] * f["cin"] + outputs) * element + f["boxes"] * 20.0
    blocks = f["boxes"] * math.ceil(f["cout"] / _CHANNELS)
    depth = math.ceil(min(f["cout"], _CHANNELS) * f["oh"] * f["ow"] / _THREADS)
    return (Launch(blocks * _THREADS, _CELLS * _CELLS, depth, moved=moved, layer="regions"),)


_GPU = KernelSpec(precisions=("fp32", "fp16"), launches=_launches)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    """The boxes of every level through one RoiAlign, then all in their order again."""
    *maps, boxes, levels = inputs.values()
    strides = b.op("CastLike", b.attribute("strides"), boxes)
    own = b.op("Max", b.op("Min", levels, LEVELS - 1), 0)
    found, order = [], []
    for level, cells in enumerate(maps):
        index = b.op("Reshape", b.op("NonZero", b.op("Equal", own, level)), [-1])
        there = b.op("Div", b.gather(boxes, index), b.gather(strides, b.value(level)))
        aligned: dict[str, Any] = {
            "coordinate_transformation_mode": "half_pixel",
            "mode": "avg",
            "output_height": AttributeRef("size", AttributeRef.INT),
            "output_width": AttributeRef("size", AttributeRef.INT),
            "sampling_ratio": 0,
            "spatial_scale": 1.0,
        }
        found.append(b.op("RoiAlign", cells, there, b.op("Mul", index, 0), **aligned))
        order.append(index)
    rows = b.arange(b.dim(boxes, 0))
    back = b.op("ScatterElements", rows, b.op("Concat", *order, axis=0), rows, axis=0)
    return b.gather(b.op("Concat", *found, axis=0), back)


def _map(level: int) -> Port:
    return Port(f"p{level}", Role.ACTIVATION, ("1", "C", f"H{level}", f"W{level}"))


SPECS = (
    OperatorSpec(
        name=NAME,
        version=1,
        kind="pyramid_regions",
        summary="RoI align of boxes from the levels of a feature pyramid: average pooling of bilinear samples.",
        inputs=(
            *(_map(level) for level in range(LEVELS)),
            Port("boxes", Role.ACTIVATION, ("N", "4"), Element.FLOAT),
            Port("levels", Role.ACTIVATION, ("N",), Element.INDEX),
        ),
        outputs=(Port("y", Role.ACTIVATION, ("N", "C", "S", "S")),),
        attributes=(Attribute("strides", LEVELS), Attribute("size")),
        gates={},
        reference=reference,
        infer_shape=_infer_shape,
        body=_body,
        counts=no_counts,
        expected=no_counts,
        work=_work,
        sizes=_sizes,
        kernels={"cpu": KernelSpec(), "cuda": _GPU, "tensorrt": _GPU},
        least_opset=16,
    ),
)
