"""Calibrating a device: measure, look where the error is, measure there, fit; resumable at every graph."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from dyndeploy import files
from dyndeploy.device_calibration.fit import Fit, common_error, fit_all, rows_by_class
from dyndeploy.device_calibration.graphs import MicroGraph, micro_graph
from dyndeploy.device_calibration.measure import LEAST_GRAPHS, Measurement, Sample, measure
from dyndeploy.errors import InputError, UsageError
from dyndeploy.measure.steady import quick
from dyndeploy.ops import OPERATORS
from dyndeploy.prediction import Rates
from dyndeploy.prediction.calibrated import (
    _SIZES,
    SCHEMA,
    Calibration,
    calibration_file,
    class_of,
    described,
)
from dyndeploy.prediction.kernels import GraphWalker, Kernel, OperatorCall
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.machine import machine_facts

Progress = Callable[[str, float], None]

_SHARES = {
    "residual": 0.46, "plain": 0.08, "mobile": 0.1, "tokens": 0.06, "maps": 0.13, "signals": 0.1, "text": 0.07,
}  # fmt: skip
"""Of the graphs that are drawn without looking at errors."""

_BLIND = 0.6  # Share of the time before errors decide what is measured.
_LOOKING = 0.25  # Of the time: where less is left, looking at errors would take all of it.
_BATCH = 60  # Graphs that are measured in turn.
_EXPECTED_SECONDS = 0.7  # Of a graph, before one was measured.
_BATCH_BYTES = 2**30  # Of their weights, at most: a session may keep three times as much.
_CANDIDATES = 4  # Graphs drawn for each that is measured.
_NEIGHBOURS = 8
_LEAST_SECONDS = 2.0  # Of a batch.
_QUICK_TREES = 60
LEAST_MINUTES = 0.5
"""Less is no calibration: opening the first graphs takes half of it."""

_LEAST_FIT = 0.15
_FIT_SHARE = 0.2  # Of the time, kept for fitting.
_PART = ".part"
_PART_FORMAT = "dyndeploy-calibration-part"


@dataclass
class _State:
    """What was measured so far: a file with a line for the settings and a line for every graph."""

    path: Path
    graphs: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        return float(sum(graph["seconds"] for graph in self.graphs))

    @property
    def pace_ms(self) -> float:
        """The speed at which times are stated."""
        return float(np.median([graph["pace_ms"] for graph in self.graphs]))

    def add(self, graph: dict[str, Any]) -> None:
        self.graphs.append(graph)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(files.json_text(graph, indent=None) + "\n")

    def samples(self) -> list[tuple[int, Sample]]:
        pace_ms = self.pace_ms
        return [
            (number, sample)
            for number, graph in enumerate(self.graphs)
            if not graph["repeated"]
            for sample in measurement_from_json(graph).at(pace_ms)
        ]


def sample_to_json(sample: Sample) -> list[Any]:
    """Plain JSON types, short."""
    k = sample.kernel
    numbers = [k.macs, k.dense_macs, k.read_bytes, k.written_bytes, k.weight_bytes]
    call = None
    if k.call is not None and k.rates is not None:
        shapes, attributes = [list(shape) for shape in k.call.shapes], dict(k.call.attributes)
        call = [k.call.spec.name, shapes, attributes, k.call.element, dict(k.rates.named), k.rates.default]
    return [k.name, k.kind, *numbers, dict(k.features), call, sample.ms, round(sample.spread, 4), sample.resident_bytes]


def sample_from_json(value: Sequence[Any]) -> Sample:
    """Read what :func:`sample_to_json` wrote."""
    name, kind, macs, dense, read, written, weights, sizes, call, ms, spread, resident = value
    kernel = Kernel(name, None, kind, macs, dense, read, written, weights, sizes)
    if call is not None:
        operator, shapes, attributes, element, rates, default = call
        made = OperatorCall(OPERATORS[operator], tuple(map(tuple, shapes)), attributes, element)
        kernel = made.kernel(name, None, Rates(**rates, default=default))
    return Sample(kernel, ms, spread, resident)


def measurement_from_json(graph: Mapping[str, Any]) -> Measurement:
    """A measured graph."""
    return Measurement(tuple(sample_from_json(item) for item in graph["samples"]), float(graph["pace_ms"]))


def calibrate(
    output: str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    minutes: float = 9.0,
    native: str | os.PathLike[str] = "auto",
    seed: int = 0,
    restart: bool = False,
    progress: Progress = lambda message, fraction: None,
) -> Calibration:
    """Measure this machine's CPU and fit a model to it.

    What was measured is kept beside the output until the calibration is complete: called again after an interrupt, it
    goes on where it was.

    Args:
        output: The file to write; None takes :func:`~dyndeploy.prediction.calibrated.calibration_file`.
        device: ``"cpu"``, this machine.
        threads: Of every session.
        minutes: Measuring and fitting together, about.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        seed: Of the graphs and masks.
        restart: Forget what an interrupted calibration measured.
        progress: Called with what is being done and the fraction done.

    Returns:
        The calibration, which is also written.

    Raises:
        UsageError: Another device than this machine's CPU, or a value out of range.
        OutputError: The file cannot be written, or another process is writing it.
    """
    if device != "cpu":
        raise UsageError(
            f"'{device}' cannot be calibrated: micro-benchmarks need the times of single nodes, which the agent on a "
            "board does not report yet. Calibrate this machine with --device cpu; boards are priced by their data "
            "sheets and corrected by 'dyndeploy compare'."
        )
    if not LEAST_MINUTES <= minutes <= 600:
        raise UsageError(
            f"minutes={minutes} is not valid: give {LEAST_MINUTES:g} to 600. 9 is enough for this CPU; less than 2 "
            "hardly meets many classes of kernels."
        )
    started = time.perf_counter()
    path = Path(output) if output is not None else calibration_file(device, threads)
    machine = machine_facts()
    runtime = _runtime(threads, native)
    key = {
        "device": device, "threads": threads, "seed": seed, "cpu": machine["cpu"], "isa": machine["isa"],
        "runtime": runtime, "minutes": minutes,
    }  # fmt: skip
    with files.locked(path, 1.0):
        # The output is claimed first: a folder that cannot be written costs no measurement.
        state = _resume(path.with_name(path.name + _PART), key, restart=restart)
        earlier = state.seconds  # Of a calibration that was interrupted.
        budget = 60 * minutes * (1 - _FIT_SHARE)
        overhead_ms = _overhead(threads)

        first = micro_graph("residual", seed)

        def told(since: float = 0.0) -> None:
            done = min(1.0, (state.seconds + since) / budget)
            progress(f"measuring graphs from {len(state.graphs) + 1} on", (1 - _FIT_SHARE) * done)

        def run(batch: Sequence[tuple[str, int]], begin: float, seconds: float) -> None:
            # The first graph is in every batch: it shows whether what is measured at different times agrees.
            graphs = [first, *(micro_graph(*drawn) for drawn in batch)]
            drawn = time.perf_counter() - begin
            found = measure(
                graphs, threads=threads, native=native, seed=seed, seconds=seconds - drawn,
                progress=lambda: told(time.perf_counter() - begin),
            )  # fmt: skip
            each = (time.perf_counter() - begin) / len(found)
            for graph, measured in zip(graphs, found, strict=False):
                state.add(
                    {
                        "family": graph.family,
                        "seed": graph.seed,
                        "repeated": graph is first and bool(state.graphs),
                        "pace_ms": measured.pace_ms,
                        "samples": [sample_to_json(sample) for sample in measured.samples],
                        "seconds": each,
                    }
                )

        while budget - state.seconds > _LEAST_SECONDS or len(state.graphs) < LEAST_GRAPHS:
            done = min(1.0, state.seconds / budget)
            begin = time.perf_counter()
            # A short first batch would catch one mood of the machine.
            average = state.seconds / len(state.graphs) if state.graphs else _EXPECTED_SECONDS
            left = budget - state.seconds
            count = min(_BATCH, round(left / average))
            told()
            blind = done < _BLIND or left < _LOOKING * budget
            batch = _next(state, seed, max(count, LEAST_GRAPHS), blind=blind)
            run(batch, begin, max(left, _LEAST_SECONDS))
        left = 60 * minutes - earlier - (time.perf_counter() - started)
        fits = fit_all(
            state.samples(),
            seed=seed,
            seconds=max(left, _LEAST_FIT * 60 * minutes),
            progress=lambda message, done: progress(message, 1 - _FIT_SHARE * (1 - done)),
        )
        result = Calibration(
            device=device,
            threads=threads,
            machine=machine,
            runtime=runtime,
            measured=_measured(state, fits, minutes),
            overhead_ms=overhead_ms,
            correlation=common_error(state.samples(), fits),
            classes={name: fit.model for name, fit in fits.items()},
        )
        files.write_text(path, files.json_text(result.to_json(), indent=None) + "\n")
        state.path.unlink(missing_ok=True)
        progress("done", 1.0)
    return result


def _runtime(threads: int, native: str | os.PathLike[str]) -> dict[str, Any]:
    with OnnxRuntimeSession(_trivial(), threads=threads, native=native) as session:
        info = session.info
    return {
        "name": info.runtime,
        "version": info.version,
        "provider": info.provider,
        "native_sha256": info.native.sha256,
        "instruction_set": info.native.instruction_set,
    }


def _trivial() -> onnx.ModelProto:
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "trivial",
        [tensor("x", TensorProto.FLOAT, (1,))], [tensor("y", TensorProto.FLOAT, (1,))],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _overhead(threads: int, runs: int = 300) -> float:
    """Milliseconds of a run that computes nothing."""
    with OnnxRuntimeSession(_trivial(), threads=threads, native="off") as session:
        call = session.bind({"x": np.zeros(1, np.float32)})
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
    return 1000 * quick(times)


def _resume(path: Path, key: Mapping[str, Any], *, restart: bool) -> _State:
    header = {"format": _PART_FORMAT, "schema": SCHEMA, "key": dict(key)}
    graphs: list[dict[str, Any]] = []
    if path.exists() and not restart:
        lines = files.read_text(path).splitlines()
        try:
            found = json.loads(lines[0])
            if found["format"] != _PART_FORMAT:
                raise ValueError("another kind of file")
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not what an interrupted calibration leaves ({error}). Move it away, or give --restart."
            ) from error
        if found == header:  # Another machine's, instruction set's or setting's measurements are no use.
            for line in lines[1:]:
                try:
                    graph = json.loads(line)
                    measurement_from_json(graph)
                except (KeyError, TypeError, ValueError):
                    break  # The interrupt came while it was written.
                graphs.append(graph)
    content = "".join(files.json_text(entry, indent=None) + "\n" for entry in (header, *graphs))
    files.write_text(path, content)
    return _State(path, graphs)


def _next(state: _State, seed: int, count: int, *, blind: bool) -> list[tuple[str, int]]:
    """Graphs to measure next: by fixed shares, or those whose kernels look most like badly predicted ones."""
    number = len(state.graphs)
    random = np.random.default_rng((seed, number))
    names, shares = list(_SHARES), np.array(list(_SHARES.values()))

    def draw(count: int) -> list[tuple[str, int]]:
        families = random.choice(names, size=count, p=shares)
        return [(str(family), 1000 * (number + 1) + seed + 10**6 * index) for index, family in enumerate(families)]

    if blind or not number:
        return _light(draw(count))
    samples = state.samples()
    known = error_maps(samples, fit_all(samples, trees=_QUICK_TREES, seed=seed))
    candidates = draw(count * _CANDIDATES)
    scores = [expected_error(micro_graph(*candidate, values=False), known) for candidate in candidates]
    return _light([candidates[index] for index in np.argsort(scores)[::-1][:count]])


def _light(drawn: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """As many of the graphs, from the first, as fit in memory together; at least one."""
    chosen: list[tuple[str, int]] = []
    held = 0.0
    for family, number in drawn:
        weights = micro_graph(family, number, values=False).model.graph.initializer
        held += 4.0 * sum(float(np.prod(weight.dims)) for weight in weights)
        if chosen and held > _BATCH_BYTES:
            break
        chosen.append((family, number))
    return chosen


@dataclass(frozen=True)
class ErrorMap:
    """Where the kernels of a class are in the space of sizes, and how wrong their prediction was."""

    fit: Fit
    places: Any
    scale: Any
    errors: Any


def error_maps(samples: Sequence[tuple[int, Sample]], fits: Mapping[str, Fit]) -> dict[str, ErrorMap]:
    """Held-out errors by class."""
    maps = {}
    for name, rows in rows_by_class(samples).items():
        if name not in fits or not rows.kernels[0].features:
            continue
        fit = fits[name]
        places = _places(rows.kernels, rows.resident, fit)
        scale = places.std(0)
        scale[scale < 1e-6] = 1.0
        maps[name] = ErrorMap(fit, places / scale, scale, np.abs(np.log(fit.held_out / rows.ms)))
    return maps


def _places(kernels: Sequence[Kernel], resident: Any, fit: Fit) -> Any:
    return described(kernels, resident, fit.model.constants, fit.model.floor_ms)[1][:, _SIZES]


def expected_error(graph: MicroGraph, known: Mapping[str, ErrorMap]) -> float:
    """Mean held-out error of the measured kernels that are most like those of a graph, weighted by time."""
    walked = GraphWalker(graph.model).graph(0.5).kernels
    resident = sum(kernel.weight_bytes for kernel in walked)
    by_class: dict[str, list[Kernel]] = {}
    for kernel in walked:
        by_class.setdefault(class_of(kernel), []).append(kernel)
    total = weighted = 0.0
    for name, kernels in by_class.items():
        if name not in known:
            continue
        entry = known[name]
        touched = np.full(len(kernels), resident)
        ms, _ = entry.fit.model.price(kernels, touched)
        places = _places(kernels, touched, entry.fit) / entry.scale
        distance = ((places[:, None] - entry.places) ** 2).sum(2)
        nearest = np.argsort(distance, axis=1)[:, :_NEIGHBOURS]
        weighted += float((entry.errors[nearest].mean(1) * ms).sum())
        total += float(ms.sum())
    return weighted / total if total else 0.0


def _measured(state: _State, fits: Mapping[str, Fit], minutes: float) -> dict[str, Any]:
    ratios = repeatability(state.graphs)
    paces = np.array([graph["pace_ms"] for graph in state.graphs]) / state.pace_ms
    return {
        "seconds": round(state.seconds, 1),
        "minutes_asked": minutes,
        "graphs": len(state.graphs),
        "samples": len(state.samples()),
        "pace_ms": float(f"{state.pace_ms:.6g}"),
        # Slowness of the machine while it was measured, relative to the speed that times are stated at.
        "slowness": [round(float(value), 3) for value in np.quantile(paces, [0.05, 0.5, 0.95])],
        # Of the first graph's kernels when it was measured again: median ratio less 1, and median distance from it.
        "drift": [round(float(np.median(r)) - 1, 4) for r in ratios],
        "noise": [round(float(np.median(np.abs(r / np.median(r) - 1))), 4) for r in ratios],
    }


def repeatability(graphs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Times of the first graph's kernels when it was measured again, over its first times; one array per time."""
    if not graphs:
        return []
    pace_ms = graphs[0]["pace_ms"]
    times = [np.array([s.ms for s in measurement_from_json(g).at(pace_ms)]) for g in graphs if g["repeated"]]
    first = np.array([sample.ms for sample in measurement_from_json(graphs[0]).samples])
    return [again / first for again in times if len(again) == len(first)]
