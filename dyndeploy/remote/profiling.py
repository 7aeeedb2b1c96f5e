"""Profiling on a board: probe, refuse, upload, build, verify, profile, fetch. The result is a profile."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import Bundle
from dyndeploy.errors import DeviceError, UsageError, VerificationError
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.measure import DEFAULT_RATES, Profile
from dyndeploy.measure.profile import DATA, FORCED
from dyndeploy.measure.profiler import Configuration, Visit, bundle_facts, checked_rates, rate_result, samples_of
from dyndeploy.remote.client import Content, DeviceClient, JobResult, MissingError, Progress
from dyndeploy.remote.devices import DeviceEntry
from dyndeploy.remote.payload import (
    LIBRARY,
    PLUGIN_PROJECT,
    Graphs,
    Inputs,
    device_graphs,
    device_inputs,
    plugin_contents,
    reference_content,
    strongly_typed,
)
from dyndeploy.runtimes import FALLBACK_BODIES, NodeTime
from dyndeploy.targets import Target, device_names, load_device, load_target

SPARE_MB = 256
"""Megabytes that stay free on a board's disk."""

THROTTLE = 0.97
"""A clock below this fraction of its highest during a measurement counts as fallen."""

_TOLERANCE = {"fp32": (1e-3, 1e-4, 0.0), "fp16": (3e-2, 1e-2, 2e-3)}
"""Per precision: error of outputs, margin below which a mask bit is a tie, and share of bits that may be ties."""


@dataclass(frozen=True)
class DeviceReport:
    """A profile taken on a board, with how it came about.

    Attributes:
        profile: The measurement.
        facts: What the board said of itself.
        checks: Of the verification there, in order; all passed.
        steps: What was done per step: ``"found"`` (an earlier run had done it) or ``"done"``.
        uploaded_bytes: Sent this time.
    """

    profile: Profile
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
    progress: Progress = lambda message, fraction: None,
) -> DeviceReport:
    """Measure a bundle on a board.

    A lost connection loses nothing: what was sent is kept, running steps go on there, and the same call later takes
    finished steps as they are. A profile that was fetched once is measured anew the next time.

    Args:
        bundle: With a static twin, for the board's target.
        client: Connected to the board.
        entry: The board.
        threads: Of a processor's sessions; a GPU has none.
        rates: As for :func:`dyndeploy.measure.profile_bundle`, like all that follow.
        data: Folder of images, or None for the reference images.
        images: At most so many of the folder.
        repeats: Rounds.
        min_seconds: See ``repeats``.
        warmup: Untimed runs.
        seed: Of the forced masks.
        progress: Called with what is being done and the fraction done of that step.

    Raises:
        UsageError: The request is impossible: another board, no TensorRT, too little disk.
        VerificationError: The board computes something else than PyTorch did.
        DeviceError: The board, or the connection to it, failed.
    """
    chosen = checked_rates(DEFAULT_RATES if rates is None else rates)
    if repeats is not None and repeats < 2:
        raise UsageError(f"repeats={repeats} is not valid: give at least 2, one run has no spread.")
    target = require_measurable(bundle, entry)
    bundle.require_intact()
    progress("asking the board", 0.0)
    facts = client.probe()
    require_possible(bundle, target, facts, entry)
    progress("preparing graphs", 0.0)
    versions = _versions(facts)
    tensorrt = target.runtime == "tensorrt"
    graphs = device_graphs(bundle, target.runtime, versions.get("tensorrt"))
    inputs = device_inputs(bundle, chosen, data=data, images=images, repeats=repeats, seed=seed)
    reference = reference_content(bundle)
    sources = plugin_contents(bundle) if tensorrt else {}
    contents = [*graphs.contents.values(), inputs.content, reference, *sources.values()]
    _require_space(client, contents, graphs, facts)

    work = _Work(bundle, client, target, versions, threads, progress)
    settings = {
        "repeats": repeats,
        "min_seconds": min_seconds,
        "warmup": warmup,
    }
    for last in (False, True):
        try:
            client.upload(contents, progress)
            verified, measured = work.steps(graphs, inputs, reference, sources, settings, facts)
            break
        except MissingError:
            # A file was removed or damaged there since it was sent: once more from the upload on.
            if last:
                raise
    checks = tuple(verified.value["checks"])
    profile = _assemble(
        bundle, target, facts, versions, graphs, inputs, chosen, measured, settings, seed, threads, work
    )
    client.forget(measured.key)
    return DeviceReport(profile, facts, checks, dict(work.done), client.uploaded)


# ---------------------------------------------------------------- what is possible


