"""Profiling a network that exits early: every exit against the network without exits, interleaved in one loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dyndeploy.bundle import Bundle
from dyndeploy.errors import UsageError
from dyndeploy.graphs.stages import whole_model
from dyndeploy.measure.energy import Energy
from dyndeploy.measure.inputs import Schedule, input_batches
from dyndeploy.measure.loop import Clock, Paired, Progress, time_exits
from dyndeploy.measure.profile import DATA, typical_ratio
from dyndeploy.measure.result import bundle_facts, device_facts, samples_of
from dyndeploy.measure.samples import Samples
from dyndeploy.measure.turn import machine_turn
from dyndeploy.prediction import bundle_record, exit_shares
from dyndeploy.runtimes import OnnxRuntimeSession, Session, StagedSession, TensorRTSession, open_staged
from dyndeploy.runtimes.base import ENGINE_RUNTIMES, ONNXRUNTIME
from dyndeploy.runtimes.choice import RuntimeChoice
from dyndeploy.runtimes.machine import machine_facts
from dyndeploy.runtimes.native import bodies_note, operator_code
from dyndeploy.runtimes.onnxruntime import PROVIDER_OF
from dyndeploy.runtimes.tensorrt_engine import EngineSettings

SCHEMA_VERSION = 1
KIND = "measured_exits"
WHOLE_NAME = "without exits"

_MAX_IMAGES = 32
TIMED_IMAGES = 2
"""Images that are timed: what is in an image does not change what a forced exit computes."""


@dataclass(frozen=True)
class ExitTimes:
    """Images that leave at one exit. Times are milliseconds per image.

    Attributes:
        exit: Number of the exit.
        macs: Per image, up to and with this exit.
        samples: Times of the stages up to this one, the confidences read and compared.
        relative: Time over the network without exits, from runs in turn (median, by input).
        relative_cpu: The same from CPU times; None where those are not one thread's.
        relative_spread: 25th and 75th percentile of the time over the network without exits, of all rounds; None in
            profiles of release 0.1.0.
    """

    exit: int
    macs: int
    samples: Samples
    relative: float
    relative_cpu: float | None
    relative_spread: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """What two profiles share figures by."""
        return f"exit {self.exit}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "exit": self.exit,
            "macs": self.macs,
            "relative": self.relative,
            "relative_cpu": self.relative_cpu,
            "relative_spread": None if self.relative_spread is None else list(self.relative_spread),
            **self.samples.to_json(1),
        }


@dataclass(frozen=True)
class MixResult:
    """What a share of images per exit costs.

    Attributes:
        name: ``"data"``, or the shares in percent.
        shares: Share of the images that leaves at each exit; they sum to 1.
        mean_ms: Mean time of an image.
        mean_macs: Mean MACs of an image.
        ideal_speedup: MACs of the network without exits over ``mean_macs``.
        realised_speedup: Its time over the mean time.
    """

    name: str
    shares: tuple[float, ...]
    mean_ms: float
    mean_macs: float
    ideal_speedup: float
    realised_speedup: float

    @property
    def realisation(self) -> float:
        """Realised over ideal speed-up: the part of the skipped computation that became time saved."""
        return self.realised_speedup / self.ideal_speedup

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "shares": list(self.shares),
            "mean_ms": self.mean_ms,
            "mean_macs": self.mean_macs,
            "ideal_speedup": self.ideal_speedup,
            "realised_speedup": self.realised_speedup,
            "realisation": self.realisation,
        }


@dataclass(frozen=True)
class ExitProfile:
    """A bundle of stages measured on a device, one image at a time.

    Attributes:
        bundle: What was measured.
        machine: Facts about the machine, from :func:`dyndeploy.runtimes.machine.machine_facts`, or of a board.
        runtime: ``name``, ``version`` and ``provider``; ``why`` where it was chosen among several.
        threads: How many threads all stages compute with, together.
        settings: Rounds, warm-up, and where the images come from.
        whole_macs: MACs of the network without exits.
        whole: Times of the network without exits, one graph.
        exits: Times of every exit; the last one runs every stage: the worst case.
        staging: Every stage again, next to one graph of the same computation, all exits and no decisions: its
            ``relative`` is what staging itself costs.
        branched: The graph with ``If``, all branches run, or None if the bundle has none.
        mixes: Given mixes, and ``"data"`` where there are thresholds.
        note: What a reader should know, or empty.
        graph: The graphs that were run (:func:`dyndeploy.prediction.bundle_record`); None in profiles of release 0.1.0.
        native: ``path``, ``sha256`` and ``instruction_set`` of the operator library that the stages ran with (path
            None: function bodies); empty in profiles of release 0.1.0.
        device: ``"cpu"``, or the name of the board's device model.
        energy: Millijoules per image of the network without exits and of each exit, measured; None where no power
            sensor was read.
    """

    bundle: dict[str, Any]
    machine: dict[str, Any]
    runtime: dict[str, Any]
    threads: int
    settings: dict[str, Any]
    whole_macs: int
    whole: Samples
    exits: tuple[ExitTimes, ...]
    staging: ExitTimes
    branched: ExitTimes | None
    mixes: tuple[MixResult, ...]
    note: str = ""
    graph: Mapping[str, Any] | None = None
    native: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    energy: Energy | None = None

    def mix_mj(self, mix: MixResult) -> float | None:
        """Millijoules per image of a mix, combined of the exits'; None where no power sensor was read."""
        names = [entry.name for entry in self.exits]
        return None if self.energy is None else self.energy.mean_mj(names, mix.shares)

    @property
    def operator_code(self) -> str | None:
        """Which code ran the dynamic operators (:func:`dyndeploy.runtimes.native.operator_code`)."""
        return operator_code(self.bundle.get("operators", ()), self.native)

    @property
    def bodies_note(self) -> str:
        """What the operator library would give, where function bodies ran; else empty."""
        return bodies_note(self.bundle.get("operators", ()), self.native, self.runtime.get("provider"))

    def paired_ms(self, entry: ExitTimes) -> float:
        """Milliseconds of an exit from runs in turn with the network without exits: a drift of the machine cancels.

        What every table, chart and sentence shows; the raw runs are in :attr:`ExitTimes.samples`.
        """
        return entry.relative * self.whole.median

    def mix_spread(self, mix: MixResult) -> tuple[float, float] | None:
        """Time of a mix over the network without exits where all exits take their 25th, and their 75th percentile."""
        spreads = [entry.relative_spread for entry in self.exits]
        known = [spread for spread in spreads if spread is not None]
        if len(known) < len(spreads):
            return None
        low, high = (float(np.dot(mix.shares, [spread[end] for spread in known])) for end in (0, 1))
        return low, high

    @property
    def overhead(self) -> float:
        """What staging costs: every stage over one graph that computes the same exits, less 1."""
        return self.staging.relative - 1

    def warnings(self) -> list[str]:
        """What a reader should know before trusting the figures."""
        entries = [
            ("the network without exits", self.whole),
            *((entry.name, entry.samples) for entry in self.exits),
        ]
        shaky = [f"{name} {samples.cov_same_input:.1%}" for name, samples in entries if samples.unstable]
        notes = [self.note] if self.note else []
        if shaky:
            notes.append(
                f"Unstable: runs of the same input vary by more than 2.5 %: {', '.join(shaky)}. Close other programs "
                "or give more --repeats; speed-ups are paired with the network without exits and suffer less."
            )
        bodies = [self.bodies_note] if self.bodies_note else []
        return [*notes, *bodies, *self.machine.get("warnings", ())]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types (see ``docs/early_exits.md``)."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "bundle": self.bundle,
            "machine": self.machine,
            "device": self.device,
            "runtime": self.runtime,
            "native": dict(self.native),
            "threads": self.threads,
            "settings": self.settings,
            "whole_macs": self.whole_macs,
            "whole": self.whole.to_json(1),
            "exits": [entry.to_json() for entry in self.exits],
            "staging": self.staging.to_json(),
            "overhead": self.overhead,
            "branched": None if self.branched is None else self.branched.to_json(),
            "mixes": [mix.to_json() for mix in self.mixes],
            "graph": self.graph,
            "energy": None if self.energy is None else self.energy.to_json(),
            "warnings": self.warnings(),
        }


