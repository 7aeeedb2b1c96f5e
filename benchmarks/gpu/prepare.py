"""What can be built ahead for a GPU that is elsewhere: kernels and their test program, by nvcc, without a GPU.

    python benchmarks/gpu/prepare.py FOLDER                                # for sm_90
    python benchmarks/gpu/prepare.py FOLDER --architectures 86 89
    python benchmarks/gpu/prepare.py FOLDER --old-nvcc /usr/local/cuda-11.8/bin/nvcc
    python benchmarks/gpu/prepare.py FOLDER --list                         # only say what would be built

Three builds of the same sources: `native` as it is deployed; `lanes`, in which FP16 runs on plain lanes as on boards
without tensor cores; and `lanes62`, the same as PTX for compute capability 6.2 that the driver compiles where it runs.
nvcc 13 cannot write the third: it needs one of CUDA 11 or 12.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dyndeploy.errors import DyndeployError, UsageError  # noqa: E402
from dyndeploy.files import atomic_directory, read_json, write_json  # noqa: E402

KERNELS = ROOT / "plugins" / "kernels" / "cuda"
TESTS = ROOT / "tests" / "plugins"
UNITS = tuple(sorted(path.stem for path in KERNELS.glob("*.cu")))
TEST = "test_kernels_cuda"
LIMIT = 56 << 20
"""Bytes: what a machine takes is often limited to 64 MiB, and the sources travel, too."""
RECORD = "prepared.json"
PTX_ARCHITECTURE = 62
SECONDS = 900.0


@dataclass(frozen=True)
class Build:
    """One build of the kernels.

    Attributes:
        name: Part of its files' names.
        nvcc: The compiler.
        code: Its ``-gencode`` options.
        defines: Macros.
        what: What it shows, for people.
    """

    name: str
    nvcc: str
    code: tuple[str, ...]
    defines: tuple[str, ...]
    what: str

    @property
    def library(self) -> str:
        """Name of the library with the C interface."""
        return f"libdyndeploy_cuda_{self.name}.so"

    @property
    def program(self) -> str:
        """Name of the test program."""
        return f"{TEST}_{self.name}"

    def compile(self, folder: Path) -> list[list[str]]:
        """Commands that compile the kernels and their test, in any order."""
        options = ["-Xcompiler=-fPIC,-fvisibility=hidden", "-c"]
        sources = {unit: KERNELS / f"{unit}.cu" for unit in UNITS} | {TEST: TESTS / f"{TEST}.cpp"}
        return [
            [*self._base(), *options, str(path), "-o", self._object(unit, folder)] for unit, path in sources.items()
        ]

    def link(self, folder: Path) -> list[list[str]]:
        """Commands that make the library and the program, in any order, after :meth:`compile`."""
        objects = [self._object(unit, folder) for unit in UNITS]
        # The machine may have another runtime of C++.
        common = [*self._base(), "-cudart", "static", "-Xcompiler=-static-libstdc++,-static-libgcc", *objects]
        shared = ["-shared", "-Xcompiler=-fPIC,-fvisibility=hidden", str(TESTS / "kernels_cuda_c.cpp")]
        program = [self._object(TEST, folder)]
        return [
            [*common, *shared, "-o", str(folder / self.library)],
            [*common, *program, "-o", str(folder / self.program)],
        ]

    def _object(self, unit: str, folder: Path) -> str:
        return str(folder / f"{self.name}-{unit}.o")

    def _base(self) -> list[str]:
        defines = [f"-D{name}" for name in self.defines]
        return [self.nvcc, "-std=c++14", "-O3", "-lineinfo", *defines, *self.code, f"-I{KERNELS}"]


def builds(nvcc: str, architectures: Sequence[int], old_nvcc: str | None) -> list[Build]:
    """The builds for these compute capabilities (10 * major + minor)."""
    # sm_90 with all that is its own, as CMakeLists.txt of the kernels names it.
    names = ["90a" if arch == 90 else str(arch) for arch in architectures]
    code = tuple(f"-gencode=arch=compute_{name},code=sm_{name}" for name in names)
    newest = max(architectures)
    forward = f"-gencode=arch=compute_{newest},code=compute_{newest}"
    found = [
        Build("native", nvcc, (*code, forward), ("DYN_PLAYED_DEVICE",), "as it is deployed"),
        Build("lanes", nvcc, code, ("DYN_PLAYED_DEVICE", "DYN_LANES_ONLY"), "FP16 on plain lanes"),
    ]
    if old_nvcc is not None:
        virtual = f"compute_{PTX_ARCHITECTURE}"
        found.append(
            Build(
                f"lanes{PTX_ARCHITECTURE}",
                old_nvcc,
                (f"-gencode=arch={virtual},code={virtual}",),
                ("DYN_PLAYED_DEVICE", "DYN_LANES_ONLY"),
                f"FP16 on plain lanes, PTX of sm_{PTX_ARCHITECTURE} compiled by the driver",
            )
        )
    return found


def sources_digest() -> str:
    """SHA-256 of all that the builds are made of."""
    files = [path for path in KERNELS.rglob("*") if path.suffix in (".h", ".cu")]
    files += [TESTS / "kernels_cuda_c.cpp", TESTS / f"{TEST}.cpp"]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def prepare(folder: Path, found: Sequence[Build], jobs: int) -> dict[str, object]:
    """Build everything into a folder, which is replaced.

    Returns:
        What is recorded beside it.

    Raises:
        UsageError: A compiler is missing or fails, or the files are too large to travel.
    """
    with atomic_directory(folder, replace_if=RECORD) as partial, ThreadPoolExecutor(jobs) as pool:
        _all(pool, [command for build in found for command in build.compile(partial)])
        _all(pool, [command for build in found for command in build.link(partial)])
        for path in partial.glob("*.o"):
            path.unlink()
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        if sum(sizes.values()) > LIMIT:
            raise UsageError(
                f"The files have {sum(sizes.values()) / 2**20:.0f} MiB, and more than {LIMIT >> 20} may not fit what a "
                "machine takes. Name fewer --architectures."
            )
        record: dict[str, object] = {
            "sources": sources_digest(),
            "builds": [
                {
                    "name": build.name,
                    "library": build.library,
                    "program": build.program,
                    "what": build.what,
                    "code": [option.removeprefix("-gencode=") for option in build.code],
                    "nvcc": _version(build.nvcc),
                }
                for build in found
            ],
            "bytes": sizes,
        }
        write_json(partial / RECORD, record)
    return record


def load(folder: Path) -> dict[str, object]:
    """What stands in a prepared folder.

    Raises:
        UsageError: It is none, or was made from other sources.
    """
    if not (folder / RECORD).is_file():
        raise UsageError(f"{folder} was not made by prepare. Run: python benchmarks/gpu/prepare.py {folder}")
    record: dict[str, object] = read_json(folder / RECORD)
    if record.get("sources") != sources_digest():
        raise UsageError(f"{folder} was made from other sources. Run: python benchmarks/gpu/prepare.py {folder}")
    return record


def _all(pool: ThreadPoolExecutor, commands: Sequence[list[str]]) -> None:
    for _ in pool.map(_run, commands):
        pass


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS)
    except FileNotFoundError as error:
        raise UsageError(f"{command[0]} is not there. Give --nvcc, or --old-nvcc.") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{command[0]} took more than {SECONDS:g} s.") from error
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line), lines[-1] if lines else "it said nothing")
        raise UsageError(f"{command[0]} failed: {said}")


def _version(nvcc: str) -> str:
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return next((line.strip() for line in said.splitlines() if "release" in line), said.strip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="Where the files go; a prepared one is replaced.")
    parser.add_argument("--architectures", type=int, nargs="+", default=[90], help="Compute capabilities, e.g. 86 89.")
    parser.add_argument("--nvcc", default="nvcc", help="nvcc that knows them.")
    parser.add_argument("--old-nvcc", help="nvcc of CUDA 11 or 12, for PTX of compute capability 6.2.")
    parser.add_argument("--jobs", type=int, default=2, help="Compilers at a time.")
    parser.add_argument("--list", action="store_true", help="Build nothing, only print the commands.")
    given = parser.parse_args(arguments)
    found = builds(given.nvcc, given.architectures, given.old_nvcc)
    try:
        if given.list:
            for build in found:
                for command in (*build.compile(given.folder), *build.link(given.folder)):
                    print(" ".join(command))
        else:
            record = prepare(given.folder, found, given.jobs)
            print(json.dumps(record["bytes"], indent=2))
    except DyndeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if given.old_nvcc is None:
        print(f"without --old-nvcc there is no PTX of sm_{PTX_ARCHITECTURE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
