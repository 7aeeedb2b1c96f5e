"""ChannelSEBottleneck: a bottleneck with squeeze-and-excitation that skips groups of hidden channels, exactly.

Source: LAUD-RegNetY, channel mode (Han et al., TPAMI 2024). The mask stands behind the ReLUs of conv1 and conv2: what
it skips is zero, and there are no constants. Groups of the mask may cross the groups of the 3x3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._excitation import compute, per_sample_body
from dyndeploy.ops._geometry import Geometry, bottleneck_geometry, require_channel_mask
from dyndeploy.ops.base import Attributes, Shape
from dyndeploy.ops.channel_bottleneck import MASK
from dyndeploy.ops.gates import CHANNEL

if TYPE_CHECKING:
    import torch

NAME = "ChannelSEBottleneck"


def reference(
    x: torch.Tensor,
    mask: torch.Tensor,
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
) -> torch.Tensor:
    """Compute the operator densely; see :func:`dyndeploy.ops._excitation.compute`.

    Args:
        x: (N, H, W, C).
        mask: (N, G), active where above 0.5.
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

    Returns:
        (N, Ho, Wo, Co).
    """
    return compute(
        x,
        (w1, b1, w2, b2, ws, bs, we, be, w3, b3, wd, bd),
        channel=mask,
        strides=strides,
        dilations=dilations,
        group=group,
    )


def _geometry(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Geometry:
    geometry = bottleneck_geometry(name, shapes[0], shapes[2:], attributes)
    require_channel_mask(name, shapes[1], geometry)
    return geometry


SPECS = shared.bottleneck_specs(
    NAME,
    "Bottleneck with squeeze-and-excitation on the active hidden channels",
    masks=(MASK,),
    gates={"mask": CHANNEL},
    reference=reference,
    geometry=_geometry,
    body=per_sample_body({CHANNEL.name: "mask"}),
    excites=True,
)
