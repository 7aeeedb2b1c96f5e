"""Profiling on a board: probe, refuse, upload, build, verify, profile, fetch. The result is a profile."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import Bundle
from dyndeploy.bundle.device_files import LIBRARY, plugin_build
from dyndeploy.errors import DeviceError, UsageError, VerificationError
from dyndeploy.fields import Document, Field
from dyndeploy.measure import DEFAULT_RATES, Profile
from dyndeploy.measure.energy import Energy, measured_energy
from dyndeploy.measure.exits import ExitProfile, require_exits_measurable
from dyndeploy.measure.inputs import Schedule, own_configuration, require_comparable
from dyndeploy.measure.loop import Paired, Visit
from dyndeploy.measure.parts import StepTimes
from dyndeploy.measure.result import assemble
from dyndeploy.measure.runners.engine import DYNAMIC, FORCED, STATIC
from dyndeploy.precisions import tolerance_of
from dyndeploy.remote.chains import (
    compared_samples,
    detection_checks,
    network_times,
    require_chain_memory,
    step_times,
)
from dyndeploy.remote.client import Content, DeviceClient, JobResult, MissingError, Progress
from dyndeploy.remote.devices import DeviceEntry
from dyndeploy.remote.payload import (
    Graphs,
    Inputs,
    device_graphs,
    device_inputs,
    module_contents,
    plugin_contents,
    reference_content,
    require_static_parts,
)
from dyndeploy.runtimes import FALLBACK_BODIES
from dyndeploy.runtimes.machine import calendar_notes
from dyndeploy.runtimes.tensorrt_plan import BuildPlan
from dyndeploy.targets import PowerMode, Target, load_target

_Results = TypeVar("_Results")

ENERGY_SECONDS = 4.0

SPARE_MB = 256
"""Megabytes that stay free on a board's disk."""

THROTTLE = 0.97
"""A clock below this fraction of its highest during a measurement counts as fallen."""


@dataclass(frozen=True)
class DeviceReport:
    """A profile taken on a board, with how it came about.

    Attributes:
        profile: The measurement.
        facts: What the board said of itself.
        checks: Checks of the verification there, in order; all passed.
        steps: What was done per step: ``"found"`` (an earlier run had done it) or ``"done"``.
        uploaded_bytes: Sent this time.
    """

    profile: Profile | ExitProfile
    facts: Mapping[str, Any]
    checks: tuple[Mapping[str, Any], ...]
    steps: Mapping[str, str]
    uploaded_bytes: int


def profile_on_device(
    bundle: Bundle,
    client: DeviceClient,
    entry: DeviceEntry,
    *,
    threads: int = 1,
    rates: Sequence[float] | None = None,
    data: str | os.PathLike[str] | None = None,
    images: int = 32,
    repeats: int | None = None,
    min_seconds: float = 10.0,
    warmup: int = 3,
    seed: int = 0,
    energy_seconds: float = ENERGY_SECONDS,
    progress: Progress = lambda message, fraction: None,
) -> DeviceReport:
    """Measure a bundle on a board.

    A lost connection loses nothing: what was sent is kept, running steps go on there, and the same call later takes
    finished steps as they are. A profile that was fetched once is measured anew the next time.

    Args:
        bundle: With a static twin, for the board's target.
        client: Connected to the board.
        entry: The board.
        threads: How many threads a processor's sessions compute with; on a GPU it means nothing.
        rates: As for :func:`dyndeploy.measure.profile_bundle`, like all that follow.
        data: Folder of images, or None for the reference images.
        images: At most so many of the folder.
        repeats: Rounds.
        min_seconds: Seconds that the rounds fill where ``repeats`` is None.
        warmup: Untimed runs.
        seed: Seed of the random numbers that the forced masks are drawn with.
        energy_seconds: How long each network and rate runs by itself while the board's power sensor is read, after
            the rounds; 0 for not at all. Where there is no sensor it takes no time.
        progress: Called with what is being done and the fraction done of that step.

    Raises:
        UsageError: The request is impossible: another board, no TensorRT, too little disk.
        VerificationError: The board computes something else than PyTorch did.
        DeviceError: The board, or the connection to it, failed.
    """
    schedule = Schedule(DEFAULT_RATES if rates is None else tuple(rates), repeats, min_seconds, warmup, images, seed)
    target, facts, versions = ask_board(bundle, client, entry, progress)
    progress("preparing graphs", 0.0)
    tensorrt = target.runtime == "tensorrt"
    graphs = device_graphs(bundle, target.runtime, versions.get("tensorrt"))
    require_chain_memory(bundle, graphs)
    inputs = device_inputs(bundle, schedule, data)
    reference, modules = reference_content(bundle), module_contents(bundle)
    sources = plugin_contents(bundle) if tensorrt else {}
    contents = [
        *graphs.contents.values(),
        *graphs.programs,
        inputs.content,
        reference,
        *modules.values(),
        *sources.values(),
    ]
    require_space(client, contents, graphs.contents, facts)

    work = BoardWork(bundle, client, target, versions, threads, modules, progress, energy_seconds)
    verified, measured = sent_and_run(
        client, contents, progress, lambda: work.steps(graphs, inputs, reference, sources, schedule, facts)
    )
    profile = _assemble(bundle, target, facts, versions, graphs, inputs, measured, schedule, threads, work)
    client.forget(measured.key)
    return DeviceReport(profile, facts, tuple(verified.value["checks"]), dict(work.done), client.uploaded)


