"""QuantizedChannelSEBottleneck: one with squeeze-and-excitation on active hidden channels, in integers.

What :mod:`dyndeploy.ops.channel_se_bottleneck` computes in floats, by the arithmetic of
:mod:`dyndeploy.ops._quantized`.
The squeeze-and-excitation itself is one of floats: sums of bytes are exact, its sigmoid is not. A scaled channel is
rounded to bytes of a scale of its own, and may be one step off where libraries round the sigmoid differently.

Skipped channels are zero. The body computes them and writes zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops import _quantized_body as integers
from dyndeploy.ops import _quantized_bottleneck
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops.channel_bottleneck import MASK, channel_geometry
from dyndeploy.ops.gates import CHANNEL

if TYPE_CHECKING:
    import torch


def reference(x: torch.Tensor, mask: torch.Tensor, *weights: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """Compute the operator densely and select.

    Args:
        x: (N, H, W, C) uint8.
        mask: (N, G), active where above 0.5 (NaN is not); group i covers the channels from i M / G on.
        weights: See :func:`dyndeploy.ops._quantized_bottleneck.reference`.
        attributes: As of the FP32 operator.

    Returns:
        (N, Ho, Wo, Co) uint8.
    """
    return _quantized_bottleneck.reference(x, weights, channel=mask, excites=True, **attributes)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    sizes = shared.body_sizes(b, inputs)
    select = integers.selection(b, inputs, inputs["mask"], sizes)
    return shared.to_map(b, integers.dense_map(b, inputs, sizes, inputs["x"], select), sizes)


SPECS = shared.bottleneck_specs(
    "QuantizedChannelSEBottleneck",
    "Bottleneck with squeeze-and-excitation on the active hidden channels, in integers",
    masks=(MASK,),
    gates={"mask": CHANNEL},
    reference=reference,
    geometry=channel_geometry,
    body=_body,
    excites=True,
    quantized=True,
)