def _exit_times(pair: Paired, exit: int, macs: int) -> ExitTimes:
    inputs = [index for index, _, _ in pair.ratios]
    cpu = [ratio for _, _, ratio in pair.ratios if ratio is not None]
    low, high = np.percentile([1 / ratio for _, ratio, _ in pair.ratios], [25, 75])
    return ExitTimes(
        exit=exit,
        macs=macs,
        samples=samples_of(pair.visits),
        relative=1 / typical_ratio([ratio for _, ratio, _ in pair.ratios], inputs),
        relative_cpu=1 / typical_ratio(cpu, inputs) if len(cpu) == len(inputs) else None,
        relative_spread=(float(low), float(high)),
    )


def profile_exits(
    bundle: Bundle,
    *,
    threads: int = 1,
    mixes: Sequence[Sequence[float]] = (),
    data: str | os.PathLike[str] | None = None,
    thresholds: Sequence[float] | None = None,
    repeats: int | None = None,
    min_seconds: float = 10.0,
    warmup: int = 3,
    native: str | os.PathLike[str] = "auto",
    choice: RuntimeChoice | None = None,
    progress: Progress = lambda message, fraction: None,
) -> ExitProfile:
    """Measure every exit of a bundle of stages on this machine, one image at a time.

    Every round times, in turn, images that leave at exit 1, 2, ..., with the network without exits before and after
    each of them, so that a drift of the machine's speed cancels in the ratio. On a CPU all sessions compute on one
    thread pool. On a GPU times are by the wall clock, with the copies of the image and of what is read of it: the host
    decides at every exit.

    Args:
        bundle: With a static twin: the network without exits.
        threads: Threads of all sessions together.
        mixes: Shares of the exits to combine the times with; each sums to 1.
        data: Folder of images; None takes the bundle's reference images.
        thresholds: Thresholds of the data's own mix; None takes the bundle's, without which there is no such mix.
        repeats: Rounds; None takes as many as fill ``min_seconds``, between 12 and 200.
        min_seconds: Seconds that the rounds fill where ``repeats`` is None.
        warmup: Untimed runs of every session and input before the rounds.
        native: The operator library of stages with dynamic operators, as for
            :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        choice: What runs them; None takes ONNX Runtime on the CPU.
        progress: Called with what is being done and the fraction done.

    Raises:
        UsageError: No exits, no static twin, or a value out of range.
        BundleError: The bundle is damaged.
        InputError: The images cannot be read or do not fit.
    """
    stages = bundle.exits.stages
    shares = [checked_mix(mix, len(stages)) for mix in mixes]
    Schedule(repeats=repeats, min_seconds=min_seconds, warmup=warmup)  # refuses what cannot be measured
    require_exits_measurable(bundle)
    progress("checking the bundle", 0.0)
    bundle.require_intact()
    machine = machine_facts()
    assert bundle.static is not None
    images, source = exit_images(bundle, data, repeats)
    progress("loading", 0.0)
    with ExitStack() as stack:
        notes = stack.enter_context(machine_turn())
        runtime, gpu = (choice.runtime, choice.gpu) if choice else (ONNXRUNTIME, None)
        staged = stack.enter_context(
            open_staged(bundle, runtime, threads=threads, thresholds=thresholds, native=native)
        )

        def opened(graph: os.PathLike[str] | onnx.ModelProto) -> Session:
            if runtime in ENGINE_RUNTIMES:
                model = graph if isinstance(graph, onnx.ModelProto) else onnx.load(graph)
                session = TensorRTSession.from_graph(model, EngineSettings(runtime=runtime).of(bundle))[0]
                return stack.enter_context(session)
            provider = PROVIDER_OF[runtime]
            return stack.enter_context(
                OnnxRuntimeSession(graph, threads=threads, native="off", shared=True, provider=provider)
            )

        whole = opened(bundle.static)
        timed = images[:TIMED_IMAGES]
        # Whole runs, which refuse what is not finite: times of wrong results are worth nothing.
        staged.run_all(timed)
        for image in timed:
            whole.run({whole.inputs[0].name: image[None]})
        every = opened(every_exit_model(bundle))
        rounds, forced, staging, branched = time_exits(
            [f"exit {stage.exit}" for stage in stages],
            [[staged.bind(image[None], stage=index) for image in timed] for index in range(len(stages))],
            [_bind_whole(whole, image[None]) for image in timed],
            [_bind_whole(every, image[None]) for image in timed],
            _branched_runs(stack, bundle, threads, timed) if gpu is None else None,
            Clock(single_thread=threads == 1 and gpu is None),
            repeats,
            min_seconds,
            warmup,
            progress,
        )
        if staged.thresholds is not None:
            progress("the data's own exits", 0.95)
            shares.append((DATA, _data_shares(staged, images)))
        info, note = staged.info, staged.note
    return assemble_exits(
        bundle,
        info.precision if runtime in ENGINE_RUNTIMES else bundle.manifest.cpu_precision,
        forced,
        staging,
        branched,
        shares,
        machine=machine | ({} if gpu is None else {"gpu": str(gpu)}) | {"warnings": notes},
        **device_facts(info, None if gpu is None else gpu.name, choice),
        threads=threads,
        settings={"rounds": rounds, "warmup": warmup, "images": source},
        note=note,
        native=asdict(info.native),
    )