def ask_board(
    bundle: Bundle,
    client: DeviceClient,
    entry: DeviceEntry,
    progress: Progress,
    require: Callable[[Bundle, DeviceEntry], Target] | None = None,
) -> tuple[Target, Mapping[str, Any], dict[str, str]]:
    """The bundle's target, and what the board says of itself and of its software.

    Args:
        bundle: The bundle.
        client: Connected to the board.
        entry: The board.
        progress: Is told that the board is asked.
        require: Refuses what no board could do; None takes :func:`require_measurable`.

    Raises:
        BundleError: The bundle is damaged.
        UsageError: What is asked is impossible there.
        DeviceError: The board, or the connection to it, failed.
    """
    target = (require or require_measurable)(bundle, entry)
    bundle.require_intact()
    progress("asking the board", 0.0)
    facts = client.probe()
    require_possible(bundle, target, facts, entry)
    return target, facts, software_versions(facts)


def sent_and_run(
    client: DeviceClient, contents: Sequence[Content], progress: Progress, steps: Callable[[], _Results]
) -> _Results:
    """Send files and run steps; once more from the upload on where a file was removed or damaged there meanwhile."""
    for last in (False, True):
        try:
            client.upload(contents, progress)
            return steps()
        except MissingError:
            if last:
                raise
    raise AssertionError("unreachable")


# ---------------------------------------------------------------- what is possible


def require_measurable(bundle: Bundle, entry: DeviceEntry) -> Target:
    """Refuse what no board could do, before one is asked; raises ``UsageError``."""
    if bundle.manifest.exits is None:
        require_comparable(bundle)
        require_static_parts(bundle)
    else:
        require_exits_measurable(bundle)
    return require_runnable(bundle, entry)


def require_runnable(bundle: Bundle, entry: DeviceEntry) -> Target:
    """As :func:`require_measurable`, for a bundle that is only run."""
    manifest = bundle.manifest
    target = load_target(manifest.target)
    if target.runtime == "tensorrt" and entry.target not in (None, target.name):
        raise UsageError(
            f"The bundle was exported for {target.name}, and the device '{entry.name}' is a {entry.target}. Export it "
            f"again with --target {entry.target}."
        )
    target.require_precision(manifest.precision)
    if target.runtime != "tensorrt" and manifest.precision != manifest.graph_precision:
        raise UsageError(
            f"On another machine's CPU the function bodies run, which compute in {manifest.graph_precision}, not in "
            f"{manifest.precision}. "
            "Export the bundle again with --precision fp32."
        )
    return target


