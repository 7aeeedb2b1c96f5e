"""A graph cut into engines and what the host computes between them.

Some targets lack operators that detectors need between their layers. There the network becomes a chain: engines of its
layers, and host programs (:mod:`dyndeploy.runtimes.host_program`) of everything that decodes, chooses and suppresses
boxes, which is the same list of operators that one graph would have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.errors import ExportError
from dyndeploy.graphs.inspect import all_nodes, reads
from dyndeploy.graphs.parts import POST_PROCESSING, part_of
from dyndeploy.graphs.passes.boxes import takes_regions
from dyndeploy.graphs.passes.shared import attributes_of, known_shapes
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.boxes import BOXES, KEEP_BOXES, PYRAMID_ROI_ALIGN
from dyndeploy.targets.platforms import HOST, NOWHERE, PLUGIN, Placement

STANDS_FOR = {KEEP_BOXES: "NonMaxSuppression", PYRAMID_ROI_ALIGN: "RoiAlign"}
"""ONNX operator by which a target says where a placeholder runs."""

Shapes = Mapping[str, tuple[int, ...]]

PROGRAM, FORMAT, CONSTANT = "program", 1, "constant/"
"""As in :mod:`dyndeploy.runtimes.host_program`, which reads what is written here; a test holds them together."""


@dataclass(frozen=True)
class Segment:
    """Nodes of a graph that run together.

    Attributes:
        host: Whether the host computes them; else an engine.
        model: Their graph; of a host segment with placeholders, at the opset of the capture.
    """

    host: bool
    model: onnx.ModelProto

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return tuple(value.name for value in self.model.graph.input)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what later segments read, and of the network's outputs that it makes."""
        return tuple(value.name for value in self.model.graph.output)


