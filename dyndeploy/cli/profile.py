"""``dyndeploy profile``: a bundle measured on this machine or on a board, next to its static twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, cast

import typer

from dyndeploy.cli._arguments import exit_mix as read_mix
from dyndeploy.cli._arguments import numbers, print_json, print_table
from dyndeploy.cli._boards import THIS_MACHINE, Host, chosen_board, chosen_here, connected, telling_waits
from dyndeploy.cli._options import Dim, Native, Repeats, Runtime, Threads, complete_device, option
from dyndeploy.cli._profile import print_energy, print_profile
from dyndeploy.cli._profile_file import file_measurement, network_page, print_network, require_static_file
from dyndeploy.cli._progress import progress_bar
from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    from dyndeploy.bundle import Bundle
    from dyndeploy.measure import NetworkProfile, Profile
    from dyndeploy.measure.exits import ExitProfile
    from dyndeploy.remote import DeviceEntry, DeviceReport
    from dyndeploy.reporting import ReportExtras
    from dyndeploy.runtimes.choice import RuntimeChoice

Progress: TypeAlias = "Callable[[str, float], None]"
_PICTURES = 4
"""So many images are drawn on a detector's page."""

_Measured = TypeVar("_Measured", "Profile", "ExitProfile", "NetworkProfile")


def profile(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|FILE.onnx",
            help="Folder of a bundle that was exported with --static; or a static ONNX file.",
        ),
    ],
    device: Annotated[
        str | None, option("--device", detail="(default: what is here)", autocompletion=complete_device)
    ] = None,
    host: Host = None,
    runtime: Runtime = "auto",
    threads: Threads = 1,
    rates: Annotated[str | None, option("--rates", detail="(default: 0.1,0.25,0.5,0.75,1.0)")] = None,
    data: Annotated[
        Path | None,
        option("--data", metavar="DIR", detail="For the data's own rates or exits. (default: the reference images)"),
    ] = None,
    exit_mix: Annotated[list[str] | None, option("--exit-mix", metavar="SHARES", detail="May be given again.")] = None,
    input_size: Annotated[
        str | None, option("--input-size", metavar="HxW", detail="Of an ONNX file. (default: the file's)")
    ] = None,
    dim: Dim = None,
    inputs: Annotated[
        list[str] | None,
        option("--input", metavar="NAME=FILE.npy", detail="(default: made-up numbers)"),
    ] = None,
    repeats: Repeats = None,
    native: Native = "auto",
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the result as JSON to a file; '--json -' is stdout."),
    ] = None,
    report: Annotated[
        Path | None, option("--report", metavar="FILE", detail="Measured, and predicted for the device.")
    ] = None,
) -> None:
    """Measure a bundle: each rate or exit next to the static twin, ideal and realised speed-up."""
    board = chosen_board(device, host)
    if board is not None and runtime != "auto":
        raise UsageError(f"--runtime {runtime} is for this machine; a board runs what its target does. Leave it out.")
    if board is not None and native != "auto":
        raise UsageError(f"--native {native} is for this machine; a board builds its own plugins. Leave it out.")
    chosen = None if rates is None else numbers("--rates", rates)
    if json_file is not None and json_file.startswith("-") and json_file != "-":
        raise UsageError(f"--json takes a file, or '-' for stdout ('--json -'), not '{json_file}'.")
    of_a_file = {"--input-size": input_size, "--dim": dim, "--input": inputs}
    if bundle.suffix == ".onnx" and not bundle.is_dir():
        of_a_bundle = {"--rates": rates, "--exit-mix": exit_mix, "--data": data}
        refused: dict[str, Any] = of_a_bundle | {
            "--device": None if device == THIS_MACHINE and board is None else device or board,
            "--native": native if native != "auto" else None,
            "--runtime": runtime if runtime != "auto" else None,
        }
        require_static_file(bundle, refused)
        measure_file = file_measurement(bundle, input_size, dim or [], inputs or [], threads, repeats)
        _deliver(measure_file, print_network, network_page, json_file, report)
        return
    surplus = [option for option, value in of_a_file.items() if value]
    if surplus:
        raise UsageError(f"{', '.join(surplus)}: only for an ONNX file. A bundle says itself what it takes.")

    from dyndeploy.bundle import Bundle

    opened = Bundle.open(bundle)
    choice = None if board is not None else chosen_here(opened, device, runtime, told=json_file != "-")
    if opened.manifest.exits is not None:
        mixes = [read_mix(mix) for mix in exit_mix or []]
        if rates is not None:
            raise UsageError(f"{opened.manifest.network.name} has exits: give --exit-mix 60/40/.. instead of --rates.")
        options: dict[str, Any] = {"threads": threads, "mixes": mixes, "data": data, "repeats": repeats}
        _profile_exits(opened, board, choice, options, native, json_file, report)
        return
    if exit_mix:
        raise UsageError(f"{opened.manifest.network.name} has no exits: leave --exit-mix out.")
    on_board: list[DeviceReport] = []

    def measure(progress: Progress) -> Profile:
        from dyndeploy.measure import profile_bundle, profile_engine
        from dyndeploy.remote import profile_on_device
        from dyndeploy.runtimes.base import ENGINE_RUNTIMES
        from dyndeploy.runtimes.tensorrt_engine import EngineSettings

        options: dict[str, Any] = {"threads": threads, "rates": chosen, "data": data, "repeats": repeats}
        if choice is not None and choice.runtime in ENGINE_RUNTIMES:
            del options["threads"]
            settings = EngineSettings(runtime=choice.runtime)
            return profile_engine(opened, settings, **options, choice=choice, progress=progress)
        if board is None:
            return profile_bundle(opened, **options, native=native, choice=choice, progress=progress)
        on_board.append(_on_board(profile_on_device, opened, board, progress, options))
        return cast("Profile", on_board[0].profile)

    def page(result: Profile) -> str:
        shown = None if opened.manifest.detection is None or board is not None else _detections(opened, data, choice)
        return _page(result, shown)

    _deliver(measure, print_profile, page, json_file, report)
    if json_file != "-" and on_board:
        _print_device(on_board[0])


