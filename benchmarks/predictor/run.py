"""Speed of the latency predictors.

Kernels: ResNet-101 in spatial mode with a rate of its own for each block: one configuration (median of many; the first
in a process builds tables and is given apart) and a sweep of 1,000 configurations of all modes. CPU time of one thread.

Reference: one model and device, static plus three modes.

Run from the repository: ``python benchmarks/predictor/run.py [--json FILE]``.

- fresh process: the first prediction of a new Python process, imports not counted (they are printed apart);
- cold: a new predictor object in a warm process, nothing remembered: wall time (median, fastest) and CPU time
  (median) over the repeats. On a machine that is busy otherwise only the CPU time is meaningful;
- warm: the same predictor asked again.

The reference column is the wall time that the LAUDNet example script needs for the same work (its own computation,
imports left out; 2 shared vCPU), measured when its values were recorded.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

from dyndeploy.files import write_json
from dyndeploy.prediction import Configuration, Estimator
from dyndeploy.prediction.laudnet import Predictor

MODES = ("static", "spatial", "layer", "channel")
REFERENCE_S = {"resnet50": 1.11, "resnet101": 1.14, "regnety004": 1.30, "regnety008": 1.36}
DEVICES = ("v100", "rtx3090", "rtx3060", "tx2", "nano")

_FRESH = """
import time
start = time.perf_counter()
from dyndeploy.prediction.laudnet import Predictor
imported, cpu_imported = time.perf_counter(), time.process_time()
predictor = Predictor({device!r}, compat={compat!r})
for mode in {modes!r}:
    predictor.predict_network({model!r}, mode=mode, granularity=1, channel_granularity=1, rate=0.5)
print(imported - start, time.perf_counter() - imported, time.process_time() - cpu_imported)
"""


KERNEL_DEVICES = ("tx2", "h100")
_MODES = ("spatial", "channel", "layer", "both")


def measure_kernels(device: str) -> dict[str, float]:
    """Return CPU milliseconds of the first and of a later configuration, and CPU seconds of a sweep of 1,000."""
    generator = np.random.default_rng(0)
    estimator = Estimator(device)

    def configuration(mode: str) -> Configuration:
        return Configuration(mode, (4, 4, 2, 1), 2, list(generator.random(33)))

    times = []
    for _ in range(31):
        chosen = configuration("spatial")
        start = time.process_time()
        estimator.predict("laud_resnet101", chosen)
        times.append(1e3 * (time.process_time() - start))
    chosen_ones = [configuration(_MODES[index % 4]) for index in range(1000)]
    start = time.process_time()
    estimator.sweep("laud_resnet101", chosen_ones)
    return {
        "first_ms": times[0],
        "configuration_ms": statistics.median(times[1:]),
        "sweep_1000_s": time.process_time() - start,
    }


def work(predictor: Predictor, model: str) -> None:
    """Do what the reference's example script does for one model and device."""
    for mode in MODES:
        predictor.predict_network(model, mode=mode, granularity=1, channel_granularity=1, rate=0.5)


def measure(model: str, device: str, compat: str | None, repeats: int) -> dict[str, float]:
    """Return milliseconds: cold (wall median and fastest, CPU median) and warm (wall median)."""
    cold, cpu, warm = [], [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        predictor = Predictor(device, compat=compat)
        work(predictor, model)
        cpu.append(1e3 * (time.process_time() - cpu_start))
        cold.append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
        work(predictor, model)
        warm.append(1e3 * (time.perf_counter() - start))
    return {
        "cold_ms": statistics.median(cold),
        "cold_min_ms": min(cold),
        "cold_cpu_ms": statistics.median(cpu),
        "warm_ms": statistics.median(warm),
    }


def fresh_process(model: str, device: str, compat: str | None, repeats: int = 3) -> tuple[float, ...]:
    """Return milliseconds (medians) in a new process: of the imports, of the first prediction, of its CPU time."""
    code = _FRESH.format(model=model, device=device, compat=compat, modes=MODES)
    runs = [
        [1e3 * float(value) for value in subprocess.check_output([sys.executable, "-c", code], text=True).split()]
        for _ in range(repeats)
    ]
    return tuple(statistics.median(column) for column in zip(*runs, strict=True))


def main() -> None:
    """Print the table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--repeats", type=int, default=20, help="cold runs per row")
    options = parser.parse_args()
    kernels = {device: measure_kernels(device) for device in KERNEL_DEVICES}
    for device, row in kernels.items():
        print(
            f"kernels, ResNet-101, {device}: configuration {row['configuration_ms']:.2f} ms "
            f"(first {row['first_ms']:.1f}), sweep of 1,000 {row['sweep_1000_s']:.2f} s"
        )
    results = []
    print(f"{platform.machine()}, Python {platform.python_version()}; milliseconds for {', '.join(MODES)} together")
    columns = ("cold", "fastest", "CPU", "warm", "reference", "speed-up", "by CPU")
    print(f"{'reading':9}{'model':12}{'device':9}" + "".join(f"{column:>10}" for column in columns))
    for compat in ("laudnet", None):
        for model, reference in REFERENCE_S.items():
            for device in DEVICES:
                row = measure(model, device, compat, options.repeats)
                results.append({"compat": compat, "model": model, "device": device, **row, "reference_s": reference})
                figures = (*row.values(), 1e3 * reference)
                speed_ups = (1e3 * reference / row[key] for key in ("cold_ms", "cold_cpu_ms"))
                numbers = "".join(f"{figure:10.2f}" for figure in figures)
                print(
                    f"{compat or 'default':9}{model:12}{device:9}{numbers}" + "".join(f"{x:9.0f}x" for x in speed_ups)
                )
    fresh = {}
    for model, reference in REFERENCE_S.items():
        imports, first, cpu = fresh_process(model, "v100", "laudnet")
        fresh[model] = {"imports_ms": imports, "first_ms": first, "first_cpu_ms": cpu}
        print(
            f"fresh process, {model}, v100, laudnet: imports {imports:.0f} ms, prediction {first:.1f} ms "
            f"({1e3 * reference / first:.0f}x), CPU {cpu:.1f} ms ({1e3 * reference / cpu:.0f}x)"
        )
    if options.json:
        write_json(
            options.json, {"machine": platform.platform(), "kernels": kernels, "rows": results, "fresh_process": fresh}
        )


if __name__ == "__main__":
    main()
