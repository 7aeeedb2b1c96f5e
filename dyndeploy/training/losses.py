"""Losses: the FLOPs budget of LAUDNet with bounds per block, the usage of AdaViT, distillation, and exits.

References: "Latency-Aware Unified Dynamic Networks for Efficient Image Recognition" (Han et al., TPAMI 2024),
"Dynamic Perceiver for Efficient Visual Recognition" (Han et al., ICCV 2023), "AdaViT: Adaptive Vision Transformers for
Efficient Image Recognition" (Meng et al., CVPR 2022), and their reference codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LITTLE = 1e-6
"""Added to sums that are divided by."""
_RARE = 1e-7
"""Smallest probability that a logarithm is taken of."""


class Bounds(NamedTuple):
    """The range that the FLOPs ratio of every block is held in."""

    lower: float
    upper: float


def block_bounds(target: float, progress: float, until: float | None = 0.33) -> Bounds:
    """Return the bounds on the blocks' FLOPs ratios.

    They start tight around the target, so that no block learns to be always or never computed before its
    features are worth anything, and open along a squared cosine to [0, 1].

    Args:
        target: FLOPs ratio aimed at, in (0, 1].
        progress: Epoch divided by epochs, in [0, 1].
        until: Progress at which nothing is bounded any more, above 0; None bounds nothing.
    """
    if until is None:
        return Bounds(lower=0.0, upper=1.0)
    share = min(max(progress / until, 0.0), 1.0)
    q = math.cos(share * math.pi / 2) ** 2
    return Bounds(lower=q * target, upper=1 - q * (1 - target))


def sparsity_loss(flops: Tensor, full_flops: float, block_ratios: Tensor, target: float, bounds: Bounds) -> Tensor:
    """Return the squared distance of the FLOPs from the target, plus that of the blocks from their bounds.

    Args:
        flops: MACs per image, 0-d.
        full_flops: The same of the static network.
        block_ratios: Computed over dense MACs of each block, shape (blocks,).
        target: FLOPs ratio aimed at.
        bounds: From :func:`block_bounds`.

    Returns:
        ``mean(max(0, r - upper)^2 + max(0, lower - r)^2) + (flops / full_flops - target)^2``, 0-d.
    """
    outside = torch.relu(block_ratios - bounds.upper).square() + torch.relu(bounds.lower - block_ratios).square()
    return outside.mean() + (flops / full_flops - target).square()


class UsageTerms(NamedTuple):
    """What the usage of one kind of decision is held to.

    Attributes:
        target: Share that is to be computed.
        diverse: Factor of the mean distance of the single units from the target: with a target, units are then to
            differ from image to image rather than from each other.
        entropy: Factor of the mean entropy (nats) of the probabilities, which is rewarded.
        minimal: Share that every single unit is to reach.
        minimal_weight: Factor of the sum of what the units lack of it.
    """

    target: float = 0.5
    diverse: float = 0.0
    entropy: float = 0.0
    minimal: float = 0.0
    minimal_weight: float = 0.0


def head_usage(
    masks: Sequence[Tensor],
    margins: Sequence[Tensor],
    active: Sequence[Tensor] | None,
    terms: UsageTerms,
    mean: Callable[[Tensor], Tensor] = torch.mean,
) -> Tensor:
    """Return how far the heads are from what they are held to; only heads of blocks that compute anything count.

    Args:
        masks: (N, heads) for every block.
        margins: Logits of the probabilities, alike.
        active: Whether a block computes any of its sublayers, (N,) for every block; None for always.
        terms: What is asked for; a unit is a head of a block.
        mean: Averages over the batch, of all processes where there are several.

    Returns:
        ``|mean - target|`` and the further terms, 0-d, without the weight of the whole.
    """
    heads = torch.cat(list(masks), 1)
    counted = torch.ones_like(heads)
    if active is not None:
        counted = torch.cat([run[:, None].expand_as(mask) for run, mask in zip(active, masks, strict=True)], 1).detach()
    share = mean(heads * counted) / (mean(counted) + _LITTLE / counted.numel())
    units = (heads * counted).sum(0) / (counted.sum(0) + _LITTLE)
    return (share - terms.target).abs() + _further(units, units, torch.cat(list(margins), 1), terms)


def layer_usage(
    masks: Sequence[Tensor],
    margins: Sequence[Tensor],
    terms: UsageTerms,
    mean: Callable[[Tensor], Tensor] = torch.mean,
) -> Tensor:
    """Return how far the sublayers are from what they are held to.

    Args:
        masks: (N, sublayers) for every block.
        margins: Logits of the probabilities, alike.
        terms: What is asked for. A unit is a block where units are to be diverse, a sublayer where each has a minimum.
        mean: See :func:`head_usage`.

    Returns:
        See :func:`head_usage`.
    """
    layers = torch.cat(list(masks), 1)
    blocks = torch.stack([mask.mean() for mask in masks])
    further = _further(blocks, layers.mean(0), torch.cat(list(margins), 1), terms)
    return (mean(layers) - terms.target).abs() + further


def token_usage(
    masks: Sequence[Tensor],
    margins: Sequence[Tensor],
    terms: UsageTerms,
    mean: Callable[[Tensor], Tensor] = torch.mean,
) -> Tensor:
    """Return how far the tokens are from what they are held to, those that always stay counted as well.

    Args:
        masks: (N, tokens) for every block.
        margins: Logits of the probabilities, alike.
        terms: What is asked for; a unit is a block of one image.
        mean: See :func:`head_usage`.

    Returns:
        ``(mean - target)^2`` and the further terms, 0-d, without the weight of the whole.
    """
    units = torch.cat([mask.mean(1) for mask in masks])
    further = _further(units, units, torch.cat(list(margins), 1), terms)
    return (mean(torch.cat(list(masks), 1)) - terms.target).square() + further


def _further(units: Tensor, least: Tensor, margins: Tensor, terms: UsageTerms) -> Tensor:
    """The terms that are rarely used, of shares that are to be diverse, shares with a minimum, and logits."""
    total = units.new_zeros(())
    if terms.diverse:
        total = total + terms.diverse * (units - terms.target).abs().mean()
    if terms.entropy:
        on, off = torch.sigmoid(margins), torch.sigmoid(-margins)
        entropy = -(on * on.clamp_min(_RARE).log() + off * off.clamp_min(_RARE).log())
        total = total - terms.entropy * entropy.mean()
    if terms.minimal_weight:
        total = total + terms.minimal_weight * torch.relu(terms.minimal - least).sum()
    return total


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, averaged over the batch.

    Args:
        student: Logits (N, classes).
        teacher: Logits (N, classes); no gradient is wanted for them.
        temperature: T, above 0.

    Returns:
        A 0-d tensor, 0 where both agree.
    """
    student_log = F.log_softmax(student / temperature, dim=1)
    teacher_probabilities = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(student_log, teacher_probabilities, reduction="batchmean") * temperature**2


def self_distillation_loss(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Return what the earlier exits have to learn from the last one: the sum of their distillation losses.

    Args:
        logits: (N, classes) for every exit, the teacher last; no gradient goes through the teacher.
        temperature: See :func:`distillation_loss`.
    """
    *students, teacher = logits
    teacher = teacher.detach()
    return torch.stack([distillation_loss(student, teacher, temperature) for student in students]).sum()
