"""Whether a runtime really leaves out the branch of ``If`` that is not taken: a measurement, kept as a record.

Nobody documents it reliably: ONNX Runtime's CPU provider skips, TensorRT moves layers that its graph compiler cannot
take out of the branch and always runs them. What was measured on a target decides whether blocks are exported as
branches for it (see :meth:`dyndeploy.targets.Target.takes_branches`).
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy import files
from dyndeploy.errors import InputError
from dyndeploy.fields import Document, Field

SCHEMA = 1
_DOCUMENT = Document("The record of 'dyndeploy probe'", "Probe again.", InputError)
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
        version: Version of that runtime.
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
        root = _DOCUMENT.root(value)
        return cls(
            target=root["target"].text(),
            runtime=root["runtime"].text(),
            version=root["version"].text(),
            device=root["device"].text(),
            standard=_times(root["standard"]),
            operators=root["operators"].optional(_times),
            note=root["note"].label(),
        )


def _times(item: Field) -> BranchTimes:
    return BranchTimes(item["taken"].positive(), item["not_taken"].amount())


def load_record(path: str | os.PathLike[str]) -> LazinessRecord:
    """Read a record; raises ``InputError``."""
    return LazinessRecord.from_json(files.read_json(path))
