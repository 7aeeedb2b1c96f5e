"""What small detectors take on boards and graphics cards, by the predictor: nothing is run.

    python benchmarks/detection/boards.py

Writes benchmarks/results/detection-boards.json and .md. Every figure is predicted: none of these networks has run on
one of these devices.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dyndeploy.errors import UsageError
from dyndeploy.files import write_json, write_text
from dyndeploy.prediction import Prediction, predict

RESULTS = Path(__file__).parent.parent / "results"
NETWORKS = {
    "laud_retinanet_resnet50_512": ((320, 320), (320, 480), (512, 512)),
    "laud_ddq_detr_resnet50_512": ((320, 480), (512, 512)),
}
"""Networks, and the heights and widths of their inputs."""
MODES = ("layer", "channel")
DEVICES = ("nano", "tx2", "xavier_nx", "orin_nano", "rtx3090", "rtx4090")
RATE = 0.5


def main() -> None:
    """Predict, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="detection-boards", help="file name in benchmarks/results, without ending")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for network, sizes in NETWORKS.items():
        for size in sizes:
            for device in DEVICES:
                rows.append(row(network, size, device))
                print(rows[-1], flush=True)
    result = {"kind": "predicted", "rate": RATE, "precision": "fp32", "rows": rows}
    write_json(RESULTS / f"{given.output}.json", result)
    write_text(RESULTS / f"{given.output}.md", page(rows))


def row(network: str, size: tuple[int, int], device: str) -> dict[str, Any]:
    """Static twin and dynamic modes of a network on a device, or why there is no prediction."""
    found: dict[str, Any] = {"network": network, "size": list(size), "device": device}
    try:
        found["static"] = figures(predict(network.removeprefix("laud_"), device, batch=1, input_size=size))
        for mode in MODES:
            found[mode] = figures(predict(network, device, batch=1, input_size=size, mode=mode, rate=RATE))
    except UsageError as error:
        found["refused"] = str(error)
    return found


def figures(prediction: Prediction) -> dict[str, Any]:
    """Milliseconds, their interval, and megabytes."""
    memory = prediction.memory
    return {
        "ms": prediction.latency_ms,
        "interval_ms": prediction.interval_ms,
        "memory_mb": None if memory is None else memory.total / 1e6,
    }


def page(rows: list[dict[str, Any]]) -> str:
    """Markdown of all rows."""
    text = [
        "# Small detectors on boards",
        "",
        f"**Predicted, not measured**: `dyndeploy predict`, FP32, batch 1, forced rate {RATE:g}; post-processing "
        "counts as kernels of the device. In brackets the predictor's interval; *memory* is that of the channel mode: "
        "weights, activations, workspace and CUDA. `python benchmarks/detection/boards.py`.",
        "",
        "| network | input | device | static ms | layer ms | channel ms | memory MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in rows:
        cells = [shown(item.get(name)) for name in ("static", *MODES)]
        memory = (item.get("channel") or {}).get("memory_mb")
        last = item.get("refused", "" if memory is None else f"{memory:.0f}")
        size = "x".join(map(str, item["size"]))
        text.append(f"| {item['network']} | {size} | {item['device']} | {' | '.join(cells)} | {last} |")
    return "\n".join(text) + "\n"


def shown(found: dict[str, Any] | None) -> str:
    """A prediction in a cell."""
    if found is None:
        return ""
    low, high = found["interval_ms"] or (found["ms"], found["ms"])
    return f"{found['ms']:.1f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    main()