def split(model: onnx.ModelProto, places: Mapping[str, Placement], target: str) -> list[Segment]:
    """Cut a captured graph whose nodes are named after their parts (:mod:`dyndeploy.graphs.parts`).

    Layers and what plugins compute run in engines. Post-processing runs on the host, and so does a placeholder where
    the target says so. Engines give and take floats and 32-bit numbers: whole numbers of 64 bits are cast on the way.

    Args:
        model: Captured, with placeholders; it is not changed.
        places: Where operators run.
        target: Its name, for messages.

    Returns:
        The segments, in order; engines and host programs take turns.

    Raises:
        ExportError: An operator that the target runs nowhere.
    """
    require_places(model, places, target)
    known = _Values(model)
    early = _early(model)
    stages: dict[str, int] = {}
    members: dict[int, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        base = max((stages[name] for name in reads(node) if name in stages), default=0)
        odd = base % 2
        # An engine has an even number, a host program an odd one.
        host = node.output[0] not in early and _on_host(node, places, known.shapes)
        stage = base + (1 - odd if host else odd)
        members.setdefault(stage, []).append(node)
        stages |= dict.fromkeys(node.output, stage)
    return [known.segment(stage, members) for stage in sorted(members)]


def _early(model: onnx.ModelProto) -> set[str]:
    """What post-processing's standard operators make of the network's inputs alone, for layers to read.

    It stays with the layers: an engine would otherwise wait for a program of a few numbers.
    """
    given = {value.name for value in model.graph.input} | {item.name for item in model.graph.initializer}
    made: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        if (
            not node.domain
            and part_of(node.name) == POST_PROCESSING
            and all(name in given or name in made for name in reads(node))
        ):
            made |= dict.fromkeys(node.output, node)
    wanted: set[str] = set()
    for node in reversed(model.graph.node):
        if part_of(node.name) != POST_PROCESSING or wanted & set(node.output):
            wanted |= {name for name in reads(node) if name in made}
    return wanted


def require_places(model: onnx.ModelProto, places: Mapping[str, Placement], target: str) -> None:
    """Raise ``ExportError`` with the reason for an operator that the target runs nowhere."""
    shapes = known_shapes(model)
    for node in all_nodes(model.graph):
        place = _place(node, places, shapes)
        if place is not None and place.runs == NOWHERE:
            raise ExportError(f"{node.name}: {target} cannot run {node.op_type}: {place.why}.")


def _place(node: onnx.NodeProto, places: Mapping[str, Placement], shapes: Shapes) -> Placement | None:
    """Where a target runs a node, as far as it says: an operator of ours by the kind of its kernels."""
    if node.domain == DOMAIN:
        return places.get(OPERATORS[node.op_type].kind)
    if node.domain != BOXES:
        return places.get(node.op_type)
    own = places.get(OPERATORS[node.op_type].kind) if node.op_type in OPERATORS else None
    if own is not None and own.runs == PLUGIN and takes_regions(node, shapes):
        return own
    return places.get(STANDS_FOR[node.op_type])


def _on_host(node: onnx.NodeProto, places: Mapping[str, Placement], shapes: Shapes) -> bool:
    if node.domain == BOXES:
        place = _place(node, places, shapes)
        return place is None or place.runs == HOST
    return part_of(node.name) == POST_PROCESSING and node.domain != DOMAIN


class _Values:
    """Shapes and types of a graph's tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.shapes = known_shapes(model)
        graph = onnx.shape_inference.infer_shapes(model).graph
        values = (*model.graph.value_info, *graph.value_info, *graph.input, *graph.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._constants = {item.name: item for item in model.graph.initializer}
        self._outputs = [value.name for value in model.graph.output]

    def segment(self, stage: int, members: Mapping[int, Sequence[onnx.NodeProto]]) -> Segment:
        """The nodes of a stage as a graph of their own."""
        nodes, host = members[stage], stage % 2 == 1
        made = {name for node in nodes for name in node.output if name}
        read = dict.fromkeys(name for node in nodes for name in reads(node) if name not in made)
        later = {
            name for number, others in members.items() if number > stage for node in others for name in reads(node)
        }
        inputs = [name for name in read if name not in self._constants]
        outputs = [name for name in self._outputs if name in made]
        outputs += sorted(name for name in made & later if name not in outputs)
        graph = helper.make_graph(
            nodes,
            "part",
            [self._value(name) for name in inputs],
            [self._value(name) for name in outputs],
            [self._constants[name] for name in read if name in self._constants],
        )
        kept = {*made, *inputs}
        graph.value_info.extend(value for value in self._model.graph.value_info if value.name in kept)
        own = onnx.ModelProto()
        own.CopyFrom(self._model)
        own.graph.CopyFrom(graph)
        if not host:
            self._cast_inputs(own)
        else:
            self._cast_outputs(own, members, stage)
        return Segment(host, own)

    def _value(self, name: str) -> onnx.ValueInfoProto:
        shape = self.shapes.get(name)
        if shape is None or any(size < 0 for size in shape):
            raise ExportError(f"The size of {name}, which goes from an engine to the host or back, is not static.")
        kind = self._types.get(name, TensorProto.UNDEFINED)
        if kind == TensorProto.UNDEFINED:
            raise ExportError(f"The type of {name}, which goes from an engine to the host or back, is not known.")
        return helper.make_tensor_value_info(name, kind, shape)

    def _wide(self, name: str) -> bool:
        return self._types.get(name) == TensorProto.INT64

    def _cast_inputs(self, own: onnx.ModelProto) -> None:
        """Let an engine read whole numbers as 32-bit ones, which every release has as inputs."""
        casts = []
        for value in own.graph.input:
            if self._wide(value.name):
                name, value.name = value.name, narrow_name(value.name)
                value.type.tensor_type.elem_type = TensorProto.INT32
                cast = helper.make_node("Cast", [value.name], [name], name=f"{POST_PROCESSING}/{value.name}")
                cast.attribute.append(helper.make_attribute("to", TensorProto.INT64))
                casts.append(cast)
        nodes = [*casts, *own.graph.node]
        del own.graph.node[:]
        own.graph.node.extend(nodes)

    def _cast_outputs(self, own: onnx.ModelProto, members: Mapping[int, Sequence[onnx.NodeProto]], stage: int) -> None:
        """Let the host give engines what :meth:`_cast_inputs` lets them read."""
        engines = {
            name for number, nodes in members.items() if number % 2 == 0 for node in nodes for name in reads(node)
        }
        hosts = {
            name
            for number, nodes in members.items()
            if number % 2 == 1 and number > stage
            for node in nodes
            for name in reads(node)
        }
        outputs = []
        for value in own.graph.output:
            if self._wide(value.name) and value.name in engines:
                narrow = narrow_name(value.name)
                cast = helper.make_node("Cast", [value.name], [narrow], name=f"{POST_PROCESSING}/{narrow}")
                cast.attribute.append(helper.make_attribute("to", TensorProto.INT32))
                own.graph.node.append(cast)
                outputs.append(helper.make_tensor_value_info(narrow, TensorProto.INT32, self.shapes[value.name]))
                if value.name not in hosts and value.name not in self._outputs:
                    continue
            outputs.append(value)
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
        del own.graph.output[:]
        own.graph.output.extend(kept)


def narrow_name(name: str) -> str:
    """Name of a tensor of 64-bit numbers where it goes into an engine as 32-bit ones."""
    return f"{name}/int32"


# ---------------------------------------------------------------- host programs


def host_program(model: onnx.ModelProto, known: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """What the file of a host program holds, by entry.

    Args:
        model: Of a host segment.
        known: Operators that the host has rules for.

    Raises:
        ExportError: An operator that the host has no rule for.
    """
    rules = set(known)
    lacking = sorted({node.op_type for node in model.graph.node} - rules)
    if lacking:
        raise ExportError(
            f"{', '.join(lacking)} in the post-processing of this network: the host has no rule for it. Export for the "
            "CPU (--target cpu), where all of it is one graph."
        )
    constants = [(item.name, numpy_helper.to_array(item)) for item in model.graph.initializer]
    text = {
        "format": FORMAT,
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
        "constants": [name for name, _ in constants],
        "operators": [
            {
                "type": node.op_type,
                "inputs": list(node.input),
                "outputs": list(node.output),
                "attributes": {name: _plain(value) for name, value in attributes_of(node).items()},
            }
            for node in model.graph.node
        ],
    }
    content = np.frombuffer(json.dumps(text, sort_keys=True, separators=(",", ":")).encode(), np.uint8)
    return {PROGRAM: content, **{f"{CONSTANT}{place}": value for place, (_, value) in enumerate(constants)}}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if not isinstance(value, (int, float, str)) else value
