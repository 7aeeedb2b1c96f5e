"""What the CUDA kernels reach on GPUs that are not at hand: compiled, taken apart and played in a cycle model.

    python benchmarks/gpu/modelled.py kernels --nvcc nvcc --architectures 90 120   # the table, printed and kept
    python benchmarks/gpu/modelled.py check --nvcc nvcc                            # what CI runs
    python benchmarks/gpu/modelled.py boards                                       # blocks and networks, from the table

``kernels`` compiles one instance of each tile (modelled.cu) and writes ``dyndeploy/targets/cuda_kernels.json``, from
which the predictor prices dynamic blocks; figures of other architectures stay. ``check`` compiles again what this nvcc
knows and fails where a main loop waits for its own prefetch, or reaches less than 95 % of the share in the table. Every
figure is modelled, none is measured: see cycle_model.py for what the model leaves out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

from cycle_model import (  # noqa: E402
    MACHINES,
    Figures,
    Machine,
    Ways,
    counted_ways,
    figures,
    resident_blocks,
    two_ended,
    ways,
)
from sass import Code, Instruction, count_math, inner_loop, main_loop, parse, waits_early  # noqa: E402

from dyndeploy.errors import DyndeployError, InputError, UsageError  # noqa: E402
from dyndeploy.files import json_text, read_json, write_json, write_text  # noqa: E402

SOURCE = Path(__file__).with_suffix(".cu")
KERNELS = ROOT / "plugins" / "kernels" / "cuda"
TABLE = ROOT / "dyndeploy" / "targets" / "cuda_kernels.json"
PRECISIONS = ("fp32", "fp16", "int8")
LAYERS = ("conv1", "conv2", "conv3", "projection")
_OTHERS = {"Linear": "linear", "PatchProduct": "winograd"}
OTHERS = ("attention", "sampling", "regions")
"""Layers of kernels whose loops are not those of product.h."""
BASIS = (
    "modelled, not measured: benchmarks/gpu/modelled.py, machine code of the kernels in a cycle model; [optimistic, "
    "pessimistic] ends"
)
LOST = 0.05
"""Share of its share that a main loop may lose against the table."""
EARLY = 0.1
"""Share of a strip's products that may stand behind the first wait for its own loads."""
_SETTLES = 64
"""Products that lanes sum in halves (kSettles in tiles.h)."""
HALVES = ((0, "HALVES"), (70, "TENSOR_CORES"), (80, "MMA"), (90, "HOPPER"), (120, "MMA"))
"""Which tiles multiply halves (modelled.cu), by the capability that they are chosen from on."""
BYTES = (
    (61, "BYTE_LANES"),
    (72, "BYTE_WMMA"),
    (75, "BYTE_TENSOR_CORES"),
    (80, "BYTE_MMA"),
    (90, "BYTE_HOPPER"),
    (120, "BYTE_MMA"),
)
"""The same of bytes; there are none before, nor for sm_62."""
_WARPGROUP_DEPTH = 64
"""Inputs of a strip of WgmmaTile."""
_TAPS_DEPTH = 256
"""Channels of the 3x3 in the simulation: a segment has so many inputs."""

