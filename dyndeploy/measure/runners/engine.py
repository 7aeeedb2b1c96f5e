"""Profiling TensorRT engines of a bundle on this machine's GPU, next to the engine of the static twin."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from dyndeploy.bundle import Bundle
from dyndeploy.graphs.forced import PREFIX, replace_masks
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
from dyndeploy.measure.loop import DeviceClock, Paired, time_rounds
from dyndeploy.measure.profile import DATA, Profile
from dyndeploy.measure.result import GroupTimes, assemble, device_facts, group_times
from dyndeploy.measure.turn import machine_turn
from dyndeploy.runtimes import TensorRTSession
from dyndeploy.runtimes.choice import RuntimeChoice
from dyndeploy.runtimes.machine import machine_facts
from dyndeploy.runtimes.tensorrt_engine import EngineSettings, require_one_graph

STATIC, DYNAMIC, FORCED = "static", "dynamic", "forced"
"""The three graphs: the twin, the graph as deployed, and the one that takes its masks from inputs."""

_LAYER_RUNS = 5
_MAX_LAYER_INPUTS = 8


def labelled_graphs(bundle: Bundle, *, bodies: bool) -> dict[str, LabelledGraph]:
    """The three graphs of a measurement on a device, with names that carry block numbers.

    Args:
        bundle: With a static twin.
        bodies: Whether operators of ours will run as function bodies.
    """
    model = bundle.load_model()
    return {
        STATIC: LabelledGraph(bundle.load_static(), bodies=bodies),
        DYNAMIC: LabelledGraph(model, bodies=bodies),
        FORCED: LabelledGraph(replace_masks(model, bundle.manifest.masks), bodies=bodies),
    }


def profile_engine(
    bundle: Bundle,
    settings: EngineSettings | None = None,
    *,
    rates: Sequence[float] | None = None,
    data: str | os.PathLike[str] | None = None,
    images: int = 32,
    repeats: int | None = None,
    min_seconds: float = 10.0,
    warmup: int = 3,
    seed: int = 0,
    device: int = 0,
    choice: RuntimeChoice | None = None,
    progress: Callable[[str, float], None] = lambda message, fraction: None,
) -> Profile:
    """Measure a bundle's engines on this machine's GPU, as :func:`dyndeploy.measure.profile_bundle` does on its CPU.

    Three engines are open at once: the twin's, the one that is deployed, and one whose operators take their masks from
    inputs. Times are those between two events on the device, with inputs and outputs lying there.

    Args:
        bundle: A bundle that was exported with its static twin.
        settings: How all engines are built.
        rates: As for :func:`~dyndeploy.measure.profile_bundle`, like all that follow.
        data: Folder of images, or None for the reference tensors.
        images: At most so many of the folder.
        repeats: Rounds.
        min_seconds: Seconds that the rounds fill where ``repeats`` is None.
        warmup: Untimed runs.
        seed: Seed of the random numbers that the forced masks are drawn with.
        device: Index of the GPU.
        choice: Why this runtime: it stands in the profile.
        progress: Called with what is being done and the fraction done.

    Returns:
        The profile; its ``device`` is the device model of this GPU where there is one, else the GPU's own name. Its
        ``settings`` have the build plan of the deployed engine (``build_plan``) and why runs were not launched as a
        CUDA graph (``graph_note``, empty where they were).

    Raises:
        UsageError: A bundle in parts, no static twin, no plan for the precision, no plugin library, or a value out of
            range.
        DyndeployError: TensorRT is missing or failed.
    """
    schedule = Schedule(DEFAULT_RATES if rates is None else tuple(rates), repeats, min_seconds, warmup, images, seed)
    require_comparable(bundle)
    require_one_graph(bundle, settings or EngineSettings())
    progress("checking the bundle", 0.0)
    bundle.require_intact()
    settings = replace((settings or EngineSettings()).of(bundle), static=False)
    masks, machine = bundle.manifest.masks, machine_facts()
    batches, source = schedule.batches(bundle, data)
    graphs = labelled_graphs(bundle, bodies=False)
    with ExitStack() as stack:
        notes = stack.enter_context(machine_turn())
        sessions, built = {}, {}
        for name, graph in graphs.items():
            progress(f"building the {name} engine", 0.0)
            sessions[name], built[name] = TensorRTSession.from_graph(graph.model, settings, device=device)
            stack.enter_context(sessions[name])
        # Whole runs, which refuse what is not finite: times of wrong results are worth nothing.
        results = [sessions[DYNAMIC].run(batch) for batch in batches]
        own = own_configuration(batches, [{mask.name: result[mask.name] for mask in masks} for result in results])
        configurations = [*forced_configurations(masks, batches, schedule), own]
        for batch in batches:
            sessions[STATIC].run(_of(sessions[STATIC], batch))
        for configuration in configurations[:-1]:
            for feeds in _forced_feeds(configuration):
                sessions[FORCED].run(feeds)
        twins = {id(batch): sessions[STATIC].timed_run(_of(sessions[STATIC], batch)) for batch in batches}
        pairs = [
            Paired(
                configuration.label,
                [sessions[DYNAMIC].timed_run(feeds) for feeds in configuration.feeds]
                if configuration.kind == DATA
                else [sessions[FORCED].timed_run(feeds) for feeds in _forced_feeds(configuration)],
                [twins[id(feeds)] for feeds in configuration.feeds],
            )
            for configuration in configurations
        ]
        rounds = time_rounds(pairs, DeviceClock(), repeats, min_seconds, warmup, progress)
        progress("timing the layers", 0.9)
        times = [_times(graphs, sessions, configuration) for configuration in configurations]
        info, note, gpu = sessions[DYNAMIC].info, sessions[DYNAMIC].graph_note, sessions[DYNAMIC].gpu
    plan = built[DYNAMIC].plan
    return assemble(
        bundle,
        plan.precision,
        configurations,
        pairs,
        times,
        machine={**machine, "gpu": info.provider, "warnings": notes},
        **device_facts(info, gpu.name, choice),
        native={
            "path": info.native.path,
            "sha256": info.native.sha256,
            "description": info.native.description,
            "operators": [name for name, _ in plan.plugins],
        },
        threads=1,
        settings={
            **schedule.settings(rounds, len(batches), source),
            "build_plan": plan.to_json(),
            "graph_note": note,
            "plugin_layers": built[DYNAMIC].metadata["plugin_layers"],
            "plugin_layers_note": built[DYNAMIC].metadata["layers_note"],
        },
    )


def _of(session: TensorRTSession, feeds: Feeds) -> Feeds:
    """Those of the inputs that a session takes: a twin may need fewer."""
    return {info.name: feeds[info.name] for info in session.inputs}


def _forced_feeds(configuration: Configuration) -> list[Feeds]:
    return [
        {**feeds, **{PREFIX + name: mask for name, mask in masks.items()}}
        for feeds, masks in zip(configuration.feeds, configuration.masks, strict=True)
    ]


def _times(
    graphs: dict[str, LabelledGraph], sessions: dict[str, TensorRTSession], configuration: Configuration
) -> GroupTimes:
    """Times by block, averaged over the inputs; all masks come from inputs, the data's own ones as well."""
    static, dynamic = (
        group_times(
            graphs[name],
            [
                sessions[name].layer_times(_of(sessions[name], feeds), _LAYER_RUNS)
                for feeds in _forced_feeds(configuration)[:_MAX_LAYER_INPUTS]
            ],
        )
        for name in (STATIC, FORCED)
    )
    return static, dynamic
