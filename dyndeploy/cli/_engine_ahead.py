"""``dyndeploy engine`` where the engine is built ahead of time, for a GPU that need not be here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._progress import progress_line
from dyndeploy.errors import unknown_name

if TYPE_CHECKING:
    from dyndeploy.bundle import Bundle
    from dyndeploy.prediction import Prediction
    from dyndeploy.runtimes.tensorrt_engine import EngineSettings


def built_ahead(bundle: Bundle, runtime: str) -> bool:
    """Whether TensorRT-RTX builds the engine; raises ``UsageError`` for a runtime that has no engines."""
    from dyndeploy.runtimes.base import AUTO, ENGINE_RUNTIMES, TENSORRT_RTX
    from dyndeploy.runtimes.choice import engine_runtimes
    from dyndeploy.targets import load_target

    if runtime not in (AUTO, *ENGINE_RUNTIMES):
        raise unknown_name("runtime of engines", runtime, (AUTO, *ENGINE_RUNTIMES))
    wanted = engine_runtimes(load_target(bundle.manifest.target))[:1] if runtime == AUTO else (runtime,)
    return wanted == (TENSORRT_RTX,)


def deliver_ahead(bundle: Bundle, settings: EngineSettings, *, as_json: bool) -> None:
    """Build the engines and show their layers, and what is predicted of them."""
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

    device = bundle.manifest.target
    what = "the rates of the reference images" if bundle.manifest.exits is None else "its exit mix, else equal shares"
    found = {f"dynamic at {what}": predict(bundle.path, device=device, precision=precision, runtime="tensorrt")}
    if bundle.static is not None:
        found["static twin"] = predict(bundle.static, device=device, precision=precision, runtime="tensorrt")
    return found
