"""A static network that was measured, next to what is predicted for it; and its page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy import files
from dyndeploy.measure.network import NetworkProfile
from dyndeploy.prediction import Estimator
from dyndeploy.prediction.calibrated import Installation
from dyndeploy.reporting.comparison import consistent
from dyndeploy.reporting.page import decimals, machine_rows, ms, percent, render_page, version_rows
from dyndeploy.reporting.svg import Bars, bar_chart
from dyndeploy.targets import load_device

_SHOWN_OPERATORS = 12


@dataclass(frozen=True)
class PartComparison:
    """One part of the network, in ms per image.

    Attributes:
        name: Block, ``"stem"``, ``"head"``, ``"network"`` or ``"other"``.
        measured_ms: On the machine, each node's fastest run.
        predicted_ms: On the device model.
    """

    name: str
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        """Relative to the measured time."""
        return self.predicted_ms / self.measured_ms - 1.0


@dataclass(frozen=True)
class NetworkComparison:
    """A static network that was measured against the prediction for one device model. Times are ms per image.

    Attributes:
        measured_device: Where it was measured.
        predicted_device: What was predicted.
        measured_ms: Median.
        predicted_ms: On the device model.
        interval_ms: 90 % interval of the prediction, or None.
        parts: Every part that both sides know; empty where the devices differ.
        warnings: Why a calibration may not fit what was measured.
    """

    measured_device: str
    predicted_device: str
    measured_ms: float
    predicted_ms: float
    interval_ms: tuple[float, float] | None
    parts: tuple[PartComparison, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def error(self) -> float | None:
        """Relative to the measured latency; None where the devices differ, whose milliseconds are no error."""
        same = self.measured_device == self.predicted_device
        return self.predicted_ms / self.measured_ms - 1.0 if same else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **asdict(self),
            "interval_ms": None if self.interval_ms is None else list(self.interval_ms),
            "error": self.error,
            "parts": [{**vars(part), "error": part.error} for part in self.parts],
            "warnings": list(self.warnings),
        }


def compare_network_profile(profile: NetworkProfile, device: str) -> NetworkComparison:
    """Predict what was measured, and compare.

    Args:
        profile: The measurement, which holds the graph.
        device: Name of a device model.

    Raises:
        UsageError: Unknown device, or this machine is not calibrated.
        InputError: The graph in the profile is malformed.
    """
    local = load_device(device).is_local
    installation = Installation(profile.machine, profile.runtime.get("version"), None) if local else None
    estimator = Estimator(device, batch=profile.batch, threads=profile.threads, installation=installation)
    with consistent():
        prediction = estimator.predict(profile.nodes)
    name = estimator.device.name
    predicted = {block.name: block.latency_ms for block in prediction.blocks}
    parts = (
        PartComparison(part.name, part.ms / profile.batch, predicted[part.name])
        for part in profile.parts
        if name == profile.device and part.name in predicted and part.ms > 0
    )
    return NetworkComparison(
        measured_device=profile.device,
        predicted_device=name,
        measured_ms=profile.samples.median / profile.batch,
        predicted_ms=prediction.latency_ms,
        interval_ms=prediction.interval_ms,
        parts=tuple(parts),
        warnings=estimator.warnings,
    )


def write_network_report(
    path: str | os.PathLike[str], profile: NetworkProfile, comparisons: Sequence[NetworkComparison] = ()
) -> None:
    """Write the page of a static network that was measured, atomically; raises ``OutputError``."""
    files.write_text(path, render_network_report(profile, comparisons))


def render_network_report(profile: NetworkProfile, comparisons: Sequence[NetworkComparison] = ()) -> str:
    """Return the page that :func:`write_network_report` writes."""
    samples = profile.samples
    return render_page(
        "network.html.j2",
        title=f"{profile.network['name']}: latency",
        profile=profile,
        summary=f"One run of a batch of {profile.batch} takes {ms(samples.median)} ms (p90 "
        f"{ms(samples.percentile(90))} ms, p99 {ms(samples.percentile(99))} ms), measured, for "
        f"{decimals(profile.macs / 1e6)} million multiply-accumulates per image.",
        warnings=profile.warnings(),
        operator_chart=_operator_chart(profile) if profile.operators else "",
        part_rows=[(part.name, ms(part.ms)) for part in profile.parts],
        predicted_rows=[_predicted_row(entry) for entry in comparisons],
        compared_rows=[
            (part.name, ms(part.measured_ms), ms(part.predicted_ms), percent(part.error))
            for entry in comparisons
            for part in entry.parts
        ],
        predicted_warnings=[f"{entry.predicted_device}: {text}" for entry in comparisons for text in entry.warnings],
        facts=machine_rows(
            profile.machine,
            ("Threads", profile.threads),
            ("Runtime", f"{profile.runtime['name']} {profile.runtime['version']}"),
            ("File", profile.network["file"]),
            ("Inputs", profile.settings.get("inputs")),
            ("Rounds", profile.settings.get("rounds")),
        ),
        versions=version_rows(profile.machine, {}),
    )


def _predicted_row(entry: NetworkComparison) -> tuple[str, ...]:
    interval = "-" if entry.interval_ms is None else f"{ms(entry.interval_ms[0])} to {ms(entry.interval_ms[1])}"
    error = "not comparable" if entry.error is None else percent(entry.error)
    return f"{entry.predicted_device}, predicted", ms(entry.predicted_ms), interval, error


def _operator_chart(profile: NetworkProfile) -> str:
    shown = profile.operators[:_SHOWN_OPERATORS]
    return bar_chart(
        [part.name for part in shown],
        [Bars("measured", "measured", [part.ms for part in shown])],
        identifier="operators",
        title="Time by type of operator, measured",
        description="; ".join(f"{part.name}: {ms(part.ms)} ms" for part in shown) + ".",
        x_label="ms per run",
    )
