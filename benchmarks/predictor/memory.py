"""Predicted activations beside what ONNX Runtime takes from the system for them, on this machine's CPU.

    python benchmarks/predictor/memory.py [NAME or NAME:HxW ...]

Each network is opened in a process of its own, without ONNX Runtime's arena, which takes memory in large pieces. What
is measured is the largest resident memory of one run less what the process held before it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import dyndeploy
from dyndeploy.export.graph import build_graph
from dyndeploy.graphs.memory import model_footprint
from dyndeploy.targets import load_target

NETWORKS = (
    "laud_resnet50",
    "laud_resnet101:800x1216",
    "laud_retinanet_resnet50_512",
    "laud_faster_rcnn_resnet50:320x480",
    "laud_mask_rcnn_resnet50:800x1216",
)

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
"""Lets what is freed go back to the system at once, so that resident memory is what is in use."""

_RUN = """
import ctypes
import sys
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.enable_cpu_mem_arena = False
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
feeds = {}
for value in session.get_inputs():
    feeds[value.name] = rng.random(value.shape, np.float32)
if "image_size" in feeds:
    feeds["image_size"] = np.float32([feeds["input"].shape[2:]])


def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


ctypes.CDLL(None).malloc_trim(0)
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
session.run(None, feeds)
print(1024 * (status("VmHWM") - before))
"""


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    for entry in parser.parse_args().networks:
        name, _, text = entry.partition(":")
        size = (int(text.split("x")[0]), int(text.split("x")[1])) if text else None
        network = dyndeploy.create_model(name).eval()
        model, _ = build_graph(network, load_target("cpu"), 1, size, static=True)
        need = model_footprint(model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.SerializeToString())
            del model, network
            command = [sys.executable, "-c", _RUN, str(path)]
            ended = subprocess.run(command, env={**os.environ, **_MALLOC}, capture_output=True, text=True, check=True)
        measured = int(ended.stdout)
        ratio = need.activations / measured
        print(
            f"{entry}: predicted {need.activations / 1e6:.1f} MB of activations at {need.peak}, measured "
            f"{measured / 1e6:.1f} MB: {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
