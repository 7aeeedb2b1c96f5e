"""Profiling a bundle: the dynamic network against its static twin, interleaved in one loop."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from dyndeploy.bundle import MODEL, Bundle
from dyndeploy.data import images_from_folder
from dyndeploy.errors import InputError, UsageError
from dyndeploy.graphs.forced import forced_feeds, forced_masks, overlay_forced_masks
from dyndeploy.graphs.labels import LabelledGraph
from dyndeploy.graphs.macs import GraphMacs, MacCounter
from dyndeploy.measure.machine import machine_facts
from dyndeploy.measure.profile import DATA, FORCED, BlockTimes, Profile, RateResult
from dyndeploy.measure.samples import Samples
from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes import OnnxRuntimeSession

DEFAULT_RATES = (0.1, 0.25, 0.5, 0.75, 1.0)
MASK_DRAWS = 4
"""Draws of forced masks per rate: a single draw of a few patches could be an odd one."""

_MIN_ROUNDS, _MAX_ROUNDS = 12, 200
_SHORT_MS = 20.0  # Below this a run is so short that the caches the other session emptied would show.
_VISIT_MS = 5.0  # Short runs are repeated within a round until the visit lasts about this long.
_MAX_VISIT_RUNS = 25
_NODE_RUNS = 5  # Runs with the node profile, per input.
_MAX_NODE_INPUTS = 8

Array = npt.NDArray[Any]
Run = Callable[[], None]
Progress = Callable[[str, float], None]


def _silent(message: str, fraction: float) -> None:
    """Report nothing."""


def profile_bundle(
    bundle: Bundle,
    *,
    threads: int = 1,
    rates: Sequence[float] | None = None,
    data: str | os.PathLike[str] | None = None,
    images: int = 32,
    repeats: int | None = None,
    min_seconds: float = 10.0,
    warmup: int = 3,
    seed: int = 0,
    native: str | os.PathLike[str] = "auto",
    progress: Progress = _silent,
) -> Profile:
    """Measure a bundle on this machine's CPU.

    Every round times, in turn, each forced rate and the data's own masks, with the static twin before and after each
    of them, so that a drift of the machine's speed cancels in the ratio. Each round takes the next input (and the
    next draw of forced masks).

    Args:
        bundle: With a static twin.
        threads: Threads of each session.
        rates: Rates to force; None takes :data:`DEFAULT_RATES`.
        data: Folder of images; None takes the bundle's reference images.
        images: At most so many images of the folder, spread evenly over it.
        repeats: Rounds; None takes as many as fill ``min_seconds``, between 12 and 200.
        min_seconds: See ``repeats``.
        warmup: Untimed runs of every session and input before the rounds.
        seed: Of the forced masks.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        progress: Called with what is being done and the fraction done.

    Raises:
        UsageError: No static twin in the bundle, a value out of range, or a precision that cannot run here.
        BundleError: The bundle is damaged.
        InputError: The images cannot be read or do not fit.
    """
    chosen = checked_rates(DEFAULT_RATES if rates is None else rates)
    if repeats is not None and (isinstance(repeats, bool) or repeats < 2):
        raise UsageError(f"repeats={repeats} is not valid: give at least 2, one run has no spread.")
    if not (math.isfinite(min_seconds) and min_seconds >= 0) or warmup < 1 or images < 1 or seed < 0:
        raise UsageError("min_seconds and seed must not be negative, warmup and images at least 1.")
    if bundle.static is None:
        raise UsageError(f"The bundle {bundle.path} has no static twin to compare with. Export it again with --static.")
    if not bundle.manifest.masks:
        raise UsageError(f"The bundle {bundle.path} has no masks: a static network has nothing to compare with.")
    progress("checking the bundle", 0.0)
    bundle.require_intact()
    machine = machine_facts()
    batches, source = input_batches(bundle, data, images if repeats is None else min(images, repeats * _batch(bundle)))
    if repeats is not None:
        batches = batches[:repeats]
    progress("loading", 0.0)
    with ExitStack() as stack:
        static = stack.enter_context(OnnxRuntimeSession(bundle.static, threads=threads, native="off"))
        precision = bundle.manifest.cpu_precision
        dynamic = stack.enter_context(
            OnnxRuntimeSession(bundle.model, threads=threads, native=native, precision=precision)
        )
        forced = stack.enter_context(
            OnnxRuntimeSession(_overlay(bundle), threads=threads, native=native, precision=precision)
        )
        # Before the measurement: a graph that cannot be loaded with labels must not cost minutes first.
        labelled = _labelled_graphs(bundle, bodies=dynamic.info.native.path is None)
        _require_loadable(labelled, threads, native)
        configurations = _configurations(bundle, chosen, batches, dynamic, forced, static, seed, repeats)
        clock = Clock(single_thread=threads == 1)
        rounds = time_rounds(configurations, clock, repeats, min_seconds, warmup, progress)
        info = dynamic.info
    progress("timing the nodes", 0.9)
    times, native_operators = _node_times(bundle, labelled, configurations, threads, native)
    counter, static_macs = MacCounter(bundle.load_model()), MacCounter(bundle.load_static()).count()
    results = [
        rate_result(bundle, configuration, counter, static_macs, *groups)
        for configuration, groups in zip(configurations, times, strict=True)
    ]
    manifest = bundle.manifest
    all_static = [visit for configuration in configurations for visit in configuration.static_visits]
    return Profile(
        bundle=bundle_facts(bundle, bundle.manifest.cpu_precision),
        machine=machine,
        device="cpu",
        runtime={"name": info.runtime, "version": info.version, "provider": info.provider},
        native={
            "path": info.native.path,
            "sha256": info.native.sha256,
            "description": info.native.description,
            "operators": native_operators,
        },
        threads=threads,
        batch=manifest.batch,
        settings={
            "rounds": rounds,
            "warmup": warmup,
            "seed": seed,
            "images": source,
            "image_batches": len(batches),
            "mask_draws": min(MASK_DRAWS, rounds),
        },
        static_macs=float(static_macs.per_sample.mean()),
        static=samples_of(all_static),
        rates=tuple(result for result in results if result.masks == FORCED),
        data=next(result for result in results if result.masks == DATA),
    )


# ---------------------------------------------------------------- inputs


def bundle_facts(bundle: Bundle, precision: str) -> dict[str, Any]:
    """What a profile says about the bundle that was measured, in which its bottlenecks computed in ``precision``."""
    manifest = bundle.manifest
    return {
        "name": manifest.network.name,
        "mode": manifest.network.mode,
        "granularity": list(manifest.network.granularity),
        "channel_granularity": list(manifest.network.channel_granularity),
        "checkpoint_sha256": manifest.network.checkpoint_sha256,
        "target": manifest.target,
        "opset": manifest.opset,
        "precision": precision,
        "input_size": list(manifest.input_size),
        "model_sha256": manifest.files.get(MODEL),
        "static_sha256": None if bundle.static is None else manifest.files.get(bundle.static.name),
        "masks": [{"name": mask.name, "block": mask.block, "kind": mask.kind} for mask in manifest.masks],
        "operators": sorted({operator.op_type for operator in manifest.operators}),
        "network_spec": manifest.network_spec,
        "tools": dict(manifest.tools),
        "notes": list(manifest.notes),
    }


def checked_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """The rates to force, each once; raises ``UsageError`` for one outside [0, 1]."""
    if not rates:
        raise UsageError("Give at least one rate in [0, 1].")
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.0 <= rate <= 1.0:
            raise UsageError(f"The rate {rate!r} is not a number in [0, 1].")
    return tuple(dict.fromkeys(float(rate) for rate in rates))


def _batch(bundle: Bundle) -> int:
    return bundle.manifest.batch


def input_batches(
    bundle: Bundle, data: str | os.PathLike[str] | None, limit: int
) -> tuple[list[npt.NDArray[np.float32]], dict[str, Any]]:
    """Whole batches of images, and where they come from; the last batch is filled up from the start."""
    manifest = bundle.manifest
    if data is None:
        images, origin = bundle.reference()["input"], manifest.reference.source
    else:
        images = images_from_folder(data, manifest.preprocessing, manifest.input_size, limit=limit)
        origin = f"folder {os.path.basename(os.path.abspath(data))}"
    if images.ndim != 4 or images.shape[1:] != (3, *manifest.input_size):
        raise InputError(f"The images must be (n, 3, {manifest.input_size}), not {images.shape}.")
    batch = manifest.batch
    count = -(-len(images) // batch)
    index = np.arange(count * batch) % len(images)
    filled = np.ascontiguousarray(images[index], dtype=np.float32)
    source = {"source": origin, "count": len(images), "repeated_to_fill_batches": count * batch - len(images)}
    return list(filled.reshape(count, batch, *images.shape[1:])), source


# ---------------------------------------------------------------- the timed loop


@dataclass
class Visit:
    """Times of consecutive runs of one session on one input."""

    input: int
    ms: list[float]
    cpu_ms: list[float] | None
    preempted: int | None


class Paired(Protocol):
    """Something to measure next to a twin, on the same inputs."""

    runs: list[Run]
    static_runs: list[Run]
    visits: list[Visit]
    static_visits: list[Visit]
    ratios: list[tuple[int, float, float | None]]

    @property
    def label(self) -> str:
        """For the progress bar."""


@dataclass
class Configuration:
    """One thing to measure: a forced rate, or the data's own masks."""

    masks: str
    rate: float
    inputs: list[dict[str, Array]]  # The image batch and the masks that the operators see, per input.
    overlay_feeds: list[dict[str, Array]]
    runs: list[Run]
    static_runs: list[Run]
    visits: list[Visit] = field(default_factory=list)
    static_visits: list[Visit] = field(default_factory=list)
    ratios: list[tuple[int, float, float | None]] = field(default_factory=list)

    @property
    def label(self) -> str:
        return "the data's own masks" if self.masks == DATA else f"rate {self.rate:g}"


