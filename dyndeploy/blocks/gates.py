"""Gates decide, per image, what a block computes.

Reference of the maskers: LAUDNet (Han et al., TPAMI 2024) and its reference code. They read the block's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks.folding import fold_batch_norm
from dyndeploy.errors import UsageError
from dyndeploy.ops.gates import BLOCK, CHANNEL, PATCH, GateKind

if TYPE_CHECKING:
    from dyndeploy.blocks.tape import Tape

Size = tuple[int, int]
Temperature = float | Tensor | None
Noise = Callable[[Tensor], Tensor]
"""Gumbel noise for logits of a given shape, type and device."""

SPATIAL_KEEP_BIAS = 5.0
"""Initial bias of the spatial "compute" logits: patches start active with probability sigmoid(5)."""

CHANNEL_KEEP_BIAS = 2.0
"""Initial bias of the channel "compute" logits; the "skip" logits get its negative."""


@dataclass(frozen=True)
class LoweredCall:
    """What a gate or a dynamic block becomes when it is exported: one call of a registered operator, or a branch.

    Attributes:
        operator: ``op_type`` of the operator; None where :attr:`body` runs instead.
        tensors: Its weights by port name, batch norms folded, in the layout of the ports.
        attributes: Its attributes.
        channels_last: Whether its maps are (N, H, W, C), while the network's are (N, C, H, W).
        before: Computes the operator's first input from the block's, in the operator's layout; None takes it as it is.
        rectified: Whether the operator leaves what is skipped as it came, where the block applies a ReLU to it: for
            inputs that can be negative, a ReLU then follows.
        body: Without an operator: the module that runs for the images that the block's gate computes; the others keep
            the block's input.
    """

    operator: str | None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    channels_last: bool = False
    before: nn.Module | None = None
    rectified: bool = False
    body: nn.Module | None = None

    @classmethod
    def conditional(cls, body: nn.Module) -> LoweredCall:
        """Run ``body`` for the images that the block's gate computes, and keep the input of the others."""
        return cls(operator=None, body=body)


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


def no_noise(logits: Tensor) -> Tensor:
    """Return zeros: the sample is then the decision of evaluation, with the gradient of the soft one."""
    return torch.zeros_like(logits)


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


