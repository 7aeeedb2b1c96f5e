"""Micro-benchmark graphs: random sequences of operators, each labelled with a group of its own.

An operator alone in a loop finds its weights in the cache, its input in the layout it was given, and nothing to fuse
with. In a network none of this holds: at batch 1 every layer's weights come from wherever the other layers have left
them. The operators are therefore measured inside graphs that look like networks without being any: random widths,
depths, map sizes and modes, from half a megabyte of weights (which stay in the cache) to a hundred (which do not). A
graph with a bottleneck of a published network (the same channels, at whatever size) is never drawn, so that no block of
the zoo is part of what was fitted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.bundle import MaskInfo
from dyndeploy.device_calibration.families import draw_maps, draw_signals, draw_text
from dyndeploy.errors import unknown_name
from dyndeploy.graphs.forced import PREFIX
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.prediction.laudnet import published_blocks

FAMILIES = ("residual", "plain", "mobile", "tokens", "maps", "signals", "text")
"""Kinds of graphs: dynamic and static bottlenecks; plain convolutions and pools; inverted bottlenecks with depthwise
or grouped convolutions and squeeze-excite; matrix products, softmax and layer norm over tokens; large maps with much
between the convolutions; convolutions along one axis; bytes of a text."""

MODES = ("spatial", "channel", "layer", "both", "static")
FORCED = PREFIX

_USUAL_WIDTHS = (8, 16, 24, 32, 48, 64, 80, 96, 128)
_DEPTHS = (1, 1, 2, 2, 2, 3, 3, 4, 6)
_EXPANSIONS = (4, 4, 4, 4, 4, 2, 2, 3, 1)
_OPSET, _IR_VERSION = 17, 8
_MAX_MACS = 4e9
_MAX_WEIGHTS = 30e6  # Far more than fits a cache; loading more would only take time.

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MicroGraph:
    """One graph to measure.

    Attributes:
        model: Every node is named ``"<group>/<operator>"``; what the runtime may fuse shares a group.
        masks: Masks that are graph inputs, ``forced/<name>``.
        shape: Of the input named ``input``.
        family: One of :data:`FAMILIES`.
        seed: It was drawn from.
    """

    model: onnx.ModelProto
    masks: tuple[MaskInfo, ...]
    shape: tuple[int, ...]
    family: str
    seed: int


@dataclass
class Writer:
    """Collects nodes of one graph."""

    random: np.random.Generator
    values: bool = True
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    masks: list[MaskInfo] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    group: str = "g0"
    macs: float = 0.0
    size: float = 0.0
    _count: int = 0

    def begin(self, label: str) -> None:
        """Start a group: what follows is measured as one."""
        self._count += 1
        self.group = f"g{self._count}.{label}"

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        name = f"{self.group}/{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=name, domain=domain, **attributes))
        return output

    def weight(self, *shape: int) -> str:
        """Weights that keep activations of size one; without values only their shape is written."""
        name = f"w{len(self.weights)}"
        self.size += float(np.prod(shape))
        if self.values:
            fan_in = max(1, int(np.prod(shape[1:])))
            count, numbers = int(np.prod(shape)), _numbers()
            data = numbers[:count] if count <= len(numbers) else np.resize(numbers, count)
            data = (data * np.float32(fan_in**-0.5)).reshape(shape)
            self.weights.append(numpy_helper.from_array(data, name))
        else:
            self.weights.append(onnx.TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT))
        return name

    def constant(self, values: npt.NDArray[np.generic]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def mask(self, kind: str, *shape: int) -> str:
        name = f"m{len(self.masks)}"
        self.masks.append(MaskInfo(name, self.group, kind, shape))
        return FORCED + name

    def conv(self, x: str, c_in: int, c_out: int, size: tuple[int, int], *, k: int, stride: int = 1, group: int = 1,
             dilation: int = 1) -> tuple[str, tuple[int, int]]:  # fmt: skip
        pad = dilation * (k // 2)
        out = (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1
        self.macs += float(np.prod(out)) * c_out * c_in // group * k * k
        result = self.op(
            "Conv", x, self.weight(c_out, c_in // group, k, k), self.weight(c_out), kernel_shape=[k, k],
            strides=[stride] * 2, pads=[pad] * 4, group=group, dilations=[dilation] * 2,
        )  # fmt: skip
        return result, out

    def model(self, shape: Sequence[int]) -> onnx.ModelProto:
        tensor = helper.make_tensor_value_info
        inputs = [tensor("input", TensorProto.FLOAT, shape)]
        inputs += [tensor(FORCED + mask.name, TensorProto.FLOAT, mask.shape) for mask in self.masks]
        outputs = [tensor(name, TensorProto.FLOAT, None) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "microbenchmark", inputs, outputs, self.weights)
        used = sorted({node.op_type for node in self.nodes if node.domain == DOMAIN})
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, 1)],
            ir_version=_IR_VERSION,
            functions=[OPERATORS[name].function(_OPSET) for name in used],
        )


@functools.lru_cache(maxsize=1)
def _numbers() -> Array:
    # Time does not depend on values as long as none is subnormal.
    numbers = np.random.default_rng(0).standard_normal(2**22, np.float32)
    return np.where(np.abs(numbers) < 1e-3, np.float32(1e-3), numbers)


def micro_graph(family: str, seed: int, *, values: bool = True) -> MicroGraph:
    """Draw a graph; the same family and seed give the same one.

    Args:
        family: One of :data:`FAMILIES`.
        seed: Of everything random.
        values: Whether weights have values; a graph that is only walked needs none.

    Raises:
        UsageError: Unknown family.
    """
    if family not in _DRAW:
        raise unknown_name("family", family, _DRAW)
    for attempt in range(1000):
        writer = Writer(np.random.default_rng((seed, FAMILIES.index(family), attempt)), values=False)
        shape = _DRAW[family](writer)
        if shape is not None and writer.macs <= _MAX_MACS and writer.size <= _MAX_WEIGHTS:
            if values:  # Only now: most of the time goes into writing weights.
                writer = Writer(np.random.default_rng((seed, FAMILIES.index(family), attempt)))
                _DRAW[family](writer)
            return MicroGraph(writer.model(shape), tuple(writer.masks), shape, family, seed)
    raise AssertionError("no graph within the limits in 1000 draws")


def draw_masks(masks: Sequence[MaskInfo], random: np.random.Generator) -> dict[str, Array]:
    """Masks of random rates; a layer's is on or off.

    In half of the draws all masks have the same rate, more often a low one, as in a trained network nearly: then all of
    its weights that compete for the caches shrink together. In the others an eighth is all on and a sixteenth all off.
    """
    feeds = {}
    common = random.random() ** 1.5 if random.random() < 0.5 else None
    for mask in masks:
        positions = int(np.prod(mask.shape[1:]))
        kind = random.random()
        rate = 1.0 if kind < 1 / 8 else 0.0 if kind < 3 / 16 else random.random()
        runs = 0.7
        if common is not None:
            rate = runs = common
        bits = np.zeros((mask.shape[0], positions), np.float32)
        for row in bits:
            active = int(random.random() < runs) if positions == 1 else round(rate * positions)
            row[random.permutation(positions)[:active]] = 1
        feeds[FORCED + mask.name] = bits.reshape(mask.shape)
    return feeds


def _eights(random: np.random.Generator, low: float, high: float) -> int:
    """A multiple of 8, log-uniform between low and high; more often of 16 or 32, as the widths of networks are."""
    step = int(random.choice([8, 16, 32]))
    value = float(np.exp(random.uniform(np.log(low), np.log(high))))
    return max(8, round(value / step) * step)


# ---------------------------------------------------------------- residual networks


def _residual(w: Writer) -> tuple[int, ...] | None:
    random = w.random
    # Small graphs are nearly free to measure, and the only ones whose kernels find everything in the nearest caches.
    small = random.random() < 0.4
    side = int(np.exp(random.uniform(np.log(24), np.log(112 if small else 320)))) // 4 * 4
    size = (side, side if random.random() < 0.8 else max(24, int(side * random.uniform(0.6, 1.4)) // 4 * 4))
    shape = (1, 3, *size)
    kernel, stride, pool = [(3, 1, False), (3, 2, False), (7, 2, True)][
        0
        if side <= 48 or (small and random.random() < 0.5)
        else 1
        if side <= 112
        else 2
        if random.random() < 0.8
        else 1
    ]
    channels = _eights(random, 8, 32) if small else _eights(random, 16, 112)
    w.begin("stem")
    x, size = w.conv("input", 3, channels, size, k=kernel, stride=stride)
    x = w.op("Relu", x)
    if pool:
        w.begin("pool")
        x = w.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        size = (size[0] - 1) // 2 + 1, (size[1] - 1) // 2 + 1
    # Half of the graphs have widths that double from stage to stage, as most networks do: caches mind powers of two.
    doubling = random.random() < 0.5
    usual, most = (_USUAL_WIDTHS[:4], 40) if small else (_USUAL_WIDTHS, 112)
    width = float(random.choice(usual) if doubling else _eights(random, most // 7, most))
    base_mode = str(random.choice(MODES))
    group_count = int(random.choice([1, 1, 1, 1, 1, 1, 2, 8, 32]))
    last = False  # whether x is channels-last
    for stage in range(4):
        mode = base_mode if random.random() < 0.7 else str(random.choice(MODES))
        patch, channel_patch = int(random.choice([1, 1, 2, 2, 3, 4, 4, 7, 8])), int(random.choice([1, 2, 2, 4, 8]))
        expansion = int(random.choice(_EXPANSIONS))
        hidden = max(8, round(width / 8) * 8)
        groups = group_count if hidden % group_count == 0 else 1
        outputs = hidden * expansion
        for index in range(int(random.choice(_DEPTHS))):
            stride = 2 if index == 0 and stage > 0 else 1
            if min(size) < 4:
                stride = 1
            if (channels, hidden, outputs) in published_blocks():  # At no input size is one ever measured.
                return None
            if (mode != "static") != last:
                w.begin("transpose")
                x = w.op("Transpose", x, perm=[0, 2, 3, 1] if mode != "static" else [0, 3, 1, 2])
                last = mode != "static"
            block = _static_block if mode == "static" else functools.partial(_dynamic_block, mode=mode)
            x, size = block(
                w, x, channels, hidden, outputs, size, stride=stride, groups=groups, patch=patch,
                channel_patch=channel_patch,
            )  # fmt: skip
            channels = outputs
        width *= 2.0 if doubling else random.uniform(1.4, 2.3)
    w.begin("mean")
    if last:
        pixels = size[0] * size[1]
        flat = w.op("Reshape", x, w.constant(np.array([1, pixels, channels])))
        ones = w.constant(np.full((1, 1, pixels), 1 / pixels, np.float32))
        x = w.op("Reshape", w.op("MatMul", ones, flat), w.constant(np.array([1, channels])))
    else:
        x = w.op("Flatten", w.op("GlobalAveragePool", x), axis=1)
    _classifier(w, x, channels)
    return shape


def _classifier(w: Writer, x: str, channels: int) -> None:
    classes = int(w.random.choice([10, 100, 365, 1000]))
    w.begin("classifier")
    w.macs += channels * classes
    w.outputs.append(w.op("Gemm", x, w.weight(classes, channels), w.weight(classes), transB=1))


def _static_block(
    w: Writer, x: str, channels: int, hidden: int, outputs: int, size: tuple[int, int], *, stride: int, groups: int,
    patch: int, channel_patch: int,
) -> tuple[str, tuple[int, int]]:  # fmt: skip
    w.begin("conv1")
    y, _ = w.conv(x, channels, hidden, size, k=1)
    y = w.op("Relu", y)
    w.begin("conv2")
    y, out = w.conv(y, hidden, hidden, size, k=3, stride=stride, group=groups)
    y = w.op("Relu", y)
    identity = x
    if stride != 1 or channels != outputs:
        w.begin("projection")
        identity, _ = w.conv(x, channels, outputs, size, k=1, stride=stride)
    w.begin("conv3")
    y, _ = w.conv(y, hidden, outputs, out, k=1)
    return w.op("Relu", w.op("Add", y, identity)), out


_OPERATORS = {
    "spatial": "SpatialBottleneck",
    "channel": "ChannelBottleneck",
    "layer": "LayerBottleneck",
    "both": "SpatialChannelBottleneck",
}


def _dynamic_block(
    w: Writer, x: str, channels: int, hidden: int, outputs: int, size: tuple[int, int], *, stride: int, groups: int,
    patch: int, channel_patch: int, mode: str,
) -> tuple[str, tuple[int, int]]:  # fmt: skip
    out = (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1
    patches = (1, 1) if mode == "layer" else (max(1, out[0] // patch), max(1, out[1] // patch))
    masks = []
    if mode != "channel":
        w.begin("spatial_masker")
        names = x, w.weight(1, channels), w.weight(1)
        decided = w.op("SpatialMasker", *names, domain=DOMAIN, mask_height=patches[0], mask_width=patches[1])
        w.outputs.append(decided)
    if mode in ("channel", "both"):
        count = hidden // channel_patch if hidden % channel_patch == 0 else hidden
        w.begin("channel_masker")
        inner = max(count // 16, 16) if w.random.random() < 0.8 else 0
        layers = [w.weight(inner, channels), w.weight(inner)] if inner else []
        layers += [w.weight(count, inner or channels), w.weight(count)]
        w.outputs.append(w.op("ChannelMaskerHidden" if inner else "ChannelMasker", x, *layers, domain=DOMAIN))
    w.begin("block")
    if mode != "channel":
        masks.append(w.mask("layer" if mode == "layer" else "spatial", 1, 1, *patches))
    if mode in ("channel", "both"):
        masks.append(w.mask("channel", 1, count))
    weights = [
        w.weight(hidden, channels), w.weight(hidden), w.weight(hidden, hidden // groups, 3, 3), w.weight(hidden),
        w.weight(outputs, hidden), w.weight(outputs),
    ]  # fmt: skip
    projection = stride != 1 or channels != outputs
    if projection:
        weights += [w.weight(outputs, channels), w.weight(outputs)]
    w.macs += channels * hidden * size[0] * size[1] + (9 * hidden // groups + outputs) * hidden * out[0] * out[1]
    w.macs += channels * outputs * out[0] * out[1] * projection
    y = w.op(
        _OPERATORS[mode] + ("Projection" if projection else ""), x, *masks, *weights, domain=DOMAIN,
        strides=[stride] * 2, dilations=[1, 1], pads=[1] * 4, group=groups,
    )  # fmt: skip
    return y, out


# ---------------------------------------------------------------- other static networks


def _activation(w: Writer, x: str) -> str:
    """An activation: fused into the convolution before it (the same group), or an operator of its own."""
    kind = str(w.random.choice(["Relu", "Relu", "HardSwish", "Sigmoid", "Clip"]))
    if kind == "Clip":
        return w.op("Clip", x, w.constant(np.array(0, np.float32)), w.constant(np.array(6, np.float32)))
    if kind == "Relu":
        return w.op("Relu", x)
    w.begin("activation")
    if kind == "HardSwish":
        return w.op("HardSwish", x)
    gate = w.op("Sigmoid", x)
    w.begin("gate")
    return w.op("Mul", x, gate)


def _plain(w: Writer) -> tuple[int, ...] | None:
    """Convolutions of all kernel sizes and strides, pools, additions and a classifier of several layers."""
    random = w.random
    side = int(np.exp(random.uniform(np.log(24), np.log(256)))) // 2 * 2
    shape, size, channels = (1, 3, side, side), (side, side), 3
    x, width = "input", float(_eights(random, 16, 96))
    for stage in range(5):
        for index in range(int(random.integers(1, 4))):
            kernel = int(random.choice([1, 3, 3, 3, 3, 5, 7] if stage < 2 else [1, 3, 3, 3, 5]))
            stride = 2 if index == 0 and min(size) >= 8 and random.random() < 0.4 else 1
            outputs = max(8, round(width * random.uniform(0.7, 1.4) / 8) * 8)
            w.begin("conv")
            y, out = w.conv(x, channels, outputs, size, k=kernel, stride=stride)
            if (channels, stride) == (outputs, 1) and random.random() < 0.5:
                y = w.op("Add", y, x)
            x, size, channels = w.op("Relu", y), out, outputs
        if min(size) >= 6 and random.random() < 0.7:
            w.begin("pool")
            kind, k = str(random.choice(["MaxPool", "AveragePool"])), int(random.choice([2, 3]))
            x = w.op(kind, x, kernel_shape=[k, k], strides=[2, 2], pads=[(k - 1) // 2] * 4)
            size = tuple((s + 2 * ((k - 1) // 2) - k) // 2 + 1 for s in size)  # type: ignore[assignment]
        width *= random.uniform(1.2, 2.2)
    w.begin("mean")
    if size[0] * size[1] * channels <= 16384 and random.random() < 0.5:
        x, channels = w.op("Flatten", x, axis=1), size[0] * size[1] * channels
    else:
        x = w.op("Flatten", w.op("GlobalAveragePool", x), axis=1)
    for _ in range(int(random.integers(0, 3))):
        inner = _eights(random, 128, 3000)
        w.begin("linear")
        w.macs += channels * inner
        x = w.op("Relu", w.op("Gemm", x, w.weight(inner, channels), w.weight(inner), transB=1))
        channels = inner
    _classifier(w, x, channels)
    return shape


def _mobile(w: Writer) -> tuple[int, ...] | None:
    """Inverted bottlenecks (depthwise) or bottlenecks with grouped convolutions, both with squeeze-excite."""
    random = w.random
    side = int(np.exp(random.uniform(np.log(48), np.log(288)))) // 8 * 8
    shape, size, channels = (1, 3, side, side), (side, side), _eights(random, 8, 48)
    w.begin("stem")
    x, size = w.conv("input", 3, channels, size, k=3, stride=2)
    x = _activation(w, x)
    depthwise, width, group_width = random.random() < 0.6, float(channels), int(random.choice([8, 16, 24, 48, 56]))
    for _ in range(5):
        width *= random.uniform(1.2, 2.2)
        for index in range(int(random.integers(1, 4))):
            stride = 2 if index == 0 and min(size) >= 6 else 1
            outputs = max(8, round(width / 8) * 8) if depthwise else max(1, round(width / group_width)) * group_width
            hidden = channels * int(random.integers(2, 7)) if depthwise else outputs
            groups = hidden if depthwise else hidden // group_width
            squeeze = max(8, hidden // 4 // 8 * 8) if random.random() < 0.6 else 0
            w.begin("expand")
            y, _ = w.conv(x, channels, hidden, size, k=1)
            y = _activation(w, y)
            w.begin("middle")
            k = int(random.choice([3, 3, 5])) if depthwise else 3
            y, out = w.conv(y, hidden, hidden, size, k=k, stride=stride, group=groups)
            y = _activation(w, y)
            if squeeze:
                w.begin("squeeze")
                s = w.op("GlobalAveragePool", y)
                w.begin("excite1")
                s, _ = w.conv(s, hidden, squeeze, (1, 1), k=1)
                s = w.op("Relu", s)
                w.begin("excite2")
                s, _ = w.conv(s, squeeze, hidden, (1, 1), k=1)
                s = w.op("HardSigmoid" if random.random() < 0.5 else "Sigmoid", s)
                w.begin("scale")
                y = w.op("Mul", s, y)
            identity = x
            if not depthwise and (stride != 1 or channels != outputs):
                w.begin("projection")
                identity, _ = w.conv(x, channels, outputs, size, k=1, stride=stride)
            w.begin("project")
            y, _ = w.conv(y, hidden, outputs, out, k=1)
            if not depthwise or (stride, channels) == (1, outputs):
                y = w.op("Add", y, identity)
            x = y if depthwise else w.op("Relu", y)
            size, channels = out, outputs
    w.begin("mean")
    _classifier_input = w.op("Flatten", w.op("GlobalAveragePool", x), axis=1)
    _classifier(w, _classifier_input, channels)
    return shape


def _tokens(w: Writer) -> tuple[int, ...] | None:
    """Transformer layers over (1, tokens, channels)."""
    random = w.random
    tokens, heads = int(np.exp(random.uniform(np.log(16), np.log(400)))), int(random.choice([2, 3, 4, 6, 8]))
    channels = heads * int(random.choice([16, 32, 48, 64]))
    shape, x = (1, tokens, channels), "input"
    per_head = channels // heads

    def norm(x: str) -> str:
        w.begin("norm")
        return w.op("LayerNormalization", x, w.weight(channels), w.weight(channels), axis=-1)

    def linear(x: str, inputs: int, outputs: int, label: str) -> str:
        w.begin(label)
        w.macs += tokens * inputs * outputs
        return w.op("Add", w.op("MatMul", x, w.weight(inputs, outputs)), w.weight(outputs))

    for _ in range(int(random.integers(1, 5))):
        y = norm(x)
        parts = []
        for part in range(3):
            z = linear(y, channels, channels, "linear")
            z = w.op("Reshape", z, w.constant(np.array([1, tokens, heads, per_head])))
            w.begin("transpose")
            parts.append(w.op("Transpose", z, perm=[0, 2, 3, 1] if part == 1 else [0, 2, 1, 3]))
        w.begin("scores")
        w.macs += 2 * tokens * tokens * channels
        scores = w.op("MatMul", parts[0], parts[1])
        w.begin("softmax")
        scores = w.op("Softmax", scores, axis=-1)
        w.begin("mix")
        y = w.op("MatMul", scores, parts[2])
        w.begin("transpose")
        y = w.op("Transpose", y, perm=[0, 2, 1, 3])
        y = w.op("Reshape", y, w.constant(np.array([1, tokens, channels])))
        y = linear(y, channels, channels, "linear")
        w.begin("residual")
        x = w.op("Add", y, x)
        inner = channels * int(random.choice([2, 4]))
        y = linear(norm(x), channels, inner, "linear")
        w.begin("gelu")
        if random.random() < 0.5:
            y = w.op("Relu", y)
        else:
            half = w.op("Mul", y, w.constant(np.array(0.5, np.float32)))
            erf = w.op("Erf", w.op("Div", y, w.constant(np.array(2**0.5, np.float32))))
            y = w.op("Mul", half, w.op("Add", erf, w.constant(np.array(1, np.float32))))
        y = linear(y, inner, channels, "linear")
        w.begin("residual")
        x = w.op("Add", y, x)
    w.outputs.append(x)
    return shape


_DRAW = {
    "residual": _residual,
    "plain": _plain,
    "mobile": _mobile,
    "tokens": _tokens,
    "maps": draw_maps,
    "signals": draw_signals,
    "text": draw_text,
}
