"""QuantizedSpatialSEBottleneck: a bottleneck with squeeze-and-excitation on active patches, in integers.

What :mod:`dyndeploy.ops.spatial_se_bottleneck` computes in floats, by the arithmetic of
:mod:`dyndeploy.ops._quantized`.
The squeeze-and-excitation itself is one of floats: sums of bytes are exact, its sigmoid is not. A scaled channel is
rounded to bytes of a scale of its own, and may be one step off where libraries round the sigmoid differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops import _quantized_body as integers
from dyndeploy.ops import _quantized_bottleneck
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops.gates import PATCH
from dyndeploy.ops.spatial_bottleneck import MASK, spatial_geometry

if TYPE_CHECKING:
    import torch


def reference(x: torch.Tensor, mask: torch.Tensor, *weights: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """Compute the operator densely and select.

    Args:
        x: (N, H, W, C) uint8.
        mask: (N, 1, mh, mw), active where above 0.5 (NaN is not).
        weights: See :func:`dyndeploy.ops._quantized_bottleneck.reference`.
        attributes: As of the FP32 operator.

    Returns:
        (N, Ho, Wo, Co) uint8.
    """
    return _quantized_bottleneck.reference(x, weights, spatial=mask, excites=True, **attributes)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    return integers.spatial_body(b, inputs, shared.body_sizes(b, inputs), inputs["mask"])


SPECS = shared.bottleneck_specs(
    "QuantizedSpatialSEBottleneck",
    "Bottleneck with squeeze-and-excitation on the active patches of a spatial mask, in integers",
    masks=(MASK,),
    gates={"mask": PATCH},
    reference=reference,
    geometry=spatial_geometry,
    body=_body,
    excites=True,
    quantized=True,
)
