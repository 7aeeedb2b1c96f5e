"""Gates of transformer blocks: which tokens, which attention heads and which sublayers an image computes.

Reference: AdaViT (Meng et al., CVPR 2022) and its published code, from which the thresholds, the temperature and the
rule of training are. Token gates read the normalised input of their block, the others its class token as it comes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks.gates import Gate, LoweredCall, Size, Temperature
from dyndeploy.errors import UsageError
from dyndeploy.ops.gates import BLOCK, HEAD, TOKEN

TOKEN_THRESHOLD = 0.6
"""Tokens are kept above this probability."""
THRESHOLD = 0.5
"""Heads and sublayers are computed above this probability."""
TEMPERATURE = 5.0
"""Of the samples of training."""
STRICT = 1e-7
"""What a logit has to exceed the threshold's by: a logit on the threshold is off."""
ALWAYS = 1.0
"""Margin of tokens that always stay."""


def refer(owner: nn.Module, name: str, module: nn.Module | None) -> None:
    """Let a module use another one that is registered elsewhere: it has no second place in the state dict."""
    object.__setattr__(owner, name, module)


class ThresholdGate(Gate):
    """A decision by one linear layer and a threshold on its probability: on where ``sigmoid(logit) > threshold``.

    In training, a logistic sample at a temperature is compared with the threshold, ``sigmoid((logit + noise) /
    temperature) > threshold``: an entry is then on with probability ``sigmoid(logit - temperature log(threshold /
    (1 - threshold)))``, which for thresholds other than 0.5 is another one than evaluation's. ``consistent`` moves the
    threshold into the logit instead, so that evaluation computes exactly what training computes more often than not.

    Args:
        threshold: Probability that has to be exceeded, in (0, 1).
        temperature: Of the samples of training, where nobody gives another one.
        consistent: See above; False is the published rule.

    Raises:
        UsageError: A threshold outside (0, 1), or a temperature that is not above 0.
    """

    def __init__(self, threshold: float, temperature: float = TEMPERATURE, consistent: bool = False) -> None:
        super().__init__()
        if not 0.0 < threshold < 1.0:
            raise UsageError(f"The threshold of a gate is a probability between 0 and 1, not {threshold!r}.")
        if not temperature > 0.0:
            raise UsageError(f"The temperature of a gate must be above 0, not {temperature!r}.")
        self.threshold, self.temperature, self.consistent = float(threshold), float(temperature), consistent

    @property
    def offset(self) -> float:
        """Logit of the threshold."""
        return math.log(self.threshold / (1.0 - self.threshold))

    @abstractmethod
    def raw(self, x: Tensor) -> Tensor:
        """Logits of the probabilities, (N, ...), in float at least, before the threshold."""

    def logits(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Return (N, 2, ...): by how much the logit exceeds the threshold's, and 0."""
        margin = self.raw(x) - (self.offset + STRICT)
        return torch.stack([margin, torch.zeros_like(margin)], 1)

    def decide(self, logits: Tensor, temperature: Temperature) -> Tensor:
        """See :meth:`Gate.decide`; the rule of training is the class's."""
        if not self.training:
            return super().decide(logits, temperature)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        noise = self.noise(wide)
        margin = wide[:, 0] - wide[:, 1] + (noise[:, 0] - noise[:, 1])
        scale = self.temperature if temperature is None else temperature
        # The margin is counted from the threshold: the published rule counts from a probability of one half.
        soft = torch.sigmoid((margin if self.consistent else margin + (self.offset + STRICT)) / scale)
        hard = (soft > (0.5 if self.consistent else self.threshold)).to(soft.dtype)
        return (hard + (soft - soft.detach())).to(logits.dtype)

    def _lowered(
        self,
        operator: str,
        weight: Tensor,
        bias: Tensor,
        norm: nn.LayerNorm | None,
        attributes: dict[str, Any],
        *,
        row: bool,
    ) -> LoweredCall:
        """One linear layer (rows, D) with the affine part of a norm before it and the threshold behind it."""
        wide, offset = weight.detach().double(), bias.detach().double() - (self.offset + STRICT)
        if norm is not None and norm.elementwise_affine:
            if norm.bias is not None:
                offset = offset + wide @ norm.bias.detach().double()
            wide = wide * norm.weight.detach().double()
        tensors = {"weight": (wide[0] if row else wide).float(), "bias": offset.float()}
        epsilon = 1e-5 if norm is None else norm.eps
        return LoweredCall(operator, tensors, {"epsilon": epsilon, "normalise": int(norm is not None), **attributes})


def linear_behind(x: Tensor, layer: nn.Linear, norm: nn.LayerNorm | None, rows: slice | None = None) -> Tensor:
    """A layer, or rows of it, behind a norm, in float at least: decisions do not depend on the network's precision."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, weight, bias = x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype)
    if norm is not None:
        affine = [None if item is None else item.to(dtype) for item in (norm.weight, norm.bias)]
        x = F.layer_norm(x, norm.normalized_shape, affine[0], affine[1], norm.eps)
    return F.linear(x, weight, bias) if rows is None else F.linear(x, weight[rows], bias[rows])


class TokenGate(ThresholdGate):
    """Which tokens are kept: one linear layer on every token of the block's normalised input (N, T, D).

    Args:
        width: D.
        norm: The block's first LayerNorm, which stays the block's; None reads the input as it is.
        kept: Leading tokens that always stay: the class token, register tokens.
        threshold: See :class:`ThresholdGate`.
        temperature: See :class:`ThresholdGate`.
        consistent: See :class:`ThresholdGate`.

    Attributes:
        mlp_head: The linear layer, by its published name.
    """

    kind = TOKEN

    def __init__(
        self,
        width: int,
        norm: nn.LayerNorm | None = None,
        *,
        kept: int = 1,
        threshold: float = TOKEN_THRESHOLD,
        temperature: float = TEMPERATURE,
        consistent: bool = False,
    ) -> None:
        super().__init__(threshold, temperature, consistent)
        if kept < 0:
            raise UsageError(f"The number of leading tokens that always stay cannot be {kept}.")
        self.kept = kept
        self.mlp_head = nn.Linear(width, 1)
        self.norm: nn.LayerNorm | None
        refer(self, "norm", norm)

    def raw(self, x: Tensor) -> Tensor:
        """Logits (N, T - kept) of the tokens that may be dropped."""
        return linear_behind(x[:, self.kept :], self.mlp_head, self.norm).squeeze(-1)

    def logits(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Return (N, 2, T), those of the leading tokens constant."""
        logits = super().logits(x)
        leading = logits.new_tensor([ALWAYS, 0.0]).reshape(1, 2, 1).expand(len(x), 2, self.kept)
        return torch.cat([leading, logits], 2)

    def decide(self, logits: Tensor, temperature: Temperature) -> Tensor:
        """See :class:`ThresholdGate`; the leading tokens stay."""
        mask = super().decide(logits, temperature)
        return torch.cat([torch.ones_like(mask[:, : self.kept]), mask[:, self.kept :]], 1)

    def lower(self, size: Size | None) -> LoweredCall:
        """Return the ``TokenMasker`` operator."""
        return self._lowered(
            "TokenMasker", self.mlp_head.weight, self.mlp_head.bias, self.norm, {"kept": self.kept}, row=True
        )


class HeadGate(ThresholdGate):
    """Which attention heads are computed: one linear layer on the class token of the block's input.

    Args:
        width: D.
        heads: A.
        norm: A LayerNorm that the class token goes through first, registered elsewhere; None reads it as it is.
        threshold: See :class:`ThresholdGate`.
        temperature: See :class:`ThresholdGate`.
        consistent: See :class:`ThresholdGate`.

    Attributes:
        mlp_head: The linear layer, by its published name.
    """

    kind = HEAD

    def __init__(
        self,
        width: int,
        heads: int,
        norm: nn.LayerNorm | None = None,
        *,
        threshold: float = THRESHOLD,
        temperature: float = TEMPERATURE,
        consistent: bool = False,
    ) -> None:
        super().__init__(threshold, temperature, consistent)
        self.mlp_head = nn.Linear(width, heads)
        self.norm: nn.LayerNorm | None
        refer(self, "norm", norm)

    def raw(self, x: Tensor) -> Tensor:
        """Logits (N, A)."""
        return linear_behind(x[:, 0], self.mlp_head, self.norm)

    def lower(self, size: Size | None) -> LoweredCall:
        """Return the ``ClassTokenHeadMasker`` operator."""
        return self._lowered("ClassTokenHeadMasker", self.mlp_head.weight, self.mlp_head.bias, self.norm, {}, row=False)


class SublayerGate(ThresholdGate):
    """Whether one sublayer is computed: a row of a linear layer on the class token of the block's input.

    Args:
        layer: The linear layer (D to 2), registered elsewhere.
        row: Which of its outputs decides.
        norm: See :class:`HeadGate`.
        threshold: See :class:`ThresholdGate`.
        temperature: See :class:`ThresholdGate`.
        consistent: See :class:`ThresholdGate`.
    """

    kind = BLOCK

    def __init__(
        self,
        layer: nn.Linear,
        row: int,
        norm: nn.LayerNorm | None = None,
        *,
        threshold: float = THRESHOLD,
        temperature: float = TEMPERATURE,
        consistent: bool = False,
    ) -> None:
        super().__init__(threshold, temperature, consistent)
        self.row = row
        self.layer: nn.Linear
        self.norm: nn.LayerNorm | None
        refer(self, "layer", layer)
        refer(self, "norm", norm)

    def raw(self, x: Tensor) -> Tensor:
        """Logits (N, 1)."""
        return linear_behind(x[:, 0], self.layer, self.norm, slice(self.row, self.row + 1))

    def lower(self, size: Size | None) -> LoweredCall:
        """Return the ``ClassTokenLayerMasker`` operator."""
        rows = slice(self.row, self.row + 1)
        return self._lowered(
            "ClassTokenLayerMasker", self.layer.weight[rows], self.layer.bias[rows], self.norm, {}, row=False
        )


class SublayerGates(nn.Module):
    """The gates of both sublayers, attention and MLP, which share a linear layer with two outputs.

    Args:
        width: D.
        norm: See :class:`HeadGate`.
        threshold: See :class:`ThresholdGate`.
        temperature: See :class:`ThresholdGate`.
        consistent: See :class:`ThresholdGate`.

    Attributes:
        mlp_head: The linear layer, by its published name.
        attention: Gate of the attention.
        mlp: Gate of the MLP.
    """

    def __init__(
        self,
        width: int,
        norm: nn.LayerNorm | None = None,
        *,
        threshold: float = THRESHOLD,
        temperature: float = TEMPERATURE,
        consistent: bool = False,
    ) -> None:
        super().__init__()
        self.mlp_head = nn.Linear(width, 2)
        self.attention, self.mlp = (
            SublayerGate(self.mlp_head, row, norm, threshold=threshold, temperature=temperature, consistent=consistent)
            for row in range(2)
        )
