"""Realisation of detectors on this CPU: whole networks and their parts against their static twins, and peak memory.

    python benchmarks/detection/run.py                                    # all tables; takes an hour on a quiet machine
    python benchmarks/detection/run.py --networks laud_retinanet_resnet101 --modes layer,channel --resume
    python benchmarks/detection/run.py --networks laud_ddq_detr_resnet50 --input-size 320x480 --resume

Weights are random and masks are forced: latency depends on neither. Only what follows non-maximum suppression depends
on the scores, and the heads of RetinaNet get a bias that lets every candidate count: the most that there can be.
Results go to benchmarks/results/ as JSON and as Markdown, after every configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from dyndeploy import Bundle, ExportSettings, create_model, export_model, profile_bundle
from dyndeploy.errors import UsageError
from dyndeploy.files import write_json, write_text
from dyndeploy.graphs.forced import forced_feeds, forced_masks, overlay_forced_masks
from dyndeploy.measure.profile import typical_ratio
from dyndeploy.runtimes.machine import machine_facts
from dyndeploy.runtimes.native import find_cpu_library

RESULTS = Path(__file__).parent.parent / "results"
SCHEMA = 1
NETWORKS = (
    "laud_retinanet_resnet101", "laud_retinanet_resnet50", "laud_faster_rcnn_resnet101", "laud_faster_rcnn_resnet50",
    "laud_retinanet_resnet50_512", "laud_mask_rcnn_resnet50", "laud_ddq_detr_resnet50", "laud_mask2former_resnet50",
)  # fmt: skip
SIZE, SMALL = (800, 1216), (320, 480)
"""Height and width of the inputs: those of most images of COCO after the published resize, and smaller ones."""
SIZES = {"laud_retinanet_resnet50_512": SMALL}
BACKBONE, OWN = "backbone", "own masks"
LIMITS: Mapping[tuple[str, str, float], tuple[float, float]] = {
    ("whole", "layer", 0.5): (0.98, 0.97),
    ("whole", "channel", 0.5): (0.92, 0.91),
    (BACKBONE, "layer", 0.5): (0.97, 0.97),
    (BACKBONE, "channel", 0.5): (0.90, 0.90),
}
"""Least share of the ideal on one thread, at 800x1216 and at 320x480."""
WHOLE_RATE = 1.0
"""A rate at which a dynamic network shall not be slower than its twin."""
PROBE = """
import json, re, sys
import numpy as np
from dyndeploy.runtimes import OnnxRuntimeSession
model, feeds, native, outputs = sys.argv[1:5]
# Not ru_maxrss: a child inherits its parent's peak there.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
feeds = dict(np.load(feeds))
open("/proc/self/clear_refs", "w").write("5")  # Starts the peak anew.
before = peak()
with OnnxRuntimeSession(model, threads=1, native=native) as session:
    run = session.bind({info.name: feeds[info.name] for info in session.inputs}, outputs.split(","))
    run()
    run()
print(json.dumps({"peak_mb": peak(), "base_mb": before}))
"""


def export(name: str, mode: str, size: tuple[int, int], folder: Path) -> Bundle:
    """Export, or open what is there already."""
    if folder.exists():
        return Bundle.open(folder)
    torch.manual_seed(0)
    model = create_model(name, mode=mode)
    dense = getattr(getattr(model, "head", None), "classification_head", None)
    if dense is not None:
        torch.nn.init.zeros_(dense.cls_logits.bias)
    return export_model(model.eval(), folder, ExportSettings(static=True, input_size=size))


def time_detector(bundle: Bundle, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per rate."""
    profile = profile_bundle(
        bundle, threads=arguments.threads, rates=arguments.rates, native=arguments.native,
        repeats=arguments.repeats, warmup=1,
    )  # fmt: skip
    rows = []
    for result in profile.rates:
        cpu = None if result.cpu_ratios is None else typical_ratio(result.cpu_ratios, result.ratio_inputs)
        wall = typical_ratio(result.ratios, result.ratio_inputs)
        rows.append(
            {
                "rate": result.rate,
                "static_ms": profile.static.median,
                "dynamic_ms": result.samples.median,
                "ideal_speedup": result.ideal_speedup,
                "realised_speedup": wall,
                "realised_speedup_cpu": cpu,
                "spread": [float(value) for value in np.percentile(result.ratios, [25, 75])],
                "share": wall / result.ideal_speedup,
                "share_cpu": None if cpu is None else cpu / result.ideal_speedup,
                "rounds": len(result.ratios),
                "parts": [part.to_json() for part in result.parts],
                "load": os.getloadavg()[0],
            }
        )
    return rows