_NAME = re.compile(
    r"(?P<kind>QuantizedConvolution|Convolution|Linear|PatchProduct)Kernel<((?P<layer>\d), false, )?"
    r"dyndeploy::cuda::(?P<unit>ByteLane|ByteMma|ByteWmma|Lane|Tensor|Mma|Wgmma)Tile<(?P<tile>[^>]*)>"
)
_OTHER = re.compile(
    r"(?P<kind>Attention|Sampling|Regions)Kernel<(?P<storage>float|__half)"
    r"(, dyndeploy::cuda::(?P<unit>Lane|Tensor|Mma)Tile<(?P<tile>[^>]*)>)?(, (?P<vector>\d+))?>"
)
_USE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel.

    Attributes:
        capability: 10 * major + minor.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        layer: ``"conv1"``, ``"conv2"``, ``"conv3"``, ``"projection"`` (integers alone), ``"linear"`` or ``"winograd"``,
            or one of :data:`OTHERS`.
        unit: ``"lanes"``, ``"tensor cores"``, or ``"warpgroups"`` of sm_90a, which multiply together.
        rows: Of its tile.
        columns: Likewise.
        depth: Inputs of a strip.
        threads: Of a block.
        registers: Of a thread.
        shared: Bytes of a block.
        ways: What its warps run.
    """

    capability: int
    precision: str
    layer: str
    unit: str
    rows: int
    columns: int
    depth: int
    threads: int
    registers: int
    shared: int
    ways: Ways

    @property
    def machine(self) -> Machine:
        return MACHINES[self.capability]

    @property
    def resident(self) -> int:
        return resident_blocks(self.machine, self.threads, self.registers, self.shared)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.capability, self.precision, self.layer, self.unit, self.rows, self.columns

    def figures(self, blocks: int, *, optimistic: bool, follows: bool) -> Figures:
        """See :func:`cycle_model.figures`."""
        lanes_of_halves = self.precision == "fp16" and self.unit == "lanes"
        return figures(
            self.machine,
            self.ways,
            warps=self.threads // 32,
            blocks=blocks,
            segment=_TAPS_DEPTH // self.depth if self.layer == "conv2" else 0,
            settles=_SETTLES // self.depth if lanes_of_halves else 0,
            optimistic=optimistic,
            follows=follows,
            strips=1 if self.layer in OTHERS else 4,
        )


def describe(symbol: str, demangled: str) -> dict[str, Any] | None:
    """Layer, unit and tile of a kernel by its name; None for any other kernel."""
    match = _NAME.search(demangled)
    if match is None:
        return _describe_other(demangled)
    fields = match["tile"].split(", ")
    lanes, precision = match["unit"].endswith("Lane"), "fp16"
    if match["unit"] == "Wgmma":
        return _describe_warpgroups(match, *map(int, fields[:3]))
    if match["unit"].startswith("Byte"):
        precision = "int8"
    elif lanes:
        precision = "fp16" if fields.pop(0) == "__half" else "fp32"
    rows, columns, m, n = map(int, fields[:4])
    if lanes:
        # 32 bytes of a row: kDepth in tiles.h.
        depth, threads = {"fp32": 8, "fp16": 16, "int8": 32}[precision], rows // m * (columns // n)
    else:
        depth, threads = int(fields[4]), 32 * (rows // m * (columns // n))
    return {
        "precision": precision,
        "layer": LAYERS[int(match["layer"])] if match["kind"].endswith("Convolution") else _OTHERS[match["kind"]],
        "unit": "lanes" if lanes else "tensor cores",
        "rows": rows,
        "columns": columns,
        "depth": depth,
        "threads": threads,
    }


def _describe_warpgroups(match: re.Match[str], rows: int, columns: int, stages: int) -> dict[str, Any]:
    """Of WgmmaTile: a warpgroup has 64 rows; stages lie in memory that a launch asks for, with room to align them."""
    return {
        "precision": "fp16",
        "layer": LAYERS[int(match["layer"])] if match["kind"] == "Convolution" else _OTHERS[match["kind"]],
        "unit": "warpgroups",
        "rows": rows,
        "columns": columns,
        "depth": _WARPGROUP_DEPTH,
        "threads": 2 * rows,
        "shared": stages * (rows + columns) * _WARPGROUP_DEPTH * 2 + 1024,
    }


# ------------------------------------------------------------- kernels with loops of their own, not product.h's

_HEAD = 64
"""Channels of a head in the model of attention, and keys of a step."""
_CELLS = 5
"""Cells along each axis of a bin in that of RoI align: of a bin that is four cells wide."""
_SAMPLES = 16
"""Samples of a query and head in that of deformable attention: four maps, four points."""
_REGION_THREADS, _REGION_CHANNELS, _SAMPLING_THREADS = 256, 32, 128


def _describe_other(demangled: str) -> dict[str, Any] | None:
    """Attention, deformable attention and RoI align, of whole vectors, as rows of launches see them.

    A strip of attention is 64 keys, and its columns are those of both products. One of deformable attention is a sample
    of a run of 16 bytes of channels, its rows are the runs. One of RoI align is an output of each thread.
    """
    match = _OTHER.search(demangled)
    if match is None or match["vector"] == "1":
        return None
    halves = match["storage"] == "__half"
    common = {"precision": "fp16" if halves else "fp32", "unit": "lanes"}
    if match["kind"] == "Sampling":
        elements = 8 if halves else 4
        return {
            **common, "layer": "sampling", "rows": _SAMPLING_THREADS, "columns": 4 * elements, "depth": 1,
            "threads": _SAMPLING_THREADS,
        }  # fmt: skip
    if match["kind"] == "Regions":
        return {
            **common, "layer": "regions", "rows": _REGION_THREADS, "columns": _CELLS * _CELLS, "depth": 1,
            "threads": _REGION_THREADS,
        }  # fmt: skip
    fields = match["tile"].split(", ")
    if match["unit"] == "Lane":
        rows, columns, m, n = map(int, fields[1:5])
        threads = rows // m * (columns // n)
    else:
        rows, columns, m, n = map(int, fields[:4])
        threads, common["unit"] = 32 * (rows // m * (columns // n)), "tensor cores"
    return {
        **common, "layer": "attention", "rows": rows, "columns": 2 * columns, "depth": columns, "threads": threads,
    }  # fmt: skip


def _ways_of_other(code: Code, described: Mapping[str, Any]) -> Ways | None:
    """The ways of one of them; None where this architecture's kernel is empty."""
    kind = described["layer"]
    loop = inner_loop(code) if kind == "sampling" else main_loop(code, "BAR" if kind == "attention" else None)
    if loop is None:
        return None
    rounds = {"attention": _attention_rounds, "sampling": _sampling_rounds, "regions": _region_rounds}[kind]

    def counted(body: Sequence[Instruction]) -> int:
        first, last = body[0].address, body[-1].address
        nested = any(i.name == "BRA" and i.target and first < i.target < i.address < last for i in body)
        return rounds({**Counter(i.name for i in body), "nested": int(nested)}, described)

    return counted_ways(code, loop, counted, _CELLS if kind == "regions" else None)


