"""Realisation on this CPU: dynamic networks against their static twins, interleaved in one run.

    python benchmarks/cpu/run.py                                # all tables; takes half an hour
    python benchmarks/cpu/run.py --native off --batches 1 --granularities 4-4-2-1 --output cpu-portable

Weights are random and masks are forced: latency depends on neither. Results go to benchmarks/results/ as JSON (all
medians and spreads) and as a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from dyndeploy import Bundle, ExportSettings, create_model, export_model, verify_bundle
from dyndeploy.files import write_json, write_text
from dyndeploy.measure import Profile, profile_bundle
from dyndeploy.runtimes import OnnxRuntimeSession

RESULTS = Path(__file__).parent.parent / "results"
CONFIGURATION = ("network", "mode", "granularity", "batch", "threads")


def peak_gflops(threads: int, size: int = 1024, runs: int = 40) -> float:
    """Best rate of ONNX Runtime's matrix product with packed constant weights: what the machine gives at most."""
    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "peak",
        [tensor("x", onnx.TensorProto.FLOAT, (size, size))],
        [tensor("y", onnx.TensorProto.FLOAT, (size, size))],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with OnnxRuntimeSession(model, threads=threads, native="off") as session:
        run = session.bind({"x": weight})
        best = float("inf")
        for _ in range(runs):
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
    return 2e-9 * size**3 / best


def export(network: str, mode: str, granularity: str, batch: int, folder: Path) -> tuple[Bundle, float, float]:
    """Export and verify; returns the bundle and both times in seconds."""
    torch.manual_seed(0)
    model = create_model(network, mode=mode, granularity=tuple(int(part) for part in granularity.split("-")))
    start = time.perf_counter()
    bundle = export_model(model, folder, ExportSettings(static=True, batch=batch))
    exported = time.perf_counter()
    assert verify_bundle(bundle).passed, f"{folder} does not verify"
    return bundle, exported - start, time.perf_counter() - exported


def operators(native: dict[str, str | None]) -> str:
    """What ran the dynamic operators, without the path on this machine."""
    return (native["description"] or "").rsplit("/", 1)[-1]


KEPT = (
    "rate",
    "masks",
    "median_ms",
    "p90_ms",
    "cov",
    "ideal_speedup",
    "realised_speedup",
    "realised_speedup_cpu",
    "realised_spread",
    "realisation",
    "blocks",
    "rest",
)


def rows_of(profile: Profile, **configuration: Any) -> list[dict[str, Any]]:
    """One row per rate."""
    value = profile.to_json()
    static_ms = value["static"]["median_ms"]
    return [
        {
            **configuration,
            "operators": operators(value["native"]),
            "date": profile.machine.get("date"),
            "static_ms": static_ms,
            "static_cov": value["static"]["cov"],
            "static_gflops": 2e-6 * value["static_macs"] * configuration["batch"] / static_ms,
            "gflops": 2e-6 * rate["needed_macs"] * configuration["batch"] / rate["median_ms"],
            **{key: rate[key] for key in KEPT},
        }
        for rate in value["rates"]
    ]


