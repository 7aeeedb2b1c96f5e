"""The first ten minutes on a GPU: are the CUDA kernels right there, and what do they gain?

    python benchmarks/gpu/acceptance.py prepare prepared          # on any machine with nvcc, see prepare.py
    python benchmarks/gpu/acceptance.py run prepared -o gpu.json  # on the machine with the GPU: at most 8 minutes
    python benchmarks/gpu/acceptance.py show gpu.json             # the table once more

A run has parts, in order of their value. Each has its own process and its own time limit, so that one that hangs loses
only itself. The JSON file is written after every part. What was not run says why. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import prepare
from parts import FAILED, NOT_RUN, PASSED
from result_page import page

from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.files import read_json, write_json

SCHEMA = 1
BUDGET = 480.0
"""Seconds of a whole run."""
GRACE = 5.0
TIMED_OUT = "timed out"
PARTS = Path(__file__).with_name("parts.py")
EXPORT = "export"


@dataclass(frozen=True)
class Part:
    """One part of a run.

    Attributes:
        name: Argument of parts.py.
        seconds: Most that it may take.
        least: Fewer seconds than this are not worth starting it.
        build: Which build of the kernels it needs; None for none.
        proves: What it shows, for people.
    """

    name: str
    seconds: float
    least: float
    build: str | None
    proves: str


PLAN = (
    Part("machine", 40, 10, None, "what was measured on: GPU, driver, memory bandwidth, FP16 products at their best"),
    Part("tests", 70, 15, "native", "the deployed kernels give PyTorch's results with tiles of every size"),
    Part("lanes", 45, 15, "lanes", "FP16 on plain lanes, as boards without tensor cores have it"),
    Part("lanes62", 45, 15, "lanes62", "the same as PTX of sm_62 that the driver compiles"),
    Part("memcheck", 30, 10, "native", "no access beyond a tensor"),
    Part("racecheck", 40, 10, "native", "no two threads race in shared memory, tensor cores included"),
    Part("synccheck", 30, 10, "native", "all threads reach every barrier"),
    Part("blocks", 80, 20, "native", "time of single blocks against cuDNN"),
    Part("networks", 120, 30, "native", "time of whole networks against cuDNN"),
    Part("counters", 40, 15, "native", "how busy six kernels keep the GPU (ncu)"),
    Part("networks-again", 120, 30, "native", "whether the times of whole networks repeat"),
)


def gpus() -> int:
    """How many GPUs the driver shows."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


