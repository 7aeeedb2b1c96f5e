"""What verification finds: checks in words, errors of outputs, bits of masks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy.finite import number


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was checked.
        passed: Whether it is right.
        detail: The result in words.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class OutputDeviation:
    """How far one output is from PyTorch's.

    Attributes:
        output: Its name.
        max_error: Largest absolute error.
        relative_error: That over the largest magnitude of the reference.

    Both errors are infinite where one of the two is not finite.
    """

    output: str
    max_error: float
    relative_error: float

    def check(self, title: str, tolerance: float) -> Check:
        """A check that passes up to a relative error of ``tolerance``."""
        if math.isinf(self.relative_error):
            return Check(title, False, f"'{self.output}' or what it is compared with holds NaN or infinite values")
        return Check(
            title,
            self.relative_error <= tolerance,
            f"max error {self.max_error:.3g}, relative {self.relative_error:.3g}"
            + (" (shown, not held)" if math.isinf(tolerance) else f" (limit {tolerance:g})"),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; an error is null where the output or the reference is not finite."""
        return {
            "output": self.output,
            "max_error": number(self.max_error),
            "relative_error": number(self.relative_error),
        }


@dataclass(frozen=True)
class VerificationReport:
    """Result of :func:`verify_bundle`.

    Attributes:
        bundle: Path.
        checks: In the order they were made.
        outputs: Errors under equal masks.
        mask_bits: Compared bits.
        flipped_bits: Bits that differ although the decision was not close to a tie.
        tied_bits: Bits that differ where the two logits are equal up to rounding.
        native: Which code ran the dynamic operators.
    """

    bundle: str
    checks: tuple[Check, ...]
    outputs: tuple[OutputDeviation, ...] = ()
    mask_bits: int = 0
    flipped_bits: int = 0
    tied_bits: int = 0
    native: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"passed": self.passed, **asdict(self), "outputs": [output.to_json() for output in self.outputs]}
