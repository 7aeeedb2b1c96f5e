"""Graphs in INT8: dynamic operators to the bit, and the runtime's own integer operators within a step."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from dyndeploy.bundle import Bundle, MaskInfo
from dyndeploy.bundle.reference_names import FORCED
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.graphs.inspect import is_dynamic, operator_attributes
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.base import Element, as_tuple
from dyndeploy.quantization import runtime_integers
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.verification.masks import MaskBits
from dyndeploy.verification.report import Check
from dyndeploy.verification.tensors import Tensors, batches

Array = npt.NDArray[Any]

_NOTABLE_SHARE = 1e-3
_HAS_TORCH = importlib.util.find_spec("torch") is not None


def check_integers(
    bundle: Bundle,
    models: Sequence[onnx.ModelProto],
    reference: Tensors,
    *,
    threads: int,
    native: str | os.PathLike[str],
) -> list[Check]:
    """Check the integer part of a bundle on its first reference batch, under the reference's masks and random ones.

    Every dynamic operator in integers gets what reached it in ONNX Runtime; what it gives there, with the library and
    as a function body, is compared with its reference in PyTorch, bit by bit. What the runtime computes in integers
    of its own is compared with the same layer in double precision, on the same bytes. Where PyTorch is missing, the
    library is compared with the function bodies, and standard layers are not looked at. What stands in a branch is
    held by the network's outputs alone.

    Args:
        bundle: In INT8.
        models: Its graph, or all stages.
        reference: Its reference tensors.
        threads: Threads of the sessions.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
    """
    masks, names = bundle.manifest.masks, [info.name for info in bundle.manifest.inputs]
    first = next(batches({name: reference[name] for name in names}, bundle.manifest.batch))
    size = bundle.manifest.batch
    sets = [{mask.name: reference[f"{prefix}{mask.name}"][:size] for mask in masks} for prefix in ("", FORCED)]
    exact, steps = _Exact(), _Steps()
    for chosen in sets if masks else sets[:1]:
        carried: dict[str, Array] = dict(first)
        for model in models:
            own = [mask for mask in masks if mask.name in {value.name for value in model.graph.output}]
            feeds = _feeds(model, carried, own, chosen)
            forced = overlay_forced_masks(model, own) if own else model
            values = exact.look(forced, feeds, threads, native)
            steps.look(forced, feeds, threads)
            carried |= {value.name: values[value.name] for value in model.graph.output}
    return [check for check in (exact.check(), exact.range_check(), steps.check()) if check is not None]


def mask_flips_line(bits: MaskBits, samples: int) -> Check:
    """How many mask bits differ from FP32's; no failure, because a bit may flip where its decision is close."""
    flips = bits.flipped + bits.tied
    return Check(
        "masks in INT8",
        True,
        f"INT8 on {samples} samples: {flips} of {bits.bits} mask bits differ from PyTorch's in FP32 "
        f"({flips / max(1, bits.bits):.3%}), each decided under FP32's masks",
    )


def _feeds(
    model: onnx.ModelProto, carried: Mapping[str, Array], masks: Sequence[MaskInfo], chosen: Mapping[str, Array]
) -> dict[str, Array]:
    feeds = {value.name: carried[value.name] for value in model.graph.input}
    return feeds | (forced_feeds({mask.name: chosen[mask.name] for mask in masks}, masks) if masks else {})


