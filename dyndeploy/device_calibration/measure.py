"""Measuring a graph whose nodes carry the group they belong to: times per group and draw of masks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from dyndeploy.device_calibration.graphs import MicroGraph, draw_masks
from dyndeploy.ops import OPERATORS
from dyndeploy.ops._geometry import active_pixels, bottleneck_geometry, needed_inputs
from dyndeploy.ops.graph import group_of, is_dynamic, operator_attributes, static_shapes
from dyndeploy.prediction import Rates
from dyndeploy.prediction.kernels import GraphWalker, Kernel
from dyndeploy.profiling.blocks import LabelledGraph
from dyndeploy.runtimes import NodeTime, OnnxRuntimeSession
from dyndeploy.runtimes.native import find_cpu_library

QUANTILE = 0.2
"""Of the times of a node: what interrupts a run makes it longer only, and a profile knows no CPU time."""

_PROBE_CHANNELS, _PROBE_SIDE = 64, 28
_MARK = re.compile(r"~(\d+)~")
Array = npt.NDArray[np.float32]


class Probe:
    """How fast the machine is at this moment: the time of a convolution that only computes.

    On a shared machine everything may take half as long again for some seconds, and a processor's clock changes. Times
    are therefore taken relative to this convolution, which runs between them, and stated at the speed that it has most
    of the time.

    Args:
        threads: Of the session.
    """

    def __init__(self, threads: int = 1) -> None:
        tensor, numbers = helper.make_tensor_value_info, np.random.default_rng(0)
        shape = (1, _PROBE_CHANNELS, _PROBE_SIDE, _PROBE_SIDE)
        weight = numbers.standard_normal((_PROBE_CHANNELS, _PROBE_CHANNELS, 3, 3), np.float32)
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
            "probe",
            [tensor("x", onnx.TensorProto.FLOAT, shape)],
            [tensor("y", onnx.TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        self._session = OnnxRuntimeSession(model, threads=threads, native="off")
        self._call = self._session.bind({"x": numbers.standard_normal(shape, np.float32)})
        # One thread's CPU time knows nothing of interruptions; that of several is not to be had.
        self._clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
        self()

    def __call__(self) -> float:
        """Milliseconds, now."""
        times = []
        for _ in range(3):
            begin = self._clock()
            self._call()
            times.append((self._clock() - begin) / 1e6)
        return max(sorted(times)[1], 1e-4)

    def close(self) -> None:
        """Free the session."""
        self._session.close()


@dataclass(frozen=True)
class Measurement:
    """What was measured of one graph.

    Attributes:
        samples: Its kernels.
        probe_ms: What the probe took meanwhile (median): the speed at which the samples' times hold.
    """

    samples: tuple[Sample, ...]
    probe_ms: float

    def at(self, probe_ms: float) -> list[Sample]:
        """The samples at another speed."""
        return [replace(sample, ms=sample.ms * probe_ms / self.probe_ms) for sample in self.samples]


@dataclass(frozen=True)
class Sample:
    """One measured kernel.

    Attributes:
        kernel: At the rates of the masks that were drawn.
        ms: Milliseconds per run.
        spread: Interquartile range of the runs over their median.
        resident_bytes: Weights that the whole graph touches in a run: what competes for the caches.
    """

    kernel: Kernel
    ms: float
    spread: float
    resident_bytes: float


def block_rates(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Rates]:
    """What masks make of the dynamic operators: active fractions by group, with the true dilation.

    Args:
        model: A graph whose operators take their masks from inputs.
        feeds: The masks by input name.
    """
    shapes = static_shapes(model)
    result = {}
    for node in model.graph.node:
        if not is_dynamic(node):
            continue
        spec = OPERATORS[node.op_type]
        masks = {port: feeds[node.input[spec.input_index(port)]] for port in spec.mask_inputs()}
        spatial = next((mask for mask in masks.values() if mask.ndim == 4), None)
        channel = next((mask for mask in masks.values() if mask.ndim == 2), None)
        if not masks:
            continue
        first, share = None, 1.0
        if spatial is not None:
            weights = [shapes[name] for name in node.input[1 + len(masks) :]]
            geometry = bottleneck_geometry(spec.name, shapes[node.input[0]], weights, operator_attributes(node))
            active = active_pixels(spatial, geometry)
            share = float(active.mean())
            first = float(needed_inputs(active, geometry).mean()) if spatial.size > spatial.shape[0] else share
        result[group_of(node.name)] = Rates(
            spatial=share, channel=1.0 if channel is None else float(channel.mean()), conv1=first
        )
    return result


def group_matrix(graph: LabelledGraph, session: OnnxRuntimeSession, runs: Sequence[int]) -> dict[str, Array]:
    """Times of every group in milliseconds, one per run.

    What the runtime inserted on its own has no label. A change of layout goes to a group that it has replaced, else to
    the convolution that it was made for.

    Args:
        graph: What the session runs.
        session: It recorded ``runs``.
        runs: Numbers of runs.
    """
    recorded = [session.node_times(slice(run, run + 1)) for run in runs]
    owners = _owners(recorded[0])
    times = {group: np.zeros(len(runs), np.float32) for group in graph.groups}
    for index, nodes in enumerate(recorded):
        for owner, node in zip(owners, nodes, strict=True):
            if owner is not None:
                times[graph.groups[owner]][index] += node.microseconds / 1000
    return times


def _owners(nodes: Sequence[NodeTime]) -> list[int | None]:
    """Number of the group that each node belongs to; None where the graph has none."""
    found = [_MARK.search(node.name) for node in nodes]
    labels = [None if match is None else int(match.group(1)) for match in found]
    present = {label for label in labels if label is not None}
    owners = list(labels)
    for index, label in enumerate(labels):
        if label is not None:
            continue
        before = next((item for item in reversed(owners[:index]) if item is not None), -1)
        after = next((item for item in labels[index + 1 :] if item is not None), None)
        replaced = [number for number in range(before + 1, after or 0) if number not in present]
        if replaced:
            owners[index] = replaced[0]
        elif after is not None and nodes[index].op_type == "ReorderInput":
            owners[index] = after
        else:
            owners[index] = before if before >= 0 else after
    return owners


def feeds_of(graph: MicroGraph, draws: int, seed: int) -> list[dict[str, Array]]:
    """Inputs of ``draws`` runs."""
    random = np.random.default_rng((seed, graph.seed))
    image = random.standard_normal(graph.shape, np.float32)
    return [{"input": image, **draw_masks(graph.masks, random)} for _ in range(draws if graph.masks else 1)]


def measure(
    graph: MicroGraph,
    probe: Probe,
    *,
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
    draws: int = 3,
    runs: int = 8,
    warmup: int = 1,
    seed: int = 0,
) -> Measurement:
    """Run a graph and return its kernels with their times.

    A group that the walker sees as several kernels is left out: its time cannot be told apart.

    Args:
        graph: What to measure.
        probe: Tells how fast the machine is meanwhile.
        threads: Of the session.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        draws: Draws of masks; they take turns, so that no run finds the channels of the last one in the cache.
        runs: Of every draw; a graph without masks gets half as many again.
        warmup: Further runs of every draw before that.
        seed: Of the masks.
    """
    bodies = native == "off" or (native == "auto" and find_cpu_library() is None)
    labelled = LabelledGraph(graph.model, bodies=bodies)
    feeds = feeds_of(graph, draws, seed)
    outputs = [value.name for value in graph.model.graph.output][-1:]
    rounds = runs if graph.masks else runs * 3 // 2
    with OnnxRuntimeSession(labelled.model, threads=threads, native=native, profile=True) as session:
        calls = [session.bind(feed, outputs) for feed in feeds]
        speeds = timed_rounds(calls, calls[-1], probe, warmup=warmup, rounds=rounds)
        times = group_matrix(labelled, session, timed_runs(len(calls), warmup=warmup, rounds=rounds))
    probe_ms = float(np.median(speeds))
    correction = np.repeat(probe_ms / speeds, len(calls))
    walker = GraphWalker(graph.model)
    graphs = [walker.graph(block_rates(graph.model, feed)) for feed in feeds]
    steady = {group: ms * correction for group, ms in times.items()}
    return Measurement(tuple(_samples([g.kernels for g in graphs], steady)), probe_ms)


def timed_rounds(
    calls: Sequence[Callable[[], None]], settle: Callable[[], None], probe: Probe, *, warmup: int, rounds: int
) -> Array:
    """Run all calls in turn, with the probe between the rounds.

    Args:
        calls: What is timed.
        settle: Runs once after each probe, uncounted, and brings the network's data back into the caches.
        probe: Tells how fast the machine is.
        warmup: Rounds before, without the probe.
        rounds: Rounds that count.

    Returns:
        The probe's time of every round, the mean of just before and just after, (rounds,).
    """
    for _ in range(warmup):
        for call in calls:
            call()
    speeds = [probe()]
    for _ in range(rounds):
        settle()
        for call in calls:
            call()
        speeds.append(probe())
    edges = np.array(speeds, np.float32)
    means: Array = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
    return means


def timed_runs(calls: int, *, warmup: int, rounds: int) -> list[int]:
    """Numbers of the runs that count, where all of :func:`timed_rounds` ran in one session."""
    first = warmup * calls
    return [first + number * (calls + 1) + 1 + call for number in range(rounds) for call in range(calls)]


def _samples(graphs: Sequence[Sequence[Kernel]], times: Mapping[str, Array]) -> Iterator[Sample]:
    """Samples of every kernel that is alone in its group; a kernel that no mask changes is one sample."""
    members: dict[str, list[int]] = {}
    for index, kernel in enumerate(graphs[0]):
        members.setdefault(group_of(kernel.name), []).append(index)
    resident = [float(sum(kernel.weight_bytes for kernel in kernels)) for kernels in graphs]
    for group, positions in members.items():
        if len(positions) != 1:
            continue
        kernels = [graph[positions[0]] for graph in graphs]
        draws: dict[tuple[Any, ...], list[int]] = {}
        for number, kernel in enumerate(kernels):
            draws.setdefault((kernel.macs, kernel.weight_bytes, *kernel.features.values()), []).append(number)
        turn = np.arange(len(times[group])) % len(graphs)
        for same in draws.values():
            low, ms, high = np.quantile(times[group][np.isin(turn, same)], [0.25, QUANTILE, 0.75])
            if ms > 0:
                touched = float(np.mean([resident[number] for number in same]))
                yield Sample(kernels[same[0]], float(ms), float((high - low) / ms), touched)
