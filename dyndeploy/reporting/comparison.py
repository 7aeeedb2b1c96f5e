"""Measured against predicted: per rate, per block and for the whole network.

A prediction is made for a device model, a profile is measured on a machine. Milliseconds of two different devices
are two different things, and an error between them would mean nothing. What two devices do share is the shape: how
much faster than its own static twin a network gets at a rate, and which blocks are the expensive ones. So what is
predicted for other devices stands beside what was measured, for information; errors, which need a measurement of the
predicted thing, are only given where the profiled device is the predicted one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dyndeploy.errors import InputError
from dyndeploy.measure import BlockTimes, Profile, RateResult
from dyndeploy.measure.exits import ExitProfile
from dyndeploy.prediction import (
    BlockPrediction,
    Configuration,
    Coverage,
    Estimator,
    GraphWalker,
    NodeGraph,
    Prediction,
    Rates,
    StagedNodes,
    known_devices,
    recorded_nodes,
)
from dyndeploy.prediction.calibrated import Installation
from dyndeploy.prediction.estimate import PRECISIONS
from dyndeploy.targets import load_device


@dataclass(frozen=True)
class PredictedSweep:
    """Predictions for everything that a profile measured.

    Attributes:
        device: Device model.
        static: The static twin.
        rates: One per forced rate of the profile, in its order.
        data: At the rates that the data caused.
        warnings: Why a calibration may not fit what was profiled.
    """

    device: str
    static: Prediction
    rates: tuple[Prediction, ...]
    data: Prediction
    warnings: tuple[str, ...] = ()


def predict_profile(profile: Profile, device: str) -> PredictedSweep:
    """Predict what a profile measured: its own graphs, block by block at its rates, in its precision.

    Args:
        profile: Holds the graphs.
        device: Name of a device model.

    Raises:
        UsageError: Unknown device, or this machine is not calibrated.
        InputError: The profile does not hold its graphs, or lacks the rate of a decision.
    """
    profiled = Installation(profile.machine, profile.runtime.get("version"), profile.native)
    installation = profiled if profile.device == device else None
    estimator = _estimator(device, profile.bundle.get("precision"), profile.batch, profile.threads, installation)
    with consistent():
        return _predicted(profile, estimator)


@contextlib.contextmanager
def consistent() -> Iterator[None]:
    """What is well-formed may still contradict itself, as shapes do that do not fit their operators."""
    try:
        yield
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError, StopIteration) as error:
        raise InputError(
            f"The graph in the profile contradicts itself ({type(error).__name__}: {error}). Profile the bundle again."
        ) from error


def _predicted(profile: Profile, estimator: Estimator) -> PredictedSweep:
    dynamic, static = (_nodes(profile.graph, part) for part in ("dynamic", "static"))
    walker, twin = (
        GraphWalker(nodes, precision=estimator.precision, runtime=estimator.runtime) for nodes in (dynamic, static)
    )
    try:
        masks = [(str(mask["name"]), str(mask["block"]), str(mask["kind"])) for mask in profile.bundle["masks"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"The profile does not name its masks ({error}). Profile the bundle again.") from error
    lacking = sorted(set(walker.gates) - {block for _, block, _ in masks})
    if lacking:
        raise InputError(f"The profile has no rates for {', '.join(lacking)}. Profile the bundle again.")

    def predict(result: RateResult) -> Prediction:
        rates: dict[str, dict[str, float]] = {}
        for name, block, kind in masks:
            if name not in result.mask_rates:
                raise InputError(f"The profile has no rate for the mask {name}. Profile the bundle again.")
            rates.setdefault(block, {})[kind] = result.mask_rates[name]
        return estimator.predict(walker, Configuration(rate={block: Rates(**own) for block, own in rates.items()}))

    return PredictedSweep(
        device=estimator.device.name,
        static=estimator.predict(twin),
        rates=tuple(predict(result) for result in profile.rates),
        data=predict(profile.data),
        warnings=estimator.warnings,
    )


def _estimator(
    device: str, precision: object, batch: int, threads: int, installation: Installation | None
) -> Estimator:
    """In the precision that was measured; BF16, which no device model knows, and on this machine FP16 as FP32."""
    priced = precision in PRECISIONS and (precision == "int8" or not load_device(device).is_local)
    known = str(precision) if priced else "fp32"
    return Estimator(device, precision=known, batch=batch, threads=threads, installation=installation)


def _nodes(record: Mapping[str, Any] | None, part: str) -> NodeGraph:
    nodes = recorded_nodes(record, part)
    if not isinstance(nodes, NodeGraph):
        raise InputError("The profile holds the stages of a network that exits early: it is damaged. Profile again.")
    return nodes


@dataclass(frozen=True)
class BlockComparison:
    """One part of the network at one rate. Times are ms per image.

    Attributes:
        name: Block, or ``"stem"`` or ``"head"``.
        measured_speedup: Static over dynamic time on the machine; None where a runtime fused the part away.
        predicted_speedup: The same on the device model.
        measured_share: Share of the dynamic network's time on the machine.
        predicted_share: The same on the device model.
        measured_ms: On the machine.
        predicted_ms: On the device model.
    """

    name: str
    measured_speedup: float | None
    predicted_speedup: float | None
    measured_share: float
    predicted_share: float
    measured_ms: float
    predicted_ms: float


@dataclass(frozen=True)
class RateComparison:
    """One rate.

    Attributes:
        rate: As in the profile.
        masks: ``"forced"`` or ``"data"``.
        ideal_speedup: From the MACs.
        measured_speedup: Realised on the machine.
        predicted_speedup: On the device model.
        measured_ms: Median per image on the machine.
        predicted_ms: Per image on the device model.
        blocks: The parts that both sides know.
        parts: Of a detector, what they add up to: backbone, neck, heads and post-processing.
    """

    rate: float
    masks: str
    ideal_speedup: float
    measured_speedup: float
    predicted_speedup: float
    measured_ms: float
    predicted_ms: float
    blocks: tuple[BlockComparison, ...]
    parts: tuple[BlockComparison, ...] = ()


@dataclass(frozen=True)
class PartError:
    """One part of one network in ms per image: what was measured and what was predicted for the same device.

    Attributes:
        part: Block, or ``"stem"`` or ``"head"``.
        network: ``"static"`` (the twin), or the rate with who decided it.
        kind: Kind of kernels that most of the predicted time is spent in.
        measured_ms: On the machine.
        predicted_ms: On the device model.
        inside: Whether the measured time lies in the predicted 90 % interval; None where there is none.
    """

    part: str
    network: str
    kind: str
    measured_ms: float
    predicted_ms: float
    inside: bool | None

    @property
    def error(self) -> float:
        """Relative to the measured time."""
        return self.predicted_ms / self.measured_ms - 1.0


@dataclass(frozen=True)
class KindError:
    """Errors of all parts that are mostly one kind of kernels.

    Attributes:
        kind: Of kernels.
        parts: How many parts.
        mape: Mean absolute relative error.
        bias: Mean relative error: above 0 where too slow is predicted.
        within_10: Share of parts within 10 %.
    """

    kind: str
    parts: int
    mape: float
    bias: float
    within_10: float


@dataclass(frozen=True)
class Comparison:
    """A profile against the predictions for one device model.

    Attributes:
        profiled_device: Where the profile was measured.
        predicted_device: What was predicted.
        same_device: Whether both are the same; only then is ``latency_mape`` given.
        coverage: How much of the network the prediction accounts for (the least over the rates).
        static_measured_ms: Per image.
        static_predicted_ms: Per image.
        rates: Forced rates, then the data's own.
        speedup_mape: Mean absolute error of the predicted whole-network speed-ups, relative to the measured ones; None
            where the devices differ, as for the other errors: nothing was measured on the predicted device.
        speedup_spearman: Rank correlation of whole-network speed-ups over the rates.
        block_speedup_mape: As ``speedup_mape``, over all blocks and rates.
        block_speedup_spearman: Rank correlation of block speed-ups over all blocks and rates.
        block_share_spearman: Rank correlation of the blocks' shares of the time, over all blocks and rates.
        latency_mape: Mean absolute error of predicted latencies (static twin and all rates), relative to the measured
            ones; None where the devices differ.
        parts: Every part of the static twin and of every rate; empty where the devices differ.
        warnings: Why a calibration may not fit what was profiled.
    """

    profiled_device: str
    predicted_device: str
    same_device: bool
    coverage: Coverage
    static_measured_ms: float
    static_predicted_ms: float
    rates: tuple[RateComparison, ...]
    speedup_mape: float | None
    speedup_spearman: float | None
    block_speedup_mape: float | None
    block_speedup_spearman: float | None
    block_share_spearman: float | None
    latency_mape: float | None
    parts: tuple[PartError, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[KindError, ...]:
        """Errors by kind of kernels, the most time first."""
        kinds: dict[str, list[PartError]] = {}
        for part in self.parts:
            kinds.setdefault(part.kind, []).append(part)
        found = [_kind_error(kind, parts) for kind, parts in kinds.items()]
        return tuple(sorted(found, key=lambda entry: -sum(part.measured_ms for part in kinds[entry.kind])))

    @property
    def worst(self) -> tuple[PartError, ...]:
        """The ten parts with the largest relative errors, largest first."""
        return tuple(sorted(self.parts, key=lambda part: -abs(part.error))[:10])

    @property
    def basis(self) -> str:
        """What is compared, in a sentence for the reader."""
        if self.same_device:
            return f"Measured and predicted device are both {self.profiled_device}: milliseconds are compared."
        return (
            f"Measured on {self.profiled_device}, predicted for {self.predicted_device}: these are different devices, "
            "so the difference is no error, and their milliseconds are not compared. Speed-ups are over each device's "
            "own static twin."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; every figure says whether it is measured or predicted."""
        return {
            "profiled_device": self.profiled_device,
            "predicted_device": self.predicted_device,
            "same_device": self.same_device,
            "basis": self.basis,
            "warnings": list(self.warnings),
            "coverage": {
                "by_count": self.coverage.by_count,
                "by_flops": self.coverage.by_flops,
                "operators": self.coverage.operators,
                "unknown": list(self.coverage.unknown),
            },
            "static": {"measured_ms": self.static_measured_ms, "predicted_ms": self.static_predicted_ms},
            "speedup_mape": self.speedup_mape,
            "speedup_spearman": self.speedup_spearman,
            "block_speedup_mape": self.block_speedup_mape,
            "block_speedup_spearman": self.block_speedup_spearman,
            "block_share_spearman": self.block_share_spearman,
            "latency_mape": self.latency_mape,
            "kinds": [vars(entry) for entry in self.kinds],
            "worst": [{**vars(part), "error": part.error} for part in self.worst],
            "parts": [{**vars(part), "error": part.error} for part in self.parts],
            "rates": [
                {
                    **vars(entry),
                    "blocks": [dict(vars(block)) for block in entry.blocks],
                    "parts": [dict(vars(part)) for part in entry.parts],
                }
                for entry in self.rates
            ],
        }