def peak_memory(bundle: Bundle, rates: Sequence[float], native: str, folder: Path) -> list[dict[str, Any]]:
    """Peak resident memory of the static twin, of the dynamic network as deployed, and at every forced rate.

    Each in a process of its own. The graph of forced masks is a graph of its own: its memory is planned apart from the
    deployed one's.
    """
    masks = bundle.manifest.masks
    outputs = [info.name for info in bundle.manifest.outputs if info.name not in {mask.name for mask in masks}]
    feeds = {name: value[: bundle.manifest.batch] for name, value in bundle.reference_inputs().items()}
    forced = folder / "forced.onnx"
    onnx.save(overlay_forced_masks(bundle.load_model(), masks), forced)
    assert bundle.static is not None
    cases: list[tuple[float | str | None, Path, Mapping[str, Any], str]] = [
        (None, bundle.static, feeds, native),
        (OWN, bundle.model, feeds, native),
    ]
    cases += [
        (rate, forced, {**feeds, **forced_feeds(forced_masks(masks, rate, seed=0), masks)}, native) for rate in rates
    ]
    rows = []
    for case, model, given, library in cases:
        np.savez(folder / "feeds.npz", **dict[str, Any](given))
        command = [sys.executable, "-c", PROBE, str(model), str(folder / "feeds.npz"), library, ",".join(outputs)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append({"rate": case, **found})
    return rows


def line(row: Mapping[str, Any]) -> str:
    """A configuration, for the terminal."""
    return (
        f"{row['network']} {row['mode']} rate {row['rate']}: {row['dynamic_ms']:.0f} ms, static {row['static_ms']:.0f} "
        f"ms, share of ideal {row['share']:.3f}"
    )


def page(result: Mapping[str, Any]) -> str:
    """Markdown of all results."""
    machine, rows = result["machine"], result["rows"]
    text = [
        "# Detectors on a CPU",
        "",
        f"Measured, masks forced. {machine['cpu']}; {machine['date']}; instruction set {result['best']}. Static twin "
        "and dynamic network in turn in one process, on ONNX Runtime. *Share* is the realised over the ideal speed-up; "
        "*by CPU time* leaves out what other processes took. Times of parts are "
        "from separate runs with the runtime's node profile. `python benchmarks/detection/run.py`.",
        "",
        "| network | mode | input | rate | static ms | dynamic ms | ideal | realised | share | by CPU time | load |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        by_cpu = "" if row["share_cpu"] is None else f"{row['share_cpu']:.3f}"
        text.append(
            f"| {row['network']} | {row['mode']} | {dimensions(row)} | {row['rate']} "
            f"| {row['static_ms']:.0f} | {row['dynamic_ms']:.0f} | {row['ideal_speedup']:.2f} "
            f"| {row['realised_speedup']:.2f} | {row['share']:.3f} | {by_cpu} | {row['load']:.1f} |"
        )
    text += ["", "## Limits", "", "| what | network | mode | input | rate | at least | measured | verdict |"]
    text.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        if tuple(row["size"]) in (SIZE, SMALL):
            text += [limit_line(row, *limit) for limit in limits_of(row)]
    text += ["", "## Parts", "", "| network | mode | input | rate | part | static ms | dynamic ms | ideal | share |"]
    text.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        what = f"| {row['network']} | {row['mode']} | {dimensions(row)} | {row['rate']} "
        for part in row["parts"]:
            ideal, share = ("" if part[key] is None else f"{part[key]:.2f}" for key in ("ideal_speedup", "realisation"))
            text.append(
                f"{what}| {part['name']} | {part['static_ms']:.1f} | {part['dynamic_ms']:.1f} | {ideal} | {share} |"
            )
    text += ["", "## Peak memory", "", "MB above the process before the session, each in a process of its own.", ""]
    headings = ["network", "mode", "input", "static", OWN, *(f"rate {rate}" for rate in result["rates"])]
    text += [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for item in result["memory"]:
        cells = [f"{found['peak_mb'] - found['base_mb']:.0f}" for found in item["peaks"]]
        text.append(f"| {item['network']} | {item['mode']} | {dimensions(item)} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


LENIENT = ("laud_mask_rcnn", "laud_ddq_detr", "laud_mask2former")
"""Networks that are held to the limits of small inputs at all sizes: most of their time is the heads'."""


def limits_of(row: Mapping[str, Any]) -> list[tuple[str, float, float | None]]:
    """What a row is held against: name, least value, measured value."""
    found: list[tuple[str, float, float | None]] = []
    if row["rate"] == WHOLE_RATE:
        found.append(("speed over the static twin", 1.0, row["realised_speedup_cpu"] or row["realised_speedup"]))
    backbone = next((part["realisation"] for part in row["parts"] if part["name"] == BACKBONE), None)
    for what, measured in (("whole", row["share_cpu"] or row["share"]), (BACKBONE, backbone)):
        limit = LIMITS.get((what, row["mode"], row["rate"]))
        if limit is not None:
            found.append(
                (
                    f"share of ideal, {what}",
                    limit[tuple(row["size"]) == SMALL or row["network"].startswith(LENIENT)],
                    measured,
                )
            )
    return found


def limit_line(row: Mapping[str, Any], what: str, least: float, measured: float | None) -> str:
    """A limit of a row, for the table; by CPU time where it is known."""
    verdict = "" if measured is None else "met" if measured >= least else "**missed**"
    shown = "" if measured is None else f"{measured:.3f}"
    where = f"{row['network']} | {row['mode']} | {dimensions(row)} | {row['rate']}"
    return f"| {what} | {where} | {least:.2f} | {shown} | {verdict} |"


def dimensions(row: Mapping[str, Any]) -> str:
    """Height and width of a row's input."""
    return "x".join(map(str, row["size"]))


def words(text: str) -> list[str]:
    """Parse ``a,b``."""
    return [word for word in text.split(",") if word]


def rates(text: str) -> list[float]:
    """Parse ``1.0,0.5``."""
    return [float(part) for part in words(text)]


def size(text: str) -> tuple[int, int]:
    """Parse ``320x480``."""
    height, width = map(int, text.split("x"))
    return height, width


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=words, default=list(NETWORKS))
    parser.add_argument("--modes", type=words, default=["layer", "channel", "spatial", "both"])
    parser.add_argument("--input-size", type=size, help="HxW, instead of a network's own")
    parser.add_argument("--rates", type=rates, default=[1.0, 0.5])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=12, help="rounds per configuration")
    parser.add_argument("--native", default="auto", help="the operator library")
    parser.add_argument("--bundles", type=Path, help="folder of bundles, kept and used again")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", default="detection", help="file name in benchmarks/results, without ending")
    parser.add_argument("--resume", action="store_true", help="keep what the output file has, measure the rest")
    arguments = parser.parse_args()
    library = find_cpu_library()
    if library is None:
        raise UsageError("The operator library is not built: there is nothing to measure.")
    path = RESULTS / f"{arguments.output}.json"
    result: dict[str, Any] = {"schema": SCHEMA, "kind": "measured", "masks": "forced", "rows": [], "memory": []}
    if arguments.resume and path.exists():
        result |= json.loads(path.read_text(encoding="utf-8"))
    result |= {"machine": machine_facts(), "best": library.instruction_set(), "rates": arguments.rates}
    for network in arguments.networks:
        for mode in arguments.modes:
            shape = arguments.input_size or SIZES.get(network, SIZE)
            facts = {"network": network, "mode": mode, "size": list(shape), "threads": arguments.threads}
            done = [facts == {key: row[key] for key in facts} for row in result["rows"]]
            if any(done):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                folder = (arguments.bundles or Path(scratch)) / f"{network}-{mode}"
                bundle = export(network, mode, shape, folder)
                found = [{**facts, **row} for row in time_detector(bundle, arguments)]
                print("\n".join(map(line, found)), flush=True)
                result["rows"] += found
                if arguments.memory:
                    peaks = peak_memory(bundle, arguments.rates, arguments.native, Path(scratch))
                    result["memory"].append({**facts, "peaks": peaks})
            write_json(path, result)
            write_text(path.with_suffix(".md"), page(result))


if __name__ == "__main__":
    main()
