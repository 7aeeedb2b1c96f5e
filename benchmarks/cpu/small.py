"""Small networks and odd sizes, where the fixed cost of a call shows, and that cost itself, operator by operator."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from contestants import BEST, BODIES, Dynamic
from onnx import helper, numpy_helper

from dyndeploy.bundle import Bundle
from dyndeploy.demo import run_demo
from dyndeploy.measure.loop import Clock, Paired, time_rounds
from dyndeploy.ops import DOMAIN, OPERATORS, Element, OperatorSpec, Role
from dyndeploy.runtimes import OnnxRuntimeSession

OPERATOR_LIMIT_US = 3.0
DEMO_DENSE, DEMO_OWN = 1.00, 1.50
"""Least speed of the demo's network over its twin: at rate 1.0, and at the masks that its images cause."""

DEMO = "demo"


@dataclass(frozen=True)
class SmallNetwork:
    """One network of the table.

    Attributes:
        label: What it is called there.
        name: Registered network.
        size: (height, width) of the image.
        options: Of the network.
    """

    label: str
    name: str
    size: tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)


def small_networks() -> list[SmallNetwork]:
    """Blocks and widths of ResNet-34 (3-4-6-3, 64 to 512 channels) and of a network with half the blocks."""
    quarter = {"width_mult": 0.25}
    return [
        *(SmallNetwork("laud_resnet14_small", "laud_resnet14_small", size) for size in ((32, 32), (33, 47))),
        *(SmallNetwork("laud_resnet26_small", "laud_resnet26_small", size) for size in ((96, 96), (97, 131))),
        *(
            SmallNetwork("laud_resnet50 x 0.25", "laud_resnet50", size, quarter)
            for size in ((96, 96), (97, 131), (128, 128), (160, 160))
        ),
    ]


def demo_bundle(folder: Path) -> tuple[Bundle, Path]:
    """The bundle of ``dyndeploy demo`` in a folder, which is trained there first if need be, and its images."""
    if not (folder / "bundle").exists():
        run_demo(folder, step=lambda line: print(f"demo: {line}", flush=True))
    return Bundle.open(folder / "bundle"), folder / "images"


SIDE, CHANNELS, HIDDEN = 4, 16, 8
SIZES = {
    "N": 1, "H": SIDE, "W": SIDE, "C": CHANNELS, "Co": CHANNELS, "M": HIDDEN, "M/group": HIDDEN,
    "G": 4, "mh": 2, "mw": 2, "g": 1, "h": 4, "S": 4,
}  # fmt: skip
CONVOLUTIONS = {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1, "pool_active": 1}
OF_MAPS = {
    name: spec
    for name, spec in OPERATORS.items()
    if spec.inputs[0].shape == ("N", "H", "W", "C") and spec.inputs[0].element is Element.DATA
}
"""Operators on maps of floats; those of transformers have a benchmark of their own."""


@dataclass(frozen=True)
class OneOperator:
    """An operator on a map of 4 x 4 pixels and 16 channels.

    Attributes:
        name: Of the operator.
        model: It alone; weights are constants.
        relu: A Relu that takes as many inputs, in its place.
        masks: Shapes of the masks.
    """

    name: str
    model: onnx.ModelProto
    relu: onnx.ModelProto
    masks: dict[str, tuple[int, ...]]


def one_operator(spec: OperatorSpec) -> OneOperator:
    """The models of an operator."""
    random = np.random.default_rng(0)
    shapes = {port.name: tuple(SIZES.get(axis) or int(axis) for axis in port.shape) for port in spec.inputs}
    masks = {name: shapes[name] for name in spec.mask_inputs()}
    attributes: dict[str, Any] = {"mask_height": 2, "mask_width": 2} if spec.name == "SpatialMasker" else {}
    if not spec.decides:
        attributes = {attribute.name: CONVOLUTIONS[attribute.name] for attribute in spec.attributes}
    weights = [
        numpy_helper.from_array(random.standard_normal(shapes[port.name]).astype(np.float32), port.name)
        for port in spec.inputs
        if port.role is Role.WEIGHT
    ]

    def model(node: onnx.NodeProto, held: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
        given = {"x": shapes["x"], **masks}
        inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in given.items()]
        shape = shapes["x"] if node.op_type == "Relu" else spec.infer_shape(list(shapes.values()), attributes)
        output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, spec.version)]
        graph = helper.make_graph([node], node.op_type, inputs, [output], held)
        return helper.make_model(graph, opset_imports=opsets, functions=[spec.function(18)], ir_version=10)

    identity = {"domain": DOMAIN, "plugin_version": "1", "plugin_namespace": ""}
    own = helper.make_node(spec.name, list(shapes), ["y"], **identity, **attributes)
    return OneOperator(spec.name, model(own, weights), model(helper.make_node("Relu", ["x"], ["y"]), ()), masks)


