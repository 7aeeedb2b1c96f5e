"""Early exits on a board: every stage built and verified there, every exit timed by the same loop as here."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import INPUT, LOGITS, Bundle, TensorInfo
from dyndeploy.bundle.reference_names import exit_logits
from dyndeploy.confidences import confidences
from dyndeploy.errors import DeviceError
from dyndeploy.fields import Document, Field
from dyndeploy.measure.exits import TIMED_IMAGES, assemble_exits, checked_mix, exit_images
from dyndeploy.measure.inputs import Schedule
from dyndeploy.measure.profile import DATA
from dyndeploy.precisions import tolerance_of
from dyndeploy.remote.client import Content, DeviceClient, JobResult, Progress
from dyndeploy.remote.devices import DeviceEntry
from dyndeploy.remote.payload import (
    StageGraphs,
    module_contents,
    plugin_contents,
    reference_content,
    stage_graphs,
)
from dyndeploy.remote.profiling import (
    ENERGY_SECONDS,
    BoardWork,
    DeviceReport,
    ask_board,
    board_energy,
    board_machine,
    machine_name,
    measured_pair,
    require_space,
    require_verified,
    sent_and_run,
)
from dyndeploy.runtimes.staged import chosen_thresholds, first_reached

_ROUNDING = 1e-4
"""By which a confidence may differ whatever the logits are."""


def profile_exits_on_device(
    bundle: Bundle,
    client: DeviceClient,
    entry: DeviceEntry,
    *,
    threads: int = 1,
    mixes: Sequence[Sequence[float]] = (),
    data: str | os.PathLike[str] | None = None,
    thresholds: Sequence[float] | None = None,
    repeats: int | None = None,
    min_seconds: float = 10.0,
    warmup: int = 3,
    energy_seconds: float = ENERGY_SECONDS,
    progress: Progress = lambda message, fraction: None,
) -> DeviceReport:
    """Measure every exit of a bundle on a board, as :func:`dyndeploy.measure.exits.profile_exits` does here.

    What was sent and built is kept there, as by :func:`~dyndeploy.remote.profile_on_device`.

    Args:
        bundle: Of a network that exits early, with a static twin, for the board's target.
        client: Connected to the board.
        entry: The board.
        threads: Of each stage, on a processor; on a GPU it means nothing.
        mixes: As for :func:`~dyndeploy.measure.exits.profile_exits`, like all that follow.
        data: Folder of images, or None for the reference images.
        thresholds: Of the data's own mix; None takes the bundle's for the precision that the board computes in.
        repeats: Rounds.
        min_seconds: Seconds that the rounds fill where ``repeats`` is None.
        warmup: Untimed runs.
        energy_seconds: As for :func:`~dyndeploy.remote.profile_on_device`, of every exit.
        progress: Called with what is being done and the fraction done of that step.

    Raises:
        UsageError: The request is impossible: another board, no TensorRT, too little disk, a mix that does not fit.
        VerificationError: The board computes something else than PyTorch did.
        DeviceError: The board, or the connection to it, failed.
    """
    shares = [checked_mix(mix, len(bundle.exits.stages)) for mix in mixes]
    schedule = Schedule(repeats=repeats, min_seconds=min_seconds, warmup=warmup)
    target, facts, versions = ask_board(bundle, client, entry, progress)
    progress("preparing graphs", 0.0)
    tensorrt = target.runtime == "tensorrt"
    graphs = stage_graphs(bundle, target.runtime, versions.get("tensorrt"))
    images, source = exit_images(bundle, data, repeats)
    reference, modules, sent = reference_content(bundle), module_contents(bundle), _images(images)
    sources = plugin_contents(bundle) if tensorrt else {}
    contents = [*graphs.contents.values(), sent, reference, *modules.values(), *sources.values()]
    require_space(client, contents, graphs.contents, facts)
    work = BoardWork(bundle, client, target, versions, threads, modules, progress, energy_seconds)
    limits = chosen_thresholds(bundle, thresholds, work.precision)

    def steps() -> tuple[list[Mapping[str, Any]], JobResult]:
        built = work.build(graphs.contents, graphs.plans, sources)
        checks = _verify(work, built, graphs, reference)
        spec = {**built, "stages": chain_stages(bundle), "timed": TIMED_IMAGES}
        return checks, work.measure("profile_exits", spec, sent, schedule, facts)

    checks, measured = sent_and_run(client, contents, progress, steps)
    where = machine_name(facts)
    root = Document(f"The result of {where}", "Measure once more.", DeviceError).root(measured.value)
    count = len(bundle.exits.stages)
    found = root["confidences"].sequence(lambda item: item.sequence(Field.number, length=count), length=len(images))
    if limits is not None:
        leaves = first_reached(np.array(found).T, limits)
        shares.append((DATA, tuple(float((leaves == index).mean()) for index in range(count))))
    settings: dict[str, Any] = {"rounds": root["rounds"].tally(1), "warmup": warmup, "images": source}
    if tensorrt:
        settings["build_plan"] = work.plans["stage0"]
    sensors = root["sensors"].facts()
    profile = assemble_exits(
        bundle,
        work.precision,
        [
            measured_pair(item, f"exit {stage.exit}")
            for item, stage in zip(
                root["exits"].sequence(lambda item: item, length=count), bundle.exits.stages, strict=True
            )
        ],
        measured_pair(root["staging"], "every stage"),
        root["branched"].optional(lambda item: measured_pair(item, "branches")),
        shares,
        machine=board_machine(facts, versions, sensors, root["clocks_after"].facts()),
        device=target.name,
        runtime={"name": target.runtime, "version": versions[target.runtime], "provider": root["provider"].label()},
        threads=threads,
        settings=settings,
        note=_note(root["note"].label(), tensorrt),
        native=work.native(),
        energy=board_energy(root, 1),
    )
    client.forget(measured.key)
    return DeviceReport(profile, facts, tuple(checks), dict(work.done), client.uploaded)


def _images(images: npt.NDArray[np.float32]) -> Content:
    stream = io.BytesIO()
    np.savez_compressed(stream, images=images)
    return Content.of(stream.getvalue())


def _note(note: str, tensorrt: bool) -> str:
    return f"Stages were not launched as a CUDA graph: {note}" if note and tensorrt else note


def chain_stages(bundle: Bundle) -> list[dict[str, Any]]:
    """What a chain on the board knows of each stage."""

    def tensors(infos: Sequence[TensorInfo]) -> list[list[Any]]:
        return [[info.name, [1, *info.shape[1:]], info.dtype] for info in infos]

    return [
        {
            "exit": stage.exit,
            "engine": f"stage{index}",
            "inputs": tensors(stage.inputs),
            "outputs": tensors(stage.outputs),
        }
        for index, stage in enumerate(bundle.exits.stages)
    ]


def _verify(
    work: BoardWork, built: Mapping[str, Any], graphs: StageGraphs, reference: Content
) -> list[Mapping[str, Any]]:
    """Masks, logits and confidences of every exit against PyTorch's; raises ``VerificationError``."""
    bundle = work.bundle
    stages = bundle.exits.stages
    spec = {
        **built,
        "stages": [
            {"exit": stage.exit, "engine": f"stage{index}", "forced": forced}
            for index, (stage, forced) in enumerate(zip(stages, graphs.forced, strict=True))
        ],
        "inputs": [info.name for info in bundle.manifest.inputs],
        "reference_inputs": {bundle.manifest.inputs[0].name: INPUT},
        "masks": [mask.name for mask in bundle.manifest.masks],
        "outputs": [exit_logits(stage.exit) for stage in stages],
        "static_outputs": {exit_logits(stages[-1].exit): LOGITS},
    }
    verified = work.verify(spec, reference)
    checks: list[Mapping[str, Any]] = list(verified.value["checks"])
    # A mask that is a tie may change everything behind it: then confidences may differ as well.
    if not any(check.get("tied") for check in checks):
        checks += _confidence_checks(work, verified.value.get("confidences"))
        require_verified(checks, work.client.transport.label)
    return checks


def _confidence_checks(work: BoardWork, found: object) -> list[Mapping[str, Any]]:
    """What decides on the board against the measure of PyTorch's logits."""
    bundle, allowed = work.bundle, tolerance_of(work.precision).output
    root = Document("The board's verification", "Measure once more.", DeviceError).root({"confidences": found})
    reference, stages = bundle.reference(), bundle.exits.stages
    rows = root["confidences"].sequence(lambda item: item.sequence(Field.number), length=len(stages))
    checks: list[Mapping[str, Any]] = []
    for stage, row in zip(stages, rows, strict=True):
        logits = reference[exit_logits(stage.exit)]
        wanted = confidences(logits, bundle.exits.confidence)
        error = float(np.abs(np.asarray(row) - wanted).max()) if len(row) == len(wanted) else 1.0
        # A logit may be off by the tolerance of the largest; a share then moves by half of that at most, twice.
        bound = _ROUNDING + allowed * float(np.abs(logits).max())
        checks.append({"name": f"confidence of exit {stage.exit}", "passed": error <= bound, "relative_error": error})
    return checks
