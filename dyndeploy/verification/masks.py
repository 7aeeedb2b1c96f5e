"""Masks bit by bit: a bit may differ only where its decision is a tie up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dyndeploy.bundle import MaskInfo
from dyndeploy.bundle.reference_names import MARGIN
from dyndeploy.precisions import Tolerance
from dyndeploy.verification.report import Check
from dyndeploy.verification.tensors import Tensors


@dataclass(frozen=True)
class MaskBits:
    """Bits of all masks, compared.

    Attributes:
        bits: How many were compared.
        flipped: Those that differ although the decision was not close.
        tied: Those that differ where it was.
    """

    bits: int
    flipped: int
    tied: int

    def check(self, tolerance: Tolerance) -> Check:
        """A check that passes if no clear decision differs, and not too many close ones do."""
        allowed = tolerance.ties_allowed(self.bits)
        return Check(
            "masks",
            self.flipped == 0 and self.tied <= allowed,
            f"{self.bits} bits: {self.flipped} differ, {self.tied} more are ties of the two logits up to rounding "
            f"(at most {int(allowed)} may be)",
        )


def compare_masks(masks: Sequence[MaskInfo], got: Tensors, reference: Tensors, tolerance: Tolerance) -> MaskBits:
    """Compare masks that were made from the same inputs with the reference's."""
    bits = flipped = tied = 0
    for mask in masks:
        differs = got[mask.name] != reference[mask.name]
        bits += differs.size
        if not differs.any():
            continue
        margin = np.abs(reference[f"{MARGIN}{mask.name}"])
        close = margin <= tolerance.margin * max(float(margin.max()), 1e-6)
        flipped += int((differs & ~close).sum())
        tied += int((differs & close).sum())
    return MaskBits(bits, flipped, tied)
