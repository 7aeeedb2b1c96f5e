"""QuantizedSpatialBottleneck: a residual bottleneck on the active patches of a spatial mask, in integers.

What :mod:`dyndeploy.ops.spatial_bottleneck` computes in floats.
The arithmetic is that of :mod:`dyndeploy.ops._quantized`; activations are bytes.
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

NAME = "QuantizedSpatialBottleneck"


def reference(x: torch.Tensor, mask: torch.Tensor, *weights: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """Compute the operator densely and select.

    Args:
        x: (N, H, W, C) uint8.
        mask: (N, 1, mh, mw), active where above 0.5 (NaN is not).
        weights: See :func:`dyndeploy.ops._quantized_bottleneck.reference`.
        attributes: As of the FP32 operator.

    Returns:
        (N, Ho, Wo, Co) uint8; skipped pixels are those of ``x``, or of the projection.
    """
    return _quantized_bottleneck.reference(x, weights, spatial=mask, **attributes)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    return integers.spatial_body(b, inputs, shared.body_sizes(b, inputs), inputs["mask"])


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck on the active patches of a spatial mask, in integers",
    masks=(MASK,),
    gates={"mask": PATCH},
    reference=reference,
    geometry=spatial_geometry,
    body=_body,
    quantized=True,
)
