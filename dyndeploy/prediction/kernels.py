"""From an ONNX graph to the kernels that a runtime starts for it: what is priced.

The graph is walked once: shapes are inferred, what the runtime folds, drops or fuses is folded, dropped or fused,
and every group of nodes that stays together becomes one :class:`Kernel` with its multiply-accumulates, its bytes and
the numbers that a device model needs. Dynamic operators are one kernel each, at given rates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from dyndeploy.errors import BundleError, UsageError, unknown_name
from dyndeploy.graphs.inspect import group_of, is_dynamic, operator_attributes, static_shapes
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.base import Role, Shape
from dyndeploy.ops.densities import dilated_density
from dyndeploy.precisions import PRECISIONS
from dyndeploy.prediction.densities import union
from dyndeploy.prediction.laudnet.blocks import Rates, checked_rates

if TYPE_CHECKING:
    import onnx

ELEMENT_BYTES = {name: PRECISIONS[name].element_bytes for name in ("fp32", "fp16", "int8")}
"""Bytes of an element by precision that can be priced."""

UNKNOWN = "unknown:"
"""Kind of an operator that no class of kernels stands for: ``"unknown:<OpType>"``."""

RatesOfBlocks: TypeAlias = float | Rates | Mapping[str, float | Rates]
"""One rate for all blocks, or one per block by name (blocks that are not named run densely)."""


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
            ``dilation`` and so on by kind; dynamic operators have ``cmid``, ``rate``, ``rate_conv1``,
            ``rate_conv2``, ``channel_rate``, ``mask_h``, ``mask_w``, ``channel_groups`` and ``projection``.
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
        blocks ``"network"``.
        """
        parts: dict[str, list[int]] = {}
        blocks = [index for index, kernel in enumerate(self.kernels) if kernel.block is not None]
        first = blocks[0] if blocks else len(self.kernels)
        last = blocks[-1] if blocks else -1
        for index, kernel in enumerate(self.kernels):
            part = kernel.block
            if part is None:
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
        },
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
    )


def moving_kernel(
    name: str,
    block: str | None,
    kind: str,
    *,
    read: int,
    written: int,
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
    )


