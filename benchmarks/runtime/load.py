"""Held load on the C++ runtime: mixed requests from four threads in two sessions, one with masks and one with exits.

Run from the repository: ``python benchmarks/runtime/load.py --minutes 20``. Builds the runtime, exports both networks
with random weights, and writes ``benchmarks/results/runtime-load.json`` and ``runtime-load.md``.

Requests are single images and batches of several sizes, as RGB bytes, as JPEG and PNG files and as tensors. Every
answer must equal, to the bit, what the same request gave when it ran alone; no request may fail; none may take longer
than five minutes (then the stacks of all threads are printed); and the resident memory must not grow: the slope of a
line through it, of means over equal parts of the time, must not be above 0 by more than its error. Ends with code 1
otherwise.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from run import build

from dyndeploy import Bundle, ExportSettings, create_model, export_model
from dyndeploy.files import write_json, write_text
from dyndeploy.runtimes.machine import machine_facts

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BINDING = ROOT / "plugins" / "runtime" / "python" / "dyndeploy_runtime.py"
THREADS = 4
LONGEST = 300.0
"""Seconds after which a request counts as one that never ends. At low priority on a busy computer one has waited for a
minute."""
SAMPLE = 0.5
WARM = 0.2
"""Share of the time that is left out of the slope: every thread makes its memory first."""
PARTS = 24
"""Means that the line is laid through: neighbouring samples are no independent ones."""
STUDENT = 2.07
"""Quantile of Student's t for 95 % on both sides, for ``PARTS - 2`` degrees of freedom."""

Request = Callable[[], list[Any]]


def binding() -> Any:
    """The runtime's Python file."""
    spec = importlib.util.spec_from_file_location("dyndeploy_runtime", BINDING)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bundles(folder: Path) -> list[Path]:
    """The network of ``dyndeploy demo`` (masks) and a small one with four exits, weights at random."""
    made = []
    for name, options in (("laud_resnet14_small", {"mode": "spatial"}), ("resnet10_small_perceiver_t32", {})):
        made.append(folder / name)
        if not made[-1].exists():
            torch.manual_seed(0)
            export_model(create_model(name, **options), made[-1], ExportSettings())
    return made


def pictures(folder: Path) -> tuple[list[np.ndarray], list[Path]]:
    """Images of noise of several sizes and contrasts, as RGB bytes; and the same as files."""
    generator = np.random.default_rng(0)
    images, paths = [], []
    for index in range(12):
        shape = (40 + 37 * index, 300 - 19 * index, 3)
        images.append(generator.normal(128, 8 * (index + 1), shape).clip(0, 255).astype(np.uint8))
        paths.append(folder / f"picture{index}.{('png', 'jpg')[index % 2]}")
        Image.fromarray(images[-1]).save(paths[-1])
    return images, paths


def mixed_thresholds(module: Any, bundle: Path, library: Path, images: list[np.ndarray]) -> list[float]:
    """Thresholds at which images leave at every exit: each the median confidence of the images that come to it."""
    exits = [stage.exit for stage in Bundle.open(bundle).exits.stages]
    chosen: list[float] = []
    for index, exit in enumerate(exits[:-1]):
        tried = [*chosen, -1.0, *[2.0] * (len(exits) - 2 - index)]
        with module.open_bundle(bundle, library=library, thresholds=tried) as session:
            found = [session.classify(image) for image in images]
        chosen.append(float(np.median([result.confidence for result in found if result.exit == exit])))
    return chosen


def requests_of(session: Any, images: list[np.ndarray], paths: list[Path]) -> dict[str, list[Request]]:
    """Requests to a session by kind."""

    def classified(given: list[Any]) -> Request:
        def call() -> list[Any]:
            found = session.classify_all(given)
            return [part for one in found for part in (one.logits, one.confidence, one.exit, *one.rates.values())]

        return call

    def computed(given: list[np.ndarray]) -> Request:
        name = session.info["inputs"][0]["name"]
        tensor = np.stack([session.preprocess(image) for image in given])
        return lambda: list(session.run({name: tensor}).values())

    batches = [images[start : start + size] for start, size in ((0, 2), (2, 3), (5, 7), (0, 12))]
    made = {
        "single image": [classified([image]) for image in images],
        "batch of images": [classified(batch) for batch in batches],
        "file": [classified([path]) for path in paths],
        "batch of files": [classified(paths[:5])],
        "tensor": [computed([image]) for image in images[:4]],
    }
    if session.info["exits"]:  # The other network takes one image at a time.
        made["batch of tensors"] = [computed(batch) for batch in batches]
    return made