def operator_costs(dynamics: Sequence[Dynamic], threads: int, repeats: int = 40) -> list[dict[str, Any]]:
    """Microseconds of a call on tiny inputs: a model of one operator less a model of one Relu, in turn.

    Masks keep nothing, half or everything. What is left of arithmetic (13 000 multiply-accumulates at most) is in it,
    what any node costs (the Relu's dispatch) is not.
    """
    rows: list[dict[str, Any]] = []
    pairs: list[Paired] = []
    with ExitStack() as stack:
        for operator in map(one_operator, OF_MAPS.values()):
            twin = stack.enter_context(OnnxRuntimeSession(operator.relu, threads=threads, native="off"))
            for contestant in dynamics:
                session = stack.enter_context(contestant.open(operator.model, threads))
                for rate in _rates(operator):
                    feeds = {"x": np.ones((1, SIDE, SIDE, CHANNELS), np.float32)}
                    for name, shape in operator.masks.items():
                        feeds[name] = np.zeros(shape, np.float32)
                        feeds[name].reshape(-1)[: round((rate or 0.0) * feeds[name].size)] = 1
                    rows.append(
                        {"operator": operator.name, "contestant": contestant.name, "threads": threads, "rate": rate}
                    )
                    pairs.append(Paired(operator.name, [session.bind(feeds)], [twin.bind(feeds)]))
        time_rounds(pairs, Clock(single_thread=threads == 1), repeats, 0.0, 20, lambda message, done: None)
    for row, pair in zip(rows, pairs, strict=True):
        # A ratio is the time of the Relu, just before and after, over that of the operator.
        us = [
            1000 * statistics.median(visit.ms) * (1 - ratio)
            for visit, (_, ratio, _) in zip(pair.visits, pair.ratios, strict=True)
        ]
        row["us"], row["spread_us"] = statistics.median(us), [float(value) for value in np.percentile(us, [25, 75])]
    return rows


def _rates(operator: OneOperator) -> tuple[float | None, ...]:
    if not operator.masks:
        return (None,)
    sizes = [np.prod(shape) for shape in operator.masks.values()]
    return (0.0, 1.0) if max(sizes) == 1 else (0.0, 0.5, 1.0)  # A mask of one bit has no half.


def costs_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    names = list(dict.fromkeys((row["contestant"], row["threads"]) for row in rows))
    by_key = {(row["operator"], row["rate"], row["contestant"], row["threads"]): row for row in rows}
    lines = [
        f"| operator | masks keep | {' | '.join(f'{name}, {threads} thread(s)' for name, threads in names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for operator, rate in dict.fromkeys((row["operator"], row["rate"]) for row in rows):
        cells = []
        for name, threads in names:
            row = by_key.get((operator, rate, name, threads))
            spread = "" if row is None else " [{:.1f}, {:.1f}]".format(*row["spread_us"])
            cells.append("" if row is None else f"{row['us']:.1f}{spread}")
        keeps = "" if rate is None else {0.0: "nothing", 0.5: "half", 1.0: "everything"}[rate]
        lines.append(f"| {operator} | {keeps} | {' | '.join(cells)} |")
    own = [row for row in rows if row["contestant"] == BEST]
    if own:
        worst = max(own, key=lambda row: row["us"])
        met = sum(row["us"] <= OPERATOR_LIMIT_US for row in own)
        verdict = "met" if met == len(own) else f"**missed** ({met} of {len(own)} met)"
        lines += [
            "",
            f"Limit {OPERATOR_LIMIT_US:g} us an operator, {BEST}: most {worst['us']:.1f} us ({worst['operator']}, "
            f"{worst['threads']} thread(s)): {verdict}.",
        ]
    return "\n".join(lines)


def demo_limits(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the demo's network against its limits; they hold for the library, on every instruction set."""
    lines = [
        "| contestant | threads | the demo's network at | at least | measured | verdict |\n|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = row["masks"] == "data"
        if (
            row["network"] != DEMO
            or row["rate"] is None
            or row["contestant"].endswith(BODIES)
            or not (own or row["rate"] == 1.0)
        ):
            continue
        least, what = (DEMO_OWN, "the images' own masks") if own else (DEMO_DENSE, "rate 1.0, forced")
        lines.append(
            f"| {row['contestant']} | {row['threads']} | {what} | {least:.2f} | {row['realised_speedup']:.2f} "
            f"| {'met' if row['realised_speedup'] >= least else '**missed**'} |"
        )
    return "\n".join(lines)