def _configurations(
    bundle: Bundle,
    rates: Sequence[float],
    batches: Sequence[npt.NDArray[np.float32]],
    dynamic: OnnxRuntimeSession,
    forced: OnnxRuntimeSession,
    static: OnnxRuntimeSession,
    seed: int,
    repeats: int | None,
) -> list[Configuration]:
    masks = bundle.manifest.masks
    image, outputs = dynamic.inputs[0].name, [info.name for info in bundle.manifest.outputs]
    static_image = static.inputs[0].name
    static_runs = [static.bind({static_image: batch}, outputs) for batch in batches]
    result = []
    draws = MASK_DRAWS if repeats is None else min(MASK_DRAWS, repeats)
    for position, rate in enumerate(rates):
        inputs, feeds, runs = [], [], []
        for draw in range(draws):
            batch = batches[draw % len(batches)]
            drawn = forced_masks(masks, rate, seed=seed + 1000 * position + draw)
            inputs.append({image: batch, **drawn})
            feeds.append({image: batch, **forced_feeds(drawn, masks)})
            runs.append(forced.bind(feeds[-1], outputs))
        twins = [static_runs[draw % len(batches)] for draw in range(draws)]
        result.append(Configuration(FORCED, rate, inputs, feeds, runs, twins))
    own = [dynamic.run({image: batch}, [mask.name for mask in masks]) for batch in batches]
    mean_rate = float(np.mean([values[mask.name].mean() for values in own for mask in masks]))
    result.append(
        Configuration(
            DATA,
            mean_rate,
            [{image: batch, **values} for batch, values in zip(batches, own, strict=True)],
            [{image: batch, **forced_feeds(None, masks)} for batch in batches],
            [dynamic.bind({image: batch}, outputs) for batch in batches],
            static_runs,
        )
    )
    return result


