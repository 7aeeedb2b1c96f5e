"""What a command keeps of its fair share of the processors when others are busy.

    python benchmarks/busy.py -- dyndeploy demo -o demo

The command runs alone and then beside busy processes, four for each processor. Its fair share is what the scheduler
gives as many runnable threads as there are processors: with four busy processes for each, a fifth of the machine. The
share is (time alone x 5) / time beside them; what starts slowly or waits for a disk keeps more.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import time

from dyndeploy.processors import usable_processors
from dyndeploy.runtimes.machine import machine_facts


def _burn() -> None:
    while True:
        sum(range(10_000))


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=4, help="busy processes for each processor")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    alone = _seconds(arguments.command)
    busy = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(arguments.times * usable_processors())]
    for process in busy:
        process.start()
    try:
        beside = _seconds(arguments.command)
    finally:
        for process in busy:
            process.terminate()
    share = alone * (arguments.times + 1) / beside
    print(
        f"{' '.join(arguments.command)}: measured on {machine_facts()['cpu']}, {usable_processors()} processors: "
        f"alone {alone:.1f} s, beside {len(busy)} busy processes {beside:.1f} s: {share:.2f} of the fair share"
    )


if __name__ == "__main__":
    main()
