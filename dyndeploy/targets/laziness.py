"""Whether a runtime really leaves out the branch of ``If`` that is not taken: a measurement, kept as a record.

Nobody documents it reliably: ONNX Runtime's CPU provider skips, TensorRT moves layers that its graph compiler cannot
take out of the branch and always runs them. What decides how blocks are skipped is therefore measured on the target.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy import files
from dyndeploy.errors import InputError
from dyndeploy.targets.platforms import Target

SCHEMA = 1
LAZY_BELOW = 0.25
"""A branch counts as skipped if leaving it takes less than this fraction of taking it."""


@dataclass(frozen=True)
class BranchTimes:
    """Median milliseconds of a graph whose work is all in one branch of ``If``.

    Attributes:
        taken: The branch runs.
        not_taken: The other branch, which copies its input, runs.
    """

    taken: float
    not_taken: float

    @property
    def ratio(self) -> float:
        """Time of leaving the branch over time of taking it."""
        return self.not_taken / self.taken

    @property
    def lazy(self) -> bool:
        """Whether the branch is really skipped."""
        return self.ratio < LAZY_BELOW


@dataclass(frozen=True)
class LazinessRecord:
    """What ``dyndeploy probe`` found.

    Attributes:
        target: Name of the target.
        runtime: Which runtime was measured.
        version: Of it.
        device: What it ran on.
        standard: A branch of convolutions.
        operators: A branch of dynamic operators (plugins, native kernels or function bodies); None if there was no
            way to run them.
        note: Why ``operators`` is None, or which code ran them.
    """

    target: str
    runtime: str
    version: str
    device: str
    standard: BranchTimes
    operators: BranchTimes | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, with the conclusions."""
        branches = {"standard": self.standard, "operators": self.operators}
        conclusions = {f"{name}_lazy": None if branch is None else branch.lazy for name, branch in branches.items()}
        return {"schema": SCHEMA, **asdict(self), **conclusions}

    @classmethod
    def from_json(cls, value: Any) -> LazinessRecord:
        """Parse what :meth:`to_json` wrote; raises ``InputError`` that says what is wrong."""
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise InputError("This is no record of 'dyndeploy probe' that this release can read. Probe again.")
        try:
            texts = {key: str(value[key]) for key in ("target", "runtime", "version", "device", "note")}
            operators = value["operators"]
            return cls(
                **texts,
                standard=_times(value["standard"]),
                operators=None if operators is None else _times(operators),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The record of 'dyndeploy probe' is malformed ({error}). Probe again.") from error


def _times(value: Any) -> BranchTimes:
    taken, not_taken = float(value["taken"]), float(value["not_taken"])
    if not (0 < taken < math.inf and 0 <= not_taken < math.inf):
        raise ValueError(f"times {taken} and {not_taken} ms")
    return BranchTimes(taken, not_taken)


def load_record(path: str | os.PathLike[str]) -> LazinessRecord:
    """Read a record; raises ``InputError``."""
    return LazinessRecord.from_json(files.read_json(path))


@dataclass(frozen=True)
class LayerSkipping:
    """How whole blocks are skipped on a target.

    Attributes:
        how: ``"plugin"`` (the operator skips inside), ``"if"`` (a branch of the graph) or ``"staged"`` (one engine or
            session per stage, the host decides).
        reason: One clause.
    """

    how: str
    reason: str


def layer_skipping(target: Target, record: LazinessRecord | None = None) -> LayerSkipping:
    """Choose how blocks are skipped on a target.

    The operator that skips inside is the default wherever it exists: it needs neither the host nor the runtime's
    goodwill, and it can be part of a CUDA graph. Without one, ``If`` is chosen only if a record of this target shows
    that it skips.

    Args:
        target: The target.
        record: Of ``dyndeploy probe`` for it, or None.

    Raises:
        InputError: The record is of another target.
    """
    if record is not None and record.target != target.name:
        raise InputError(
            f"The record was made for {record.target}, not for {target.name}. Run 'dyndeploy probe --target "
            f"{target.name}'."
        )
    measured = "not probed" if record is None else f"If measured: leaving a branch takes {record.standard.ratio:.0%}"
    if target.operator_kernels:
        return LayerSkipping("plugin", f"the operator skips inside ({measured})")
    if record is None:
        return LayerSkipping("staged", "no operator for this target, and whether If skips was not probed")
    if record.standard.lazy:
        return LayerSkipping("if", measured)
    return LayerSkipping("staged", f"{measured} of taking it")
