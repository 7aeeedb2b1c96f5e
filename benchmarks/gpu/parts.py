"""The parts of acceptance.py, each a process of its own: parts.py NAME --prepared ... --scratch ... --report ...

A part writes its report as it goes, so that what it has is kept when it is stopped.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prepare import RECORD, ROOT

from dyndeploy.files import read_json, write_json

NETWORKS = ("laud_resnet50", "laud_resnet101")
GRANULARITY = (4, 4, 2, 1)
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
METRICS = {
    "gpu__time_duration.sum": "us",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "multiprocessors, % of peak",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "memory, % of peak",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy, %",
    "launch__registers_per_thread": "registers",
}


class State:
    """What a part is told, and its report."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.prepared, self.scratch, self.path = given.prepared, given.scratch, given.report
        self.end = time.monotonic() + given.seconds
        self.report: dict[str, Any] = {}
        self.builds = {build["name"]: build for build in read_json(self.prepared / RECORD)["builds"]}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def write(self, **changes: Any) -> None:
        """Add to the report."""
        self.report.update(changes)
        write_json(self.path, self.report)

    def add(self, rows: Sequence[Any]) -> None:
        """Add rows to the report."""
        self.write(rows=[*self.report.get("rows", []), *rows])

    def library(self, build: str) -> Path:
        """Of a build."""
        return Path(self.prepared / self.builds[build]["library"])

    def program(self, build: str) -> Path:
        """Of a build; files that were copied may have lost that they can be run."""
        path = Path(self.prepared / self.builds[build]["program"])
        if not os.access(path, os.X_OK):
            copy = self.scratch / path.name
            if not copy.exists():
                shutil.copy(path, copy)
                copy.chmod(0o755)
            return copy
        return path

    def bundle(self, network: str) -> Path:
        """Where a network is exported to, complete or not there."""
        return Path(self.scratch / "bundles" / network)


def _tool(name: str) -> str | None:
    """A tool of CUDA, wherever it stands."""
    found = shutil.which(name)
    places = [f"/usr/local/cuda/bin/{name}", f"/usr/local/cuda/compute-sanitizer/{name}"]
    places += sorted(map(str, Path("/opt/nvidia").glob(f"nsight-compute/*/{name}")), reverse=True)
    return found or next((place for place in places if os.access(place, os.X_OK)), None)


