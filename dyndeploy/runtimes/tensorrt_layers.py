"""The layers of an engine as its builder lists them, and whether they are those of the build plan.

With detailed profiling verbosity the builder ends its log with the text of the engine inspector. That is the only list
where no GPU is: an engine can be built there, but not read.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dyndeploy.errors import DyndeployError
from dyndeploy.graphs.inspect import all_nodes, shape_of
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.graphs.tensorrt_bytes import with_plugin_bytes, word_shape
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.base import OperatorSpec
from dyndeploy.runtimes.tensorrt_inspector import NODE, is_packed, is_plugin, is_scratch, tensor_type, wrong_types
from dyndeploy.runtimes.tensorrt_plan import planned_types

if TYPE_CHECKING:
    import onnx

_LAYERS = re.compile(r"(?:^|\n)Layers:\n(.*?)(?=\n\s*\nI/O Tensors:|\nI/O Tensors:|\Z)", re.S)
_TENSORS = re.compile(r"\nI/O Tensors:\n(.*?)(?=\n\s*\n|\Z)", re.S)
_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*)(?P<rest>.*)", re.S)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[\d,-]*)\], Strides: \[(?P<strides>[\d,-]*)\].*?"
    r"Datatype: (?P<type>[^,]*)"
)
_END_TO_END = re.compile(
    r" Name: (?P<name>.*?), IOMode: (?P<mode>\w+), DataType: (?P<type>\w+), Dimensions: \[(?P<shape>[\d,-]*)\]"
)
_MEMORY = re.compile(r"Total Activation Memory: (\d+) bytes")


@dataclass(frozen=True)
class LayerTensor:
    """An input, constant or output of a layer.

    Attributes:
        name: The builder's name.
        shape: Its sizes.
        type: NumPy's name of its type where it has one.
        packed: Whether it lies row by row without gaps, as the plugins need it.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    packed: bool = True