def require_measurable(bundle: Bundle, entry: DeviceEntry) -> Target:
    """Refuse what no board could do, before one is asked; raises ``UsageError``."""
    manifest = bundle.manifest
    target = load_target(manifest.target)
    if bundle.static is None:
        raise UsageError(f"The bundle {bundle.path} has no static twin to compare with. Export it again with --static.")
    if not manifest.masks:
        raise UsageError(f"The bundle {bundle.path} has no masks: a static network has nothing to compare with.")
    if target.runtime == "tensorrt" and entry.target not in (None, target.name):
        raise UsageError(
            f"The bundle was exported for {target.name}, and the device '{entry.name}' is a {entry.target}. Export it "
            f"again with --target {entry.target}."
        )
    target.require_precision(manifest.precision)
    if target.runtime != "tensorrt" and manifest.precision != "fp32":
        raise UsageError(
            f"On another machine's CPU the function bodies run, which compute in fp32, not in {manifest.precision}. "
            "Export the bundle again with --precision fp32."
        )
    return target


def require_possible(bundle: Bundle, target: Target, facts: Mapping[str, Any], entry: DeviceEntry) -> None:
    """Refuse what this board cannot do, from what it says of itself; raises ``UsageError``."""
    name, modules = entry.name, facts["modules"]
    board = facts["model"] or facts["cpu"] or "an unknown machine"
    if target.runtime == "tensorrt":
        if facts["target"] is None:
            raise UsageError(
                f"The bundle was exported for {target.name}, and '{name}' is {board}: no known board. Export it with "
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
            "tensorrt": "JetPack brings it: install the package nvidia-jetpack (or python3-libnvinfer)",
            "pycuda": "'pip3 install pycuda' on the board, with nvcc in the PATH",
            "numpy": "'sudo apt-get install python3-numpy' on the board",
            "onnxruntime": "'pip3 install onnxruntime' on the board",
        }
        details = "; ".join(f"{module} ({why}): {advice[module]}" for module, why in lacking.items())
        raise UsageError(f"'{name}' ({board}, Python {facts['python']}) lacks {details}.")
    if target.runtime == "tensorrt":
        version = str(modules["tensorrt"]["version"])
        if _pair(version) < (8, 2):
            raise UsageError(f"'{name}' has TensorRT {version}; 8.2 is the oldest that is supported. Update JetPack.")
        if not facts["cmake"] and not facts["cuda"]["nvcc"]:
            raise UsageError(f"'{name}' has neither cmake nor nvcc to build the plugins with: 'apt-get install cmake'.")


def _pair(version: str) -> tuple[int, int]:
    parts = [int(part) if part.isdigit() else 0 for part in version.split(".")[:2]]
    return parts[0], parts[1] if len(parts) > 1 else 0


def _require_space(client: DeviceClient, contents: Sequence[Content], graphs: Graphs, facts: Mapping[str, Any]) -> None:
    engines = 2 * sum(content.size for content in graphs.contents.values())
    needed = (client.missing_bytes(contents) + engines >> 20) + SPARE_MB
    if facts["disk_free_mb"] < needed:
        raise UsageError(
            f"The board has {facts['disk_free_mb']} MB of free disk, and this needs about {needed} MB. Free some space "
            "there ('dyndeploy device clean NAME' removes what earlier runs left)."
        )


