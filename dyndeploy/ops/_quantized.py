"""The arithmetic of operators in integers, once, in PyTorch: scales, weights, constants and rounding.

Activations are ``scale * q`` with q in [0, 255] and no zero point: all that dynamic operators read and write is behind
a ReLU. Weights are symmetric, with a scale per output channel. Tensors here are of floats that hold integers. In double
precision all sums of products are exact; in single precision those below 2^24 are. Rounding and clamping pass
gradients straight through (to the values that are not clamped), so that training simulates what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dyndeploy.errors import UsageError
from dyndeploy.ops.base import Array

if TYPE_CHECKING:
    import torch

WEIGHT_LIMITS = {7: 64, 8: 127}
"""Largest magnitude of a weight by its bits. With 7, two products with activations fit 16 bits: 2 * 255 * 64."""

ACTIVATION_LIMIT = 255
SUM_LIMIT = 2**31
"""Sums, and what is left of them before they are rounded, stay below."""

BIAS_LIMIT = 2**30
"""Largest magnitude of a bias, in units of the products."""

_SATURATION = (-(2**15), 2**15 - 1)


def weight_limit(weight_bits: int) -> int:
    """Largest magnitude of a weight; raises ``UsageError`` for bits that there is no arithmetic for."""
    if weight_bits not in WEIGHT_LIMITS:
        raise UsageError(f"Weights have {' or '.join(map(str, WEIGHT_LIMITS))} bits, not {weight_bits}.")
    return WEIGHT_LIMITS[weight_bits]


def round_half_even(values: torch.Tensor) -> torch.Tensor:
    """Round to integers, ties to even; the gradient is that of the identity."""
    # The difference to the nearest integer is a float, so that adding it is exact.
    return values + (values.round() - values).detach()


def quantize_activation(values: torch.Tensor, scale: float) -> torch.Tensor:
    """``round(values / scale)`` in [0, 255], as QuantizeLinear computes it."""
    import torch

    whole = round_half_even(values.to(torch.float32) / float(np.float32(scale)))
    return whole.clamp(0, ACTIVATION_LIMIT).to(values.dtype)


def weight_scales(
    weight: torch.Tensor, weight_bits: int, least: torch.Tensor | None = None, most: float | None = None
) -> torch.Tensor:
    """Scale of every output channel: its largest magnitude over the limit, 1 where nothing is left of it.

    Args:
        weight: (out, ...).
        weight_bits: 7 or 8.
        least: Scales (out,) that are not gone below.
        most: A scale that is not exceeded where ``least`` allows it: what is larger is cut off.

    Returns:
        (out,) float32, without a gradient.
    """
    import torch

    rows = weight.detach().to(torch.float32).reshape(weight.shape[0], -1)
    scales = rows.abs().amax(1) / weight_limit(weight_bits)
    if most is not None:
        scales = scales.clamp(max=most)
    if least is not None:
        scales = torch.maximum(scales, least.to(torch.float32))
    return torch.where(scales < torch.finfo(torch.float32).tiny, torch.ones_like(scales), scales)


def least_scales(bias: torch.Tensor, source: float) -> torch.Tensor:
    """Scales of weights (out,) below which a bias would exceed :data:`BIAS_LIMIT`, in double precision.

    Args:
        bias: (out,).
        source: Scale of the input.
    """
    return bias.detach().double().abs() / (source * BIAS_LIMIT)


def quantize_weight(weight: torch.Tensor, scales: torch.Tensor, weight_bits: int) -> torch.Tensor:
    """``round(weight / scale)`` of every output channel, within the limit of its bits; float32."""
    import torch

    limit = weight_limit(weight_bits)
    spread = scales.reshape(-1, *[1] * (weight.ndim - 1))
    return round_half_even(weight.to(torch.float32) / spread).clamp(-limit, limit)


def requantise(sums: torch.Tensor, bias: torch.Tensor, multiplier: torch.Tensor) -> torch.Tensor:
    """``saturate16(round_half_even(float32(sums + bias) * multiplier))``, the channels last; float32."""
    import torch

    scaled = (sums + bias).to(torch.float32) * multiplier.to(torch.float32)
    return round_half_even(scaled).clamp(*_SATURATION)


def linear_constants(
    weight: torch.Tensor, bias: torch.Tensor, scales: tuple[float, float], weight_bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, biases and multipliers of a convolution or linear layer in integers.

    A channel whose weights all but vanish beside its bias gets a larger scale than they need: the bias, in units of
    the product of both scales, has to stay below 2^30.

    Args:
        weight: (out, ...).
        bias: (out,).
        scales: Of input and output.
        weight_bits: 7 or 8.

    Returns:
        Floats that hold integers, with straight-through gradients, and the multipliers (out,) in float32.
    """
    import torch

    source, target = (float(np.float32(scale)) for scale in scales)
    least = least_scales(bias, source)
    # A unit of the sums is at most a step of the output. Only channels that are never computed have weights for which
    # that matters: what is left of them is their bias, which units far coarser than the output's would spoil.
    own = weight_scales(weight, weight_bits, least, most=target / source)
    unit = own.double() * source
    whole = round_half_even(bias.double() / unit).clamp(-BIAS_LIMIT, BIAS_LIMIT)
    return quantize_weight(weight, own, weight_bits), whole, (unit / target).to(torch.float32)


def require_scales(operator: str, scales: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise ``UsageError`` unless all these scales are there, finite and positive as float32."""
    single = np.finfo(np.float32)
    # A subnormal scale would divide by what some processors take for zero.
    least, most = float(single.tiny), float(single.max)
    for name in names:
        if name not in scales:
            raise UsageError(f"{operator} cannot be quantised: no scale of {name}.")
        if not least <= scales[name] <= most:
            raise UsageError(
                f"{operator} cannot be quantised: the scale of {name} is {scales[name]}, and must be finite and "
                "positive. Calibrate with images for which it is not constant zero."
            )


def require_finite(operator: str, weights: Mapping[str, Array]) -> None:
    """Raise ``UsageError`` where a weight is not finite."""
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise UsageError(f"{operator} cannot be quantised: {name} has values that are not finite.")


def require_range(operator: str, name: str, weight: Array, bias: Array, multiplier: Array) -> None:
    """Raise ``UsageError`` where sums of products, or what ``requantise`` rounds, could leave 32 bits."""
    sums = ACTIVATION_LIMIT * np.abs(weight.astype(np.float64)).reshape(len(weight), -1).sum(1) + np.abs(
        bias.astype(np.float64)
    )
    if not (np.isfinite(multiplier).all() and (sums < SUM_LIMIT).all() and (sums * multiplier < SUM_LIMIT).all()):
        raise UsageError(
            f"{operator} cannot be quantised: with these scales the sums of {name} could leave the range of 32-bit "
            "integers. Calibrate again: a scale is far too small for the values that it stands for."
        )
