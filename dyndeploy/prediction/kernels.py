"""From an ONNX graph to the kernels that a runtime starts for it: what is priced.

The graph is walked once: shapes are inferred, what the runtime folds, drops or fuses is folded, dropped or fused,
and every group of nodes that stays together becomes one :class:`Kernel` with its multiply-accumulates, its bytes and
the numbers that a device model needs. Dynamic operators are one kernel each, at given rates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from dyndeploy.errors import BundleError, unknown_name
from dyndeploy.graphs.inspect import group_of
from dyndeploy.graphs.memory import POINTWISE, Footprint, footprint
from dyndeploy.graphs.parts import has_parts
from dyndeploy.graphs.shapes import unknown_size
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.base import Launch, OperatorSpec, Shape
from dyndeploy.ops.gates import BLOCK, GateKind
from dyndeploy.precisions import PRECISIONS
from dyndeploy.prediction.gates import joined_gates
from dyndeploy.prediction.layouts import Layouts, Reorder
from dyndeploy.prediction.nodes import Node, NodeGraph, read_nodes
from dyndeploy.prediction.rates import Rates, checked_rates

if TYPE_CHECKING:
    import onnx

ELEMENT_BYTES = {name: PRECISIONS[name].element_bytes for name in ("fp32", "fp16", "int8")}
"""Bytes of an element by precision."""

_PRECISION_OF = {bytes_: name for name, bytes_ in ELEMENT_BYTES.items()}

REORDER = "reorder"
"""Kind of a conversion between plain maps and maps with channels in blocks: only on a CPU."""

UNKNOWN = "unknown:"
"""Kind of an operator that no class of kernels stands for: ``"unknown:<OpType>"``."""

RatesOfBlocks: TypeAlias = float | Rates | Mapping[str, float | Rates]
"""One rate for all blocks, or one per block by name (blocks that are not named run densely)."""


def floats_beside_integers(runtime: str) -> str:
    """The precision of what a graph in INT8 keeps in floats: TensorRT computes it in half."""
    return "fp16" if runtime == "tensorrt" else "fp32"


@dataclass(frozen=True)
class OperatorCall:
    """A dynamic operator in a graph, ready to be priced at any rates.

    Attributes:
        spec: The operator.
        shapes: Of its inputs.
        attributes: Of the node.
        element: Bytes of a data element.
    """

    spec: OperatorSpec
    shapes: tuple[Shape, ...]
    attributes: Mapping[str, Any]
    element: float

    def kernel(self, name: str, block: str | None, rates: Rates) -> Kernel:
        """The kernel that it is at the given rates."""
        spec, shapes, attributes = self.spec, self.shapes, self.attributes
        own = rates.for_operator(spec)
        work = spec.work(shapes, attributes, spec.expected(shapes, attributes, own), self.element)
        return Kernel(
            name,
            block,
            spec.kind,
            self._of_batch(work.macs),
            self._dense_macs,
            float(work.read),
            float(work.written),
            float(work.weights),
            spec.sizes(shapes, attributes, own),
            self,
            rates,
            precision=_PRECISION_OF[int(self.element)],
        )

    @functools.cached_property
    def _dense_macs(self) -> float:
        return self._of_batch(self.spec.dense_work(self.shapes, self.attributes, self.element).macs)

    def _of_batch(self, macs: Any) -> float:
        return float(macs.sum()) if getattr(macs, "ndim", 0) else float(macs) * self.shapes[0][0]


@dataclass(frozen=True)
class Kernel:
    """One launch of a runtime: an operator with everything that is fused into it.

    Attributes:
        name: Name of its first node.
        block: Block of the network, e.g. ``"layer1.0"``; None for the stem and the head.
        kind: Class of kernels, e.g. ``"conv"``, ``"depthwise"``, ``"gemm"``, ``"pool"``, ``"elementwise"``,
            ``"spatial_bottleneck"``; ``"unknown:<OpType>"`` where no class is known.
        macs: Multiply-accumulates of one run (the whole batch) at the rates.
        dense_macs: The same at rate 1.
        read_bytes: Activations read once, at the precision.
        written_bytes: Activations written once, at the precision.
        weight_bytes: Weights touched once, at the precision.
        features: Sizes: ``batch``, ``h``, ``w``, ``oh``, ``ow``, ``cin``, ``cout``, ``k``, ``stride``, ``groups``,
            ``dilation`` and so on by kind; of dynamic operators what their specification names.
        call: The dynamic operator that it is; None for any other.
        rates: That a dynamic operator is described at.
        share: Share of runs in which it runs at all; everything above is of a run in which it does.
        precision: That it computes in.
    """

    name: str
    block: str | None
    kind: str
    macs: float
    dense_macs: float
    read_bytes: float
    written_bytes: float
    weight_bytes: float
    features: Mapping[str, float]
    call: OperatorCall | None = None
    rates: Rates | None = None
    share: float = 1.0
    precision: str = "fp32"

    @functools.cached_property
    def launches(self) -> Sequence[Launch] | None:
        """What a dynamic operator launches on a GPU; None where that is not known, and for any other kernel."""
        if self.call is None:
            return None
        spec = self.call.spec
        if self.precision == "int8" and spec.quantization is not None:
            # Nodes of a graph in INT8 are read as those in floats; other kernels run them.
            spec = OPERATORS.get(spec.quantization.operator, spec)
        kernels = spec.kernels.get("cuda") or spec.kernels.get("tensorrt") or self.call.spec.kernels.get("cuda")
        if kernels is None or kernels.launches is None:
            return None
        return kernels.launches(self.features, self.call.element)

    @property
    def bytes(self) -> float:
        """Least traffic of one run."""
        return self.read_bytes + self.written_bytes + self.weight_bytes


@dataclass(frozen=True)
class Graph:
    """The kernels of a network in the order in which they run.

    Attributes:
        name: Of the network.
        kernels: In order.
        batch: Images per run.
        input_size: (height, width) of the image; None if the input is no image.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
    """

    name: str
    kernels: tuple[Kernel, ...]
    batch: int
    input_size: tuple[int, int] | None
    precision: str

    @property
    def unknown(self) -> tuple[str, ...]:
        """Operator types that no class of kernels stands for, sorted."""
        return tuple(sorted({k.kind.removeprefix(UNKNOWN) for k in self.kernels if k.kind.startswith(UNKNOWN)}))

    @property
    def parts(self) -> dict[str, list[int]]:
        """Positions of the kernels of each part: ``"stem"``, the blocks by name, ``"head"``, in order.

        Kernels between blocks that are part of none (changes of layout) are ``"other"``, those of a graph without
        blocks ``"network"``. Of a graph that tells its parts (:mod:`dyndeploy.graphs.parts`), what stands in no block
        is called as the group that it is named after.
        """
        parts: dict[str, list[int]] = {}
        groups = [group_of(kernel.name) for kernel in self.kernels]
        told = has_parts(groups)
        blocks = [index for index, kernel in enumerate(self.kernels) if kernel.block is not None]
        first = blocks[0] if blocks else len(self.kernels)
        last = blocks[-1] if blocks else -1
        for index, kernel in enumerate(self.kernels):
            part = kernel.block
            if part is None and told:
                part = groups[index]
            elif part is None:
                part = "network" if not blocks else "stem" if index < first else "head" if index > last else "other"
            parts.setdefault(part, []).append(index)
        return parts


# ---------------------------------------------------------------- kernels by class


def conv_kernel(
    name: str,
    block: str | None,
    *,
    batch: int,
    cin: int,
    cout: int,
    size: tuple[int, int],
    out_size: tuple[int, int],
    kernel: tuple[int, int] = (1, 1),
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    residual: bool = False,
    activation: bool = False,
    precision: str = "fp32",
    axes: int = 2,
    blocked: bool = True,
    transposed: bool = False,
) -> Kernel:
    """Make a convolution with what is fused into it.

    Args:
        name: Of the kernel.
        block: Of the network.
        batch: Images.
        cin: Input channels.
        cout: Output channels.
        size: (height, width) of the input.
        out_size: (height, width) of the output.
        kernel: (rows, columns) of the kernel.
        stride: Of both axes.
        dilation: Of both axes.
        groups: Convolution groups; as many as channels make it a depthwise convolution.
        residual: Whether another map of the output's size is added.
        activation: Whether an activation is fused.
        precision: Of activations and weights.
        axes: Spatial axes; with one, heights are 1.
        blocked: Whether a CPU computes it on channels in blocks.
        transposed: Whether it is a transposed convolution: sizes are then those of the convolution it transposes.
    """
    element = ELEMENT_BYTES[precision]
    outputs = batch * cout * out_size[0] * out_size[1]
    macs = float(outputs * (cin // groups) * kernel[0] * kernel[1])
    # A strided 1x1 never reads what it strides over.
    spans = [(k - 1) * dilation + 1 for k in kernel]
    used = [
        min(side, out * span if stride > span else (out - 1) * stride + span)
        for side, out, span in zip(size, out_size, spans, strict=True)
    ]
    inputs = batch * cin * used[0] * used[1]
    weights = cout * (cin // groups) * kernel[0] * kernel[1]
    return Kernel(
        name,
        block,
        "depthwise" if groups > 1 and groups == cin else "conv",
        macs,
        macs,
        float(element * (inputs + (outputs if residual else 0))),
        float(element * outputs),
        float(element * weights),
        {
            "batch": batch,
            "h": size[0],
            "w": size[1],
            "oh": out_size[0],
            "ow": out_size[1],
            "cin": cin,
            "cout": cout,
            "k": kernel[0],
            "kw": kernel[1],
            "stride": stride,
            "dilation": dilation,
            "groups": groups,
            "residual": float(residual),
            "activation": float(activation),
            "axes": axes,
            "blocked": float(blocked),
            "transposed": float(transposed),
        },
        precision=precision,
    )


def gemm_kernel(
    name: str,
    block: str | None,
    *,
    rows: int,
    cin: int,
    cout: int,
    count: int = 1,
    constant: bool = True,
    batch: int = 1,
    activation: bool = False,
    residual: bool = False,
    precision: str = "fp32",
) -> Kernel:
    """Make ``count`` matrix products (rows, cin) x (cin, cout), by a weight (``constant``) or by an activation."""
    element = ELEMENT_BYTES[precision]
    macs = float(count * rows * cin * cout)
    factor, outputs = count * cin * cout, count * rows * cout
    reads = count * rows * cin + (0 if constant else factor) + (outputs if residual else 0)
    return Kernel(
        name,
        block,
        "gemm",
        macs,
        macs,
        float(element * reads),
        float(element * outputs),
        float(element * (factor if constant else 0)),
        {
            "batch": batch,
            "rows": rows,
            "cin": cin,
            "cout": cout,
            "count": count,
            "residual": float(residual),
            "activation": float(activation),
        },
        precision=precision,
    )


def moving_kernel(
    name: str,
    block: str | None,
    kind: str,
    *,
    read: float,
    written: float,
    weights: int = 0,
    batch: int = 1,
    precision: str = "fp32",
    **features: float,
) -> Kernel:
    """Make a kernel that computes next to nothing: pooling, elementwise, norm, softmax, copies; sizes in elements."""
    element = ELEMENT_BYTES[precision]
    return Kernel(
        name,
        block,
        kind,
        0.0,
        0.0,
        float(element * read),
        float(element * written),
        float(element * weights),
        {"batch": batch, "read": read, "written": written, **features},
        precision=precision,
    )


def reorder_kernel(name: str, block: str | None, shape: Shape, *, inward: bool, precision: str = "fp32") -> Kernel:
    """Make a conversion of a map (batch, channels, height, width) into blocks (``inward``) or out of them.

    A map that a view makes of another tensor has that tensor's axes; height and width are then what they hold.
    """
    elements = math.prod(shape)
    height, *rest = shape[2:] or (1,)
    sizes = {"cin": shape[1], "h": height, "w": math.prod(rest), "inward": float(inward)}
    return moving_kernel(
        name, block, REORDER, read=elements, written=elements, weights=0, batch=shape[0], precision=precision, **sizes
    )


# ---------------------------------------------------------------- fusion

_FREE = frozenset((
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Constant", "Shape", "ConstantOfShape",
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "CastLike", "Size",
))  # fmt: skip
"""No kernel: views, and what is folded into its neighbours (quantisation) or at load."""

_CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvInteger", "ConvTranspose"})
_PRODUCTS = frozenset({"Gemm", "MatMul", "QLinearMatMul", "MatMulInteger"})
_MEMBERS: dict[str, tuple[str, ...]] = {
    "pool": (
        "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool",
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSumExp", "ArgMax", "ArgMin",
    ),
    "softmax": (
        "Softmax", "LogSoftmax", "Hardmax",
    ),
    "norm": (
        "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LRN",
        "LpNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
    ),
    "fill": (
        "OneHot", "EyeLike", "Range",
    ),
    "resize": (
        "Resize", "Upsample",
    ),
    "transpose": (
        "Transpose", "DepthToSpace", "SpaceToDepth",
    ),
    # Moves whole rows as they are.
    "copy": (
        "Concat", "Slice", "Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements", "Pad", "Expand",
        "Split", "Tile",
    ),
    "cast": (
        "Cast",
    ),
    # What detectors do with boxes: modelled by the traffic of their work, measured on no device.
    "topk": (
        "TopK", "NonZero",
    ),
    "suppression": (
        "NonMaxSuppression",
    ),
    "regions": (
        "RoiAlign",
    ),
    "sampling": (
        "GridSample",
    ),
}  # fmt: skip
_CLASSES = {name: kind for kind, names in _MEMBERS.items() for name in names}
MODELLED = ("topk", "suppression", "regions", "pyramid_regions", "sampling", "deformable_attention")
"""Kinds of kernels that no calibration measures."""

_FUSED_BY: dict[str, frozenset[str]] = {
    # PyTorch, eager: every operator by itself.
    "pytorch": frozenset(),
    # ONNX Runtime, CPU: activations of its FusedConv, and the addition of the blocked (NCHWc) convolution.
    "onnxruntime": frozenset((
        "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Add", "BatchNormalization",
    )),
    # TensorRT merges every chain of pointwise operators into its producer.
    "tensorrt": POINTWISE,
}  # fmt: skip
RUNTIMES = tuple(_FUSED_BY)


def fused_by(runtime: str) -> frozenset[str]:
    """ONNX operators that a runtime fuses into the convolution before them; raises ``UsageError`` for another name."""
    if runtime not in _FUSED_BY:
        raise unknown_name("runtime", runtime, _FUSED_BY)
    return _FUSED_BY[runtime]


_AFTER_ADD = frozenset({"Relu", "Sigmoid", "Tanh"})
"""What ONNX Runtime fuses into a convolution that has already taken an addition."""

_COST = {
    **dict.fromkeys(("Div", "Sqrt", "LeakyRelu", "HardSigmoid", "HardSwish", "ThresholdedRelu", "Where"), 2),
    **dict.fromkeys(("Sigmoid", "Tanh", "Exp", "Log", "Erf", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Swish"), 3),
    **dict.fromkeys(("PRelu", "Elu", "Selu", "Celu", "Softsign"), 4),
    **dict.fromkeys(("Pow", "Mod", "Softplus", "Mish", "Sin", "Cos"), 5),
}
"""How much more than a move a pointwise operator computes: 1 (all others) next to nothing, 2 a division or a choice,
3 a function that is vectorised, 4 one that is not, 5 one that takes several."""

_SCALE_SHIFT = frozenset({"BatchNormalization", "Add", "Mul", "Sub", "Div"})


_TAPS = 4
"""Pixels that a bilinear sample reads."""

_REGION = 21
"""Side of a region in cells of the map it is read from, where pooling takes as many samples as that asks for: in the
middle of what pyramids assign to a level (Lin et al., "Feature Pyramid Networks", CVPR 2017, equation 1), 14 to 28."""


def _samples(node: Node, out: Shape) -> float:
    """Samples that ``RoiAlign`` takes for each number that it gives."""
    given = int(node.attributes.get("sampling_ratio", 0))
    return float(math.prod(given or math.ceil(_REGION / side) for side in out[2:]))


@dataclass(eq=False)
class _Group:
    """Nodes that one kernel runs.

    Attributes:
        nodes: In order; the first decides the class.
        tail: Tensor that the group produces.
        extra: Further activations that fused nodes read.
        before: Maps that are converted for it.
        after: Maps that are converted behind it: outputs of the graph.
        blocked: Whether it makes a map with channels in blocks.
    """

    nodes: list[Node]
    tail: str
    extra: list[str] = field(default_factory=list)
    before: list[Reorder] = field(default_factory=list)
    after: list[Reorder] = field(default_factory=list)
    blocked: bool = False


class _Fuser:
    """Sorts the nodes of a graph into groups."""

    def __init__(self, graph: NodeGraph, runtime: str) -> None:
        self._shapes = graph.shapes
        self._fusable = fused_by(runtime)
        self._chains = runtime == "tensorrt"
        self._on_cpu = runtime == "onnxruntime"
        self._alias: dict[str, str] = {}
        self.constant = {*graph.constants, ""}
        self._readers: dict[str, list[Node]] = {}
        self._group_of: dict[str, _Group] = {}
        self.groups: list[_Group] = []
        listed = joined_gates(graph) if self._on_cpu else graph.nodes
        nodes = [node for node in listed if not self._folds(node)]
        self.layouts = Layouts(graph.shapes, self.constant)
        for node in nodes:
            for name in dict.fromkeys(map(self.root, node.inputs)):
                self._readers.setdefault(name, []).append(node)
        self._kept = {self.root(name) for name in graph.outputs}
        for node in nodes:
            group = self._join(node)
            if group is None:
                group = _Group([node], node.outputs[0])
                if self._on_cpu:
                    group.before = self.layouts.begin(node, self.activations(node))
                    group.blocked = self.layouts.is_blocked(node.outputs[0])
                self.groups.append(group)
            for name in node.outputs:
                self._group_of[name] = group
        if self.groups:
            self.groups[-1].after = self.layouts.end([self.root(name) for name in graph.outputs])

    def root(self, name: str) -> str:
        """The tensor that ``name`` is a view of."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def activations(self, node: Node) -> list[str]:
        """Inputs that are computed at run time."""
        return [name for name in map(self.root, node.inputs) if name not in self.constant]

    def _folds(self, node: Node) -> bool:
        """Whether the node leaves no kernel: it is constant, or a view of its input."""
        if node.op_type in ("Shape", "Size") or all(self.root(name) in self.constant for name in node.inputs):
            self.constant.update(node.outputs)
            return True
        if node.op_type in _FREE and not node.domain and not (self._on_cpu and node.op_type == "Cast"):
            self._alias[node.outputs[0]] = node.inputs[0]
            return True
        return False

    def _join(self, node: Node) -> _Group | None:
        """The group that ``node`` is fused into, extended by it; None if it starts its own."""
        if node.op_type not in POINTWISE or node.domain:
            return None
        inputs = self.activations(node)
        candidates = [self._group_of[name] for name in inputs if name in self._group_of]
        for group in sorted(candidates, key=self.groups.index, reverse=True):
            if self._takes(group, node, inputs):
                self.layouts.join(group.tail, node.outputs[0])
                group.nodes.append(node)
                group.extra += [name for name in dict.fromkeys(inputs) if self._group_of.get(name) is not group]
                group.tail = node.outputs[0]
                return group
        return None

    def _takes(self, group: _Group, node: Node, inputs: Sequence[str]) -> bool:
        if group.nodes[0].conditions != node.conditions:
            return False  # What is skipped together is one launch at most.
        lead = group.nodes[0].op_type
        pointwise = lead in POINTWISE
        if lead in _PRODUCTS:
            allowed = {"Add", "Relu"} if not self._chains else self._fusable
        elif lead in _CONVOLUTIONS or (pointwise and self._chains):
            allowed = self._fusable
        else:
            return False
        folds = (
            bool(self._fusable)
            and lead in _CONVOLUTIONS
            and node.op_type in _SCALE_SHIFT
            and len(inputs) == 1
            and len(group.nodes) == 1
        )
        if self._on_cpu and len(inputs) == 1 and node.op_type in _SCALE_SHIFT and lead in _CONVOLUTIONS:
            return self._folds_into_weights(group, node)
        if node.op_type not in allowed and not folds:
            return False
        if self._on_cpu and group.blocked and not folds and not self._stays_blocked(group, node, inputs):
            return False
        if not self._chains and lead in _PRODUCTS and len(inputs) > 1:
            return False
        # A gate that scales a map is no part of the layer that computes the gate.
        if math.prod(self._shapes.get(node.outputs[0], ())) != math.prod(self._shapes.get(group.tail, ())):
            return False
        produced = {n.outputs[0] for n in group.nodes}
        if group.tail in self._kept or any(name in self._kept for name in inputs if name in produced):
            return False
        # Every reader of what the group made so far is in it already (x * sigmoid(x) reads its middle twice).
        own = [name for name in inputs if name in produced]
        members = [*group.nodes, node]
        return all(any(reader is member for member in members) for name in own for reader in self._readers[name]) or (
            self._chains and self._closes_soon(group, node)
        )

    def _folds_into_weights(self, group: _Group, node: Node) -> bool:
        """Whether ONNX Runtime folds a product by a constant, or its addition, into the convolution before it."""
        if node.op_type in ("Sub", "Div") or any(item.op_type not in _SCALE_SHIFT for item in group.nodes[1:]):
            return False
        if len(self._readers[group.tail]) > 1 or group.tail in self._kept:
            return False
        if node.op_type == "BatchNormalization":
            return True
        rank = next((len(self._shapes.get(name, (0,))) for name in node.inputs if name in self.constant), 1)
        return rank >= 3 or (rank == 0 and node.op_type == "Mul")

    def _stays_blocked(self, group: _Group, node: Node, inputs: Sequence[str]) -> bool:
        """Whether what a blocked convolution takes in is in blocks too."""
        if node.op_type == "Add":
            return all(self.layouts.is_blocked(name) for name in inputs)
        return node.op_type in _AFTER_ADD or all(item.op_type != "Add" for item in group.nodes)

    def _closes_soon(self, group: _Group, node: Node) -> bool:
        """Whether ``node`` is the gate of ``x * gate(x)`` and the product is the only other reader of x."""
        readers = self._readers[group.tail]
        after = self._readers.get(node.outputs[0], [])
        return (
            len(readers) == 2 and len(after) == 1 and after[0].op_type == "Mul" and any(r is after[0] for r in readers)
        )


