"""The parts of a profile's page that are predicted: against what was measured, and, apart, for other devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dyndeploy.measure import Profile
from dyndeploy.measure.profile import FORCED
from dyndeploy.reporting.comparison import Comparison, RateComparison
from dyndeploy.reporting.page import Table, decimals, ms, percent, render_page, times
from dyndeploy.reporting.svg import Bars, Line, bar_chart, line_chart, ticks


@dataclass(frozen=True)
class DeviceSection:
    """A device that was not measured.

    Attributes:
        device: Its model.
        warnings: About the prediction.
        rates: Predicted times and speed-ups per rate.
        blocks: Predicted speed-ups and shares per block.
    """

    device: str
    warnings: Sequence[str]
    rates: Table
    blocks: Table


@dataclass(frozen=True)
class OwnSection:
    """The device that was measured, and what is predicted for it.

    Attributes:
        basis: What is compared, in a sentence.
        warnings: About the prediction.
        speedup_chart: Measured and predicted.
        scatter: Every part, or empty.
        agreement: Errors of the whole network.
        rates: Errors per rate.
        parts: Of a detector, its parts measured and predicted, or None.
        kinds: Errors by kind of kernels, or None.
        worst: The worst parts, or None.
        folded: Blocks, as HTML.
    """

    basis: str
    warnings: Sequence[str]
    speedup_chart: str
    scatter: str
    agreement: Table
    rates: Table
    parts: Table | None
    kinds: Table | None
    worst: Table | None
    folded: str


def _rate(entry: RateComparison) -> str:
    return f"{entry.rate:.3g} ({entry.masks})"


def _warnings(comparison: Comparison) -> list[str]:
    unknown = comparison.coverage.unknown
    priced = [f"Unknown operators, priced by their bytes: {', '.join(unknown)}."] if unknown else []
    return [*(f"{comparison.predicted_device}: {warning}" for warning in comparison.warnings), *priced]


# ---------------------------------------------------------------- the device that was measured


def own_section(profile: Profile, comparison: Comparison) -> OwnSection:
    """What is predicted for the device that was measured, with the errors."""
    kinds = comparison.kinds
    return OwnSection(
        basis=comparison.basis,
        warnings=_warnings(comparison),
        speedup_chart=_speedup_chart(profile, comparison),
        scatter=_scatter(comparison) if comparison.parts else "",
        agreement=_agreement(comparison),
        rates=_errors(comparison),
        parts=_parts(comparison) if comparison.rates[-1].parts else None,
        kinds=_kinds(comparison) if kinds else None,
        worst=_worst(comparison) if kinds else None,
        folded=render_page("blocks.html.j2", chart=_block_chart(comparison), blocks=_blocks(comparison)),
    )


def _agreement(c: Comparison) -> Table:
    figures = (
        ("mean error of latencies", percent(c.latency_mape), c.latency_mape),
        ("mean error of speed-ups", percent(c.speedup_mape), c.speedup_mape),
        ("rank correlation of speed-ups", decimals(c.speedup_spearman), c.speedup_spearman),
        ("mean error of blocks' speed-ups", percent(c.block_speedup_mape), c.block_speedup_mape),
        ("rank correlation of blocks' speed-ups", decimals(c.block_speedup_spearman), c.block_speedup_spearman),
        ("rank correlation of blocks' shares", decimals(c.block_share_spearman), c.block_share_spearman),
        ("operators that the prediction knows", f"{c.coverage.by_count:.1%} of {c.coverage.operators}",
         c.coverage.by_count),
    )  # fmt: skip
    return Table(
        f"Agreement of measurement and prediction for {c.predicted_device}",
        ("over the network", "value"),
        [(name, shown) for name, shown, _ in figures],
        file=f"agreement-{c.predicted_device}.csv",
        fields=("name", "value"),
        values=[(name, value) for name, _, value in figures],
    )


def _errors(c: Comparison) -> Table:
    def error(predicted: float, measured: float) -> str:
        return f"{predicted / measured - 1:+.1%}"

    return Table(
        f"Measured and predicted per rate for {c.predicted_device}",
        ("rate", "ideal", "measured", "predicted", "error", "measured ms/image", "predicted ms/image", "error of ms"),
        [
            (
                _rate(r),
                times(r.ideal_speedup),
                times(r.measured_speedup),
                times(r.predicted_speedup),
                error(r.predicted_speedup, r.measured_speedup),
                ms(r.measured_ms),
                ms(r.predicted_ms),
                error(r.predicted_ms, r.measured_ms),
            )
            for r in c.rates
        ],
        file=f"predicted-{c.predicted_device}.csv",
        fields=(
            "rate",
            "masks",
            "ideal_speedup",
            "measured_speedup",
            "predicted_speedup",
            "measured_ms",
            "predicted_ms",
        ),
        values=[
            (r.rate, r.masks, r.ideal_speedup, r.measured_speedup, r.predicted_speedup, r.measured_ms, r.predicted_ms)
            for r in c.rates
        ],
    )


def _kinds(c: Comparison) -> Table:
    return Table(
        f"Errors by kind of kernels for {c.predicted_device}",
        ("mostly", "parts", "mean error", "bias", "within 10 %"),
        [(k.kind, str(k.parts), percent(k.mape), percent(k.bias), percent(k.within_10)) for k in c.kinds],
        file=f"kinds-{c.predicted_device}.csv",
        fields=("kind", "parts", "mape", "bias", "within_10"),
        values=[(k.kind, k.parts, k.mape, k.bias, k.within_10) for k in c.kinds],
    )


def _worst(c: Comparison) -> Table:
    return Table(
        f"The ten worst predictions for {c.predicted_device}",
        ("worst parts", "rate", "mostly", "measured ms/image", "predicted ms/image", "error"),
        [(p.part, p.network, p.kind, ms(p.measured_ms), ms(p.predicted_ms), percent(p.error)) for p in c.worst],
        file=f"parts-{c.predicted_device}.csv",
        fields=("part", "network", "kind", "measured_ms", "predicted_ms", "error"),
        values=[(p.part, p.network, p.kind, p.measured_ms, p.predicted_ms, p.error) for p in c.parts],
    )


def _speedup_chart(profile: Profile, comparison: Comparison) -> str:
    forced = sorted(profile.rates, key=lambda result: result.rate)
    lines = [
        Line("ideal (from MACs)", "ideal", [(r.rate, r.ideal_speedup) for r in forced], markers=False),
        Line(
            "measured (forced)",
            "measured",
            [(r.rate, r.realised_speedup) for r in forced],
            [(r.rate, *r.realised_spread) for r in forced],
        ),
        Line(
            "predicted",
            "predicted p0",
            sorted((rate.rate, rate.predicted_speedup) for rate in comparison.rates if rate.masks == FORCED),
        ),
        Line("own masks, measured", "data", [(profile.data.rate, profile.data.realised_speedup)], connect=False),
    ]
    return line_chart(
        [line for line in lines if line.points],
        identifier=f"speedup-{comparison.predicted_device}",
        title=f"Speed-up over the static twin against activation rate, measured and predicted for {profile.device}",
        description="The tables have the numbers.",
        x_label="activation rate",
        y_label="speed-up over the static twin",
    )


def _block_chart(comparison: Comparison) -> str:
    rate, device = comparison.rates[-1], comparison.predicted_device
    return bar_chart(
        [block.name for block in rate.blocks],
        [
            Bars("measured", "measured", [b.measured_speedup for b in rate.blocks]),
            Bars("predicted", "predicted p0", [b.predicted_speedup for b in rate.blocks]),
        ],
        identifier=f"block-speedup-{device}",
        title=f"Speed-up of each block, measured and predicted for {device}",
        description="With the data's own masks, over the static twin.",
        x_label="speed-up over the static twin",
        form="{:.2f}".format,
        reference=1.0,
    )


def _blocks(c: Comparison) -> Table:
    return Table(
        f"Blocks, measured and predicted for {c.predicted_device}",
        ("block", "speed-up measured", "speed-up predicted", "share measured", "share predicted"),
        [
            (
                b.name,
                times(b.measured_speedup),
                times(b.predicted_speedup),
                percent(b.measured_share),
                percent(b.predicted_share),
            )
            for b in c.rates[-1].blocks
        ],
        file=f"blocks-{c.predicted_device}.csv",
        fields=("name", "measured_speedup", "predicted_speedup", "measured_share", "predicted_share"),
        values=[
            (b.name, b.measured_speedup, b.predicted_speedup, b.measured_share, b.predicted_share)
            for b in c.rates[-1].blocks
        ],
    )


def _parts(c: Comparison) -> Table:
    entries = [(rate, part) for rate in c.rates for part in rate.parts]
    return Table(
        f"Parts, measured and predicted for {c.predicted_device}",
        ("part", "rate", "measured ms", "predicted ms", "share measured", "share predicted", "speed-up measured",
         "speed-up predicted"),
        [
            (part.name, _rate(rate), ms(part.measured_ms), ms(part.predicted_ms), percent(part.measured_share),
             percent(part.predicted_share), times(part.measured_speedup), times(part.predicted_speedup))
            for rate, part in entries
        ],
        file=f"parts-{c.predicted_device}.csv",
        fields=("part", "rate", "masks", "measured_ms", "predicted_ms", "measured_share", "predicted_share",
                "measured_speedup", "predicted_speedup"),
        values=[
            (part.name, rate.rate, rate.masks, part.measured_ms, part.predicted_ms, part.measured_share,
             part.predicted_share, part.measured_speedup, part.predicted_speedup)
            for rate, part in entries
        ],
    )  # fmt: skip


def _scatter(comparison: Comparison) -> str:
    """Measured against predicted times of all parts, with the band of 10 %."""
    points = [(part.measured_ms, part.predicted_ms) for part in comparison.parts]
    high = ticks(max(measured for measured, _ in points))[-1]
    inside = sum(abs(part.error) <= 0.1 for part in comparison.parts)
    lines = [
        Line("10 % above", "ideal", [(0.0, 0.0), (high, 1.1 * high)], markers=False),
        Line("10 % below", "ideal", [(0.0, 0.0), (high, 0.9 * high)], markers=False),
        Line("a part of a network", "predicted p0", points, connect=False),
    ]
    return line_chart(
        lines,
        identifier=f"scatter-{comparison.predicted_device}",
        title=f"Time of every part, measured and predicted for {comparison.predicted_device}",
        description=f"{inside} of {len(points)} parts lie within 10 %. The tables have the worst.",
        x_label="measured, ms per image",
        y_label="predicted, ms per image",
        x_high=high,
    )


# ---------------------------------------------------------------- other devices


def device_section(c: Comparison) -> DeviceSection:
    """What is predicted for a device that was not measured."""
    rates = Table(
        f"Rates, predicted for {c.predicted_device}",
        ("rate", "ideal", "predicted speed-up", "predicted ms/image"),
        [(_rate(r), times(r.ideal_speedup), times(r.predicted_speedup), ms(r.predicted_ms)) for r in c.rates],
    )
    blocks = Table(
        f"Blocks, predicted for {c.predicted_device}",
        ("block", "predicted speed-up", "predicted share", "predicted ms/image"),
        [
            (b.name, times(b.predicted_speedup), percent(b.predicted_share), ms(b.predicted_ms))
            for b in c.rates[-1].blocks
        ],
    )
    return DeviceSection(c.predicted_device, _warnings(c), rates, blocks)


def _fastest_first(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return sorted(comparisons, key=lambda entry: -entry.rates[-1].predicted_speedup)


def others_table(comparisons: Sequence[Comparison]) -> Table:
    """Predictions for devices that were not measured, one row each."""
    own = [f"speed-up at {_rate(rate)}" for rate in (comparisons[0].rates if comparisons else ())]
    ordered = _fastest_first(comparisons)
    return Table(
        "Predicted for devices that were not measured",
        ("device", "static ms/image", "dynamic ms/image, own masks", *own),
        [
            (
                c.predicted_device,
                ms(c.static_predicted_ms),
                ms(c.rates[-1].predicted_ms),
                *(times(rate.predicted_speedup) for rate in c.rates),
            )
            for c in ordered
        ],
        file="predicted-devices.csv",
        fields=("device", "rate", "masks", "static_predicted_ms", "predicted_ms", "predicted_speedup"),
        values=[
            (c.predicted_device, r.rate, r.masks, c.static_predicted_ms, r.predicted_ms, r.predicted_speedup)
            for c in ordered
            for r in c.rates
        ],
    )


def others_chart(profile: Profile, comparisons: Sequence[Comparison]) -> str:
    """Predicted speed-ups of devices that were not measured."""
    ordered = _fastest_first(comparisons)
    speedups = [entry.rates[-1].predicted_speedup for entry in ordered]
    named = zip(ordered, speedups, strict=True)
    return bar_chart(
        [entry.predicted_device for entry in ordered],
        [Bars("predicted", "predicted p0", speedups)],
        identifier="devices",
        title=f"Speed-up predicted for devices that were not measured, beside that measured on {profile.device}",
        description="; ".join(f"{entry.predicted_device}: {speedup:.2f}x" for entry, speedup in named),
        x_label="speed-up over the own static twin, the data's own masks",
        form="{:.2f}".format,
        reference=profile.data.realised_speedup,
    )
