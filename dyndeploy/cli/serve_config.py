"""``dyndeploy serve-config``: bundles -> a model repository of NVIDIA Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, Native, option
from dyndeploy.cli._verbosity import note
from dyndeploy.errors import UsageError


def serve_config(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]BUNDLE...",
            help="Folders of bundles; a model is called as NAME says, else as the folder is.",
        ),
    ],
    output: Annotated[Path, option("--output", "-o", metavar="DIR", detail="Here the model repository.")],
    profiles: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="PROFILE.json",
            help="Set batching, queues and instances from what 'dyndeploy profile --json' measured on the server; "
            "again for each bundle. (default: stated, not measured)",
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="python: images and JPEG files in, classes or boxes out, works everywhere; onnxruntime or tensorrt: "
            "Triton's own, prepared images in, tensors out."
        ),
    ] = "python",
    instances: Annotated[
        int | None, typer.Option(min=1, help="Processes that serve a model. (default: from the profile, else 1)")
    ] = None,
    threads: Annotated[
        int | None, option("--threads", min=1, detail="In each instance. (default: the profile's, else 1)")
    ] = None,
    processors: Annotated[
        int | None, typer.Option(min=1, help="Of the server's CPU. (default: those of this machine)")
    ] = None,
    latency_ms: Annotated[
        float,
        typer.Option(
            min=0, metavar="X", help="Bound from arrival to result that batches keep to; 0: throughput alone."
        ),
    ] = 0.0,
    runtime: Annotated[
        str | None,
        option("--runtime", detail="Here onnxruntime or tensorrt. (default: what the bundle's target has)"),
    ] = None,
    native: Native = "auto",
    library: Annotated[
        Path | None,
        typer.Option(help="libdyndeploy.so. (default: DYNDEPLOY_RUNTIME, else the one that came with the package)"),
    ] = None,
    onnxruntime: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|system",
            help="ONNX Runtime's library to copy; system: the server has one. (default: this installation's)",
        ),
    ] = None,
    engines: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Engines of 'dyndeploy engine -o DIR', for --backend tensorrt.")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Link bundles instead of copying them.")] = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Add a new version of each model to a repository that exists, under the server's eyes."
        ),
    ] = False,
    served_at: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where the server sees the repository. (default: where it is written)"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model repository that NVIDIA's tritonserver loads: batching, queues, metrics and replacing included."""
    from dyndeploy.serving import ServingOptions, write_repository

    if runtime not in (None, "onnxruntime", "tensorrt"):
        raise UsageError(f"--runtime takes onnxruntime or tensorrt, not '{runtime}'.")
    options = ServingOptions(
        backend=backend,
        profiles=profiles or (),
        instances=instances,
        threads=threads,
        processors=processors,
        latency_ms=latency_ms,
        runtime=runtime,
        native=native,
        library=library,
        onnxruntime=onnxruntime,
        engines=engines,
        link=link,
        update=update,
        served_at=served_at,
    )
    models = write_repository(_named(bundles), output, options)
    if as_json:
        print_json(
            [
                {
                    "name": model.name,
                    "version": model.version,
                    "bundle": str(model.bundle),
                    "instances": model.policy.instances,
                    "threads": model.policy.threads,
                    "max_batch": model.policy.max_batch,
                    "source": model.policy.source,
                    "notes": list(model.notes),
                }
                for model in models
            ]
        )
        return
    print_table(
        ("model", "version", "instances", "threads", "images at once", "from"),
        [
            (
                model.name,
                model.version,
                model.policy.instances,
                model.policy.threads,
                model.policy.images_at_once,
                model.policy.source,
            )
            for model in models
        ],
        title=str(output),
    )
    for model in models:
        for each in model.notes:
            note(f"{model.name}: {each}.")
    typer.echo(f"tritonserver --model-repository={served_at or output} --model-control-mode=explicit --load-model=*")


def _named(entries: list[str]) -> dict[str, Path]:
    """Bundles by name of the model."""
    named: dict[str, Path] = {}
    for entry in entries:
        name, separator, path = entry.partition("=")
        folder = Path(path if separator and not Path(entry).exists() else entry)
        name = name if separator and not Path(entry).exists() else folder.resolve().name
        if name in named:
            raise UsageError(f"Two bundles would be the model '{name}'. Name one of them: OTHER={folder}.")
        named[name] = folder
    return named
