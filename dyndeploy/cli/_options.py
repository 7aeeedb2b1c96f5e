"""Options that several commands have: one name, one meaning, one sentence of help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

MEANINGS = {
    "--accelerator": "What PyTorch computes on: cpu or cuda.",
    "--batch": "Images per batch.",
    "--budget-ms": "Most milliseconds per image.",
    "--calibration": "File of 'dyndeploy calibrate-device'.",
    "--channel-granularity": "Channels per group, per stage, e.g. 2-2-2-2.",
    "--data": "Images to read: a folder.",
    "--device": "The device by name: cpu, this machine; a board of 'dyndeploy device'; a device model.",
    "--dim": "A size that an ONNX file leaves open, by its name; again for each.",
    "--exit-mix": "Shares of the images that leave at each exit, e.g. 60/20/10/10.",
    "--granularity": "Side of a patch per stage, e.g. 4-4-2-1.",
    "--input": "An input as an array, by its name; again for each.",
    "--input-size": "Image size in pixels; one number is a square.",
    "--json": "Write the result as JSON to stdout.",
    "--limit": "Read at most so many images.",
    "--mode": "What is skipped: spatial, channel, layer, both or static; per stage joined by '-'.",
    "--native": "Operator library of ONNX Runtime: auto, off, or its path.",
    "--output": "Where to write.",
    "--plugins": "Plugin library of TensorRT: auto, or its path.",
    "--precision": "fp32, fp16, bf16 or int8; what the target cannot do is refused with the reason.",
    "--rate": "Activation rate in [0, 1]: the share that masks let through.",
    "--rates": "Activation rates to force, separated by commas.",
    "--repeats": "Rounds of measuring.",
    "--report": "Write one HTML page.",
    "--runtime": "What runs or builds: tensorrt, tensorrt_rtx, onnxruntime_cuda, onnxruntime (on the CPU), or auto.",
    "--state": "Keep here what each chunk of images gave, and go on from what is there.",
    "--static": "Also write the static twin: the same network with nothing to skip, to compare with.",
    "--target": "What the bundle is for; see 'dyndeploy targets'.",
    "--threads": "Threads that compute.",
    "--thresholds": "Least confidence of every exit but the last, e.g. 0.8,0.7,0.6.",
    "--workers": "Processes that share the images, each with so many threads; the result is the same.",
    "--weights": "Which weights of a checkpoint: ema (the moving average), or the name of an entry or prefix.",
}
"""What an option means, in every command that has it; a command may add its default and its limits."""


def option(name: str, *short: str, detail: str = "", **settings: Any) -> Any:
    """Declare an option whose meaning several commands share.

    Args:
        name: A key of :data:`MEANINGS`.
        *short: Short names, e.g. ``-o``.
        detail: What this command adds: a default, a limit.
        **settings: Further arguments of ``typer.Option``.
    """
    return typer.Option(name, *short, help=" ".join(filter(None, (MEANINGS[name], detail))), **settings)


def _names(of: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Complete one of the names that a function gives once the shell asks."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in of() if name.startswith(incomplete)]

    return complete


def _networks() -> list[str]:
    from dyndeploy.nets import model_names

    return list(model_names())


def _targets() -> list[str]:
    from dyndeploy.targets import target_names

    return list(target_names())


def _devices() -> list[str]:
    from dyndeploy.remote import load_devices
    from dyndeploy.targets import device_names

    return sorted({"cpu", *load_devices(), *device_names()})


def _runtimes() -> list[str]:
    from dyndeploy.runtimes.base import AUTO, RUNTIMES

    return [AUTO, *RUNTIMES]


def _recipes() -> list[str]:
    from dyndeploy.training import recipe_names

    return list(recipe_names())


complete_network, complete_target = _names(_networks), _names(_targets)
complete_device, complete_recipe, complete_runtime = _names(_devices), _names(_recipes), _names(_runtimes)

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.")]
AsJson = Annotated[bool, option("--json")]
Native = Annotated[str, option("--native", metavar="auto|off|PATH")]
Plugins = Annotated[str, option("--plugins", metavar="auto|PATH")]
Runtime = Annotated[str, option("--runtime", autocompletion=complete_runtime)]
Threads = Annotated[int, option("--threads", min=1)]
Workers = Annotated[int, option("--workers", metavar="N", min=1)]
State = Annotated[Path | None, option("--state", metavar="FOLDER")]
Target = Annotated[str, option("--target", autocompletion=complete_target)]
Limit = Annotated[int | None, option("--limit", metavar="N", min=1, detail="(default: all)")]
Rates = Annotated[str, option("--rates")]
Repeats = Annotated[int | None, option("--repeats", min=1, detail="(default: about 10 seconds of them)")]
InputSize = Annotated[str | None, option("--input-size", metavar="HxW", detail="(default: the network's)")]
Dim = Annotated[list[str] | None, option("--dim", metavar="NAME=N")]
Thresholds = Annotated[str | None, option("--thresholds", detail="(default: the bundle's)")]
LabelledData = Annotated[
    str,
    option(
        "--data",
        metavar="DIR",
        detail="Here those that training never saw, one sub-folder per class; or 'digits', scikit-learn's.",
    ),
]
