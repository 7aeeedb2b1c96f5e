"""Throughput through Triton's Python backend over that of the runtime called directly, and a held load.

Run from the repository, with the venv of ``.ci/triton``:

    DYNDEPLOY_TRITON=VENV DYNDEPLOY_RUNTIME=libdyndeploy.so python benchmarks/serving/tritonserver.py BUNDLE...
    ... benchmarks/serving/tritonserver.py BUNDLE --hold 30

Both run requests of 8 images (RGB bytes, resized by the runtime) with one thread. They take turns, so that other work
on the machine meets both; besides wall time the CPU time of the process that computes is compared, which leaves that
work out. ``--hold`` sends single images at random times at 80 % of the capacity that was measured just before. Writes
``benchmarks/results/triton.json`` and ``triton.md``; a run adds to what earlier ones found of other bundles.
"""

from __future__ import annotations

import argparse
import functools
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from dyndeploy import Bundle  # noqa: E402
from dyndeploy.files import read_json, write_json, write_text  # noqa: E402
from dyndeploy.runtimes.machine import machine_facts  # noqa: E402
from dyndeploy.serving import ServingOptions, write_repository  # noqa: E402
from tests.plugins.device_runtime import binding  # noqa: E402
from tests.serving.client import Client, ServerError  # noqa: E402
from tests.serving.server import TritonServer, triton_venv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "triton.json"
BATCH, CLIENTS = 8, 2
"""Images of a request; clients that send requests, so that one is always waiting."""
LOAD = 0.8
SENDERS = 64
MODEL = "model"


def main() -> int:
    """Measure, and write what was found; 1 where a held load failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--turns", type=int, default=8, help="0: keep what was found before")
    parser.add_argument("--requests", type=int, default=4, help="of each client and turn")
    parser.add_argument("--hold", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--restart", action="store_true", help="kill the server, and time until it is ready again")
    options = parser.parse_args()
    known = read_json(RESULTS) if RESULTS.exists() else {}
    ok = True
    for path in options.bundles:
        bundle = Bundle.open(path)
        with served(bundle) as server:
            network = bundle.manifest.network
            found = known.setdefault(f"{network.name} {network.mode}, batch {bundle.manifest.batch}", {})
            if options.turns:
                found["throughput"] = throughput(bundle, server, options.turns, options.requests)
            if options.hold:
                found["hold"] = hold(bundle, server, found["throughput"]["per_second"], 60 * options.hold)
                ok &= found["hold"]["passed"]
            if options.restart:
                found["restart"] = restart(server)
        write_json(RESULTS, known)
        write_text(RESULTS.with_suffix(".md"), page(known))
    return int(not ok)


@contextmanager
def served(bundle: Bundle) -> Iterator[TritonServer]:
    """A server of one bundle, one instance, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        options = ServingOptions(library=library())
        write_repository({MODEL: bundle.path}, Path(folder) / "repository", options)
        with TritonServer(triton_venv(), Path(folder) / "repository", Path(folder), f"--load-model={MODEL}") as server:
            yield server


def library() -> Path:
    """``libdyndeploy.so``, for both."""
    return Path(os.environ["DYNDEPLOY_RUNTIME"])


def pictures(bundle: Bundle, count: int) -> np.ndarray:
    """Noise of the size of the input, or of a detector's first bucket."""
    size = bundle.manifest.input_size or bundle.manifest.detector().buckets[0].size
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def throughput(bundle: Bundle, server: TritonServer, turns: int, requests: int) -> dict[str, Any]:
    """Images a second of both, in turns."""
    images = pictures(bundle, BATCH)
    computing = compute_process(server)
    session = binding().open_bundle(bundle.path, library=library())
    run = session.detect_all if "detection" in session.info else session.classify_all
    outputs = [{"name": "scores" if "detection" in session.info else "label", "parameters": {"binary_data": True}}]
    clients = [Client(server.http, 600) for _ in range(CLIENTS)]

    def direct() -> None:
        for _ in range(CLIENTS * requests):
            run(list(images))

    def through() -> None:
        def ask(client: Client) -> None:
            for _ in range(requests):
                client.infer(MODEL, {"IMAGE": images}, outputs)

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(ask, clients))

    of_stub = functools.partial(cpu_seconds, computing)
    rows: dict[str, list[tuple[float, float]]] = {"direct": [], "triton": []}
    for function in (direct, through):
        function()  # warm
    for turn in range(turns):
        for name, function, cpu in [("direct", direct, time.process_time), ("triton", through, of_stub)][
            :: 1 - turn % 2 * 2
        ]:
            rows[name].append(timed(function, cpu))
    number = CLIENTS * requests * BATCH
    ratios = [one[0] / other[0] for one, other in zip(rows["direct"], rows["triton"], strict=True)]
    cpu = {name: float(np.median([row[1] for row in values])) / number for name, values in rows.items()}
    wall = {name: float(np.median([row[0] for row in values])) / number for name, values in rows.items()}
    return {
        "machine": machine_facts(),
        "batch": bundle.manifest.batch,
        "turns": turns,
        "images_per_turn": number,
        "ratio": float(np.median(ratios)),
        "ratio_spread": [float(value) for value in np.percentile(ratios, [25, 75])],
        "ratio_cpu": cpu["direct"] / cpu["triton"],
        "per_second": 1 / wall["triton"],
        "direct_per_second": 1 / wall["direct"],
        "cpu_ms": {name: 1000 * value for name, value in cpu.items()},
    }


