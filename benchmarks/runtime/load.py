"""Held load: mixed requests in two sessions from four threads; memory must not grow, answers must stay right.

Run from the repository: ``python benchmarks/runtime/load.py BUILD BUNDLE BUNDLE --minutes 20``. BUILD holds
``libdyndeploy.so``; the bundles take images. Prints requests, errors, wrong answers, and the slope of the memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

BINDING = Path(__file__).parents[2] / "plugins" / "runtime" / "python" / "dyndeploy_runtime.py"
IMAGES = 12
WARM = 0.2
"""Share of the time that is left out of the slope: every thread makes its memory first."""


def open_sessions(library: Path, bundles: list[Path]) -> list[Any]:
    """A session for each bundle."""
    spec = importlib.util.spec_from_file_location("dyndeploy_runtime", BINDING)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [module.open_bundle(bundle, library=library) for bundle in bundles]


def pictures() -> list[np.ndarray]:
    """Photographs of noise of several sizes."""
    generator = np.random.default_rng(0)
    sizes = [(40 + 37 * i, 300 - 19 * i) for i in range(IMAGES)]
    return [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def main() -> None:
    """Load, watch, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("bundles", type=Path, nargs=2)
    parser.add_argument("--minutes", type=float, default=20)
    arguments = parser.parse_args()
    sessions, images = open_sessions(arguments.build / "libdyndeploy.so", arguments.bundles), pictures()
    expected = [[session.classify(image).logits for image in images] for session in sessions]
    end = time.monotonic() + 60 * arguments.minutes
    counts = {"requests": 0, "errors": 0, "wrong": 0}
    lock = threading.Lock()

    def work(offset: int) -> None:
        turn = offset
        while time.monotonic() < end:
            which, index = turn % 2, turn // 2 % IMAGES
            turn += 1
            try:
                found = sessions[which].classify(images[index])
                right = np.array_equal(found.logits, expected[which][index])
            except Exception:
                with lock:
                    counts["errors"] += 1
                continue
            with lock:
                counts["requests"] += 1
                counts["wrong"] += not right

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    start, process, samples = time.monotonic(), psutil.Process(), []
    while any(thread.is_alive() for thread in threads):
        samples.append((time.monotonic() - start, process.memory_info().rss))
        time.sleep(0.5)
    seconds, memory = np.array(samples[int(WARM * len(samples)) :], np.float64).T
    slope = np.polyfit(seconds / 60, memory / 2**10, 1)[0]
    spread = memory.max() - memory.min()
    print(
        counts, f"memory {memory[-1] / 2**20:.1f} MiB, slope {slope:.1f} KiB a minute, spread {spread / 2**10:.0f} KiB"
    )


if __name__ == "__main__":
    main()
