"""QuantizedLayerSEBottleneck: one with squeeze-and-excitation, computed or skipped whole, in integers.

What :mod:`dyndeploy.ops.layer_se_bottleneck` computes in floats, by the arithmetic of
:mod:`dyndeploy.ops._quantized`.
The squeeze-and-excitation itself is one of floats: sums of bytes are exact, its sigmoid is not. A scaled channel is
rounded to bytes of a scale of its own, and may be one step off where libraries round the sigmoid differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops import _quantized_body as integers
from dyndeploy.ops import _quantized_bottleneck
from dyndeploy.ops.gates import BLOCK
from dyndeploy.ops.layer_bottleneck import MASK, layer_geometry

if TYPE_CHECKING:
    import torch


def reference(x: torch.Tensor, mask: torch.Tensor, *weights: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """Compute the operator densely and select.

    Args:
        x: (N, H, W, C) uint8.
        mask: (N, 1, 1, 1), active where above 0.5 (NaN is not).
        weights: See :func:`dyndeploy.ops._quantized_bottleneck.reference`.
        attributes: As of the FP32 operator.

    Returns:
        (N, Ho, Wo, Co) uint8.
    """
    return _quantized_bottleneck.reference(x, weights, spatial=mask, excites=True, **attributes)


SPECS = shared.bottleneck_specs(
    "QuantizedLayerSEBottleneck",
    "Bottleneck with squeeze-and-excitation that each sample computes or skips as a whole, in integers",
    masks=(MASK,),
    gates={"mask": BLOCK},
    reference=reference,
    geometry=layer_geometry,
    body=integers.layer_body,
    skipped_kind="quantized_layer_skipped",
    excites=True,
    quantized=True,
)
