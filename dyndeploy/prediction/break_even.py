"""Where skipping can pay on a device: rates up to which dynamic blocks take no longer than their static twins.

Predicted for TensorRT, by the blocks of the network that ``targets/break_even.toml`` names. That file has what others
measured of the static network, too, beside which the whole dynamic one is predicted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dyndeploy import files
from dyndeploy.errors import UsageError
from dyndeploy.prediction.architectures import static_graph
from dyndeploy.prediction.estimate import load_device_model
from dyndeploy.prediction.kernels import Graph, GraphWalker
from dyndeploy.prediction.zoo import zoo_nodes
from dyndeploy.targets.devices import Device

_NETWORK = Path(__file__).parents[1] / "targets" / "break_even.toml"
_RUNTIME = "tensorrt"
_STEPS = 40
"""So many rates above 0 are tried."""

SHOWN = (1.0, 0.5, 0.25)
"""Rates whose latencies are told."""

BATCHES = (1, 8, 16, 32, 64)
"""Images of a run that GPUs are told of; boards run one."""


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


@dataclass(frozen=True)
class PublishedBreakEven:
    """The whole dynamic network, predicted, beside a published measurement of the static one.

    Attributes:
        batch: Images of a run.
        static_ms: Published latency of the static network, in ms per image.
        predicted_static_ms: The same as predicted, without a CUDA graph: no publication speaks of one.
        dynamic_ms: Predicted latency of the dynamic network by rate, for :data:`SHOWN`, in ms per image.
        rate: As of :class:`BreakEven`.
        runtime: What ran the static network.
        source: Who published it.
    """

    batch: int
    static_ms: float
    predicted_static_ms: float
    dynamic_ms: dict[float, float]
    rate: float | None
    runtime: str
    source: str


def network_title() -> str:
    """Return what the network is called."""
    return str(files.read_toml(_NETWORK)["title"])


def published_figures(device: str, precision: str) -> list[Mapping[str, Any]]:
    """Return what others measured of the static network: ``batch``, ``ms`` of the batch, ``runtime``, ``source``."""
    figures = files.read_toml(_NETWORK)["published"]
    return [figure for figure in figures if (figure["device"], figure["precision"]) == (device, precision)]


def break_even(device: str | Device, precision: str = "fp32", batch: int = 1) -> tuple[BreakEven, ...]:
    """Return the stages of the network, and last the sum of all, as stage ``"all"``.

    Args:
        device: A device that the predictor knows, or its name.
        precision: As of :func:`~dyndeploy.prediction.predict`.
        batch: Images of a run.

    Raises:
        UsageError: An unknown device or precision, no batch, or a device that is not calibrated.
    """
    static, dynamic = _latencies(device, precision, batch)
    stages = [part for part in dynamic[1.0] if part in static and part]
    found = []
    for chosen in [*([stage] for stage in stages), stages]:
        limit = sum(static[stage] for stage in chosen)
        by_rate = {rate: sum(parts[stage] for stage in chosen) for rate, parts in dynamic.items()}
        name = chosen[0] if len(chosen) == 1 else "all"
        found.append(BreakEven(name, limit, {rate: by_rate[rate] for rate in SHOWN}, _highest(by_rate, limit)))
    return tuple(found)


def published_break_even(device: str | Device, precision: str = "fp32") -> tuple[PublishedBreakEven, ...]:
    """Return the whole network at every batch at which others have published the static one's latency, if any.

    Args:
        device: As of :func:`break_even`.
        precision: Likewise.

    Raises:
        UsageError: As of :func:`break_even`.
    """
    name = load_device_model(device, precision, runtime=_RUNTIME).name
    found = []
    for figure in published_figures(name, precision):
        batch, limit = int(figure["batch"]), figure["ms"] / figure["batch"]
        _, dynamic = _latencies(device, precision, batch)
        by_rate = {rate: sum(parts.values()) for rate, parts in dynamic.items()}
        as_published = load_device_model(device, precision, runtime=_RUNTIME, graph=False)
        static = float(as_published.price(_graphs(precision, batch)[0].kernels)[0].sum()) / batch
        found.append(
            PublishedBreakEven(
                batch, limit, static, {rate: by_rate[rate] for rate in SHOWN}, _highest(by_rate, limit),
                figure["runtime"], figure["source"],
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda each: each.batch))


def where_it_cannot_pay(stages: Sequence[BreakEven]) -> tuple[str, ...]:
    """Return the stages, "all" among them, whose dynamic blocks take longer than the static ones at every rate."""
    return tuple(stage.stage for stage in stages if stage.rate is None)


def _highest(by_rate: Mapping[float, float], limit: float) -> float | None:
    return max((rate for rate, latency in by_rate.items() if latency <= limit), default=None)


def _latencies(
    device: str | Device, precision: str, batch: int
) -> tuple[dict[str, float], dict[float, dict[str, float]]]:
    """Milliseconds per image by stage, "" for all that stands in none: static, and dynamic by rate."""
    if batch < 1:
        raise UsageError(f"The batch must be at least 1, not {batch}.")
    model = load_device_model(device, precision, runtime=_RUNTIME)
    static, dynamic = _graphs(precision, batch)

    def parts(graph: Graph) -> dict[str, float]:
        ms = model.price(graph.kernels)[0] / batch
        stages = [kernel.block.rpartition(".")[0] if kernel.block else "" for kernel in graph.kernels]
        named = dict.fromkeys(stages)
        return {stage: float(sum(ms[np.array([each == stage for each in stages])])) for stage in named}

    return parts(static), {rate: parts(graph) for rate, graph in dynamic.items()}


@functools.lru_cache(maxsize=4)
def _graphs(precision: str, batch: int) -> tuple[Graph, Mapping[float, Graph]]:
    """The static network, and the dynamic one at every rate that is tried."""
    network = files.read_toml(_NETWORK)
    static = static_graph(network["static"], batch=batch, precision=precision, runtime=_RUNTIME)
    options: dict[str, Any] = {"mode": network["mode"], "granularity": tuple(network["granularity"])}
    walker = GraphWalker(zoo_nodes(network["dynamic"], options, batch=batch), precision=precision, runtime=_RUNTIME)
    return static, {step / _STEPS: walker.graph(step / _STEPS) for step in range(1, _STEPS + 1)}