def bottleneck_kernel(
    name: str,
    block: str | None,
    kind: str,
    *,
    batch: int,
    size: tuple[int, int],
    cin: int,
    cmid: int,
    cout: int,
    stride: int,
    dilation: int,
    groups: int,
    projection: bool,
    mask_size: tuple[int, int] = (1, 1),
    channel_groups: int = 1,
    squeezed: int = 0,
    rates: Rates | None = None,
    precision: str = "fp32",
) -> Kernel:
    """Make a dynamic bottleneck (1x1, 3x3, 1x1, addition), one fused kernel.

    Args:
        name: Of the kernel.
        block: Of the network.
        kind: ``"spatial_bottleneck"``, ``"layer_bottleneck"``, ``"channel_bottleneck"`` or
            ``"spatial_channel_bottleneck"``.
        batch: Images.
        size: (height, width) of the input.
        cin: Input channels.
        cmid: Channels between the convolutions.
        cout: Output channels.
        stride: Of the 3x3.
        dilation: Of the 3x3.
        groups: Of the 3x3.
        projection: Whether the shortcut is a 1x1 convolution.
        mask_size: (rows, columns) of the spatial mask.
        channel_groups: Groups of the channel mask.
        squeezed: Hidden channels of a squeeze-excite behind the 3x3; 0 if there is none.
        rates: Active fractions; None runs everything. ``conv1`` defaults to the expected dilation of random patches.
        precision: Of activations and weights.
    """
    rates = rates or Rates()
    element = ELEMENT_BYTES[precision]
    out_size = (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1
    spatial = rates.spatial if kind != "channel_bottleneck" else 1.0
    channel = rates.channel if "channel" in kind else 1.0
    whole = kind in ("layer_bottleneck", "channel_bottleneck")
    second = spatial
    if rates.conv2 is not None and not whole:
        second = rates.conv2
    elif squeezed and not whole:
        # The squeeze-excite pools the whole map of every image that has an active patch.
        second = union(spatial, mask_size[0] * mask_size[1])
    if whole:
        first = spatial
    elif rates.conv1 is not None:
        first = rates.conv1
    else:
        read = (1, 1) if squeezed and rates.conv2 is None else mask_size
        first = dilated_density(
            second, in_size=size, out_size=out_size, mask_size=read, stride=stride, dilation=dilation
        )
    in_pixels, out_pixels = batch * size[0] * size[1], batch * out_size[0] * out_size[1]
    shortcut = out_pixels * cin * cout if projection else 0

    def branch(first: float, second: float, spatial: float, channel: float) -> float:
        hidden = cmid * channel
        conv1 = in_pixels * first * cin * hidden
        conv2 = out_pixels * second * 9 * hidden * hidden / groups + 2 * batch * second * cmid * squeezed
        return conv1 + conv2 + out_pixels * spatial * hidden * cout + shortcut

    touched = cmid * channel if spatial > 0 else 0.0
    weights = cin * touched + 9 * touched * touched / groups + touched * cout + 2 * touched * squeezed
    weights += cin * cout if projection else 0
    return Kernel(
        name,
        block,
        kind,
        branch(first, second, spatial, channel),
        branch(1.0, 1.0, 1.0, 1.0),
        float(element * in_pixels * cin),
        float(element * out_pixels * cout),
        float(element * weights),
        {
            "batch": batch,
            "h": size[0],
            "w": size[1],
            "oh": out_size[0],
            "ow": out_size[1],
            "cin": cin,
            "cmid": cmid,
            "cout": cout,
            "k": 3,
            "stride": stride,
            "dilation": dilation,
            "groups": groups,
            "projection": float(projection),
            "mask_h": mask_size[0],
            "mask_w": mask_size[1],
            "patch": out_size[0] / mask_size[0],
            "channel_groups": channel_groups,
            "rate": spatial,
            "rate_conv1": first,
            "rate_conv2": second,
            "channel_rate": channel,
            "squeezed": squeezed,
            **({} if rates.channel_slowest is None else {"channel_rate_slowest": rates.channel_slowest}),
        },
    )


def masker_kernel(
    name: str,
    block: str | None,
    kind: str,
    *,
    batch: int,
    size: tuple[int, int],
    cin: int,
    layers: Sequence[tuple[int, int]],
    mask_size: tuple[int, int] = (1, 1),
    precision: str = "fp32",
) -> Kernel:
    """Make a masker: pooling of (batch, cin, *size) to ``mask_size``, then linear layers (in, out) per position."""
    element = ELEMENT_BYTES[precision]
    positions = batch * mask_size[0] * mask_size[1]
    weights = sum(inner * outer for inner, outer in layers)
    macs = float(positions * weights)
    return Kernel(
        name,
        block,
        kind,
        macs,
        macs,
        float(element * batch * size[0] * size[1] * cin),
        float(4 * positions * layers[-1][1]),
        float(element * weights),
        {
            "batch": batch,
            "h": size[0],
            "w": size[1],
            "cin": cin,
            "cout": layers[-1][1],
            "cmid": layers[0][1] if len(layers) > 1 else 0,
            "mask_h": mask_size[0],
            "mask_w": mask_size[1],
        },
    )


# ---------------------------------------------------------------- fusion

_FREE = frozenset((
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Constant", "Shape", "ConstantOfShape",
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "CastLike", "Size",
))  # fmt: skip
"""No kernel: views, and what is folded into its neighbours (quantisation) or at load."""

_CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvInteger", "ConvTranspose"})
_PRODUCTS = frozenset({"Gemm", "MatMul", "QLinearMatMul", "MatMulInteger"})
_POINTWISE = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu",
    "Clip", "Sigmoid", "HardSigmoid", "Tanh", "HardSwish", "Mish", "Gelu", "Softplus", "Softsign", "Erf", "Exp",
    "Log", "Sqrt", "Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Reciprocal", "Where", "Equal", "Less",
    "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "Xor", "BatchNormalization", "Sin", "Cos",
    "ThresholdedRelu", "Swish", "BiasGelu", "FastGelu", "QuickGelu",
))  # fmt: skip
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
    "resize": (
        "Resize", "Upsample", "GridSample",
    ),
    "transpose": (
        "Transpose", "Concat", "Slice", "Gather", "GatherND", "GatherElements", "ScatterND",
        "ScatterElements", "Pad", "Expand", "Split", "Tile", "DepthToSpace", "SpaceToDepth",
    ),
}  # fmt: skip
_CLASSES = {name: kind for kind, names in _MEMBERS.items() for name in names}
_FUSED_BY: dict[str, frozenset[str]] = {
    # PyTorch, eager: every operator by itself.
    "pytorch": frozenset(),
    # ONNX Runtime, CPU: activations of its FusedConv, and the addition of the blocked (NCHWc) convolution.
    "onnxruntime": frozenset((
        "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "Add", "BatchNormalization",
    )),
    # TensorRT merges every chain of pointwise operators into its producer.
    "tensorrt": _POINTWISE,
}  # fmt: skip
RUNTIMES = tuple(_FUSED_BY)