def compare_profile(profile: Profile, prediction: PredictedSweep) -> Comparison:
    """Compare a profile with the predictions that :func:`predict_profile` made for it.

    Raises:
        InputError: The predictions belong to another profile.
    """
    if len(prediction.rates) != len(profile.rates):
        raise InputError(
            f"The profile has {len(profile.rates)} rates, the prediction {len(prediction.rates)}: they do not belong "
            "together."
        )
    results = (*profile.rates, profile.data)
    predictions = (*prediction.rates, prediction.data)
    rates = tuple(
        _compare_rate(profile, result, prediction.static, predicted)
        for result, predicted in zip(results, predictions, strict=True)
    )
    same = profile.device == prediction.device
    static_measured = profile.static.median / profile.batch
    blocks = [block for entry in rates for block in entry.blocks]
    speedups = [
        (block.measured_speedup, block.predicted_speedup)
        for block in blocks
        if block.measured_speedup is not None and block.predicted_speedup is not None
    ]
    latencies = [(static_measured, prediction.static.latency_ms)]
    latencies += [(entry.measured_ms, entry.predicted_ms) for entry in rates]
    return Comparison(
        profiled_device=profile.device,
        predicted_device=prediction.device,
        same_device=same,
        coverage=min((item.coverage for item in (prediction.static, *predictions)), key=lambda item: item.by_count),
        static_measured_ms=static_measured,
        static_predicted_ms=prediction.static.latency_ms,
        rates=rates,
        speedup_mape=_mape([(entry.measured_speedup, entry.predicted_speedup) for entry in rates]) if same else None,
        speedup_spearman=spearman([(entry.measured_speedup, entry.predicted_speedup) for entry in rates]),
        block_speedup_mape=_mape(speedups) if same and speedups else None,
        block_speedup_spearman=spearman(speedups),
        block_share_spearman=spearman([(block.measured_share, block.predicted_share) for block in blocks]),
        latency_mape=_mape(latencies) if same else None,
        parts=tuple(_part_errors(profile, prediction)) if same else (),
        warnings=prediction.warnings,
    )


