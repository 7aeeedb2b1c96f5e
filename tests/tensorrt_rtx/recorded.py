"""The recorded layers of every kind of engine; ``python -m tests.tensorrt_rtx.recorded`` records them anew.

Each line is a layer: what it is, what it writes, and which nodes of the graph it computes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from dyndeploy.runtimes.tensorrt_ahead import AheadEngine, build_ahead, rtx_package
from dyndeploy.runtimes.tensorrt_layers import EngineLayers
from tests.tensorrt_rtx.kinds import KINDS, Graphs

RECORD = Path(__file__).parent / "engines.txt"
COMMAND = "python -m tests.tensorrt_rtx.recorded"
CAPABILITY = "8.6"


def listed(built: EngineLayers) -> list[str]:
    """A line per layer; the builder's own numbers and hashes stay out."""
    return [
        f"  {'plugin' if layer.is_plugin else layer.kind:12} "
        f"{' '.join(f'{tensor.type}{list(tensor.shape)}' for tensor in layer.outputs)} <- {', '.join(layer.nodes)}"
        for layer in built.layers
    ]


def build_kind(graphs: Graphs) -> dict[str, AheadEngine]:
    """All engines of a kind by ``"graph, precision"``."""
    return {
        f"{name}, {precision}": build_ahead(model, precision, capabilities=(CAPABILITY,))
        for name, (model, precisions) in graphs.items()
        for precision in precisions
    }


def section(kind: str, engines: Mapping[str, AheadEngine]) -> list[str]:
    """The lines of a kind."""
    lines = []
    for name, engine in engines.items():
        lines += [f"== {kind}: {name}", *listed(engine.built)]
    return lines


def recorded(kind: str) -> list[str]:
    """The lines that were recorded of a kind."""
    lines, inside = [], False
    for line in RECORD.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            inside = line.startswith(f"== {kind}: ")
        if inside:
            lines.append(line)
    return lines


def record() -> None:
    """Write the record."""
    lines = [f"# TensorRT {rtx_package().text}, compute capability {CAPABILITY}. Written by {COMMAND}"]
    for kind, make in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            lines += section(kind, build_kind(make(Path(folder) / "b")))
        print(kind, flush=True)
    RECORD.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
