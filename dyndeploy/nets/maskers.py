"""Maskers decide, per image, what a block computes; the helpers here turn a decision into pixel masks.

Reference: LAUDNet (Han et al., TPAMI 2024) and its reference code. All maskers read the block's input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Noise = Callable[[Tensor], Tensor]
"""Gumbel noise for logits of a given shape, type and device."""

SPATIAL_KEEP_BIAS = 5.0
"""Initial bias of the spatial "compute" logits: patches start active with probability sigmoid(5)."""

CHANNEL_KEEP_BIAS = 2.0
"""Initial bias of the channel "compute" logits; the "skip" logits get its negative."""


def expand_groups(mask: Tensor, channels: int) -> Tensor:
    """Repeat each entry of axis 1 for its consecutive channels: (N, G, ...) -> (N, channels, ...).

    A single group is left alone, because broadcasting does the same.
    """
    groups = mask.shape[1]
    if groups in (1, channels):
        return mask
    size = (mask.shape[0], groups, channels // groups, *mask.shape[2:])
    return mask.unsqueeze(2).expand(size).flatten(1, 2)


def gumbel_noise(logits: Tensor) -> Tensor:
    """Return Gumbel noise from the global generator, the numbers that ``F.gumbel_softmax`` draws."""
    return -torch.empty_like(logits, memory_format=torch.legacy_contiguous_format).exponential_().log()


def decide(logits: Tensor, training: bool, temperature: float | Tensor | None, noise: Noise = gumbel_noise) -> Tensor:
    """Turn pairs of logits into a 0/1 mask.

    In evaluation an entry is kept where compute >= skip. In training the decision is sampled with
    Gumbel-softmax: the value is exactly 0 or 1, the gradient that of the soft sample (straight-through).

    Args:
        logits: Shape (N, 2, ...); index 0 of axis 1 is "compute", index 1 is "skip".
        training: Sample or not.
        temperature: Gumbel-softmax temperature, None for 1; unused in evaluation.
        noise: Where the sample's noise comes from; unused in evaluation.

    Returns:
        Mask of shape (N, ...), of the logits' dtype.
    """
    if not training:
        return (logits[:, 0] >= logits[:, 1]).to(logits.dtype)
    # Gumbel noise in half precision overflows: sample in float32 at least.
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    soft = ((wide + noise(wide)) / (1.0 if temperature is None else temperature)).softmax(1)
    keep = soft[:, 0]
    hard = (keep >= soft[:, 1]).to(keep.dtype)
    return (hard + (keep - keep.detach())).to(logits.dtype)


@torch.no_grad()
def _init_bias(bias: Tensor, groups: int, keep: float, skip: float, fix: bool) -> None:
    bias[:groups] = keep
    bias[groups + (0 if fix else 1) :] = skip


class SpatialMasker(nn.Module):
    """One decision per patch: adaptive average pool to the patch grid, then a 1x1 convolution to 2g logits.

    Args:
        in_channels: Channels of the block's input.
        groups: g, groups of output channels with a mask of their own.
        mask_bias_fix: Initialise all "skip" biases to 0; False leaves the first of them random, as the
            reference code does.

    Attributes:
        noise: Gumbel noise of training; a trainer may put its own here.
    """

    def __init__(self, in_channels: int, groups: int = 1, mask_bias_fix: bool = True) -> None:
        super().__init__()
        self.noise: Noise = gumbel_noise
        self.in_channels = in_channels
        self.groups = groups
        self.conv = nn.Conv2d(in_channels, 2 * groups, 1)
        assert self.conv.bias is not None
        _init_bias(self.conv.bias, groups, SPATIAL_KEEP_BIAS, 0.0, mask_bias_fix)

    def logits(self, x: Tensor, mask_size: tuple[int, int]) -> Tensor:
        """Return the logits (N, 2, g, mh, mw) for a block input (N, C, H, W)."""
        if (x.shape[2], x.shape[3]) != mask_size:
            x = F.adaptive_avg_pool2d(x, mask_size)
        logits: Tensor = self.conv(x).unflatten(1, (2, self.groups))
        return logits

    def forward(self, x: Tensor, mask_size: tuple[int, int], temperature: float | Tensor | None = None) -> Tensor:
        """Return the mask (N, g, mh, mw)."""
        return decide(self.logits(x, mask_size), self.training, temperature, self.noise)

    def macs(self, mask_size: tuple[int, int]) -> int:
        """MACs per image as the reference code counts them, the pooling at its output's size."""
        positions = mask_size[0] * mask_size[1]
        return self.in_channels * positions + (2 * self.groups + 1) * self.in_channels * positions


