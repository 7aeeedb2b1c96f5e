"""``dyndeploy run``: a bundle on images, or on arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import named_files, numbers, print_json_line, print_table, printable
from dyndeploy.cli._boards import Host, chosen_board, chosen_here, connected, telling_waits
from dyndeploy.cli._options import BundleFolder, Native, Runtime, Threads, Thresholds, complete_device, option
from dyndeploy.cli._progress import progress_line
from dyndeploy.cli._verbosity import note, tell
from dyndeploy.errors import UsageError
from dyndeploy.files import atomic_file

if TYPE_CHECKING:
    from dyndeploy.bundle import Bundle
    from dyndeploy.inference import Classification, DetectionResult, Failure, Result
    from dyndeploy.remote import DeviceEntry
    from dyndeploy.runtimes.base import Array


def run(
    bundle: BundleFolder,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images: JPEG, PNG, WebP, TIFF and others that Pillow reads; or folders of them. For detectors also "
            "videos."
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        option("--input", metavar="NAME=FILE.npy"),
    ] = None,
    output: Annotated[
        Path | None,
        option("--output", "-o", metavar="FILE.npz", detail="Here the arrays that --input gives."),
    ] = None,
    runtime: Runtime = "auto",
    threads: Threads = 1,
    thresholds: Thresholds = None,
    native: Native = "auto",
    device: Annotated[
        str | None,
        option("--device", detail="(default: what is here)", autocompletion=complete_device),
    ] = None,
    host: Host = None,
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            metavar="FILE|FOLDER",
            help="Draw a detector's boxes, names and masks: one image or video into a file, several into a folder.",
        ),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Least score of a detector's detections. (default: 0.3 where they are shown, all of them in --json)",
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Only a detector's detections of these classes.")
    ] = None,
    camera: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Run a detector on a camera, by its number; Ctrl-C ends it."),
    ] = None,
    as_json: Annotated[bool, option("--json", detail="One object a line, each as soon as its image is done.")] = False,
) -> None:
    """Run images one by one, or arrays: class and confidence or outputs, time, the exit taken or the masks' rates.

    Detectors tell the boxes that they find, and take videos as well. An image that cannot be read is said to be so; the
    rest goes on, and the exit code is 1 at the end.
    """
    from dyndeploy.bundle import LOGITS, Bundle
    from dyndeploy.data import with_folders
    from dyndeploy.inference import classify_images, open_bundle, read_arrays, run_images, run_inputs

    if bool(images or camera is not None) == bool(inputs):
        raise UsageError("Give images, or arrays (--input NAME=FILE.npy), and not both.")
    if output is not None and not inputs:
        raise UsageError("--output writes what --input gives: leave it out for images.")
    opened = Bundle.open(bundle)
    limits = None if thresholds is None else numbers("--thresholds", thresholds)
    detector = opened.manifest.detection is not None and not inputs
    of_detectors = {"--save": save, "--score": score, "--classes": classes, "--camera": camera}
    unfit = [name for name, value in of_detectors.items() if value is not None and not detector]
    if unfit:
        why = "arrays give arrays" if inputs else f"{opened.manifest.network.name} is none"
        raise UsageError(f"{', '.join(unfit)}: for images and detectors; {why}. Leave it out.")
    board = chosen_board(device, host)
    if board is not None:
        of_this_machine = {"--native": native != "auto", "--runtime": runtime != "auto"}
        given = [name for name, value in of_this_machine.items() if value]
        if given:
            raise UsageError(f"{', '.join(given)}: for this machine; a board runs what it builds. Leave it out.")
        if detector:
            _detect_there(opened, board, (images or (), camera, save), (score, classes), threads, limits, as_json)
        elif images:
            _run_there(opened, board, images, threads, limits, as_json)
        else:
            feeds = read_arrays(opened, named_files(inputs or []))
            _tell_arrays(lambda: _arrays_there(opened, board, feeds, threads, limits), output, as_json)
        return
    if detector:
        from dyndeploy.cli._detections import listed, run_sources, wanted

        if limits is not None:
            raise UsageError(f"{opened.manifest.network.name} has no exits: leave the thresholds out.")
        names = opened.manifest.detector().classes
        which, sources = wanted(score, classes, names), listed(images or (), camera, save)
        choice = chosen_here(opened, device, runtime, told=not as_json)
        with open_bundle(opened, runtime=choice, threads=threads, native=native) as session:
            failed = run_sources(session, sources, which, names, as_json=as_json)
            code = session.network(opened.manifest.input_size).code
        if not as_json:
            _print_code(code)
        _end(failed, len(sources))
        return
    choice = chosen_here(opened, device, runtime, told=not as_json)
    if images:
        classified = LOGITS in {info.name for info in opened.manifest.outputs}
        each = classify_images if classified else run_images
        # Listed before anything runs: a folder without images costs nothing.
        files = list(with_folders(images))
        results = each(opened, files, runtime=choice, threads=threads, thresholds=limits, native=native)
        failed = _print_each(results, opened.manifest.network.class_names, as_json)
        _end(failed, len(files))
        return
    feeds = read_arrays(opened, named_files(inputs or []))

    def here() -> Result:
        [result] = run_inputs(opened, [feeds], runtime=choice, threads=threads, thresholds=limits, native=native)
        return result

    _tell_arrays(here, output, as_json)


def _tell_arrays(compute: Callable[[], Result], output: Path | None, as_json: bool) -> None:
    """Print what arrays gave, and write it where that is asked for; a file that cannot be written costs no run."""
    with ExitStack() as stack:
        written = None if output is None else stack.enter_context(atomic_file(output))
        result = compute()
        if written is not None:
            _write(written, result)
    if as_json:
        print_json_line(result.to_json())
        return
    print_table(
        ("output", "shape", "min", "max", "ms"),
        [
            (key, tuple(value.shape), f"{value.min():.4g}", f"{value.max():.4g}", f"{result.ms:.2f}")
            for key, value in result.outputs.items()
        ],
    )
    for mask, rate in result.rates.items():
        typer.echo(f"{mask}: rate {rate:.3f}")
    _print_code(result.operators)


def _steps() -> Callable[[str, float], None]:
    """Tells each step once in a line: results come in between."""
    told = ""

    def progress(message: str, fraction: float) -> None:
        nonlocal told
        step = message.split(":")[0]
        if step != told and not step.startswith("run"):
            told = step
            progress_line(message)

    return telling_waits(progress)


def _arrays_there(
    bundle: Bundle,
    board: DeviceEntry,
    feeds: Mapping[str, Array],
    threads: int,
    thresholds: Sequence[float] | None,
) -> Result:
    from dyndeploy.remote import run_inputs_on_device

    with connected(board) as client:
        [result] = run_inputs_on_device(
            bundle, client, board, [feeds], threads=threads, thresholds=thresholds, progress=_steps()
        )
    return result


def _run_there(
    bundle: Bundle,
    board: DeviceEntry,
    images: Sequence[Path],
    threads: int,
    thresholds: Sequence[float] | None,
    as_json: bool,
) -> None:
    from dyndeploy.data import with_folders
    from dyndeploy.remote import run_on_device

    files = list(with_folders(images))
    with connected(board) as client:
        results = run_on_device(bundle, client, board, files, threads=threads, thresholds=thresholds, progress=_steps())
        failed = _print_each(results, bundle.manifest.network.class_names, as_json)
    _end(failed, len(files))


def _detect_there(
    bundle: Bundle,
    board: DeviceEntry,
    given: tuple[Sequence[Path], int | None, str | None],
    told: tuple[float | None, str | None],
    threads: int,
    thresholds: Sequence[float] | None,
    as_json: bool,
) -> None:
    """Run a detector on a board; ``given`` is what and where to draw it, ``told`` what is shown of it."""
    from dyndeploy.cli._detections import image_files, listed, tell_images, wanted
    from dyndeploy.remote import detect_on_device

    if thresholds is not None:
        raise UsageError(f"{bundle.manifest.network.name} has no exits: leave the thresholds out.")
    names = bundle.manifest.detector().classes
    which, sources = wanted(*told, names), listed(*given)
    if any(source.video for source in sources):
        raise UsageError(
            "Videos and cameras run where they are: leave --device and --host out, or run 'dyndeploy-run' on the board."
        )
    code: str | None = None

    def kept(
        results: Iterable[DetectionResult | Failure],
    ) -> Iterable[DetectionResult | Failure]:
        nonlocal code
        for result in results:
            code = code or getattr(result, "operators", None)
            yield result

    with connected(board) as client:
        found = detect_on_device(bundle, client, board, image_files(sources), threads=threads, progress=_steps())
        failed = tell_images(kept(found), sources, which, names, as_json=as_json)
    if not as_json:
        _print_code(code)
    _end(failed, len(sources))


def _end(failed: int, count: int) -> None:
    if failed:
        typer.echo(f"dyndeploy: {failed} of {count} images failed.", err=True)
        raise typer.Exit(1)


def _print_each(
    results: Iterable[Classification | Result | Failure], classes: Sequence[str] | None, as_json: bool
) -> int:
    """Print every result as soon as it is there, and keep none; returns how many images failed."""
    from dyndeploy.inference import Classification, Failure

    code: str | None = None
    width = min(32, max(len("class"), *map(len, classes or ("",))))
    failed = shown = 0
    for result in results:
        failed += isinstance(result, Failure)
        code = code or getattr(result, "operators", None)
        if as_json:
            print_json_line(result.to_json())
        elif isinstance(result, Failure):
            typer.echo(f"dyndeploy: {printable(result.to_json()['error'])}", err=True)
        elif isinstance(result, Classification):
            if not shown:
                decision = "mean rate" if result.exit is None else "exit"
                typer.echo(f"{'class':{width}}  confidence  {decision:>9}        ms  image")
            shown += 1
            name = printable(result.label if result.class_name is None else result.class_name)
            values = f"{result.confidence:10.3f}  {_decision(result):>9}  {result.ms:8.2f}"
            typer.echo(f"{name:{width}}  {values}  {printable(result.image)}")
        else:
            for key, value in result.outputs.items():
                found = f"{key} {tuple(value.shape)}, {value.min():.4g} to {value.max():.4g}, {result.ms:.2f} ms"
                typer.echo(f"{printable(result.image)}: {found}")
    if not as_json:
        _print_code(code)
    return failed


def _print_code(code: str | None) -> None:
    """Which code the times are of, on stderr: stdout has a line per image. None: there are no dynamic operators."""
    from dyndeploy.runtimes.native import BODIES_NOTE, FALLBACK_BODIES

    if code is not None:
        tell(f"operators: {code}")
    if code == FALLBACK_BODIES:
        note(BODIES_NOTE)


def _write(path: Path, result: Result) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **result.outputs)  # type: ignore[arg-type]


def _decision(result: Classification) -> str:
    if result.exit is not None:
        return str(result.exit)
    rate = result.mean_rate
    return "-" if math.isnan(rate) else f"{rate:.3f}"