def _attention_rounds(body: Mapping[str, int], described: Mapping[str, Any]) -> int:
    threads, rows = described["threads"], described["rows"]
    tensor_cores = described["unit"] == "tensor cores"
    depth = 32 if tensor_cores else 8
    if "BAR" in body:
        return _HEAD // depth
    if "STG" in body:
        return rows * _HEAD // (8 if described["precision"] == "fp16" else 4) // threads // body["STG"]
    if "MUFU" in body:
        return _HEAD // (threads // rows) // body["MUFU"]
    if "LDG" in body:
        return rows * depth // (8 if described["precision"] == "fp16" else 4) // threads // body["LDG"]
    if "LDS" in body and "STS" in body:
        return rows * depth // (8 if tensor_cores else 1) // threads // body["STS"]
    return _HEAD // (threads // rows) // body["LDS"] if "LDS" in body else 0


def _sampling_rounds(body: Mapping[str, int], described: Mapping[str, Any]) -> int:
    if "BAR" in body:
        return 1
    if "STS" not in body:
        return 0  # four maps before a sample's at a time: fewer stand in no loop
    return _SAMPLES * (32 if described["precision"] == "fp16" else 16) // _SAMPLING_THREADS // max(1, body["STS"] // 2)


def _region_rounds(body: Mapping[str, int], described: Mapping[str, Any]) -> int:
    if "STS" in body:  # samples of a bin, for its table
        return (_CELLS - 1) // (body["STS"] // 2)
    return _CELLS if body["nested"] else _CELLS // max(1, body.get("LDG", 1))


# ------------------------------------------------------------------------------------------------------ tools


