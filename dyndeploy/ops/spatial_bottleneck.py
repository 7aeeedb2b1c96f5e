"""SpatialBottleneck: a residual bottleneck computed only on the active patches of a spatial mask.

Source: LAUDNet (TPAMI 2024), spatial mode of LAUD-ResNet. The mask multiplies the residual branch after its last
BatchNorm; conv1 is needed on the dilated active set, conv2 and conv3 on the active set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops._geometry import (
    Geometry,
    bottleneck_geometry,
    require_spatial_mask,
)
from dyndeploy.ops._quantized_bottleneck import quantization
from dyndeploy.ops.base import Attributes, Element, Port, Role, Shape
from dyndeploy.ops.gates import PATCH

if TYPE_CHECKING:
    import torch

NAME = "SpatialBottleneck"
MASK = Port("mask", Role.MASK, ("N", "1", "mh", "mw"), Element.FLOAT)


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
    """Compute the operator densely and select.

    Args:
        x: (N, H, W, C). Without a projection it must be non-negative (the output of a ReLU), because inactive
            pixels pass through unchanged where the network applies a ReLU.
        mask: (N, 1, mh, mw), active where above 0.5 (NaN is not); output pixel (y, x) belongs to patch
            (y * mh // Ho, x * mw // Wo).
        w1: (M, C); ``b1``: (M,).
        b1: See ``w1``.
        w2: (M, M / group, 3, 3); ``b2``: (M,).
        b2: See ``w2``.
        w3: (Co, M); ``b3``: (Co,).
        b3: See ``w3``.
        wd: Projection shortcut (Co, C), or None for the identity; ``bd``: (Co,).
        bd: See ``wd``.
        strides: Of the 3x3, both equal; the projection has the same.
        dilations: Of the 3x3, both equal.
        pads: All equal to the dilation.
        group: Convolution groups of the 3x3.

    Returns:
        (N, Ho, Wo, Co): ``relu(shortcut + f(x))`` on active pixels, ``relu(shortcut)`` elsewhere.
    """
    import torch
    import torch.nn.functional as F

    _, hidden = shared.hidden_maps(x, w1, b1, w2, b2, None, stride=strides[0], dilation=dilations[0], group=group)
    identity = shared.shortcut(x, wd, bd, strides[0])
    updated = F.relu(identity + F.linear(hidden, w3, b3))
    active = shared.active_outputs(mask, updated.shape[1], updated.shape[2])
    return torch.where(active, updated, identity if wd is None else F.relu(identity))


def spatial_geometry(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Geometry:
    """Sizes, of shapes that fit.

    Raises:
        UsageError: They do not.
    """
    geometry = bottleneck_geometry(name, shapes[0], shapes[2:], attributes)
    require_spatial_mask(name, shapes[1], geometry)
    return geometry


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    sizes = shared.body_sizes(b, inputs)
    projection = "wd" in inputs
    mask_size = b.dim(inputs["mask"], 2), b.dim(inputs["mask"], 3)
    w3 = shared.biased_w3(b, inputs["w3"], inputs["b3"])
    tables = shared.patch_tables(b, sizes, sizes.batch, mask_size, strided=projection)

    def dense(inner: Body) -> Value:
        return shared.dense_map(inner, inputs, sizes, inputs["x"])

    def sparse(inner: Body) -> Value:
        identity = shared.shortcut_rows(inner, inputs, sizes)
        active = shared.active_set(inner, inputs["mask"], tables)
        hidden = inner.gather(inner.reshape(inputs["x"], -1, sizes.channels), active.needed)
        hidden = inner.op("Relu", inner.linear(hidden, inputs["w1"], inputs["b1"]))
        hidden = inner.gather(shared.with_zero_row(inner, hidden, inputs["b1"]), active.neighbours)
        hidden = inner.reshape(hidden, -1, sizes.hidden * 9)
        hidden = inner.op("Relu", inner.linear(hidden, shared.w2_rows(inner, inputs["w2"], sizes), inputs["b2"]))
        updated = shared.residual_rows(inner, identity, active.pixels, hidden, w3, inputs["b3"])
        return shared.scatter_rows(inner, identity, active.pixels, updated, projection)

    return shared.to_map(b, b.branch(shared.all_ones(b, inputs["mask"]), dense, sparse), sizes)


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck on the active patches of a spatial mask",
    masks=(MASK,),
    gates={"mask": PATCH},
    reference=reference,
    geometry=spatial_geometry,
    body=_body,
    quantization=quantization,
)