def require_possible(bundle: Bundle, target: Target, facts: Mapping[str, Any], entry: DeviceEntry) -> None:
    """Refuse what this board cannot do, from what it says of itself; raises ``UsageError``."""
    name, modules = entry.name, facts["modules"]
    board = machine_name(facts)
    if target.runtime == "tensorrt":
        if facts["target"] is None:
            raise UsageError(
                f"The bundle was exported for {target.name}, and '{name}' is {board}: no known device. Export it with "
                "--target cpu to measure it there."
            )
        if facts["target"] != target.name:
            raise UsageError(
                f"The bundle was exported for {target.name}, and '{name}' is a {facts['target']} ({board}). Export it "
                f"again with --target {facts['target']}."
            )
    needed = ("numpy", "tensorrt", "pycuda") if target.runtime == "tensorrt" else ("numpy", "onnxruntime")
    lacking = {module: modules.get(module, {}).get("error", "not found") for module in needed}
    lacking = {module: why for module, why in lacking.items() if "version" not in modules.get(module, {})}
    if lacking:
        advice = {
            "tensorrt": "install NVIDIA's packages tensorrt and python3-libnvinfer, which bring its headers along"
            if target.is_card
            else "JetPack brings it: install the package nvidia-jetpack (or python3-libnvinfer)",
            "pycuda": "'pip3 install pycuda' there, with nvcc in the PATH",
            "numpy": "'sudo apt-get install python3-numpy' there",
            "onnxruntime": "'pip3 install onnxruntime' there",
        }
        details = "; ".join(f"{module} ({why}): {advice[module]}" for module, why in lacking.items())
        raise UsageError(
            f"'{name}' ({board}, Python {facts['python']}, {facts['interpreter']}) lacks {details}. If another Python "
            "there has it, such as /usr/bin/python3, name it with 'dyndeploy device add ... --python'."
        )
    if target.runtime == "tensorrt":
        version = str(modules["tensorrt"]["version"])
        if _pair(version) < (8, 2):
            raise UsageError(f"'{name}' has TensorRT {version}; 8.2 is the oldest that is supported. Update it.")
        if target.is_card and target.software and _pair(version) > _pair(str(target.runtime_version)):
            raise UsageError(f"'{name}' ({board}) has TensorRT {version}, and {target.software}. Install that.")
        if not facts["cmake"] and not facts["cuda"]["nvcc"]:
            raise UsageError(f"'{name}' has neither cmake nor nvcc to build the plugins with: 'apt-get install cmake'.")


def machine_name(facts: Mapping[str, Any]) -> str:
    """What a machine is called: a board by its own name, a computer by its cards, or by its processor."""
    cards = " and ".join(str(gpu["name"]) for gpu in facts.get("gpus", ()))
    return str(facts["model"] or cards or facts["cpu"] or "an unknown machine")


def _pair(version: str) -> tuple[int, int]:
    parts = [int(part) if part.isdigit() else 0 for part in version.split(".")[:2]]
    return parts[0], parts[1] if len(parts) > 1 else 0


def require_space(
    client: DeviceClient, contents: Sequence[Content], graphs: Mapping[str, Content], facts: Mapping[str, Any]
) -> None:
    """Refuse a board whose disk is too full for files and engines; raises ``UsageError``."""
    engines = 2 * sum(content.size for content in graphs.values())
    needed = (client.missing_bytes(contents) + engines >> 20) + SPARE_MB
    if facts["disk_free_mb"] < needed:
        raise UsageError(
            f"The board has {facts['disk_free_mb']} MB of free disk, and this needs about {needed} MB. Free some space "
            "there ('dyndeploy device clean NAME' removes what earlier runs left)."
        )