def find_tool(name: str, nvcc: str) -> str:
    """``cuobjdump`` and the like: beside nvcc, on the path, or in a Python package of NVIDIA's.

    Raises:
        UsageError: It is nowhere.
    """
    real = shutil.which(nvcc)
    places = [Path(real).resolve().parent] if real else []
    places += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    spec = importlib.util.find_spec("nvidia")
    places += [Path(root) / "cu13" / "bin" for root in (spec.submodule_search_locations or [])] if spec else []
    for place in places:
        if (place / name).is_file():
            return str(place / name)
    raise UsageError(
        f"There is no {name}: it comes with CUDA's toolkit, and as the Python packages nvidia-cuda-cuobjdump and "
        "nvidia-cuda-nvdisasm."
    )


def _run(command: Sequence[str], **options: Any) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, **options)
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be run: {error}.") from error
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-3000:]}")
    return done.stdout


def release(nvcc: str) -> str:
    """Release of a compiler, e.g. ``"13.0"``."""
    match = re.search(r"release (\d+\.\d+)", _run([nvcc, "--version"]))
    if match is None:
        raise UsageError(f"{nvcc} is no nvcc.")
    return match[1]


def target(nvcc: str, capability: int) -> str:
    """What this nvcc calls an architecture with all that is its own: warpgroups of sm_90 are known from CUDA 12 on."""
    return "90a" if capability == 90 and int(release(nvcc).partition(".")[0]) >= 12 else str(capability)


def known_architectures(nvcc: str) -> list[int]:
    """Architectures that this nvcc compiles for and the model knows."""
    known = {int(line.rpartition("_")[2]) for line in _run([nvcc, "--list-gpu-arch"]).split()}
    return sorted(known & set(MACHINES))


def compile_kernels(nvcc: str, cuobjdump: str, capability: int, precision: str) -> list[Kernel]:
    """Compile one architecture's kernels of one precision and take them apart.

    Raises:
        InputError: They do not compile, or spill.
        UsageError: A tool is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        binary = str(Path(folder) / "kernels.cubin")
        kinds = {"fp32": ((0, "FLOATS"),), "fp16": HALVES, "int8": BYTES}[precision]
        define = [name for first, name in kinds if capability >= first][-1]
        _run(
            [
                *(nvcc, "-std=c++14", "-O3", f"-arch=sm_{target(nvcc, capability)}", "-cubin"),
                *(["-DDYN_MODEL_BOARD"] if capability < 70 else []),
                *(f"-DDYN_MODEL_{define}", f"-I{KERNELS}", str(SOURCE), "-o", binary),
            ]
        )
        # It calls nvdisasm by name.
        path = os.pathsep.join([str(Path(cuobjdump).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        text = _run([cuobjdump, "-sass", binary], env=environment)
        uses = _run([cuobjdump, "-res-usage", binary], env=environment)
    found = {match[1]: tuple(map(int, match.groups()[1:])) for match in _USE.finditer(uses)}
    codes = parse(text)
    names = _run(["c++filt"], input="\n".join(code.symbol for code in codes)).splitlines()
    kernels = []
    for code, name in zip(codes, names, strict=True):
        described = describe(code.symbol, name)
        if described is None or described["precision"] != precision:
            continue
        # Epilogues in loops have more instructions that multiply than one of warpgroups.
        loop = main_loop(code, "HGMMA" if described["unit"] == "warpgroups" else None)
        if described["layer"] in OTHERS:
            found_ways = _ways_of_other(code, described)
        else:
            found_ways = None if loop is None else ways(code, loop)
        if found_ways is None:
            continue
        registers, stack, shared = found[code.symbol]
        if stack:
            raise InputError(f"sm_{capability}: {name} keeps {stack} bytes on a stack.")
        shared += described.pop("shared", 0)
        kernels.append(Kernel(capability, registers=registers, shared=shared, ways=found_ways, **described))
    if not kernels:
        raise InputError(f"sm_{capability}: no kernel of {precision} has a main loop.")
    return kernels


# ------------------------------------------------------------------------------------------------------ table


def residencies(resident: int) -> list[int]:
    """Numbers of resident blocks that figures are made for."""
    return sorted({count for count in (1, 2, resident) if count <= resident})


def row_of(kernel: Kernel, compiler: str, *, quick: bool = False) -> dict[str, Any]:
    """A row of the table; ``quick``: what the check compares, alone."""
    plain = kernel.ways.plain
    row: dict[str, Any] = {
        "capability": kernel.capability,
        "precision": kernel.precision,
        "layer": kernel.layer,
        "unit": kernel.unit,
        "rows": kernel.rows,
        "columns": kernel.columns,
        "depth": kernel.depth,
        "compiler": compiler,
        "threads": kernel.threads,
        "registers": kernel.registers,
        "shared_bytes": kernel.shared,
        "resident": kernel.resident,
        "products": count_math(plain),
        "issue_slots": sum(not i.dual for i in plain),
        "early": round(waits_early(plain), 3),
        "blocks": {},
    }
    for blocks in [kernel.resident] if quick else residencies(kernel.resident):
        wanted = (True,) if quick or not two_ended(kernel.ways) else (True, False)
        ends = [
            kernel.figures(blocks, optimistic=end, follows=not quick and blocks == kernel.resident) for end in wanted
        ]
        ends = ends if quick else [ends[0], ends[-1]]
        row["blocks"][str(blocks)] = {
            # Over some strips of many; what begins before them may count to none.
            "share": [min(round(f.share, 4), 1.0) for f in ends],
            "strip_cycles": [round(f.strip, 1) for f in ends],
            "fixed_cycles": [round(f.fixed, 1) for f in ends],
            "cold_cycles": [round(f.cold, 1) for f in ends],
        }
    return row


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row from all others."""
    return tuple(row[name] for name in ("capability", "precision", "layer", "unit", "rows", "columns"))