def same(one: list[Any], other: list[Any]) -> bool:
    """Whether two answers are equal to the bit."""
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def warmed(cases: list[tuple[int, str, Request]]) -> None:
    """Send each request from all threads at once, so that there is memory for as many of any size.

    Left to chance, requests of the largest size meet late on a slow computer: memory of theirs looks like a leak.
    """
    barrier = threading.Barrier(THREADS)

    def work() -> None:
        for _, _, call in cases:
            barrier.wait(LONGEST)
            call()

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Load:
    """Threads that send requests until the time is over."""

    def __init__(self, cases: list[tuple[int, str, Request]], seconds: float) -> None:
        """Answer each case alone, which is what it is compared with later; then start the threads."""
        self.cases = [(session, kind, call, call()) for session, kind, call in cases]
        self.counts = dict.fromkeys(sorted({f"{session} {kind}" for session, kind, _ in cases}), 0)
        self.wrong: list[str] = []
        self.errors: list[str] = []
        self.together = [0, 0]
        self.most_together = [0, 0]
        self.slowest = 0.0
        self.began = [time.monotonic()] * THREADS
        self.lock = threading.Lock()
        self.end = time.monotonic() + seconds
        self.threads = [threading.Thread(target=self._work, args=(index,), daemon=True) for index in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def _work(self, index: int) -> None:
        chance = random.Random(index)
        while time.monotonic() < self.end:
            session, kind, call, expected = chance.choice(self.cases)
            with self.lock:
                self.began[index] = time.monotonic()
                self.together[session] += 1
                self.most_together[session] = max(self.most_together[session], self.together[session])
            try:
                right, error = same(call(), expected), None
            except Exception as caught:
                right, error = False, f"{session} {kind}: {type(caught).__name__}: {caught}"
            with self.lock:
                self.together[session] -= 1
                self.slowest = max(self.slowest, time.monotonic() - self.began[index])
                self.counts[f"{session} {kind}"] += 1
                if error is not None:
                    self.errors.append(error)
                elif not right:
                    self.wrong.append(f"{session} {kind}")

    def alive(self) -> bool:
        """Whether a thread still runs."""
        return any(thread.is_alive() for thread in self.threads)

    def hangs(self) -> bool:
        """Whether a request of a living thread takes longer than any should."""
        now = time.monotonic()
        return any(
            thread.is_alive() and now - began > LONGEST for thread, began in zip(self.threads, self.began, strict=True)
        )


def slope(seconds: np.ndarray, memory: np.ndarray) -> tuple[float, float]:
    """A line by least squares through means of equal parts: bytes a minute, and half of its 95 % interval."""
    x = np.array([part.mean() for part in np.array_split(seconds / 60, PARTS)])
    y = np.array([part.mean() for part in np.array_split(memory, PARTS)])
    spread = ((x - x.mean()) ** 2).sum()
    rise = ((x - x.mean()) * (y - y.mean())).sum() / spread
    rest = y - y.mean() - rise * (x - x.mean())
    return float(rise), float(STUDENT * np.sqrt((rest**2).sum() / (PARTS - 2) / spread))


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine, counts = result["machine"], result["requests"]
    where = f"{machine['cpu']} ({machine['usable_cores']} processors, load {machine['load_average'][0]:.1f})"
    lines = [
        "# Held load on the C++ runtime",
        "",
        f"Measured on {where}, {result['minutes']:g} minutes on {machine['date'][:10]} at priority",
        f"{result['nice']:+d} (`nice`), ONNX Runtime {result['onnxruntime']}: {THREADS} threads, two sessions,",
        "requests drawn at random. Every answer was compared to the bit with the one that the request gave alone.",
        "",
        f"**{result['verdict']}**",
        "",
        "| | |",
        "|---|---|",
        f"| requests | {sum(counts.values())} |",
        f"| errors | {len(result['errors'])} |",
        f"| other answers than alone | {len(result['wrong'])} |",
        f"| most threads at once in a session | {max(result['most_together'])} |",
        f"| longest request | {result['slowest_seconds']:.1f} s |",
        f"| resident memory, mean of the last part | {result['memory_mib']:.1f} MiB |",
        f"| its slope, 95 % interval | {result['slope_kib']:+.2f} ± {result['slope_error_kib']:.2f} KiB a minute |",
        "",
        "| session | request | count |",
        "|---|---|---|",
        *(f"| {result['networks'][int(name[0])]} | {name[2:]} | {count} |" for name, count in counts.items()),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Load, watch, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--build", type=Path, help="where the runtime is built, or was")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of what is written")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error("--minutes must be above 0")
    module = binding()
    with tempfile.TemporaryDirectory() as scratch:
        built = build(arguments.build or Path(scratch) / "build")
        library, folders = built / "libdyndeploy.so", bundles(Path(scratch))
        images, paths = pictures(Path(scratch))
        thresholds = mixed_thresholds(module, folders[1], library, images)
        sessions = [
            module.open_bundle(folders[0], library=library),
            module.open_bundle(folders[1], library=library, thresholds=thresholds),
        ]
        cases = [
            (index, kind, call)
            for index, session in enumerate(sessions)
            for kind, calls in requests_of(session, images, paths).items()
            for call in calls
        ]
        warmed(cases)
        machine = machine_facts()
        # Room for all samples, written to once: a list of them would grow by 14 KiB a minute.
        samples, count = np.full((int((60 * arguments.minutes + 2 * LONGEST) / SAMPLE), 2), np.nan), 0
        load = Load(cases, 60 * arguments.minutes)
        start, process = time.monotonic(), psutil.Process()
        while load.alive():
            samples[count] = time.monotonic() - start, process.memory_info().rss
            count += 1
            if load.hangs():
                faulthandler.dump_traceback(all_threads=True)
                print(f"FAILED: a request has taken more than {LONGEST:.0f} s", flush=True)
                os._exit(1)
            time.sleep(SAMPLE)
        exits = sessions[1].statistics()["exits"]
        for session in sessions:
            session.close()
    samples = samples[:count]
    seconds, memory = samples[int(WARM * count) :].T
    if len(seconds) < 2 * PARTS:
        parser.error(f"--minutes {arguments.minutes:g} is too short for a slope of the memory")
    rise, error = slope(seconds, memory)
    faults = [f"{len(load.errors)} errors ({load.errors[0]})"] if load.errors else []
    faults += [f"{len(load.wrong)} wrong answers ({load.wrong[0]})"] if load.wrong else []
    faults += [f"memory grows by {rise / 2**10:.2f} KiB a minute"] if rise > error else []
    verdict = "FAILED: " + ", ".join(faults) if faults else "Passed: no error, no wrong answer, no growing memory"
    result = {
        "kind": "measured",
        "verdict": verdict,
        "minutes": arguments.minutes,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "machine": machine,
        "onnxruntime": sessions[0].info["version"],
        "networks": [session.info["network"] for session in sessions],
        "thresholds": thresholds,
        "exits": exits,
        "requests": load.counts,
        "errors": load.errors[:20],
        "wrong": load.wrong[:20],
        "most_together": load.most_together,
        "slowest_seconds": load.slowest,
        "memory_mib": float(np.array_split(memory, PARTS)[-1].mean()) / 2**20,
        "slope_kib": rise / 2**10,
        "slope_error_kib": error / 2**10,
        "memory": [[round(float(at), 1), int(size)] for at, size in samples[:: max(1, count // 240)]],
    }
    write_json(arguments.output / "runtime-load.json", result)
    write_text(arguments.output / "runtime-load.md", page(result))
    print(verdict, f"(memory {rise / 2**10:+.2f} ± {error / 2**10:.2f} KiB a minute)")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
