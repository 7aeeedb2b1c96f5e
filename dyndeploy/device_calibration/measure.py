"""Measuring a graph whose nodes carry the group they belong to: times per group and draw of masks."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from dyndeploy.device_calibration.graphs import MicroGraph, draw_masks, micro_graph
from dyndeploy.graphs.inspect import group_of, is_dynamic, operator_attributes
from dyndeploy.graphs.labels import LabelledGraph, group_number
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.measure.steady import quick
from dyndeploy.ops import OPERATORS
from dyndeploy.prediction import Rates
from dyndeploy.prediction.kernels import REORDER, GraphWalker, Kernel, reorder_kernel
from dyndeploy.runtimes import NodeTime, OnnxRuntimeSession
from dyndeploy.runtimes.native import find_cpu_library

_REFERENCE = ("residual", 7077)  # Family and seed.
_LEAST_MS = 0.0002  # Of a node, once the profile's own cost is taken off.
_OPENING = 1 / 3
LEAST_GRAPHS = 4
"""However short the time: less cannot be fitted."""

_LEAST_ROUNDS = 3
_SLICE_MS = 3.0  # For which a busy system lets a process run before it lets another one.
_MOST_LUCK = 1.3  # By which kernels become longer, at most.
_SETTLE_MS = 5.0
_MOST_SETTLING = 20
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measurement:
    """What was measured of one graph.

    Attributes:
        samples: Its kernels.
        pace_ms: What the reference graph took meanwhile: the speed at which the times hold.
    """

    samples: tuple[Sample, ...]
    pace_ms: float

    def at(self, pace_ms: float) -> list[Sample]:
        """The samples at another speed."""
        return [replace(sample, ms=sample.ms * pace_ms / self.pace_ms) for sample in self.samples]


@dataclass(frozen=True)
class Sample:
    """One measured kernel.

    Attributes:
        kernel: At the rates of the masks that were drawn.
        ms: Milliseconds per run.
        spread: Interquartile range of the runs over the time.
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
        if not masks:
            continue
        rates = spec.achieved_rates([shapes[name] for name in node.input], operator_attributes(node), masks)
        result[group_of(node.name)] = Rates(**rates)
    return result


class ProfileCosts(NamedTuple):
    """What recording a profile costs on this machine, for every node.

    Attributes:
        inside: Milliseconds that are part of the time that is stated for a node.
        outside: Milliseconds of processor time between the stated times, the runtime's own steps included.
    """

    inside: float
    outside: float


