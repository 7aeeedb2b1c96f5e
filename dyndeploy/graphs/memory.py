"""How much memory a network needs on a device, and whether the device has it.

Predicted: weights, the activations that live at the same time, scratch memory of one operator, and what CUDA takes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.branches import flattened
from dyndeploy.graphs.inspect import is_dynamic, operator_attributes
from dyndeploy.graphs.shapes import known_sizes, unknown_size
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.precisions import PRECISIONS
from dyndeploy.targets.devices import Device

if TYPE_CHECKING:
    import onnx

_MEGABYTE = 1e6
_GIGABYTE = 1e9


VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
"""Operators whose result is what they read, under another shape."""

POINTWISE = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu",
    "Clip", "Sigmoid", "HardSigmoid", "Tanh", "HardSwish", "Mish", "Gelu", "Softplus", "Softsign", "Erf", "Exp",
    "Log", "Sqrt", "Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Reciprocal", "Where", "Equal", "Less",
    "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "Xor", "BatchNormalization", "Sin", "Cos",
    "ThresholdedRelu", "Swish", "BiasGelu", "FastGelu", "QuickGelu",
))  # fmt: skip
"""Operators that compute every number from the numbers in its place."""


class Operation(Protocol):
    """A node, as far as memory is concerned."""

    @property
    def op_type(self) -> str:
        """Operator."""

    @property
    def domain(self) -> str:
        """Its domain; empty for standard ones."""

    @property
    def name(self) -> str:
        """Of the node."""

    @property
    def inputs(self) -> Sequence[str]:
        """Tensors that it reads; an optional one that is left out is empty."""

    @property
    def outputs(self) -> Sequence[str]:
        """Tensors that it makes."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """At least those of a dynamic operator."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a graph needs wherever it runs.

    Attributes:
        weights: Every constant once.
        activations: Inputs and outputs, which last, and the most that lives between them at a time.
        workspace: Scratch memory of the operator that needs most of it.
        peak: Node at which most lives; empty without nodes.
    """

    weights: int
    activations: int
    workspace: int
    peak: str = ""

    def __add__(self, other: Footprint) -> Footprint:
        """Two graphs that are ready at the same time: one runs after the other, and neither's memory is shared."""
        larger = max(self, other, key=lambda one: one.activations)
        return Footprint(
            self.weights + other.weights,
            self.activations + other.activations,
            max(self.workspace, other.workspace),
            larger.peak,
        )


