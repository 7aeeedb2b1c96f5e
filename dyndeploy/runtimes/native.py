"""Where the native operator libraries are."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dyndeploy import files
from dyndeploy.errors import UsageError

ISA_VARIABLE = "DYNDEPLOY_CPU_ISA"
"""Environment variable that names the instruction set of the CPU library, read when a session is opened."""

CPU_PROVIDER = "CPUExecutionProvider"
"""ONNX Runtime's name of the provider that computes on the CPU."""

LIBRARY_VARIABLE = "DYNDEPLOY_CPU_LIBRARY"
"""Environment variable that names the library, before the one inside the package is looked for."""

TENSORRT_LIBRARY_VARIABLE = "DYNDEPLOY_TENSORRT_LIBRARY"
"""Environment variable that names the TensorRT plugins, before those inside the package are looked for."""

BODIES_NOTE = (
    "The dynamic operators ran as function bodies, without the operator library, which takes 1.3 to 1.5 times less "
    "time (LAUD-ResNet-50 at rate 0.5, measured on an AMD EPYC with AVX-512, 1 thread). To get it, have a C++17 "
    "compiler (Debian, Ubuntu: apt install g++) and repeat pip install, or install a wheel that carries it."
)
"""What a reader of times should know where no operator library was in use."""

FALLBACK_BODIES = "function bodies"
"""What ran the dynamic operators where no operator library did: what they are made of, operators of ONNX itself."""

_LIBRARY_NAME = "libdyndeploy_ort_cpu.so"
_TENSORRT_LIBRARY_NAME = "libdyndeploy_tensorrt.so"


@dataclass(frozen=True)
class NativeLibrary:
    """A library of native operators: its path and SHA-256."""

    path: Path
    sha256: str

    def precisions(self) -> tuple[str, ...]:
        """What the library says it can compute bottlenecks in.

        One that says nothing is older than the choice: it would take a request for BF16, ignore it and compute in FP32.
        One that does not name INT8 lacks the operators in integers, which then run as function bodies.

        Raises:
            OSError: The file cannot be loaded as a library.
        """
        return tuple((self._says("DyndeployPrecisions") or "fp32").split())

    def instruction_sets(self, precision: str = "fp32") -> tuple[str, ...]:
        """What ``DYNDEPLOY_CPU_ISA`` may name on this machine, best first; empty if the library does not say.

        Args:
            precision: ``"int8"`` asks for the instruction sets of operators in integers. The name of one for floats
                stands for the best of these that needs nothing beyond it.

        Raises:
            OSError: The file cannot be loaded as a library.
        """
        question = "DyndeployIntegerInstructionSets" if precision == "int8" else "DyndeployInstructionSets"
        return tuple((self._says(question) or "").split())

    def instruction_set(self, precision: str = "fp32") -> str | None:
        """What a session opened now would compute with: the best one, or that of ``DYNDEPLOY_CPU_ISA``.

        None if the library does not say, or would refuse the session.

        Raises:
            OSError: The file cannot be loaded as a library.
        """
        return self._says("DyndeployInstructionSet", precision.encode()) or None

    def _says(self, question: str, *arguments: bytes) -> str | None:
        """The answer of one of the library's functions; None where it has no such function."""
        try:
            function = getattr(ctypes.CDLL(str(self.path)), question)
        except AttributeError:
            return None
        function.restype = ctypes.c_char_p
        answer: bytes = function(*(ctypes.c_char_p(argument) for argument in arguments))
        return answer.decode()


def operator_code(operators: Collection[str], native: Mapping[str, Any] | None) -> str | None:
    """Which code ran the dynamic operators, in few words, for a reader of times.

    Args:
        operators: Types of the network's dynamic operators.
        native: ``path`` and ``instruction_set`` of the library, as in :class:`~dyndeploy.runtimes.NativeUse`.

    Returns:
        ``"libdyndeploy_ort_cpu.so (avx512)"``, or ``"function bodies"``; None where there are no such operators, or
        nobody noted what ran them.
    """
    if not operators or native is None or "path" not in native:
        return None
    if native["path"] is None:
        return FALLBACK_BODIES
    used = native.get("instruction_set")
    return os.path.basename(str(native["path"])) + (f" ({used})" if used else "")


def bodies_note(operators: Collection[str], native: Mapping[str, Any] | None, provider: object) -> str:
    """:data:`BODIES_NOTE` where a library would have been faster, because bodies ran on a CPU; else empty."""
    bodies = operator_code(operators, native) == FALLBACK_BODIES
    return BODIES_NOTE if bodies and provider == CPU_PROVIDER else ""


def native_library(path: str | os.PathLike[str]) -> NativeLibrary:
    """Describe the library at ``path``; raises ``UsageError`` if there is no file."""
    library = Path(path)
    if not library.is_file():
        raise UsageError(f"There is no operator library at {library}. Build it, or ask for native='off'.")
    return NativeLibrary(library.resolve(), files.sha256(library))


def find_cpu_library() -> NativeLibrary | None:
    """Find the CPU operator library.

    Returns:
        The file that ``DYNDEPLOY_CPU_LIBRARY`` names, else the one that came with the package, else None.

    Raises:
        UsageError: The variable names a file that does not exist.
    """
    return _find(LIBRARY_VARIABLE, _LIBRARY_NAME)


def find_tensorrt_library() -> NativeLibrary | None:
    """Find the library of TensorRT plugins.

    Returns:
        The file that ``DYNDEPLOY_TENSORRT_LIBRARY`` names, else the one that came with the package, else None.

    Raises:
        UsageError: The variable names a file that does not exist.
    """
    return _find(TENSORRT_LIBRARY_VARIABLE, _TENSORRT_LIBRARY_NAME)


def _find(variable: str, file_name: str) -> NativeLibrary | None:
    named = os.environ.get(variable)
    if named:
        return native_library(named)
    packaged = resources.files("dyndeploy") / "lib" / file_name
    return native_library(str(packaged)) if packaged.is_file() else None
