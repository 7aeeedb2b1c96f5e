"""From what was timed to a profile: MACs that the masks need, times by block, samples and ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dyndeploy.bundle import MODEL, Bundle
from dyndeploy.graphs.labels import LabelledGraph
from dyndeploy.graphs.macs import GraphMacs, MacCounter
from dyndeploy.graphs.parts import has_parts
from dyndeploy.measure.energy import Energy
from dyndeploy.measure.inputs import Configuration
from dyndeploy.measure.loop import Paired, Visit
from dyndeploy.measure.parts import StepTimes, parts_of
from dyndeploy.measure.profile import DATA, FORCED, STATIC_NAME, BlockTimes, Profile, RateResult
from dyndeploy.measure.samples import Samples
from dyndeploy.prediction import bundle_record
from dyndeploy.runtimes import NodeTime, SessionInfo
from dyndeploy.runtimes.choice import RuntimeChoice
from dyndeploy.targets import device_of_gpu

GroupTimes = tuple[Mapping[str, float], Mapping[str, float]]
"""Milliseconds by block of the static twin and of the dynamic network; empty where the runtime gives none."""


def device_facts(info: SessionInfo, gpu_name: str | None, choice: RuntimeChoice | None) -> dict[str, Any]:
    """What a profile says about what computed: ``device`` and ``runtime``.

    Args:
        info: Of a session that was measured.
        gpu_name: CUDA's name of the GPU; None for the CPU.
        choice: What was decided to run, with its reason; None where nobody was asked.
    """
    return {
        "device": "cpu" if gpu_name is None else device_of_gpu(gpu_name) or gpu_name,
        "runtime": {
            "name": info.runtime,
            "version": info.version,
            "provider": info.provider,
            **({} if choice is None else {"why": choice.reason}),
        },
    }


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
        "input_size": None if manifest.input_size is None else list(manifest.input_size),
        "model_sha256": manifest.files.get(MODEL),
        "static_sha256": None if bundle.static is None else manifest.files.get(bundle.static.name),
        "masks": [{"name": mask.name, "block": mask.block, "kind": mask.kind} for mask in manifest.masks],
        "operators": list(manifest.operator_types),
        "tools": dict(manifest.tools),
        "notes": list(manifest.notes),
    }


def group_times(graph: LabelledGraph, runs: Sequence[Iterable[tuple[str, float]]]) -> dict[str, float]:
    """Milliseconds by block, averaged over the inputs.

    Args:
        graph: Knows which block a layer's name belongs to.
        runs: Names and milliseconds of the layers, one entry per input; without one, nothing is known.
    """
    if not runs:
        return {}
    groups = [graph.group_times(NodeTime(name, "", 1000 * ms, 1000 * ms) for name, ms in run) for run in runs]
    return {group: float(np.mean([times[group] for times in groups])) for group in groups[0]}


def samples_of(visits: Sequence[Visit]) -> Samples:
    """The runs of visits, in order."""
    cpu = [visit.cpu_ms for visit in visits]
    preempted = [visit.preempted for visit in visits]
    return Samples(
        ms=tuple(ms for visit in visits for ms in visit.ms),
        inputs=tuple(visit.input for visit in visits for _ in visit.ms),
        cpu_ms=None if None in cpu else tuple(ms for times in cpu for ms in times or ()),
        preempted=None if None in preempted else sum(count or 0 for count in preempted),
    )


def assemble(
    bundle: Bundle,
    precision: str,
    configurations: Sequence[Configuration],
    pairs: Sequence[Paired],
    times: Sequence[GroupTimes],
    *,
    machine: Mapping[str, Any],
    device: str,
    runtime: Mapping[str, Any],
    native: Mapping[str, Any],
    threads: int,
    settings: Mapping[str, Any],
    energy: Callable[[Sequence[str]], Energy | None] = lambda names: None,
    steps: Sequence[Sequence[StepTimes]] = (),
) -> Profile:
    """Make a profile.

    Args:
        bundle: What was measured.
        precision: What its bottlenecks computed in.
        configurations: In the order in which they were timed.
        pairs: What the loop filled, one per configuration.
        times: Times by block, one per configuration.
        machine: As for :class:`Profile`, like all that follow.
        device: Name of the device.
        runtime: Name, version, provider.
        native: Operator library.
        threads: How many threads a session computes with.
        settings: Rounds and so on.
        energy: Gives the energies of the entries with these names, if they were measured.
        steps: Of a network in parts, times of its engines and host programs, one per configuration.
    """
    counter, static_macs = MacCounter(bundle.load_model()), MacCounter(bundle.load_static()).count()
    results = [
        _rate_result(bundle, configuration, pair, counter, static_macs, *groups, own)
        for configuration, pair, groups, own in zip(
            configurations, pairs, times, steps or [()] * len(pairs), strict=True
        )
    ]
    return Profile(
        bundle=bundle_facts(bundle, precision),
        machine=machine,
        device=device,
        runtime=runtime,
        native=native,
        threads=threads,
        batch=bundle.manifest.batch,
        settings=settings,
        static_macs=float(static_macs.per_sample.mean()),
        static=samples_of([visit for pair in pairs for visit in pair.twin_visits]),
        rates=tuple(result for result in results if result.masks == FORCED),
        data=next(result for result in results if result.masks == DATA),
        graph=bundle_record(bundle),
        energy=energy([STATIC_NAME, *(result.name for result in results)]),
        dynamic_macs=sum(
            float(static_macs.blocks[block].mean())
            for block in {mask.block for mask in bundle.manifest.masks} & static_macs.blocks.keys()
        ),
    )


def _rate_result(
    bundle: Bundle,
    configuration: Configuration,
    pair: Paired,
    counter: MacCounter,
    static_macs: GraphMacs,
    static_times: Mapping[str, float],
    times: Mapping[str, float],
    steps: Sequence[StepTimes],
) -> RateResult:
    needed = [counter.count(masks) for masks in configuration.masks]

    def mean_macs(graphs: Sequence[GraphMacs]) -> dict[str, float]:
        return {group: float(np.mean([graph.blocks[group].mean() for graph in graphs])) for group in graphs[0].blocks}

    static_by_group, needed_by_group = mean_macs([static_macs]), mean_macs(needed)

    def part(group: str) -> BlockTimes:
        static, dynamic = static_by_group.get(group, 0.0), needed_by_group.get(group, 0.0)
        ideal = static / dynamic if static > 0 and dynamic > 0 else None
        return BlockTimes(group, static_times.get(group, 0.0), times.get(group, 0.0), ideal)

    known = bool(times or static_times)
    blocks = list(dict.fromkeys(operator.block for operator in bundle.manifest.operators)) if known else []
    rest = [group for group in dict.fromkeys((*times, *static_times)) if group not in blocks]
    needed_macs = float(np.mean([graph.per_sample.mean() for graph in needed]))
    cpu_ratios = [cpu for _, _, cpu in pair.ratios if cpu is not None]
    names = [mask.name for mask in bundle.manifest.masks]
    return RateResult(
        rate=configuration.rate,
        masks=configuration.kind,
        mask_rates={name: float(np.mean([masks[name].mean() for masks in configuration.masks])) for name in names},
        samples=samples_of(pair.visits),
        needed_macs=needed_macs,
        ideal_speedup=float(static_macs.per_sample.mean()) / needed_macs,
        ratios=tuple(ratio for _, ratio, _ in pair.ratios),
        ratio_inputs=tuple(index for index, _, _ in pair.ratios),
        cpu_ratios=tuple(cpu_ratios) if len(cpu_ratios) == len(pair.ratios) else None,
        blocks=tuple(part(block) for block in blocks),
        rest=tuple(part(group) for group in rest),
        overflows=_means([counter.overflows(masks) for masks in configuration.masks]),
        parts=parts_of(static_times, times, static_by_group, needed_by_group) if has_parts(counter.groups) else (),
        steps=tuple(steps),
    )


def _means(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {block: float(np.mean([share[block] for share in shares])) for block in (shares[0] if shares else ())}