@dataclass(frozen=True)
class Layer:
    """A layer of a built engine.

    Attributes:
        name: The builder's name.
        kind: The builder's word for its kind.
        nodes: Names of the graph's nodes that it computes.
        inputs: What it reads.
        constants: Weights that it reads.
        outputs: What it writes.
        tactic: The kernel that was chosen.
        workspace: Bytes of scratch memory that a plugin asked for.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[LayerTensor, ...]
    constants: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    tactic: str = ""
    workspace: int = 0

    @property
    def is_plugin(self) -> bool:
        """Whether a plugin runs here."""
        return is_plugin(self.kind)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class EngineLayers:
    """What a builder said of the engine that it made.

    Attributes:
        layers: In the order in which they run.
        inputs: Name, shape and type of the engine's inputs.
        outputs: The same of its outputs.
        activation_bytes: Device memory for all that flows between layers, with the scratch memory of the plugins; None
            if it was not said.
    """

    layers: tuple[Layer, ...]
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    activation_bytes: int | None = None

    def plugins(self) -> tuple[Layer, ...]:
        """The layers that are plugins."""
        return tuple(layer for layer in self.layers if layer.is_plugin)

    def between_blocks(self) -> tuple[Layer, ...]:
        """The layers between the first and the last plugin that are none: casts, copies, reformats and others."""
        places = [index for index, layer in enumerate(self.layers) if layer.is_plugin]
        if not places:
            return ()
        return tuple(layer for layer in self.layers[places[0] : places[-1]] if not layer.is_plugin)

    def summary(self) -> dict[str, int]:
        """How many layers there are of each kind."""
        return dict(sorted(Counter(layer.kind for layer in self.layers).items()))


def read_layers(messages: Iterable[str]) -> EngineLayers:
    """Read the list of layers from a builder's log.

    Args:
        messages: Every message of a build with detailed profiling verbosity, verbose ones too.

    Raises:
        DyndeployError: There is no such list, or it has another form.
    """
    text = "\n".join(messages)
    found = _LAYERS.search(text)
    if found is None:
        raise DyndeployError("The builder listed no layers: its log has another form than that of TensorRT-RTX 1.7.")
    layers = tuple(_layer(line) for line in found[1].splitlines() if line.strip())
    tensors = _TENSORS.search(text)
    ends = [] if tensors is None else [m.groupdict() for m in _END_TO_END.finditer(tensors[1])]
    memory = _MEMORY.findall(text)
    return EngineLayers(
        layers,
        tuple(_end(entry) for entry in ends if entry["mode"] == "Input"),
        tuple(_end(entry) for entry in ends if entry["mode"] == "Output"),
        int(memory[-1]) if memory else None,
    )


def _layer(line: str) -> Layer:
    match = _LAYER.fullmatch(line)
    if match is None:
        raise DyndeployError(f"The builder listed a layer in another form than that of TensorRT-RTX 1.7: {line[:200]}")
    rest = match["rest"]
    tactic = re.search(r"TacticName: ([^,]*)", rest)
    inputs, constants, written = (_tensors(rest, part) for part in ("Inputs", "Constants", "Outputs"))
    # The builder lists scratch memory among the outputs.
    scratch = [tensor for tensor in written if is_scratch(asdict(tensor))]
    return Layer(
        match["name"],
        match["kind"],
        tuple(dict.fromkeys(NODE.findall(rest))),
        inputs,
        constants,
        tuple(tensor for tensor in written if tensor not in scratch),
        tactic[1] if tactic else "",
        sum(math.prod(tensor.shape) for tensor in scratch),
    )


def _tensors(rest: str, part: str) -> tuple[LayerTensor, ...]:
    _, _, text = rest.partition(f"{part}: [")
    depths = itertools.accumulate({"[": 1, "]": -1}.get(character, 0) for character in text)
    end = next((index for index, depth in enumerate(depths) if depth < 0), len(text))
    return tuple(_tensor(match) for match in _TENSOR.finditer(text[:end]))


def _tensor(match: re.Match[str]) -> LayerTensor:
    shape, strides = _integers(match["shape"]), _integers(match["strides"])
    return LayerTensor(match["name"], shape, tensor_type(match["type"]), is_packed(list(shape), list(strides)))


def _end(entry: Mapping[str, str]) -> LayerTensor:
    return LayerTensor(entry["name"], _integers(entry["shape"]), tensor_type(entry["type"]))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


# ---------------------------------------------------------------- against the plan


def wrong_layers(built: EngineLayers, source: onnx.ModelProto, *, half: bool) -> list[str]:
    """What an engine does otherwise than its build plan says; empty where everything is as planned.

    Args:
        built: The layers.
        source: The graph that the TensorRT copy was made from.
        half: Whether the plan computes the plugins in half.

    Returns:
        Clauses: plugins that are missing, or that have other types, counts, shapes or layouts than the plan gives them,
        and outputs of the engine that are not the graph's.
    """
    problems = []
    source = with_plugin_bytes(source)
    by_node = {name: layer for layer in built.plugins() for name in layer.nodes}
    shapes = static_shapes(source)
    for node in all_nodes(source.graph):
        if node.domain != DOMAIN:
            continue
        if node.name not in by_node:
            problems.append(f"{node.name} ({node.op_type}) is no plugin of the engine")
            continue
        layer = by_node[node.name]
        problems += _wrong_plugin(OPERATORS[node.op_type], node.name, layer, half)
        written = zip(OPERATORS[node.op_type].outputs, node.output, layer.outputs, strict=False)
        problems += [
            f"{node.name} writes {tensor.shape}, and the graph says {word_shape(port.element, shapes[name])}"
            for port, name, tensor in written
            if -1 not in shapes.get(name, (-1,)) and word_shape(port.element, shapes[name]) != tensor.shape
        ]
    return problems + _wrong_outputs(built, source)


def _wrong_plugin(spec: OperatorSpec, name: str, layer: Layer, half: bool) -> list[str]:
    read, written = [*layer.inputs, *layer.constants], [*layer.outputs]
    types = planned_types(spec, half=half)
    problems = wrong_types(name, spec.name, [t.type for t in read], [t.type for t in written], types)
    gaps = [tensor.name for tensor in (*read, *written) if not tensor.packed]
    if gaps:
        problems.append(f"{name} is given {', '.join(gaps)} in a layout that plugins cannot read")
    return problems


def _wrong_outputs(built: EngineLayers, source: onnx.ModelProto) -> list[str]:
    problems = []
    found = {tensor.name: tensor for tensor in built.outputs}
    for value in source.graph.output:
        shape = shape_of(value)
        if value.name not in found:
            problems.append(f"the engine has no output {value.name}")
        elif -1 not in shape and found[value.name].shape != shape:
            problems.append(f"output {value.name} of the engine is {found[value.name].shape}, the graph's is {shape}")
    return problems