class _Exact:
    """Compares dynamic operators in integers with their references."""

    def __init__(self) -> None:
        self._nodes: set[str] = set()
        self._calls = self._values = 0
        self._wrong: dict[str, int] = {}
        self._bytes = self._limits = 0

    def look(
        self, model: onnx.ModelProto, feeds: Mapping[str, Array], threads: int, native: str | os.PathLike[str]
    ) -> dict[str, Array]:
        """Run a graph and compare its operators; returns its outputs."""
        nodes = [node for node in model.graph.node if _in_integers(node)]
        constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        wanted = {name for node in nodes for name in (*node.input, *node.output) if name and name not in constants}
        ways: dict[str, str | os.PathLike[str]] = {"as deployed": native}
        if native != "off":
            ways["as a function body"] = "off"
        results: dict[str, Array] = {}
        for way, library in ways.items():
            got = _run(_exposing(model, wanted), feeds, threads, library)
            if not results:
                results = got
                self._count_limits(nodes, got)
            known = {**constants, **feeds, **got}
            for node in nodes:
                expected = self._reference(node, known) if _HAS_TORCH else [results[name] for name in node.output]
                self._compare(node, known, expected, way)
        return results

    def _count_limits(self, nodes: Sequence[onnx.NodeProto], values: Mapping[str, Array]) -> None:
        """Count bytes at the end of their range; those of the first run are under the network's own masks."""
        for value in (values[name] for node in nodes for name in node.output if values[name].dtype == np.uint8):
            if self._calls < len(nodes):
                self._bytes += value.size
                self._limits += int((value == np.iinfo(np.uint8).max).sum())

    def range_check(self) -> Check | None:
        """How much the reference images leave the calibrated range: no failure, but what explains one."""
        if not self._bytes:
            return None
        share = self._limits / self._bytes
        more = (
            ": they cause values that calibration did not see, which are cut off, and outputs differ for that. Export "
            "with --data of the kind of images that it was calibrated on"
        )
        return Check(
            "integers: range",
            True,
            f"{share:.2%} of what blocks give for the reference images is at the end of its range"
            + (more if share > _NOTABLE_SHARE else ""),
        )

    def _reference(self, node: onnx.NodeProto, known: Mapping[str, Array]) -> list[Array]:
        import torch

        inputs = [torch.from_numpy(np.array(known[name])) for name in node.input]
        with torch.no_grad():
            results = as_tuple(OPERATORS[node.op_type].reference(*inputs, **operator_attributes(node)))
        return [value.numpy() for value in results]

    def _compare(self, node: onnx.NodeProto, known: Mapping[str, Array], expected: Sequence[Array], way: str) -> None:
        self._nodes.add(node.name)
        self._calls += 1
        for name, value in zip(node.output, expected, strict=True):
            differs = int((known[name] != value).sum())
            self._values += value.size
            if differs:
                self._wrong[f"{node.name} {way}"] = self._wrong.get(f"{node.name} {way}", 0) + differs

    def check(self) -> Check | None:
        """To the bit; None where there is no such operator."""
        if not self._nodes:
            return None
        wrong = ", ".join(f"{name}: {count}" for name, count in list(self._wrong.items())[:4])
        what = "the reference" if _HAS_TORCH else "with the other code (the reference needs PyTorch)"
        return Check(
            "integers: dynamic operators",
            not self._wrong,
            f"{self._values} values of {len(self._nodes)} operators in {self._calls} calls, "
            + (f"but some differ from {what} ({wrong})" if wrong else f"every bit as {what}"),
        )


class _Steps:
    """Compares what the runtime computes in integers of its own with the same in double precision."""

    def __init__(self) -> None:
        self._layers: set[str] = set()
        self._values = self._differ = self._worst = 0

    def look(self, model: onnx.ModelProto, feeds: Mapping[str, Array], threads: int) -> None:
        """Run a graph as deployed; then compute every such layer anew, on the bytes that it got."""
        layers = _layers(model) if _HAS_TORCH else []
        if not layers:
            return
        names = {name for layer in layers for name in (*layer.inputs, layer.output)}
        deployed = {**feeds, **_run(_exposing(model, names), feeds, threads, "off")}
        constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        for layer in layers:
            wanted = _computed(layer, {**constants, **deployed})
            got = deployed[layer.output].astype(np.int32)
            difference = np.abs(got - wanted)
            self._layers.add(layer.node.name)
            self._values += difference.size
            self._differ += int((difference > 0).sum())
            self._worst = max(self._worst, int(difference.max(initial=0)))

    def check(self) -> Check | None:
        """Within a step; None where there is no such layer."""
        if not self._layers:
            return None
        return Check(
            "integers: standard layers",
            self._worst <= 1,
            f"{len(self._layers)} layers that ONNX Runtime computes in integers of its own: {self._differ} of "
            f"{self._values} values differ from double precision, by {self._worst} step(s) at most (1 may be)",
        )