def _call(command: Sequence[str], seconds: float, **environment: str) -> tuple[int | None, str]:
    """Exit status (None: stopped) and all that was said; also printed, for the log."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
            timeout=max(1.0, seconds), env={**os.environ, **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        print(said.decode(errors="replace") if isinstance(said, bytes) else said)
        return None, "it was stopped at its time limit"
    print(done.stdout)
    return done.returncode, done.stdout


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


# ---------------------------------------------------------------- parts


def export(state: State) -> None:
    """In the background: networks with random weights, with biases, and with maps that stay within half."""
    import torch

    from dyndeploy import ExportSettings, create_model, export_model

    for network in NETWORKS:
        model = create_model(network, mode="spatial", granularity=GRANULARITY)
        randomise(model, torch.Generator().manual_seed(0))
        export_model(model, state.bundle(network), ExportSettings(static=True))


def randomise(model: Any, generator: Any) -> None:
    """Give batch norms biases, and residual branches a small scale: a hundred layers would overflow half."""
    import torch
    from torch import nn

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
                if name.endswith("bn3"):
                    module.weight.fill_(0.25)


def machine(state: State) -> None:
    """What was measured on."""
    import torch
    from measure import Cuda

    device = Cuda()
    properties = torch.cuda.get_device_properties(0)
    read, stated = "read from the device", "stated by the package"
    _, driver = _call(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"], 10
    )
    capability = f"{properties.major}.{properties.minor}"
    facts: list[dict[str, Any]] = [
        {"what": "GPU", "value": f"{properties.name}, compute capability {capability}", "how": read},
        {"what": "multiprocessors", "value": properties.multi_processor_count, "how": read},
        {"what": "driver, largest clock, power limit", "value": _last(driver), "how": "nvidia-smi"},
        {"what": "PyTorch", "value": torch.__version__, "how": stated},
        {"what": "cuDNN", "value": str(torch.backends.cudnn.version()), "how": stated},
    ]
    state.write(facts=facts)
    # 1 GiB is several times any cache; 8192 fills every multiprocessor.
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    left = torch.randn(8192, 8192, device="cuda").half()
    right = torch.randn(8192, 8192, device="cuda").half()
    device.ms(lambda: target.copy_(source), 3)
    copied = min(device.ms(lambda: target.copy_(source), 5) for _ in range(5))
    device.ms(lambda: torch.matmul(left, right), 3)
    product = min(device.ms(lambda: torch.matmul(left, right), 5) for _ in range(5))
    measured = "measured, best of 5"
    facts += [
        {
            "what": "copy of 1 GiB",
            "value": f"{2 * (1 << 30) / copied / 1e9:.3g} TB/s read and written",
            "how": measured,
        },
        {"what": "FP16 product 8192^3", "value": f"{2 * 8192**3 / product / 1e9:.3g} TFLOP/s", "how": measured},
    ]
    state.write(facts=facts, status=PASSED)


def _tests(state: State, build: str) -> None:
    """The test program, and the tests of pytest that need a GPU, with one build."""
    checks = 0
    for what in ("shapes", "bottlenecks", "quantized", "maskers", "transformers", "token_maskers"):
        code, said = _call([str(state.program(build)), what], min(20.0, state.left))
        if code != 0:
            state.write(status=FAILED, why=f"{state.builds[build]['program']} {what}: {_last(said)}")
            return
        found = re.search(r"(\d+) checks, 0 failed", said)
        checks += int(found[1]) if found else 0
        state.write(said=f"{checks} checks of the program")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rf"]
    files = ("test_kernels_cuda.py", "test_quantized_cuda.py", "test_transformer_cuda.py")
    command += [str(ROOT / "tests" / "plugins" / name) for name in files]
    code, said = _call(command, state.left - 2, DYNDEPLOY_CUDA_TEST_LIBRARY=str(state.library(build)))
    passed = re.search(r"(\d+) passed", said)
    summary = f"{checks} checks of the program, {passed[1] if passed else 0} tests of pytest"
    if code != 0 or passed is None:
        state.write(status=FAILED, said=summary, why=f"pytest: {_last(said)}")
    else:
        state.write(status=PASSED, said=summary)


def _sanitize(state: State, tool: str) -> None:
    """compute-sanitizer over the test program: more rounds while there is time."""
    found = _tool("compute-sanitizer")
    if found is None:
        state.write(status=NOT_RUN, why="compute-sanitizer is not installed")
        return
    done = []
    for what, rounds in (
        ("bottlenecks", 10),
        ("quantized", 10),
        ("maskers", 10),
        ("transformers", 10),
        ("token_maskers", 10),
        ("bottlenecks", 60),
        ("transformers", 60),
    ):
        if done and state.left < 8:
            break
        command = [found, "--tool", tool, "--error-exitcode", "9", str(state.program("native")), what, str(rounds)]
        code, said = _call(command, state.left - 1)
        if code is None and done:
            break
        if code != 0:
            refused = "Device not supported" in said
            why = next((line.strip("= ") for line in said.splitlines() if line.startswith("========= ")), _last(said))
            errors = [line.strip("= ") for line in said.splitlines() if "ERROR SUMMARY" in line or "hazard" in line]
            why = "; ".join([*errors[:1], why])[:300]
            state.write(status=NOT_RUN if refused else FAILED, why=f"{what}: {why}")
            return
        done.append(f"{what} {rounds}")
        state.write(status=PASSED, said=f"rounds: {', '.join(done)}")


def _bundle(state: State, network: str) -> Any:
    """Wait for the export in the background."""
    from dyndeploy import Bundle

    path = state.bundle(network)
    while not (path / "bundle.json").is_file():
        if state.left < 20:
            state.write(status=NOT_RUN, why=f"{network} was not exported in time")
            return None
        time.sleep(0.5)
    return Bundle.open(path)


def blocks(state: State) -> None:
    """Single blocks; both networks are made of the same ones."""
    from kernels import Kernels
    from measure import BATCHES, BLOCK_TOLERANCE, Cuda, block_rows, blocks_of, wrong

    device = Cuda()
    bundle = _bundle(state, NETWORKS[0])
    if bundle is None:
        return
    count = len(blocks_of(bundle, device)) * len(BATCHES)
    # Choosing cuDNN's algorithms takes about as long as measuring.
    seconds = max(0.1, 0.4 * (state.left - 5) / count)
    block_rows(device, Kernels(state.library("native")), bundle, seconds=seconds, add=state.add)
    _judge(state, wrong(state.report.get("rows", []), BLOCK_TOLERANCE))


def networks(state: State) -> None:
    """Whole networks."""
    from kernels import Kernels
    from measure import BATCHES, TOLERANCE, Cuda, network_rows, wrong

    device, kernels = Cuda(), Kernels(state.library("native"))
    for index, network in enumerate(NETWORKS):
        bundle = _bundle(state, network)
        if bundle is None:
            return
        configurations = len(BATCHES) * (len(NETWORKS) - index)
        what = f"{network}, spatial {'-'.join(map(str, GRANULARITY))}"
        seconds = max(0.5, 0.4 * (state.left - 5) / configurations)
        network_rows(device, kernels, bundle, what, seconds=seconds, add=state.add)
    _judge(state, wrong(state.report.get("rows", []), TOLERANCE))


def _judge(state: State, why: str | None) -> None:
    state.write(status=PASSED if why is None else FAILED, **({} if why is None else {"why": why}))


def target(state: State) -> None:
    """What ncu looks at: a masker and one block at batch 16, six kernels."""
    import torch
    from kernels import Kernels

    from dyndeploy.ops import OPERATORS

    kernels = Kernels(state.library("native"))
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Any:
        return (torch.randn(*shape, generator=generator) / shape[0] ** 0.5).cuda()

    batch, side, channels, middle = 16, 14, 1024, 256
    x = torch.randn(batch, side, side, channels, generator=generator).abs().half().cuda()
    mask = (torch.rand(batch, 1, 7, 7, generator=generator) < 0.5).float().cuda()
    halves = [tensor(channels, middle), tensor(1, 9 * middle, middle) / 48, tensor(middle, channels)]
    w1, w2, w3 = (value.half() for value in halves)
    b1, b2, b3 = tensor(middle), tensor(middle), tensor(channels)
    block = next(spec for spec in OPERATORS.values() if _is_spatial_block(spec))
    masker = next(spec for spec in OPERATORS.values() if spec.decides and "mask_height" in _names(spec))
    kernels.run(masker, [x, tensor(1, channels), tensor(1)], {"mask_height": 7, "mask_width": 7})
    attributes = {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1}
    kernels.run(block, [x, mask, w1, b1, w2, b2, w3, b3], attributes)
    torch.cuda.synchronize()


def _names(spec: Any) -> list[str]:
    return [attribute.name for attribute in spec.attributes]


def _is_spatial_block(spec: Any) -> bool:
    kinds = [kind.name for kind in spec.gates.values()]
    return kinds == ["spatial"] and "cuda" in spec.kernels and not any(port.name == "wd" for port in spec.inputs)


def counters(state: State) -> None:
    """The six kernels under ncu."""
    found = _tool("ncu")
    if found is None:
        state.write(status=NOT_RUN, why="ncu is not installed")
        return
    command = [found, "--clock-control", "none", "--target-processes", "all", "--kernel-name", "regex:entry"]
    command += ["--launch-count", "6", "--metrics", ",".join(METRICS), "--csv", sys.executable, __file__, "target"]
    command += ["--prepared", str(state.prepared), "--scratch", str(state.scratch), "--seconds", str(state.left)]
    code, said = _call([*command, "--report", str(state.path.with_name("target.json"))], state.left - 1)
    rows = read_counters(said)
    if code != 0 or not rows:
        denied = next((line.strip("= ") for line in said.splitlines() if "ERR_" in line or "==ERROR==" in line), None)
        state.write(status=NOT_RUN if denied else FAILED, why=f"ncu: {denied or _last(said)}")
        return
    state.write(status=PASSED, said=f"{len(rows)} kernels", rows=rows)


def read_counters(text: str) -> list[dict[str, Any]]:
    """Metrics by launch, from what ``ncu --csv`` prints among other lines."""
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    table = "\n".join(line for line in lines[start:] if line.startswith('"'))
    launches: dict[str, dict[str, Any]] = {}
    for entry in csv.DictReader(io.StringIO(table)):
        name = _short(entry["Kernel Name"])
        launch = launches.setdefault(entry["ID"], {"kind": "measured", "kernel": name, "metrics": {}})
        value, unit = entry["Metric Value"].replace(",", ""), entry["Metric Unit"]
        label = METRICS.get(entry["Metric Name"], entry["Metric Name"])
        if label == "us":
            value = f"{float(value) * {'ns': 1e-3, 'nsecond': 1e-3, 'us': 1.0, 'usecond': 1.0}.get(unit, 1.0):.2f}"
        launch["metrics"][label] = value
    return list(launches.values())


def _short(kernel: str) -> str:
    """A kernel's name without the namespaces around it."""
    return re.sub(r"dyndeploy::cuda::|\(anonymous namespace\)::|<unnamed>::|void |\(.*\)$", "", kernel)


RUNS: dict[str, Callable[[State], None]] = {
    "export": export,
    "machine": machine,
    "tests": lambda state: _tests(state, "native"),
    "lanes": lambda state: _tests(state, "lanes"),
    "lanes62": lambda state: _tests(state, "lanes62"),
    "memcheck": lambda state: _sanitize(state, "memcheck"),
    "racecheck": lambda state: _sanitize(state, "racecheck"),
    "synccheck": lambda state: _sanitize(state, "synccheck"),
    "blocks": blocks,
    "networks": networks,
    "networks-again": networks,
    "counters": counters,
    "target": target,
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RUNS)
    for name in ("prepared", "scratch", "report"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    RUNS[given.name](State(given))


if __name__ == "__main__":
    main()
