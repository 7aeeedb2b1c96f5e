"""The report: one HTML page that needs nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from dyndeploy import files
from dyndeploy.errors import UsageError
from dyndeploy.measure import BlockTimes, Profile, RateResult
from dyndeploy.reporting.comparison import Comparison, PredictedSweep, RateComparison, compare_profile
from dyndeploy.reporting.gallery import GalleryItem, data_uri
from dyndeploy.reporting.page import Rows, machine_rows, ms, render_page, version_rows
from dyndeploy.reporting.svg import Bars, Line, bar_chart, line_chart, ticks


@dataclass(frozen=True)
class ReportExtras:
    """What a profile does not know.

    Attributes:
        title: Heading; None makes one from the network.
        accuracy: Held-out top-1 accuracy in [0, 1].
        accuracy_source: On what it was measured.
        gallery: Images with their masks.
        notes: Paragraphs shown under the summary.
    """

    title: str | None = None
    accuracy: float | None = None
    accuracy_source: str = ""
    gallery: Sequence[GalleryItem] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the accuracy; raises ``UsageError``."""
        if self.accuracy is not None and not 0.0 <= self.accuracy <= 1.0:
            raise UsageError(f"The accuracy must lie in [0, 1], not {self.accuracy}.")


def write_report(
    path: str | os.PathLike[str],
    profile: Profile,
    prediction: PredictedSweep | Sequence[PredictedSweep] | None = None,
    extras: ReportExtras | None = None,
) -> None:
    """Write the report of a profile, atomically.

    Args:
        path: The HTML file.
        profile: The measurement.
        prediction: Predictions from :func:`~dyndeploy.reporting.predict_profile`, for one or several devices.
        extras: Accuracy, mask gallery and the like.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write_text(path, render_report(profile, prediction, extras))


def render_report(
    profile: Profile,
    prediction: PredictedSweep | Sequence[PredictedSweep] | None = None,
    extras: ReportExtras | None = None,
) -> str:
    """Return the page that :func:`write_report` writes."""
    extras = extras or ReportExtras()
    sweeps = (prediction,) if isinstance(prediction, PredictedSweep) else tuple(prediction or ())
    comparisons = [compare_profile(profile, sweep) for sweep in sweeps]
    name = f"{profile.bundle.get('name', 'network')}, mode {profile.bundle.get('mode', '?')}"
    return render_page(
        "report.html.j2",
        title=extras.title or name,
        name=name,
        profile=profile,
        extras=extras,
        summary=_summary(profile),
        facts=_facts(profile),
        versions=version_rows(profile.machine, profile.bundle.get("tools", {})),
        warnings=profile.warnings(),
        results=(*profile.rates, profile.data),
        describe=_describe,
        latency_chart=_latency_chart(profile),
        realisation_chart=_realisation_chart(profile),
        block_chart=_block_chart(profile.data),
        block_rows=[*profile.data.blocks, *profile.data.rest],
        comparisons=comparisons,
        speedup_chart=_speedup_chart(profile, comparisons) if comparisons else "",
        block_comparisons=[_block_speedup_chart(index, entry) for index, entry in enumerate(comparisons)],
        scatters={entry.predicted_device: _scatter(entry) for entry in comparisons if entry.parts},
        gallery=[(data_uri(item.image), data_uri(item.overlay), item.caption) for item in extras.gallery],
    )


# ---------------------------------------------------------------- words


def _describe(result: RateResult | RateComparison) -> str:
    """Rate and who decided it."""
    label = result.label if isinstance(result, RateResult) else f"{result.rate:.3g}"
    return f"{label} ({result.masks})"


def _summary(profile: Profile) -> str:
    data = profile.data
    speedup = data.realised_speedup
    verdict = f"{speedup:.2f} times as fast as" if speedup >= 1 else f"slower ({speedup:.2f} times the speed) than"
    return (
        f"With the masks that its images cause (mean rate {data.rate:.2f}), the dynamic network ran {verdict} its "
        f"static twin: {ms(data.samples.median / profile.batch)} ms against "
        f"{ms(profile.static.median / profile.batch)} ms per image, measured. Its masks leave "
        f"{1 / data.ideal_speedup:.0%} of the computation, which would allow {data.ideal_speedup:.2f}x: the "
        f"realisation is {data.realisation:.0%}."
    )


def _facts(profile: Profile) -> Rows:
    images, reduced = profile.settings.get("images", {}), profile.reduced_precision
    return machine_rows(
        profile.machine,
        ("Threads", profile.threads),
        ("Batch", profile.batch),
        ("Dynamic operators", profile.native.get("description")),
        ("Precision", f"bottlenecks {reduced}, everything else and the static twin fp32" if reduced else None),
        ("Images", f"{images['count']}: {images['source']}" if "source" in images else None),
        ("Rounds", profile.settings.get("rounds", "-")),
    )


# ---------------------------------------------------------------- charts


def _latency_chart(profile: Profile) -> str:
    forced = sorted(profile.rates, key=lambda result: result.rate)
    batch, static = profile.batch, profile.static.median / profile.batch
    data = profile.data
    lines = [
        Line("static twin, measured", "static", [(0.0, static), (1.0, static)], markers=False),
        Line("ideal (from MACs)", "ideal", [(r.rate, static / r.ideal_speedup) for r in forced], markers=False),
        Line(
            "forced masks, measured",
            "measured",
            [(r.rate, r.samples.median / batch) for r in forced],
            [(r.rate, r.samples.percentile(25) / batch, r.samples.percentile(75) / batch) for r in forced],
        ),
        Line("own masks, measured", "data", [(data.rate, data.samples.median / batch)], connect=False),
    ]
    points = "; ".join(f"rate {r.rate:g}: {ms(r.samples.median / batch)} ms" for r in forced)
    return line_chart(
        [line for line in lines if line.points],
        identifier="latency",
        title="Latency against activation rate, measured",
        description=f"Static twin {ms(static)} ms. Forced masks: {points}. Own masks at rate {data.rate:.2f}: "
        f"{ms(data.samples.median / batch)} ms. All per image; whiskers from the 25th to the 75th percentile.",
        x_label="activation rate",
        y_label="ms per image",
    )


def _realisation_chart(profile: Profile) -> str:
    results = (*profile.rates, profile.data)
    return bar_chart(
        [_describe(result) for result in results],
        [Bars("realisation, measured", "measured", [100 * result.realisation for result in results])],
        identifier="realisation",
        title="Realisation per rate, measured",
        description="Realised over ideal speed-up in per cent: "
        + "; ".join(f"{_describe(result)}: {result.realisation:.0%}" for result in results)
        + ". The dashed line is 100 %.",
        x_label="realised / ideal speed-up, %",
        form="{:.0f}".format,
        reference=100.0,
    )


def _block_chart(result: RateResult) -> str:
    parts: Sequence[BlockTimes] = (*result.blocks, *result.rest)
    return bar_chart(
        [part.name for part in parts],
        [
            Bars("static twin, measured", "static", [part.static_ms for part in parts]),
            Bars("dynamic, measured", "measured", [part.dynamic_ms for part in parts]),
        ],
        identifier="blocks",
        title="Time of each block in both networks, measured with the data's own masks",
        description="One pair of bars per block; the table below has the numbers.",
        x_label="ms per batch",
    )


def _speedup_chart(profile: Profile, comparisons: Sequence[Comparison]) -> str:
    forced = sorted(profile.rates, key=lambda result: result.rate)
    lines = [
        Line("ideal (from MACs)", "ideal", [(r.rate, r.ideal_speedup) for r in forced], markers=False),
        Line(
            f"{profile.device}, measured (forced)",
            "measured",
            [(r.rate, r.realised_speedup) for r in forced],
            [(r.rate, *r.realised_spread) for r in forced],
        ),
    ]
    lines += [
        Line(
            f"{entry.predicted_device}, predicted",
            f"predicted p{index % 5}",
            sorted((rate.rate, rate.predicted_speedup) for rate in entry.rates if rate.masks == "forced"),
        )
        for index, entry in enumerate(comparisons)
    ]
    return line_chart(
        [line for line in lines if line.points],
        identifier="speedup",
        title="Speed-up over the static twin against activation rate, measured and predicted",
        description="Each device against its own static twin; the tables have the numbers.",
        x_label="activation rate (forced)",
        y_label="speed-up over the own static twin",
    )


def _block_speedup_chart(index: int, comparison: Comparison) -> tuple[Comparison, RateComparison, str]:
    rate = comparison.rates[-1]
    chart = bar_chart(
        [block.name for block in rate.blocks],
        [
            Bars(f"{comparison.profiled_device}, measured", "measured", [b.measured_speedup for b in rate.blocks]),
            Bars(
                f"{comparison.predicted_device}, predicted",
                f"predicted p{index % 5}",
                [b.predicted_speedup for b in rate.blocks],
            ),
        ],
        identifier=f"block-speedup-{index}",
        title=f"Speed-up of each block, measured and predicted for {comparison.predicted_device}",
        description="With the data's own masks; each device against its own static twin.",
        x_label="speed-up over the own static twin",
        form="{:.2f}".format,
        reference=1.0,
    )
    return comparison, rate, chart


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
