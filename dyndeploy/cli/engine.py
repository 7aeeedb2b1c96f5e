"""``dyndeploy engine``: a TensorRT engine of a bundle, or the ``trtexec`` lines that make and time one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyndeploy.cli._arguments import numbers, print_json, print_table
from dyndeploy.cli._options import AsJson, BundleFolder, Plugins, Rates, Repeats, complete_target, option
from dyndeploy.cli._profile import print_profile
from dyndeploy.cli._progress import progress_bar, progress_line
from dyndeploy.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from dyndeploy.bundle import Bundle
    from dyndeploy.prediction import Prediction
    from dyndeploy.runtimes.tensorrt_engine import EngineSettings

_RUNTIMES = ("tensorrt", "tensorrt_rtx")


def engine(
    bundle: BundleFolder,
    trtexec: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Build nothing: write what trtexec of this TensorRT needs, print its lines."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option("--output", "-o", metavar="DIR", detail="Files for trtexec, or engines. (default: the cache)"),
    ] = None,
    target: Annotated[
        str | None,
        option("--target", detail="Refused unless it is the bundle's.", autocompletion=complete_target),
    ] = None,
    runtime: Annotated[
        str | None,
        option(
            "--runtime",
            detail="Or tensorrt_rtx: built here, run elsewhere. (default: tensorrt_rtx for GPUs that it supports)",
        ),
    ] = None,
    precision: Annotated[str | None, option("--precision", detail="(default: the bundle's)")] = None,
    strongly_typed: Annotated[
        bool | None,
        typer.Option(help="Types in the graph instead of builder flags (10 and later). (default: flags up to 10)"),
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="The static twin instead of the dynamic network.")] = False,
    plugins: Plugins = "auto",
    workspace: Annotated[int, typer.Option(min=1, help="Scratch memory of a layer in MiB.")] = 1024,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let FP32 convolutions round to TF32.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build, then compare masks and outputs with the bundle's reference.")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Build, then measure forced rates next to the static twin; --json is what compare reads."
        ),
    ] = False,
    rates: Rates = "0.25,0.5,0.75,1.0",
    data: Annotated[
        Path | None, option("--data", metavar="DIR", detail="For --profile. (default: the reference images)")
    ] = None,
    repeats: Repeats = None,
    gpu: Annotated[int, typer.Option("--gpu", min=0, metavar="INDEX", help="Which GPU of this machine.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Build a bundle's TensorRT engine on this machine, or print how trtexec does."""
    from dyndeploy.bundle import Bundle
    from dyndeploy.runtimes.tensorrt_engine import (
        EngineSettings,
        build_engine,
        trtexec_commands,
        write_trtexec_files,
    )
    from dyndeploy.runtimes.tensorrt_plan import BuildOptions

    settings = EngineSettings(
        precision=precision,
        strongly_typed=strongly_typed,
        static=twin,
        library=plugins,
        cache=output,
        options=BuildOptions(workspace_mib=workspace, tf32=tf32),
    )
    if (verify or profile) and (twin or trtexec is not None):
        raise UsageError(
            "--verify and --profile run the dynamic engine on this machine: leave --twin and --trtexec out."
        )
    chosen = numbers("--rates", rates)
    opened = Bundle.open(bundle)
    if target not in (None, opened.manifest.target):
        raise UsageError(
            f"The bundle was exported for {opened.manifest.target}, not for {target}: export it again with --target "
            f"{target}."
        )
    if trtexec is not None:
        if output is None:
            raise UsageError("--trtexec writes files: name a folder with -o.")
        written = write_trtexec_files(opened, output, trtexec, settings)
        # The library is another machine's: it need not exist here.
        library = "libdyndeploy_tensorrt.so" if plugins == "auto" else plugins
        commands = trtexec_commands(written, library)
        if as_json:
            plan = written.plan.precision_plan.description
            print_json({"plan": plan, "model": str(written.model), "commands": commands})
            return
        for command in commands:
            typer.echo(command)
        return

    if verify:
        from dyndeploy.verification import verify_engine

        report = verify_engine(opened, settings, device=gpu)
        if as_json:
            print_json(report.to_json())
        else:
            rows = [(check.name, "ok" if check.passed else "FAILED", check.detail) for check in report.checks]
            print_table(("check", "result", "detail"), rows, title=str(bundle))
        if not report.passed:
            raise typer.Exit(1)
        return

    if profile:
        from dyndeploy.measure import profile_engine
        from dyndeploy.runtimes.tensorrt_plan import BuildPlan

        with progress_bar() as progress:
            result = profile_engine(
                opened, settings, rates=chosen, data=data, repeats=repeats, device=gpu, progress=progress
            )
        if as_json:
            print_json(result.to_json())
            return
        print_profile(result)
        typer.echo(f"Engines: {BuildPlan.from_json(result.settings['build_plan']).precision_plan.description}.")
        return

    if _ahead(opened, runtime):
        _build_ahead(opened, settings, as_json=as_json)
        return

    from dyndeploy.runtimes.cuda import Gpu

    with Gpu(gpu) as found:
        built = build_engine(opened, found.info, settings, progress=progress_line)
    if as_json:
        print_json(built.to_json())
        return
    typer.echo(f"{built.path}: {built.metadata['plan']}; {'from the cache' if built.cached else 'built'}.")
    if built.library is not None:
        typer.echo(f"Plugins: {built.library.path} (sha256 {built.library.sha256})")


