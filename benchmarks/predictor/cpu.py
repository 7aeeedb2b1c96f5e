"""Accuracy of a calibrated predictor on this CPU, on networks and configurations that were never fitted.

    dyndeploy calibrate-device --device cpu -o cpu.json
    python benchmarks/predictor/cpu.py --calibration cpu.json

Measured are the networks of the zoo (static ones too) at random modes, granularities, activation rates and input sizes.
The calibration saw random graphs only, none of which has a bottleneck with the channels of a zoo network's, at whatever
size. Predicted is from the graph and the rates alone: the predictor does not see the masks, and expects random patches.
Whole networks are timed by the CPU time of the calling thread in a session without a profile, blocks by ONNX Runtime's
node profile, which is wall time. All networks take turns (:func:`dyndeploy.device_calibration.measure.time_in_turn`),
so that each is measured in every mood of a shared machine, and the faster runs count. A graph that is always the same
runs between them: errors are stated twice, against times at the speed that the calibration is stated at, and against
times as they came. Everything is measured twice in sessions of their own, and the difference is reported as noise: no
prediction can be better than that. What was measured is kept in --measurements, and only a missing pass is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from scipy.stats import spearmanr

from dyndeploy import create_model
from dyndeploy.bundle import MaskInfo
from dyndeploy.device_calibration.measure import Subject, block_rates, time_in_turn
from dyndeploy.files import read_json, write_json, write_text
from dyndeploy.graphs.forced import forced_masks
from dyndeploy.graphs.inspect import group_of
from dyndeploy.measure.steady import quick
from dyndeploy.planning.measured import forced_graph
from dyndeploy.prediction import Rates
from dyndeploy.prediction.calibrated import CalibratedModel, load_calibration
from dyndeploy.prediction.kernels import Graph, GraphWalker
from dyndeploy.runtimes.machine import machine_facts

RESULTS = Path(__file__).parent.parent / "results"
SIZES = {
    "laud_resnet50": (128, 160, 192, 224, 256),
    "laud_resnet101": (128, 160, 192, 224, 256),
    "laud_resnet14_small": (32, 40, 48, 64),
    "laud_resnet26_small": (48, 64, 80, 96),
}
MODES = ("spatial", "channel", "layer", "both", "static")
RATES_PER_GRAPH = 3
DRAWS = 2
ROUNDS = 20
PASSES = 2


def configurations(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Random graphs of the zoo; every network and mode in turn, a quarter with a mode of its own in every stage."""
    random = np.random.default_rng(seed)
    for index in range(count):
        network = list(SIZES)[index % len(SIZES)]
        base = MODES[(index // len(SIZES)) % len(MODES)]
        mixed = random.random() < 0.25
        modes = [str(random.choice(MODES)) if mixed else base for _ in range(4)]
        yield {
            "network": network,
            "input_size": int(random.choice(SIZES[network])),
            "mode": modes,
            "granularity": [int(random.choice(options)) for options in ((1, 2, 4, 8), (1, 2, 4, 7), (1, 2), (1, 2))],
            "channel_granularity": int(random.choice([1, 2, 4])),
            "rates": [round(float(rate), 2) for rate in random.uniform(0.05, 1.0, RATES_PER_GRAPH)],
            "seed": int(random.integers(1 << 30)),
        }


def build(configuration: Mapping[str, Any], cache: Path) -> tuple[onnx.ModelProto, tuple[MaskInfo, ...]]:
    """The exported graph with its masks as inputs; kept in ``cache``, because an export takes longer than a run."""
    path = cache / f"{configuration['seed']}.onnx"
    if path.exists():
        described = read_json(path.with_suffix(".json"))
        return onnx.load(path), tuple(MaskInfo(n, b, k, tuple(shape)) for n, b, k, shape in described)
    torch.manual_seed(0)
    network = create_model(
        configuration["network"],
        mode=tuple(configuration["mode"]),
        granularity=tuple(configuration["granularity"]),
        channel_granularity=configuration["channel_granularity"],
    )
    graph, masks = forced_graph(network.eval(), (configuration["input_size"],) * 2)
    cache.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, path)
    write_json(path.with_suffix(".json"), [[mask.name, mask.block, mask.kind, mask.shape] for mask in masks])
    return graph, masks


@contextlib.contextmanager
def exclusively(lock: Path | None) -> Iterator[None]:
    """Hold a lock file that others take for their own timings."""
    if lock is None:
        yield
        return
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def feeds_of(
    model: onnx.ModelProto, masks: Sequence[MaskInfo], rates: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    """Inputs: for every rate :data:`DRAWS` draws of masks; one input where there are no masks."""
    shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    image = {model.graph.input[0].name: np.random.default_rng(seed).standard_normal(shape, np.float32)}
    if not masks:
        return [image]
    return [
        {**image, **{f"forced/{name}": bits for name, bits in forced_masks(masks, rate, seed + draw).items()}}
        for rate in rates
        for draw in range(DRAWS)
    ]


def expected_rates(model: onnx.ModelProto, feed: Mapping[str, Any]) -> dict[str, Rates]:
    """Rates without the true dilation: the predictor expects random patches."""
    known = block_rates(model, {name: value for name, value in feed.items() if name.startswith("forced/")})
    return {block: Rates(rates.spatial, rates.channel) for block, rates in known.items()}


def predict(model: CalibratedModel, graph: Graph) -> tuple[float, float, float, dict[str, float]]:
    """Milliseconds of the network with the sums of its kernels' interval ends, and of its groups."""
    ms, low, high = model.price(graph.kernels)
    groups: dict[str, float] = {}
    for kernel, value in zip(graph.kernels, ms, strict=True):
        group = group_of(kernel.name)
        groups[group] = groups.get(group, 0.0) + float(value)
    overhead = model.calibration.overhead_ms
    return float(ms.sum()) + overhead, float(low.sum()) + overhead, float(high.sum()) + overhead, groups


def collect(path: Path, count: int, seed: int, lock: Path | None, cache: Path) -> list[dict[str, Any]]:
    """Measure the passes that the file lacks."""
    rows: list[dict[str, Any]] = read_json(path) if path.exists() else []
    for number in range(PASSES):
        if any(row["pass"] == number for row in rows):
            continue
        drawn = list(configurations(count, seed))
        subjects = []
        for configuration in drawn:
            model, masks = build(configuration, cache)
            feeds = feeds_of(model, masks, configuration["rates"], configuration["seed"])
            subjects.append(Subject(model, feeds, ["logits"], whole=True))
        print(f"pass {number + 1} of {PASSES}: {count} networks in turn", flush=True)
        with exclusively(lock):
            found = time_in_turn(subjects, rounds=ROUNDS)
        for index, (configuration, times) in enumerate(zip(drawn, found, strict=True)):
            measured = [
                {
                    "cpu_ms": quick(times.whole[:, feed]),
                    "groups": {name: quick(ms[:, feed]) for name, ms in times.groups.items()},
                }
                for feed in range(times.whole.shape[1])
            ]
            rows.append(
                {
                    "index": index, "pass": number, "configuration": configuration, "measured": measured,
                    "pace_ms": times.pace_ms,
                }
            )  # fmt: skip
        write_json(path, rows)
    return rows


def shares(errors: Sequence[float]) -> dict[str, float]:
    """Summary of relative errors."""
    size = np.abs(np.asarray(errors))
    return {
        "count": len(size),
        "mape": float(size.mean()),
        "median": float(np.median(size)),
        "bias": float(np.mean(errors)),
        "within_5": float((size <= 0.05).mean()),
        "within_10": float((size <= 0.10).mean()),
    }


NETWORK = "whole network"
Times = Mapping[str, tuple[float, float]]


def item_times(item: Mapping[str, Any], speed: float) -> Times:
    """Milliseconds of the network and of its blocks, each at the stated speed and as they came."""
    raw = {NETWORK: item["cpu_ms"], **item["groups"]}
    return {name: (ms * speed, ms) for name, ms in raw.items()}


def compared(predicted: Sequence[float], times: Sequence[Sequence[Times]], name: str) -> dict[str, Any]:
    """Prediction and measurement of one thing, averaged over draws of masks.

    Args:
        predicted: For every draw.
        times: For every pass and draw.
        name: Block, or :data:`NETWORK`.
    """
    steady, raw = (np.array([np.mean([item[name][kind] for item in one]) for one in times]) for kind in (0, 1))
    ms, value = float(steady.mean()), float(np.mean(predicted))
    return {
        "measured_ms": ms,
        "predicted_ms": value,
        "error": value / ms - 1,
        "error_raw": value / float(raw.mean()) - 1,
        "noise": (steady / ms - 1).tolist(),
        "noise_raw": (raw / raw.mean() - 1).tolist(),
    }


def evaluate(rows: Sequence[dict[str, Any]], calibration: Path, cache: Path) -> dict[str, Any]:
    """Predict every configuration and compare."""
    model = CalibratedModel(load_calibration(calibration))
    for warning in model.calibration.warnings():
        print(warning, file=sys.stderr)
    pace_ms = model.calibration.measured["pace_ms"]
    by_index: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_index.setdefault(row["index"], []).append(row)
    networks: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    for passes in by_index.values():
        configuration = passes[0]["configuration"]
        graph_model, masks = build(configuration, cache)
        walker = GraphWalker(graph_model)
        feeds = feeds_of(graph_model, masks, configuration["rates"], configuration["seed"])
        predictions = [predict(model, walker.graph(expected_rates(graph_model, feed))) for feed in feeds]
        draws = DRAWS if masks else 1
        for start in range(0, len(feeds), draws):
            chosen = predictions[start : start + draws]
            times = [
                [item_times(item, pace_ms / one["pace_ms"]) for item in one["measured"][start : start + draws]]
                for one in passes
            ]
            common = {
                "index": passes[0]["index"],
                "network": configuration["network"],
                "rate": configuration["rates"][start // draws] if masks else 1.0,
            }
            networks.append(
                {
                    **common, "input_size": configuration["input_size"],
                    "mode": "-".join(dict.fromkeys(configuration["mode"])),
                    **compared([one[0] for one in chosen], times, NETWORK),
                    "low_ms": float(np.mean([one[1] for one in chosen])),
                    "high_ms": float(np.mean([one[2] for one in chosen])),
                }
            )  # fmt: skip
            blocks += [
                {
                    **common, "block": name, "mode": configuration["mode"][int(name[5]) - 1],
                    **compared([one[3][name] for one in chosen], times, name),
                }
                for name in chosen[0][3]
                if name.startswith("layer")
            ]  # fmt: skip

    def split(entries: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
        return {
            str(value): shares([entry["error"] for entry in entries if entry[key] == value])
            for value in dict.fromkeys(entry[key] for entry in entries)
        }

    def summary(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            **shares([entry["error"] for entry in entries]),
            "raw": shares([entry["error_raw"] for entry in entries]),
            "noise": shares([value for entry in entries for value in entry["noise"]]),
            "noise_raw": shares([value for entry in entries for value in entry["noise_raw"]]),
            "by_mode": split(entries, "mode"),
            "by_network": split(entries, "network"),
        }

    measured, predicted = ([entry[key] for entry in networks] for key in ("measured_ms", "predicted_ms"))
    covered = [entry["low_ms"] <= entry["measured_ms"] <= entry["high_ms"] for entry in networks]
    weights = np.array([entry["measured_ms"] for entry in blocks])
    errors = np.abs([entry["error"] for entry in blocks])
    return {
        "machine": machine_facts(),
        "calibration": {**model.calibration.measured, "date": model.calibration.machine.get("date")},
        "passes": max(len(passes) for passes in by_index.values()),
        "networks": {
            **summary(networks),
            "spearman": float(spearmanr(measured, predicted).statistic),
            "in_interval": float(np.mean(covered)),
        },
        "blocks": {
            **summary(blocks),
            "within_5_by_time": float(weights[errors <= 0.05].sum() / weights.sum()),
            "within_10_by_time": float(weights[errors <= 0.10].sum() / weights.sum()),
        },
        "classes": {
            name: {"samples": m.samples, "mape": m.mape, "within_5": m.within_5, "within_10": m.within_10}
            for name, m in model.calibration.classes.items()
        },
        "worst": sorted(blocks, key=lambda entry: -abs(entry["error"]))[:10],
        "rows": networks,
    }


def report(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    networks, blocks = result["networks"], result["blocks"]
    head = "| | count | MAPE | bias | within 5 % | within 10 % |\n|---|---|---|---|---|---|"

    def row(label: str, entry: Mapping[str, float]) -> str:
        return (
            f"| {label} | {entry['count']} | {entry['mape']:.1%} | {entry['bias']:+.1%} | {entry['within_5']:.1%} "
            f"| {entry['within_10']:.1%} |"
        )

    lines = [head, row("whole networks", networks), row("blocks", blocks)]
    for what, entry in (("whole networks", networks), ("blocks", blocks)):
        lines += [row(f"{what}, against times as they came", entry["raw"])]
        lines += [row(f"noise: {what}, a pass against the mean of the passes", entry["noise"])]
        lines += [row(f"noise: {what}, times as they came", entry["noise_raw"])]
    for title, key in (("mode", "by_mode"), ("network", "by_network")):
        lines += [row(f"blocks, {title} {name}", entry) for name, entry in blocks[key].items()]
    lines += [row(f"whole networks, {name}", entry) for name, entry in networks["by_network"].items()]
    classes = ["| class | samples | MAPE | within 5 % | within 10 % |\n|---|---|---|---|---|"]
    classes += [
        f"| {name} | {entry['samples']} | {entry['mape']:.1%} | {entry['within_5']:.0%} | {entry['within_10']:.0%} |"
        for name, entry in sorted(result["classes"].items(), key=lambda item: -item[1]["samples"])
    ]
    worst = ["| network | block | mode | rate | measured ms | predicted ms | error |\n|---|---|---|---|---|---|---|"]
    worst += [
        f"| {entry['network']} | {entry['block']} | {entry['mode']} | {entry['rate']} | {entry['measured_ms']:.3f} "
        f"| {entry['predicted_ms']:.3f} | {entry['error']:+.0%} |"
        for entry in result["worst"]
    ]
    machine = result["machine"]
    return (
        f"# The calibrated predictor on a CPU\n\n{machine['cpu']}, {machine['date']}, ONNX Runtime "
        f"{machine['versions']['onnxruntime']}, 1 thread, batch 1. Calibrated on {result['calibration']['samples']} "
        f"kernels of {result['calibration']['graphs']} random graphs in {result['calibration']['seconds']:.0f} s.\n\n"
        "Held out: all networks of the zoo, at random modes, granularities, rates and input sizes; the calibration "
        "never ran one of them, nor, at any input size, a block with the channels of one of theirs.\n\n"
        + "\n".join(lines)
        + f"\n\nSpearman over networks: {networks['spearman']:.4f}. Measured inside the predicted 90 % interval: "
        f"{networks['in_interval']:.0%} of networks. Of the blocks' time, {blocks['within_5_by_time']:.1%} lies in "
        f"blocks within 5 % and {blocks['within_10_by_time']:.1%} in blocks within 10 %.\n\n"
        "## Kernels of random graphs, cross-validated\n\n"
        + "\n".join(classes)
        + "\n\n## The ten worst blocks\n\n"
        + "\n".join(worst)
        + "\n"
    )


def main() -> None:
    """Measure, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--measurements", type=Path, default=Path("predictor-cpu-measurements.json"))
    parser.add_argument("--cache", type=Path, default=Path("predictor-cpu-graphs"), help="folder of exported graphs")
    parser.add_argument("--graphs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--lock", type=Path, help="file that others lock for their timings on this machine")
    parser.add_argument("--output", default="predictor-cpu")
    arguments = parser.parse_args()
    rows = collect(arguments.measurements, arguments.graphs, arguments.seed, arguments.lock, arguments.cache)
    result = evaluate(rows, arguments.calibration, arguments.cache)
    write_json(RESULTS / f"{arguments.output}.json", result)
    write_text(RESULTS / f"{arguments.output}.md", report(result))
    print(report(result))
    print(json.dumps({key: result[key] for key in ("networks", "blocks")}, indent=1)[:200])


if __name__ == "__main__":
    main()
