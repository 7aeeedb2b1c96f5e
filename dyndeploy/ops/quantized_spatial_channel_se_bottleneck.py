"""QuantizedSpatialChannelSEBottleneck: one with squeeze-and-excitation on patches and channels, in integers.

What :mod:`dyndeploy.ops.spatial_channel_se_bottleneck` computes in floats, by the arithmetic of
:mod:`dyndeploy.ops._quantized`.
The squeeze-and-excitation itself is one of floats: sums of bytes are exact, its sigmoid is not. A scaled channel is
rounded to bytes of a scale of its own, and may be one step off where libraries round the sigmoid differently.

Skipped channels are zero. The body skips pixels, computes all channels of those that it needs, and writes zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops import _quantized_body as integers
from dyndeploy.ops import _quantized_bottleneck
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops.gates import CHANNEL, PATCH
from dyndeploy.ops.spatial_channel_bottleneck import MASKS, spatial_channel_geometry

if TYPE_CHECKING:
    import torch


def reference(
    x: torch.Tensor, spatial_mask: torch.Tensor, channel_mask: torch.Tensor, *weights: torch.Tensor, **attributes: Any
) -> torch.Tensor:
    """Compute the operator densely and select.

    Args:
        x: (N, H, W, C) uint8.
        spatial_mask: (N, 1, mh, mw), active where above 0.5 (NaN is not).
        channel_mask: (N, G), active where above 0.5 (NaN is not); group i covers the channels from i M / G on.
        weights: See :func:`dyndeploy.ops._quantized_bottleneck.reference`.
        attributes: As of the FP32 operator.

    Returns:
        (N, Ho, Wo, Co) uint8.
    """
    return _quantized_bottleneck.reference(
        x, weights, spatial=spatial_mask, channel=channel_mask, excites=True, **attributes
    )


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    sizes = shared.body_sizes(b, inputs)
    select = integers.selection(b, inputs, inputs["channel_mask"], sizes)
    return integers.spatial_body(b, inputs, sizes, inputs["spatial_mask"], select)


SPECS = shared.bottleneck_specs(
    "QuantizedSpatialChannelSEBottleneck",
    "Bottleneck with squeeze-and-excitation on active patches and active hidden channels, in integers",
    masks=MASKS,
    gates={"spatial_mask": PATCH, "channel_mask": CHANNEL},
    reference=reference,
    geometry=spatial_channel_geometry,
    body=_body,
    excites=True,
    quantized=True,
)