# ---------------------------------------------------------------- the walk


class GraphWalker:
    """A graph whose shapes and fusions are known, ready to give its kernels at any rates.

    Args:
        graph: Any ONNX graph, whose weights may be missing, or what :func:`~dyndeploy.prediction.nodes.read_nodes`
            read of one.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        batch: Images per run; None takes the graph's own (1 if it leaves it open).
        input_size: (height, width) of the image; None takes the graph's own.
        runtime: Whose fusions apply: ``"onnxruntime"``, ``"tensorrt"`` or ``"pytorch"``.
        name: Of the network; None takes the graph's.

    Attributes:
        record: The nodes; batch and input size of an ONNX graph are those that were asked for.

    Raises:
        UsageError: Unknown precision or runtime.
        BundleError: Shapes that are needed are not static.
    """

    def __init__(
        self,
        graph: onnx.ModelProto | NodeGraph,
        *,
        precision: str = "fp32",
        batch: int | None = None,
        input_size: tuple[int, int] | None = None,
        runtime: str = "onnxruntime",
        name: str | None = None,
    ) -> None:
        if precision not in ELEMENT_BYTES:
            raise unknown_name("precision", precision, ELEMENT_BYTES)
        self.precision, self.runtime = precision, runtime
        if not isinstance(graph, NodeGraph):
            graph = read_nodes(graph, batch=batch, input_size=input_size, name=name)
        self.record = graph
        self.name, self.batch, self.input_size = graph.name, graph.batch, graph.input_size
        self._shapes = graph.shapes
        self._fuser = _Fuser(graph, runtime)
        # A group has further kernels where maps change their layout: kernels and groups are not numbered alike.
        entries = [(entry, group) for group in self._fuser.groups for entry in self._entries_of(group)]
        self._entries = [entry for entry, _ in entries]
        self._group_of_kernel = [group for _, group in entries]

    @functools.cached_property
    def footprint(self) -> Footprint:
        """What the graph needs of memory, at any rates."""
        record = self.record
        return footprint(record.nodes, record.shapes, record.constants, record.outputs, record.widths, self.precision)

    def part_of_nodes(self) -> dict[str, str]:
        """The part (:attr:`Graph.parts`) that every node's time belongs to, by the tensors that the node makes."""
        parts = self.graph().parts
        return {
            name: part
            for part, members in parts.items()
            for index in members
            for node in self._group_of_kernel[index].nodes
            for name in node.outputs
        }

    @functools.cached_property
    def gates(self) -> dict[str, tuple[GateKind, ...]]:
        """Kinds of the decisions of each block that obeys some, in order; a branch is a block by its own name."""
        found: dict[str, dict[GateKind, None]] = {}
        for entry, node in self._entries:
            for block in node.conditions:
                found.setdefault(block, {})[BLOCK] = None
            if isinstance(entry, OperatorCall) and node.block is not None:
                found.setdefault(node.block, {}).update(dict.fromkeys(entry.spec.gates.values()))
        return {block: tuple(kinds) for block, kinds in found.items()}

    @property
    def dynamic_blocks(self) -> tuple[str, ...]:
        """Blocks that obey decisions, in order."""
        return tuple(self.gates)

    def graph(self, rates: RatesOfBlocks | None = None, *, branches: bool = True) -> Graph:
        """Kernels at given rates.

        Args:
            rates: Of the blocks; None computes everything.
            branches: Whether the platform takes ``If``: where it does not, what is skipped as a whole runs always.
        """
        return Graph(
            self.name,
            tuple(self._at(entry, node, rates, branches) for entry, node in self._entries),
            self.batch,
            self.input_size,
            self.precision,
        )

    def _at(self, entry: Kernel | OperatorCall, node: Node, rates: RatesOfBlocks | None, branches: bool) -> Kernel:
        kernel = entry
        if isinstance(kernel, OperatorCall):
            kernel = kernel.kernel(node.name, node.block, rates_of(rates, node.block))
        if not branches or not node.conditions:
            return kernel
        share = math.prod(rates_of(rates, block).of(BLOCK) for block in node.conditions)
        return replace(kernel, share=share)

    def _entries_of(self, group: _Group) -> list[tuple[Kernel | OperatorCall, Node]]:
        node = group.nodes[0]
        before, after = ([(self._reorder(item, node), node) for item in part] for part in (group.before, group.after))
        return [*before, (self._entry(group), node), *after]

    def _reorder(self, reorder: Reorder, node: Node) -> Kernel:
        return reorder_kernel(
            f"{node.name}~{reorder.tensor}",
            node.block,
            reorder.shape,
            inward=reorder.inward,
            precision=self._precision_of(node),
        )

    def _precision_of(self, node: Node) -> str:
        """What a node computes in: a graph in INT8 keeps some nodes in floats."""
        if self.precision != "int8" or node.precision is None:
            return self.precision
        return floats_beside_integers(self.runtime)

    def _entry(self, group: _Group) -> Kernel | OperatorCall:
        """A kernel, or a dynamic operator that obeys decisions and still lacks their rates."""
        node = group.nodes[0]
        if not node.dynamic:
            return self._kernel(group)
        spec, shapes = OPERATORS[node.op_type], tuple(self._shape(name) if name else () for name in node.inputs)
        call = OperatorCall(spec, shapes, node.attributes, ELEMENT_BYTES[self._precision_of(node)])
        return call if spec.gates else call.kernel(node.name, node.block, Rates())

    def _shape(self, name: str) -> Shape:
        shape = self._shapes.get(name)
        if shape is None or any(size < 0 for size in shape):
            makers = (f"'{node.name}' ({node.op_type})" for node in self.record.nodes if name in node.outputs)
            raise BundleError(unknown_size(name, shape, next(makers, "")))
        return shape

    def _elements(self, name: str) -> int:
        return math.prod(self._shape(name))

    def _amount(self, name: str, precision: str) -> float:
        """Elements of a precision that are as many bytes as a tensor is."""
        element = ELEMENT_BYTES[precision]
        return self._elements(name) * self.record.widths.get(name, element) / element

    def _kernel(self, group: _Group) -> Kernel:
        node = group.nodes[0]
        name, block, precision = node.name, node.block, self._precision_of(node)
        fused = [item.op_type for item in group.nodes[1:]]
        residual = any(self._elements(extra) == self._elements(group.tail) for extra in group.extra)
        activation = any(item != "Add" and item not in _SCALE_SHIFT for item in fused)
        if not node.domain and node.op_type in _CONVOLUTIONS:
            return self._conv(group, node, residual, activation)
        if not node.domain and node.op_type in _PRODUCTS:
            return self._product(node, name, block, residual, activation)
        read = sum(
            self._amount(item, precision) for item in dict.fromkeys([*self._fuser.activations(node), *group.extra])
        )
        written = self._amount(group.tail, precision)
        known = not node.domain or node.domain in ("com.microsoft", "ai.onnx")
        kind = "elementwise" if known and node.op_type in POINTWISE else _CLASSES.get(node.op_type) if known else None
        # The other constants are axes, indices and shapes.
        weighs = kind in ("elementwise", "norm") or kind is None
        constants = [item for item in node.inputs if weighs and item in self._fuser.constant and item in self._shapes]
        # A constant as large as the result is one more map to read, not a vector that stays in a cache.
        maps = [item for item in constants if 1 < self._elements(item) == self._elements(group.tail)]
        weights = sum(self._elements(item) for item in constants if item not in maps)
        read += sum(self._amount(item, precision) for item in maps)
        inputs = self._fuser.activations(node)
        if kind == "copy" and node.op_type in ("Slice", "Split", "Gather", "GatherND", "GatherElements"):
            read = min(
                read, written + sum(self._amount(item, precision) for item in inputs[1:])
            )  # The rest is passed over.
        if kind == "suppression":
            read += self._compared(node)
        if kind == "regions":
            read += _TAPS * written * _samples(node, self._shape(node.outputs[0]))
        if kind == "sampling":
            read += _TAPS * written
        sizes: dict[str, float] = {}
        # Of several inputs the largest is the map; the others are gates and vectors. It may be a view of what was made.
        own = [item for item in node.inputs if self._fuser.root(item) in inputs]
        shape = self._shape(max(own, key=self._elements))
        if len(shape) == 4:
            sizes = {"h": shape[2], "w": shape[3], "cin": shape[1]}
            out = self._shape(node.outputs[0])
            if len(out) == 2:
                out = (*out, 1, 1)  # A mean over the pixels that drops their axes.
            if len(out) == 4:
                sizes |= {"oh": out[2], "ow": out[3], "cout": out[1]}
        elif shape:
            sizes = {"rows": math.prod(shape[:-1]), "cin": shape[-1]}
        if kind in ("transpose", "copy"):
            sizes["run"] = math.log1p(self._run(node, shape))
        if kind == "elementwise":
            sizes |= {
                "cost": max(_COST.get(item.op_type, 1) for item in group.nodes),
                "inputs": len(inputs) + len(maps),
            }
            sizes["broadcast"] = float(len({self._elements(item) for item in inputs}) > 1)
        sizes["blocked"] = float(group.blocked)
        if kind == "resize":
            sizes["linear"] = float(node.attributes.get("mode", "nearest") != "nearest")
        if kind == "pool":
            window = node.attributes.get("kernel_shape")
            sizes["k"] = window[0] if window else math.sqrt(max(1.0, read / max(written, 1)))
            sizes["global"] = float(window is None)
        return moving_kernel(
            name,
            block,
            kind or f"{UNKNOWN}{node.op_type}",
            read=read,
            written=written,
            weights=weights,
            batch=self.batch,
            precision=precision,
            operators=len(group.nodes),
            **sizes,
        )

    def _compared(self, node: Node) -> float:
        """Numbers that suppression reads to compare boxes: each with half of those that are left, on average."""
        boxes, left = self._shape(node.inputs[0])[1], self._shape(node.outputs[0])[0]
        return 4.0 * boxes * left / 2

    def _run(self, node: Node, shape: Shape) -> float:
        """Elements that lie beside each other before and after a node moves them."""
        out = self._shape(node.outputs[0])
        if node.op_type == "Transpose":
            order = list(node.attributes.get("perm") or reversed(range(len(shape))))
            kept = next((back for back in range(len(order)) if order[-1 - back] != len(order) - 1 - back), len(order))
            return float(math.prod(out[len(out) - kept :]))
        if node.op_type in ("DepthToSpace", "SpaceToDepth", "GatherElements", "ScatterElements"):
            return 1.0
        if node.op_type == "Gather":
            axis = int(node.attributes.get("axis", 0))
            rows = self._shape(node.inputs[0])
            return float(math.prod(rows[axis % max(len(rows), 1) + 1 :]))
        # From the last axis on which sizes differ inwards.
        pairs = list(zip(reversed(shape), reversed(out), strict=False))
        alike = next((back for back, (a, b) in enumerate(pairs) if a != b), len(pairs))
        return float(math.prod(out[len(out) - alike :]) * min(pairs[alike] if alike < len(pairs) else (1, 1)))

    def _conv(self, group: _Group, node: Node, residual: bool, activation: bool) -> Kernel:
        quantised = node.op_type == "QLinearConv"
        x, y = self._shape(node.inputs[0]), self._shape(node.outputs[0])
        weight = self._shape(node.inputs[3 if quantised else 1])
        strides, dilations = node.attributes.get("strides"), node.attributes.get("dilations")
        kernel = weight[2:]
        transposed = node.op_type == "ConvTranspose"
        groups = int(node.attributes.get("group", 1))
        if transposed:
            # Every input position is multiplied with the whole kernel: the convolution with the roles swapped.
            x, y = y, x
        return conv_kernel(
            node.name,
            node.block,
            batch=x[0],
            cin=x[1],
            cout=y[1],
            size=_plane(x),
            out_size=_plane(y),
            kernel=(math.prod(kernel[:-1]), kernel[-1]),
            stride=int(strides[0]) if strides else 1,
            dilation=int(dilations[0]) if dilations else 1,
            groups=groups,
            residual=residual,
            activation=activation,
            precision=self._precision_of(node),
            axes=len(kernel),
            blocked=group.blocked,
            transposed=transposed,
        )

    def _product(self, node: Node, name: str, block: str | None, residual: bool, activation: bool) -> Kernel:
        second = 3 if node.op_type == "QLinearMatMul" else 1
        a, b, y = self._shape(node.inputs[0]), self._shape(node.inputs[second]), self._shape(node.outputs[0])
        inner = a[0] if node.attributes.get("transA") else a[-1]
        constant = self._fuser.root(node.inputs[second]) in self._fuser.constant
        cout = (y[-1] if len(b) > 1 else 1) if y else 1
        rows = max(1, math.prod(y) // cout)
        count = 1
        if not constant and len(y) > 2:
            count, rows = math.prod(y[:-2]), y[-2]
        return gemm_kernel(
            name,
            block,
            rows=rows,
            cin=inner,
            cout=cout,
            count=count,
            constant=constant,
            batch=self.batch,
            residual=residual,
            activation=activation,
            precision=self._precision_of(node),
        )


def rates_of(rates: RatesOfBlocks | None, block: str | None) -> Rates:
    """Rates of one block; raises ``UsageError`` for a rate outside [0, 1]."""
    if isinstance(rates, Mapping):
        rates = rates.get(block or "")
    return Rates() if rates is None else checked_rates(rates)


def walk(
    model: onnx.ModelProto,
    rates: RatesOfBlocks | None = None,
    precision: str = "fp32",
    *,
    batch: int | None = None,
    input_size: tuple[int, int] | None = None,
    runtime: str = "onnxruntime",
) -> Graph:
    """Kernels of a graph; see :class:`GraphWalker`, which walks once for many rates.

    Args:
        model: Any ONNX graph.
        rates: Of the dynamic operators; None runs them at rate 1.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        batch: Images per run; None takes the graph's own.
        input_size: (height, width); None takes the graph's own.
        runtime: Whose fusions apply.

    Raises:
        UsageError: Unknown precision or runtime, or a rate out of range.
        BundleError: Shapes that are needed are not static.
    """
    walker = GraphWalker(model, precision=precision, batch=batch, input_size=input_size, runtime=runtime)
    return walker.graph(rates)


def _plane(shape: Shape) -> tuple[int, int]:
    """(rows, columns) of a map with any number of spatial axes."""
    return math.prod(shape[2:-1]), shape[-1]