@dataclass(frozen=True)
class _Layer:
    """A standard operator between DequantizeLinear and QuantizeLinear.

    Attributes:
        node: The operator.
        before: The DequantizeLinears that it reads.
        behind: The Relu that may follow, and the QuantizeLinear.
        inputs: Names of the bytes that it reads.
        output: Name of the bytes that it gives.
    """

    node: onnx.NodeProto
    before: tuple[onnx.NodeProto, ...]
    behind: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    output: str


def _layers(model: onnx.ModelProto) -> list[_Layer]:
    """What the runtime computes in integers of its own, outside of branches."""
    names = set(runtime_integers(model))
    constants = {item.name for item in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    found = []
    for node in (node for node in model.graph.node if node.name in names):
        before = tuple(made[name] for name in node.input if name in made)
        behind = [readers[node.output[0]]]
        while behind[-1].op_type != "QuantizeLinear":
            behind.append(readers[behind[-1].output[0]])
        inputs = tuple(each.input[0] for each in before if each.input[0] not in constants)
        found.append(_Layer(node, before, tuple(behind), inputs, behind[-1].output[0]))
    return found


def _computed(layer: _Layer, values: Mapping[str, Array]) -> Array:
    """What a layer gives for its bytes, in double precision; int32."""
    import torch
    import torch.nn.functional as F

    inputs = [_dequantised(each, values) for each in layer.before]
    if layer.node.op_type == "Conv":
        attributes = {item.name: helper.get_attribute_value(item) for item in layer.node.attribute}
        sides = inputs[0].ndim - 2
        pads = list(attributes.get("pads", [0] * 2 * sides))
        # ONNX lists where all axes begin, then where they end; PyTorch both of the last axis first.
        around = [pads[axis + end * sides] for axis in reversed(range(sides)) for end in (0, 1)]
        convolve: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[sides]
        x, *weights = (torch.from_numpy(each) for each in inputs)
        result = convolve(
            F.pad(x, around),
            *weights,
            stride=list(attributes.get("strides", [1] * sides)),
            dilation=list(attributes.get("dilations", [1] * sides)),
            groups=attributes.get("group", 1),
        ).numpy()
    else:
        result = inputs[0] + inputs[1]
    if len(layer.behind) > 1:
        result = np.maximum(result, 0)
    scale, zero = (values[name].astype(np.float64) for name in layer.behind[-1].input[1:])
    return np.asarray(np.clip(np.rint(result / scale) + zero, 0, 255), np.int32)


def _dequantised(node: onnx.NodeProto, values: Mapping[str, Array]) -> Array:
    """What bytes, or the whole numbers of a constant, stand for; several scales belong to the first axis."""
    given, scale, *zero = (values[name].astype(np.float64) for name in node.input)
    whole = given - zero[0] if zero else given
    return np.asarray(whole * (scale.reshape(-1, *[1] * (given.ndim - 1)) if scale.ndim else scale))


def _in_integers(node: onnx.NodeProto) -> bool:
    if not is_dynamic(node):
        return False
    spec = OPERATORS[node.op_type]
    return any(port.element is Element.UINT8 for port in (*spec.inputs, *spec.outputs))


def _exposing(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """A copy of a graph that gives further tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in (*model.graph.input, *model.graph.output)}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - present))
    return copy


def _run(
    model: onnx.ModelProto, feeds: Mapping[str, Array], threads: int, native: str | os.PathLike[str]
) -> dict[str, Array]:
    with OnnxRuntimeSession(model, threads=threads, native=native) as session:
        return session.run({info.name: feeds[info.name] for info in session.inputs}, finite=False)
