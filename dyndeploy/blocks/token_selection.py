"""Token gates for other ways of selecting than a threshold per block: fixed counts, and tokens that stay dropped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dyndeploy.blocks.gates import Gate, Size, Temperature
from dyndeploy.blocks.token_gates import ALWAYS, linear_behind, refer
from dyndeploy.errors import UsageError
from dyndeploy.ops.gates import TOKEN

DROPPED = -1.0
"""Margin of tokens that an earlier gate has dropped."""


class TopKTokenGate(Gate):
    """Keeps a fixed number of tokens: those with the highest scores (DynamicViT, 2021; EViT, 2022).

    Scores are a linear layer on the block's normalised input; a subclass may write :meth:`scores` anew. Tokens whose
    scores tie for the last place are all kept. Training samples around the last place's score as other gates do.

    Args:
        width: D.
        count: Tokens that are kept behind the leading ones: a number, or a share of them below 1 (rounded up).
        norm: The block's first LayerNorm, which stays the block's; None reads the input as it is.
        kept: Leading tokens that always stay: the class token, register tokens.

    Raises:
        UsageError: A count below 1, a share outside (0, 1), or fewer than 0 leading tokens.
    """

    kind = TOKEN

    def __init__(self, width: int, count: int | float, norm: nn.LayerNorm | None = None, *, kept: int = 1) -> None:
        super().__init__()
        if isinstance(count, bool) or count <= 0 or (not isinstance(count, int) and count >= 1):
            raise UsageError(f"A number of tokens from 1, or a share of them between 0 and 1, not {count!r}.")
        if kept < 0:
            raise UsageError(f"The number of leading tokens that always stay cannot be {kept}.")
        self.count, self.kept = count, kept
        self.score_head = nn.Linear(width, 1)
        self.norm: nn.LayerNorm | None
        refer(self, "norm", norm)

    def scores(self, x: Tensor) -> Tensor:
        """Scores (N, T - kept) of the tokens behind the leading ones, of the block's input (N, T, D)."""
        return linear_behind(x[:, self.kept :], self.score_head, self.norm).squeeze(-1)

    def logits(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Return (N, 2, T): by how much the score exceeds the middle between the last kept and the first dropped one.

        Raises:
            UsageError: The scores have another shape than (N, T - kept).
        """
        scores = self.scores(x)
        tokens = x.shape[1] - self.kept
        if scores.shape != (x.shape[0], tokens):
            raise UsageError(
                f"{type(self).__name__} scores {tuple(scores.shape)} for {x.shape[0]} images of {tokens} tokens."
            )
        count = self.count if isinstance(self.count, int) else -int(-self.count * tokens // 1)
        if count >= tokens:
            margin = torch.full_like(scores, ALWAYS)
        else:
            edge = torch.topk(scores, count + 1, dim=1).values[:, count - 1 :].mean(1, keepdim=True)
            margin = scores - edge.detach()
        leading = margin.new_full((1, 1), ALWAYS).expand(len(margin), self.kept)
        margin = torch.cat([leading, margin], 1)
        return torch.stack([margin, torch.zeros_like(margin)], 1)

    def decide(self, logits: Tensor, temperature: Temperature) -> Tensor:
        """See :meth:`Gate.decide`; the leading tokens stay."""
        return _with_leading(super().decide(logits, temperature), self.kept)


class _Chain:
    """Masks of one pass by position; copies of a network start without any."""

    def __init__(self) -> None:
        self.masks: dict[int, Tensor] = {}

    def __deepcopy__(self, memo: Any) -> _Chain:
        return _Chain()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Chain, ())

    def before(self, position: int) -> Tensor | None:
        """The latest mask before a position; what stood behind it is of an earlier pass."""
        self.masks = {index: mask for index, mask in self.masks.items() if index < position}
        return self.masks[max(self.masks)] if self.masks else None


class CumulativeGate(Gate):
    """A gate in a chain: it drops tokens, and those that an earlier gate has dropped stay dropped.

    Made by :func:`cumulative`.

    Attributes:
        gate: What decides on the tokens that are left; None keeps them all.
    """

    kind = TOKEN

    def __init__(self, gate: Gate | None, position: int, chain: _Chain) -> None:
        super().__init__()
        self.gate, self.position, self.chain = gate, position, chain

    def logits(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Return (N, 2, T), dropped tokens at a constant margin."""
        earlier = self.chain.before(self.position)
        if self.gate is None:
            margin = x.new_full(x.shape[:2], ALWAYS, dtype=torch.promote_types(x.dtype, torch.float32))
            logits = torch.stack([margin, torch.zeros_like(margin)], 1)
        else:
            logits = self.gate.logits(x, size)
        if earlier is not None:
            margin = torch.where(earlier > 0.5, logits[:, 0] - logits[:, 1], DROPPED)
            logits = torch.stack([margin, torch.zeros_like(margin)], 1)
        # Not smaller, as exported graphs decide: this is what later gates see of a gate that stands in one.
        self.chain.masks[self.position] = (~(logits[:, 0] < logits[:, 1])).to(logits.dtype)
        return logits

    def decide(self, logits: Tensor, temperature: Temperature) -> Tensor:
        """See :meth:`Gate.decide`; what is dropped already stays dropped in training, too."""
        earlier = self.chain.before(self.position)
        if self.gate is None:
            mask = (~(logits[:, 0] < logits[:, 1])).to(logits.dtype)
        else:
            self.gate.noise = self.noise
            mask = self.gate.decide(logits, temperature)
        return mask if earlier is None else mask * earlier

    def forward(self, x: Tensor, size: Size | None = None, temperature: Temperature = None) -> Tensor:
        """See :meth:`Gate.forward`."""
        mask = super().forward(x, size, temperature)
        # The mask that is used, which may be a sampled or a forced one.
        self.chain.masks[self.position] = mask
        return mask


def cumulative(gates: Iterable[Gate | None]) -> list[CumulativeGate]:
    """Chain token gates in the order of their blocks, so that tokens that one of them drops stay dropped.

    Args:
        gates: Token gates, one per block; None for a block that drops nothing more.

    Returns:
        The gates to give to the blocks, one each.

    Raises:
        UsageError: A gate that does not decide on tokens.
    """
    chain = _Chain()
    chained = []
    for position, gate in enumerate(gates):
        if gate is not None and (not isinstance(gate, Gate) or gate.kind.name != TOKEN.name):
            kind = f"one of kind '{gate.kind.name}'" if isinstance(gate, Gate) else type(gate).__name__
            raise UsageError(f"cumulative() takes gates of kind '{TOKEN.name}', not {kind}.")
        chained.append(CumulativeGate(gate, position, chain))
    return chained


def _with_leading(mask: Tensor, kept: int) -> Tensor:
    return torch.cat([torch.ones_like(mask[:, :kept]), mask[:, kept:]], 1)
