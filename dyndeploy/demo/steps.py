"""What the demos share: steps that are announced and timed."""

from __future__ import annotations

import time
from collections.abc import Callable

from dyndeploy.errors import VerificationError
from dyndeploy.verification import VerificationReport

Step = Callable[[str], None]


class Clock:
    """Announces steps and keeps how long each took.

    Args:
        step: Called with a line at the start of each step.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._seconds: dict[str, float] = {}
        self._current = ""
        self._since = 0.0

    def start(self, name: str, message: str) -> None:
        """Begin a step, which ends the one before."""
        self.finish()
        self._step(message)
        self._current, self._since = name, time.perf_counter()

    def finish(self) -> dict[str, float]:
        """End the last step; gives the seconds of each by name."""
        if self._current:
            self._seconds[self._current] = time.perf_counter() - self._since
        return self._seconds


def require_verified(path: object, verification: VerificationReport) -> None:
    """Raise ``VerificationError`` with what failed, unless nothing did."""
    if not verification.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in verification.checks if not check.passed)
        raise VerificationError(f"The demo's bundle {path} does not compute what PyTorch computed ({failed}).")
