"""Accuracy of a calibrated predictor on networks of other kinds than this project's, none of which was fitted.

    dyndeploy calibrate-device --device cpu -o cpu.json
    python benchmarks/predictor/foreign.py --calibration cpu.json [FILE.onnx ...]

Measured are a text detector at 640 x 640, two networks for sounds and two for bytes, by whose errors the model was
mended, a U-Net and a network for keywords, by whose errors it was not, all with random weights, and any files that are
named. Whole networks are timed by the CPU time of the calling thread, in turn with each other and with the
graph that the calibration is stated at (:func:`dyndeploy.device_calibration.measure.time_in_turn`): a busy machine
slows all of them down, and the ratio is taken out.
"""

from __future__ import annotations

import argparse
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

from dyndeploy.device_calibration.measure import Subject, time_in_turn
from dyndeploy.measure.steady import quick
from dyndeploy.prediction import Estimator
from dyndeploy.prediction.calibrated import CalibratedModel, class_of, load_calibration
from dyndeploy.prediction.kernels import GraphWalker


class Layer(nn.Sequential):
    """Convolution, batch norm, activation."""

    def __init__(self, i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(o), Clipped())


class Clipped(nn.Module):
    """x * clip(x + 3, 0, 6) / 6, as older exporters write a hard swish."""

    def forward(self, x: Any) -> Any:
        return x * torch.clamp(x + 3.0, 0.0, 6.0) / 6.0


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)

    def forward(self, x: Any) -> Any:
        squeezed = functional.adaptive_avg_pool2d(x, 1)
        return x * functional.hardsigmoid(self.expand(functional.relu(self.reduce(squeezed))))


def separable(i: int, o: int, k: int, stride: int, gated: bool) -> nn.Module:
    """Depthwise, then pointwise."""
    return nn.Sequential(Layer(i, i, k, stride, i), Gate(i) if gated else nn.Identity(), Layer(i, o, 1))


class Detector(nn.Module):
    """Where text is in an image: separable convolutions, a feature pyramid, a map of the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Layer(3, 16, 3, 2)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    separable(16, 32, 3, 1, False), separable(32, 48, 3, 2, False), separable(48, 48, 3, 1, False)
                ),
                nn.Sequential(separable(48, 96, 3, 2, False), separable(96, 96, 3, 1, False)),
                nn.Sequential(separable(96, 192, 3, 2, False), *[separable(192, 192, 5, 1, False) for _ in range(4)]),
                nn.Sequential(separable(192, 384, 5, 2, True), separable(384, 384, 5, 1, True)),
            ]
        )
        widths = (48, 96, 192, 384)
        self.lateral = nn.ModuleList(nn.Conv2d(c, 96, 1, bias=False) for c in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(96, 24, 3, 1, 1, bias=False) for _ in widths)
        self.gates = nn.ModuleList(Gate(96) for _ in widths)
        self.head = nn.Sequential(
            nn.Conv2d(96, 24, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 24, 2, 2),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 1, 2, 2),
            nn.Sigmoid(),
        )

    def forward(self, x: Any) -> Any:
        x, levels = self.stem(x), []
        for stage, lateral, gate in zip(self.stages, self.lateral, self.gates, strict=True):
            x = stage(x)
            y = lateral(x)
            levels.append(y + gate(y))
        for index in (2, 1, 0):
            levels[index] = levels[index] + functional.interpolate(levels[index + 1], scale_factor=2.0)
        maps = [smooth(y) for smooth, y in zip(self.smooth, levels, strict=True)]
        maps = [y if not i else functional.interpolate(y, scale_factor=float(2**i)) for i, y in enumerate(maps)]
        return self.head(torch.cat(maps[::-1], 1))


class Separator(nn.Module):
    """Takes a sound apart: strided convolutions, dilated residual blocks with gates, and back; a second at 48 kHz."""

    def __init__(self, c: int = 64) -> None:
        super().__init__()
        self.c = c
        self.encode = nn.ModuleList([nn.Conv1d(1, c // 2, 16, 4, 6), nn.Conv1d(c // 2, c, 8, 4, 2)])
        self.dilated = nn.ModuleList(
            nn.Conv1d(c, 2 * c, 3, padding=2 ** (i % 6), dilation=2 ** (i % 6)) for i in range(12)
        )
        self.residual = nn.ModuleList(nn.Conv1d(c, c, 1) for _ in range(12))
        self.slopes = nn.ModuleList(nn.PReLU() for _ in range(12))
        self.long = nn.Conv1d(c, c, 31, padding=15, groups=c)
        self.decode = nn.ModuleList([nn.ConvTranspose1d(c, c // 2, 8, 4, 2), nn.ConvTranspose1d(c // 2, 1, 16, 4, 6)])

    def forward(self, x: Any) -> Any:
        encoded = y = functional.relu(self.encode[1](functional.leaky_relu(self.encode[0](x), 0.2)))
        total = torch.zeros_like(y)
        for dilated, residual, slope in zip(self.dilated, self.residual, self.slopes, strict=True):
            z = dilated(y)
            y = y + slope(residual(torch.tanh(z[:, : self.c]) * torch.sigmoid(z[:, self.c :])))
            total = total + y
        y = encoded * torch.sigmoid(self.long(total))
        return torch.tanh(self.decode[1](functional.relu(self.decode[0](y))))


class Voice(nn.Module):
    """Whether somebody speaks: a filter bank of 512 samples, then separable convolutions; ten seconds at 16 kHz."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Conv1d(1, 514, 512, 160, bias=False)
        blocks, c = [], 257
        for o, stride in ((128, 1), (64, 2), (64, 2), (128, 1)):
            blocks += [nn.Conv1d(c, c, 5, stride, 2, groups=c), nn.Conv1d(c, o, 1), nn.BatchNorm1d(o), nn.ReLU()]
            c = o
        self.blocks, self.out = nn.Sequential(*blocks), nn.Conv1d(c, 1, 1)

    def forward(self, x: Any) -> Any:
        y = self.bank(x)
        real, imaginary = y[:, :257], y[:, 257:]
        y = torch.log(torch.sqrt(real * real + imaginary * imaginary) + 1e-5)
        return torch.sigmoid(self.out(self.blocks(y))).mean(-1)


