"""One by one, plain batches, today's staged batches and compaction, on images that leave at the exits of a mix.

Run from the repository: ``python benchmarks/serving/run.py``. Builds the runtime and ``replay.cpp``, exports a Dynamic
Perceiver with random weights, chooses thresholds so that noise leaves at its exits in the mix (the exits are the
network's own, none is forced), and writes ``benchmarks/results/serving.json`` and ``serving.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from mix import BATCH, MIX, NETWORK, RESULTS

from dyndeploy import Bundle, ExportSettings, create_model, export_model
from dyndeploy.confidences import confidences
from dyndeploy.files import write_json, write_text
from dyndeploy.runtimes import open_staged
from dyndeploy.runtimes.machine import machine_facts

ROOT = Path(__file__).parents[2]
LOADS = (50, 80, 95)
"""Arrivals in percent of what today's staged batches can do."""


def build(folder: Path) -> Path:
    """Build the replay; returns the program."""
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DDYNDEPLOY_TESTS=ON"]
    subprocess.run(["cmake", "-S", ROOT / "plugins/runtime", "-B", folder, *options], check=True)
    subprocess.run(["cmake", "--build", folder, "--parallel", "1", "--target", "replay"], check=True)
    return folder / "replay"


def mixed_thresholds(logits: tuple[npt.NDArray[np.float32], ...], mix: tuple[int, ...]) -> list[float]:
    """Thresholds of every exit but the last, at which images leave in the shares of ``mix`` (percent).

    Args:
        logits: (N, classes) of every exit; N a multiple of 100 gives the mix exactly.
        mix: Percent of every exit.
    """
    staying = np.arange(len(logits[0]))
    thresholds = []
    for values, percent in zip(logits[:-1], mix[:-1], strict=True):
        leaving = round(len(logits[0]) * percent / 100)
        confident = confidences(values)[staying]
        order = np.argsort(-confident, kind="stable")
        # Between the last that leaves and the first that stays, where there are such.
        bounds = [2.0, *confident[order].astype(np.float64), 0.0]
        thresholds.append(float(np.mean(bounds[leaving : leaving + 2])))
        staying = staying[order[leaving:]]
    return thresholds


def ceiling(macs: list[int], mix: tuple[int, ...]) -> float:
    """How much less the mix multiplies than the whole network on every image."""
    return macs[-1] / sum(share / 100 * value for share, value in zip(mix, macs, strict=True))


def replay(program: Path, bundle: Path, pictures: Path, count: int, turns: int, mixed: list[float]) -> dict[str, Any]:
    """Run the contestants in turns, at the thresholds ``mixed``."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    arguments = [program, bundle, pictures, str(count), str(BATCH), str(turns), ",".join(map(str, LOADS))]
    done = subprocess.run(
        [*arguments, *map(repr, mixed)],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "DYNDEPLOY_ONNXRUNTIME": str(library)},
    )
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def page(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine = result["machine"]
    saturated = {row["name"]: row for row in result["saturated"]["contestants"]}
    plain = saturated["plain batches"]["per_second"]
    lines = [
        "# Common batches of early exits",
        "",
        f"Measured on {machine['cpu']}, {machine['date']}, one thread, load average {machine['load_average'][0]:.1f} "
        f"(other work on the machine); ONNX Runtime {result['onnxruntime']}, {result['network']}, FP32, random "
        f"weights, {result['images']} images of noise, {result['turns']} turn(s). `python benchmarks/serving/run.py`.",
        "",
        "Thresholds are such that the images leave at the exits "
        f"{'/'.join(str(share) for share in result['mix'])} %; no exit is forced. Batches have at most {BATCH} images. "
        "Plain batches run the whole network on every image. Time is the CPU time of the thread that computes, so that "
        "other work on the machine does not count, and arrivals are put into that time: latencies are those of a "
        "processor that does nothing else. Contestants take turns. Plain batches run the same stages, which "
        "costs 1.3 % over one graph ([early exits](early-exit.md)).",
        "",
        "## All images there from the start",
        "",
        "| contestant | images per second | over plain batches | CPU ms per image | wall ms per image | exits |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in saturated.items():
        ratio = f"{row['per_second'] / plain:.2f}x"
        exits = "/".join(str(count) for count in row["exits"])
        lines.append(
            f"| {name} | {row['per_second']:.1f} | {ratio} | {row['cpu_ms']:.2f} | {row['wall_ms']:.2f} | {exits} |"
        )
    reached = saturated["compaction"]["per_second"] / plain
    share = reached / result["ceiling"]
    lines += [
        "",
        f"The ceiling is {result['ceiling']:.2f}x, by multiplications; compaction reaches {reached:.2f}x, "
        f"{share:.0%} of it.",
        "",
        "## Images arrive at random (Poisson)",
        "",
        "Load is in percent of what today's staged batches can do. Who cannot keep up has a queue that grows as long "
        "as images come; the figures are then those of so many images.",
    ]
    for load in result["loads"]:
        lines += [
            "",
            f"### {load['percent']} %: {load['rate']:.1f} images per second",
            "",
            "| contestant | p50, ms | p95, ms | p99, ms | CPU ms per image |",
            "|---|---|---|---|---|",
        ]
        for row in load["contestants"]:
            lines.append(
                f"| {row['name']} | {row['p50']:.1f} | {row['p95']:.1f} | {row['p99']:.1f} | {row['cpu_ms']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Export, choose, replay, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="of the network, to reuse or to export to")
    parser.add_argument("--build", type=Path, help="where the runtime is built")
    parser.add_argument("--images", type=int, default=200, help="a multiple of 100")
    parser.add_argument("--turns", type=int, default=3, help="of each contestant at each load")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of what is written")
    arguments = parser.parse_args()
    if arguments.images < 100 or arguments.images % 100:
        parser.error("--images must be a multiple of 100, for the mix")
    with tempfile.TemporaryDirectory() as scratch:
        program = build(arguments.build or Path(scratch) / "build")
        folder = arguments.bundle or Path(scratch) / NETWORK
        if not folder.exists():
            torch.manual_seed(0)
            export_model(create_model(NETWORK), folder, ExportSettings())
        bundle = Bundle.open(folder)
        generator = np.random.default_rng(0)
        contrast = generator.uniform(0.2, 2, (arguments.images, 1, 1, 1))
        shape = (arguments.images, *bundle.manifest.inputs[0].shape[1:])
        pictures = (generator.standard_normal(shape) * contrast).astype(np.float32)
        with open_staged(bundle) as session:
            parts = [session.run_all(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
        thresholds = mixed_thresholds(tuple(np.concatenate(column) for column in zip(*parts, strict=True)), MIX)
        path = Path(scratch) / "images.bin"
        pictures.tofile(path)
        measured = replay(program, folder, path, arguments.images, arguments.turns, thresholds)
    result = {
        "kind": "measured",
        "machine": machine_facts(),
        "onnxruntime": onnxruntime.__version__,
        "network": NETWORK,
        "mix": MIX,
        "thresholds": thresholds,
        "ceiling": ceiling([stage.macs for stage in bundle.exits.stages], MIX),
        "images": arguments.images,
        "turns": arguments.turns,
        **measured,
    }
    write_json(arguments.output / "serving.json", result)
    write_text(arguments.output / "serving.md", page(result))


if __name__ == "__main__":
    main()
