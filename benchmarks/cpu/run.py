"""Realisation on this CPU: every contestant against the static FP32 twin in ONNX Runtime, in turn in one process.

    python benchmarks/cpu/run.py --demo demo                    # all tables; takes hours
    python benchmarks/cpu/run.py --demo demo --repeats 8 --batch-rates 1.0,0.5,0.25
    python benchmarks/cpu/run.py --networks laud_resnet50 --modes spatial --batches 1 --threads 1 --small ""
    python benchmarks/cpu/run.py --networks laud_regnety_400mf,laud_regnety_1_6gf --options se=active \
        --granularities 4-4-2-1 --threads 1,2 --small "" --output cpu-regnety
    python benchmarks/cpu/run.py --contestants best,int8,ort-int8,openvino-int8 --rates 1.0,0.85,0.75,0.5,0.25 \
        --granularities 4-4-2-1 --threads 1,2 --batch-rates 1.0,0.5 --small "" --no-breakdown --output cpu-int8

Contestants are our operators with the machine's best instruction set, with its others, in BF16, in INT8, as function
bodies, and static networks in OpenVINO (pip install openvino) and in INT8. Weights are random and masks are forced:
latency depends on neither. Results go to benchmarks/results/ as JSON and as Markdown, after every configuration.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import small
import tables
import torch
from contestants import BEST, INT8, Dynamic, Static, dynamics, library_of, statics
from onnx import helper, numpy_helper
from timing import time_blocks, time_bundle

from dyndeploy import Bundle, ExportSettings, create_model, export_model, verify_bundle
from dyndeploy.files import write_json, write_text
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.machine import machine_facts
from dyndeploy.runtimes.native import ISA_VARIABLE

RESULTS = Path(__file__).parent.parent / "results"
CONFIGURATION = ("network", "mode", "granularity", "batch", "threads")
SCHEMA = 2
ENVIRONMENT = (ISA_VARIABLE, "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
"""Variables that change what is measured."""


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


def export(
    network: str, mode: str, granularity: str, batch: int, folder: Path, size: tuple[int, int] | None, options: dict
) -> tuple[Bundle, float | None, float | None]:
    """Export and verify; returns the bundle and both times in seconds (None: the bundle was there already)."""
    if folder.exists():
        return Bundle.open(folder), None, None
    torch.manual_seed(0)
    sides = tuple(int(part) for part in granularity.split("-"))
    model = create_model(network, mode=mode, granularity=sides, **options)
    start = time.perf_counter()
    bundle = export_model(model, folder, ExportSettings(static=True, batch=batch, input_size=size))
    exported = time.perf_counter()
    assert verify_bundle(bundle).passed, f"{folder} does not verify"
    return bundle, exported - start, time.perf_counter() - exported


class Benchmark:
    """What was asked for, who takes part, and the results so far."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments, self.scratch = arguments, scratch
        self.dynamics, left_out = dynamics(arguments.native, arguments.contestants)
        self.statics, more = statics(arguments.contestants)
        library = library_of(arguments.native)
        if arguments.demo is None:
            more.append("the demo's network at its images' own masks: give --demo FOLDER")
        self.result: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "measured",
            "masks": "forced",
            "machine": machine_facts(),
            "versions": {"openvino": _version("openvino")},
            "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            "instruction_sets": [] if library is None else list(library.instruction_sets()),
            "best": None if library is None else library.instruction_set(),
            "granularities": arguments.granularities,
            "options": arguments.options,
            "left_out": left_out + more,
            "peak_gflops": {},
            "rows": [],
            "blocks": [],
            "small": {"rows": [], "costs": []},
        }
        self.output = RESULTS / f"{arguments.output}.json"
        if arguments.resume and self.output.exists():
            self._resume(json.loads(self.output.read_text(encoding="utf-8")))
        for text in self.result["left_out"]:
            print(f"left out: {text}", flush=True)

    def _resume(self, before: dict[str, Any]) -> None:
        same = before.get("machine", {}).get("cpu") == self.result["machine"]["cpu"]
        if before.get("schema") != SCHEMA or not same or before.get("best") != self.result["best"]:
            raise SystemExit(
                f"{self.output} was written by another version, on another processor or with another instruction set: "
                "give another --output, or leave out --resume."
            )
        for key in ("rows", "blocks", "small"):
            self.result[key] = before[key]

    def write(self) -> None:
        """Both files."""
        self.result["machine"]["date"] = machine_facts()["date"]
        write_json(self.output, self.result)
        write_text(self.output.with_suffix(".md"), tables.page(self.result))

    def run(self) -> None:
        """Measure what is not there yet."""
        arguments = self.arguments
        self.result["peak_gflops"] = {str(threads): peak_gflops(threads) for threads in arguments.threads}
        if "costs" in arguments.small and not self.result["small"]["costs"]:
            for threads in arguments.threads:
                floats = [contestant for contestant in self.dynamics if contestant.precision != INT8]
                self.result["small"]["costs"] += small.operator_costs(floats, threads)
            print(small.costs_table(self.result["small"]["costs"]), flush=True)
            self.write()
        for _ in itertools.chain(self._small(), self._large()):
            self.write()

    def _large(self) -> Iterator[None]:
        arguments, rows = self.arguments, self.result["rows"]
        done = {tuple(row[key] for key in CONFIGURATION) for row in rows}
        first = arguments.granularities[0]
        for network, mode, granularity, batch in itertools.product(
            arguments.networks, arguments.modes, arguments.granularities, arguments.batches
        ):
            if granularity != first and (mode != "spatial" or batch != arguments.batches[0]):
                continue  # Other modes have no patches, or differ as spatial mode does.
            left = [n for n in arguments.threads if (network, mode, granularity, batch, n) not in done]
            if not left:
                continue
            rates = arguments.rates if batch == arguments.batches[0] else arguments.batch_rates or arguments.rates
            with tempfile.TemporaryDirectory() as scratch:
                name = f"{network}-{mode}-{granularity}-{batch}"
                folder = (arguments.bundles or Path(scratch)) / name
                bundle, export_s, verify_s = export(network, mode, granularity, batch, folder, None, arguments.options)
                configuration = dict(zip(CONFIGURATION, (network, mode, granularity, batch), strict=False))
                for threads in left:
                    facts = {**configuration, "threads": threads, "export_s": export_s, "verify_s": verify_s}
                    # Other granularities compare patches, not contestants.
                    who = self.dynamics if granularity == first else self.dynamics[:1]
                    rows += self._time(bundle, facts, who, self.statics if granularity == first else [], rates)
                    yield
                best = any(contestant.name == BEST for contestant in self.dynamics)
                if best and batch == 1 and granularity == first and arguments.breakdown:
                    found = time_blocks(bundle, rates, arguments.native)
                    self.result["blocks"] += [{**configuration, "threads": 1, **item} for item in found]
                    yield

    def _small(self) -> Iterator[None]:
        arguments, rows = self.arguments, self.result["small"]["rows"]
        done = {tuple(row[key] for key in CONFIGURATION) for row in rows}

        def left(network: str, mode: str, granularity: str) -> list[int]:
            return [n for n in arguments.threads if (network, mode, granularity, 1, n) not in done]

        if "networks" in arguments.small:
            for entry, mode in itertools.product(small.small_networks(), arguments.modes):
                label, sides = f"{entry.label}, {entry.size[0]}x{entry.size[1]}", "4-4-2-1"
                if not left(label, mode, sides):
                    continue
                with tempfile.TemporaryDirectory() as scratch:
                    bundle, _, _ = export(entry.name, mode, sides, 1, Path(scratch) / "b", entry.size, entry.options)
                    for threads in left(label, mode, sides):
                        facts = dict(zip(CONFIGURATION, (label, mode, sides, 1, threads), strict=True))
                        rows += self._time(bundle, facts, self.dynamics, self.statics, arguments.rates)
                        yield
        if arguments.demo is None:
            return
        for threads in left(small.DEMO, "spatial", "4-4-2-1"):
            bundle, images = small.demo_bundle(arguments.demo)
            facts = dict(zip(CONFIGURATION, (small.DEMO, "spatial", "4-4-2-1", 1, threads), strict=True))
            rows += self._time(bundle, facts, self.dynamics, self.statics, arguments.rates, images)
            yield

    def _time(
        self,
        bundle: Bundle,
        facts: dict[str, Any],
        who: list[Dynamic],
        elsewhere: list[Static],
        rates: list[float],
        data: Path | None = None,
    ) -> list[dict[str, Any]]:
        found = time_bundle(
            bundle, who, elsewhere, threads=facts["threads"], rates=rates, seconds=self.arguments.seconds,
            repeats=self.arguments.repeats, quantised=self.scratch, data=data,
        )  # fmt: skip
        rows = [{**facts, **row} for row in found]
        print("\n".join(map(tables.line, rows)), flush=True)
        return rows


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def words(text: str) -> list[str]:
    """Parse ``a,b``."""
    return [word for word in text.split(",") if word]


