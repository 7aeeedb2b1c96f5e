"""Static networks by name as kernels, without weights and without the library that defines them.

They carry torchvision's names and are written down layer by layer as a runtime would run them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.prediction.kernels import Graph, Kernel, conv_kernel, fused_by, gemm_kernel, moving_kernel

_ONNX_OF = {
    "relu": "Relu",
    "relu6": "Clip",
    "sigmoid": "Sigmoid",
    "hardsigmoid": "HardSigmoid",
    "hardswish": "HardSwish",
}


class _Layers:
    """Writes a network down, layer by layer.

    Args:
        batch: Images.
        size: (height, width) of the image.
        precision: Of activations and weights.
        runtime: Whose fusions apply.

    Attributes:
        kernels: What was written.
        channels: Of the current map.
        size: (height, width) of the current map.
        block: Block that is being written; None outside blocks.
    """

    def __init__(self, batch: int, size: tuple[int, int], precision: str, runtime: str) -> None:
        self.kernels: list[Kernel] = []
        self.channels = 3
        self.size = size
        self.block: str | None = None
        self._batch, self._precision = batch, precision
        self._fused = fused_by(runtime)
        self._separate_norm = "BatchNormalization" not in self._fused

    def conv(
        self,
        name: str,
        cout: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        act: str | None = None,
        norm: bool = True,
        residual: bool = False,
    ) -> None:
        """A convolution with batch norm ("same" padding), an addition and an activation."""
        out_size = _shrunk(self.size, stride)
        adds = residual and "Add" in self._fused
        acts = act is not None and _ONNX_OF[act] in self._fused and (adds or not residual)
        self.kernels.append(
            conv_kernel(
                self._name(name),
                self.block,
                batch=self._batch,
                cin=self.channels,
                cout=cout,
                size=self.size,
                out_size=out_size,
                kernel=(kernel, kernel),
                stride=stride,
                groups=groups,
                residual=adds,
                activation=acts,
                precision=self._precision,
            )
        )
        self.channels, self.size = cout, out_size
        if norm and self._separate_norm:
            self.pointwise(f"{name}/norm", weights=2 * cout)
        if residual and not adds:
            self.pointwise(f"{name}/add", inputs=2)
        if act is not None and not acts:
            self.pointwise(f"{name}/{act}")

    def pointwise(self, name: str, *, inputs: int = 1, extra: int = 0, weights: int = 0) -> None:
        """An elementwise operator on ``inputs`` maps and ``extra`` further values an image."""
        elements = self._elements()
        read = inputs * elements + extra * self._batch
        self._move("elementwise", name, read, elements, self._plane(self.size), weights)

    def max_pool(self, name: str, kernel: int, stride: int) -> None:
        """Pooling with "same" padding."""
        read, size = self._elements(), self.size
        self.size = _shrunk(size, stride)
        self._move("pool", name, read, self._elements(), {**self._plane(size), "k": float(kernel), "global": 0.0})

    def mean(self, name: str) -> None:
        """The mean over the pixels."""
        read, size = self._elements(), self.size
        self.size = (1, 1)
        side = (size[0] * size[1]) ** 0.5
        self._move("pool", name, read, self._elements(), {**self._plane(size), "k": side, "global": 1.0})

    def squeeze_excite(self, name: str, squeezed: int, gate: str) -> None:
        """Pooling, two layers and the product with the map."""
        size, channels = self.size, self.channels
        self.mean(f"{name}/avgpool")
        self.conv(f"{name}/fc1", squeezed, act="relu", norm=False)
        self.conv(f"{name}/fc2", channels, act=gate, norm=False)
        self.size = size
        self.pointwise(f"{name}/mul", extra=channels)

    def linear(self, name: str, cout: int, act: str | None = None) -> None:
        """A fully connected layer on the flattened map."""
        cin = self.channels * self.size[0] * self.size[1]
        acts = act is not None and _ONNX_OF[act] in self._fused
        self.kernels.append(
            gemm_kernel(
                self._name(name),
                self.block,
                rows=self._batch,
                cin=cin,
                cout=cout,
                batch=self._batch,
                activation=acts,
                precision=self._precision,
            )
        )
        self.channels, self.size = cout, (1, 1)
        if act is not None and not acts:
            self._move("elementwise", f"{name}/{act}", self._elements(), self._elements(), {})

    def basic(self, width: int, stride: int) -> None:
        """Two 3x3 convolutions (ResNet-18, -34)."""
        before = self.channels, self.size
        self.conv("conv1", width, 3, stride, act="relu")
        self._join("conv2", width, 3, before, stride, projection=stride != 1 or before[0] != width)

    def bottleneck(
        self, width: int, cout: int, stride: int, *, groups: int = 1, squeezed: int = 0, projection: bool
    ) -> None:
        """1x1, 3x3 (with squeeze-excite), 1x1."""
        before = self.channels, self.size
        self.conv("conv1", width, act="relu")
        self.conv("conv2", width, 3, stride, groups=groups, act="relu")
        if squeezed:
            self.squeeze_excite("se", squeezed, "sigmoid")
        self._join("conv3", cout, 1, before, stride, projection=projection)

    def inverted(self, width: int, cout: int, kernel: int, stride: int, *, squeezed: int, act: str) -> None:
        """1x1, depthwise, squeeze-excite, 1x1 without an activation (MobileNetV3)."""
        residual = stride == 1 and cout == self.channels
        if width != self.channels:
            self.conv("expand", width, act=act)
        self.conv("depthwise", width, kernel, stride, groups=width, act=act)
        if squeezed:
            self.squeeze_excite("se", squeezed, "hardsigmoid")
        self.conv("project", cout, residual=residual)

    def _join(
        self, name: str, cout: int, kernel: int, before: tuple[int, tuple[int, int]], stride: int, *, projection: bool
    ) -> None:
        """The last convolution of a residual block, its shortcut from ``before``, their sum and its ReLU."""
        if not projection:
            self.conv(name, cout, kernel, act="relu", residual=True)
            return
        self.conv(name, cout, kernel)
        # The sum goes to whichever convolution runs last.
        self.channels, self.size = before
        self.conv("downsample", cout, 1, stride, act="relu", residual=True)

    def _elements(self) -> int:
        return self._batch * self.channels * self.size[0] * self.size[1]

    def _name(self, name: str) -> str:
        return f"{self.block}/{name}" if self.block else name

    def _plane(self, size: tuple[int, int]) -> dict[str, float]:
        """Features of a map of ``size`` that became the current one."""
        shape = {"h": size[0], "w": size[1], "cin": self.channels}
        return {**shape, "oh": self.size[0], "ow": self.size[1], "cout": self.channels}

    def _move(
        self, kind: str, name: str, read: int, written: int, features: Mapping[str, float], weights: int = 0
    ) -> None:
        self.kernels.append(
            moving_kernel(
                self._name(name),
                self.block,
                kind,
                read=read,
                written=written,
                weights=weights,
                batch=self._batch,
                precision=self._precision,
                operators=1,
                **features,
            )
        )


def _shrunk(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


# ---------------------------------------------------------------- networks


def _resnet(layers: _Layers, name: str) -> None:
    depths = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    depth = int(name.removeprefix("resnet"))
    layers.conv("stem", 64, 7, 2, act="relu")
    layers.max_pool("maxpool", 3, 2)
    for stage, count in enumerate(depths[depth]):
        for index in range(count):
            layers.block = f"layer{stage + 1}.{index}"
            stride = 2 if index == 0 and stage > 0 else 1
            width = 64 << stage
            if depth < 50:
                layers.basic(width, stride)
            else:
                layers.bottleneck(width, 4 * width, stride, projection=index == 0)
    layers.block = None
    layers.mean("avgpool")
    layers.linear("fc", 1000)


REGNETS_Y: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "400mf": ((1, 3, 6, 6), (48, 104, 208, 440), 8),
    "800mf": ((1, 3, 8, 2), (64, 144, 320, 784), 16),
    "1_6gf": ((2, 6, 17, 2), (48, 120, 336, 888), 24),
    "3_2gf": ((2, 5, 13, 1), (72, 216, 576, 1512), 24),
    "8gf": ((2, 4, 10, 1), (224, 448, 896, 2016), 56),
    "16gf": ((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
    "32gf": ((2, 5, 12, 1), (232, 696, 1392, 3712), 232),
    "128gf": ((2, 7, 17, 1), (528, 1056, 2904, 7392), 264),
}
"""Blocks and width of every stage, and channels of a convolution group."""


def _regnet(layers: _Layers, name: str) -> None:
    depths, widths, group_width = REGNETS_Y[name.removeprefix("regnet_y_")]
    layers.conv("stem", 32, 3, 2, act="relu")
    for stage, (count, width) in enumerate(zip(depths, widths, strict=True)):
        for index in range(count):
            layers.block = f"layer{stage + 1}.{index}"
            layers.bottleneck(
                width, width, 2 if index == 0 else 1, groups=width // group_width,
                squeezed=round(0.25 * layers.channels), projection=index == 0,
            )  # fmt: skip
    layers.block = None
    layers.mean("avgpool")
    layers.linear("fc", 1000)


def _vgg16(layers: _Layers, name: str) -> None:
    index = 0
    for stage, (count, width) in enumerate(zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True)):
        layers.block = f"stage{stage + 1}"
        for _ in range(count):
            layers.conv(f"features.{index}", width, 3, act="relu", norm=False)
            index += 2
        layers.max_pool(f"features.{index}", 2, 2)
        index += 1
    layers.block = None
    layers.linear("classifier.0", 4096, act="relu")
    layers.linear("classifier.3", 4096, act="relu")
    layers.linear("classifier.6", 1000)


_MOBILENET_V3_LARGE = (  # kernel, expanded, out, squeeze-excite, activation, stride
    (3, 16, 16, False, "relu", 1), (3, 64, 24, False, "relu", 2), (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2), (5, 120, 40, True, "relu", 1), (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hardswish", 2), (3, 200, 80, False, "hardswish", 1), (3, 184, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1), (3, 480, 112, True, "hardswish", 1), (3, 672, 112, True, "hardswish", 1),
    (5, 672, 160, True, "hardswish", 2), (5, 960, 160, True, "hardswish", 1), (5, 960, 160, True, "hardswish", 1),
)  # fmt: skip


def _mobilenet_v3_large(layers: _Layers, name: str) -> None:
    layers.conv("stem", 16, 3, 2, act="hardswish")
    for index, (kernel, width, cout, squeezes, act, stride) in enumerate(_MOBILENET_V3_LARGE):
        layers.block = f"features.{index + 1}"
        layers.inverted(width, cout, kernel, stride, squeezed=_divisible(width // 4) if squeezes else 0, act=act)
    layers.block = None
    layers.conv("features.16", 960, act="hardswish")
    layers.mean("avgpool")
    layers.linear("classifier.0", 1280, act="hardswish")
    layers.linear("classifier.3", 1000)


def _divisible(value: float, divisor: int = 8) -> int:
    """The nearest multiple that is not more than a tenth below (MobileNet's rule)."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor


def _mobilenet_v1(layers: _Layers, name: str) -> None:
    layers.conv("stem", 32, 3, 2, act="relu6")
    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
    for index, (cout, stride) in enumerate(plan):
        layers.block = f"features.{index + 1}"
        layers.conv("depthwise", layers.channels, 3, stride, groups=layers.channels, act="relu6")
        layers.conv("pointwise", cout, act="relu6")
    layers.block = None
    layers.mean("avgpool")
    layers.linear("fc", 1000)


_STATIC: dict[str, Callable[[_Layers, str], None]] = {
    **{f"resnet{depth}": _resnet for depth in (18, 34, 50, 101, 152)},
    **{f"regnet_y_{size}": _regnet for size in REGNETS_Y},
    "vgg16": _vgg16,
    "mobilenet_v3_large": _mobilenet_v3_large,
    "mobilenet_v1_1.0": _mobilenet_v1,
}
_TIMM = {
    "regnety_004": "regnet_y_400mf",
    "regnety_008": "regnet_y_800mf",
    "regnety_016": "regnet_y_1_6gf",
    "regnety_032": "regnet_y_3_2gf",
    "regnety_080": "regnet_y_8gf",
    "regnety_160": "regnet_y_16gf",
    "regnety_320": "regnet_y_32gf",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenet_v1": "mobilenet_v1_1.0",
}


def static_name(name: str) -> str | None:
    """The name under which a static network is known (timm's names are others); None if it is not."""
    plain = name.lower()
    plain = _TIMM.get(plain, plain)
    return plain if plain in _STATIC else None


def static_names() -> list[str]:
    """Names of all static networks, torchvision's."""
    return list(_STATIC)


def static_graph(
    name: str,
    *,
    batch: int = 1,
    input_size: tuple[int, int] | None = None,
    precision: str = "fp32",
    runtime: str = "onnxruntime",
) -> Graph:
    """Kernels of a static network.

    Args:
        name: E.g. ``"resnet50"``, ``"regnet_y_400mf"``, ``"vgg16"``.
        batch: Images per run.
        input_size: (height, width); None means 224 x 224.
        precision: Of activations and weights.
        runtime: Whose fusions apply.

    Raises:
        UsageError: Unknown name, or an image that is too small.
    """
    known = static_name(name)
    if known is None:
        raise unknown_name("network", name, static_names())
    size = input_size or (224, 224)
    if min(size) < 1:
        raise UsageError(f"The input size must be positive, not {size[0]}x{size[1]}.")
    layers = _Layers(batch, size, precision, runtime)
    _STATIC[known](layers, known)
    return Graph(known, tuple(layers.kernels), batch, size, precision)