class Bytes(nn.Module):
    """What kind of file 2048 bytes come from: dense layers, norms, convolutions along the bytes."""

    def __init__(self, one_hot: bool, c: int = 64, hidden: int = 256) -> None:
        super().__init__()
        self.one_hot = one_hot
        self.embed = nn.Linear(257, c) if one_hot else nn.Embedding(257, c)
        self.norms = nn.ModuleList([nn.LayerNorm(4 * c), nn.LayerNorm(hidden)])
        self.lines = nn.ModuleList([nn.Conv1d(4 * c, hidden, 5, padding=2), nn.Conv1d(hidden, hidden, 5, padding=2)])
        self.dense, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, 216)

    def forward(self, x: Any) -> Any:
        y = functional.gelu(self.embed(functional.one_hot(x, 257).float() if self.one_hot else x))
        y = self.norms[0](y.reshape(1, 512, 256)).transpose(1, 2)
        for line in self.lines:
            y = functional.gelu(line(y))
        y = self.norms[1](y.max(-1).values)
        return torch.softmax(self.out(functional.gelu(self.dense(y))), -1)


class Segments(nn.Module):
    """A U-Net: what every pixel shows; maps of the way down are put beside those of the way up."""

    def __init__(self, c: int = 16, levels: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [c * 2**level for level in range(levels)]
        self.down = nn.ModuleList(self._pair(i, o) for i, o in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.merge = nn.ModuleList(self._pair(2 * w, w) for w in widths[-2::-1])
        self.out = nn.Conv2d(c, classes, 1)

    @staticmethod
    def _pair(i: int, o: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for source in (i, o):
            layers += [nn.Conv2d(source, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        beside = []
        for index, pair in enumerate(self.down):
            x = pair(x if not index else functional.max_pool2d(x, 2))
            beside.append(x)
        for enlarge, merge, y in zip(self.up, self.merge, beside[-2::-1], strict=True):
            x = merge(torch.cat([y, enlarge(x)], 1))
        return torch.softmax(self.out(x), 1)


class Keywords(nn.Module):
    """Which of twelve words was said: a depthwise separable network on 49 frames of 10 cepstral coefficients."""

    def __init__(self, c: int = 64, blocks: int = 4, words: int = 12) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, c, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(c), nn.ReLU()]
        for _ in range(blocks):
            for conv in (nn.Conv2d(c, c, 3, 1, 1, groups=c, bias=False), nn.Conv2d(c, c, 1, bias=False)):
                layers += [conv, nn.BatchNorm2d(c), nn.ReLU()]
        self.layers, self.out = nn.Sequential(*layers), nn.Linear(c, words)

    def forward(self, x: Any) -> Any:
        return torch.softmax(self.out(self.layers(x).mean((2, 3))), -1)


def networks() -> dict[str, onnx.ModelProto]:
    """The networks as graphs, by name."""
    torch.manual_seed(0)
    codes = torch.randint(0, 257, (1, 2048))
    made = {
        "detector": (Detector(), torch.randn(1, 3, 640, 640)),
        "separator": (Separator(), torch.randn(1, 1, 48000)),
        "voice": (Voice(), torch.randn(1, 1, 160000)),
        "bytes, one-hot": (Bytes(True), codes),
        "bytes, looked up": (Bytes(False), codes),
        # Nothing was mended by what these two showed.
        "segments": (Segments(), torch.randn(1, 3, 192, 192)),
        "keywords": (Keywords(), torch.randn(1, 1, 49, 10)),
    }
    return {name: _exported(module, example) for name, (module, example) in made.items()}


def _exported(module: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (example,), stream, opset_version=17, dynamo=False, input_names=["input"])
    return onnx.load_from_string(stream.getvalue())


def subject(model: onnx.ModelProto, size: tuple[int, int] | None) -> Subject:
    """A graph with one random input; open sizes are closed."""
    weights = {item.name for item in model.graph.initializer}
    (value,) = [item for item in model.graph.input if item.name not in weights]
    shape = [max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim]
    if size is not None and len(shape) == 4:
        shape[2:] = size
    random = np.random.default_rng(0)
    if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
        feed: Any = random.integers(0, 256, shape)
    else:
        feed = random.standard_normal(shape, np.float32)
    return Subject(model, [{value.name: feed}], [item.name for item in model.graph.output], whole=True)


def main() -> None:
    """Print the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--size", type=int, default=640, help="Side of the images of files that leave it open.")
    parser.add_argument("--classes", action="store_true", help="Predicted milliseconds by class of kernels, too.")
    parser.add_argument("files", type=Path, nargs="*")
    arguments = parser.parse_args()
    size = (arguments.size, arguments.size)
    graphs = networks() | {path.stem: onnx.load(path) for path in arguments.files}
    calibration = load_calibration(arguments.calibration)
    found = time_in_turn(
        [subject(graph, size if _is_open(graph) else None) for graph in graphs.values()], rounds=arguments.rounds
    )
    print(f"{calibration.machine['cpu']}, {calibration.threads} thread(s)")
    print(f"{'network':26} {'measured ms':>12} {'predicted ms':>12} {'error':>8}  90 % interval")
    estimator = Estimator("cpu", calibration=arguments.calibration)
    for (name, graph), times in zip(graphs.items(), found, strict=True):
        measured = quick(times.whole[:, 0]) * calibration.measured["pace_ms"] / times.pace_ms
        own = size if name in {path.stem for path in arguments.files} and _is_open(graph) else None
        predicted = estimator.predict(graph, input_size=own)
        low, high = predicted.interval_ms or (0.0, 0.0)
        error = predicted.latency_ms / measured - 1
        print(f"{name:26} {measured:12.2f} {predicted.latency_ms:12.2f} {error:+8.1%}  {low:.2f} .. {high:.2f}")
        if arguments.classes:
            _by_class(GraphWalker(graph, input_size=own), CalibratedModel(calibration))


def _is_open(graph: onnx.ModelProto) -> bool:
    return any(dim.dim_value < 1 for dim in graph.graph.input[0].type.tensor_type.shape.dim[1:])


def _by_class(walker: GraphWalker, model: CalibratedModel) -> None:
    kernels = walker.graph().kernels
    totals: dict[str, list[float]] = {}
    for kernel, ms in zip(kernels, model.price(kernels)[0], strict=True):
        entry = totals.setdefault(class_of(kernel), [0, 0.0])
        entry[0] += 1
        entry[1] += float(ms)
    for name, (count, total) in sorted(totals.items(), key=lambda item: -item[1][1]):
        print(f"    {name:22} {count:4.0f} {total:9.3f} ms")


if __name__ == "__main__":
    main()