def read_table(path: Path = TABLE) -> list[dict[str, Any]]:
    """Rows of the table; none where there is no file."""
    return list(read_json(path)["kernels"]) if path.exists() else []


def write_table(rows: Iterable[Mapping[str, Any]], path: Path = TABLE) -> None:
    """Write the table in the order of its keys, a line for each row: as few bytes, and lines to review, as can be."""
    lines = ",\n".join(
        f"  {json_text(row, indent=None)}" for row in sorted(rows, key=lambda r: tuple(map(str, key_of(r))))
    )
    write_text(path, f'{{\n "basis": {json_text(BASIS, indent=None)},\n "kernels": [\n{lines}\n ]\n}}\n')


def name_of(row: Mapping[str, Any]) -> str:
    """A kernel for people."""
    return f"{row['precision']} {row['layer']}, {row['unit']}, {row['rows']} x {row['columns']}"


def show(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "| sm | kernel | threads, registers | resident | products / slots | modelled share of peak, by resident |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: tuple(map(str, key_of(r)))):
        shares = ", ".join(
            f"{blocks}: {figure['share'][0]:.0%}" + (f"-{figure['share'][1]:.0%}" if len(figure["share"]) > 1 else "")
            for blocks, figure in row["blocks"].items()
        )
        waits = f", waits for its prefetch before {row['early']:.0%}" if row["early"] > EARLY else ""
        lines.append(
            f"| {row['capability']} | {name_of(row)} | "
            f"{row['threads']}, {row['registers']} | {row['resident']} | {row['products']} / {row['issue_slots']} | "
            f"{shares}{waits} |"
        )
    return "\n".join(lines)


def broken_rules(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """What the check refuses of a kernel.

    Args:
        row: Of the kernel as it is.
        before: Its row in the table; None where it has none.
    """
    name = f"sm_{row['capability']} {name_of(row)}"
    if before is None:
        return [f"{name}: not in the table; run 'modelled.py kernels'"]
    problems = []
    if row["early"] > max(EARLY, before["early"]):
        problems.append(f"{name}: waits for the loads of the next strip before {row['early']:.0%} of its products")
    if row["compiler"] != before["compiler"]:
        return problems  # Another release writes other code: shares do not compare.
    now, then = (r["blocks"][str(r["resident"])]["share"][0] for r in (row, before))
    if now < (1.0 - LOST) * then:
        problems.append(f"{name}: modelled share {now:.1%} of the peak, {then:.1%} in the table")
    return problems


# ------------------------------------------------------------------------------------------------------- command


def _asked(options: argparse.Namespace) -> list[tuple[int, str]]:
    """Architectures with the precisions that they have kernels of."""
    known = known_architectures(options.nvcc)
    for capability in options.architectures or ():
        if capability not in known:
            raise UsageError(f"{options.nvcc} or the model does not know sm_{capability}, but {known}.")
    pairs = [(arch, precision) for arch in options.architectures or known for precision in options.precisions]
    return [pair for pair in pairs if pair[1] != "int8" or (pair[0] >= BYTES[0][0] and pair[0] != 62)]


def _compiled(options: argparse.Namespace, asked: Iterable[tuple[int, str]]) -> Iterable[Kernel]:
    cuobjdump = options.cuobjdump or find_tool("cuobjdump", options.nvcc)
    for capability, precision in asked:
        for kernel in compile_kernels(options.nvcc, cuobjdump, capability, precision):
            if options.layers is None or kernel.layer in options.layers:
                yield kernel


def run_kernels(options: argparse.Namespace) -> int:
    compiler, rows = release(options.nvcc), {key_of(row): row for row in read_table(options.table)}
    made = []
    for kernel in _compiled(options, _asked(options)):
        row = row_of(kernel, compiler)
        made.append(row)
        print(f"modelled: {show([row]).splitlines()[-1]}", file=sys.stderr, flush=True)
    # Tiles that are no more must not be priced.
    renewed = {key_of(row)[:3] for row in made}
    kept = [
        row
        for key, row in rows.items()
        if key[:3] not in renewed and (options.layers is not None or key[:2] not in {each[:2] for each in renewed})
    ]
    write_table([*kept, *made], options.table)
    print(show(made))
    return 0


def run_check(options: argparse.Namespace) -> int:
    compiler, rows = release(options.nvcc), {key_of(row): row for row in read_table(options.table)}
    asked = _asked(options)
    if options.architectures is None:
        in_table = {key[:2] for key in rows}
        asked = [pair for pair in asked if pair in in_table]
    made = [row_of(kernel, compiler, quick=True) for kernel in _compiled(options, asked)] if asked else []
    problems = [problem for row in made for problem in broken_rules(row, rows.get(key_of(row)))]
    print(show(made))
    for problem in problems:
        print(problem)
    print(f"{len(made)} main loops modelled, {len(problems)} break a rule")
    return 1 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("kernels", run_kernels), ("check", run_check)):
        command = commands.add_parser(name)
        command.add_argument("--nvcc", default="nvcc")
        command.add_argument("--cuobjdump", help="else the one beside nvcc, on the path or in a Python package")
        command.add_argument("--architectures", type=int, nargs="+", help="else all that nvcc and the model know")
        command.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=[*PRECISIONS])
        command.add_argument("--layers", nargs="+", choices=[*LAYERS, *_OTHERS.values(), *OTHERS], help="these alone")
        command.add_argument("--table", type=Path, default=TABLE)
        command.set_defaults(run=run)
    boards = commands.add_parser("boards")
    boards.add_argument("--table", type=Path, default=TABLE)
    boards.add_argument("devices", nargs="*", help="else all of whose architectures there are figures")
    boards.add_argument("--precisions", nargs="+", choices=("fp32", "fp16"), default=["fp16", "fp32"])
    boards.add_argument("-o", "--output", type=Path, help="also as JSON")
    boards.set_defaults(run=run_boards)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except DyndeployError as error:
        print(error, file=sys.stderr)
        return 2


def run_boards(options: argparse.Namespace) -> int:
    from boards import report

    result, text = report(options.table, options.devices or None, options.precisions)
    print(text)
    if options.output is not None:
        write_json(options.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
