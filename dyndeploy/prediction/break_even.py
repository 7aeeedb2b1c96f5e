"""Where skipping can pay on a device: rates up to which a dynamic block takes no longer than its static twin.

Predicted, at batch 1, by the blocks of the network that ``targets/break_even.toml`` names.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyndeploy import files
from dyndeploy.prediction.estimate import predict
from dyndeploy.prediction.results import Prediction

_NETWORK = Path(__file__).parents[1] / "targets" / "break_even.toml"
_STEPS = 40
"""So many rates above 0 are tried."""

SHOWN = (1.0, 0.5, 0.25)
"""Rates whose latencies are told."""


@dataclass(frozen=True)
class BreakEven:
    """The dynamic blocks of one stage beside their static twins.

    Attributes:
        stage: Dotted name of the stage.
        static_ms: Predicted latency of the static blocks, in ms per image.
        dynamic_ms: Predicted latency of the dynamic blocks by rate, for :data:`SHOWN`.
        rate: Highest rate, in steps of 1/40, at which the dynamic blocks take no longer than the static ones; None
            where they take longer at every rate.
    """

    stage: str
    static_ms: float
    dynamic_ms: dict[float, float]
    rate: float | None


def network_title() -> str:
    """Return what the network is called."""
    return str(files.read_toml(_NETWORK)["title"])


def break_even(device: str, precision: str = "fp32") -> tuple[BreakEven, ...]:
    """Return the stages of the network, and last the sum of all, as stage ``"all"``.

    Args:
        device: Name of a device that the predictor knows.
        precision: As of :func:`~dyndeploy.prediction.predict`.

    Raises:
        UsageError: An unknown device or precision, or a device that is not calibrated.
    """
    network = files.read_toml(_NETWORK)
    predicted = functools.partial(predict, device=device, precision=precision, batch=1)
    static = predicted(network["static"])
    rates = [step / _STEPS for step in range(1, _STEPS + 1)]
    options: dict[str, Any] = {"mode": network["mode"], "granularity": network["granularity"]}
    dynamic = {rate: predicted(network["dynamic"], rate=rate, **options) for rate in rates}
    stages = dict.fromkeys(_stage(block.name) for block in dynamic[1.0].blocks if block.mode != "static")
    found = []
    for chosen in [*((stage,) for stage in stages), tuple(stages)]:
        limit = _latency(static, chosen)
        by_rate = {rate: _latency(prediction, chosen) for rate, prediction in dynamic.items()}
        paying = [rate for rate, latency in by_rate.items() if latency <= limit]
        found.append(
            BreakEven(
                chosen[0] if len(chosen) == 1 else "all",
                limit,
                {rate: by_rate[rate] for rate in SHOWN},
                max(paying, default=None),
            )
        )
    return tuple(found)


def _stage(block: str) -> str:
    return block.rpartition(".")[0]


def _latency(prediction: Prediction, stages: tuple[str, ...]) -> float:
    return sum(block.latency_ms for block in prediction.blocks if _stage(block.name) in stages)