class MlpChannelMasker(nn.Module):
    """One decision per channel group: global average pool, then one or two linear layers to 2G logits.

    Args:
        in_channels: Channels of the block's input.
        groups: G, channel groups of the bottleneck.
        layers: 1 or 2.
        reduction: The hidden layer has max(G // reduction, 16) units (only with two layers).
        mask_bias_fix: See :class:`SpatialMasker`.

    Attributes:
        noise: See :class:`SpatialMasker`.
    """

    def __init__(
        self, in_channels: int, groups: int, layers: int = 2, reduction: int = 16, mask_bias_fix: bool = True
    ) -> None:
        super().__init__()
        self.noise: Noise = gumbel_noise
        self.groups = groups
        self.in_channels = in_channels
        self.conv: nn.Linear | nn.Sequential
        if layers == 1:
            self.conv = last = nn.Linear(in_channels, 2 * groups)
            self._linear_macs = in_channels * 2 * groups
        else:
            hidden = max(groups // reduction, 16)
            last = nn.Linear(hidden, 2 * groups)
            self.conv = nn.Sequential(nn.Linear(in_channels, hidden), nn.ReLU(), last)
            self._linear_macs = in_channels * hidden + hidden * 2 * groups
        _init_bias(last.bias, groups, CHANNEL_KEEP_BIAS, -CHANNEL_KEEP_BIAS, mask_bias_fix)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (N, 2, G) for a block input (N, C, H, W)."""
        logits: Tensor = self.conv(F.adaptive_avg_pool2d(x, 1).flatten(1)).unflatten(1, (2, self.groups))
        return logits

    def forward(self, x: Tensor, temperature: float | Tensor | None = None) -> Tensor:
        """Return the mask (N, G)."""
        return decide(self.logits(x), self.training, temperature, self.noise)

    def macs(self, height: int, width: int) -> int:
        """MACs per image for a block input of height x width, pooling included."""
        return self.in_channels * height * width + self._linear_macs


class ConvLinearChannelMasker(nn.Module):
    """One decision per channel group: 1x1 convolution, BN, ReLU, global average pool, linear layer.

    Args:
        in_channels: Channels of the block's input.
        groups: G, channel groups of the bottleneck.
        reduction: The convolution has in_channels // reduction outputs.
        mask_bias_fix: See :class:`SpatialMasker`.

    Attributes:
        noise: See :class:`SpatialMasker`.
    """

    def __init__(self, in_channels: int, groups: int, reduction: int = 16, mask_bias_fix: bool = True) -> None:
        super().__init__()
        self.noise: Noise = gumbel_noise
        hidden = in_channels // reduction
        self.groups = groups
        self.in_channels = in_channels
        self.hidden = hidden
        self.conv = nn.Sequential(nn.Conv2d(in_channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.linear = nn.Linear(hidden, 2 * groups)
        _init_bias(self.linear.bias, groups, CHANNEL_KEEP_BIAS, -CHANNEL_KEEP_BIAS, mask_bias_fix)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (N, 2, G) for a block input (N, C, H, W)."""
        pooled = F.adaptive_avg_pool2d(self.conv(x), 1).flatten(1)
        logits: Tensor = self.linear(pooled).unflatten(1, (2, self.groups))
        return logits

    def forward(self, x: Tensor, temperature: float | Tensor | None = None) -> Tensor:
        """Return the mask (N, G)."""
        return decide(self.logits(x), self.training, temperature, self.noise)

    def macs(self, height: int, width: int) -> int:
        """MACs per image as the reference code counts them.

        It counts the 1x1 convolution once instead of once per pixel; kept, so that logged FLOPs agree.
        """
        return self.hidden * height * width + self.in_channels * self.hidden + self.hidden * 2 * self.groups
