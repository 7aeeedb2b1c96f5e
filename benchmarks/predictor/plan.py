"""Is the plan that 'dyndeploy plan' chooses at least as fast as the best uniform choice? Measured on this CPU.

    python benchmarks/predictor/plan.py --calibration cpu.json

For every network and mode: the plan that is predicted to be fastest (granularity per stage, dense blocks), and the one
that ``plan --measure`` chooses, against the same granularity in all stages and the static network, at the same
activation rate, with forced masks. What ``--measure`` chooses was measured before, in sessions of its own. All take
turns in one process, one thread, CPU time of the calling thread; medians. The default 4-4-2-1 is among the choices.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from cpu import exclusively  # the benchmark beside this one

from dyndeploy import create_model
from dyndeploy.bundle import MaskInfo
from dyndeploy.files import write_json, write_text
from dyndeploy.graphs.forced import forced_masks
from dyndeploy.planning import (
    Plan,
    PlanSettings,
    choose_measured,
    measure_plans,
    plan_network,
    uniform_plans,
)
from dyndeploy.planning.measured import forced_graph
from dyndeploy.prediction.calibrated import CalibratedModel, load_calibration
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.machine import machine_facts

RESULTS = Path(__file__).parent.parent / "results"
UNIFORM = {"spatial": (1, 2, 4, 7), "channel": (1, 2, 4)}
DRAWS, ROUNDS = 3, 18


def graph(name: str, dense: Sequence[str] = (), **options: Any) -> tuple[onnx.ModelProto, tuple[MaskInfo, ...]]:
    """The exported network with its masks as inputs."""
    torch.manual_seed(0)
    network = create_model(name, **options).eval()
    network.run_dense(dense)  # type: ignore[operator]
    return forced_graph(network, (224, 224))


def choices(mode: str, plan: Plan, measured: Plan, uniform: Sequence[Plan]) -> dict[str, dict[str, Any]]:
    """What is compared, by label."""
    found: dict[str, dict[str, Any]] = {
        "plan": {**plan.options(), "dense": plan.dense},
        "measured": {**measured.options(), "dense": measured.dense},
    }
    for other in uniform:
        stages = "-".join(map(str, other.granularity if mode == "spatial" else other.channel_granularity))
        found["static" if set(other.mode) == {"static"} else stages] = other.options()
    return found if mode != "spatial" else found | {"4-4-2-1": {"mode": mode}}


def compare(name: str, mode: str, rate: float, calibration: Path, lock: Path | None) -> dict[str, Any]:
    """Measure the plan and the uniform choices in turn."""
    model = CalibratedModel(load_calibration(calibration))
    for warning in model.calibration.warnings():
        print(warning, file=sys.stderr)
    settings = PlanSettings(
        rate=rate, modes=(mode, "static"), granularities=UNIFORM["spatial"], channel_granularities=UNIFORM["channel"]
    )
    plan, _ = plan_network(name, {model.calibration.threads: model.price}, settings)
    uniform = uniform_plans(name, model.price, settings)
    with exclusively(lock):
        chosen = choose_measured(measure_plans([plan, *uniform]))
    sessions, calls = [], {}
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    for label, options in choices(mode, plan, chosen, uniform).items():
        onnx_model, masks = graph(name, **options)
        session = OnnxRuntimeSession(onnx_model, in_order=True)
        sessions.append(session)
        calls[label] = [
            session.bind(
                {"input": image, **{f"forced/{n}": bits for n, bits in forced_masks(masks, rate, seed=draw).items()}},
                ["logits"],
            )
            for draw in range(DRAWS if masks else 1)
        ]
    spent: dict[str, list[float]] = {label: [] for label in calls}
    with exclusively(lock):
        for number in range(ROUNDS + 1):
            for label, runs in calls.items():
                runs[number % len(runs)]()
                begin = time.thread_time_ns()
                runs[number % len(runs)]()
                if number:
                    spent[label].append((time.thread_time_ns() - begin) / 1e6)
    for session in sessions:
        session.close()
    measured = {label: float(np.median(times)) for label, times in spent.items()}
    spread = {label: float(np.subtract(*np.percentile(times, [75, 25]))) for label, times in spent.items()}
    best = min((label for label in measured if label not in ("plan", "measured")), key=measured.__getitem__)
    ratios = {label: float(np.median(np.array(spent[label]) / spent[best])) for label in ("plan", "measured")}
    return {
        "network": name, "mode": mode, "rate": rate, "plan": plan.to_json(), "measured_ms": measured,
        "spread_ms": spread, "best_uniform": best, "plan_over_best": ratios["plan"],
        "chosen_by_measuring": chosen.to_json(),
        "measured_over_best": ratios["measured"],
    }  # fmt: skip


def label(plan: dict[str, Any], mode: str) -> str:
    """Granularities by stage, s where it is static, and dense blocks."""
    key = "granularity" if mode == "spatial" else "channel_granularity"
    stages = "-".join("s" if m == "static" else str(g) for m, g in zip(plan["mode"], plan[key], strict=True))
    return stages + (f", dense {', '.join(plan['dense'])}" if plan["dense"] else "")


def report(results: Sequence[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Results as Markdown."""
    lines = [
        f"# Plans, measured\n\n{machine['cpu']}, {machine['date']}, 1 thread, batch 1, masks forced. CPU time, "
        f"medians of {ROUNDS} rounds in turn.\n",
        "| network | mode | rate | plan | plan predicted ms | plan ms | best uniform | best uniform ms | plan / best "
        "| chosen by --measure | its ms | its ms / best | static ms |",
        "|---" * 13 + "|",
    ]
    for row in results:
        plan, ms = row["plan"], row["measured_ms"]
        lines.append(
            f"| {row['network']} | {row['mode']} | {row['rate']} | {label(plan, row['mode'])} "
            f"| {plan['latency_ms']:.2f} | {ms['plan']:.2f} | {row['best_uniform']} | {ms[row['best_uniform']]:.2f} "
            f"| {row['plan_over_best']:.3f} | {label(row['chosen_by_measuring'], row['mode'])} | {ms['measured']:.2f} "
            f"| {row['measured_over_best']:.3f} | {ms['static']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["laud_resnet50"])
    parser.add_argument("--modes", nargs="+", default=["spatial", "channel"])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--lock", type=Path, help="file that others lock for their timings on this machine")
    arguments = parser.parse_args()
    results = []
    for name in arguments.networks:
        for mode in arguments.modes:
            for rate in arguments.rates:
                results.append(compare(name, mode, rate, arguments.calibration, arguments.lock))
                machine = machine_facts()
                write_json(RESULTS / "plan-cpu.json", {"machine": machine, "rows": results})
                write_text(RESULTS / "plan-cpu.md", report(results, machine))
                print(report(results, machine).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