def software_versions(facts: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the software that an engine depends on."""
    found = {name: str(value["version"]) for name, value in facts["modules"].items() if "version" in value}
    if facts["cuda"]["version"]:
        found["cuda"] = str(facts["cuda"]["version"])
    if facts["l4t"]:
        found["l4t"] = str(facts["l4t"])
    return found


# ---------------------------------------------------------------- the steps there

BOARD_TENSORRT = ("tensorrt_device", "tensorrt_inspector")
"""Modules that a job with TensorRT runs."""


class BoardWork:
    """Runs the steps on the board and remembers which had been done before."""

    def __init__(
        self,
        bundle: Bundle,
        client: DeviceClient,
        target: Target,
        versions: Mapping[str, str],
        threads: int,
        modules: Mapping[str, Content],
        progress: Progress,
        energy_seconds: float = 0.0,
    ) -> None:
        self._energy_seconds = energy_seconds
        self.bundle, self.client, self.target = bundle, client, target
        self.versions, self.threads, self._progress = dict(versions), threads, progress
        self._modules = {name: content.sha256 for name, content in modules.items()}
        self.done: dict[str, str] = {}
        self.library: dict[str, str] = {}
        self.plans: dict[str, dict[str, Any]] = {}
        self.engines: dict[str, Mapping[str, Any]] = {}

    def run(self, step: str, kind: str, spec: Mapping[str, Any]) -> JobResult:
        """Run a job, or find it done."""
        result = self.client.run(kind, spec, lambda message, fraction: self._progress(f"{step}: {message}", fraction))
        self.done[step] = "found" if result.found else "done"
        return result

    def chained(
        self, chains: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str], spec: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What jobs are told besides the engines: of a network in parts its chains, which give these results."""
        if not chains:
            return dict(spec)
        modules = {**spec["modules"], "host_program": self._modules["host_program"]}
        return {**spec, "chains": chains, "results": list(names), "modules": modules}

    def build(
        self,
        contents: Mapping[str, Content],
        plans: Mapping[str, BuildPlan],
        sources: Mapping[str, Content],
    ) -> dict[str, Any]:
        """Build plugins and engines; returns what jobs that run them are told."""
        tensorrt = self.target.runtime == "tensorrt"
        plugins = None
        if tensorrt:
            checksums = {name: content.sha256 for name, content in sources.items()}
            spec = {**plugin_build(self.target.name), "sources": checksums, "versions": self.versions}
            built = self.run("plugins", "plugins", spec)
            plugins, self.library = built.key, built.value["files"]
        # A job is named by all that it is given: each gets only what it uses, so that nothing is built twice.
        device = {name: self._modules[name] for name in BOARD_TENSORRT} if tensorrt else {}
        common: dict[str, Any] = {
            "runtime": self.target.runtime,
            "plugins": plugins,
            "library": LIBRARY,
            "threads": self.threads,
            "versions": self.versions,
            "modules": device,
        }
        self.plans = {name: plan.with_library(self.library.get(LIBRARY)).to_json() for name, plan in plans.items()}
        engines = {
            name: self.run(
                f"engine {name}", "engine", {**common, "model": content.sha256, "plan": self.plans.get(name)}
            )
            for name, content in contents.items()
        }
        self.engines = {name: engine.value for name, engine in engines.items()}
        return {
            **common,
            "engines": {name: engine.key for name, engine in engines.items()},
            # An engine that was built again may be another one, and is verified again.
            "checksums": {name: engine.value["files"] for name, engine in engines.items()},
            "cuda_graph": all(plan.cuda_graph for plan in plans.values()),
        }

    def verify(self, spec: Mapping[str, Any], reference: Content) -> JobResult:
        """Compare with PyTorch's results; raises ``VerificationError``."""
        manifest = self.bundle.manifest
        detector = manifest.detection is not None
        verified = self.run(
            "verify",
            "verify",
            {
                **spec,
                "reference": reference.sha256,
                "batch": manifest.batch,
                "tolerance": asdict(tolerance_of(self.precision)),
                **({"compared_there": True, "samples": compared_samples(self.bundle)} if detector else {}),
            },
        )
        if detector:
            verified.value["checks"] += detection_checks(self.bundle, verified.value, self.precision)
        require_verified(verified.value["checks"], self.client.transport.label)
        return verified

    def measure(
        self, kind: str, spec: Mapping[str, Any], content: Content, schedule: Schedule, facts: Mapping[str, Any]
    ) -> JobResult:
        """Run a job that measures."""
        return self.run(
            "profile",
            kind,
            {
                **spec,
                "modules": {**spec["modules"], "loop": self._modules["loop"]},
                "repeats": schedule.repeats,
                "min_seconds": schedule.min_seconds,
                "warmup": schedule.warmup,
                "energy_seconds": self._energy_seconds,
                "content": content.sha256,
                # Another power mode is another measurement.
                "power_mode": facts["power_mode"],
            },
        )

    def native(self) -> dict[str, Any]:
        """The operator library that runs there, as profiles record it."""
        if self.target.runtime != "tensorrt":
            return {"path": None, "sha256": None, "description": FALLBACK_BODIES, "operators": []}
        sha256 = self.library.get(LIBRARY)
        return {
            "path": LIBRARY,
            "sha256": sha256,
            "description": f"{LIBRARY} (sha256 {str(sha256)[:12]})",
            "operators": list(self.bundle.manifest.operator_types),
        }

    @property
    def precision(self) -> str:
        """What the board computes in: on a processor the function bodies run, in what the graph is written in."""
        manifest = self.bundle.manifest
        return manifest.precision if self.target.runtime == "tensorrt" else manifest.graph_precision

    def steps(
        self,
        graphs: Graphs,
        inputs: Inputs,
        reference: Content,
        sources: Mapping[str, Content],
        schedule: Schedule,
        facts: Mapping[str, Any],
    ) -> tuple[JobResult, JobResult]:
        """Build, verify, profile; returns the results of the last two."""
        manifest = self.bundle.manifest
        masks, outputs = [mask.name for mask in manifest.masks], [info.name for info in manifest.outputs]
        spec = {
            **self.chained(graphs.chains, outputs + masks, self.build(graphs.contents, graphs.plans, sources)),
            "inputs": [info.name for info in manifest.inputs],
            "masks": masks,
            "outputs": outputs,
        }
        verified = self.verify(spec, reference)
        counts = {
            "batches": len(inputs.batches),
            "draws": [len(configuration.masks) for configuration in inputs.forced],
        }
        return verified, self.measure("profile", {**spec, **counts}, inputs.content, schedule, facts)


def require_verified(checks: Sequence[Mapping[str, Any]], where: str) -> None:
    wrong = [check for check in checks if not check["passed"]]
    if wrong:
        details = "; ".join(
            check["name"]
            + (f" (relative error {check['relative_error']:.3g})" if "relative_error" in check else "")
            + (f" ({check['flipped']} of {check['bits']} bits flipped)" if "flipped" in check else "")
            + (f" ({check['detail']})" if "detail" in check else "")
            for check in wrong
        )
        raise VerificationError(
            f"{where} does not compute what PyTorch computed: {details}. A time of wrong results is worth nothing, so "
            "nothing was profiled. 'dyndeploy verify BUNDLE' tells whether the bundle is right on this machine."
        )


# ---------------------------------------------------------------- the result


def _assemble(
    bundle: Bundle,
    target: Target,
    facts: Mapping[str, Any],
    versions: Mapping[str, str],
    graphs: Graphs,
    inputs: Inputs,
    measured: JobResult,
    schedule: Schedule,
    threads: int,
    work: BoardWork,
) -> Profile:
    """A profile from what the board sent."""
    manifest, where = bundle.manifest, machine_name(facts)
    root = Document(f"The result of {where}", "Measure once more.", DeviceError).root(measured.value)
    own = root["own_masks"].sequence(lambda item: _unpacked(item, bundle), length=len(inputs.batches))
    configurations = [*inputs.forced, own_configuration(inputs.batches, own)]
    count = len(configurations)
    pairs = [
        measured_pair(entry, configuration.label)
        for entry, configuration in zip(
            root["pairs"].sequence(lambda item: item, length=count), configurations, strict=True
        )
    ]
    times = root["layers"].sequence(
        lambda item: (
            network_times(graphs, STATIC, item["static"]),
            network_times(graphs, FORCED, item["dynamic"]),
        ),
        length=count,
    )
    steps: tuple[tuple[StepTimes, ...], ...] = ()
    if graphs.chains:
        steps = root["parts"].sequence(lambda item: step_times(bundle, item), length=count)
    sensors = root["sensors"].facts()
    tensorrt = target.runtime == "tensorrt"
    settings = schedule.settings(root["rounds"].tally(1), len(inputs.batches), inputs.source)
    if tensorrt:
        deployed = [part["engine"] for part in graphs.chains.get(DYNAMIC, [{"engine": DYNAMIC}]) if "engine" in part]
        document = Document(f"The engine of {where}", "Build it once more.", DeviceError)
        engines = [document.root(work.engines[name]) for name in deployed]
        settings |= {
            "build_plan": work.plans[deployed[0]],
            "graph_note": root["note"].label(),
            "plugin_layers": {
                name: facts for engine in engines for name, facts in engine["plugins"].mapping(Field.facts).items()
            },
            "plugin_layers_note": next((note for engine in engines if (note := engine["note"].label())), ""),
        }
    return assemble(
        bundle,
        manifest.precision,
        configurations,
        pairs,
        times,
        machine=board_machine(facts, versions, sensors, root["clocks_after"].facts()),
        device=target.name,
        runtime={"name": target.runtime, "version": versions[target.runtime], "provider": root["provider"].label()},
        native=work.native(),
        threads=threads,
        settings=settings,
        energy=board_energy(root, manifest.batch),
        steps=steps,
    )


def board_energy(root: Field, batch: int) -> Callable[[Sequence[str]], Energy | None]:
    """What the power sensor gave, for entries by their names."""
    return lambda names: root.get("energy").optional(lambda item: measured_energy(item, names, batch))


def _unpacked(item: Field, bundle: Bundle) -> dict[str, npt.NDArray[np.float32]]:
    masks = {}
    for mask in bundle.manifest.masks:
        count = int(np.prod(mask.shape))
        try:
            packed = base64.b64decode(item[mask.name].text(), validate=True)
        except ValueError:
            packed = b""
        item[mask.name].require(len(packed) == -(-count // 8), f"{count} packed bits")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8))
        masks[mask.name] = bits[:count].astype(np.float32).reshape(mask.shape)
    return masks


def measured_pair(item: Field, label: str) -> Paired:
    """What the loop measured there."""
    pair = Paired(label, (), ())
    pair.visits = list(item["visits"].sequence(_visit, at_least=1))
    pair.twin_visits = list(item["twin_visits"].sequence(_visit))
    pair.ratios = list(item["ratios"].sequence(_ratio, at_least=1))
    return pair


def _visit(item: Field) -> Visit:
    index, ms, cpu_ms, preempted = item.sequence(lambda part: part, length=4)
    times = list(ms.sequence(Field.positive, at_least=1))
    cpu = cpu_ms.optional(lambda part: list(part.sequence(Field.positive, length=len(times))))
    return Visit(index.tally(), times, cpu, preempted.optional(Field.tally))


def _ratio(item: Field) -> tuple[int, float, float | None]:
    index, ratio, cpu = item.sequence(lambda part: part, length=3)
    return index.tally(), ratio.positive(), cpu.optional(Field.positive)


def board_machine(
    facts: Mapping[str, Any], versions: Mapping[str, str], sensors: Mapping[str, Any], clocks_after: Mapping[str, Any]
) -> dict[str, Any]:
    cpu = facts["clocks"].get("cpu") or {}
    jetpack = f", L4T {facts['l4t']} (JetPack {facts['jetpack'] or 'unknown'})" if facts["l4t"] else ""
    return {
        "cpu": facts["model"] or facts["cpu"],
        "architecture": facts["architecture"],
        "isa": [],
        "physical_cores": None,
        "logical_cores": facts["cores"],
        "memory_gb": None if facts["memory"]["total_mb"] is None else round(facts["memory"]["total_mb"] / 1024, 2),
        "os": facts["os"] + jetpack,
        "governor": cpu.get("governor"),
        "frequency_mhz": None if cpu.get("current") is None else cpu["current"] / 1000,
        "load_average": facts["load_average"],
        "python": facts["python"],
        "versions": dict(versions),
        "date": facts["date"],
        "board": facts["target"],
        **({"gpu": machine_name(facts)} if facts.get("gpus") else {}),
        "jetpack": facts["jetpack"],
        "l4t": facts["l4t"],
        "power_mode": facts["power_mode"],
        "clocks": facts["clocks"],
        "sensors": sensors,
        "warnings": device_warnings(facts, sensors.get("summary", {}), clocks_after),
        "device_facts": _readable(facts, sensors.get("summary", {})),
    }


def _readable(facts: Mapping[str, Any], sensors: Mapping[str, Any]) -> dict[str, str]:
    """Lines for a report."""
    lines = {}
    if facts["power_mode"] is not None:
        lines["Power mode"] = str(facts["power_mode"]["name"])
    if "power_mw" in sensors:
        power = sensors["power_mw"]
        rails = sensors["power_rails"]
        lines["Power"] = f"{power['mean'] / 1000:.2f} W on average, {power['max'] / 1000:.2f} W at most ({rails})"
    if "temperatures_c" in sensors:
        hottest = sorted(sensors["temperatures_c"].items(), key=lambda item: -float(item[1]))[:3]
        lines["Temperature"] = ", ".join(f"{name} {degrees:.1f} degrees Celsius" for name, degrees in hottest)
    if "gpu_mhz" in sensors:
        lines["GPU clock"] = f"{sensors['gpu_mhz']['min']} to {sensors['gpu_mhz']['max']} MHz while measuring"
    return lines


def device_warnings(
    facts: Mapping[str, Any], sensors: Mapping[str, Any], clocks_after: Mapping[str, Any] | None = None
) -> list[str]:
    """What a reader should know about the clocks of the board during a measurement, the one of its calendar included.

    Args:
        facts: What the board said of itself when it was probed.
        sensors: Summary of tegrastats, or of nvidia-smi for a card, during the measurement.
        clocks_after: The clocks when it ended.
    """
    notes = calendar_notes(facts.get("date", ""))
    clocks = facts["clocks"]
    free = [
        f"{name.upper()} {entry['min'] / scale:.0f}-{entry['max'] / scale:.0f} MHz"
        for name, scale in (("gpu", 1e6), ("cpu", 1e3))
        if (entry := clocks.get(name)) and not entry["fixed"]
    ]
    cards = facts.get("gpus") or ()
    seen = sensors.get("gpu_mhz")
    if cards and seen and seen["min"] < THROTTLE * seen["max"]:
        notes.append(
            f"The card's clock moved between {seen['min']} and {seen['max']} MHz under load{_hottest(sensors)}: times "
            f"vary with it. 'sudo nvidia-smi --id=0 --lock-gpu-clocks={seen['min']}' holds it; "
            "--reset-gpu-clocks frees it again."
        )
    if free and facts["target"] is not None and not cards:
        notes.append(
            f"The clocks were not fixed ({', '.join(free)}): times vary with the load before. Run 'sudo jetson_clocks' "
            "on the board first."
        )
    mode, fastest = facts["power_mode"], _fastest_mode(facts)
    if mode is not None and fastest is not None and str(mode["name"]).upper() != fastest.name.upper():
        notes.append(
            f"The board runs in power mode {mode['name']}, which limits its clocks. 'sudo nvpmodel -m {fastest.id}' "
            f"({fastest.name}) gives the highest ones that it has."
        )
    highest = (clocks.get("gpu") or {}).get("max")
    fixed = bool(clocks.get("gpu") and clocks["gpu"]["fixed"])
    if seen and not cards:
        # Without fixed clocks a slow clock may only mean a light load; with them it can only have been taken away.
        top = highest / 1e6 if highest else seen["max"]
        if fixed and seen["min"] < THROTTLE * top:
            notes.append(
                f"The board throttled: the GPU's clock fell to {seen['min']} MHz of {top:.0f} MHz during the "
                f"measurement{_hottest(sensors)}. Cool it, or check its power supply."
            )
    after = (clocks_after or {}).get("gpu") or {}
    if highest and after.get("max") and after["max"] < THROTTLE * highest:
        notes.append(
            f"The board lowered the GPU's highest clock from {highest / 1e6:.0f} to {after['max'] / 1e6:.0f} MHz "
            f"during the measurement{_hottest(sensors)}. Cool it, or check its power supply."
        )
    return notes


def _fastest_mode(facts: Mapping[str, Any]) -> PowerMode | None:
    """The power mode that limits clocks least: of those that the board has, else of those that its kind has."""
    own = [PowerMode(mode["id"], str(mode["name"])) for mode in facts.get("power_modes") or ()]
    ranked = [mode for mode in own if _rank(mode.name) is not None]
    if ranked:
        return max(ranked, key=lambda mode: _rank(mode.name) or ())
    if facts["target"] is None:
        return None
    if str((facts["power_mode"] or {}).get("name")).upper().startswith("MAXN"):
        return None  # Whether there is a faster one only the board itself knows.
    release = _numbers(facts.get("l4t") or "")
    modes = load_target(facts["target"]).power_modes
    return next((mode for mode in modes if _numbers(mode.since) <= release), None)


def _rank(name: str) -> tuple[float, ...] | None:
    """How little a mode limits, by its name: MAXN_SUPER, MAXN, then by watts, then by cores; None where it tells none.

    Names are NVIDIA's (``MODE_20W_6CORE``, ``15W``, ``MODE_30W_ALL``). Modes for a benchmark's rules are none of them.
    """
    found = re.fullmatch(r"(?:MODE_)?(?:(MAXN)(_SUPER)?|(\d+)W(?:_(?:(\d+)CORE|(ALL)))?)", name.upper())
    if found is None:
        return None
    maxn, best, watts, cores, every = found.groups()
    return bool(best), bool(maxn), float(watts or 0), math.inf if every else float(cores or 0)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _hottest(sensors: Mapping[str, Any]) -> str:
    temperatures = sensors.get("temperatures_c") or {}
    if not temperatures:
        return ""
    name = max(temperatures, key=lambda key: float(temperatures[key]))
    return f" ({name} reached {temperatures[name]:.0f} degrees Celsius)"