def _profile_exits(
    bundle: Bundle,
    board: DeviceEntry | None,
    choice: RuntimeChoice | None,
    options: Mapping[str, Any],
    native: str,
    json_file: str | None,
    report: Path | None,
) -> None:
    on_board: list[DeviceReport] = []

    def measure(progress: Progress) -> ExitProfile:
        from dyndeploy.measure.exits import profile_exits
        from dyndeploy.remote import profile_exits_on_device

        if board is None:
            return profile_exits(bundle, **options, native=native, choice=choice, progress=progress)
        on_board.append(_on_board(profile_exits_on_device, bundle, board, progress, options))
        return cast("ExitProfile", on_board[0].profile)

    _deliver(measure, _print_exits, _exit_page, json_file, report)
    if json_file != "-" and on_board:
        _print_device(on_board[0])


def _on_board(
    measure: Callable[..., DeviceReport],
    bundle: Bundle,
    board: DeviceEntry,
    progress: Progress,
    options: Mapping[str, object],
) -> DeviceReport:
    from dyndeploy.remote.profiling import require_measurable

    require_measurable(bundle, board)
    with connected(board) as client:
        return measure(bundle, client, board, **options, progress=telling_waits(progress))


def _deliver(
    measure: Callable[[Progress], _Measured],
    show: Callable[[_Measured], None],
    page_of: Callable[[_Measured], str],
    json_file: str | None,
    report: Path | None,
) -> None:
    """Measure, keep and show the result, and only then make the report: if that fails, nothing measured is lost."""
    from dyndeploy.files import atomic_file, encoded, json_text

    with ExitStack() as later:
        # Output paths are claimed first, so that an impossible one costs no measurement.
        page = later.enter_context(atomic_file(report)) if report is not None else None
        with ExitStack() as stack:
            output = stack.enter_context(atomic_file(json_file)) if json_file not in (None, "-") else None
            result = measure(stack.enter_context(progress_bar()))
            if output is not None:
                output.write_text(json_text(result.to_json(), indent=None) + "\n", encoding="utf-8")
        if json_file == "-":
            print_json(result.to_json())
        else:
            show(result)
            if json_file is not None:
                hint = f"'dyndeploy compare {json_file} -o report.html' makes a report of it"
                typer.echo(f"Written to {json_file}; {hint}.")
        if page is not None:
            page.write_bytes(encoded(page_of(result)))
    if report is not None and json_file != "-":
        typer.echo(f"Report: {report}")