def timed(function: Callable[[], None], cpu: Callable[[], float]) -> tuple[float, float]:
    """Seconds by the wall and of the CPU."""
    since, used = time.perf_counter(), cpu()
    function()
    return time.perf_counter() - since, cpu() - used


def compute_process(server: TritonServer) -> psutil.Process:
    """The process of the model's only instance."""
    assert server.process is not None
    children = psutil.Process(server.process.pid).children(recursive=True)
    return next(child for child in children if "triton_python_backend_stub" in child.name() + " ".join(child.cmdline()))


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time that a process used, over all its threads."""
    times = process.cpu_times()
    return float(times.user + times.system)


def hold(bundle: Bundle, server: TritonServer, capacity: float, seconds: float) -> dict[str, Any]:
    """Send single images at random times at a share of the capacity."""
    assert server.process is not None
    image = pictures(bundle, 1)
    rate = LOAD * capacity
    processes = [psutil.Process(server.process.pid), compute_process(server)]
    arrivals: queue.Queue[float | None] = queue.Queue()
    latencies: list[float] = []
    errors: list[str] = []

    def send() -> None:
        client = Client(server.http, 600)
        while (arrived := arrivals.get()) is not None:
            try:
                client.infer(MODEL, {"IMAGE": image})
                latencies.append(time.perf_counter() - arrived)
            except (ServerError, OSError) as error:
                errors.append(str(error))
        client.close()

    senders = [threading.Thread(target=send) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    generator, memory = np.random.default_rng(1), []
    since = now = time.perf_counter()
    sampled = since
    while now - since < seconds:
        now += generator.exponential(1 / rate)
        time.sleep(max(0.0, now - time.perf_counter()))
        arrivals.put(now)
        if now - sampled > seconds / 100:
            sampled = now
            memory.append(sum(process.memory_info().rss for process in processes))
    for _ in senders:
        arrivals.put(None)
    for sender in senders:
        sender.join()
    # The first fifth fills caches and pools.
    half = memory[len(memory) // 5 :]
    early, late = (float(np.mean(part)) for part in np.array_split(half, 2))
    p50, p95, p99 = (1000 * float(value) for value in np.percentile(latencies, [50, 95, 99]))
    growth = late / early - 1
    return {
        "machine": machine_facts(),
        "minutes": seconds / 60,
        "per_second": rate,
        "images": len(latencies),
        "errors": errors[:10],
        "error_count": len(errors),
        "memory_mib": [value / 2**20 for value in memory],
        "memory_growth": growth,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "passed": not errors and growth <= 0.01 and p99 <= 5 * p50,
    }


def restart(server: TritonServer) -> dict[str, Any]:
    """Seconds until the server is ready: as it first started, and after a kill."""
    first = server.start_seconds
    server.kill()
    return {"machine": machine_facts(), "first_seconds": first, "again_seconds": server.start()}


def page(known: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Bundles through Triton's Python backend",
        "",
        "tritonserver 2.51 of nvidia-pytriton 0.7.0 on the CPU, HTTP over loopback, one instance of one thread; the "
        "client runs on the same machine. `python benchmarks/serving/tritonserver.py`, all measured.",
        "",
        f"## Throughput, requests of {BATCH} images",
        "",
        "Triton's over that of the runtime called directly: by the wall (median of the turns, 25th to 75th percentile) "
        "and by the CPU time of the process that computes.",
        "",
        "| network | images/s direct | through Triton | ratio | by CPU time | machine |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in known.items():
        row = found["throughput"]
        low, high = row["ratio_spread"]
        both = f"{row['direct_per_second']:.1f} | {row['per_second']:.1f}"
        lines.append(
            f"| {name} | {both} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['ratio_cpu']:.2f} | {where(row['machine'])} |"
        )
    held = {name: found["hold"] for name, found in known.items() if "hold" in found}
    if held:
        lines += [
            "",
            f"## Held load: single images at random times, {LOAD:.0%} of the capacity just before",
            "",
            "| network | minutes | images/s | images | errors | memory growth | p50, p95, p99 ms | passed | machine |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {row['minutes']:g} | {row['per_second']:.1f} | {row['images']} | {row['error_count']} | "
            f"{row['memory_growth']:+.2%} | {row['p50_ms']:.0f}, {row['p95_ms']:.0f}, {row['p99_ms']:.0f} | "
            f"{'yes' if row['passed'] else 'NO'} | {where(row['machine'])} |"
            for name, row in held.items()
        ]
    for name, found in known.items():
        if "restart" in found:
            row = found["restart"]
            lines += [
                "",
                f"Killed (-9) while it served {name}, the server was ready again after {row['again_seconds']:.1f} s; "
                f"its first start took {row['first_seconds']:.1f} s ({where(row['machine'])}).",
            ]
    return "\n".join(lines) + "\n"


def where(machine: dict[str, Any]) -> str:
    """The processor, how busy it was, and when."""
    return f"{machine['cpu']}, {machine['load_average'][0]:.1f}, {machine['date'][:10]}"


if __name__ == "__main__":
    sys.exit(main())