def fused_by(runtime: str) -> frozenset[str]:
    """ONNX operators that a runtime fuses into the convolution before them; raises ``UsageError`` for another name."""
    if runtime not in _FUSED_BY:
        raise unknown_name("runtime", runtime, _FUSED_BY)
    return _FUSED_BY[runtime]


_SCALE_SHIFT = frozenset({"BatchNormalization", "Add", "Mul", "Sub", "Div"})


@dataclass
class _Group:
    """Nodes that one kernel runs.

    Attributes:
        nodes: In order; the first decides the class.
        tail: Tensor that the group produces.
        extra: Further activations that fused nodes read.
    """

    nodes: list[onnx.NodeProto]
    tail: str
    extra: list[str] = field(default_factory=list)


class _Fuser:
    """Sorts the nodes of a graph into groups."""

    def __init__(self, model: onnx.ModelProto, runtime: str, shapes: Mapping[str, Shape]) -> None:
        self._shapes = shapes
        self._fusable = fused_by(runtime)
        self._chains = runtime == "tensorrt"
        self._alias: dict[str, str] = {}
        self.constant = {item.name for item in model.graph.initializer} | {""}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._group_of: dict[str, _Group] = {}
        self.groups: list[_Group] = []
        nodes = [node for node in model.graph.node if not self._folds(node)]
        for node in nodes:
            for name in dict.fromkeys(map(self.root, node.input)):
                self._readers.setdefault(name, []).append(node)
        self._kept = {self.root(value.name) for value in model.graph.output}
        for node in nodes:
            group = self._join(node)
            if group is None:
                group = _Group([node], node.output[0])
                self.groups.append(group)
            self._group_of[node.output[0]] = group

    def root(self, name: str) -> str:
        """The tensor that ``name`` is a view of."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Inputs that are computed at run time."""
        return [name for name in map(self.root, node.input) if name not in self.constant]

    def _folds(self, node: onnx.NodeProto) -> bool:
        """Whether the node leaves no kernel: it is constant, or a view of its input."""
        if node.op_type in ("Shape", "Size") or all(self.root(name) in self.constant for name in node.input):
            self.constant.update(node.output)
            return True
        if node.op_type in _FREE and not node.domain:
            self._alias[node.output[0]] = node.input[0]
            return True
        return False

    def _join(self, node: onnx.NodeProto) -> _Group | None:
        """The group that ``node`` is fused into, extended by it; None if it starts its own."""
        if node.op_type not in _POINTWISE or node.domain:
            return None
        inputs = self.activations(node)
        candidates = [self._group_of[name] for name in inputs if name in self._group_of]
        for group in sorted(candidates, key=self.groups.index, reverse=True):
            if self._takes(group, node, inputs):
                group.nodes.append(node)
                group.extra += [name for name in dict.fromkeys(inputs) if self._group_of.get(name) is not group]
                group.tail = node.output[0]
                return group
        return None

    def _takes(self, group: _Group, node: onnx.NodeProto, inputs: Sequence[str]) -> bool:
        lead = group.nodes[0].op_type
        pointwise = lead in _POINTWISE
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
        if node.op_type not in allowed and not folds:
            return False
        if not self._chains and lead in _PRODUCTS and len(inputs) > 1:
            return False
        # A gate that scales a map is no part of the layer that computes the gate.
        if math.prod(self._shapes.get(node.output[0], ())) != math.prod(self._shapes.get(group.tail, ())):
            return False
        produced = {n.output[0] for n in group.nodes}
        if group.tail in self._kept or any(name in self._kept for name in inputs if name in produced):
            return False
        # Every reader of what the group made so far is in it already (x * sigmoid(x) reads its middle twice).
        own = [name for name in inputs if name in produced]
        members = [*group.nodes, node]
        return all(any(reader is member for member in members) for name in own for reader in self._readers[name]) or (
            self._chains and self._closes_soon(group, node)
        )

    def _closes_soon(self, group: _Group, node: onnx.NodeProto) -> bool:
        """Whether ``node`` is the gate of ``x * gate(x)`` and the product is the only other reader of x."""
        readers = self._readers[group.tail]
        after = self._readers.get(node.output[0], [])
        return (
            len(readers) == 2 and len(after) == 1 and after[0].op_type == "Mul" and any(r is after[0] for r in readers)
        )


