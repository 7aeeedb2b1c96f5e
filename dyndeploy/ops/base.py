"""What a dynamic operator is: one object that answers everything that anybody asks of it.

The faces are its ports, the PyTorch reference, shape inference, the ONNX function body (standard operators only), the
work as a function of what masks or rates leave, and the kernels that run it natively. Exporters, runtimes, profilers
and predictors ask this object; nobody else knows the semantics, and nobody tests an operator's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import UsageError
from dyndeploy.ops.gates import GateKind

if TYPE_CHECKING:
    import onnx
    import torch

    from dyndeploy.ops._body import Body, Value

DOMAIN = "dyndeploy"
"""ONNX domain of all dynamic operators."""

Shape = tuple[int, ...]
Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
Masks = Mapping[str, Any]
"""Masks of 0 and 1 by input name: NumPy arrays, or PyTorch tensors."""
Rates = Mapping[str, float]
"""Activation rates in [0, 1] by name of the gate kind; a kind that is not named computes everything. An operator may
take further rates that were measured, which it documents."""
Counts = Mapping[str, Any]
"""What masks leave to compute, by names of the operator's own: numbers per image, or arrays or tensors (N,)."""


RECORDER: ContextVar[Callable[[OperatorSpec, Sequence[torch.Tensor], Attributes, Sequence[Shape]], Any] | None] = (
    ContextVar("recorder", default=None)
)
"""Takes every call instead of computing it: ``(operator, inputs, attributes, output shapes) -> tuple of outputs``."""


WORD_BYTES = 4
"""Bytes of a word: what stands side by side on the last axis, as a little-endian 32-bit integer.

TensorRT gives 8-bit tensors a sign and scales that it may change; 32-bit integers every release hands on untouched.
"""


class Role(Enum):
    """What a tensor is to the operator."""

    ACTIVATION = "activation"
    MASK = "mask"
    WEIGHT = "weight"