def require_exits_measurable(bundle: Bundle) -> None:
    """Raise ``UsageError`` unless exits can be timed: a twin without exits, and one image at a time."""
    if bundle.static is None:
        raise UsageError(
            f"The bundle {bundle.path} lacks the network without exits to compare with. Export it again with --static."
        )
    if not bundle.exits.dynamic_batch and bundle.manifest.batch != 1:
        raise UsageError(f"The bundle runs batches of {bundle.manifest.batch}; exits are timed image by image.")


def every_exit_model(bundle: Bundle) -> onnx.ModelProto:
    """One graph that computes all exits of a bundle and decides nothing: what staging is measured against."""
    return whole_model(bundle.load_stages(), every_exit=True)


def exit_images(
    bundle: Bundle, data: str | os.PathLike[str] | None, repeats: int | None
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Images that a profile of exits feeds (n, 3, H, W), and where they come from."""
    batches, source = input_batches(bundle, data, _MAX_IMAGES if repeats is None else min(_MAX_IMAGES, repeats))
    (name,) = batches[0]
    return np.concatenate([batch[name] for batch in batches])[: source["count"]], source


def assemble_exits(
    bundle: Bundle,
    precision: str,
    exits: Sequence[Paired],
    staging: Paired,
    branched: Paired | None,
    shares: Sequence[tuple[str, Sequence[float]]],
    *,
    machine: Mapping[str, Any],
    device: str,
    runtime: Mapping[str, Any],
    threads: int,
    settings: Mapping[str, Any],
    note: str,
    native: Mapping[str, Any],
    energy: Callable[[Sequence[str]], Energy | None] = lambda names: None,
) -> ExitProfile:
    """Make a profile from what :func:`~dyndeploy.measure.loop.time_exits` measured, here or on a board.

    Args:
        bundle: What was measured.
        precision: What its stages computed in.
        exits: One pair per exit.
        staging: Every stage next to one graph of the same exits.
        branched: The graph with branches, or None.
        shares: Names and shares of the mixes.
        machine: As for :class:`ExitProfile`, like all that follow.
        device: Name of the device.
        runtime: Name, version, provider.
        threads: Threads that compute.
        settings: Rounds and so on.
        note: What a reader should know, or empty.
        native: The operator library that ran.
        energy: Gives the energies of the entries with these names, if they were measured.
    """
    stages = bundle.exits.stages
    times = tuple(_exit_times(pair, stage.exit, stage.macs) for pair, stage in zip(exits, stages, strict=True))
    whole_macs = bundle.manifest.static_macs
    return ExitProfile(
        bundle=bundle_facts(bundle, precision),
        machine=dict(machine),
        device=device,
        runtime=dict(runtime),
        threads=threads,
        settings=dict(settings),
        whole_macs=whole_macs,
        whole=(reference := samples_of([visit for pair in exits for visit in pair.twin_visits])),
        exits=times,
        staging=_exit_times(staging, stages[-1].exit, stages[-1].macs),
        branched=None if branched is None else _exit_times(branched, stages[-1].exit, stages[-1].macs),
        mixes=tuple(mix_result(name, share, times, reference.median, whole_macs) for name, share in shares),
        note=note,
        graph=bundle_record(bundle),
        native=dict(native),
        energy=energy([WHOLE_NAME, *(entry.name for entry in times)]),
    )


def mix_result(
    name: str, shares: Sequence[float], times: Sequence[ExitTimes], whole_ms: float, whole_macs: int
) -> MixResult:
    """Combine the times of the exits with a share of images for each.

    Args:
        name: Name of the result.
        shares: One per exit, summing to 1.
        times: Times of every exit.
        whole_ms: Time of the network without exits.
        whole_macs: Its MACs.
    """
    relative = float(np.dot(shares, [entry.relative for entry in times]))
    macs = float(np.dot(shares, [entry.macs for entry in times]))
    return MixResult(name, tuple(shares), relative * whole_ms, macs, whole_macs / macs, 1 / relative)


def checked_mix(mix: Sequence[float], exits: int) -> tuple[str, tuple[float, ...]]:
    """Name and shares of a mix; raises ``UsageError`` where it does not fit the exits."""
    shares = exit_shares(mix, exits)
    return "/".join(f"{100 * share:g}" for share in shares), shares


def _bind_whole(session: Session, image: npt.NDArray[Any]) -> Callable[[], None]:
    """A run that takes an image as a chain of stages does, from the caller's array, and leaves its logits in place."""
    held = np.zeros_like(image)
    outputs = {info.name: np.zeros((1, *info.shape[1:]), np.float32) for info in session.outputs}
    call = session.bind({session.inputs[0].name: held}, outputs)

    def run() -> None:
        np.copyto(held, image)
        call()

    return run


def _branched_runs(
    stack: ExitStack,
    bundle: Bundle,
    threads: int,
    images: npt.NDArray[np.float32],
) -> list[Callable[[], Any]] | None:
    """Runs of the graph with branches, no threshold of which is ever reached."""
    if bundle.branched is None:
        return None
    session = stack.enter_context(OnnxRuntimeSession(bundle.branched, threads=threads, native="off", shared=True))
    # Nothing is as likely as 2.
    never = {info.name: np.full(info.shape, 2, np.float32) for info in session.inputs[1:]}
    return [session.bind({session.inputs[0].name: image[None], **never}) for image in images]


def _data_shares(session: StagedSession, images: npt.NDArray[np.float32]) -> tuple[float, ...]:
    exits = np.concatenate([session.run(image[None]).exits for image in images])
    return tuple(float((exits == stage.exit).mean()) for stage in session.bundle.exits.stages)