class Gate(nn.Module, ABC):
    """A decision: pairs of a compute and a skip logit, of which the larger one wins.

    In evaluation an entry is computed where compute >= skip; in training it is sampled (:func:`decide`). A
    :class:`~dyndeploy.blocks.Tape` around the network sees every decision and may force it.

    Attributes:
        kind: What one bit decides on.
        noise: Gumbel noise of training.
        tape: The tape that is recording at present, or None.
    """

    kind: GateKind

    def __init__(self) -> None:
        super().__init__()
        self.noise: Noise = gumbel_noise
        self.tape: Tape | None = None

    @abstractmethod
    def logits(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Return the logits (N, 2, ...): index 0 of axis 1 is "compute", index 1 is "skip".

        Args:
            x: The block's input.
            size: (rows, columns) of the mask, for gates whose kind has a grid.
        """

    def forward(self, x: Tensor, size: Size | None = None, temperature: Temperature = None) -> Tensor:
        """Return the mask of 0 and 1, (N, ...) as the kind's axes say.

        Args:
            x: The block's input.
            size: See :meth:`logits`.
            temperature: Gumbel-softmax temperature, used in training mode only; None is the tape's, else 1.

        Raises:
            UsageError: The logits have another shape than (N, 2, ...).
        """
        logits = shaped_logits(self, self.logits(x, size), x.shape[0])
        if temperature is None and self.tape is not None:
            temperature = self.tape.temperature
        mask = self.decide(logits, temperature)
        return mask if self.tape is None else self.tape.see(self, logits, mask)

    def decide(self, logits: Tensor, temperature: Temperature) -> Tensor:
        """Return the mask (N, ...) of logits (N, 2, ...): the larger logit wins; sampled in training mode."""
        return decide(logits, self.training, temperature, self.noise)

    def lower(self, size: Size | None) -> LoweredCall | None:
        """Return the operator that decides as this gate does in evaluation; None exports :meth:`logits` as it is."""
        return None


def shaped_logits(gate: Gate, logits: Tensor, batch: int) -> Tensor:
    """Logits (N, 2, ...) with the axes of the gate's kind; raises ``UsageError`` where they do not fit."""
    axes = gate.kind.axes
    if logits.ndim >= 2 and tuple(logits.shape[:2]) == (batch, 2):
        if gate.kind.whole and logits.numel() == 2 * batch:
            return logits.reshape(batch, 2, *[1] * (len(axes) - 1))
        if not gate.kind.whole and logits.ndim == len(axes) + 1:
            return logits
    raise UsageError(
        f"{type(gate).__name__} gives logits of shape {tuple(logits.shape)} for {batch} images: a gate of kind "
        f"'{gate.kind.name}' gives (N, 2, ...), compute and skip, and masks ({', '.join(axes)})."
    )


def _keep_minus_skip(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Turn a layer with compute logits followed by skip logits into one with their differences."""
    groups = bias.numel() // 2
    rows = weight.detach().flatten(1).double()
    difference = (rows[:groups] - rows[groups:]).to(weight.dtype)
    offset = bias.detach().double()
    return {"weight": difference, "bias": (offset[:groups] - offset[groups:]).to(bias.dtype)}


@torch.no_grad()
def _init_bias(bias: Tensor, groups: int, keep: float, skip: float, fix: bool) -> None:
    bias[:groups] = keep
    bias[groups + (0 if fix else 1) :] = skip


class SpatialMasker(Gate):
    """One decision per patch: adaptive average pool to the patch grid, then a 1x1 convolution to 2g logits.

    Args:
        in_channels: Channels of the block's input.
        groups: g, groups of output channels with a mask of their own.
        mask_bias_fix: Initialise all "skip" biases to 0; False leaves the first of them random, as the
            reference code does.
        whole: Decide on whole blocks: the mask has a single patch.
    """

    kind = PATCH

    def __init__(self, in_channels: int, groups: int = 1, mask_bias_fix: bool = True, *, whole: bool = False) -> None:
        super().__init__()
        if whole and groups == 1:
            # Several groups have a bit each, of a single patch: no whole-block decision.
            self.kind = BLOCK
        self.in_channels = in_channels
        self.groups = groups
        self.conv = nn.Conv2d(in_channels, 2 * groups, 1)
        assert self.conv.bias is not None
        _init_bias(self.conv.bias, groups, SPATIAL_KEEP_BIAS, 0.0, mask_bias_fix)

    def logits(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Return the logits (N, 2, g, mh, mw) for a block input (N, C, H, W); one patch where no size is given."""
        size = size or (1, 1)
        if (x.shape[2], x.shape[3]) != size:
            x = F.adaptive_avg_pool2d(x, size)
        logits: Tensor = self.conv(x).unflatten(1, (2, self.groups))
        return logits

    def lower(self, size: Size | None) -> LoweredCall | None:
        """Return the ``SpatialMasker`` operator."""
        assert self.conv.bias is not None
        rows, columns = size or (1, 1)
        return LoweredCall(
            "SpatialMasker",
            _keep_minus_skip(self.conv.weight, self.conv.bias),
            {"mask_height": rows, "mask_width": columns},
            channels_last=True,
        )

    def macs(self, mask_size: tuple[int, int]) -> int:
        """MACs per image as the reference code counts them, the pooling at its output's size."""
        positions = mask_size[0] * mask_size[1]
        return self.in_channels * positions + (2 * self.groups + 1) * self.in_channels * positions


class MlpChannelMasker(Gate):
    """One decision per channel group: global average pool, then one or two linear layers to 2G logits.

    Args:
        in_channels: Channels of the block's input.
        groups: G, channel groups of the bottleneck.
        layers: 1 or 2.
        reduction: The hidden layer has max(G // reduction, 16) units (only with two layers).
        mask_bias_fix: See :class:`SpatialMasker`.
    """

    kind = CHANNEL

    def __init__(
        self, in_channels: int, groups: int, layers: int = 2, reduction: int = 16, mask_bias_fix: bool = True
    ) -> None:
        super().__init__()
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

    def logits(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Return the logits (N, 2, G) for a block input (N, C, H, W)."""
        logits: Tensor = self.conv(F.adaptive_avg_pool2d(x, 1).flatten(1)).unflatten(1, (2, self.groups))
        return logits

    def lower(self, size: Size | None) -> LoweredCall | None:
        """Return the ``ChannelMasker`` operator, with a hidden layer where there are two."""
        if isinstance(self.conv, nn.Linear):
            tensors, name = _keep_minus_skip(self.conv.weight, self.conv.bias), "ChannelMasker"
        else:
            first, last = self.conv[0], self.conv[2]
            assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
            hidden = {"hidden_weight": first.weight.detach(), "hidden_bias": first.bias.detach()}
            tensors, name = hidden | _keep_minus_skip(last.weight, last.bias), "ChannelMaskerHidden"
        return LoweredCall(name, tensors, channels_last=True)

    def macs(self, height: int, width: int) -> int:
        """MACs per image for a block input of height x width, pooling included."""
        return self.in_channels * height * width + self._linear_macs


class ConvLinearChannelMasker(Gate):
    """One decision per channel group: 1x1 convolution, BN, ReLU, global average pool, linear layer.

    Args:
        in_channels: Channels of the block's input.
        groups: G, channel groups of the bottleneck.
        reduction: The convolution has in_channels // reduction outputs.
        mask_bias_fix: See :class:`SpatialMasker`.
    """

    kind = CHANNEL

    def __init__(self, in_channels: int, groups: int, reduction: int = 16, mask_bias_fix: bool = True) -> None:
        super().__init__()
        hidden = in_channels // reduction
        self.groups = groups
        self.in_channels = in_channels
        self.hidden = hidden
        self.conv = nn.Sequential(nn.Conv2d(in_channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.linear = nn.Linear(hidden, 2 * groups)
        _init_bias(self.linear.bias, groups, CHANNEL_KEEP_BIAS, -CHANNEL_KEEP_BIAS, mask_bias_fix)

    def logits(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Return the logits (N, 2, G) for a block input (N, C, H, W)."""
        pooled = F.adaptive_avg_pool2d(self.conv(x), 1).flatten(1)
        logits: Tensor = self.linear(pooled).unflatten(1, (2, self.groups))
        return logits

    def lower(self, size: Size | None) -> LoweredCall | None:
        """Return the ``ChannelMasker`` operator behind the 1x1 convolution."""
        conv, norm = self.conv[0], self.conv[1]
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        weight, bias = fold_batch_norm(conv, norm)
        before = nn.Sequential(nn.Linear(conv.in_channels, conv.out_channels, dtype=weight.dtype), nn.ReLU())
        before.load_state_dict({"0.weight": weight.flatten(1), "0.bias": bias})
        tensors = _keep_minus_skip(self.linear.weight, self.linear.bias)
        return LoweredCall("ChannelMasker", tensors, channels_last=True, before=before)

    def macs(self, height: int, width: int) -> int:
        """MACs per image as the reference code counts them.

        It counts the 1x1 convolution once instead of once per pixel; kept, so that logged FLOPs agree.
        """
        return self.hidden * height * width + self.in_channels * self.hidden + self.hidden * 2 * self.groups


class PooledGate(Gate):
    """One decision per image: the mean over all positions, and one linear layer to a compute and a skip logit.

    Args:
        features: Channels: the size of axis 1 of the input (N, C, ...), or of the last axis where ``last``.
        last: Whether the features are the last axis, as in (N, tokens, C).
    """

    kind = BLOCK

    def __init__(self, features: int, *, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.linear = nn.Linear(features, 2)
        _init_bias(self.linear.bias, 1, SPATIAL_KEEP_BIAS, 0.0, True)

    def logits(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Return the logits (N, 2); raises ``UsageError`` for an input of another number of features."""
        features = x.shape[-1 if self.last else 1]
        if features != self.linear.in_features:
            raise UsageError(
                f"A gate for {self.linear.in_features} features got an input of shape {tuple(x.shape)}. Give "
                f"skip(..., gate=PooledGate({features}, last={self.last}))."
            )
        axes = tuple(range(1, x.ndim - 1)) if self.last else tuple(range(2, x.ndim))
        logits: Tensor = self.linear(x.mean(axes) if axes else x)
        return logits