class Run:
    """A run, its result so far and its clock.

    Args:
        prepared: Folder made by prepare.
        output: JSON file to write.
        scratch: For bundles and what parts report.
        budget: Seconds.
        script: What is called for each part.
    """

    def __init__(
        self, prepared: Path, output: Path, scratch: Path, budget: float = BUDGET, script: Path = PARTS
    ) -> None:
        record = prepare.load(prepared)
        self._builds = {build["name"]: build for build in record["builds"]}  # type: ignore[attr-defined]
        self._prepared, self._output, self._scratch, self._script = prepared.resolve(), output, scratch, script
        self._end = time.monotonic() + budget
        self.result: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": NOT_RUN,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "builds": list(self._builds.values()),
            "parts": {},
        }

    def no_gpu(self, plan: Sequence[Part], why: str) -> None:
        """Record that nothing could be run."""
        for part in plan:
            self._record(part, {"status": NOT_RUN, "why": why})

    def execute(self, plan: Sequence[Part]) -> None:
        """Run the parts in order while time is left."""
        self.result["kind"] = "measured"
        exporting = self._start(EXPORT, BUDGET)
        try:
            for part in plan:
                self._record(part, self._one(part))
        finally:
            _stop(exporting)

    @property
    def passed(self) -> bool:
        """Whether every part was run and passed."""
        return all(part["status"] == PASSED for part in self.result["parts"].values())

    def _record(self, part: Part, outcome: Mapping[str, Any]) -> None:
        self.result["parts"][part.name] = {"proves": part.proves, **outcome}
        write_json(self._output, self.result)
        why = outcome.get("why")
        print(f"{part.name}: {outcome['status']}{f': {why}' if why else ''}", flush=True)

    def _one(self, part: Part) -> dict[str, Any]:
        if part.build is not None and part.build not in self._builds:
            return {"status": NOT_RUN, "why": f"the build '{part.build}' was not prepared (--old-nvcc)"}
        left = self._end - time.monotonic() - GRACE
        if left < part.least:
            return {"status": NOT_RUN, "why": f"only {max(0.0, left):.0f} s were left"}
        limit, started = min(part.seconds, left), time.monotonic()
        process = self._start(part.name, limit)
        try:
            code: int | None = process.wait(limit + GRACE)
        except subprocess.TimeoutExpired:
            code = None
        _stop(process)
        seconds = round(time.monotonic() - started, 1)
        reported = self._report(part.name)
        if code is None:
            return {**reported, "status": TIMED_OUT, "why": f"stopped after {limit:.0f} s", "seconds": seconds}
        if code != 0 or "status" not in reported:
            why = reported.get("why") or f"it ended with {code}: {_last_line(self._log(part.name))}"
            return {**reported, "status": FAILED, "why": why, "seconds": seconds}
        return {**reported, "seconds": seconds}

    def _start(self, name: str, seconds: float) -> subprocess.Popen[bytes]:
        self._folder(name).mkdir(parents=True, exist_ok=True)
        paths = [str(prepare.ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, str(self._script), name, "--prepared", str(self._prepared)]
        command += ["--scratch", str(self._scratch), "--report", str(self._folder(name) / "report.json")]
        with self._log(name).open("wb") as log:
            return subprocess.Popen(
                [*command, "--seconds", str(seconds)], stdout=log, stderr=subprocess.STDOUT, env=environment,
                cwd=prepare.ROOT, start_new_session=True,
            )  # fmt: skip

    def _folder(self, name: str) -> Path:
        return self._scratch / name

    def _log(self, name: str) -> Path:
        return self._folder(name) / "log"

    def _report(self, name: str) -> dict[str, Any]:
        path = self._folder(name) / "report.json"
        try:
            return dict(read_json(path)) if path.is_file() else {}
        except DyndeployError as error:
            return {"why": str(error)}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it has started; it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process that the driver holds does not die: the others must not wait for it.
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _run(given: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="dyndeploy-gpu-") as scratch:
        run = Run(given.prepared, given.output, Path(scratch), given.seconds)
        found = gpus()
        if found == 0:
            why = "no GPU: the driver (libcuda.so.1) is missing or shows none"
            run.no_gpu(PLAN, why)
        else:
            run.execute(PLAN)
    print()
    print(page(run.result))
    if found == 0:
        print(f"error: {why}. Nothing was measured; {given.output} says so.", file=sys.stderr)
    return 0 if run.passed else 1


def _show(given: argparse.Namespace) -> int:
    result = read_json(given.result)
    if not isinstance(result, dict) or result.get("schema") != SCHEMA or "parts" not in result:
        raise UsageError(f"{given.result} was not written by this version of acceptance.py run.")
    print(page(result))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["prepare"]:
        return prepare.main(arguments[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="Build what is run, on any machine with nvcc.")
    run = commands.add_parser("run", help="Test and measure on this machine's GPU.")
    run.add_argument("prepared", type=Path, metavar="FOLDER", help="Made by prepare, from these sources.")
    run.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write, after every part.")
    run.add_argument("--seconds", type=float, default=BUDGET, help="Of the whole run.")
    run.set_defaults(call=_run)
    show = commands.add_parser("show", help="Print a result.")
    show.add_argument("result", type=Path, metavar="FILE", help="Written by run.")
    show.set_defaults(call=_show)
    given = parser.parse_args(arguments)
    try:
        return int(given.call(given))
    except DyndeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
