"""``dyndeploy compare``: a measurement next to predictions, or two measurements side by side; as one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyndeploy.cli._arguments import print_json, print_table, printable
from dyndeploy.cli._options import AsJson, option
from dyndeploy.cli._profile_file import CALIBRATE_FIRST, print_comparisons
from dyndeploy.cli._verbosity import note
from dyndeploy.errors import InputError, UsageError

if TYPE_CHECKING:
    from dyndeploy.reporting import Comparison, ExitComparison, Pair


def compare(
    profile: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT.json", help="Written by 'dyndeploy profile' or 'dyndeploy calibrate' with --json."
        ),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER.json", help="A second profile of the same kind: the two side by side."),
    ] = None,
    output: Annotated[Path | None, option("--output", "-o", metavar="FILE", detail="Here one HTML page.")] = None,
    predict_device: Annotated[
        str | None, typer.Option(help="Device model to predict for. (default: every one)")
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT", help="Exit with 1 if the latencies predicted for the profiled device err by more (mean)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a measurement with predictions, or two measurements with each other, and write a self-contained page."""
    if fail_above is not None and not fail_above >= 0:
        raise UsageError(f"--fail-above takes per cent, 0 or more, not {fail_above}.")
    asked = _Asked(profile, output, predict_device, fail_above, as_json)
    if other is not None:
        _compare_pair(asked, other)
        return
    from dyndeploy.reporting import measurement_kind

    kind = measurement_kind(profile)
    if kind not in _KINDS:
        raise InputError(f"{profile} is no profile. Write one with 'dyndeploy profile BUNDLE --json FILE'.")
    _KINDS[kind](asked)


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for."""

    source: Path
    output: Path | None
    predict_device: str | None
    fail_above: float | None
    as_json: bool

    @property
    def predicts(self) -> bool:
        return self.predict_device is not None or self.fail_above is not None

    def require_prediction(self, device: str, note: str) -> None:
        """Refuse a limit for an error that nothing can be held against."""
        if self.fail_above is not None and note:
            raise UsageError(f"--fail-above limits the error of what is predicted for {device}. {note}")

    def deliver(self, value: Mapping[str, Any], show: Callable[[], None]) -> None:
        """Print the result; the page is written before."""
        if self.as_json:
            print_json({**value, "report": None if self.output is None else str(self.output)})
            return
        show()
        if self.output is not None:
            typer.echo(f"Report: {self.output}")


# ---------------------------------------------------------------- two measurements


def _compare_pair(asked: _Asked, other: Path) -> None:
    from dyndeploy.reporting import compare_files, write_pair_report

    if asked.predicts:
        raise UsageError("Two measurements are compared with each other: leave out the device and --fail-above.")
    pair = compare_files(asked.source, other)
    if asked.output is not None:
        write_pair_report(asked.output, pair)
    asked.deliver(pair.to_json(), lambda: _print_pair(pair))


def _print_pair(pair: Pair) -> None:
    if pair.differences:
        print_table(
            ("what differs", pair.one, pair.other), [(fact.what, fact.one, fact.other) for fact in pair.differences]
        )
    print_table(
        (
            "what",
            f"{pair.one}, ms",
            "p25..p75",
            f"{pair.other}, ms",
            "p25..p75",
            "change",
            "beyond noise",
            "speed-ups",
            "realisation",
        ),
        [
            (
                row.one.name,
                f"{row.one.ms:.3f}",
                _between(row.one.spread),
                f"{row.other.ms:.3f}",
                _between(row.other.spread),
                f"{row.time_ratio - 1:+.1%}",
                "yes" if row.beyond_noise else "no",
                _both(row.one.speedup, row.other.speedup, "{:.2f}x") + (" *" if row.speedup_beyond_noise else ""),
                _both(row.one.realisation, row.other.realisation, "{:.0%}"),
            )
            for row in pair.rows
        ],
        title="measured, ms per image; * speed-ups that differ by more than noise",
    )
    energies = [
        (row.one.name, *map(_mj, (row.one.mj, row.other.mj))) for row in pair.rows if row.one.mj or row.other.mj
    ]
    if energies:
        print_table(("what", f"{pair.one}, mJ", f"{pair.other}, mJ"), energies, title="energy per image, measured")
    typer.echo(printable(pair.summary))
    for each in pair.notes:
        typer.echo(f"Note: {printable(each)}")


def _mj(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _between(spread: tuple[float, float] | None) -> str:
    return "-" if spread is None else f"{spread[0]:.4g}..{spread[1]:.4g}"


def _both(one: float | None, other: float | None, form: str) -> str:
    return " | ".join("-" if value is None else form.format(value) for value in (one, other))


# ---------------------------------------------------------------- a measurement and predictions


def _compare_calibration(asked: _Asked) -> None:
    from dyndeploy.exits import load_calibration
    from dyndeploy.reporting import write_exits_report

    if asked.predicts:
        raise UsageError(
            f"{asked.source} holds thresholds, which nothing predicts: leave out the device and --fail-above."
        )
    if asked.output is None:
        raise UsageError(
            f"{asked.source} holds thresholds: there is nothing to compare, only a page. Give -o page.html."
        )
    write_exits_report(asked.output, load_calibration(asked.source))
    asked.deliver({"kind": "calibration", "source": str(asked.source)}, lambda: None)


def _compare_exits(asked: _Asked) -> None:
    from dyndeploy.measure.load_exits import load_exit_profile
    from dyndeploy.prediction import known_devices
    from dyndeploy.reporting import (
        compare_exit_profile,
        predict_exit_profile,
        summarise_exits,
        unpredicted_note,
        write_exit_profile_report,
    )

    measured = load_exit_profile(asked.source)
    devices = (
        [asked.predict_device]
        if asked.predict_device
        else known_devices(measured.threads, measured.bundle.get("precision"))
    )
    comparisons = [compare_exit_profile(measured, predict_exit_profile(measured, name)) for name in devices]
    device = getattr(measured, "device", "cpu")
    lacking = unpredicted_note(device, measured.threads, [entry.predicted_device for entry in comparisons])
    asked.require_prediction(device, lacking)
    if asked.output is not None:
        write_exit_profile_report(asked.output, measured, comparisons)

    def show() -> None:
        typer.echo(printable(summarise_exits(measured)))
        for entry in comparisons:
            if entry.same_device:
                _print_own_exits(entry)
        _print_other_exits([entry for entry in comparisons if not entry.same_device], device)
        _print_notes(comparisons, lacking, measured.bodies_note)

    value = {
        "kind": "measured_exits",
        "source": str(asked.source),
        "operators": measured.operator_code,
        "summary": summarise_exits(measured),
        "note": lacking,
        "comparisons": [comparison.to_json() for comparison in comparisons],
    }
    asked.deliver(value, show)
    _require_below([(entry.predicted_device, entry.latency_mape) for entry in comparisons], asked.fail_above)


def _print_own_exits(entry: ExitComparison) -> None:
    print_table(
        ("leaves at, or mix", "measured ms", "predicted ms", "error", "measured speed-up", "predicted speed-up"),
        [
            (
                item.name,
                f"{item.measured_ms:.3f}",
                f"{item.predicted_ms:.3f}",
                f"{item.predicted_ms / item.measured_ms - 1:+.1%}",
                f"{item.measured_speedup:.2f}x",
                f"{item.predicted_speedup:.2f}x",
            )
            for item in (*entry.exits, *entry.mixes)
        ],
        title=f"{entry.predicted_device}: measured and predicted, speed-ups over the network without exits",
    )


def _print_other_exits(comparisons: Sequence[ExitComparison], measured: str) -> None:
    if not comparisons:
        return
    items = (*comparisons[0].exits, *comparisons[0].mixes)
    rows = [
        (
            entry.predicted_device,
            f"{entry.whole_predicted_ms:.3f}",
            *(f"{item.predicted_ms:.3f} ({item.predicted_speedup:.2f}x)" for item in (*entry.exits, *entry.mixes)),
        )
        for entry in comparisons
    ]
    print_table(
        ("device", "without exits", *(item.name for item in items)),
        [
            (
                f"{measured}, measured",
                f"{comparisons[0].whole_measured_ms:.3f}",
                *(f"{item.measured_ms:.3f} ({item.measured_speedup:.2f}x)" for item in items),
            ),
            *rows,
        ],
        title="other devices, predicted, for information: ms (speed-up over the network without exits on that device)",
    )


def _compare_skipping(asked: _Asked) -> None:
    from dyndeploy.measure import load_profile
    from dyndeploy.prediction import known_devices
    from dyndeploy.reporting import compare_profile, predict_profile, unpredicted_note, write_report

    measured = load_profile(asked.source)
    devices = (
        [asked.predict_device]
        if asked.predict_device
        else known_devices(measured.threads, measured.bundle.get("precision"))
    )
    sweeps = [predict_profile(measured, name) for name in devices]
    lacking = unpredicted_note(measured.device, measured.threads, [sweep.device for sweep in sweeps])
    asked.require_prediction(measured.device, lacking)
    if asked.output is not None:
        write_report(asked.output, measured, sweeps)
    comparisons = [compare_profile(measured, sweep) for sweep in sweeps]
    value = {
        "profile": str(asked.source),
        "profiled_device": measured.device,
        "operators": measured.operator_code,
        "note": lacking,
        "comparisons": [comparison.to_json() for comparison in comparisons],
    }

    def show() -> None:
        if measured.operator_code is not None:
            typer.echo(f"measured on {measured.device}, operators: {printable(measured.operator_code)}")
        for entry in comparisons:
            if entry.same_device:
                _print_own(entry)
        _print_others([entry for entry in comparisons if not entry.same_device], measured.device)
        _print_notes(comparisons, lacking, measured.bodies_note)

    asked.deliver(value, show)
    _require_below([(entry.predicted_device, entry.latency_mape) for entry in comparisons], asked.fail_above)


def _compare_network(asked: _Asked) -> None:
    from dyndeploy.measure import load_network_profile
    from dyndeploy.prediction import known_devices
    from dyndeploy.reporting import compare_network_profile, write_network_report

    measured = load_network_profile(asked.source)
    devices = [asked.predict_device] if asked.predict_device else known_devices(measured.threads)
    comparisons = [compare_network_profile(measured, device) for device in devices]
    own = [entry for entry in comparisons if entry.error is not None]
    asked.require_prediction(measured.device, "" if own else CALIBRATE_FIRST)
    if asked.output is not None:
        write_network_report(asked.output, measured, comparisons)
    value = {
        "kind": "measured_network",
        "source": str(asked.source),
        "comparisons": [comparison.to_json() for comparison in comparisons],
    }
    asked.deliver(value, lambda: print_comparisons(measured, comparisons))
    _require_below([(entry.predicted_device, abs(entry.error or 0.0)) for entry in own], asked.fail_above)


_KINDS: Mapping[str, Callable[[_Asked], None]] = {
    "measured": _compare_skipping,
    "measured_exits": _compare_exits,
    "measured_network": _compare_network,
    "calibration": _compare_calibration,
}
"""What is done with a file, by the kind of result that it says it holds."""


def _require_below(errors: Sequence[tuple[str, float | None]], fail_above: float | None) -> None:
    """Exit with 1 where the mean error of what is predicted for the measured device exceeds a limit in per cent."""
    for device, error in errors:
        if fail_above is not None and error is not None and 100 * error > fail_above:
            typer.echo(
                f"The prediction for {device} is off by {error:.1%} on average, more than {fail_above:g} %.", err=True
            )
            raise typer.Exit(1)


def _print_own(entry: Comparison) -> None:
    print_table(
        ("rate", "measured ms", "predicted ms", "error", "measured speed-up", "predicted speed-up"),
        [
            (
                f"{rate.rate:.3g} ({rate.masks})",
                f"{rate.measured_ms:.3f}",
                f"{rate.predicted_ms:.3f}",
                f"{rate.predicted_ms / rate.measured_ms - 1:+.1%}",
                f"{rate.measured_speedup:.2f}x",
                f"{rate.predicted_speedup:.2f}x",
            )
            for rate in entry.rates
        ],
        title=f"{entry.predicted_device}: measured and predicted; mean error of latencies {entry.latency_mape:.1%}, of "
        f"speed-ups {entry.speedup_mape:.1%}, {entry.coverage.by_count:.0%} of the operators known",
    )
    print_table(
        ("mostly", "parts", "mean error", "bias", "within 10 %"),
        [
            (kind.kind, kind.parts, f"{kind.mape:.1%}", f"{kind.bias:+.1%}", f"{kind.within_10:.0%}")
            for kind in entry.kinds
        ],
        title=f"{entry.predicted_device}: error of the parts by kind of their kernels",
    )
    print_table(
        ("part", "network", "mostly", "measured ms", "predicted ms", "error"),
        [
            (
                part.part,
                part.network,
                part.kind,
                f"{part.measured_ms:.4f}",
                f"{part.predicted_ms:.4f}",
                f"{part.error:+.1%}",
            )
            for part in entry.worst
        ],
        title=f"{entry.predicted_device}: the worst parts",
    )


def _print_others(comparisons: Sequence[Comparison], measured: str) -> None:
    if not comparisons:
        return
    rates = comparisons[0].rates
    rows = [
        (
            entry.predicted_device,
            f"{entry.static_predicted_ms:.3f}",
            *(f"{rate.predicted_speedup:.2f}x" for rate in entry.rates),
            f"{entry.coverage.by_count:.0%}",
        )
        for entry in comparisons
    ]
    print_table(
        ("device", "static ms", *(f"{rate.rate:.3g} ({rate.masks})" for rate in rates), "operators known"),
        [(f"{measured}, measured", "-", *(f"{rate.measured_speedup:.2f}x" for rate in rates), "-"), *rows],
        title="other devices, predicted, for information: speed-ups over each device's own static twin, by rate",
    )


def _print_notes(comparisons: Sequence[Comparison | ExitComparison], *notes: str) -> None:
    for each in filter(None, notes):
        typer.echo(f"Note: {each}")
    for entry in comparisons:
        for warning in entry.warnings:
            note(f"{entry.predicted_device}: {warning}")