class Element(Enum):
    """The type of a tensor's elements."""

    DATA = "data"
    """The type that the operator computes in: float, half or bfloat16."""
    FLOAT = "float"
    """Always 32-bit float."""
    INDEX = "index"
    """64-bit integers."""
    UINT8 = "uint8"
    """Quantised activations."""
    INT8 = "int8"
    """Quantised weights."""
    INT32 = "int32"
    """Biases in units of a product of quantised numbers."""

    @property
    def dtype(self) -> str | None:
        """NumPy's and PyTorch's name of the type; None where the operator's inputs decide."""
        return {Element.DATA: None, Element.FLOAT: "float32", Element.INDEX: "int64"}.get(self, self.value)

    @property
    def plugin_dtype(self) -> str | None:
        """The same in TensorRT's plugins, whose whole numbers have 32 bits: no release before 10 has others."""
        return "int32" if self is Element.INDEX or self.in_words else self.dtype

    @property
    def in_words(self) -> bool:
        """Whether TensorRT's plugins take them by :data:`WORD_BYTES` as one 32-bit integer."""
        return self in (Element.UINT8, Element.INT8)


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: Name in ONNX functions and in the keyword arguments of packing.
        role: What it is to the operator.
        shape: Symbolic shape, e.g. ``("N", "H", "W", "C")``.
        element: Type of its elements.
        optional: Whether a node may leave it out; only inputs behind all that are not optional may be.
    """

    name: str
    role: Role
    shape: tuple[str, ...]
    element: Element = Element.DATA
    optional: bool = False


@dataclass(frozen=True)
class Attribute:
    """An ONNX attribute, which is also a field of the plugins.

    Attributes:
        name: Its name.
        length: Number of values of a list; None for a single number.
        type: ``int`` or ``float``; the elements' for a list (lists are of ``int``).
    """

    name: str
    length: int | None = None
    type: type[int] | type[float] = int


class Work(NamedTuple):
    """What one run of the operator needs.

    Attributes:
        macs: Multiply-accumulates of convolutions and linear layers per image: a number, or shape (N,) as the counts.
        read: Bytes of activations and masks that are read once, of the whole batch.
        written: Bytes of outputs that are written once, of the whole batch.
        weights: Bytes of weights that are read once.
    """

    macs: Any
    read: Any
    written: Any
    weights: Any


class Launch(NamedTuple):
    """One launch of a GPU kernel: ``products`` times (rows x depth) x (depth x columns), or nothing but a copy.

    Attributes:
        rows: Of the first factor; 0 where nothing is multiplied.
        columns: Of the second factor.
        depth: Of the sums.
        products: How many products there are.
        taps: Products that share a loaded input, as the taps of a convolution do.
        moved: Bytes of activations, read and written.
        weights: Bytes of weights.
        share: Probability that there is any work; the other numbers are those of runs in which there is.
        uneven: Whether images of a batch differ in their active channels, so that the slowest one ends the launch.
        layer: Under which name the table of our kernels' modelled figures has it; empty: there is none.
        patches: Of a 3x3 that kernels without tensor cores compute by Winograd's algorithm: active patches of 2 x 2
            outputs; 0: none does.
        tried: Rows that its tile is chosen for, which count alike; none: its own.
        joins: Whether kernels for tensor cores from sm_80 on do it within the launch that follows, in halves.
        continues: Whether it adds to the sums of some tiles of the launch before it: no gap, begin or end is its own.
    """

    rows: float = 0.0
    columns: float = 0.0
    depth: float = 0.0
    products: float = 1.0
    taps: float = 1.0
    moved: float = 0.0
    weights: float = 0.0
    share: float = 1.0
    uneven: bool = False
    layer: str = ""
    patches: float = 0.0
    tried: tuple[float, ...] = ()
    joins: bool = False
    continues: bool = False


@dataclass(frozen=True)
class KernelSpec:
    """Kernels that run an operator natively: everything that a runtime, a graph copy or a device model asks of them.

    Attributes:
        precisions: Names of the precisions that they compute in.
        pack: ``(weights by port name, attributes) -> constants by name, in the order in which they stand behind the
            other inputs``: the weights in the kernels' layout, and further constants; None takes the weights as they
            are.
        constants: What ``pack`` returns, as ports in its order; those of ``Element.DATA`` are half where the precision
            is ``fp16``, the others stay float.
        terms: ``sizes (of the specification) -> amounts of work by name``, as the kernels cut it: a device model fits
            a constant to each. Amounts whose names end in ``_cold`` are bytes of weights, which cost by how many of a
            network's weights no cache keeps. None where the multiply-accumulates and bytes say enough.
        launches: ``(sizes, bytes of a data element) -> launches of one run``, in order, on a GPU; None where they are
            not known.
        workspace: ``(sizes by symbol of the ports' shapes, attributes, bytes of a data element) -> bytes`` of scratch
            memory of one run; None where they need none.
    """

    precisions: tuple[str, ...] = ("fp32",)
    pack: Callable[[Mapping[str, Array], Attributes], Mapping[str, Array]] | None = None
    constants: tuple[Port, ...] = ()
    terms: Callable[[Mapping[str, float]], Mapping[str, float]] | None = None
    launches: Callable[[Mapping[str, float], float], Sequence[Launch]] | None = None
    workspace: Callable[[Mapping[str, int], Attributes, int], int] | None = None

    @property
    def half(self) -> frozenset[str]:
        """Names of the packed constants that are half where the precision is ``fp16``."""
        return frozenset(port.name for port in self.constants if port.element is Element.DATA)


@dataclass(frozen=True)
class Quantization:
    """How an operator becomes one in integers: activations are ``scale * q`` with q in [0, 255].

    Attributes:
        operator: ``op_type`` of the operator in integers. Its inputs are ``x``, the masks, and the weights that
            ``convert`` returns.
        points: Tensors inside that have a scale of their own, e.g. ``("h1", "h2")``.
        output: Whether the output is quantised, too, as ``"y"``; decisions are not.
        shared: Whether ``x`` and ``y`` must have one scale: bytes of what is skipped are copied.
        observe: ``(inputs as of the reference, attributes) -> values (n,) by point``, and of ``"y"`` where the output
            is quantised: only what is computed under the masks, behind the ReLUs. It may be empty.
        convert: ``(weights by port name, scales of "x", the points and "y", bits of a weight) -> weights of the
            operator in integers by port name``. ``UsageError``: a scale that is not finite and positive, weights that
            are not finite, constants that leave the range of the arithmetic.
        simulate: ``(inputs as of the reference, attributes, scales, bits of a weight) -> float output``: what the
            operator in integers gives, dequantised, with straight-through gradients; ``x`` is quantised first.
        restore: ``weights of the operator in integers by port name -> weights of this operator``, with which it
            computes the same on bytes as floats, unrounded: x and the output in units of their scales. None where
            nothing does.
    """

    operator: str
    points: tuple[str, ...]
    output: bool
    shared: bool
    observe: Callable[[Sequence[torch.Tensor], Attributes], Mapping[str, torch.Tensor]]
    convert: Callable[[Mapping[str, Array], Mapping[str, float], int], Mapping[str, Array]]
    simulate: Callable[[Sequence[torch.Tensor], Attributes, Mapping[str, float], int], torch.Tensor]
    restore: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None


class StandardLayer(NamedTuple):
    """A standard ONNX node with one tensor that is no constant, which comes first.

    Attributes:
        op_type: Of the node.
        constants: Its other inputs, by what they are called, in order.
        attributes: Of the node.
    """

    op_type: str
    constants: Mapping[str, Array]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class OperatorSpec:
    """One operator of domain ``dyndeploy`` (a variant with further inputs is an operator of its own).

    Attributes:
        name: ONNX ``op_type``; unique also among TensorRT's built-in names, because its parser ignores domains.
        version: Version of the semantics; raised whenever a result may change.
        kind: Class of kernels that it belongs to for device models, e.g. ``"spatial_bottleneck"``: variants are one.
        summary: One sentence.
        inputs: In ONNX order.
        outputs: In ONNX order.
        attributes: ONNX attributes and plugin fields.
        gates: Which mask input is which kind of decision, by input name.
        reference: ``(*inputs, **attributes) -> output, or a tuple of several`` on torch tensors: the semantics.
        infer_shape: ``(input shapes, attributes) -> output shape, or a tuple of several``; raises ``UsageError`` on a
            mismatch.
        body: Writes the function body with standard operators of ``least_opset`` whose meaning has not changed since;
            returns the output, or a tuple of several.
        counts: ``(input shapes, attributes, masks by input name) -> Counts`` per image; works on NumPy arrays and on
            tensors.
        expected: ``(input shapes, attributes, rates by gate kind) -> Counts`` of random masks of these rates.
        work: ``(input shapes, attributes, counts, bytes of a data element) -> Work``; written with ``+`` and ``*``
            only, so that numbers, NumPy arrays and tensors all do.
        sizes: ``(input shapes, attributes, rates) -> numbers by name`` that describe the operator to a device model:
            ``batch`` and, as far as they apply, ``h``, ``w``, ``oh``, ``ow``, ``cin``, ``cmid``, ``cout``, ``rate``,
            ``rows1``, ``rows2`` (rows of its first and its other products) and ``hidden`` (their columns).
        further_rates: ``(input shapes, attributes, counts) -> rates by name`` that ``expected`` takes besides those of
            the gate kinds, as counts of real masks have them, e.g. the share of pixels that a dilated mask covers; a
            rate of a gate kind among them replaces the share of set bits.
        kernels: By family: ``"cpu"`` (ONNX Runtime library), ``"cuda"``, ``"tensorrt"`` (plugins).
        skipped_kind: Class of kernels that it belongs to where a gate of a single bit skips it; None: its kind.
        overflows: ``(input shapes, attributes, masks by input name) -> which images (N,) need more places than its
            static shapes have``, so that it computes everything; None where its shapes follow the masks.
        quantization: How it becomes an operator in integers; None where it cannot, or is one.
        standard: Of an operator from floats to bytes, ``(weights by port name, attributes) -> standard layers`` that
            give the bytes as floats, neither rounded nor cut to [0, 255]; None where there are none.
        least_opset: Oldest opset whose operators its body can be written with.
    """

    name: str
    version: int
    kind: str
    summary: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attributes: tuple[Attribute, ...]
    gates: Mapping[str, GateKind]
    reference: Callable[..., Any]
    infer_shape: Callable[[Sequence[Shape], Attributes], Any]
    body: Callable[[Body, Mapping[str, Value]], Any]
    counts: Callable[[Sequence[Shape], Attributes, Masks], Counts]
    expected: Callable[[Sequence[Shape], Attributes, Rates], Counts]
    work: Callable[[Sequence[Shape], Attributes, Counts, float], Work]
    sizes: Callable[[Sequence[Shape], Attributes, Rates], Mapping[str, float]] = lambda shapes, attributes, rates: {
        "batch": float(shapes[0][0])
    }
    further_rates: Callable[[Sequence[Shape], Attributes, Counts], Rates] = lambda shapes, attributes, counts: {}
    kernels: Mapping[str, KernelSpec] = field(default_factory=dict)
    skipped_kind: str | None = None
    overflows: Callable[[Sequence[Shape], Attributes, Masks], Any] | None = None
    quantization: Quantization | None = None
    standard: Callable[[Mapping[str, Array], Attributes], Sequence[StandardLayer]] | None = None
    least_opset: int = 13

    @property
    def decides(self) -> bool:
        """Whether the operator makes masks (and does not use them)."""
        return any(port.role is Role.MASK for port in self.outputs)

    @property
    def bookkeeping(self) -> dict[str, str]:
        """Attributes of its nodes by which TensorRT finds a plugin."""
        return {"plugin_version": str(self.version), "plugin_namespace": ""}

    def input_index(self, name: str) -> int:
        """Position of an input by name; ``ValueError`` if there is none."""
        return [port.name for port in self.inputs].index(name)

    def native_inputs(self, family: str) -> tuple[Port, ...]:
        """Inputs of the family's kernels, in order: the constants that it packs take the place of the weights."""
        kernel = self.kernels[family]
        if kernel.pack is None:
            return self.inputs
        return (*(port for port in self.inputs if port.role is not Role.WEIGHT), *kernel.constants)

    def mask_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are masks, in order."""
        return tuple(port.name for port in self.inputs if port.role is Role.MASK)

    def scratch(self, shapes: Sequence[Shape], attributes: Attributes, element: int) -> int:
        """Bytes of scratch memory that the GPU kernels need for one run; 0 where they say none."""
        kernel = self.kernels.get("tensorrt")
        if kernel is None or kernel.workspace is None:
            return 0
        sizes = {
            symbol: size
            for port, shape in zip(self.inputs, shapes, strict=False)
            for symbol, size in zip(port.shape, shape, strict=False)
            if symbol.isidentifier()
        }
        own = {name: value for name, value in attributes.items() if isinstance(value, int)}
        return kernel.workspace({**sizes, **own}, attributes, element)

    def output_shapes(self, shapes: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
        """Shapes of all outputs; raises ``UsageError`` where the inputs do not fit."""
        return as_tuple(self.infer_shape(shapes, attributes), nested=True)

    def dense_work(self, shapes: Sequence[Shape], attributes: Attributes, element: float = 4.0) -> Work:
        """Work with every mask bit set."""
        return self.work(shapes, attributes, self.expected(shapes, attributes, {}), element)

    def achieved_rates(self, shapes: Sequence[Shape], attributes: Attributes, masks: Masks) -> dict[str, float]:
        """Rates of real masks, as ``expected`` and ``sizes`` take them: by gate kind, and the further ones."""
        if not self.gates:
            return {}
        means: dict[str, list[float]] = {}
        for name, kind in self.gates.items():
            means.setdefault(kind.name, []).append(float(masks[name].mean()))
        rates = {kind: sum(values) / len(values) for kind, values in means.items()}
        return {**rates, **self.further_rates(shapes, attributes, self.counts(shapes, attributes, masks))}

    def check_attributes(self, attributes: Attributes) -> None:
        """Raise ``UsageError`` unless exactly the declared attributes are given, with the declared lengths."""
        declared = {attribute.name: attribute for attribute in self.attributes}
        if set(attributes) != set(declared):
            raise UsageError(f"{self.name} needs the attributes {sorted(declared)}, but got {sorted(attributes)}.")
        for name, value in attributes.items():
            length = declared[name].length
            if length is not None and len(value) != length:
                raise UsageError(f"{self.name}: attribute {name} needs {length} values, not {list(value)}.")

    def check(self) -> None:
        """Raise ``UsageError`` where the parts of the specification contradict each other."""
        names = [port.name for port in (*self.inputs, *self.outputs)]
        problems = []
        if not self.name.isidentifier():
            problems.append("its name is no identifier")
        if len(set(names)) != len(names):
            problems.append("two ports have the same name")
        if not self.inputs or not self.outputs:
            problems.append("it needs at least one input and one output")
        if set(self.gates) != set(self.mask_inputs()):
            problems.append(f"gates name {sorted(self.gates)}, but its mask inputs are {list(self.mask_inputs())}")
        optional = [port.optional for port in self.inputs]
        if optional != sorted(optional):
            problems.append("an optional input stands before one that is not")
        for family, kernel in self.kernels.items():
            if (kernel.pack is None) != (not kernel.constants):
                problems.append(f"its kernels of {family} need both pack and constants, or neither")
        if problems:
            raise UsageError(f"The operator {self.name!r} cannot be registered: {'; '.join(problems)}.")

    def function(self, opset: int) -> onnx.FunctionProto:
        """Return the model-local function for a model of an opset; raises ``UsageError`` where that is too old."""
        from onnx import helper

        from dyndeploy.ops._body import Body

        if opset < self.least_opset:
            raise UsageError(f"The body of {self.name} needs opset {self.least_opset} or later, not {opset}.")
        body = Body(opset=opset)
        results = as_tuple(self.body(body, {port.name: body.input(port.name) for port in self.inputs}))
        outputs = [port.name for port in self.outputs]
        function = helper.make_function(
            DOMAIN,
            self.name,
            [port.name for port in self.inputs],
            outputs,
            body.function_nodes(results, outputs),
            [helper.make_opsetid("", opset)],
            [attribute.name for attribute in self.attributes],
        )
        function.doc_string = self.summary
        return function

    def emit(self, inputs: Sequence[torch.Tensor], attributes: Attributes) -> Any:
        """Compute the operator; while an ONNX graph is being captured, or calls are recorded, write its node instead.

        Returns:
            The output, or a tuple of several.

        Raises:
            UsageError: Shapes or attributes do not fit.
        """
        import torch

        self.check_attributes(attributes)
        shapes = self.output_shapes([tuple(tensor.shape) for tensor in inputs], attributes)
        recorder = RECORDER.get()
        if recorder is not None:
            recorded = recorder(self, inputs, attributes, shapes)
            return recorded[0] if len(self.outputs) == 1 else recorded
        if not torch.onnx.is_in_onnx_export():
            return self.reference(*inputs, **attributes)
        types = [port.element.dtype for port in self.outputs]
        dtypes = [inputs[0].dtype if name is None else getattr(torch, name) for name in types]
        name, version = f"{DOMAIN}::{self.name}", self.version
        attrs = {**attributes, **self.bookkeeping}
        if len(shapes) == 1:
            return torch.onnx.ops.symbolic(name, inputs, attrs, dtype=dtypes[0], shape=shapes[0], version=version)
        return tuple(
            torch.onnx.ops.symbolic_multi_out(name, inputs, attrs, dtypes=dtypes, shapes=shapes, version=version)
        )


def as_tuple(value: Any, *, nested: bool = False) -> tuple[Any, ...]:
    """One result or several as a tuple; ``nested``: a single result is itself a tuple, of numbers."""
    if not isinstance(value, tuple):
        return (value,)
    return value if not nested or (value and isinstance(value[0], tuple)) else (value,)


def no_counts(shapes: Sequence[Shape], attributes: Attributes, masks: Masks) -> Counts:
    """Counts of an operator without masks, whose work depends on its shapes only (also as ``expected``)."""
    return {}


def per_image(count: float, shapes: Sequence[Shape]) -> npt.NDArray[np.float64]:
    """The same count for every image of the batch, shape (N,)."""
    return np.full(shapes[0][0], float(count))
