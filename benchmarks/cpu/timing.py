"""Timing a bundle: every contestant at every rate, the static twin before and after each, in one loop."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from contestants import BEST, INT8, Dynamic, Static
from quantised import calibration_table, dynamic_int8, integer_convolutions, static_int8

from dyndeploy.bundle import Bundle
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.measure import profile_bundle
from dyndeploy.measure.inputs import Configuration, Feeds, Schedule, forced_configurations, own_configuration
from dyndeploy.measure.loop import Clock, Paired, time_rounds
from dyndeploy.measure.profile import DATA, typical_ratio
from dyndeploy.measure.result import samples_of
from dyndeploy.ops import OPERATORS
from dyndeploy.quantization import CalibrationTable
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.machine import machine_facts

WARMUP = 2
BREAKDOWN_RATES = (0.5, 0.1)


def time_bundle(
    bundle: Bundle,
    dynamics: Sequence[Dynamic],
    statics: Sequence[Static],
    *,
    threads: int,
    rates: Sequence[float],
    seconds: float,
    repeats: int | None,
    quantised: Path,
    data: Path | None = None,
) -> list[dict[str, Any]]:
    """One row per contestant and rate; of a static network one, whose rate is None.

    Args:
        bundle: With a static twin.
        dynamics: Our forms; those in INT8 are left out of networks that have no form in it.
        statics: Static networks elsewhere.
        threads: Of every session.
        rates: To force.
        seconds: That the rounds fill, twelve at least, where ``repeats`` is None.
        repeats: Rounds.
        quantised: Folder of the INT8 copies and their calibration, which are written if they are not there.
        data: A folder of images whose own masks are timed, too.
    """
    schedule = Schedule(tuple(rates), repeats, seconds, WARMUP)
    batches, _ = schedule.batches(bundle, data)
    copies = _Int8Copies(bundle, quantised)
    dynamics = [contestant for contestant in dynamics if contestant.precision != INT8 or copies.of_dynamic]
    masks = bundle.manifest.masks
    configurations = forced_configurations(masks, batches, schedule)
    facts = machine_facts()
    pairs: list[tuple[dict[str, Any], Paired]] = []
    with ExitStack() as stack:
        twin = stack.enter_context(OnnxRuntimeSession(bundle.static, threads=threads, native="off"))
        outputs = [info.name for info in bundle.manifest.outputs][:1]
        twins: dict[int, Any] = {}

        def twin_run(feeds: Feeds) -> Any:
            if id(feeds) not in twins:
                twins[id(feeds)] = twin.bind({info.name: feeds[info.name] for info in twin.inputs}, outputs)
            return twins[id(feeds)]

        if data is not None:
            with dynamics[0].open(bundle.model, threads) as session:
                own = [session.run(batch, [mask.name for mask in masks]) for batch in batches]
            configurations = [*configurations, own_configuration(batches, own)]
        counter, dense = MacCounter(bundle.load_model()), MacCounter(bundle.load_static()).count().per_sample.mean()
        macs = [np.mean([counter.count(one).per_sample.mean() for one in item.masks]) for item in configurations]
        for contestant in dynamics:
            model = copies.dynamic if contestant.precision == INT8 else bundle.load_model()
            size_ratio = model.ByteSize() / bundle.load_model().ByteSize()
            forced = stack.enter_context(contestant.open(overlay_forced_masks(model, masks), threads))
            plain = None if data is None else stack.enter_context(contestant.open(model, threads))
            for item, needed in zip(configurations, macs, strict=True):
                if item.kind == DATA:
                    assert plain is not None
                    runs = [plain.bind(feeds, outputs) for feeds in item.feeds]
                else:
                    runs = [forced.bind(feeds, outputs) for feeds in _forced(item, masks)]
                row = {
                    "contestant": contestant.name,
                    "rate": item.rate,
                    "masks": item.kind,
                    "instruction_set": forced.info.native.instruction_set,
                    "operators": forced.info.native.description.rsplit("/", 1)[-1],
                    "ideal_speedup": float(dense / needed),
                    "needed_macs": float(needed),
                    "size_ratio": size_ratio,
                }
                label = f"{contestant.name}, {item.label}"
                pairs.append((row, Paired(label, runs, [twin_run(feeds) for feeds in item.feeds])))
        first = configurations[0]
        for contestant in statics:
            row = {"contestant": contestant.name, "rate": None, "masks": None, "ideal_speedup": 1.0}
            row |= {"needed_macs": float(dense), "size_ratio": 1.0}
            path = bundle.static
            if contestant.quantised:
                path = copies.static
                row["size_ratio"] = path.stat().st_size / bundle.static.stat().st_size
                row["integer_convolutions"] = integer_convolutions(path, contestant.hint is not None)
            bind = contestant.open(path, threads, stack)
            runs = [bind(feeds) for feeds in first.feeds]
            pairs.append((row, Paired(contestant.name, runs, [twin_run(feeds) for feeds in first.feeds])))
        clock = Clock(single_thread=threads == 1)
        timed = [pair for _, pair in pairs]
        rounds = time_rounds(timed, clock, repeats, seconds, WARMUP, lambda message, done: None, settled=True)
    static = samples_of([visit for pair in timed for visit in pair.twin_visits])
    common = {
        "date": facts["date"],
        "rounds": rounds,
        "load": os.getloadavg()[0],
        "static_ms": static.median,
        "static_cov": static.cov,
        "static_gflops": 2e-6 * float(dense) * bundle.manifest.batch / static.median,
    }
    return [{**row, **common, **_figures(row, pair, bundle.manifest.batch)} for row, pair in pairs]


class _Int8Copies:
    """A bundle's two networks in INT8, made when they are asked for: both with the scales of one calibration.

    Attributes:
        of_dynamic: Whether the dynamic network has a form in INT8; else the static one's scales are the tools' own.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._bundle, self._folder = bundle, folder
        self._name = bundle.manifest.files[bundle.model.name]
        self.of_dynamic = any(OPERATORS[name].quantization is not None for name in bundle.manifest.operator_types)

    @functools.cached_property
    def _table(self) -> CalibrationTable | None:
        path = self._folder / f"{self._name}.json"
        return calibration_table(self._bundle, path) if self.of_dynamic else None

    @functools.cached_property
    def dynamic(self) -> onnx.ModelProto:
        assert self._table is not None
        return dynamic_int8(self._bundle, self._folder / f"{self._name}.onnx", self._table)

    @functools.cached_property
    def static(self) -> Path:
        return static_int8(self._bundle, self._folder / f"{self._name}.static.onnx", self._table)


