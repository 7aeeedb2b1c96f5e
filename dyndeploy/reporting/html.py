"""The report: one HTML page that needs nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from dyndeploy import files
from dyndeploy.errors import UsageError
from dyndeploy.measure import BlockTimes, Profile, RateResult, Samples
from dyndeploy.reporting.comparison import PredictedSweep, compare_profile, unpredicted_note
from dyndeploy.reporting.energy import energy_table
from dyndeploy.reporting.gallery import SHARP_SIDE, GalleryItem, data_uri
from dyndeploy.reporting.page import (
    Rows,
    Table,
    machine_rows,
    measured_on,
    ms,
    percent,
    render_page,
    times,
    version_rows,
)
from dyndeploy.reporting.parts import parts_chart, parts_table, steps_table
from dyndeploy.reporting.predicted import device_section, others_chart, others_table, own_section
from dyndeploy.reporting.svg import Bars, Line, bar_chart, line_chart


@dataclass(frozen=True)
class ReportExtras:
    """What a profile does not know.

    Attributes:
        title: Heading; None makes one from the network.
        accuracy: Held-out top-1 accuracy in [0, 1].
        accuracy_source: On what it was measured.
        gallery: Images with their masks.
        notes: Paragraphs shown under the summary.
        gallery_note: What is seen in the gallery.
        gallery_title: Heading of the gallery.
        tables: Further results, such as average precisions, shown under the summary.
    """

    title: str | None = None
    accuracy: float | None = None
    accuracy_source: str = ""
    gallery: Sequence[GalleryItem] = ()
    notes: Sequence[str] = ()
    gallery_note: str = "Left the input; right the patches that are computed (framed), the skipped ones greyed."
    gallery_title: str = "What the masks choose"
    tables: Sequence[Table] = ()

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
    own = [entry for entry in comparisons if entry.same_device]
    others = [entry for entry in comparisons if not entry.same_device]
    name = f"{profile.bundle.get('name', 'network')}, mode {profile.bundle.get('mode', '?')}"
    reduced = profile.reduced_precision
    precision = profile.bundle.get("precision")
    return render_page(
        "report.html.j2",
        title=extras.title or name,
        top=measured_on(
            profile.machine,
            profile.threads,
            profile.operator_code,
            ("Batch", profile.batch),
            ("Precision", f"{reduced}, static twin fp32" if reduced else precision),
        ),
        name=name,
        profile=profile,
        extras=extras,
        summary=_summary(profile),
        facts=_facts(profile),
        energy=energy_table(profile.energy),
        versions=version_rows(profile.machine, profile.bundle.get("tools", {})),
        warnings=profile.warnings(),
        latency_chart=_latency_chart(profile),
        realisation_chart=_realisation_chart(profile),
        rates=_rates_table(profile),
        parts_chart=parts_chart(profile),
        block_chart=_block_chart(profile.data),
        blocks=_blocks_table(profile.data),
        parts=parts_table(profile),
        steps=steps_table(profile),
        unpredicted=unpredicted_note(profile.device, profile.threads, [c.predicted_device for c in comparisons])
        if comparisons
        else "",
        own=[own_section(profile, entry) for entry in own],
        others=[device_section(entry) for entry in others],
        others_chart=others_chart(profile, others) if others else "",
        others_table=others_table(others),
        wide_gallery=any(max(item.image.shape[:2]) > SHARP_SIDE for item in extras.gallery),
        gallery=[(data_uri(item.image), data_uri(item.overlay), item.caption) for item in extras.gallery],
    )


# ---------------------------------------------------------------- words


def _describe(result: RateResult) -> str:
    """Rate and who decided it."""
    return f"{result.label} ({result.masks})"


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
        + (f" The dynamic operators ran in: {profile.operator_code}." if profile.operator_code else "")
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


# ---------------------------------------------------------------- tables

_UNSTABLE = " (unstable)"


def _timed(samples: Samples, batch: int) -> tuple[str, ...]:
    per_batch = (ms(samples.percentile(percentage)) for percentage in (90, 99))
    return ms(samples.median / batch), *per_batch, percent(samples.cov) + (_UNSTABLE if samples.unstable else "")


def _timed_values(samples: Samples, batch: int) -> tuple[float, ...]:
    return samples.median, samples.median / batch, samples.percentile(90), samples.percentile(99), samples.cov


def _rates_table(profile: Profile) -> Table:
    batch, results = profile.batch, (*profile.rates, profile.data)
    rows = [("static twin", "-", *_timed(profile.static, batch), "1.00x", "1.00x", "-", "-")]
    values: list[tuple[object, ...]] = [("static twin", None, *_timed_values(profile.static, batch), 1, 1, *[None] * 3)]
    for r in results:
        low, high = r.realised_spread
        speedups = (
            times(r.ideal_speedup),
            times(r.realised_speedup),
            f"{low:.2f} to {high:.2f}",
            percent(r.realisation),
        )
        rows.append((r.label, r.masks, *_timed(r.samples, batch), *speedups))
        figures = (r.ideal_speedup, r.realised_speedup, low, high, r.realisation)
        values.append((r.rate, r.masks, *_timed_values(r.samples, batch), *figures))
    return Table(
        "Latency per rate, measured",
        ("rate", "masks", "median ms/image", "p90 ms/batch", "p99 ms/batch", "CoV", "ideal", "realised", "p25 to p75",
         "realisation"),
        rows,
        file="rates.csv",
        fields=("rate", "masks", "median_ms", "ms_per_image", "p90_ms", "p99_ms", "cov", "ideal_speedup",
                "realised_speedup", "realised_p25", "realised_p75", "realisation"),
        values=values,
    )  # fmt: skip


def _blocks_table(result: RateResult) -> Table:
    parts: Sequence[BlockTimes] = (*result.blocks, *result.rest)
    return Table(
        "Time per block, measured",
        ("block", "static ms", "dynamic ms", "ideal", "realised"),
        [(b.name, ms(b.static_ms), ms(b.dynamic_ms), times(b.ideal_speedup), times(b.realised_speedup)) for b in parts],
        file="blocks.csv",
        fields=("name", "static_ms", "dynamic_ms", "ideal_speedup", "realised_speedup"),
        values=[(b.name, b.static_ms, b.dynamic_ms, b.ideal_speedup, b.realised_speedup) for b in parts],
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
