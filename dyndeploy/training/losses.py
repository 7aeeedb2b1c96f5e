"""Losses: the FLOPs budget of LAUDNet with bounds per block, distillation, and the exits of Dyn-Perceiver.

References: "Latency-Aware Unified Dynamic Networks for Efficient Image Recognition" (Han et al., TPAMI 2024),
"Dynamic Perceiver for Efficient Visual Recognition" (Han et al., ICCV 2023), and their reference codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Bounds(NamedTuple):
    """The range that the FLOPs ratio of every block is held in."""

    lower: float
    upper: float


def block_bounds(target: float, progress: float, until: float = 0.33) -> Bounds:
    """Return the bounds on the blocks' FLOPs ratios.

    They start tight around the target, so that no block learns to be always or never computed before its
    features are worth anything, and open along a squared cosine to [0, 1].

    Args:
        target: FLOPs ratio aimed at, in (0, 1].
        progress: Epoch divided by epochs, in [0, 1].
        until: Progress at which nothing is bounded any more, above 0.
    """
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
