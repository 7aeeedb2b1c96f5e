"""``dyndeploy engine``: a TensorRT engine of a bundle, or the ``trtexec`` lines that make and time one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dyndeploy.cli._arguments import numbers, print_json, print_table
from dyndeploy.cli._engine_ahead import built_ahead, deliver_ahead
from dyndeploy.cli._options import (
    AsJson,
    BundleFolder,
    Plugins,
    Rates,
    Repeats,
    complete_runtime,
    complete_target,
    option,
)
from dyndeploy.cli._profile import print_profile
from dyndeploy.cli._progress import progress_bar, progress_line
from dyndeploy.cli._verbosity import note, tell, verbosity
from dyndeploy.errors import UsageError


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
        str,
        option(
            "--runtime",
            detail="Here one that has engines; auto is tensorrt_rtx for GPUs that it supports, which need not be here.",
            autocompletion=complete_runtime,
        ),
    ] = "auto",
    precision: Annotated[str | None, option("--precision", detail="(default: the bundle's)")] = None,
    strongly_typed: Annotated[
        bool | None,
        typer.Option(help="Types in the graph instead of builder flags (10 and later). (default: flags up to 10)"),
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="The static twin instead of the dynamic network.")] = False,
    plugins: Plugins = "auto",
    workspace: Annotated[int, typer.Option(min=1, help="Scratch memory of a layer in MiB.")] = 1024,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let FP32 convolutions round to TF32.")] = False,
    tuning: Annotated[
        bool, typer.Option("--tuning/--no-tuning", help="Choose the sizes of the plugins' tiles by timing.")
    ] = True,
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
    """Build a bundle's TensorRT engine (or one per stage or part) on this machine, or print how trtexec does."""
    from dyndeploy.bundle import Bundle
    from dyndeploy.runtimes.tensorrt_engine import (
        EngineSettings,
        build_engine,
        build_stage_engines,
        require_fixed_batch,
        trtexec_commands,
        write_stage_trtexec_files,
        write_trtexec_files,
    )
    from dyndeploy.runtimes.tensorrt_plan import BuildOptions

    settings = EngineSettings(
        precision=precision,
        strongly_typed=strongly_typed,
        static=twin,
        library=plugins,
        cache=output,
        options=BuildOptions(workspace_mib=workspace, tf32=tf32, tuning=tuning),
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
    staged = (opened.manifest.exits is not None or bool(opened.parts)) and not twin
    if trtexec is not None:
        if output is None:
            raise UsageError("--trtexec writes files: name a folder with -o.")
        # The library is another machine's: it need not exist here.
        library = "libdyndeploy_tensorrt.so" if plugins == "auto" else plugins
        if staged:
            written = write_stage_trtexec_files(opened, output, trtexec, settings)
        else:
            written = [write_trtexec_files(opened, output, trtexec, settings)]
        entries = [
            {
                "plan": item.plan.precision_plan.description,
                "model": str(item.model),
                "commands": trtexec_commands(item, library),
            }
            for item in written
        ]
        names: list[dict[str, Any]] = []
        if staged and opened.parts:
            names = [{"part": part.file} for part in opened.parts if not part.host]
        elif staged:
            names = [{"exit": stage.exit} for stage in opened.exits.stages]
        if as_json:
            stages = [{**name, **entry} for name, entry in zip(names, entries, strict=False)]
            print_json({"stages": stages} if staged else entries[0])
            return
        for index, entry in enumerate(entries):
            if staged:
                typer.echo(f"# {' '.join(str(text) for item in names[index].items() for text in item)}")
            for command in entry["commands"]:
                typer.echo(command)
        adapter = bundle / "device" / "plugins" / "adapters" / "tensorrt"  # Only bundles for boards carry it.
        if adapter.is_dir() and any(f"--plugins={library}" in line for entry in entries for line in entry["commands"]):
            note(
                f"These lines run on the board. Copy {output} and {bundle} there. {library} is built there, once, by "
                f"'mkdir -p build && cd build && cmake {os.path.join('..', adapter)} && make', or with all else by "
                f"'python3 {bundle / 'device' / 'agent.py'} build'. {bundle / 'device' / 'README.md'} has every step."
            )
        return
    if opened.parts and (verify or profile):
        raise UsageError(
            "--verify and --profile of engines are for networks of one graph, and this detector runs in parts. "
            f"'dyndeploy verify {bundle}' verifies the parts on this machine's CPU."
        )
    if staged and (verify or profile):
        raise UsageError(
            "--verify and --profile of engines are for networks of one graph. Of early exits, 'dyndeploy profile "
            f"{bundle} --device BOARD' verifies and times every stage on a board."
        )

    if verify or profile:
        from dyndeploy.runtimes.choice import choose_engine_runtime

        choice = choose_engine_runtime(opened, runtime, device=gpu)
        tell(choice.line)
        settings = replace(settings, runtime=choice.runtime)

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
                opened, settings, rates=chosen, data=data, repeats=repeats, device=gpu, choice=choice, progress=progress
            )
        if as_json:
            print_json(result.to_json())
            return
        print_profile(result)
        typer.echo(f"Engines: {BuildPlan.from_json(result.settings['build_plan']).precision_plan.description}.")
        return

    if built_ahead(opened, runtime):
        deliver_ahead(opened, settings, as_json=as_json)
        return

    from dyndeploy.runtimes.cuda import Gpu

    if staged and not opened.parts:
        require_fixed_batch(opened)
    with Gpu(gpu) as found:
        if staged:
            engines = build_stage_engines(opened, found.info, settings, progress=progress_line)
        else:
            engines = [build_engine(opened, found.info, settings, progress=progress_line)]
    if as_json:
        values = [item.to_json() for item in engines]
        print_json({"stages": values} if staged else values[0])
        return
    for item in engines:
        typer.echo(f"{item.path}: {item.metadata['plan']}; {'from the cache' if item.cached else 'built'}.")
        if item.metadata["layers_note"]:
            note(f"{item.path.name}: {item.metadata['layers_note']}.")
        if verbosity.verbose and item.metadata["plugin_layers"]:
            print_table(
                ("plugin", "operator", "type", "tactic", "kernels"),
                [
                    (name, fact["operator"], fact["type"], fact["tactic"], fact["kernels"] or "not said")
                    for name, fact in item.metadata["plugin_layers"].items()
                ],
                title=f"{item.path.name}: what its plugins run in",
            )
    libraries = {item.library.path: item.library for item in engines if item.library is not None}
    for library_file in libraries.values():
        typer.echo(f"Plugins: {library_file.path} (sha256 {library_file.sha256})")