@dataclass(frozen=True)
class _Node:
    """A node of an ONNX graph."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


def model_footprint(model: onnx.ModelProto, precision: str = "fp32") -> Footprint:
    """What an ONNX graph of static shapes needs; see :func:`footprint`.

    Raises:
        BundleError: A size is not static.
    """
    sizes = known_sizes(model, assume=True)
    nodes = [
        _Node(
            node.op_type,
            node.domain,
            node.name,
            tuple(node.input),
            tuple(node.output),
            operator_attributes(node) if is_dynamic(node) else {},
        )
        for node in flattened(model).model.graph.node
        if not all(name in sizes.values for name in node.output)
    ]
    constants = {item.name for item in model.graph.initializer} | set(sizes.values)
    outputs = [value.name for value in model.graph.output]
    return footprint(nodes, sizes.shapes, constants, outputs, sizes.widths, precision)


def _elements(shapes: Mapping[str, Sequence[int]]) -> Callable[[str], int]:
    return lambda name: math.prod(shapes.get(name, (0,)))


def footprint(
    nodes: Iterable[Operation],
    shapes: Mapping[str, Sequence[int]],
    constants: Collection[str],
    outputs: Iterable[str],
    widths: Mapping[str, int],
    precision: str = "fp32",
) -> Footprint:
    """What a graph needs: weights, activations by the time that they live, scratch memory.

    A tensor lives from the node that makes it to the last one that reads it. Views take nothing; a pointwise operator
    writes where it read what nothing else reads, or is fused into what made that. Standard operators count without
    scratch memory, which is the runtime's own choice.

    Args:
        nodes: In order.
        shapes: By tensor.
        constants: Tensors that are known before a run.
        outputs: Tensors that the graph gives.
        widths: Bytes of an element, of tensors that keep theirs in every precision.
        precision: Of all other tensors.

    Raises:
        BundleError: A size is not static.
    """
    element, whole = (int(PRECISIONS[name].element_bytes) for name in (precision, "fp32"))
    alias: dict[str, str] = {}
    known = {*constants, ""}

    def root(name: str) -> str:
        while name in alias:
            name = alias[name]
        return name

    def size(name: str) -> int:
        shape = shapes.get(name)
        if shape is None or any(side < 0 for side in shape):
            raise BundleError(f"{unknown_size(name, None if shape is None else tuple(shape))} Its memory is not known.")
        return math.prod(shape) * widths.get(name, element)

    steps: list[Operation] = []
    for node in nodes:
        fixed = node.outputs and all(root(name) in known for name in node.inputs)
        if (node.op_type in VIEWS and not node.domain) or fixed:
            # What follows from weights alone is made once, in their place.
            alias |= dict.fromkeys(node.outputs, max(map(root, node.inputs), key=_elements(shapes), default=""))
        else:
            steps.append(node)
    read = {root(name) for node in steps for name in node.inputs}
    made = {name for node in steps for name in node.outputs if name}
    results = {root(name) for name in outputs}
    lasting = {name for name in (read - made) | results if name not in known}
    weights = sum(size(name) for name in read if name in constants and name in shapes)
    readers = Counter(name for node in steps for name in {root(name) for name in node.inputs})
    within = set(lasting)
    for node in reversed(steps):
        # What only becomes an output is computed in that output's place.
        if node.op_type in POINTWISE and not node.domain and within.intersection(node.outputs):
            own = [name for name in map(root, node.inputs) if name in made and name not in within | known]
            own = [name for name in own if readers[name] == 1 and size(name) == size(node.outputs[0])]
            within.update(own[:1])
    last = {root(name): index for index, node in enumerate(steps) for name in node.inputs}
    alive: dict[str, int] = {}
    most, peak, scratch = 0, "", 0
    for index, node in enumerate(steps):
        inputs = {root(name) for name in node.inputs} - known
        new = {name: size(name) for name in node.outputs if name and name not in within and name not in known}
        ending = {name: alive[name] for name in inputs if name in alive and last[name] == index}
        if node.op_type in POINTWISE and not node.domain and any(size >= sum(new.values()) for size in ending.values()):
            taken = max(ending, key=lambda name: ending[name])
            del alive[taken]
        alive |= new
        total = sum(alive.values())
        if total > most or not peak:
            most, peak = total, node.name
        for name in (*inputs, *new):
            if last.get(name, index) <= index:
                alive.pop(name, None)
        if node.domain == DOMAIN and node.op_type in OPERATORS:
            sizes = [tuple(shapes[name]) if name else () for name in node.inputs]
            scratch = max(scratch, OPERATORS[node.op_type].scratch(sizes, node.attributes, element))
    # What goes in and comes out is float in every precision.
    bindings = sum(size(name) * (1 if name in widths else whole // element) for name in lasting)
    return Footprint(weights, most + bindings, scratch, peak)


@dataclass(frozen=True)
class MemoryPrediction:
    """What a network needs on a device, in bytes.

    Attributes:
        weights: See :class:`Footprint`, like the following two.
        activations: See there.
        workspace: See there.
        context: What CUDA and its libraries take before there is a network; 0 where there is no GPU.
        limit: Most that a process may take there; None where that is not known.
        total_gb: All memory that the device has; None where that is not known.
        peak: Node at which most lives.
        kind: Always ``"predicted"``.
    """

    weights: int
    activations: int
    workspace: int
    context: int
    limit: int | None
    total_gb: float | None
    peak: str
    kind: str = "predicted"

    @classmethod
    def of(cls, need: Footprint, device: Device) -> MemoryPrediction:
        """Hold a need against what a device has."""
        memory = device.memory
        return cls(
            need.weights,
            need.activations,
            need.workspace,
            0 if memory is None else int(memory.context_mb * _MEGABYTE),
            None if memory is None else int(memory.limit_gb * _GIGABYTE),
            None if memory is None else memory.total_gb,
            need.peak,
        )

    @property
    def total(self) -> int:
        """Bytes of all together."""
        return self.weights + self.activations + self.workspace + self.context

    @property
    def fits(self) -> bool:
        """Whether the device has that much; True where its limit is not known."""
        return self.limit is None or self.total <= self.limit

    @property
    def line(self) -> str:
        """One sentence with every number."""
        parts = {
            "weights": self.weights,
            "activations": self.activations,
            "scratch": self.workspace,
            "CUDA": self.context,
        }
        said = ", ".join(f"{name} {value / _MEGABYTE:.4g}" for name, value in parts.items() if value)
        limit = "" if self.limit is None else f", of {self.limit / _MEGABYTE:.5g} MB that a process can have there"
        return f"{self.total / _MEGABYTE:.4g} MB predicted ({said}){limit}"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MemoryPrediction:
        """Read what :meth:`to_json` wrote; raises ``TypeError`` where it is malformed."""
        return cls(**{name: item for name, item in value.items() if name not in ("total", "fits")})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` reads them back."""
        return {**asdict(self), "total": self.total, "fits": self.fits}


def require_memory(name: str, device: Device, need: Footprint) -> MemoryPrediction:
    """Return what a network needs on a device; raises ``UsageError`` with the numbers where that is more than it has.

    Args:
        name: Of the network.
        device: Where it shall run.
        need: Of the network.
    """
    found = MemoryPrediction.of(need, device)
    if found.fits:
        return found
    assert device.memory is not None
    raise UsageError(
        f"{name} does not fit {device.name}: it needs {found.line}; the device has {device.memory.total_gb:g} GB. Use "
        "smaller images, a smaller batch, fp16 or a smaller network."
    )