def _part_errors(profile: Profile, prediction: PredictedSweep) -> Iterator[PartError]:
    """Every part that the machine timed and the device model knows: of the static twin once, of every rate."""
    twins = {part.name: part for part in prediction.static.blocks}
    for part in (*profile.data.blocks, *profile.data.rest):
        if part.name in twins:
            yield from _part_error("static", part.static_ms / profile.batch, twins[part.name])
    for result, predicted in zip((*profile.rates, profile.data), (*prediction.rates, prediction.data), strict=True):
        known = {part.name: part for part in predicted.blocks}
        for part in (*result.blocks, *result.rest):
            if part.name in known:
                network = f"{result.rate:.3g} ({result.masks})"
                yield from _part_error(network, part.dynamic_ms / profile.batch, known[part.name])


def _part_error(network: str, measured_ms: float, predicted: BlockPrediction) -> Iterator[PartError]:
    if measured_ms <= 0:
        return  # The runtime fused the part away.
    kinds: dict[str, float] = {}
    for operator in predicted.operators:
        kinds[operator.kind] = kinds.get(operator.kind, 0.0) + (operator.latency_ms or 0.0)
    interval = predicted.interval_ms
    yield PartError(
        part=predicted.name,
        network=network,
        kind=max(kinds, key=lambda kind: kinds[kind]),
        measured_ms=measured_ms,
        predicted_ms=predicted.latency_ms,
        inside=None if interval is None else interval[0] <= measured_ms <= interval[1],
    )