class Clock:
    """Times single runs: wall clock, CPU time of the calling thread, involuntary context switches."""

    def __init__(self, *, single_thread: bool) -> None:
        self._single_thread = single_thread
        self._switches = _involuntary_switches(single_thread)

    def visit(self, index: int, run: Run, runs: int) -> Visit:
        """Time ``runs`` consecutive runs of one input."""
        visit = Visit(index, [], [] if self._single_thread else None, None if self._switches is None else 0)
        for _ in range(runs):
            switches = self._switches() if self._switches else 0
            cpu = time.thread_time_ns()
            start = time.perf_counter_ns()
            run()
            end = time.perf_counter_ns()
            if visit.cpu_ms is not None:
                # A clock of coarse resolution may see no time pass; half a microsecond stands for that.
                visit.cpu_ms.append(max(time.thread_time_ns() - cpu, 500) / 1e6)
            visit.ms.append(max(end - start, 1) / 1e6)
            if self._switches is not None and visit.preempted is not None:
                visit.preempted += self._switches() > switches
        return visit


def _involuntary_switches(single_thread: bool) -> Callable[[], int] | None:
    """Counter of involuntary context switches, or None where the system has none (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    who = getattr(resource, "RUSAGE_THREAD", None) if single_thread else resource.RUSAGE_SELF
    return None if who is None else lambda: resource.getrusage(who).ru_nivcsw


@dataclass(frozen=True)
class _Plan:
    """How often a run is repeated within one visit, and whether an untimed one comes first."""

    settle: bool
    runs: int

    @classmethod
    def for_duration(cls, ms: float) -> _Plan:
        runs = min(_MAX_VISIT_RUNS, max(1, round(_VISIT_MS / ms)))
        return cls(settle=ms < _SHORT_MS, runs=runs)


def time_rounds(
    configurations: Sequence[Paired],
    clock: Clock,
    repeats: int | None,
    min_seconds: float,
    warmup: int,
    progress: Progress,
) -> int:
    """Fill the visits and ratios of every configuration.

    Args:
        configurations: What to time, in turn; the twin before and after each.
        clock: See :class:`Clock`.
        repeats: Rounds; None takes as many as fill ``min_seconds``.
        min_seconds: See ``repeats``.
        warmup: Untimed runs of every input before the rounds.
        progress: Called with what is being done and the fraction done.

    Returns:
        The number of rounds.
    """
    plans: list[tuple[_Plan, _Plan]] = []
    seconds = 0.0
    for configuration in configurations:
        progress(f"warming up: {configuration.label}", 0.0)
        estimates = []
        for runs in (configuration.static_runs, configuration.runs):
            times = [clock.visit(0, run, warmup).ms[-1] for run in runs]
            estimates.append(statistics.median(times))
        static_plan, plan = (_Plan.for_duration(ms) for ms in estimates)
        plans.append((static_plan, plan))
        for ms, each in zip(estimates, (static_plan, plan), strict=True):
            seconds += ms * (each.runs + each.settle) / 1000
    rounds = repeats or min(_MAX_ROUNDS, max(_MIN_ROUNDS, math.ceil(min_seconds / seconds)))
    if repeats is None:
        # Every input as often as any other, and at least twice: the spread between runs of one input is needed.
        inputs = max(len(configuration.runs) for configuration in configurations)
        rounds = max(2, math.ceil(rounds / inputs)) * inputs
    for number in range(rounds):
        before: Visit | None = None
        for configuration, (static_plan, plan) in zip(configurations, plans, strict=True):
            progress(f"round {number + 1} of {rounds}", 0.9 * number / rounds)
            index = number % len(configuration.runs)
            if before is None:
                before = _visit(clock, index, configuration.static_runs[index], static_plan)
                configuration.static_visits.append(before)
            visit = _visit(clock, index, configuration.runs[index], plan)
            after = _visit(clock, index, configuration.static_runs[index], static_plan)
            configuration.visits.append(visit)
            configuration.static_visits.append(after)
            ratio = statistics.median(before.ms + after.ms) / statistics.median(visit.ms)
            cpu_ratio = None
            if visit.cpu_ms is not None:
                twins = (before.cpu_ms or []) + (after.cpu_ms or [])
                cpu_ratio = statistics.median(twins) / statistics.median(visit.cpu_ms)
            configuration.ratios.append((index, ratio, cpu_ratio))
            before = after
    return rounds


def _visit(clock: Clock, index: int, run: Run, plan: _Plan) -> Visit:
    if plan.settle:
        run()
    return clock.visit(index, run, plan.runs)


# ---------------------------------------------------------------- nodes and results


def _overlay(bundle: Bundle) -> onnx.ModelProto:
    return overlay_forced_masks(bundle.load_model(), bundle.manifest.masks)


@dataclass(frozen=True)
class _LabelledGraphs:
    """Both networks with names that carry block numbers."""

    static: LabelledGraph
    dynamic: LabelledGraph
    precision: str

    def open(
        self, threads: int, native: str | os.PathLike[str], *, profile: bool
    ) -> tuple[OnnxRuntimeSession, OnnxRuntimeSession]:
        """Sessions of the static and the dynamic graph; the caller closes them."""
        static = OnnxRuntimeSession(self.static.model, threads=threads, native="off", profile=profile)
        try:
            return static, OnnxRuntimeSession(
                self.dynamic.model, threads=threads, native=native, precision=self.precision, profile=profile
            )
        except BaseException:
            static.close()
            raise


def _labelled_graphs(bundle: Bundle, *, bodies: bool) -> _LabelledGraphs:
    return _LabelledGraphs(
        static=LabelledGraph(bundle.load_static(), bodies=False),
        dynamic=LabelledGraph(_overlay(bundle), bodies=bodies),
        precision=bundle.manifest.cpu_precision,
    )


def _require_loadable(graphs: _LabelledGraphs, threads: int, native: str | os.PathLike[str]) -> None:
    # Closed again at once: open sessions would hold memory and threads while others are timed.
    for session in graphs.open(threads, native, profile=False):
        session.close()


def _node_times(
    bundle: Bundle,
    graphs: _LabelledGraphs,
    configurations: Sequence[Configuration],
    threads: int,
    native: str | os.PathLike[str],
) -> tuple[list[tuple[dict[str, float], dict[str, float]]], list[str]]:
    """Times of static and dynamic graph by group, for each configuration averaged over its inputs.

    Also returns the types of the dynamic operators that ran as nodes, which is to say natively.
    """
    twin, graph = graphs.static, graphs.dynamic
    image, outputs = bundle.manifest.inputs[0].name, [info.name for info in bundle.manifest.outputs]
    runs_per_input = 1 + _NODE_RUNS  # The first one is a warm-up.
    static, dynamic = graphs.open(threads, native, profile=True)
    with static, dynamic:
        inputs = [configuration.overlay_feeds[:_MAX_NODE_INPUTS] for configuration in configurations]
        for feeds in (feeds for group in inputs for feeds in group):
            run_static = static.bind({static.inputs[0].name: feeds[image]}, outputs)
            run_dynamic = dynamic.bind(feeds, outputs)
            for _ in range(runs_per_input):
                run_static()
                run_dynamic()
        # Recorded runs are numbered over the whole session.
        start, times = 0, []
        for group in inputs:
            spans = [slice(start + i * runs_per_input + 1, start + (i + 1) * runs_per_input) for i in range(len(group))]
            start += len(group) * runs_per_input
            times.append(
                (
                    _mean_times([twin.group_times(static.node_times(span)) for span in spans]),
                    _mean_times([graph.group_times(dynamic.node_times(span)) for span in spans]),
                )
            )
        native_operators = sorted({node.op_type for node in dynamic.node_times()} & OPERATORS.keys())
    return times, native_operators


def _mean_times(times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(entry[name] for entry in times) for name in times[0]}


def samples_of(visits: Sequence[Visit]) -> Samples:
    cpu = [visit.cpu_ms for visit in visits]
    preempted = [visit.preempted for visit in visits]
    return Samples(
        ms=tuple(ms for visit in visits for ms in visit.ms),
        inputs=tuple(visit.input for visit in visits for _ in visit.ms),
        cpu_ms=None if None in cpu else tuple(ms for times in cpu for ms in times or ()),
        preempted=None if None in preempted else sum(count or 0 for count in preempted),
    )


def rate_result(
    bundle: Bundle,
    configuration: Configuration,
    counter: MacCounter,
    static_macs: GraphMacs,
    static_times: Mapping[str, float],
    times: Mapping[str, float],
) -> RateResult:
    masks = [mask.name for mask in bundle.manifest.masks]
    needed = [counter.count({name: values[name] for name in masks}) for values in configuration.inputs]

    def mean_macs(graphs: Sequence[GraphMacs], group: str) -> float:
        return float(np.mean([graph.blocks[group].mean() if group in graph.blocks else 0.0 for graph in graphs]))

    def part(group: str) -> BlockTimes:
        static, dynamic = mean_macs([static_macs], group), mean_macs(needed, group)
        ideal = static / dynamic if static > 0 and dynamic > 0 else None
        return BlockTimes(group, static_times.get(group, 0.0), times.get(group, 0.0), ideal)

    blocks = list(dict.fromkeys(operator.block for operator in bundle.manifest.operators))
    rest = [group for group in dict.fromkeys((*times, *static_times)) if group not in blocks]
    needed_macs = float(np.mean([graph.per_sample.mean() for graph in needed]))
    cpu_ratios = [cpu for _, _, cpu in configuration.ratios if cpu is not None]
    return RateResult(
        rate=configuration.rate,
        masks=configuration.masks,
        mask_rates={name: float(np.mean([values[name].mean() for values in configuration.inputs])) for name in masks},
        samples=samples_of(configuration.visits),
        needed_macs=needed_macs,
        ideal_speedup=float(static_macs.per_sample.mean()) / needed_macs,
        ratios=tuple(ratio for _, ratio, _ in configuration.ratios),
        ratio_inputs=tuple(index for index, _, _ in configuration.ratios),
        cpu_ratios=tuple(cpu_ratios) if len(cpu_ratios) == len(configuration.ratios) else None,
        blocks=tuple(part(block) for block in blocks),
        rest=tuple(part(group) for group in rest),
    )