def measure(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Run every configuration that ``rows`` lacks, add to ``rows``, and yield the machine after each."""
    done = {tuple(row[key] for key in CONFIGURATION) for row in rows}
    configurations = itertools.product(arguments.networks, arguments.modes, arguments.granularities, arguments.batches)
    for network, mode, granularity, batch in configurations:
        if granularity != arguments.granularities[0] and (mode != "spatial" or batch != arguments.batches[0]):
            continue  # Other modes have no patches, or differ as spatial mode does.
        left = [n for n in arguments.threads if (network, mode, granularity, batch, n) not in done]
        if not left:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            bundle, export_s, verify_s = export(network, mode, granularity, batch, Path(scratch) / "bundle")
            for threads in left:
                profile = profile_bundle(
                    bundle,
                    threads=threads,
                    rates=arguments.rates,
                    native=arguments.native,
                    min_seconds=arguments.seconds,
                )
                configuration = dict(zip(CONFIGURATION, (network, mode, granularity, batch, threads), strict=True))
                rows += rows_of(profile, **configuration, export_s=export_s, verify_s=verify_s)
                print("\n".join(line(row) for row in rows[-len(arguments.rates) :]), flush=True)
                yield profile.machine


HEAD = (
    "| network | mode | granularity | batch | threads | rate | static ms | dynamic ms | GF/s static | dynamic | ideal "
    "| realised | realisation (by CPU time) |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)
BLOCK_HEAD = (
    "| network | mode | rate | blocks | static ms | dynamic ms | ideal | realised | realisation |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def stage_of(block: str) -> str:
    """``layer3.0`` -> ``layer3.0``; ``layer3.7`` -> ``layer3, others``: the first block of a stage is another kind."""
    stage, _, index = block.partition(".")
    return block if index == "0" else f"{stage}, others"


def breakdown(rows: list[dict[str, Any]]) -> str:
    """Where the time of one image goes on one thread: blocks of a kind added up, and the rest of the network."""
    lines = [BLOCK_HEAD]
    granularity = rows[0]["granularity"]
    for row in rows:
        if (row["batch"], row["threads"], row["granularity"]) != (1, 1, granularity) or row["rate"] not in (
            0.5,
            0.1,
        ):
            continue
        parts: dict[str, list[dict[str, Any]]] = {}
        for block in row["blocks"]:
            parts.setdefault(stage_of(block["name"]), []).append(block)
        for part in row["rest"]:
            parts[part["name"]] = [part]
        for name, blocks in parts.items():
            static, dynamic = (sum(block[key] for block in blocks) for key in ("static_ms", "dynamic_ms"))
            head = f"| {row['network']} | {row['mode']} | {row['rate']:.2f} | {name} | {static:.2f} | {dynamic:.2f} "
            if any(block["ideal_speedup"] is None for block in blocks):
                lines.append(f"{head}| | | |")
                continue
            needed = sum(block["static_ms"] / block["ideal_speedup"] for block in blocks)
            lines.append(f"{head}| {static / needed:.2f} | {static / dynamic:.2f} | {needed / dynamic:.2f} |")
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    cpu = row["realised_speedup_cpu"]
    by_cpu = "" if cpu is None else f" ({cpu / row['ideal_speedup']:.2f})"
    return (
        f"| {row['network']} | {row['mode']} | {row['granularity']} | {row['batch']} | {row['threads']} "
        f"| {row['rate']:.2f} | {row['static_ms']:.2f} | {row['median_ms']:.2f} | {row['static_gflops']:.0f} "
        f"| {row['gflops']:.0f} | {row['ideal_speedup']:.2f} | {row['realised_speedup']:.2f} "
        f"| {row['realisation']:.2f}{by_cpu} |"
    )


def report(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    machine, rows = result["machine"], result["rows"]
    peaks = ", ".join(f"{value:.0f} GF/s on {threads} thread(s)" for threads, value in result["peak_gflops"].items())
    facts = (
        f"{machine.get('cpu')}, {machine.get('date')}, ONNX Runtime {machine.get('versions', {}).get('onnxruntime')}, "
        f"operators: {', '.join(sorted({row['operators'] for row in rows}))}. Peak of a matrix product: {peaks}."
    )
    table = "\n".join([HEAD, *(line(row) for row in rows)])
    return (
        f"# Realisation on a CPU, measured, masks forced\n\n{facts}\n\n{table}\n\n"
        f"## Where the time goes, 1 thread, batch 1\n\n{breakdown(rows)}\n"
    )


def words(text: str) -> list[str]:
    """Parse ``a,b``."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Parse ``1,2``."""
    return [int(part) for part in text.split(",")]


def rates(text: str) -> list[float]:
    """Parse ``1.0,0.5``."""
    return [float(part) for part in text.split(",")]


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=words, default=["laud_resnet50", "laud_resnet101"])
    parser.add_argument("--modes", type=words, default=["spatial", "channel", "layer", "both"])
    parser.add_argument("--granularities", type=words, default=["4-4-2-1", "8-4-7-1", "1-1-1-1"])
    parser.add_argument("--batches", type=numbers, default=[1, 8])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--rates", type=rates, default=[1.0, 0.75, 0.5, 0.25, 0.1])
    parser.add_argument("--native", default="auto")
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing per configuration")
    parser.add_argument("--output", default="cpu", help="file name in benchmarks/results, without ending")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the output file, measure the others")
    arguments = parser.parse_args()
    output = RESULTS / f"{arguments.output}.json"
    rows = json.loads(output.read_text())["rows"] if arguments.resume and output.exists() else []
    peaks = {str(threads): peak_gflops(threads) for threads in arguments.threads}
    for machine in measure(arguments, rows):
        result = {"kind": "measured", "masks": "forced", "machine": machine, "peak_gflops": peaks, "rows": rows}
        write_json(output, result)
        write_text(output.with_suffix(".md"), report(result))


if __name__ == "__main__":
    main()
