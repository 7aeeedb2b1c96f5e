"""Where one run of a network spends its time on this CPU, node by node, from the runtime's own profile.

    python benchmarks/cpu/nodes.py BUNDLE --rate 0.5                   # forced masks; of an INT8 bundle, too
    python benchmarks/cpu/nodes.py BUNDLE --every-node --isa avx2
    python benchmarks/cpu/nodes.py static.onnx --openvino              # the same of a static network in OpenVINO

Measured: of every node the fastest run of a few. A node belongs to the stem, a stage of blocks or the head by its name,
and to what it does by its type; what the runtime inserts is found between nodes that have names. A profile makes runs
slower: the sum is no latency.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from contestants import Dynamic

from dyndeploy.bundle import Bundle
from dyndeploy.graphs.forced import forced_feeds, forced_masks, overlay_forced_masks
from dyndeploy.graphs.inspect import group_of
from dyndeploy.prediction.nodes import is_block

CLASSES = {
    "Q/DQ": ("QuantizeLinear", "DequantizeLinear", "FakeQuantize"),
    "masker": ("Masker",),
    "block": ("Bottleneck", "Block"),
    "layout": ("Transpose", "Reorder"),
    "convolution": ("Conv",),
    "pool": ("Pool", "ReduceMean"),
    "product": ("Gemm", "MatMul", "FullyConnected"),
}
"""Parts of operator names by what the operators do, the first that fits; others are ``"rest"``."""


@dataclass(frozen=True)
class Timed:
    """A node, where it belongs, and its fastest run in microseconds."""

    name: str
    op_type: str
    part: str
    us: float

    @property
    def does(self) -> str:
        """Key of :data:`CLASSES`, or ``"rest"``."""
        return next((kind for kind, marks in CLASSES.items() if any(mark in self.op_type for mark in marks)), "rest")


def placed(nodes: Iterable[tuple[str, str, float]]) -> Iterator[Timed]:
    """Nodes (name, type, microseconds) in order of execution, with their parts.

    A node without a block's name, which the runtime made, counts to the part before it, the first ones to the stem.
    """
    part = "stem"
    for name, op_type, us in nodes:
        group = group_of(name)
        if group in ("stem", "head") or is_block(group):
            part = group.partition(".")[0]
        yield Timed(name, op_type, part, us)


def summary(nodes: Sequence[Timed]) -> str:
    """Markdown: microseconds by part of the network and by what is done there."""
    kinds = [kind for kind in (*CLASSES, "rest") if any(node.does == kind for node in nodes)]
    lines = [f"| part | all, us | {' | '.join(kinds)} |", f"|{'---|' * (len(kinds) + 2)}"]
    for part in [*dict.fromkeys(node.part for node in nodes), None]:
        own = [node for node in nodes if part in (None, node.part)]
        cells = [sum(node.us for node in own if node.does == kind) for kind in kinds]
        shown = " | ".join(f"{value:.0f}" if value else "" for value in cells)
        lines.append(f"| {part or 'all'} | {sum(cells):.0f} | {shown} |")
    return "\n".join(lines)


def every_node(nodes: Sequence[Timed]) -> str:
    """Markdown: all nodes in order of execution."""
    rows = [f"| {node.part} | {node.name} | {node.op_type} | {node.us:.0f} |" for node in nodes]
    return "\n".join(["| part | node | operator | us |\n|---|---|---|---|", *rows])


def onnxruntime_nodes(source: Bundle | Path, contestant: Dynamic, rate: float, threads: int, runs: int) -> list[Timed]:
    """Nodes of a bundle at a forced rate, or of an ONNX file."""
    if isinstance(source, Bundle):
        masks = source.manifest.masks
        model = overlay_forced_masks(source.load_model(), masks)
        forced = forced_feeds(forced_masks(masks, rate, seed=0), masks)
    else:
        model, forced = onnx.load(source), {}
    with contestant.open(model, threads, profile=True) as session:
        rng = np.random.default_rng(0)
        feeds = {i.name: rng.random(i.shape, np.float32) for i in session.inputs if i.name not in forced}
        run = session.bind({**feeds, **forced}, [session.outputs[0].name])
        for _ in range(runs + 2):
            run()
        found = [(node.name, node.op_type, node.fastest) for node in session.node_times(slice(2, None))]
    return list(placed(found))


def openvino_nodes(path: Path, threads: int, runs: int) -> list[Timed]:
    """Nodes of an ONNX file of standard operators in OpenVINO; types are its primitives."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    compiled = core.compile_model(core.read_model(path), "CPU", options)
    request = compiled.create_infer_request()
    rng = np.random.default_rng(0)
    feeds = {i.get_any_name(): rng.random(tuple(i.shape), np.float32) for i in compiled.inputs}
    fastest: dict[tuple[str, str], float] = {}
    for _ in range(runs + 2):
        request.infer(feeds)
        for node in request.get_profiling_info():
            if node.status.name == "EXECUTED":
                key, us = (node.node_name, f"{node.node_type} {node.exec_type}"), node.real_time.total_seconds() * 1e6
                fastest[key] = min(us, fastest.get(key, us))
    return list(placed((name, op_type, us) for (name, op_type), us in fastest.items()))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a bundle's folder, or an ONNX file")
    parser.add_argument("--rate", type=float, default=1.0, help="of a bundle's forced masks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--isa", help="as DYNDEPLOY_CPU_ISA")
    parser.add_argument("--native", default="auto", help="the operator library, or off: function bodies")
    parser.add_argument("--openvino", action="store_true", help="of an ONNX file of standard operators")
    parser.add_argument("--every-node", action="store_true", help="not only the sums")
    arguments = parser.parse_args()
    source = Bundle.open(arguments.source) if arguments.source.is_dir() else arguments.source
    if arguments.openvino:
        nodes = openvino_nodes(arguments.source, arguments.threads, arguments.runs)
    else:
        precision = source.manifest.cpu_precision if isinstance(source, Bundle) else "fp32"
        contestant = Dynamic("nodes", arguments.native, arguments.isa, precision)
        nodes = onnxruntime_nodes(source, contestant, arguments.rate, arguments.threads, arguments.runs)
    print(summary(nodes))
    if arguments.every_node:
        print(every_node(nodes))


if __name__ == "__main__":
    main()
