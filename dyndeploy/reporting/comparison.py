"""Measured against predicted: per rate, per block and for the whole network.

A prediction is made for a device model, a profile is measured on a machine. Milliseconds of two different devices
are two different things, and an error between them would mean nothing. What two devices do share is the shape: how
much faster than its own static twin a network gets at a rate, and which blocks are the expensive ones. So speed-ups
and shares are always compared, absolute latencies only where the profiled device is the predicted one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dyndeploy.errors import DyndeployError, InputError
from dyndeploy.prediction import BlockPrediction, Coverage, NetworkSpec, Prediction, Predictor, Rates
from dyndeploy.profiling import BlockTimes, Profile, RateResult

_KINDS = {"spatial": "spatial", "layer": "spatial", "channel": "channel"}
"""Which rate of the predictor a kind of mask is."""


@dataclass(frozen=True)
class PredictedSweep:
    """Predictions for everything that a profile measured.

    Attributes:
        device: Device model.
        static: The static twin.
        rates: One per forced rate of the profile, in its order.
        data: At the rates that the data caused.
    """

    device: str
    static: Prediction
    rates: tuple[Prediction, ...]
    data: Prediction


def predict_profile(profile: Profile, device: str) -> PredictedSweep:
    """Predict what a profile measured, block by block at its rates.

    Args:
        profile: Holds the description of the network.
        device: Name of a device model.

    Raises:
        UsageError: Unknown device.
        InputError: The profile's description of the network is not usable.
    """
    predictor = Predictor(device, batch=profile.batch)
    bundle = profile.bundle
    try:
        spec = NetworkSpec.from_json(bundle["network_spec"])
        modes = tuple(str(bundle["mode"]).split("-"))
        granularity = tuple(bundle["granularity"])
        channel_granularity = tuple(bundle["channel_granularity"])
        masks = [(str(mask["name"]), str(mask["block"]), _KINDS[mask["kind"]]) for mask in bundle["masks"]]
    except (KeyError, TypeError, DyndeployError) as error:
        raise InputError(f"The profile does not describe its network ({error}). Profile the bundle again.") from error

    def rates(result: RateResult) -> list[Rates]:
        given: dict[str, dict[str, float]] = {}
        for name, block, kind in masks:
            given.setdefault(block, {})[kind] = result.mask_rates[name]
        return [Rates(**given.get(block.name, {})) for block in spec.blocks]

    def predict(result: RateResult) -> Prediction:
        return predictor.predict_network(
            spec,
            mode=modes,
            granularity=granularity,
            channel_granularity=channel_granularity,
            rate=rates(result),
        )

    try:
        return PredictedSweep(
            device=predictor.device.name,
            static=predictor.predict_network(spec, mode="static"),
            rates=tuple(predict(result) for result in profile.rates),
            data=predict(profile.data),
        )
    except KeyError as error:
        raise InputError(f"The profile has no rate for the mask {error}. Profile the bundle again.") from error


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
    """

    rate: float
    masks: str
    ideal_speedup: float
    measured_speedup: float
    predicted_speedup: float
    measured_ms: float
    predicted_ms: float
    blocks: tuple[BlockComparison, ...]


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
        speedup_mape: Mean absolute error of the predicted whole-network speed-ups, relative to the measured ones.
        speedup_spearman: Rank correlation of whole-network speed-ups over the rates.
        block_speedup_mape: As ``speedup_mape``, over all blocks and rates.
        block_speedup_spearman: Rank correlation of block speed-ups over all blocks and rates.
        block_share_spearman: Rank correlation of the blocks' shares of the time, over all blocks and rates.
        latency_mape: Mean absolute error of predicted latencies (static twin and all rates), relative to the measured
            ones; None where the devices differ.
    """

    profiled_device: str
    predicted_device: str
    same_device: bool
    coverage: Coverage
    static_measured_ms: float
    static_predicted_ms: float
    rates: tuple[RateComparison, ...]
    speedup_mape: float
    speedup_spearman: float | None
    block_speedup_mape: float | None
    block_speedup_spearman: float | None
    block_share_spearman: float | None
    latency_mape: float | None

    @property
    def basis(self) -> str:
        """What is compared, in a sentence for the reader."""
        if self.same_device:
            return f"Measured and predicted device are both {self.profiled_device}: milliseconds are compared."
        return (
            f"Measured on {self.profiled_device}, predicted for {self.predicted_device}: these are different devices, "
            "so their milliseconds are not compared. Compared are speed-ups over each device's own static twin, and "
            "each block's share of the time."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; every figure says whether it is measured or predicted."""
        return {
            "profiled_device": self.profiled_device,
            "predicted_device": self.predicted_device,
            "same_device": self.same_device,
            "basis": self.basis,
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
            "rates": [{**vars(entry), "blocks": [dict(vars(block)) for block in entry.blocks]} for entry in self.rates],
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
        speedup_mape=_mape([(entry.measured_speedup, entry.predicted_speedup) for entry in rates]),
        speedup_spearman=spearman([(entry.measured_speedup, entry.predicted_speedup) for entry in rates]),
        block_speedup_mape=_mape(speedups) if speedups else None,
        block_speedup_spearman=spearman(speedups),
        block_share_spearman=spearman([(block.measured_share, block.predicted_share) for block in blocks]),
        latency_mape=_mape(latencies) if same else None,
    )


def _compare_rate(profile: Profile, result: RateResult, static: Prediction, predicted: Prediction) -> RateComparison:
    return RateComparison(
        rate=result.rate,
        masks=result.masks,
        ideal_speedup=result.ideal_speedup,
        measured_speedup=result.realised_speedup,
        predicted_speedup=static.latency_ms / predicted.latency_ms,
        measured_ms=result.samples.median / profile.batch,
        predicted_ms=predicted.latency_ms,
        blocks=tuple(_compare_blocks(profile, result, static, predicted)),
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
