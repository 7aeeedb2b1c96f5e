"""SpatialChannelSEBottleneck: a bottleneck with squeeze-and-excitation on active patches and active hidden channels.

Source: LAUD-RegNetY, mode "both" (Han et al., TPAMI 2024). Masks act as in ``SpatialSEBottleneck`` and in
``ChannelSEBottleneck``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._excitation import compute, per_sample_body
from dyndeploy.ops._geometry import Geometry, bottleneck_geometry, require_channel_mask, require_spatial_mask
from dyndeploy.ops.base import Attributes, Shape
from dyndeploy.ops.channel_bottleneck import MASK as CHANNEL_MASK
from dyndeploy.ops.gates import CHANNEL, PATCH
from dyndeploy.ops.spatial_bottleneck import MASK as SPATIAL_MASK

if TYPE_CHECKING:
    import torch

NAME = "SpatialChannelSEBottleneck"


def reference(
    x: torch.Tensor,
    spatial_mask: torch.Tensor,
    channel_mask: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    ws: torch.Tensor,
    bs: torch.Tensor,
    we: torch.Tensor,
    be: torch.Tensor,
    w3: torch.Tensor,
    b3: torch.Tensor,
    wd: torch.Tensor | None = None,
    bd: torch.Tensor | None = None,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    group: int,
    pool_active: int,
) -> torch.Tensor:
    """Compute the operator densely; see :func:`dyndeploy.ops._excitation.compute`.

    Args:
        x: (N, H, W, C), non-negative where there is no projection.
        spatial_mask: (N, 1, mh, mw), active where above 0.5.
        channel_mask: (N, G), likewise.
        w1: See there, like all that follow.
        b1: Bias.
        w2: 3x3.
        b2: Bias.
        ws: Squeeze.
        bs: Bias.
        we: Excitation.
        be: Bias.
        w3: Last 1x1.
        b3: Bias.
        wd: Projection or None.
        bd: Bias or None.
        strides: Of the 3x3.
        dilations: Of the 3x3.
        pads: Equal to the dilation.
        group: Of the 3x3.
        pool_active: 1 averages over active pixels, 0 over all.

    Returns:
        (N, Ho, Wo, Co).
    """
    return compute(
        x,
        (w1, b1, w2, b2, ws, bs, we, be, w3, b3, wd, bd),
        spatial=spatial_mask,
        channel=channel_mask,
        strides=strides,
        dilations=dilations,
        group=group,
        pool_active=pool_active,
    )


def _geometry(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Geometry:
    geometry = bottleneck_geometry(name, shapes[0], shapes[3:], attributes)
    require_spatial_mask(name, shapes[1], geometry)
    require_channel_mask(name, shapes[2], geometry)
    return geometry


SPECS = shared.bottleneck_specs(
    NAME,
    "Bottleneck with squeeze-and-excitation on active patches and active hidden channels",
    masks=(replace(SPATIAL_MASK, name="spatial_mask"), replace(CHANNEL_MASK, name="channel_mask")),
    gates={"spatial_mask": PATCH, "channel_mask": CHANNEL},
    reference=reference,
    geometry=_geometry,
    body=per_sample_body({PATCH.name: "spatial_mask", CHANNEL.name: "channel_mask"}),
    excites=True,
)
