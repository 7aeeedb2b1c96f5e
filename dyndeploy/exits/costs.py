"""What an image costs that leaves at an exit: counted, measured here, or taken from a profile of the device."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dyndeploy.bundle import Bundle
from dyndeploy.errors import UsageError
from dyndeploy.exits.scores import MACS, MS, ExitCosts
from dyndeploy.files import shown
from dyndeploy.measure.load_exits import load_exit_profile
from dyndeploy.measure.loop import Clock
from dyndeploy.runtimes import StagedSession
from dyndeploy.runtimes.native import bodies_note, operator_code

CostsOf = Callable[[StagedSession, str], ExitCosts]
"""Finds the cost of each exit of a session's bundle, which computes in a precision."""

_WARMUP = 3
_SECONDS = 3.0
_LEAST_ROUNDS, _MOST_ROUNDS = 11, 501


def counted_costs(session: StagedSession, precision: str) -> ExitCosts:
    """Multiply-accumulates per image, as the bundle counts them."""
    values = tuple(float(stage.macs) for stage in session.bundle.exits.stages)
    return ExitCosts(values, MACS, "the bundle's own count")


def measured_costs(session: StagedSession, precision: str) -> ExitCosts:
    """Milliseconds per image on this machine: every exit forced in turn, one image at a time, for a few seconds.

    A profile takes longer and tells more; see :func:`profiled_costs`.

    Raises:
        UsageError: The bundle runs whole batches only.
    """
    image = session.bundle.reference()[session.bundle.manifest.inputs[0].name][:1]
    runs: list[Callable[[], Any]] = [
        session.bind(image, stage=index) for index in range(len(session.bundle.exits.stages))
    ]
    clock = Clock(single_thread=session.info.threads == 1)
    seconds = sum(statistics.median(clock.visit(0, run, _WARMUP).ms) for run in runs) / 1000
    rounds = min(_MOST_ROUNDS, max(_LEAST_ROUNDS, math.ceil(_SECONDS / seconds)))
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, own in zip(runs, times, strict=True):
            own += clock.visit(0, run, 1).ms
    operators, used = session.bundle.manifest.operator_types, asdict(session.info.native)
    code = operator_code(operators, used)
    return ExitCosts(
        tuple(statistics.median(own) for own in times),
        MS,
        f"measured on this machine, {session.info.threads} thread(s){_said(code)}, median of {rounds} rounds",
        bodies_note(operators, used, session.info.provider),
    )


def profiled_costs(path: str | os.PathLike[str]) -> CostsOf:
    """Milliseconds per image from a profile of the bundle, e.g. one measured on a board.

    Args:
        path: A profile in JSON.

    Returns:
        Gives the costs for a session; it raises ``UsageError`` where the profile is of another network, other exits
        or another precision.

    Raises:
        InputError: The file is no profile of a network that exits early.
    """
    profile = load_exit_profile(path)

    def costs(session: StagedSession, precision: str) -> ExitCosts:
        bundle = session.bundle
        wanted = _identity(bundle, precision)
        found: dict[str, object] = {
            "network": profile.bundle["name"],
            "checkpoint": profile.bundle.get("checkpoint_sha256"),
            "precision": profile.bundle["precision"],
            "exits": tuple(entry.exit for entry in profile.exits),
            "MACs": tuple(entry.macs for entry in profile.exits),
        }
        for what, value in wanted.items():
            if found[what] != value:
                raise UsageError(
                    f"{path} was measured with {what} {found[what]}, the bundle {bundle.path} runs here with {what} "
                    f"{value}: thresholds hold for one network in one precision. Profile this bundle."
                )
        # From paired runs: what each exit takes relative to the whole network, which drifts less than milliseconds.
        milliseconds = tuple(entry.relative * profile.whole.median for entry in profile.exits)
        source = f"{shown(path)}, {profile.threads} thread(s){_said(profile.operator_code)}"
        return ExitCosts(milliseconds, MS, source, profile.bodies_note)

    return costs


def _said(code: str | None) -> str:
    return "" if code is None else f", operators: {code}"


def _identity(bundle: Bundle, precision: str) -> dict[str, object]:
    stages = bundle.exits.stages
    return {
        "network": bundle.manifest.network.name,
        "checkpoint": bundle.manifest.network.checkpoint_sha256,
        "precision": precision,
        "exits": tuple(stage.exit for stage in stages),
        "MACs": tuple(stage.macs for stage in stages),
    }