def _kind_error(kind: str, parts: Sequence[PartError]) -> KindError:
    errors = np.array([part.error for part in parts])
    return KindError(
        kind, len(parts), float(np.abs(errors).mean()), float(errors.mean()), float((np.abs(errors) <= 0.1).mean())
    )


def _compare_rate(profile: Profile, result: RateResult, static: Prediction, predicted: Prediction) -> RateComparison:
    if predicted.latency_ms <= 0:
        raise InputError("The graphs in the profile hold nothing that takes time: the file was changed or is damaged.")
    return RateComparison(
        rate=result.rate,
        masks=result.masks,
        ideal_speedup=result.ideal_speedup,
        measured_speedup=result.realised_speedup,
        predicted_speedup=static.latency_ms / predicted.latency_ms,
        measured_ms=result.samples.median / profile.batch,
        predicted_ms=predicted.latency_ms,
        blocks=tuple(_compare_blocks(profile, result, static, predicted)),
        parts=tuple(_compare_parts(profile, result, static, predicted)),
    )


def _compare_parts(
    profile: Profile, result: RateResult, static: Prediction, predicted: Prediction
) -> Iterator[BlockComparison]:
    total_ms = sum(part.dynamic_ms for part in result.parts)
    twins = {part.name: part.latency_ms for part in static.parts}
    for part in predicted.parts:
        own, twin = result.part(part.name), twins.get(part.name)
        if own is None or twin is None:
            continue
        yield BlockComparison(
            name=part.name,
            measured_speedup=own.realised_speedup,
            predicted_speedup=twin / part.latency_ms if part.latency_ms > 0 else None,
            measured_share=own.dynamic_ms / total_ms if total_ms > 0 else 0.0,
            predicted_share=part.share,
            measured_ms=own.dynamic_ms / profile.batch,
            predicted_ms=part.latency_ms,
        )


