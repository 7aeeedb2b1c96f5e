"""MultiscaleDeformableAttention: weighted sums of bilinear samples of several maps, at points that each query chooses.

The core of deformable attention ("Deformable DETR", Zhu et al., ICLR 2021): half-pixel coordinates, zeros outside the
maps. Nothing is skipped: there are no masks. Points lie in fractions of a map, so that x is at x * width - 0.5 cells.
There is one operator for each number of maps, since a body has as many samplings as maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dyndeploy.errors import UsageError
from dyndeploy.ops._body import Body, Value
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

NAME = "MultiscaleDeformableAttention"
"""How the operators' names begin; the number of maps follows."""

KIND = "deformable_attention"

LEVELS = (3, 4)
"""Numbers of maps that there are operators for."""

TAPS = 4
"""Cells that a bilinear sample reads."""


def sample_levels(
    value: torch.Tensor, sizes: Sequence[Sequence[int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return weighted sums of bilinear samples of any number of maps; computed in single precision at least.

    Args:
        value: The cells of all maps, one map behind the other, row by row: (N, S, heads, channels).
        sizes: Height and width of each map; their areas add up to S.
        locations: Points in fractions of the maps, x before y: (N, Q, heads, levels, points, 2).
        weights: Of the samples: (N, Q, heads, levels, points).

    Returns:
        (N, Q, heads, channels).
    """
    import torch
    import torch.nn.functional as F

    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    wide = torch.promote_types(value.dtype, torch.float32)
    grid, scale = 2 * locations.to(wide) - 1, weights.to(wide).transpose(1, 2).flatten(0, 1)
    summed = value.new_zeros(batch * heads, channels, queries, dtype=wide)
    # Level by level: the samples of all levels at once would be the largest tensor of a network by far.
    for level, (cells, (height, width)) in enumerate(
        zip(torch.split(value.to(wide), [height * width for height, width in sizes], 1), sizes, strict=True)
    ):
        features = cells.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        points = grid[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples = F.grid_sample(features, points, align_corners=False)
        summed = summed + (samples * scale[:, None, :, level]).sum(-1)
    return summed.view(batch, heads, channels, queries).permute(0, 3, 1, 2).to(value.dtype)


def reference(
    value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor, *, sizes: Sequence[int]
) -> torch.Tensor:
    """Compute the operator.

    Args:
        value: (N, S, A, d): the cells of all maps, one map behind the other, row by row; A heads of d channels.
        locations: (N, Q, A, levels, P, 2): points in fractions of the maps, x before y.
        weights: (N, Q, A, levels, P), of the samples.
        sizes: Height and width of every map, one map behind the other.

    Returns:
        (N, Q, A, d).
    """
    return sample_levels(value, _pairs(sizes), locations, weights)


def attend(
    value: torch.Tensor, sizes: Sequence[Sequence[int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Call the operator of the number of maps, and :func:`sample_levels` where there is none; see there."""
    spec = _BY_LEVELS.get(len(sizes))
    if spec is None:
        return sample_levels(value, sizes, locations, weights)
    found: torch.Tensor = spec.emit((value, locations, weights), {"sizes": [side for size in sizes for side in size]})
    return found


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in zip(sizes[::2], sizes[1::2], strict=True)]


def _infer_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    value, locations, weights = shapes
    sizes = _pairs(attributes["sizes"])
    name = f"{NAME}{len(sizes)}"

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise UsageError(f"{name}: {message}.")

    require(len(value) == 4, f"value must be (N, S, heads, channels), not {value}")
    require(min(map(min, sizes)) >= 1, f"sizes {sizes} must be positive")
    cells = sum(math.prod(size) for size in sizes)
    require(value[1] == cells, f"value has {value[1]} cells, and maps of {sizes} have {cells}")
    batch, _, heads, channels = value
    fits = len(locations) == 6 and (locations[0], *locations[2:4], locations[5]) == (batch, heads, len(sizes), 2)
    require(fits, f"locations must be ({batch}, Q, {heads}, {len(sizes)}, P, 2), not {locations}")
    require(weights == locations[:5], f"weights must be {locations[:5]}, not {weights}")
    return batch, locations[1], heads, channels


def _work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
    value, locations, weights = shapes
    return Work(
        macs=per_image(0, shapes),
        read=element * math.prod(value) + 4.0 * (math.prod(locations) + math.prod(weights)),
        written=element * math.prod(_infer_shape(shapes, attributes)),
        weights=0.0,
    )


def _sizes(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Mapping[str, float]:
    (batch, cells, heads, channels), (_, queries, _, levels, points, _) = shapes[:2]
    return {
        "batch": batch,
        "h": cells,
        "w": 1,
        "oh": queries,
        "ow": 1,
        "cin": heads * channels,
        "cout": heads * channels,
        "heads": heads,
        "samples": levels * points,
    }


def _launches(f: Mapping[str, float], element: float) -> Sequence[Launch]:
    """One launch: a query reads its points and weights, and four cells a sample, most of them from a cache.

    A thread sums 16 bytes of channels, so many are its rows.
    """
    read = f["batch"] * f["oh"] * f["samples"] * (TAPS * f["cin"] * element + 3 * 4.0 * f["heads"])
    moved = read + f["batch"] * f["oh"] * f["cout"] * element
    run = 16.0 / element
    rows = f["batch"] * f["oh"] * f["heads"] * math.ceil(f["cout"] / f["heads"] / run)
    return (Launch(rows, TAPS * run, f["samples"], moved=moved, layer="sampling"),)


def _body(levels: int) -> Any:
    def body(b: Body, inputs: Mapping[str, Value]) -> Value:
        """A sampling of every map, by the coordinates of ONNX's operator: from -1 to 1."""
        value, locations, weights = inputs.values()
        sizes = b.attribute("sizes")
        batch, heads, channels = (b.dim(value, axis) for axis in (0, 2, 3))
        queries, points = b.dim(locations, 1), b.dim(locations, 4)
        images = batch * heads
        two, one = (b.op("CastLike", b.value(number), locations) for number in (2, 1))
        start, summed = b.value(0), None
        for level in range(levels):
            height, width = (b.gather(sizes, b.value(2 * level + axis)) for axis in (0, 1))
            end = start + height * width
            cells = b.op("Slice", value, b.unsqueeze(start, 0), b.unsqueeze(end, 0), [1])
            features = b.reshape(b.op("Transpose", cells, perm=[0, 2, 3, 1]), images, channels, height, width)
            chosen = b.op("Transpose", b.gather(locations, b.value(level), 3), perm=[0, 2, 1, 3, 4])
            grid = b.reshape(b.op("Sub", b.op("Mul", chosen, two), one), images, queries, points, 2)
            factors = b.op("Transpose", b.gather(weights, b.value(level), 3), perm=[0, 2, 1, 3])
            samples = b.op("GridSample", features, b.op("CastLike", grid, features), align_corners=0)
            scaled = b.op("Mul", samples, b.op("CastLike", b.reshape(factors, images, 1, queries, points), features))
            read = b.op("ReduceSum", scaled, [3], keepdims=0)
            summed, start = read if summed is None else summed + read, end
        assert summed is not None
        return b.op("Transpose", b.reshape(summed, batch, heads, channels, queries), perm=[0, 3, 1, 2])

    return body


_GPU = KernelSpec(precisions=("fp32", "fp16"), launches=_launches)


def _spec(levels: int) -> OperatorSpec:
    return OperatorSpec(
        name=f"{NAME}{levels}",
        version=1,
        kind=KIND,
        summary=f"Weighted sums of bilinear samples of {levels} maps, at points that each query chooses.",
        inputs=(
            Port("value", Role.ACTIVATION, ("N", "S", "A", "d")),
            Port("locations", Role.ACTIVATION, ("N", "Q", "A", str(levels), "P", "2"), Element.FLOAT),
            Port("weights", Role.ACTIVATION, ("N", "Q", "A", str(levels), "P"), Element.FLOAT),
        ),
        outputs=(Port("y", Role.ACTIVATION, ("N", "Q", "A", "d")),),
        attributes=(Attribute("sizes", 2 * levels),),
        gates={},
        reference=reference,
        infer_shape=_infer_shape,
        body=_body(levels),
        counts=no_counts,
        expected=no_counts,
        work=_work,
        sizes=_sizes,
        kernels={"cpu": KernelSpec(), "cuda": _GPU, "tensorrt": _GPU},
        least_opset=16,
    )


SPECS = tuple(map(_spec, LEVELS))

_BY_LEVELS = dict(zip(LEVELS, SPECS, strict=True))
