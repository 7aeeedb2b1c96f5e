"""What the C++ runtime costs beside the bare ONNX Runtime session, how long it takes to start, and how large it is.

Run from the repository: ``python benchmarks/runtime/run.py``. Builds the runtime, exports networks with random weights
and writes ``benchmarks/results/runtime.json`` and ``runtime.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from dyndeploy import ExportSettings, create_model, export_model
from dyndeploy.files import write_json, write_text
from dyndeploy.runtimes.machine import machine_facts

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "laud_resnet14_small": ({"mode": "spatial"}, 3000),
    "laud_resnet50": ({"mode": "spatial"}, 120),
    "resnet50_0375_perceiver_t128": ({}, 120),
}
"""Options and timed runs of each: the network of ``dyndeploy demo``, LAUD-ResNet-50, and one with four stages."""


def build(folder: Path) -> Path:
    """Build the runtime and the benchmark; returns the folder."""
    subprocess.run(["cmake", "-S", ROOT / "plugins/runtime", "-B", folder, "-DDYNDEPLOY_TESTS=ON"], check=True)
    targets = ["dyndeploy", "dyndeploy-run", "overhead"]
    subprocess.run(["cmake", "--build", folder, "--parallel", "2", "--target", *targets], check=True)
    return folder


def measure(built: Path, bundle: Path, runs: int) -> dict[str, Any]:
    """Run the benchmark on one bundle."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    environment = {**os.environ, "DYNDEPLOY_ONNXRUNTIME": str(library)}
    done = subprocess.run([built / "overhead", bundle, str(runs)], check=True, capture_output=True, env=environment)
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def page(rows: list[dict[str, Any]], sizes: dict[str, int], machine: dict[str, Any]) -> str:
    """The results as Markdown."""
    where = f"{machine['cpu']} ({machine['usable_cores']} processors, load {machine['load_average'][0]:.1f})"
    lines = [
        "# The C++ runtime beside the bare ONNX Runtime session",
        "",
        f"Measured on {where}, 1 thread, batch 1, ONNX Runtime {onnxruntime.__version__}. Both run the same graphs in",
        "turn; times are CPU times of the thread that computes, since others use this machine. The ratio is the median",
        "of those of single turns. No exit is taken early, so that every stage runs. Start-up is wall time, which the",
        "load changes; the last column is CPU time of the whole process, with the checksums of the graphs.",
        "",
        "| network | stages | bare, ms | runtime, ms | ratio | start bare, ms | start runtime, ms | more CPU, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        more = row["runtime_start_cpu_ms"] - row["bare_start_cpu_ms"]
        lines.append(
            f"| {row['network']} | {row['stages'] or 1} | {row['bare_ms']:.3f} | {row['runtime_ms']:.3f} "
            f"| {row['ratio']:.4f} | {row['bare_start_ms']:.0f} | {row['runtime_start_ms']:.0f} | {more:.0f} |"
        )
    lines += ["", "| file | bytes |", "|---|---|", *(f"| {name} | {size} |" for name, size in sizes.items()), ""]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundles", type=Path, help="where bundles are kept between runs")
    parser.add_argument("--build", type=Path, help="where the runtime is built")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        built = build(arguments.build or Path(scratch) / "build")
        rows = []
        for name, (options, runs) in NETWORKS.items():
            bundle = (arguments.bundles or Path(scratch)) / name
            if not bundle.exists():
                torch.manual_seed(0)
                export_model(create_model(name, **options), bundle, ExportSettings())
            rows.append(measure(built, bundle, runs))
            print(rows[-1])
        sizes = {name: (built / name).stat().st_size for name in ("libdyndeploy.so", "dyndeploy-run")}
    machine = machine_facts()
    write_json(RESULTS / "runtime.json", {"machine": machine, "networks": rows, "sizes": sizes})
    write_text(RESULTS / "runtime.md", page(rows, sizes, machine))


if __name__ == "__main__":
    main()
