"""Profiling a bundle on this machine in ONNX Runtime: the dynamic network against its static twin, in one loop."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import onnx

from dyndeploy.bundle import Bundle
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.graphs.labels import LabelledGraph
from dyndeploy.measure.inputs import (
    DEFAULT_RATES,
    Configuration,
    Feeds,
    Schedule,
    forced_configurations,
    own_configuration,
    require_comparable,
)
from dyndeploy.measure.loop import Clock, Paired, time_rounds
from dyndeploy.measure.profile import DATA, Profile
from dyndeploy.measure.result import GroupTimes, assemble, device_facts
from dyndeploy.measure.turn import machine_turn
from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.base import ONNXRUNTIME
from dyndeploy.runtimes.choice import RuntimeChoice
from dyndeploy.runtimes.machine import machine_facts
from dyndeploy.runtimes.onnxruntime import PROVIDER_OF

_NODE_RUNS = 5  # Runs with the node profile, per input.
_MAX_NODE_INPUTS = 8

Progress = Callable[[str, float], None]


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
    choice: RuntimeChoice | None = None,
    progress: Progress = lambda message, fraction: None,
) -> Profile:
    """Measure a bundle on this machine in ONNX Runtime, on its CPU or through the CUDA provider.

    Every round times, in turn, each forced rate and the data's own masks, with the static twin before and after each
    of them, so that a drift of the machine's speed cancels in the ratio. Each round takes the next input (and the
    next draw of forced masks).

    Args:
        bundle: With a static twin. Its inputs may be any tensors.
        threads: Threads of each session.
        rates: Rates to force; None takes :data:`DEFAULT_RATES`.
        data: Folder of images, for a network that takes one image; None takes the bundle's reference tensors.
        images: At most so many images of the folder, spread evenly over it.
        repeats: Rounds; None takes as many as fill ``min_seconds``, between 12 and 200.
        min_seconds: Seconds that the rounds fill where ``repeats`` is None.
        warmup: Untimed runs of every session and input before the rounds.
        seed: Seed of the random numbers that the forced masks are drawn with.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        choice: Which of ONNX Runtime's providers; None takes the CPU. Through the CUDA provider a time is by the wall
            clock, with the copies to the GPU and back, and blocks have no times: the provider tells when their kernels
            are started and not how long they take.
        progress: Called with what is being done and the fraction done.

    Raises:
        UsageError: No static twin in the bundle, a value out of range, or a precision that cannot run here.
        BundleError: The bundle is damaged.
        InputError: The inputs cannot be read or do not fit.
    """
    schedule = Schedule(DEFAULT_RATES if rates is None else tuple(rates), repeats, min_seconds, warmup, images, seed)
    require_comparable(bundle)
    progress("checking the bundle", 0.0)
    bundle.require_intact()
    machine = machine_facts()
    batches, source = schedule.batches(bundle, data)
    progress("loading", 0.0)
    masks, precision = bundle.manifest.masks, bundle.manifest.cpu_precision
    provider, gpu = (PROVIDER_OF[choice.runtime], choice.gpu) if choice else (PROVIDER_OF[ONNXRUNTIME], None)
    options: dict[str, Any] = {"threads": threads, "provider": provider}
    with ExitStack() as stack:
        notes = stack.enter_context(machine_turn())

        def opened(graph: os.PathLike[str] | onnx.ModelProto) -> OnnxRuntimeSession:
            return stack.enter_context(OnnxRuntimeSession(graph, **options, native=native, precision=precision))

        assert bundle.static is not None
        # A twin has no decisions, but a detector's reads its regions with an operator of ours.
        static = stack.enter_context(OnnxRuntimeSession(bundle.static, **options, native=native))
        dynamic, forced = opened(bundle.model), opened(_overlay(bundle))
        labelled = None
        if gpu is None:
            # Before the measurement: a graph that cannot be loaded with labels must not cost minutes first.
            labelled = _LabelledGraphs.of(bundle, bodies=dynamic.info.native.path is None)
            labelled.require_loadable(threads, native)
        # Whole runs, which refuse what is not finite: times of wrong results are worth nothing.
        results = [dynamic.run(batch) for batch in batches]
        own = own_configuration(batches, [{mask.name: result[mask.name] for mask in masks} for result in results])
        configurations = [*forced_configurations(masks, batches, schedule), own]
        outputs = [info.name for info in bundle.manifest.outputs]
        for batch in batches:
            static.run(_of(static, batch))
        for configuration in configurations[:-1]:
            for feeds in _overlay_feeds(bundle, configuration):
                forced.run(feeds, outputs)
        twins = {id(batch): static.bind(_of(static, batch), outputs) for batch in batches}
        pairs = [
            Paired(
                configuration.label,
                [dynamic.bind(feeds, outputs) for feeds in configuration.feeds]
                if configuration.kind == DATA
                else [forced.bind(feeds, outputs) for feeds in _overlay_feeds(bundle, configuration)],
                [twins[id(feeds)] for feeds in configuration.feeds],
            )
            for configuration in configurations
        ]
        clock = Clock(single_thread=threads == 1 and gpu is None)
        rounds = time_rounds(pairs, clock, repeats, min_seconds, warmup, progress)
        info = dynamic.info
    times: list[GroupTimes] = [({}, {}) for _ in configurations]
    native_operators: list[str] = []
    if labelled is not None:
        progress("timing the nodes", 0.9)
        times, native_operators = labelled.times(bundle, configurations, threads, native)
    return assemble(
        bundle,
        precision,
        configurations,
        pairs,
        times,
        machine=machine | ({} if gpu is None else {"gpu": str(gpu)}) | {"warnings": notes},
        **device_facts(info, None if gpu is None else gpu.name, choice),
        native={
            "path": info.native.path,
            "sha256": info.native.sha256,
            "instruction_set": info.native.instruction_set,
            "description": info.native.description,
            "operators": native_operators,
        },
        threads=threads,
        settings=schedule.settings(rounds, len(batches), source),
    )


def _of(session: OnnxRuntimeSession, feeds: Feeds) -> Feeds:
    """Those of the inputs that a session takes: a twin may need fewer."""
    return {info.name: feeds[info.name] for info in session.inputs}


def _overlay(bundle: Bundle) -> onnx.ModelProto:
    return overlay_forced_masks(bundle.load_model(), bundle.manifest.masks)


def _overlay_feeds(bundle: Bundle, configuration: Configuration) -> list[Feeds]:
    """Feeds of the overlay: masks are forced, or decided by the maskers where the data decides."""
    shapes = bundle.manifest.masks
    return [
        {**feeds, **forced_feeds(None if configuration.kind == DATA else masks, shapes)}
        for feeds, masks in zip(configuration.feeds, configuration.masks, strict=True)
    ]


@dataclass(frozen=True)
class _LabelledGraphs:
    """Both networks with names that carry block numbers."""

    static: LabelledGraph
    dynamic: LabelledGraph
    precision: str

    @classmethod
    def of(cls, bundle: Bundle, *, bodies: bool) -> _LabelledGraphs:
        return cls(
            static=LabelledGraph(bundle.load_static(), bodies=bodies),
            dynamic=LabelledGraph(_overlay(bundle), bodies=bodies),
            precision=bundle.manifest.cpu_precision,
        )

    def open(
        self, threads: int, native: str | os.PathLike[str], *, profile: bool
    ) -> tuple[OnnxRuntimeSession, OnnxRuntimeSession]:
        """Sessions of the static and the dynamic graph; the caller closes them."""
        static = OnnxRuntimeSession(self.static.model, threads=threads, native=native, profile=profile)
        try:
            return static, OnnxRuntimeSession(
                self.dynamic.model, threads=threads, native=native, precision=self.precision, profile=profile
            )
        except BaseException:
            static.close()
            raise

    def require_loadable(self, threads: int, native: str | os.PathLike[str]) -> None:
        # Closed again at once: open sessions would hold memory and threads while others are timed.
        for session in self.open(threads, native, profile=False):
            session.close()

    def times(
        self,
        bundle: Bundle,
        configurations: Sequence[Configuration],
        threads: int,
        native: str | os.PathLike[str],
    ) -> tuple[list[GroupTimes], list[str]]:
        """Times by block, for each configuration averaged over its inputs.

        Also returns the types of the dynamic operators that ran as nodes, which is to say natively.
        """
        outputs = [info.name for info in bundle.manifest.outputs]
        runs_per_input = 1 + _NODE_RUNS  # The first one is a warm-up.
        static, dynamic = self.open(threads, native, profile=True)
        with static, dynamic:
            inputs = [_overlay_feeds(bundle, configuration)[:_MAX_NODE_INPUTS] for configuration in configurations]
            for feeds in (feeds for group in inputs for feeds in group):
                run_static = static.bind(_of(static, feeds), outputs)
                run_dynamic = dynamic.bind(feeds, outputs)
                for _ in range(runs_per_input):
                    run_static()
                    run_dynamic()
            # Recorded runs are numbered over the whole session.
            start = 0
            times: list[GroupTimes] = []
            for group in inputs:
                spans = [
                    slice(start + i * runs_per_input + 1, start + (i + 1) * runs_per_input) for i in range(len(group))
                ]
                start += len(group) * runs_per_input
                times.append(
                    (
                        _mean_times([self.static.group_times(static.node_times(span)) for span in spans]),
                        _mean_times([self.dynamic.group_times(dynamic.node_times(span)) for span in spans]),
                    )
                )
            native_operators = sorted({node.op_type for node in dynamic.node_times()} & OPERATORS.keys())
        return times, native_operators


def _mean_times(times: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: statistics.fmean(entry[name] for entry in times) for name in times[0]}