def _versions(facts: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the software that an engine depends on."""
    found = {name: str(value["version"]) for name, value in facts["modules"].items() if "version" in value}
    if facts["cuda"]["version"]:
        found["cuda"] = str(facts["cuda"]["version"])
    if facts["l4t"]:
        found["l4t"] = str(facts["l4t"])
    return found


# ---------------------------------------------------------------- the steps there


class _Work:
    """Runs the steps on the board and remembers which had been done before."""

    def __init__(
        self,
        bundle: Bundle,
        client: DeviceClient,
        target: Target,
        versions: Mapping[str, str],
        threads: int,
        progress: Progress,
    ) -> None:
        self._bundle, self._client, self._target = bundle, client, target
        self._versions, self._threads, self._progress = dict(versions), threads, progress
        self.done: dict[str, str] = {}
        self.library: dict[str, str] = {}

    def _run(self, step: str, kind: str, spec: Mapping[str, Any]) -> JobResult:
        result = self._client.run(kind, spec, lambda message, fraction: self._progress(f"{step}: {message}", fraction))
        self.done[step] = "found" if result.found else "done"
        return result

    def steps(
        self,
        graphs: Graphs,
        inputs: Inputs,
        reference: Content,
        sources: Mapping[str, Content],
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> tuple[JobResult, JobResult]:
        """Build, verify, profile; returns the results of the last two."""
        manifest = self._bundle.manifest
        tensorrt = self._target.runtime == "tensorrt"
        plugins = None
        if tensorrt:
            architecture = (_compute_capability(self._target.name) or "").replace(".", "")
            built = self._run(
                "plugins",
                "plugins",
                {
                    "sources": {name: content.sha256 for name, content in sources.items()},
                    "library": LIBRARY,
                    "project": PLUGIN_PROJECT,
                    "definitions": {
                        "CMAKE_BUILD_TYPE": "Release",
                        "DYNDEPLOY_CUDA_KERNELS": "ON",
                        "DYNDEPLOY_CUDA_ARCHITECTURES": architecture,
                    },
                    "architecture": architecture,
                    "versions": self._versions,
                },
            )
            plugins, self.library = built.key, built.value["files"]
        common: dict[str, Any] = {
            "runtime": self._target.runtime,
            "precision": manifest.precision,
            "plugins": plugins,
            "library": LIBRARY,
            "threads": self._threads,
            "versions": self._versions,
        }
        if tensorrt:
            common["typed"] = strongly_typed(self._bundle, self._versions["tensorrt"])
        operators = sorted({operator.op_type for operator in manifest.operators})
        built_engines = {
            name: self._run(
                f"engine {name}",
                "engine",
                {**common, "model": content.sha256, "operators": [] if name == "static" else operators},
            )
            for name, content in graphs.contents.items()
        }
        tolerance, margin, ties = _TOLERANCE[manifest.precision]
        tensors = {
            "engines": {name: engine.key for name, engine in built_engines.items()},
            # An engine that was built again may be another one, and is verified again.
            "checksums": {name: engine.value["files"] for name, engine in built_engines.items()},
            "image": inputs.image,
            "masks": [mask.name for mask in manifest.masks],
            "outputs": [info.name for info in manifest.outputs],
        }
        verified = self._run(
            "verify",
            "verify",
            {
                **common,
                **tensors,
                "reference": reference.sha256,
                "batch": manifest.batch,
                "tolerance": tolerance,
                "margin_tolerance": margin,
                "tie_share": ties,
            },
        )
        _require_verified(verified.value["checks"], self._client.transport.label)
        measured = self._run(
            "profile",
            "profile",
            {
                **common,
                **tensors,
                **settings,
                "inputs": inputs.content.sha256,
                "batches": len(inputs.batches),
                "draws": [len(drawn) for drawn in inputs.forced],
                # Another power mode is another measurement.
                "power_mode": facts["power_mode"],
            },
        )
        return verified, measured


def _compute_capability(target: str) -> str | None:
    if target in device_names():
        return load_device(target).hardware.compute_capability
    known = {"xavier": "7.2", "orin": "8.7"}
    return next((value for word, value in known.items() if word in target), None)


def _require_verified(checks: Sequence[Mapping[str, Any]], where: str) -> None:
    wrong = [check for check in checks if not check["passed"]]
    if wrong:
        details = "; ".join(
            check["name"]
            + (f" (relative error {check['relative_error']:.3g})" if "relative_error" in check else "")
            + (f" ({check['flipped']} of {check['bits']} bits flipped)" if "flipped" in check else "")
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
    rates: Sequence[float],
    measured: JobResult,
    settings: Mapping[str, Any],
    seed: int,
    threads: int,
    work: _Work,
) -> Profile:
    """A profile from what the board sent."""
    manifest, value = bundle.manifest, measured.value
    try:
        own = [_unpacked(entry, bundle) for entry in value["own_masks"]]
        configurations = _configurations(value["configurations"], inputs, rates, own)
        counter, static_macs = MacCounter(bundle.load_model()), MacCounter(bundle.load_static()).count()
        results = [
            rate_result(
                bundle,
                configuration,
                counter,
                static_macs,
                _group_times(graphs, "static", entry["layers"]["static"]),
                _group_times(graphs, "forced", entry["layers"]["dynamic"]),
            )
            for configuration, entry in zip(configurations, value["configurations"], strict=True)
        ]
        rounds, sensors, provider = int(value["rounds"]), value["sensors"], str(value["provider"])
        clocks_after = value["clocks_after"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DeviceError(
            f"The result of {facts['model'] or 'the board'} is malformed ({type(error).__name__}: {error})."
        ) from error
    sha256 = work.library.get(LIBRARY)
    tensorrt = target.runtime == "tensorrt"
    return Profile(
        bundle=bundle_facts(bundle, manifest.precision),
        machine=_machine(facts, versions, sensors, clocks_after),
        device=target.name,
        runtime={"name": target.runtime, "version": versions[target.runtime], "provider": provider},
        native={
            "path": LIBRARY if tensorrt else None,
            "sha256": sha256,
            "description": f"{LIBRARY} (sha256 {str(sha256)[:12]})" if tensorrt else FALLBACK_BODIES,
            "operators": sorted({operator.op_type for operator in manifest.operators}) if tensorrt else [],
        },
        threads=threads,
        batch=manifest.batch,
        settings={
            "rounds": rounds,
            "warmup": settings["warmup"],
            "seed": seed,
            "images": inputs.source,
            "image_batches": len(inputs.batches),
            "mask_draws": max((len(drawn) for drawn in inputs.forced), default=1),
        },
        static_macs=float(static_macs.per_sample.mean()),
        static=samples_of([visit for configuration in configurations for visit in configuration.static_visits]),
        rates=tuple(result for result in results if result.masks == FORCED),
        data=next(result for result in results if result.masks == DATA),
    )


def _unpacked(entry: Mapping[str, str], bundle: Bundle) -> dict[str, npt.NDArray[np.float32]]:
    masks = {}
    for mask in bundle.manifest.masks:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(entry[mask.name]), np.uint8))
        count = int(np.prod(mask.shape))
        masks[mask.name] = bits[:count].astype(np.float32).reshape(mask.shape)
    return masks


def _configurations(
    entries: Sequence[Mapping[str, Any]],
    inputs: Inputs,
    rates: Sequence[float],
    own: Sequence[Mapping[str, npt.NDArray[np.float32]]],
) -> list[Configuration]:
    drawn: list[tuple[str, float, Sequence[Mapping[str, npt.NDArray[np.float32]]]]] = [
        (FORCED, rate, masks) for rate, masks in zip(rates, inputs.forced, strict=True)
    ]
    mean = float(np.mean([mask.mean() for masks in own for mask in masks.values()]))
    drawn.append((DATA, mean, own))
    result = []
    for (kind, rate, masks), entry in zip(drawn, entries, strict=True):
        count = len(inputs.batches)
        feeds = [{inputs.image: inputs.batches[i % count], **values} for i, values in enumerate(masks)]
        configuration = Configuration(kind, rate, feeds, [], [], [])
        configuration.visits = [_visit(visit) for visit in entry["visits"]]
        configuration.static_visits = [_visit(visit) for visit in entry["static_visits"]]
        configuration.ratios = [(int(index), float(ratio), None) for index, ratio in entry["ratios"]]
        result.append(configuration)
    return result


def _visit(value: Sequence[Any]) -> Visit:
    index, times = value
    return Visit(int(index), [float(ms) for ms in times], None, None)


def _group_times(graphs: Graphs, name: str, runs: Sequence[Sequence[Sequence[Any]]]) -> dict[str, float]:
    """Times by block, averaged over the inputs."""
    label = graphs.labels[name]
    groups = [
        label.group_times(NodeTime(str(layer), "", float(ms) * 1000, float(ms) * 1000) for layer, ms in run)
        for run in runs
    ]
    return {group: float(np.mean([times[group] for times in groups])) for group in groups[0]}


def _machine(
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
    """What a reader should know about the clocks of the board during a measurement.

    Args:
        facts: Of the probe.
        sensors: Summary of tegrastats during the measurement.
        clocks_after: The clocks when it ended.
    """
    notes = []
    clocks = facts["clocks"]
    free = [
        f"{name.upper()} {entry['min'] / scale:.0f}-{entry['max'] / scale:.0f} MHz"
        for name, scale in (("gpu", 1e6), ("cpu", 1e3))
        if (entry := clocks.get(name)) and not entry["fixed"]
    ]
    if free and facts["target"] is not None:
        notes.append(
            f"The clocks were not fixed ({', '.join(free)}): times vary with the load before. Run 'sudo jetson_clocks' "
            "on the board first."
        )
    mode = facts["power_mode"]
    if facts["target"] is not None and mode is not None and not str(mode["name"]).upper().startswith("MAXN"):
        notes.append(
            f"The board runs in power mode {mode['name']}, which limits its clocks. 'sudo nvpmodel -m 0' gives the "
            "full ones (on Orin Nano: the mode called MAXN)."
        )
    highest = (clocks.get("gpu") or {}).get("max")
    seen = sensors.get("gpu_mhz")
    fixed = bool(clocks.get("gpu") and clocks["gpu"]["fixed"])
    if seen:
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


def _hottest(sensors: Mapping[str, Any]) -> str:
    temperatures = sensors.get("temperatures_c") or {}
    if not temperatures:
        return ""
    name = max(temperatures, key=lambda key: float(temperatures[key]))
    return f" ({name} reached {temperatures[name]:.0f} degrees Celsius)"
