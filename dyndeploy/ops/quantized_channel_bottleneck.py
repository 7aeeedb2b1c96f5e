"""QuantizedChannelBottleneck: a residual bottleneck that skips groups of hidden channels, exactly, in integers.

What :mod:`dyndeploy.ops.channel_bottleneck` computes in floats. The mask acts before the bias there, and so on the sums
here: a skipped channel is the constant ``clamp(requantise(0, b, m), 0, 255)``, which the next convolution sees, with
zero padding at the borders. The arithmetic is that of :mod:`dyndeploy.ops._quantized`; activations are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops import _quantized_bottleneck as integers
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops.channel_bottleneck import MASK, channel_geometry
from dyndeploy.ops.gates import CHANNEL

if TYPE_CHECKING:
    import torch

NAME = "QuantizedChannelBottleneck"


def reference(x: torch.Tensor, mask: torch.Tensor, *weights: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """Compute the operator densely and select.

    Args:
        x: (N, H, W, C) uint8.
        mask: (N, G), active where above 0.5 (NaN is not); group i covers the channels i M / G ... (i + 1) M / G - 1.
        weights: See :func:`dyndeploy.ops._quantized_bottleneck.reference`.
        attributes: As of the FP32 operator.

    Returns:
        (N, Ho, Wo, Co) uint8.
    """
    return integers.reference(x, weights, channel=mask, **attributes)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    sizes = shared.body_sizes(b, inputs)
    select = integers.selection(b, inputs, inputs["mask"], sizes)
    return shared.to_map(b, integers.dense_map(b, inputs, sizes, inputs["x"], select), sizes)


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck on the active hidden channels, skipped channels exact, in integers",
    masks=(MASK,),
    gates={"mask": CHANNEL},
    reference=reference,
    geometry=channel_geometry,
    body=_body,
    quantized=True,
)