# ---------------------------------------------------------------- the walk

_NUMBERED = re.compile(r"^(?!stem\b)[\w.-]*[.-]\d+$")


def block_of(node: onnx.NodeProto) -> str | None:
    """Block of a node by its name: ``"<block>/..."`` of our exports, else the first numbered scope; None if none."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", entry.value)
            return next((scope for scope in scopes if _NUMBERED.match(scope)), None)
    if node.name.startswith("/"):
        return next((scope for scope in node.name.split("/")[1:-1] if _NUMBERED.match(scope)), None)
    group = group_of(node.name)
    return None if group in ("stem", "head", "other") else group


class GraphWalker:
    """A graph whose shapes and fusions are known, ready to give its kernels at any rates.

    Args:
        model: Any ONNX graph; its weights may be missing.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        batch: Images per run; None takes the graph's own (1 if it leaves it open).
        input_size: (height, width) of the image; None takes the graph's own.
        runtime: Whose fusions apply: ``"onnxruntime"``, ``"tensorrt"`` or ``"pytorch"``.
        name: Of the network; None takes the graph's.

    Raises:
        UsageError: Unknown precision or runtime.
        BundleError: Shapes that are needed are not static.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
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
        self.name = name or model.graph.name or "network"
        shape, override = _input_shape(model, batch, input_size)
        self.batch = shape[0] if shape else 1
        self.input_size = (shape[2], shape[3]) if len(shape) == 4 else None
        self._shapes = static_shapes(model, shape if override else None, assume=True)
        self._fuser = _Fuser(model, runtime, self._shapes)
        # Copies, because a node keeps its whole model with all weights in memory.
        self._entries: list[Kernel | tuple[str, str, str | None, list[Shape], dict[str, Any]]] = []
        for group in self._fuser.groups:
            node = group.nodes[0]
            if is_dynamic(node):
                shapes = [self._shape(name) for name in node.input]
                self._entries.append((node.op_type, node.name, block_of(node), shapes, operator_attributes(node)))
            else:
                self._entries.append(self._kernel(group))

    @property
    def dynamic_modes(self) -> dict[str, str]:
        """Mode of each block that has a dynamic operator, in order."""
        modes = {}
        for entry in self._entries:
            if not isinstance(entry, Kernel) and entry[2] is not None and not entry[0].startswith(_MASKERS):
                kind = _kind_of(entry[0]).removesuffix("_bottleneck")
                modes[entry[2]] = {"spatial_channel": "both"}.get(kind, kind)
        return modes

    @property
    def dynamic_blocks(self) -> tuple[str, ...]:
        """Blocks that have a dynamic operator, in order."""
        return tuple(self.dynamic_modes)

    def graph(self, rates: RatesOfBlocks | None = None) -> Graph:
        """Kernels at the given rates; None runs dynamic operators at rate 1."""
        return Graph(
            self.name,
            tuple(
                entry if isinstance(entry, Kernel) else self._dynamic(*entry, rates=rates_of(rates, entry[2]))
                for entry in self._entries
            ),
            self.batch,
            self.input_size,
            self.precision,
        )

    def _shape(self, name: str) -> Shape:
        shape = self._shapes.get(name)
        if shape is None or any(size < 0 for size in shape):
            raise BundleError(f"The shape of tensor '{name}' is not static: give the graph a fixed input size.")
        return shape

    def _elements(self, name: str) -> int:
        return math.prod(self._shape(name))

    def _kernel(self, group: _Group) -> Kernel:
        node, block = group.nodes[0], block_of(group.nodes[0])
        name = node.name or f"{node.op_type}_{node.output[0]}"
        fused = [item.op_type for item in group.nodes[1:]]
        residual = any(self._elements(extra) == self._elements(group.tail) for extra in group.extra)
        activation = any(item != "Add" and item not in _SCALE_SHIFT for item in fused)
        if not node.domain and node.op_type in _CONVOLUTIONS:
            return self._conv(node, name, block, residual, activation)
        if not node.domain and node.op_type in _PRODUCTS:
            return self._product(node, name, block, residual, activation)
        read = sum(self._elements(item) for item in dict.fromkeys([*self._fuser.activations(node), *group.extra]))
        written = self._elements(group.tail)
        known = not node.domain or node.domain in ("com.microsoft", "ai.onnx")
        kind = "elementwise" if known and node.op_type in _POINTWISE else _CLASSES.get(node.op_type) if known else None
        # The other constants are axes, indices and shapes.
        weighs = kind in ("elementwise", "norm") or kind is None
        weights = sum(
            self._elements(item)
            for item in node.input
            if weighs and item in self._fuser.constant and item in self._shapes
        )
        sizes: dict[str, float] = {}
        inputs = self._fuser.activations(node)
        # Of several inputs the largest is the map; the others are gates and vectors.
        shape = self._shape(max(inputs, key=self._elements))
        if len(shape) == 4:
            sizes = {"h": shape[2], "w": shape[3], "cin": shape[1]}
            out = self._shape(node.output[0])
            if len(out) == 2:
                out = (*out, 1, 1)  # A mean over the pixels that drops their axes.
            if len(out) == 4:
                sizes |= {"oh": out[2], "ow": out[3], "cout": out[1]}
        if kind == "pool":
            window = next((tuple(a.ints) for a in node.attribute if a.name == "kernel_shape"), None)
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
            precision=self.precision,
            operators=len(group.nodes),
            **sizes,
        )

    def _conv(self, node: onnx.NodeProto, name: str, block: str | None, residual: bool, activation: bool) -> Kernel:
        quantised = node.op_type == "QLinearConv"
        x, y = self._shape(node.input[0]), self._shape(node.output[0])
        weight = self._shape(node.input[3 if quantised else 1])
        lists = {item.name: item.ints for item in node.attribute}
        strides, dilations = lists.get("strides"), lists.get("dilations")
        kernel = weight[2:]
        transposed = node.op_type == "ConvTranspose"
        groups = next((item.i for item in node.attribute if item.name == "group"), 1)
        if transposed:
            # Every input position is multiplied with the whole kernel: the convolution with the roles swapped.
            x, y = y, x
        return conv_kernel(
            name,
            block,
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
            precision=self.precision,
        )

    def _product(self, node: onnx.NodeProto, name: str, block: str | None, residual: bool, activation: bool) -> Kernel:
        second = 3 if node.op_type == "QLinearMatMul" else 1
        a, b, y = self._shape(node.input[0]), self._shape(node.input[second]), self._shape(node.output[0])
        attributes = {item.name: item.i for item in node.attribute}
        inner = a[0] if attributes.get("transA") else a[-1]
        constant = self._fuser.root(node.input[second]) in self._fuser.constant
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
            precision=self.precision,
        )

    def _dynamic(
        self,
        op_type: str,
        name: str,
        block: str | None,
        shapes: Sequence[Shape],
        attributes: Mapping[str, Any],
        *,
        rates: Rates,
    ) -> Kernel:
        spec = OPERATORS[op_type]
        by_name = dict(zip((port.name for port in spec.inputs), shapes, strict=True))
        batch, height, width, cin = by_name["x"]
        kind = _kind_of(op_type)
        if op_type.startswith(_MASKERS):
            layers = [(s[1], s[0]) for port, s in by_name.items() if port.endswith("weight")]
            return masker_kernel(
                name,
                block,
                kind,
                batch=batch,
                size=(height, width),
                cin=cin,
                layers=layers,
                mask_size=(attributes.get("mask_height", 1), attributes.get("mask_width", 1)),
                precision=self.precision,
            )
        if not kind.endswith("bottleneck"):
            return self._by_spec(op_type, name, block, shapes, attributes, rates)
        masks = {port.name: by_name[port.name] for port in spec.inputs if port.role is Role.MASK}
        spatial = next((shape[2:] for shape in masks.values() if len(shape) == 4), (1, 1))
        channel = next((shape[1] for shape in masks.values() if len(shape) == 2), 1)
        return bottleneck_kernel(
            name,
            block,
            kind,
            batch=batch,
            size=(height, width),
            cin=cin,
            cmid=by_name["w1"][0],
            cout=by_name["w3"][0],
            stride=attributes["strides"][0],
            dilation=attributes["dilations"][0],
            groups=attributes["group"],
            projection="wd" in by_name,
            mask_size=(spatial[0], spatial[1]),
            channel_groups=channel,
            rates=rates,
            precision=self.precision,
        )

    def _by_spec(
        self,
        op_type: str,
        name: str,
        block: str | None,
        shapes: Sequence[Shape],
        attributes: Mapping[str, Any],
        rates: Rates,
    ) -> Kernel:
        """Make a kernel of any other dynamic operator from what its own spec says under masks of these rates."""
        import numpy as np

        spec = OPERATORS[op_type]
        generator = np.random.default_rng(0)
        masks = {}
        for port in spec.mask_inputs():
            shape = shapes[spec.input_index(port)]
            rate = rates.spatial if len(shape) == 4 else rates.channel
            bits = np.arange(math.prod(shape[1:])) < round(rate * math.prod(shape[1:]))
            masks[port] = np.stack([generator.permutation(bits) for _ in range(shape[0])]).reshape(shape)
        cost = spec.work(
            shapes,
            attributes,
            spec.counts(shapes, attributes, {port: mask.astype(np.float32) for port, mask in masks.items()}),
            4.0,
        )
        element = ELEMENT_BYTES[self.precision]
        weights = sum(
            math.prod(shape) for port, shape in zip(spec.inputs, shapes, strict=True) if port.role is Role.WEIGHT
        )
        written = element * math.prod(spec.infer_shape(shapes, attributes))
        x = shapes[0]
        return Kernel(
            name,
            block,
            _snake(op_type),
            float(cost.macs.sum()),
            float(spec.dense_work(shapes, attributes).macs * shapes[0][0]),
            float(element * math.prod(x)),
            float(written),
            float(element * weights),
            {"batch": x[0], "rate": rates.spatial, "channel_rate": rates.channel},
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


def has_dynamic_operators(model: onnx.ModelProto) -> bool:
    """Whether any node of the main graph is one of our operators."""
    return any(is_dynamic(node) for node in model.graph.node)


_MASKERS = ("SpatialMasker", "ChannelMasker")


def _kind_of(op_type: str) -> str:
    """Kind of a dynamic operator: its variants are one."""
    return _snake(op_type.removesuffix("Projection").removesuffix("Hidden"))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _plane(shape: Shape) -> tuple[int, int]:
    """(rows, columns) of a map with any number of spatial axes."""
    return math.prod(shape[2:-1]), shape[-1]


def _input_shape(
    model: onnx.ModelProto, batch: int | None, input_size: tuple[int, int] | None
) -> tuple[tuple[int, ...], bool]:
    """Shape of the first input with the wishes applied, and whether it differs from the graph's own."""
    weights = {item.name for item in model.graph.initializer}
    first = next((value for value in model.graph.input if value.name not in weights), None)
    if first is None:
        raise BundleError("The graph has no input: nothing can be predicted.")
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in first.type.tensor_type.shape.dim]
    wanted = list(dims)
    if wanted:
        wanted[0] = batch or (dims[0] if dims[0] > 0 else 1)
    if input_size is not None:
        if len(dims) != 4:
            raise UsageError(
                f"Input '{first.name}' has {len(dims)} axes: it is no image, so it has no height and width."
            )
        wanted[2:] = input_size
    if any(side < 1 for side in wanted):
        raise BundleError(f"Input '{first.name}' has the open shape {tuple(dims)}. Give --input-size HxW.")
    return tuple(wanted), wanted != dims