def pairs(text: str) -> dict[str, str]:
    """Parse ``a=x,b=y``."""
    return dict(word.split("=", 1) for word in words(text))


def numbers(text: str) -> list[int]:
    """Parse ``1,2``."""
    return [int(part) for part in words(text)]


def rates(text: str) -> list[float]:
    """Parse ``1.0,0.5``."""
    return [float(part) for part in words(text)]


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=words, default=["laud_resnet50", "laud_resnet101"])
    parser.add_argument("--options", type=pairs, default={}, help="of the networks, NAME=TEXT,...")
    parser.add_argument("--modes", type=words, default=["spatial", "channel", "layer", "both"])
    parser.add_argument("--granularities", type=words, default=["4-4-2-1", "8-4-7-1", "1-1-1-1"])
    parser.add_argument("--batches", type=numbers, default=[1, 8])
    parser.add_argument("--threads", type=numbers, default=[1, 2, 4])
    parser.add_argument("--rates", type=rates, default=[1.0, 0.75, 0.5, 0.25, 0.1])
    parser.add_argument("--batch-rates", type=rates, help="of every batch size but the first (default: the same)")
    parser.add_argument("--contestants", type=words, help="names as in the tables (default: all)")
    parser.add_argument("--small", type=words, default=["networks", "costs"], help="of networks,costs")
    parser.add_argument("--demo", type=Path, help="folder of 'dyndeploy demo', which is run if it is not there")
    parser.add_argument("--breakdown", action=argparse.BooleanOptionalAction, default=True, help="times by block")
    parser.add_argument("--native", default="auto")
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing per configuration, 12 rounds at least")
    parser.add_argument("--repeats", type=int, help="rounds per configuration, in the place of --seconds")
    parser.add_argument("--bundles", type=Path, help="folder of bundles and their INT8 copies, kept and used again")
    parser.add_argument("--output", default="cpu", help="file name in benchmarks/results, without ending")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the output file, measure the others")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        Benchmark(arguments, arguments.bundles or Path(scratch)).run()


if __name__ == "__main__":
    main()
