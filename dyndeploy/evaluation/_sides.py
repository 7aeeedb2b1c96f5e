"""The bundles of an evaluation, as processes that share the images open them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyndeploy.bundle import Bundle
from dyndeploy.bundle.folder import MANIFEST
from dyndeploy.chunks import Part
from dyndeploy.errors import UsageError
from dyndeploy.files import sha256
from dyndeploy.inference import Failure
from dyndeploy.runtimes.base import SessionInfo
from dyndeploy.runtimes.choice import RuntimeChoice


@dataclass(frozen=True)
class Side:
    """A bundle with what it runs in; it can be pickled.

    Attributes:
        path: Its folder.
        choice: What runs it.
        threads: Threads of each process.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        thresholds: Least confidence of every exit but the last; None without exits.
    """

    path: Path
    choice: RuntimeChoice
    threads: int
    native: str | os.PathLike[str]
    thresholds: Sequence[float] | None = None

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return Bundle.open(self.path)

    @property
    def options(self) -> dict[str, Any]:
        """What whoever opens the bundle is told."""
        return {"runtime": self.choice, "threads": self.threads, "native": self.native}

    def identity(self) -> dict[str, Any]:
        """All that its results depend on."""
        return {
            "manifest_sha256": sha256(self.path / MANIFEST),
            "runtime": self.choice.runtime,
            "threads": self.threads,
            "native": os.fspath(self.native),
            "thresholds": None if self.thresholds is None else list(filter(math.isfinite, self.thresholds)),
        }


def about(info: SessionInfo, code: str | None) -> dict[str, Any]:
    """What computed: fields of an evaluation's result, in plain JSON types."""
    return {
        "runtime": f"{info.runtime} {info.version}",
        "threads": info.threads,
        "precision": info.precision,
        "operators": code,
    }


def one_about(found: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What computed all chunks; raises ``UsageError`` where they differ, as after an update in between."""
    first, *others = found
    for other in others:
        if other != first:
            raise UsageError(
                f"Some of the images were run by something else: {dict(first)}, and {dict(other)}. Start again with a "
                "new folder of state."
            )
    return first


def telling(on_failure: Callable[[Failure], None]) -> Callable[[Part], None]:
    """Tell of each failure in what a chunk gave."""

    def tell(part: Part) -> None:
        for failure in part["failures"]:
            on_failure(Failure.from_json(failure))

    return tell