def _print_exits(result: ExitProfile) -> None:
    from dyndeploy.reporting import staging_cost

    whole = f"{result.whole.median:.3f}"
    rows = [["without exits", f"{result.whole_macs / 1e6:.1f}", whole, "-", f"{result.whole.cov:.1%}"]]
    rows[0] += ["1.00x", "1.00x", "-"]
    entries = [(f"exit {entry.exit}", entry) for entry in result.exits]
    if result.branched is not None:
        entries.append(("all branches (If)", result.branched))
    for name, entry in entries:
        ideal, realised = result.whole_macs / entry.macs, 1 / entry.relative
        spread = _spread(entry.relative_spread, result.whole.median)
        speed = [f"{ideal:.2f}x", f"{realised:.2f}x", f"{realised / ideal:.1%}"]
        paired = f"{result.paired_ms(entry):.3f}"
        rows.append([name, f"{entry.macs / 1e6:.1f}", paired, spread, f"{entry.samples.cov:.1%}", *speed])
    for mix in result.mixes:
        name = "the data's own exits" if mix.name == "data" else f"mix {mix.name}"
        speed = [f"{mix.ideal_speedup:.2f}x", f"{mix.realised_speedup:.2f}x", f"{mix.realisation:.1%}"]
        spread = _spread(result.mix_spread(mix), result.whole.median)
        rows.append([name, f"{mix.mean_macs / 1e6:.1f}", f"{mix.mean_ms:.3f}", spread, "-", *speed])
    print_table(
        ("what", "M MACs", "ms", "p25..p75", "CoV", "ideal", "realised", "realisation"),
        rows,
        title=f"{result.bundle['name']} on {result.machine['cpu']}, {result.threads} thread(s), "
        + (f"operators: {result.operator_code}, " if result.operator_code else "")
        + "measured, ms per image, from runs in turn with the network without exits",
    )
    print_energy(result.energy)
    typer.echo(staging_cost(result))
    for warning in result.warnings():
        typer.echo(f"Note: {warning}")


def _spread(relative: tuple[float, float] | None, whole: float) -> str:
    return "-" if relative is None else f"{relative[0] * whole:.3f}..{relative[1] * whole:.3f}"


def _exit_page(result: ExitProfile) -> str:
    from dyndeploy.reporting import compare_exit_profile, predict_exit_profile, render_exit_profile_report

    predicted = [predict_exit_profile(result, name) for name in _predicted(result)]
    return render_exit_profile_report(result, [compare_exit_profile(result, item) for item in predicted])


def _predicted(result: Profile | ExitProfile) -> list[str]:
    """The device model that a profile can be compared with in full: that of the board that was measured."""
    from dyndeploy.prediction import known_devices

    known = known_devices(result.threads, result.bundle.get("precision"))
    return [name for name in known if name == result.device]


def _detections(bundle: Bundle, data: Path | None, choice: RuntimeChoice | None) -> ReportExtras:
    """Pictures of what a detector finds in a few of the images, and of what it computes for them."""
    from dyndeploy.data import image_paths, sample_photographs, spread
    from dyndeploy.inference import DetectionResult, detect_images
    from dyndeploy.reporting import detection_extras

    paths = sample_photographs() if data is None else image_paths(data)
    few = [paths[index] for index in spread(len(paths), _PICTURES)]
    runtime = "onnxruntime" if choice is None else choice
    results = [result for result in detect_images(bundle, few, runtime=runtime) if isinstance(result, DetectionResult)]
    return detection_extras(results, bundle)


def _page(result: Profile, extras: ReportExtras | None = None) -> str:
    from dyndeploy.prediction import known_devices
    from dyndeploy.reporting import predict_profile, render_report

    devices = _predicted(result) or known_devices(result.threads, result.bundle.get("precision"))
    sweeps = [predict_profile(result, name) for name in devices]
    return render_report(result, sweeps, extras)


def _print_device(measured: DeviceReport) -> None:
    from dyndeploy.measure import Profile
    from dyndeploy.reporting import (
        Comparison,
        ExitComparison,
        compare_exit_profile,
        compare_profile,
        predict_exit_profile,
        predict_profile,
    )

    result = measured.profile
    for label, text in result.machine["device_facts"].items():
        typer.echo(f"{label}: {text}")
    typer.echo(
        f"Verified on the board ({len(measured.checks)} checks); {measured.uploaded_bytes / 2**20:.1f} MB sent; "
        + ", ".join(f"{step}: {'as before' if how == 'found' else how}" for step, how in measured.steps.items())
        + "."
    )
    for name in _predicted(result):
        comparison: Comparison | ExitComparison
        if isinstance(result, Profile):
            comparison = compare_profile(result, predict_profile(result, name))
        else:
            comparison = compare_exit_profile(result, predict_exit_profile(result, name))
        errors = (("latencies", comparison.latency_mape), ("speed-ups", comparison.speedup_mape))
        known = " and ".join(f"{value:.1%} of {what}" for what, value in errors if value is not None)
        typer.echo(f"Predicted for {name}: mean errors {known}.")
