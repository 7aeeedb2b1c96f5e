"""Micro-benchmark graphs that look like networks of other kinds: detectors on large maps, sounds, texts.

What they have in common is that operators between the convolutions take much of the time: chains of pointwise operators
on maps that fit no cache, conversions of layouts, slices, norms, convolutions along one axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dyndeploy.device_calibration.graphs import Writer

Size = tuple[int, int]

_MOST_MACS = 1.2e9
"""Of a graph on large maps before its levels are put together: more is no detector for a CPU, and takes long."""


def _scalar(w: Writer, value: float) -> str:
    return w.constant(np.array([value], np.float32))


def _between(random: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def _point(w: Writer, op_type: str, *inputs: str) -> str:
    """A pointwise operator that is measured alone."""
    w.begin("point")
    return w.op(op_type, *inputs)


# ---------------------------------------------------------------- maps


def _map_activation(w: Writer, x: str) -> str:
    """An activation as exporters write it: one operator, or a chain with numbers between."""
    kind = int(w.random.integers(0, 6))
    if kind == 0:
        return w.op("Relu", x)
    if kind == 1:
        return w.op("HardSwish", x)
    if kind == 2:  # x * clip(x + 3, 0, 6) / 6
        y = _point(w, "Add", x, _scalar(w, 3))
        y = _point(w, "Clip", y, w.constant(np.array(0, np.float32)), w.constant(np.array(6, np.float32)))
        return _point(w, "Div", _point(w, "Mul", x, y), _scalar(w, 6))
    if kind == 3:
        return _point(w, "Mul", x, _point(w, str(w.random.choice(["Tanh", "Softplus", "Sigmoid"])), x))
    if kind == 4:
        return _point(w, str(w.random.choice(["Elu", "LeakyRelu", "Tanh", "Sigmoid"])), _point(w, "Abs", x))
    slope = w.weight(1, 1, 1)
    return _point(w, "PRelu", x, slope)


def _affine(w: Writer, x: str) -> str:
    """A product and a sum with one number each, which are not folded into weights."""
    if w.random.random() < 0.6:
        return x
    return _point(w, "Add", _point(w, "Mul", x, _scalar(w, 0.9)), _scalar(w, 0.1))


def _gated(w: Writer, x: str, channels: int, *, residual: bool) -> str:
    w.begin("squeeze")
    s = w.op("GlobalAveragePool", x)
    inner = max(4, channels // 4 // 4 * 4)
    w.begin("excite1")
    s = w.op("Relu", w.conv(s, channels, inner, (1, 1), k=1)[0])
    w.begin("excite2")
    s = w.op("HardSigmoid", w.conv(s, inner, channels, (1, 1), k=1)[0])
    y = _point(w, "Mul", x, s)
    return _point(w, "Add", x, y) if residual else y


def draw_maps(w: Writer) -> tuple[int, ...] | None:
    """Depthwise and pointwise convolutions over large maps, then maps of several sizes put together."""
    random = w.random
    side = int(_between(random, 96, 704)) // 32 * 32
    channels = int(random.choice([8, 12, 16, 20, 24, 32]))
    w.begin("stem")
    x, size = w.conv("input", 3, channels, (side, side), k=3, stride=2)
    x = _map_activation(w, x)
    levels: list[tuple[str, int, Size]] = []
    for _ in range(4):
        outputs = max(8, int(channels * random.uniform(1.2, 2.2)) // 4 * 4)
        for index in range(int(random.integers(1, 4))):
            stride = 2 if index == 0 and levels else 1
            w.begin("depthwise")
            x, size = w.conv(x, channels, channels, size, k=int(random.choice([3, 5])), stride=stride, group=channels)
            x = _map_activation(w, _affine(w, x))
            if random.random() < 0.2:
                x = _gated(w, x, channels, residual=False)
            w.begin("pointwise")
            y, _ = w.conv(x, channels, outputs, size, k=1)
            y = _map_activation(w, _affine(w, y))
            x, channels = (_point(w, "Add", y, x) if channels == outputs and random.random() < 0.3 else y), outputs
        levels.append((x, channels, size))
    if w.macs > _MOST_MACS:
        return None
    return _pyramid(w, levels, (1, 3, side, side))


def _pyramid(w: Writer, levels: list[tuple[str, int, Size]], shape: tuple[int, ...]) -> tuple[int, ...]:
    random = w.random
    width = int(random.choice([24, 32, 48, 64, 96]))
    sides = []
    for x, channels, size in levels:
        w.begin("lateral")
        y, _ = w.conv(x, channels, width, size, k=1)
        sides.append(_gated(w, y, width, residual=True) if random.random() < 0.5 else y)
    for index in (2, 1, 0):
        sides[index] = _point(w, "Add", sides[index], _enlarged(w, sides[index + 1], 2))
    inner = int(random.choice([8, 16, 24]))
    merged = []
    for index, (y, (_, _, size)) in enumerate(zip(sides, levels, strict=True)):
        w.begin("smooth")
        y, _ = w.conv(y, width, inner, size, k=3)
        merged.append(_enlarged(w, y, 2**index) if index else y)
    w.begin("concat")
    x = w.op("Concat", *merged, axis=1)
    size = levels[0][2]
    w.begin("head")
    x = w.op("Relu", w.conv(x, 4 * inner, inner, size, k=3)[0])
    for outputs in (inner, 1):
        w.begin("transposed")
        w.macs += 4.0 * inner * outputs * size[0] * size[1]
        x = w.op("ConvTranspose", x, w.weight(inner, outputs, 2, 2), w.weight(outputs), kernel_shape=[2, 2],
                 strides=[2, 2])  # fmt: skip
        size = size[0] * 2, size[1] * 2
        x = _point(w, "Relu" if outputs > 1 else "Sigmoid", x)
    w.outputs.append(x)
    return shape


def _enlarged(w: Writer, x: str, factor: int) -> str:
    w.begin("enlarge")
    scales = w.constant(np.array([1, 1, factor, factor], np.float32))
    if w.random.random() < 0.7:
        return w.op("Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor")  # fmt: skip
    return w.op("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")


# ---------------------------------------------------------------- signals


def _line(w: Writer, x: str, c_in: int, c_out: int, length: int, *, k: int, stride: int = 1, dilation: int = 1,
          group: int = 1) -> tuple[str, int]:  # fmt: skip
    pad = dilation * (k - 1) // 2
    out = (length + 2 * pad - dilation * (k - 1) - 1) // stride + 1
    w.macs += float(out) * c_out * c_in // group * k
    y = w.op(
        "Conv", x, w.weight(c_out, c_in // group, k), w.weight(c_out), kernel_shape=[k], strides=[stride],
        pads=[pad, pad], dilations=[dilation], group=group,
    )  # fmt: skip
    return y, out


def _signal_activation(w: Writer, x: str, channels: int) -> str:
    kind = str(w.random.choice(["Relu", "Relu", "PRelu", "LeakyRelu", "Tanh", "Sigmoid", "Swish"]))
    if kind == "Relu":
        return w.op("Relu", x)  # Fused.
    if kind == "PRelu":
        return _point(w, "PRelu", x, w.weight(channels if w.random.random() < 0.5 else 1, 1))
    if kind == "Swish":
        w.begin("point")
        return w.op("Mul", x, w.op("Sigmoid", x))
    return _point(w, kind, _point(w, "Neg", x))


def draw_signals(w: Writer) -> tuple[int, ...] | None:
    """Convolutions along one axis: a filter bank or strided layers, residual blocks with gates, a way back."""
    random = w.random
    length, channels = int(_between(random, 2000, 200000)), 1
    shape, x = (1, 1, length), "input"
    if random.random() < 0.4:
        k = int(random.choice([64, 128, 256, 320, 400, 512, 1024]))
        w.begin("bank")
        outputs = int(random.choice([64, 128, 258, 514]))
        x, length = _line(w, x, 1, outputs, length, k=k, stride=max(1, k // int(random.choice([2, 3, 4]))))
        channels = outputs
        if random.random() < 0.5:
            x, channels = _magnitude(w, x, channels), channels // 2
    else:
        for _ in range(int(random.integers(1, 5))):
            outputs, k = int(_between(random, 8, 160)), int(random.choice([3, 4, 5, 8, 10, 16]))
            w.begin("strided")
            x, length = _line(w, x, channels, outputs, length, k=k, stride=max(2, k // 2))
            x, channels = _signal_activation(w, x, outputs), outputs
            if length < 64:
                break
    for _ in range(int(random.integers(2, 7))):
        x, length, channels = _signal_block(w, x, channels, length)
        if w.macs > _MOST_MACS:
            return None
    if random.random() < 0.5:
        k = int(random.choice([4, 8, 16]))
        outputs = max(1, channels // 2)
        w.begin("transposed")
        w.macs += float(length) * channels * outputs * k
        x = w.op("ConvTranspose", x, w.weight(channels, outputs, k), w.weight(outputs), kernel_shape=[k],
                 strides=[k // 2], pads=[k // 4, k // 4])  # fmt: skip
        x = _point(w, "Tanh", x)
    else:
        w.begin("mean")
        x = w.op("ReduceMean", x, axes=[2], keepdims=0)
    w.outputs.append(x)
    return shape


def _magnitude(w: Writer, x: str, channels: int) -> str:
    half = channels // 2
    parts = []
    for begin in (0, half):
        w.begin("slice")
        bounds = (w.constant(np.array([value])) for value in (begin, begin + half, 1))
        y = w.op("Slice", x, *bounds)
        parts.append(_point(w, "Mul", y, y))
    y = _point(w, "Sqrt", _point(w, "Add", *parts))
    return _point(w, "Log", _point(w, "Add", y, _scalar(w, 1e-5))) if w.random.random() < 0.5 else y


def _signal_block(w: Writer, x: str, channels: int, length: int) -> tuple[str, int, int]:
    random = w.random
    kind = random.random()
    if kind < 0.35:  # Gated and dilated, with a residual.
        k, dilation = int(random.choice([2, 3, 3, 5, 7])) | 1, int(random.choice([1, 1, 2, 4, 8, 16]))
        w.begin("dilated")
        y, _ = _line(w, x, channels, 2 * channels, length, k=k, dilation=dilation)
        halves = []
        for begin, gate in ((0, "Tanh"), (channels, "Sigmoid")):
            w.begin("slice")
            bounds = (w.constant(np.array([value])) for value in (begin, begin + channels, 1))
            halves.append(_point(w, gate, w.op("Slice", y, *bounds)))
        y = _point(w, "Mul", *halves)
        w.begin("line1")
        y, _ = _line(w, y, channels, channels, length, k=1)
        return _point(w, "Add", y, x), length, channels
    outputs = max(4, int(_between(random, 16, 320)) // 4 * 4)
    stride = 2 if length > 400 and random.random() < 0.25 else 1
    if kind < 0.7:  # Separable.
        w.begin("lines")
        x, length = _line(w, x, channels, channels, length, k=int(random.choice([3, 5, 7, 15, 31])), stride=stride,
                          group=channels)  # fmt: skip
        w.begin("line1")
        x, length = _line(w, x, channels, outputs, length, k=1)
    else:
        w.begin("line")
        x, length = _line(w, x, channels, outputs, length, k=int(random.choice([3, 5, 5, 7, 9, 25])), stride=stride)
    return _signal_activation(w, x, outputs), length, outputs


# ---------------------------------------------------------------- texts


def _gelu(w: Writer, x: str) -> str:
    w.begin("gelu")
    erf = w.op("Erf", w.op("Div", x, w.constant(np.array(2**0.5, np.float32))))
    y = w.op("Mul", x, w.op("Add", erf, w.constant(np.array(1, np.float32))))
    return w.op("Mul", y, w.constant(np.array(0.5, np.float32)))


def draw_text(w: Writer) -> tuple[int, ...] | None:
    """Bytes that are looked up, dense layers on rows, norms, convolutions along the text."""
    random = w.random
    rows, channels = int(_between(random, 128, 4096)) // 8 * 8, int(random.choice([32, 48, 64, 96, 128]))
    shape = (1, rows)
    codes = _point(w, "Mul", _point(w, "Abs", "input"), _scalar(w, 40))
    w.begin("cast")
    codes = _point(w, "Mod", w.op("Cast", codes, to=7), w.constant(np.array(256)))
    if random.random() < 0.5:
        whole = random.random() < 0.5  # As PyTorch's one_hot gives them.
        w.begin("onehot")
        values = np.array([0, 1], np.int64 if whole else np.float32)
        x = w.op("OneHot", codes, w.constant(np.array(257)), w.constant(values), axis=-1)
        if whole:
            w.begin("cast")
            x = w.op("Cast", x, to=1)
        x = _dense(w, x, rows, 257, channels)
    else:
        w.begin("lookup")
        x = w.op("Gather", w.weight(257, channels), codes, axis=0)
    joined = int(random.choice([1, 2, 4, 8]))
    rows, channels = rows // joined, channels * joined
    x = w.op("Reshape", x, w.constant(np.array([1, rows, channels])))
    for _ in range(int(random.integers(1, 4))):
        w.begin("norm")
        x = w.op("LayerNormalization", x, w.weight(channels), w.weight(channels), axis=-1)
        outputs = int(_between(random, 64, 640)) // 8 * 8
        x, channels = _dense(w, x, rows, channels, outputs), outputs
        x = _gelu(w, x) if random.random() < 0.7 else _point(w, "Relu", x)
    w.begin("turn")
    x = w.op("Transpose", x, perm=[0, 2, 1])
    for _ in range(int(random.integers(1, 3))):
        outputs = int(_between(random, 64, 512)) // 8 * 8
        w.begin("line")
        x, rows = _line(w, x, channels, outputs, rows, k=int(random.choice([3, 5, 7])))
        x, channels = _gelu(w, x), outputs
    w.begin("largest")
    x = w.op("ReduceMax", x, axes=[2], keepdims=0)
    w.begin("classes")
    w.macs += channels * 200
    x = w.op("Gemm", x, w.weight(200, channels), w.weight(200), transB=1)
    w.begin("softmax")
    w.outputs.append(w.op("Softmax", x, axis=-1))
    return shape


def _dense(w: Writer, x: str, rows: int, inputs: int, outputs: int) -> str:
    w.begin("dense")
    w.macs += rows * inputs * outputs
    return w.op("Add", w.op("MatMul", x, w.weight(inputs, outputs)), w.weight(outputs))
