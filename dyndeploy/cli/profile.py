"""``dyndeploy profile``: a bundle measured on this machine or on a board, next to its static twin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import typer

from dyndeploy.cli._arguments import numbers, print_json, print_table
from dyndeploy.cli._boards import connected, telling_waits
from dyndeploy.cli._options import Native, Rates, Repeats, Threads, complete_device, option
from dyndeploy.cli._profile import print_profile
from dyndeploy.cli._progress import progress_bar
from dyndeploy.cli._verbosity import note
from dyndeploy.errors import InputError, UsageError, unknown_name

if TYPE_CHECKING:
    from dyndeploy.measure import Profile, Samples
    from dyndeploy.measure.exits import ExitProfile
    from dyndeploy.remote import DeviceEntry, DeviceReport

THIS_MACHINE = "cpu"

Progress: TypeAlias = "Callable[[str, float], None]"
_Measured = TypeVar("_Measured", "Profile", "ExitProfile")


def profile(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle that was exported with --static.")
    ],
    device: Annotated[str, option("--device", autocompletion=complete_device)] = THIS_MACHINE,
    host: Annotated[
        str | None, typer.Option(metavar="USER@ADDRESS", help="The board's address. (default: that of 'device add')")
    ] = None,
    threads: Threads = 1,
    rates: Rates = "0.1,0.25,0.5,0.75,1.0",
    data: Annotated[
        Path | None,
        option("--data", metavar="DIR", detail="For the data's own rates or exits. (default: the reference images)"),
    ] = None,
    exit_mix: Annotated[list[str] | None, option("--exit-mix", metavar="SHARES", detail="May be given again.")] = None,
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
    board = _board(device, host)
    if board is not None and native != "auto":
        raise UsageError(f"--native {native} is for this machine; a board builds its own plugins. Leave it out.")
    chosen = numbers("--rates", rates)
    if json_file is not None and json_file.startswith("-") and json_file != "-":
        raise UsageError(f"--json takes a file, or '-' for stdout ('--json -'), not '{json_file}'.")

    from dyndeploy.bundle import Bundle
    from dyndeploy.measure import profile_bundle
    from dyndeploy.measure.exits import profile_exits
    from dyndeploy.reporting import render_exit_profile_report

    opened = Bundle.open(bundle)
    if opened.manifest.exits is not None:
        if board is not None:
            raise UsageError("Exits are profiled on this machine: leave --device and --host out.")
        mixes = [numbers("--exit-mix", mix.replace("/", ",")) for mix in exit_mix or []]
        _deliver(
            lambda progress: profile_exits(
                opened, threads=threads, mixes=mixes, data=data, repeats=repeats, progress=progress
            ),
            _print_exits,
            render_exit_profile_report,
            json_file,
            report,
        )
        return
    if exit_mix:
        raise UsageError(f"{opened.manifest.network.name} has no exits: leave --exit-mix out.")
    measured: DeviceReport | None = None

    def measure(progress: Progress) -> Profile:
        nonlocal measured
        if board is None:
            return profile_bundle(
                opened, threads=threads, rates=chosen, data=data, repeats=repeats, native=native, progress=progress
            )
        from dyndeploy.remote import profile_on_device
        from dyndeploy.remote.profiling import require_measurable

        require_measurable(opened, board)
        with connected(board) as client:
            measured = profile_on_device(
                opened,
                client,
                board,
                threads=threads,
                rates=chosen,
                data=data,
                repeats=repeats,
                progress=telling_waits(progress),
            )
        return measured.profile

    _deliver(measure, print_profile, _page, json_file, report)
    if json_file != "-" and measured is not None:
        _print_device(measured)


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
    rows = [["whole network", f"{result.whole_macs / 1e6:.1f}", *_times(result.whole), "1.00x", "1.00x", "-"]]
    entries = [(f"exit {entry.exit}", entry) for entry in result.exits]
    if result.branched is not None:
        entries.append(("all branches (If)", result.branched))
    for name, entry in entries:
        ideal, realised = result.whole_macs / entry.macs, 1 / entry.relative
        speed = [f"{ideal:.2f}x", f"{realised:.2f}x", f"{realised / ideal:.1%}"]
        rows.append([name, f"{entry.macs / 1e6:.1f}", *_times(entry.samples), *speed])
    for mix in result.mixes:
        name = "the data's own exits" if mix.name == "data" else f"mix {mix.name}"
        speed = [f"{mix.ideal_speedup:.2f}x", f"{mix.realised_speedup:.2f}x", f"{mix.realisation:.1%}"]
        rows.append([name, f"{mix.mean_macs / 1e6:.1f}", f"{mix.mean_ms:.3f}", "-", "-", *speed])
    print_table(
        ("what", "M MACs", "median ms", "p90 ms", "CoV", "ideal", "realised", "realisation"),
        rows,
        title=f"{result.bundle['name']} on {result.machine['cpu']}, {result.threads} thread(s), ms per image",
    )
    typer.echo(
        f"Staging costs {result.overhead:+.1%} against one graph of the same exits; every stage with its exit "
        f"{result.exits[-1].relative - 1:+.1%} against the network without exits."
    )
    for warning in result.warnings():
        typer.echo(f"Note: {warning}")


def _times(samples: Samples) -> list[str]:
    return [f"{samples.median:.3f}", f"{samples.percentile(90):.3f}", f"{samples.cov:.1%}"]


def _board(device: str, host: str | None) -> DeviceEntry | None:
    """The board to measure on; None is this machine."""
    from dyndeploy.targets import device_names, target_names

    models, targets = device_names(), target_names()
    if device == THIS_MACHINE and host is None:
        return None
    from dyndeploy.remote import DeviceEntry, load_devices

    try:
        known = load_devices()
    except InputError as error:
        if host is None:
            raise
        known = {}
        note(error)
    board = known.get(device)
    if board is None and host is None:
        if device not in {*models, *targets}:
            raise unknown_name("device", device, {THIS_MACHINE, *known, *models, *targets})
        model = device if device in models else "nano"
        raise UsageError(
            f"No address is known for the device '{device}'. Give it with --host user@address, or once and for all "
            f"with 'dyndeploy device add {device} user@address'. Without a board, 'dyndeploy predict BUNDLE --device "
            f"{model}' predicts a latency."
        )
    if board is None:
        name = "board" if device == THIS_MACHINE else device
        return DeviceEntry(name, host or "", device if device in targets and device != THIS_MACHINE else None)
    if host is None:
        return board
    return replace(board, host=host)


def _predicted(result: Profile) -> list[str]:
    """The device model that a profile can be compared with in full: that of the board that was measured."""
    from dyndeploy.prediction import known_devices

    return [name for name in known_devices(result.threads) if name == result.device]


def _page(result: Profile) -> str:
    from dyndeploy.prediction import known_devices
    from dyndeploy.reporting import predict_profile, render_report

    sweeps = [predict_profile(result, name) for name in _predicted(result) or known_devices(result.threads)]
    return render_report(result, sweeps)


def _print_device(measured: DeviceReport) -> None:
    from dyndeploy.reporting import compare_profile, predict_profile

    for label, text in measured.profile.machine["device_facts"].items():
        typer.echo(f"{label}: {text}")
    typer.echo(
        f"Verified on the board ({len(measured.checks)} checks); {measured.uploaded_bytes / 2**20:.1f} MB sent; "
        + ", ".join(f"{step}: {'as before' if how == 'found' else how}" for step, how in measured.steps.items())
        + "."
    )
    for name in _predicted(measured.profile):
        comparison = compare_profile(measured.profile, predict_profile(measured.profile, name))
        latency = "" if comparison.latency_mape is None else f", latency MAPE {comparison.latency_mape:.1%}"
        typer.echo(f"Predicted for {name}: speed-up MAPE {comparison.speedup_mape:.1%}{latency}.")