def _ahead(bundle: Bundle, runtime: str | None) -> bool:
    """Whether the engine is built ahead of time, for a GPU that need not be here."""
    from dyndeploy.targets import load_target

    if runtime not in (None, *_RUNTIMES):
        raise unknown_name("runtime", runtime, _RUNTIMES)
    return runtime == "tensorrt_rtx" or (runtime is None and load_target(bundle.manifest.target).ahead_of_time)


def _build_ahead(bundle: Bundle, settings: EngineSettings, *, as_json: bool) -> None:
    from dyndeploy.runtimes.tensorrt_rtx import build_bundle_ahead

    built = build_bundle_ahead(bundle, settings, progress=progress_line)
    predictions = _predictions(bundle, settings.precision or bundle.manifest.precision)
    if as_json:
        predicted = {name: prediction.to_json() for name, prediction in predictions.items()}
        print_json({"engines": [each.to_json() for each in built], "predicted": predicted})
        return
    for each in built:
        print_table(
            ("layer", "kind", "kernel", "writes"),
            [(layer["name"], layer["kind"], layer["tactic"], _written(layer)) for layer in each.metadata["layers"]],
            title=f"{each.graph}: layers of the engine, as its builder lists them",
        )
    print_table(
        ("graph", "engine", "MB", "plugins", "layers", "activations MB", ""),
        [
            (
                each.graph,
                each.path.name,
                f"{each.metadata['engine_bytes'] / 1e6:.1f}",
                each.metadata["plugins"] or "none",
                len(each.metadata["layers"]),
                f"{(each.metadata['activation_bytes'] or 0) / 1e6:.1f}",
                "found" if each.cached else f"built in {each.metadata['build_seconds']:.0f} s",
            )
            for each in built
        ],
        title=f"{bundle.manifest.target}: engines in {built[0].path.parent}: built, not run",
    )
    for name, prediction in predictions.items():
        low, high = prediction.interval_ms or (prediction.latency_ms, prediction.latency_ms)
        typer.echo(
            f"Predicted for {prediction.device}, {name}: {prediction.latency_ms:.3f} ms per image, 90 % interval "
            f"{low:.3f} .. {high:.3f} ({prediction.basis})."
        )


def _written(layer: Mapping[str, Any]) -> str:
    return ", ".join(f"{tensor['type']} {'x'.join(map(str, tensor['shape']))}" for tensor in layer["outputs"])


def _predictions(bundle: Bundle, precision: str) -> dict[str, Prediction]:
    """What the device model says of the bundle and of its static twin."""
    from dyndeploy.prediction import predict

    how = {"device": bundle.manifest.target, "precision": precision, "runtime": "tensorrt"}
    found = {"dynamic at the rates of the reference images": predict(bundle.path, **how)}
    if bundle.static is not None:
        found["static twin"] = predict(bundle.static, **how)
    return found
