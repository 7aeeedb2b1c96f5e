"""How a server batches, queues and times out: from what a profile measured, or as stated without one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dyndeploy import files
from dyndeploy.bundle import MODEL, STATIC, Bundle
from dyndeploy.errors import InputError, UsageError
from dyndeploy.serving.text_format import Word

WAITS_BATCHES = {1: 8, 2: 32, 3: 256}
"""How long a request of each priority may wait in Triton's queue, in times of the largest batch; 1 comes first."""
DEFAULT_PRIORITY = 2
STATED_MS = 30.0
"""What an image is taken to cost, in milliseconds, where no profile says it."""
DELAY_SHARE = 0.1
"""Share of a batch's time that the first request of a batch of fixed size waits for others."""
LARGEST_BATCH = 8
"""Images of a batch, and of a request, where the bundle fixes no larger batch."""
AHEAD_SECONDS = 1.0
"""Work that an instance takes from Triton's queue ahead. Release 2.51 looks only twice a second whether a busy instance
takes more again, so that less would leave it idle."""


@dataclass(frozen=True)
class Policy:
    """How requests for a bundle are served.

    Attributes:
        max_batch: Most images of a request, and of a batch that Triton makes of several.
        images_at_once: Images that the runtime runs together: the batch of the graph, or of open ones the largest.
        padded: Whether a batch is filled up to that, so that waiting for more images pays; others join on their way.
        ms: Of an image, in a batch of ``images_at_once``.
        instances: Processes that serve the model.
        threads: Threads that compute in each.
        source: Where that comes from, in words.
    """

    max_batch: int
    images_at_once: int
    padded: bool
    ms: float
    instances: int
    threads: int
    source: str

    @property
    def batch_ms(self) -> float:
        """Milliseconds of the largest batch."""
        return self.ms * self.max_batch

    @property
    def in_flight(self) -> int:
        """Images that an instance takes from Triton's queue at most."""
        return max(2 * self.max_batch, math.ceil(1000 * AHEAD_SECONDS / self.ms))

    def dynamic_batching(self) -> dict[str, Any]:
        """Fields of ``dynamic_batching``: each priority has a time to wait, and a queue of what is served by then."""
        levels = [{"key": level, "value": self._queue(level)} for level in WAITS_BATCHES]
        delay_ms = DELAY_SHARE * self.ms * self.images_at_once if self.padded else 0.0
        return {
            **({"preferred_batch_size": [self.images_at_once]} if self.padded else {}),
            "max_queue_delay_microseconds": round(1000 * delay_ms),
            "priority_levels": len(WAITS_BATCHES),
            "default_priority_level": DEFAULT_PRIORITY,
            "priority_queue_policy": levels,
        }

    def _queue(self, level: int) -> dict[str, Any]:
        waits_ms = WAITS_BATCHES[level] * self.batch_ms
        return {
            "timeout_action": Word("REJECT"),
            "default_timeout_microseconds": round(1000 * waits_ms),
            "allow_timeout_override": True,
            "max_queue_size": math.ceil(waits_ms / self.ms * self.instances),
        }


def make_policy(
    bundle: Bundle,
    measured: Measured | None,
    *,
    processors: int,
    instances: int | None = None,
    threads: int | None = None,
) -> Policy:
    """Decide how a bundle is served.

    Args:
        bundle: What is served.
        measured: Its profile; None takes :data:`STATED_MS`, one instance and one thread.
        processors: Of the server, for CPUs: as many instances compute there as have processors for all their threads.
        instances: In the place of what follows from the profile.
        threads: The same; a profile holds for its own number of threads.

    Raises:
        UsageError: ``threads`` is not what was profiled.
    """
    manifest = bundle.manifest
    fixed = manifest.exits is None or not manifest.exits.dynamic_batch
    images_at_once = manifest.batch if fixed else LARGEST_BATCH
    max_batch, padded = max(LARGEST_BATCH, images_at_once), fixed and images_at_once > 1
    if measured is None:
        source = (
            f"stated, not measured: {STATED_MS:g} ms per image, 1 instance, 1 thread (--from PROFILE.json measures)"
        )
        return Policy(max_batch, images_at_once, padded, STATED_MS, instances or 1, threads or 1, source)
    if threads not in (None, measured.threads):
        raise UsageError(
            f"{measured.path} was measured with {measured.threads} threads, not {threads}. Profile with --threads "
            f"{threads}, or leave it out."
        )
    many = max(1, processors // measured.threads) if measured.on_cpu else 1
    source = (
        f"{measured.ms:.3g} ms per image, measured on {measured.device} with {measured.threads} threads "
        f"({measured.path}); {processors} processors"
    )
    return Policy(max_batch, images_at_once, padded, measured.ms, instances or many, measured.threads, source)


@dataclass(frozen=True)
class Measured:
    """What a policy takes from a profile.

    Attributes:
        path: Of its file.
        ms: Of an image with the data's own masks, or of the exits' mix of the data (the last exit where there is none).
        threads: That computed.
        device: Name of the device.
        files: Checksums of the graphs that were measured, by name in the bundle.
    """

    path: str
    ms: float
    threads: int
    device: str
    files: Mapping[str, str]

    @property
    def on_cpu(self) -> bool:
        """Whether a CPU was measured."""
        return self.device == "cpu"

    def is_of(self, bundle: Bundle) -> bool:
        """Whether a bundle holds the graphs that were measured."""
        known = bundle.manifest.files
        return bool(self.files) and all(known.get(name) == sha256 for name, sha256 in self.files.items())


def read_measured(path: str | os.PathLike[str]) -> Measured:
    """Read a profile of ``dyndeploy profile BUNDLE --json FILE``.

    Raises:
        InputError: It is missing, no profile of a bundle, or of another release.
    """
    # Only who gives a profile waits for PyTorch to be imported.
    from dyndeploy.measure import load_profile
    from dyndeploy.measure.exits import KIND as EXITS
    from dyndeploy.measure.load_exits import load_exit_profile
    from dyndeploy.measure.profile import DATA
    from dyndeploy.measure.profile import KIND as RATES

    value = files.read_json(path)
    kind = value.get("kind") if isinstance(value, dict) else None
    shown = files.shown(path)
    if kind == RATES:
        rates = load_profile(path)
        ms = rates.data.samples.median / rates.batch
        return Measured(shown, ms, rates.threads, rates.device, _graphs(rates.bundle))
    if kind == EXITS:
        exits = load_exit_profile(path)
        mix = next((mix.mean_ms for mix in exits.mixes if mix.name == DATA), exits.paired_ms(exits.exits[-1]))
        return Measured(shown, mix, exits.threads, exits.device, _graphs(exits.bundle))
    raise InputError(f"{path} is no profile of a bundle. Write one with 'dyndeploy profile BUNDLE --json FILE'.")


def _graphs(facts: Mapping[str, Any]) -> dict[str, str]:
    named = {MODEL: facts.get("model_sha256"), STATIC: facts.get("static_sha256")}
    return {name: str(sha256) for name, sha256 in named.items() if sha256}
