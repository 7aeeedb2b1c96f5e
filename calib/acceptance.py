"""How much INT8 costs the digits networks: accuracy on the 360 held-out images, and mask bits that flip.

Of every training run one table is made per seed of the calibration images, as ``dyndeploy quantize`` makes it, and the
network in INT8 is compared with the one in FP32 on images that neither training nor calibration saw::

    python calib/acceptance.py RUN [RUN ...] --seeds 5 --json results.json

The limits: at most two images fewer, and at most 0.3 % of the mask bits flipped. Exit code 1 where one is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from dyndeploy import files
from dyndeploy.bundle import Bundle
from dyndeploy.data import digits
from dyndeploy.export import ExportSettings, export_model, find_source
from dyndeploy.nets import load_checkpoint
from dyndeploy.nets.factories import build_network
from dyndeploy.quantization import CalibrationImages, Comparison, calibrate

FEWER, FLIPS = 2, 0.003
"""Images, and share of mask bits, that may be lost."""


def exported(run: str, folder: Path) -> Bundle:
    """A training run's best epoch as a bundle in FP32."""
    source = find_source(run)
    assert source.name is not None and source.checkpoint is not None
    network = build_network(source.name, source.options({}), source.imported)
    load_checkpoint(network, source.checkpoint)
    size = source.trained.input_size
    settings = ExportSettings(input_size=size, checkpoint=source.checkpoint)
    return export_model(network, folder, settings, preprocessing=source.trained.preprocessing_at(size))


def measure(run: str, bundle: Bundle, seeds: int, images: int, methods: list[str], bits: int) -> list[dict[str, Any]]:
    """One row per method and seed of the calibration images."""
    preprocessing, size = bundle.manifest.images()
    held_out = digits(preprocessing, size).held_out
    labels = [int(label) for label in held_out.labels]
    found, name = CalibrationImages.open(bundle, "digits"), bundle.manifest.inputs[0].name
    comparison: Comparison | None = None
    rows = []
    for method in methods:
        for seed in range(seeds):
            chosen, _ = found.choose(images, seed)
            table = calibrate(bundle, found.samples(chosen, name), method=method, weight_bits=bits, data=found.source)
            if comparison is None:
                comparison = Comparison(bundle, table, [{name: held_out.images}], labels)
            cost = comparison.of(table).cost(comparison.blocks)
            assert cost.accuracy is not None and comparison.accuracy is not None
            rows.append(
                {
                    "run": run,
                    "mode": bundle.manifest.network.mode,
                    "method": method,
                    "seed": seed,
                    "images": len(labels),
                    "right_fp32": round(comparison.accuracy * len(labels)),
                    "right_int8": round(cost.accuracy * len(labels)),
                    **dataclasses.asdict(cost),
                }
            )
            print(
                f"{run} {method} seed {seed}: {rows[-1]['right_fp32']} -> {rows[-1]['right_int8']} of {len(labels)}, "
                f"{cost.flips} of {cost.bits} mask bits flip ({cost.flips / max(cost.bits, 1):.3%}), output error "
                f"{cost.error:.2%}",
                flush=True,
            )
    return rows


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="Folders of training runs of digits networks.")
    parser.add_argument("--seeds", type=int, default=3, help="Seeds of the calibration images.")
    parser.add_argument("--images", type=int, default=128, help="Calibration images.")
    parser.add_argument("--methods", default="mse", help="Methods, separated by commas.")
    parser.add_argument("--weight-bits", type=int, default=7, choices=(7, 8))
    parser.add_argument("--json", type=Path, help="Where to write the rows.")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index, run in enumerate(asked.runs):
            bundle = exported(run, Path(folder) / str(index))
            rows += measure(run, bundle, asked.seeds, asked.images, asked.methods.split(","), asked.weight_bits)
    if asked.json is not None:
        files.write_json(asked.json, rows)
    missed = [
        row for row in rows if row["right_fp32"] - row["right_int8"] > FEWER or row["flips"] > FLIPS * row["bits"]
    ]
    print(f"{len(rows) - len(missed)} of {len(rows)} within the limits.")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