@functools.lru_cache(maxsize=1)
def profile_costs(nodes: int = 100, runs: int = 200) -> ProfileCosts:
    """Measure what ONNX Runtime's profile costs.

    Of a chain of tiny nodes, with a profile and without: one to two microseconds a node, a tenth of a small network.
    """
    tensor = helper.make_tensor_value_info
    chain = helper.make_graph(
        [helper.make_node("Neg" if i % 2 else "Abs", [f"x{i}"], [f"x{i + 1}"], name=f"n{i}") for i in range(nodes)],
        "chain",
        [tensor("x0", onnx.TensorProto.FLOAT, (256,))],
        [tensor(f"x{nodes}", onnx.TensorProto.FLOAT, (256,))],
    )
    model = helper.make_model(chain, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {"x0": np.ones(256, np.float32)}
    plain_ms, spent_ms = [], []
    with (
        OnnxRuntimeSession(model, native="off") as plain,
        OnnxRuntimeSession(model, native="off", profile=True) as profiled,
    ):
        call, recorded = plain.bind(feed), profiled.bind(feed)
        for _ in range(runs):
            begin = time.thread_time_ns()
            recorded()
            spent_ms.append((time.thread_time_ns() - begin) / 1e6)
            begin = time.thread_time_ns()
            call()
            plain_ms.append((time.thread_time_ns() - begin) / 1e6)
        stated = [sum(node.microseconds for node in profiled.node_times(slice(n, n + 1))) for n in range(1, runs)]
    inside = max(quick(stated) / 1000 - quick(plain_ms), 0.0)
    outside = max(quick(spent_ms) - (quick(stated) / 1000 - inside), 0.0)
    return ProfileCosts(inside / nodes, outside / nodes)


_REORDERS = {"ReorderInput": True, "ReorderOutput": False}
"""Conversions of layouts by operator, and whether into blocks."""


@dataclass(frozen=True)
class ReorderTimes:
    """A conversion of a map's layout that the runtime inserted.

    Attributes:
        inward: From plain to blocked.
        shape: Of the map, (batch, channels, height, width).
        group: That it counts for.
        ms: Milliseconds, one per run.
    """

    inward: bool
    shape: tuple[int, ...]
    group: str
    ms: Array


def group_matrix(
    graph: LabelledGraph, session: OnnxRuntimeSession, runs: Sequence[int]
) -> tuple[dict[str, Array], list[ReorderTimes]]:
    """Times of every group in milliseconds, one per run, and of the conversions of layouts among them.

    What the runtime inserted on its own has no label. A change of layout goes to a group that it has replaced, else to
    the convolution that it was made for.

    Args:
        graph: What the session runs.
        session: It recorded ``runs``.
        runs: Numbers of runs.
    """
    cost = profile_costs().inside
    recorded = [session.node_times(slice(run, run + 1)) for run in runs]
    owners = _owners(recorded[0])
    times = {group: np.zeros(len(runs), np.float32) for group in graph.groups}
    each = np.array([[max(node.microseconds / 1000 - cost, _LEAST_MS) for node in nodes] for nodes in recorded])
    reorders = []
    for owner, node, ms in zip(owners, recorded[0], each.T.astype(np.float32), strict=True):
        if owner is None:
            continue
        times[graph.groups[owner]] += ms
        if node.op_type in _REORDERS and len(node.shape) == 4:
            reorders.append(ReorderTimes(_REORDERS[node.op_type], node.shape, graph.groups[owner], ms))
    return times, reorders


def _owners(nodes: Sequence[NodeTime]) -> list[int | None]:
    """Number of the group that each node belongs to; None where the graph has none."""
    labels = [group_number(node.name) for node in nodes]
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


@dataclass(frozen=True)
class Subject:
    """A graph with the inputs that it is timed with.

    Attributes:
        model: Every node is named ``"<group>/<operator>"``.
        feeds: Inputs, one run each in a round.
        outputs: What is asked for.
        whole: Time whole runs too, in a session without a profile.
    """

    model: onnx.ModelProto
    feeds: Sequence[Mapping[str, Array]]
    outputs: Sequence[str]
    whole: bool = False


@dataclass(frozen=True)
class Times:
    """Times of a subject in milliseconds.

    Attributes:
        groups: By group, each (rounds, feeds), from the profile: wall time.
        whole: Of whole runs, (rounds, feeds), CPU time of the calling thread where one thread computes; (0, feeds) if
            they were not asked for.
        pace_ms: What the reference graph took meanwhile.
        reorders: Conversions of layouts, which are part of the groups' times.
        feeds: Inputs of a round.
    """

    groups: Mapping[str, Array]
    whole: Array
    pace_ms: float
    reorders: Sequence[ReorderTimes] = ()
    feeds: int = 1

    def alone(self) -> dict[str, Array]:
        """Times of the groups without conversions of layouts, each (rounds, feeds)."""
        groups = {name: ms.copy() for name, ms in self.groups.items()}
        for reorder in self.reorders:
            groups[reorder.group] -= reorder.ms.reshape(-1, self.feeds)
        return groups


def time_in_turn(
    subjects: Sequence[Subject],
    *,
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
    rounds: int = 9,
    seconds: float = math.inf,
    progress: Callable[[], None] = lambda: None,
) -> list[Times]:
    """Time graphs in turn, round by round, all of them kept in memory.

    Runs one after the other share the mood of the machine, and so does their fastest. Runs of one graph that are spread
    over the time that all graphs take do not: the faster half of ten is then repeatable to 2 %, where ten in a row are
    to 4 or 6 % (measured on a shared 2-core machine). What still changes from one call to the next, a graph that
    is the same in all of them tells: bottlenecks, convolutions and maskers of all sizes slow down differently, and one
    convolution in its stead stood for them badly.

    Args:
        subjects: What is timed.
        threads: Of every session.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        rounds: Runs of every graph with every input that count. Before each turn of a graph it runs uncounted for some
            milliseconds, which brings its data back into the caches.
        seconds: Time for all of it, about: no graph is opened after a third of it, and no round begun after the rest,
            but for the first graphs and rounds.
        progress: Called after every graph that was opened, and every round.

    Returns:
        Times of the graphs that were opened, from the first.
    """
    begin = time.perf_counter()
    bodies = native == "off" or (native == "auto" and find_cpu_library() is None)
    with contextlib.ExitStack() as stack:

        def opened(model: onnx.ModelProto, *, profile: bool) -> OnnxRuntimeSession:
            session = OnnxRuntimeSession(model, threads=threads, native=native, profile=profile, in_order=True)
            return stack.enter_context(session)

        timed: list[_Timed] = []
        for subject in (_reference(), *subjects):
            if len(timed) > LEAST_GRAPHS and time.perf_counter() - begin > _OPENING * seconds:
                break
            labelled = LabelledGraph(subject.model, bodies=bodies)
            plain = opened(subject.model, profile=False) if subject.whole else None
            timed.append(_Timed(subject, labelled, opened(labelled.model, profile=True), plain, threads))
            progress()
        for number in range(rounds):
            # What was recorded must be read too: that takes as long as a round or two.
            if number >= _LEAST_ROUNDS and (time.perf_counter() - begin) * (1 + 2 / number) > seconds:
                break
            for one in timed:
                one.turn()
            progress()
        found = [one.times() for one in timed]
        pace_ms = sum(shortest(ms) for ms in found[0].groups.values())
        return [replace(times, pace_ms=pace_ms) for times in found[1:]]


def _reference() -> Subject:
    graph = micro_graph(*_REFERENCE)
    return Subject(graph.model, feeds_of(graph, 3, 0), [graph.model.graph.output[-1].name])


class _Timed:
    """A subject's sessions and what they recorded."""

    def __init__(
        self,
        subject: Subject,
        labelled: LabelledGraph,
        profiled: OnnxRuntimeSession,
        plain: OnnxRuntimeSession | None,
        threads: int,
    ) -> None:
        self._labelled, self._profiled = labelled, profiled
        self._calls = [profiled.bind(feed, subject.outputs) for feed in subject.feeds]
        self._plain = [] if plain is None else [plain.bind(feed, subject.outputs) for feed in subject.feeds]
        self._clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
        self._whole: list[list[float]] = []
        self._spent: list[list[float]] = []  # CPU time of the recorded runs, where one thread computes.
        self._one_thread = threads == 1
        self._rounds = 0
        # Refuses what is not finite: a library that computes wrongly here is no subject.
        for feed in subject.feeds:
            profiled.run(feed, subject.outputs)
        for call in self._plain:
            call()
        begin = time.perf_counter()
        self._calls[-1]()
        once = 1000 * (time.perf_counter() - begin)
        self._settle = min(math.ceil(_SETTLE_MS / max(once, 1e-3)), _MOST_SETTLING)

    def turn(self) -> None:
        self._rounds += 1
        for _ in range(self._settle):
            self._calls[-1]()
        self._spent.append([self._time(call) for call in self._calls])
        if not self._plain:
            return
        for _ in range(self._settle):
            self._plain[-1]()
        self._whole.append([self._time(call) for call in self._plain])

    def _time(self, call: Callable[[], object]) -> float:
        begin = self._clock()
        call()
        return (self._clock() - begin) / 1e6

    def times(self) -> Times:
        count = len(self._calls)
        runs = counted_runs(count, self._rounds, self._settle)
        matrix, reorders = group_matrix(self._labelled, self._profiled, runs)
        groups = {name: ms.reshape(self._rounds, count) for name, ms in matrix.items()}
        if self._one_thread:
            nodes = len(self._profiled.node_times(slice(runs[0], runs[0] + 1)))
            factors = undisturbed(groups, np.array(self._spent, np.float32) - nodes * profile_costs().outside)
            groups = {name: ms * factors[name] for name, ms in groups.items()}
            reorders = [
                replace(reorder, ms=(reorder.ms.reshape(-1, count) * factors[reorder.group]).reshape(-1))
                for reorder in reorders
            ]
        return Times(groups, np.array(self._whole, np.float32).reshape(-1, count), math.nan, reorders, count)


def shortest(values: Any) -> float:
    """Mean of the fastest quarter of wall times: on a busy machine, more than that is interrupted.

    Too short by luck, which :func:`undisturbed` takes out.
    """
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    return float(ordered[: max(1, round(len(ordered) / 4))].mean())


def undisturbed(groups: Mapping[str, Array], spent: Array) -> dict[str, Array]:
    """Factors that make of wall times of kernels what they take of the processor time of whole runs.

    The profile knows wall time only. On a busy machine a long kernel is interrupted in every run, so that not even its
    fastest run is right; a short one is not. The processor time of whole runs is right however busy the machine is:
    what the fastest runs of all kernels are longer than it in sum is taken off the longest ones. Where they are shorter
    in sum, each kernel had its luck in other runs than the rest: no run is made of nothing but lucky kernels, and all
    of them become longer alike.

    Args:
        groups: Wall times by group, each (rounds, feeds).
        spent: Processor time of the same runs without what lies between the kernels, (rounds, feeds).

    Returns:
        By group a factor for every feed, (feeds,), positive.
    """
    names = list(groups)
    feeds = range(spent.shape[1])
    wall = np.array([[shortest(groups[name][:, feed]) for feed in feeds] for name in names])
    total, whole = wall.sum(0), np.array([quick(spent[:, feed]) for feed in feeds])
    excess = np.maximum(total - whole, 0.0)
    # How much of a kernel's runs are interrupted grows with its length, up to all of them.
    exposed = wall * np.minimum(wall / _SLICE_MS, 1.0)
    taken = np.minimum(excess * exposed / np.maximum(exposed.sum(0), 1e-9), 0.9 * wall)
    luck = np.clip(whole / np.maximum(total, 1e-9), 1.0, _MOST_LUCK)
    factors = (1.0 - taken / np.maximum(wall, 1e-9)) * luck
    return {name: factors[index].astype(np.float32) for index, name in enumerate(names)}


def counted_runs(feeds: int, rounds: int, settle: int) -> list[int]:
    """Numbers of a session's runs that count.

    Each input runs once and the last one again; before every round the last one settles the caches.
    """
    first, length = feeds + 1, settle + feeds
    return [first + number * length + settle + feed for number in range(rounds) for feed in range(feeds)]


def measure(
    graphs: Sequence[MicroGraph],
    *,
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
    draws: int = 3,
    rounds: int = 9,
    seed: int = 0,
    seconds: float = math.inf,
    progress: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Run graphs in turn and return their kernels with their times.

    A group that the walker sees as several kernels is left out: its time cannot be told apart.

    Args:
        graphs: What to measure; all of them are kept in memory.
        threads: Of the sessions.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        draws: Draws of masks; they take turns, so that no run finds the channels of the last one in the cache.
        rounds: Runs of every draw.
        seed: Of the masks.
        seconds: As for :func:`time_in_turn`: of fewer graphs there is a measurement where the time was short.
        progress: As for :func:`time_in_turn`.
    """
    feeds = [feeds_of(graph, draws, seed) for graph in graphs]
    outputs = [[value.name for value in graph.model.graph.output][-1:] for graph in graphs]
    subjects = [Subject(g.model, f, o) for g, f, o in zip(graphs, feeds, outputs, strict=True)]
    found = time_in_turn(subjects, threads=threads, native=native, rounds=rounds, seconds=seconds, progress=progress)
    return [_measurement(*one) for one in zip(graphs, feeds, found, strict=False)]


def _measurement(graph: MicroGraph, feeds: Sequence[Mapping[str, Array]], times: Times) -> Measurement:
    walker = GraphWalker(graph.model)
    kernels = [walker.graph(block_rates(graph.model, feed)).kernels for feed in feeds]
    plain = [[kernel for kernel in draw if kernel.kind != REORDER] for draw in kernels]
    resident = [float(sum(kernel.weight_bytes for kernel in draw)) for draw in kernels]
    samples = (*_samples(plain, times.alone(), resident), *_reorders(times.reorders, float(np.mean(resident))))
    return Measurement(samples, times.pace_ms)


def _reorders(reorders: Sequence[ReorderTimes], resident: float) -> Iterator[Sample]:
    for index, reorder in enumerate(reorders):
        kernel = reorder_kernel(f"reorder{index}", None, reorder.shape, inward=reorder.inward)
        ms, (low, high) = shortest(reorder.ms), np.quantile(reorder.ms, [0.25, 0.75])
        if ms > 0:
            yield Sample(kernel, ms, float((high - low) / ms), resident)


def _samples(
    graphs: Sequence[Sequence[Kernel]], times: Mapping[str, Array], resident: Sequence[float]
) -> Iterator[Sample]:
    """Samples of every kernel that is alone in its group; a kernel that no mask changes is one sample."""
    members: dict[str, list[int]] = {}
    for index, kernel in enumerate(graphs[0]):
        members.setdefault(group_of(kernel.name), []).append(index)
    for group, positions in members.items():
        if len(positions) != 1:
            continue
        kernels = [graph[positions[0]] for graph in graphs]
        draws: dict[tuple[Any, ...], list[int]] = {}
        for number, kernel in enumerate(kernels):
            draws.setdefault((kernel.macs, kernel.weight_bytes, *kernel.features.values()), []).append(number)
        for same in draws.values():
            runs = times[group][:, same]
            ms, (low, high) = shortest(runs), np.quantile(runs, [0.25, 0.75])
            if ms > 0:
                touched = float(np.mean([resident[number] for number in same]))
                yield Sample(kernels[same[0]], ms, float((high - low) / ms), touched)
