"""Detectors on a board: detections that are compared, chains that fit, and times of engines and host programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import Bundle
from dyndeploy.bundle.reference_names import FORCED
from dyndeploy.errors import DeviceError
from dyndeploy.fields import Document, Field
from dyndeploy.graphs.memory import Footprint, model_footprint, require_memory
from dyndeploy.inference.compared import detection_limits, differences, judged
from dyndeploy.measure.parts import StepTimes
from dyndeploy.measure.result import group_times
from dyndeploy.remote.payload import Graphs, unpacked_arrays
from dyndeploy.targets import load_device
from dyndeploy.tasks.parts import POST_PROCESSING

_SENT_BACK = 64 << 20
"""Bytes of outputs that a verification sends back at most, unless a single sample has more."""


def compared_samples(bundle: Bundle) -> int:
    """Samples of the reference whose outputs are compared on this machine."""
    manifest = bundle.manifest
    size = sum(int(np.prod(info.shape)) * np.dtype(info.dtype).itemsize for info in manifest.outputs)
    # Under equal, random and all masks, of the twin, and as deployed.
    return manifest.batch * max(1, _SENT_BACK // (5 * size))


def detection_checks(bundle: Bundle, value: Mapping[str, Any], precision: str) -> list[dict[str, Any]]:
    """What the board found, computing in a precision, beside what PyTorch found, each detection with its partner."""
    info, limits = bundle.manifest.detector(), detection_limits(precision)
    root = Document("The board's verification", "Measure once more.", DeviceError).root(value)
    found = unpacked_arrays(root["outputs"])
    reference = {name: array[: compared_samples(bundle)] for name, array in bundle.reference().items()}

    def of(kind: str) -> dict[str, npt.NDArray[Any]]:
        return {name.removeprefix(f"{kind}/"): array for name, array in found.items() if name.startswith(f"{kind}/")}

    compared = {
        "detections under equal masks": differences(info, of("equal"), reference, reference, limits),
        "detections under random masks": differences(info, of("random"), reference, reference, limits, FORCED),
        "static twin: detections": differences(info, of("static"), of("everything"), reference, limits),
        "detections as deployed": differences(info, of("free"), reference, reference, limits),
    }
    checks = []
    for title, each in compared.items():
        passed, detail = judged(each, limits)
        # A tie may fall the other way and change every mask after it.
        excused = title.endswith("deployed") and any(check.get("tied") for check in value["checks"])
        checks.append({"name": title, "passed": passed or (excused and not isinstance(each, str)), "detail": detail})
    return checks


def require_chain_memory(bundle: Bundle, graphs: Graphs) -> None:
    """Refuse a network in parts of which a board cannot hold all three chains; raises ``UsageError`` with the numbers.

    That one of them fits was seen to when the bundle was exported.
    """
    if not graphs.chains:
        return
    manifest = bundle.manifest
    each = {name: model_footprint(graph.model, manifest.precision) for name, graph in graphs.labels.items()}
    loaded: set[str] = set()
    need = Footprint(0, 0, 0)
    for name in (part["engine"] for chain in graphs.chains.values() for part in chain if "engine" in part):
        # Chains share what both have; each has memory of its own to run it in.
        need += replace(each[name], weights=0) if name in loaded else each[name]
        loaded.add(name)
    name = f"The measurement of {manifest.network.name}, which opens it, its static twin and it with forced masks,"
    require_memory(name, load_device(manifest.target), need)


def network_times(graphs: Graphs, name: str, item: Field) -> dict[str, float]:
    """Milliseconds by block of one of the three networks, averaged over the inputs."""
    if not graphs.chains:
        return group_times(graphs.labels[name], item.sequence(_layers))
    chain = graphs.chains[name]
    inputs = item.sequence(lambda run: run.sequence(lambda part: part, length=len(chain)))
    sums: dict[str, float] = {}
    for index, part in enumerate(chain):
        if "engine" in part:
            found = group_times(graphs.labels[part["engine"]], [_layers(run[index]) for run in inputs])
        else:
            found = {POST_PROCESSING: float(np.mean([run[index].amount() for run in inputs]))}
        for group, ms in found.items():
            sums[group] = sums.get(group, 0.0) + ms
    return sums


def step_times(bundle: Bundle, item: Field) -> tuple[StepTimes, ...]:
    """Times of the engines and host programs of both networks."""
    static, dynamic = (item[key].sequence(Field.amount, length=len(bundle.parts)) for key in ("static", "dynamic"))
    return tuple(StepTimes(part.file, part.host, *ms) for part, *ms in zip(bundle.parts, static, dynamic, strict=True))


def _layers(item: Field) -> tuple[tuple[str, float], ...]:
    """Names and milliseconds of the layers of one run."""

    def layer(part: Field) -> tuple[str, float]:
        name, ms = part.sequence(lambda each: each, length=2)
        return name.label(), ms.amount()

    return item.sequence(layer)