def _compare_blocks(
    profile: Profile, result: RateResult, static: Prediction, predicted: Prediction
) -> Iterator[BlockComparison]:
    measured: dict[str, BlockTimes] = {part.name: part for part in (*result.blocks, *result.rest)}
    measured_total = sum(part.dynamic_ms for part in measured.values())
    twins: dict[str, BlockPrediction] = {part.name: part for part in static.blocks}
    for part in predicted.blocks:
        if part.name not in measured or part.name not in twins:
            continue
        own, twin = measured[part.name], twins[part.name]
        yield BlockComparison(
            name=part.name,
            measured_speedup=own.realised_speedup,
            predicted_speedup=twin.latency_ms / part.latency_ms if part.latency_ms > 0 else None,
            measured_share=own.dynamic_ms / measured_total if measured_total > 0 else 0.0,
            predicted_share=part.latency_ms / predicted.latency_ms,
            measured_ms=own.dynamic_ms / profile.batch,
            predicted_ms=part.latency_ms,
        )


def unpredicted_note(device: str, threads: int, predicted: Sequence[str]) -> str:
    """Why no prediction can be held against a measurement, and what to do about it; empty where one can.

    Args:
        device: That was measured.
        threads: It was measured with.
        predicted: Devices that there are predictions for.
    """
    if device in predicted:
        return ""
    if device == "cpu" and device not in known_devices(threads):
        return (
            f"This machine is not calibrated for {threads} thread(s), so nothing is predicted for the device that was "
            f"measured, and no error can be told: 'dyndeploy calibrate-device --threads {threads}' calibrates it, once."
        )
    if device in known_devices(threads):
        return f"Nothing is predicted for {device}, which was measured, so no error can be told: leave the device out."
    return f"There is no device model of {device}, which was measured, so no error can be told."


# ---------------------------------------------------------------- early exits


@dataclass(frozen=True)
class PredictedExits:
    """Predictions for a network that exits early.

    Attributes:
        device: Device model.
        whole: The network without exits.
        staged: The stages; what each exit takes is in its ``exits``.
        warnings: Why a calibration may not fit what was profiled.
    """

    device: str
    whole: Prediction
    staged: Prediction
    warnings: tuple[str, ...] = ()


def predict_exit_profile(profile: ExitProfile, device: str) -> PredictedExits:
    """Predict what the profile of a network that exits early measured, one image at a time.

    Args:
        profile: Holds the graphs.
        device: Name of a device model.

    Raises:
        UsageError: Unknown device, or this machine is not calibrated.
        InputError: The profile does not hold its graphs.
    """
    own = profile.device == load_device(device).name
    profiled = Installation(profile.machine, profile.runtime.get("version"), None) if own else None
    estimator = _estimator(device, profile.bundle.get("precision"), 1, profile.threads, profiled)
    staged = recorded_nodes(profile.graph, "dynamic")
    if not isinstance(staged, StagedNodes) or len(staged.stages) != len(profile.exits):
        raise InputError("The profile does not hold the stages that were measured: it is damaged. Profile again.")
    with consistent():
        whole = estimator.predict(_nodes(profile.graph, "static"))
        return PredictedExits(estimator.device.name, whole, estimator.predict(staged), estimator.warnings)


