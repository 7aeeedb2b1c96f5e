"""Session creation time and peak memory of a dynamic network against its static twin.

    python benchmarks/cpu/load.py                        # ResNet-101, every mode

Every figure comes from a fresh process; the two take turns at going first. Each process first touches and releases
1 GB, because a virtual machine's host takes unused memory back, and whoever touches it first again pays for that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dyndeploy import ExportSettings, create_model, export_model
from dyndeploy.files import write_json, write_text
from dyndeploy.runtimes.machine import machine_facts

RESULTS = Path(__file__).parent.parent / "results"
PROBE = """
import json, mmap, re, sys, time
import numpy as np
from dyndeploy.runtimes import OnnxRuntimeSession
import onnxruntime
model, native = sys.argv[1:3]
# Not ru_maxrss: a child inherits its parent's peak there.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
with mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
    for page in range(0, 1 << 30, 4096):
        memory[page] = 1
open("/proc/self/clear_refs", "w").write("5")  # Starts the peak anew.
before = peak()
start, cpu = time.perf_counter(), time.process_time()
with OnnxRuntimeSession(model, threads=1, native=native) as session:
    created, created_cpu = time.perf_counter() - start, time.process_time() - cpu
    run = session.bind({session.inputs[0].name: np.zeros(session.inputs[0].shape, np.float32)}, ["logits"])
    start, cpu = time.perf_counter(), time.process_time()
    run()
    first, first_cpu = time.perf_counter() - start, time.process_time() - cpu
    run()
print(json.dumps({"create_s": created, "create_cpu_s": created_cpu, "first_run_s": first, "first_run_cpu_s": first_cpu,
                  "peak_mb": peak(), "base_mb": before}))
"""


def probe(model: Path, native: str) -> dict[str, float]:
    """Load and run a model twice in a process of its own."""
    output = subprocess.run(
        [sys.executable, "-c", PROBE, str(model), native], check=True, capture_output=True, text=True
    ).stdout
    result: dict[str, float] = json.loads(output)
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="laud_resnet101")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["spatial", "channel", "layer", "both"])
    parser.add_argument("--native", default="auto")
    parser.add_argument("--output", default="cpu-load")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    lines = [
        "| mode | create: static s | dynamic s | first run: static s | dynamic s | create + first run "
        "| peak: static MB | dynamic MB | ratio |\n|---|---|---|---|---|---|---|---|---|"
    ]
    for mode in arguments.modes:
        with tempfile.TemporaryDirectory() as scratch:
            torch.manual_seed(0)
            network = create_model(arguments.network, mode=mode)
            bundle = export_model(network, Path(scratch) / "b", ExportSettings(static=True))
            assert bundle.static is not None
            samples: dict[str, list[dict[str, float]]] = {"static": [], "dynamic": []}
            order = [("static", bundle.static), ("dynamic", bundle.model)]
            for _ in range(10):
                for kind, model in order:
                    samples[kind].append(probe(model, arguments.native))
                order.reverse()
        row: dict[str, Any] = {"network": arguments.network, "mode": mode}
        for kind, values in samples.items():
            row[kind] = {key: statistics.median(value[key] for value in values) for key in values[0]}
        rows.append(row)
        static, dynamic = row["static"], row["dynamic"]
        total = (dynamic["create_cpu_s"] + dynamic["first_run_cpu_s"]) / (
            static["create_cpu_s"] + static["first_run_cpu_s"]
        )
        cells = [
            mode,
            *(f"{side[key]:.3f}" for key in ("create_cpu_s", "first_run_cpu_s") for side in (static, dynamic)),
            f"{total:.2f}x",
            *(f"{side['peak_mb']:.0f}" for side in (static, dynamic)),
            f"{dynamic['peak_mb'] / static['peak_mb']:.2f}x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    write_json(RESULTS / f"{arguments.output}.json", {"kind": "measured", "machine": machine_facts(), "rows": rows})
    table = "\n".join(lines)
    write_text(
        RESULTS / f"{arguments.output}.md",
        f"# Loading {arguments.network}: CPU seconds and peak memory, measured\n\n{table}\n",
    )


if __name__ == "__main__":
    main()