def _forced(item: Configuration, masks: Sequence[Any]) -> list[Feeds]:
    return [{**feeds, **forced_feeds(forced, masks)} for feeds, forced in zip(item.feeds, item.masks, strict=True)]


def _figures(row: dict[str, Any], pair: Paired, batch: int) -> dict[str, Any]:
    samples, inputs = samples_of(pair.visits), [index for index, _, _ in pair.ratios]
    ratios = [ratio for _, ratio, _ in pair.ratios]
    cpu = [ratio for _, _, ratio in pair.ratios if ratio is not None]
    realised = typical_ratio(ratios, inputs)
    return {
        "median_ms": samples.median,
        "p90_ms": samples.percentile(90),
        "cov": samples.cov,
        "gflops": 2e-6 * row["needed_macs"] * batch / samples.median,
        "realised_speedup": realised,
        "realised_spread": [float(value) for value in np.percentile(ratios, [25, 75])],
        "realised_speedup_cpu": typical_ratio(cpu, inputs) if len(cpu) == len(ratios) else None,
        "realisation": realised / row["ideal_speedup"],
    }


def time_blocks(bundle: Bundle, rates: Sequence[float], native: str) -> list[dict[str, Any]]:
    """Times by block of the twin and of our best form, from the runtime's node profile on one thread."""
    chosen = [rate for rate in rates if rate in BREAKDOWN_RATES]
    if not chosen:
        return []
    profile = profile_bundle(bundle, threads=1, rates=chosen, native=native, repeats=4, warmup=1).to_json()
    return [{"contestant": BEST, **{key: rate[key] for key in ("rate", "blocks", "rest")}} for rate in profile["rates"]]