@dataclass(frozen=True)
class ExitEntry:
    """One exit or one mix, measured and predicted. Times are ms per image.

    Attributes:
        name: ``"exit 1"``, or the name of the mix.
        measured_ms: On the machine, from runs in turn with the network without exits.
        predicted_ms: On the device model.
        measured_speedup: Time of the network without exits over it, on the machine.
        predicted_speedup: The same on the device model.
    """

    name: str
    measured_ms: float
    predicted_ms: float
    measured_speedup: float
    predicted_speedup: float


@dataclass(frozen=True)
class ExitComparison:
    """The profile of a network that exits early against the predictions for one device model.

    Attributes:
        profiled_device: What was measured.
        predicted_device: What was predicted.
        whole_measured_ms: The network without exits, per image.
        whole_predicted_ms: The same on the device model.
        exits: Every exit.
        mixes: Every mix that was measured.
        speedup_mape: Mean absolute error of the predicted speed-ups of all exits, relative to the measured ones; None
            where the devices differ.
        latency_mape: The same of latencies, the network without exits included; None where the devices differ.
        warnings: Why a calibration may not fit what was profiled.
    """

    profiled_device: str
    predicted_device: str
    whole_measured_ms: float
    whole_predicted_ms: float
    exits: tuple[ExitEntry, ...]
    mixes: tuple[ExitEntry, ...]
    speedup_mape: float | None
    latency_mape: float | None
    warnings: tuple[str, ...] = ()

    @property
    def same_device(self) -> bool:
        """Whether what was predicted is what was measured."""
        return self.latency_mape is not None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def compare_exit_profile(profile: ExitProfile, prediction: PredictedExits) -> ExitComparison:
    """Compare the profile of a network that exits early with predictions for it, per exit and per mix."""
    whole, twin = profile.whole.median, prediction.whole.latency_ms
    predicted = [entry.latency_ms for entry in prediction.staged.exits]
    exits = tuple(
        ExitEntry(f"exit {entry.exit}", profile.paired_ms(entry), ms, 1.0 / entry.relative, twin / ms)
        for entry, ms in zip(profile.exits, predicted, strict=True)
    )
    mixes = []
    for mix in profile.mixes:
        ms = float(np.dot(mix.shares, predicted))
        mixes.append(ExitEntry(mix.name, mix.mean_ms, ms, mix.realised_speedup, twin / ms))
    same = prediction.device == profile.device
    latencies = [(whole, twin), *((entry.measured_ms, entry.predicted_ms) for entry in exits)]
    return ExitComparison(
        profiled_device=profile.device,
        predicted_device=prediction.device,
        whole_measured_ms=whole,
        whole_predicted_ms=twin,
        exits=exits,
        mixes=tuple(mixes),
        speedup_mape=_mape([(entry.measured_speedup, entry.predicted_speedup) for entry in exits]) if same else None,
        latency_mape=_mape(latencies) if same else None,
        warnings=prediction.warnings,
    )


def _mape(pairs: Sequence[tuple[float, float]]) -> float:
    """Mean of ``|predicted - measured| / measured``."""
    return float(np.mean([abs(predicted - measured) / measured for measured, predicted in pairs]))


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation; None where there is none to speak of (fewer than 3 pairs, or one side all equal)."""
    from scipy import stats

    if len(pairs) < 3:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        value = float(stats.spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)
    return None if np.isnan(value) else value
