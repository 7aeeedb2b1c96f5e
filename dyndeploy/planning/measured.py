"""Predictions that differ by less than their error are decided by measuring: plans against each other, on this CPU."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import onnx

from dyndeploy.bundle import MaskInfo
from dyndeploy.errors import UsageError
from dyndeploy.graphs.forced import PREFIX, forced_masks, replace_masks
from dyndeploy.graphs.inspect import all_nodes, is_dynamic
from dyndeploy.measure.steady import quick
from dyndeploy.planning.plan import Plan
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.native import operator_code
from dyndeploy.targets import load_target

_DRAWS = 3
_SESSIONS = 2  # Of the same graph: where its memory happens to lie is worth a per cent or two.
Progress = Callable[[str, float], None]


def measure_plans(
    plans: Sequence[Plan],
    *,
    rounds: int = 36,
    native: str | os.PathLike[str] = "auto",
    progress: Progress = lambda message, fraction: None,
) -> list[Plan]:
    """Export plans with random weights and time them in turn on this CPU, masks forced to their rate.

    Args:
        plans: Of one device and number of threads.
        rounds: Runs of each plan; the faster half counts. Draws of masks and sessions take turns.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        progress: Called with what is being done and the fraction done.

    Returns:
        The plans with :attr:`Plan.measured_ms`: CPU time of one thread, wall time of several; and with
        :attr:`Plan.measured_with`.

    Raises:
        UsageError: A plan for another device, or in INT8.
    """
    for plan in plans:
        require_measurable(plan.device, plan.precision)
    spent: list[list[float]] = [[] for _ in plans]
    with contextlib.ExitStack() as stack:
        runs, code = [], []
        for number, plan in enumerate(plans):
            progress(f"exporting plan {number + 1} of {len(plans)}", 0.7 * number / len(plans))
            own, used = _runs(plan, native, stack)
            runs.append(own)
            code.append(used)
        clock = time.thread_time_ns if plans[0].threads == 1 else time.perf_counter_ns
        for turn in range(rounds):
            progress(f"round {turn + 1} of {rounds}", 0.7 + 0.3 * turn / rounds)
            for times, calls in zip(spent, runs, strict=True):
                call = calls[turn % len(calls)]
                call()
                begin = clock()
                call()
                times.append((clock() - begin) / 1e6)
    return [
        replace(plan, measured_ms=quick(times), measured_with=used)
        for plan, times, used in zip(plans, spent, code, strict=True)
    ]


def require_measurable(device: str, precision: str = "fp32") -> None:
    """Raise ``UsageError`` for a device that is not this machine's CPU, or a precision that needs trained weights."""
    if precision == "int8":
        raise UsageError(
            "Plans in int8 are not measured: calibration needs trained weights and images. Leave --measure out, train "
            "what the plan says, 'dyndeploy quantize' it, and profile the bundle of 'export --precision int8'."
        )
    if device != "cpu":
        raise UsageError(
            f"Plans are measured on this machine, and '{device}' is another one. Leave --measure out, export what the "
            f"plan says, and measure it there: 'dyndeploy profile BUNDLE --device {device}'."
        )


def forced_graph(network: Any, input_size: tuple[int, int]) -> tuple[onnx.ModelProto, tuple[MaskInfo, ...]]:
    """Export a dynamic network for this CPU, batch 1, with its masks as inputs (:func:`replace_masks`)."""
    from dyndeploy.export import build_graph

    model, masks = build_graph(network, load_target("cpu"), 1, input_size, static=False)
    return replace_masks(model, masks), masks


def _runs(
    plan: Plan, native: str | os.PathLike[str], stack: contextlib.ExitStack
) -> tuple[list[Callable[[], None]], str | None]:
    """Runs of a plan on draws of masks, and which code its dynamic operators run in."""
    import torch

    from dyndeploy.nets import create_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = create_model(plan.network, **plan.options()).eval()
    network.run_dense(plan.dense)
    graph, masks = forced_graph(network, plan.input_size)
    sessions = [
        stack.enter_context(OnnxRuntimeSession(graph, threads=plan.threads or 1, native=native, in_order=True))
        for _ in range(_SESSIONS)
    ]
    image = sessions[0].inputs[0]
    pixels = np.random.default_rng(0).standard_normal(image.shape, np.float32)
    feeds = [
        {image.name: pixels, **{PREFIX + name: bits for name, bits in forced_masks(masks, plan.rate, draw).items()}}
        for draw in range(_DRAWS if masks else 1)
    ]
    used = operator_code(
        {node.op_type for node in all_nodes(graph.graph) if is_dynamic(node)}, asdict(sessions[0].info.native)
    )
    return [session.bind(feed, ["logits"]) for feed in feeds for session in sessions], used


def choose_measured(plans: Sequence[Plan], budget_ms: float | None = None) -> Plan:
    """The fastest of measured plans, or the one that computes most within the budget.

    Raises:
        UsageError: None meets the budget.
    """
    timed = [(plan.measured_ms, plan) for plan in plans if plan.measured_ms is not None]
    within = [(ms, plan) for ms, plan in timed if budget_ms is None or ms <= budget_ms]
    if not within:
        fastest = min(ms for ms, _ in timed)
        raise UsageError(f"No plan meets {budget_ms:g} ms when measured: the fastest takes {fastest:.2f} ms.")
    if budget_ms is not None:
        return max(within, key=lambda item: (item[1].macs, -item[0]))[1]
    return min(within, key=lambda item: item[0])[1]
