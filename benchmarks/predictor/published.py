"""Analytical device models against published latencies of static networks, and the fit of their constants.

Run from the repository: ``python benchmarks/predictor/published.py [--json FILE] [--markdown FILE]``.

The rows are those of ``published_latency.csv``; a runtime called ``..._groups_in_turn`` runs the groups of a
convolution one by one, which the last one for that board no longer does. Two constants per device at most are fitted,
those that its file in ``dyndeploy/targets/devices`` lists under ``fitted``; each has a prior (what is usual), so that
one row cannot bend it far. Printed are, for every row, the error

- shipped: with the constants of the device file;
- fitted: with constants fitted here to all rows of the device (the device file holds these, rounded);
- left out: with constants fitted to the device's rows of all *other* networks. A device with rows of one network only
  has nothing left to fit then: that figure is the error of the model with the usual efficiencies.

Four constants that all devices share (Winograd's gain of each runtime, FP16 on lanes, the usual efficiency of tensor
cores) were chosen in view of these same rows, so "left out" flatters. How much it hangs on the most important of them
is shown by the sensitivity: the same figures with other gains, constants fitted anew.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy.optimize import least_squares

from dyndeploy.files import write_json, write_text
from dyndeploy.prediction.architectures import static_graph
from dyndeploy.prediction.device_model import (
    LANES_EFFICIENCY,
    MEMORY_EFFICIENCY,
    WINOGRAD_GAIN,
    AnalyticalModel,
)
from dyndeploy.targets import load_device

ROWS = Path(__file__).with_name("published_latency.csv")
PRECISION = {"mixed": "fp16"}

PRIORS = {
    "compute_efficiency": (LANES_EFFICIENCY, 0.4),
    "memory_efficiency": (MEMORY_EFFICIENCY, 0.1),
    "group_launch_us": (1.5, 1.0),
}
"""Usual value and width of its logarithm."""

ERROR = 0.05
"""Width of the logarithm of a published figure: how far two publications of the same thing lie apart."""

Row = dict[str, str]


def predict(row: Row, constants: dict[str, float]) -> float:
    """Milliseconds per image of a row's network."""
    device = load_device(row["device"])
    device = dataclasses.replace(device, model=dataclasses.replace(device.model, **constants))  # type: ignore[arg-type]
    precision = PRECISION.get(row["precision"], row["precision"])
    runtime, _, _ = row["runtime"].partition("_groups_in_turn")
    model = AnalyticalModel(
        device, precision, runtime.partition("_")[0], groups_in_turn=row["runtime"] != runtime,
        # Older than trtexec's --useCudaGraph, or without a word of it.
        graph=False,
    )  # fmt: skip
    batch = int(row["batch"])
    graph = static_graph(row["network"], batch=batch, precision=precision, runtime=model.runtime)
    return float(model.price(graph.kernels)[0].sum()) / batch


def error(row: Row, constants: dict[str, float]) -> float:
    """Relative error of a row."""
    return predict(row, constants) / float(row["ms_per_image"]) - 1.0


def fit(device: str, rows: list[Row]) -> dict[str, float]:
    """Constants of a device by maximum a posteriori; the priors' middle where there is no row."""
    names = load_device(device).model.fitted

    def residuals(x: Any) -> list[float]:
        constants = dict(zip(names, np.exp(x).tolist(), strict=True))
        data = [np.log1p(error(row, constants)) / ERROR for row in rows]
        return data + [(v - np.log(PRIORS[name][0])) / PRIORS[name][1] for name, v in zip(names, x, strict=True)]

    start = [np.log(PRIORS[name][0]) for name in names]
    return dict(zip(names, np.exp(least_squares(residuals, start).x).tolist(), strict=True))


def table(rows: list[Row]) -> list[dict[str, Any]]:
    """One entry per published row."""
    found = []
    for device in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == device]
        constants = fit(device, own)
        for row in own:
            others = [other for other in own if other["network"] != row["network"]]
            # Without any row the model's own defaults hold, not the priors.
            left = fit(device, others) if others else dict.fromkeys(constants)
            found.append(
                {
                    **{key: row[key] for key in ("device", "network", "precision", "batch", "source")},
                    "published_ms": float(row["ms_per_image"]),
                    "predicted_ms": predict(row, {}),
                    "shipped": error(row, {}),
                    "fitted": error(row, constants),
                    "left_out": error(row, left),  # type: ignore[arg-type]
                    "other_networks": len({other["network"] for other in others}),
                    "constants": constants,
                }
            )
    return found


def markdown(entries: list[dict[str, Any]]) -> str:
    """The table for people."""
    lines = [
        "| device | network | precision | batch | published ms | predicted ms | error | left out (other networks) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for e in entries:
        lines += [
            f"| {e['device']} | {e['network']} | {e['precision']} | {e['batch']} | {e['published_ms']:g} | "
            f"{e['predicted_ms']:.3g} | {e['shipped']:+.1%} | {e['left_out']:+.1%} ({e['other_networks']}) |"
        ]
    worst = max(abs(e["shipped"]) for e in entries)
    held = [abs(e["left_out"]) for e in entries if e["other_networks"]]
    none = [abs(e["left_out"]) for e in entries if not e["other_networks"]]
    lines += [
        "",
        f"Worst error with the shipped constants: {worst:.1%}. Left out, where another network of the device could be "
        f"fitted: mean {np.mean(held):.1%}, worst {max(held):.1%}. Left out with nothing to fit (the usual "
        f"efficiencies, which were chosen in view of these rows): mean {np.mean(none):.1%}, worst {max(none):.1%}.",
    ]
    return "\n".join(lines) + "\n"


def sensitivity(rows: list[Row]) -> list[dict[str, Any]]:
    """Errors of the Nano's rows, left out in turn, under other gains of TensorRT's Winograd convolutions."""
    found = []
    own = [row for row in rows if row["device"] == "nano"]
    for gain in (1.0, 1.25, WINOGRAD_GAIN["tensorrt"], 2.0, 2.25):
        with mock.patch.dict(WINOGRAD_GAIN, tensorrt=gain):
            entries = table(own)
        found.append({"gain": gain, **{entry["network"]: entry["left_out"] for entry in entries}})
    return found


def sensitivity_markdown(entries: list[dict[str, Any]]) -> str:
    """The sensitivity for people."""
    lines = ["| Winograd's gain (TensorRT) | nano resnet50, left out | nano resnet34, left out |", "|---|---|---|"]
    lines += [f"| {e['gain']:g} | {e['resnet50']:+.1%} | {e['resnet34']:+.1%} |" for e in entries]
    return (
        "\nThe gain is shared by all devices and was chosen in view of these two rows; without that choice they would "
        "be met like this:\n\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    with ROWS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    entries, gains = table(rows), sensitivity(rows)
    for device in dict.fromkeys(e["device"] for e in entries):
        constants = next(e["constants"] for e in entries if e["device"] == device)
        print(device, {name: round(value, 3) for name, value in constants.items()})
    text = markdown(entries) + sensitivity_markdown(gains)
    print(text)
    if arguments.json:
        write_json(arguments.json, {"rows": entries, "sensitivity": gains})
    if arguments.markdown:
        write_text(arguments.markdown, "# Analytical device models against published latencies\n\n" + text)


if __name__ == "__main__":
    main()
