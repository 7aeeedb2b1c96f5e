"""Times of blocks and of whole networks beside cuDNN, in turn in one process, and whether their results are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from graph import Geometry, Network, convolution_relu
from kernels import Kernels
from onnx import numpy_helper
from torch import Tensor

from dyndeploy import Bundle
from dyndeploy.graphs.forced import PREFIX, forced_masks, replace_masks
from dyndeploy.graphs.inspect import is_dynamic, operator_attributes
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.ops import OPERATORS, Role
from dyndeploy.runtimes import OnnxRuntimeSession

RATES = (1.0, 0.75, 0.5, 0.25, 0.1)
BATCHES = (1, 16, 64)
PLAN = PrecisionPlan("fp16", typed=True)
TOLERANCE = 0.01
"""Of the largest output: halves between all layers of a network. The static twins' is 3e-4 (in half on a CPU)."""
BLOCK_TOLERANCE = 0.006
"""Of the largest output of one block."""
PLAIN, FUSED = "cuDNN", "cuDNN, fused"
_LAST = torch.channels_last
Row = dict[str, Any]


class Cuda:
    """A GPU: what is run is captured in a CUDA graph, and timed by events on its stream."""

    name = "cuda"
    repeats = 20

    def __init__(self) -> None:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """A replay of a run, and the outputs that it writes."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run()
        return graph.replay, outputs

    def ms(self, run: Callable[[], None], count: int) -> float:
        """Milliseconds of one of ``count`` runs in a row."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / count

    def empty(self) -> None:
        """Give back what earlier configurations held."""
        torch.cuda.empty_cache()


class Host:
    """The rehearsal: kernels played by this machine, with its clock. Its times mean nothing."""

    name = "cpu"
    repeats = 1

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """The run itself, and the outputs of a first one, which every later one writes."""
        outputs = run()

        def again() -> None:
            for old, new in zip(_tensors(outputs), _tensors(run()), strict=True):
                old.copy_(new)

        return again, outputs

    def ms(self, run: Callable[[], None], count: int) -> float:
        """Milliseconds of one of ``count`` runs in a row."""
        start = time.perf_counter()
        for _ in range(count):
            run()
        return 1000.0 * (time.perf_counter() - start) / count

    def empty(self) -> None:
        """Nothing is held."""


Device = Cuda | Host


def _tensors(outputs: Any) -> list[Tensor]:
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


class _Twins:
    """Static contestants; the faster one is what a speed-up is over."""

    def __init__(self, device: Device, runs: Mapping[str, Callable[[], Any]]) -> None:
        self.replays: dict[str, Callable[[], None]] = {}
        self.outputs: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        for name, run in runs.items():
            try:
                self.replays[name], self.outputs[name] = device.capture(run)
            except RuntimeError as error:
                # A cuDNN that lacks the fused form leaves the plain one to compare with.
                if len(runs) - len(self.left_out) == 1:
                    raise
                self.left_out[name] = str(error).splitlines()[0]


def _in_turn(
    device: Device,
    twins: _Twins,
    dynamic: Callable[[], None],
    load: Callable[[float], None],
    rates: Sequence[float],
    seconds: float,
) -> tuple[dict[float, list[float]], dict[str, list[float]]]:
    """Milliseconds of rounds: every rate, and every static contestant in turn."""
    load(rates[0])
    longest = max(device.ms(run, 2) for run in (dynamic, *twins.replays.values()))
    count = max(1, min(50, round(4.0 / max(longest, 1e-3)))) if device.repeats > 1 else 1
    times: dict[float, list[float]] = {rate: [] for rate in rates}
    static: dict[str, list[float]] = {name: [] for name in twins.replays}
    end = time.monotonic() + seconds
    while len(times[rates[0]]) < 3 or (time.monotonic() < end and len(times[rates[0]]) < 200):
        for name, run in twins.replays.items():
            static[name].append(device.ms(run, count))
        for rate in rates:
            load(rate)
            device.ms(dynamic, 1)
            times[rate].append(device.ms(dynamic, count))
    return times, static


def _row(
    common: Row, rate: float, ms: Sequence[float], static: Mapping[str, Sequence[float]], ideal: float, error: float
) -> Row:
    best = min(static, key=lambda name: float(np.median(static[name])))
    ratios = [one / other for one, other in zip(static[best], ms, strict=True)]
    return {
        **common,
        "kind": "measured",
        "masks": "forced",
        "rate": rate,
        "ms": float(np.median(ms)),
        "rounds": len(ms),
        "static": best,
        "static_ms": float(np.median(static[best])),
        "all_static_ms": {name: float(np.median(values)) for name, values in static.items()},
        "speedup": float(np.median(ratios)),
        "spread": [float(value) for value in np.percentile(ratios, [25, 75])],
        "ideal": ideal,
        "error": error,
    }


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Largest difference, of the largest expected number; not a number where the result holds one."""
    difference = (result.detach().double().cpu() - expected.detach().double().cpu()).abs()
    return float(difference.max() / expected.detach().double().abs().max().cpu().clamp(min=1e-9))


# ---------------------------------------------------------------- whole networks


def network_rows(
    device: Device,
    kernels: Kernels,
    bundle: Bundle,
    what: str,
    *,
    batches: Sequence[int] = BATCHES,
    rates: Sequence[float] = RATES,
    seconds: float,
    add: Callable[[Sequence[Row]], None],
) -> None:
    """Time a network with forced masks beside its static twin; rows go to ``add`` by batch.

    Args:
        device: Where.
        kernels: Of the operators.
        bundle: With a static twin.
        what: Name for people.
        batches: Batch sizes; the bundle's own does not matter.
        rates: Forced rates.
        seconds: Of timing one batch size.
        add: Takes the rows of a batch size.
    """
    infos, exported = bundle.manifest.masks, bundle.manifest.batch
    image, logits = bundle.manifest.inputs[0], bundle.manifest.outputs[0].name
    original, static = bundle.load_model(), bundle.load_static()
    forced = replace_masks(original, infos)
    dynamic = Network(tensorrt_model(forced, PLAN), kernels, device=device.name, exported=exported)
    typed = tensorrt_model(static, PLAN)
    twins = {
        name: Network(typed, None, device=device.name, fused=name == FUSED, exported=exported)
        for name in (PLAIN, FUSED)
    }
    dense = float(MacCounter(static).count().per_sample.mean())
    counter = MacCounter(original)
    generator = torch.Generator().manual_seed(0)
    with OnnxRuntimeSession(forced, native="off") as session:
        for batch in batches:
            x = torch.randn(batch, *image.shape[1:], generator=generator)
            masks = {
                rate: forced_masks([replace(info, shape=(batch, *info.shape[1:])) for info in infos], rate, seed)
                for seed, rate in enumerate(rates)
            }
            given = {image.name: x.to(device.name).contiguous(memory_format=_LAST)}
            buffers = {PREFIX + name: torch.tensor(v, device=device.name) for name, v in masks[rates[0]].items()}
            stored = {
                rate: {name: torch.from_numpy(value).to(device.name) for name, value in values.items()}
                for rate, values in masks.items()
            }
            load = _loader(buffers, stored)
            feeds = {**given, **buffers}
            replay, outputs = device.capture(lambda feeds=feeds: dynamic.run(feeds))
            static_runs = _Twins(
                device, {name: lambda twin=twin, given=given: twin.run(given) for name, twin in twins.items()}
            )
            errors = {}
            for rate in rates:
                load(rate)
                replay()
                first = {image.name: _first(x.numpy(), exported)}
                first |= {PREFIX + name: _first(value, exported) for name, value in masks[rate].items()}
                expected = torch.from_numpy(np.asarray(session.run(first, [logits])[logits])[:1])
                errors[rate] = relative_error(outputs[logits][:1], expected)
            times, static_times = _in_turn(device, static_runs, replay, load, rates, seconds)
            rows = []
            for rate in rates:
                ones = {name: _first(value, exported) for name, value in masks[rate].items()}
                ideal = dense / float(counter.count(ones).per_sample.mean())
                common: Row = {"what": what, "batch": batch, "left_out": static_runs.left_out}
                rows.append(_row(common, rate, times[rate], static_times, ideal, errors[rate]))
            add(rows)
            device.empty()


def _first(value: np.ndarray, count: int) -> np.ndarray:
    """The first image, as often as a graph of a fixed batch takes."""
    return np.repeat(value[:1], count, axis=0)


def _loader(buffers: Mapping[str, Tensor], stored: Mapping[float, Mapping[str, Tensor]]) -> Callable[[float], None]:
    def load(rate: float) -> None:
        for name, value in stored[rate].items():
            buffers[PREFIX + name].copy_(value)

    return load


# ---------------------------------------------------------------- single blocks


class Block:
    """A dynamic block of a bundle by itself.

    Args:
        model: The bundle's graph, which has the weights in PyTorch's order.
        packed: Its copy for TensorRT.
        index: Of its node in the first one.
        shapes: Of all tensors.
        device: Where.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        packed: onnx.ModelProto,
        index: int,
        shapes: Mapping[str, Sequence[int]],
        device: Device,
    ) -> None:
        node = model.graph.node[index]
        self.spec, self.attributes = OPERATORS[node.op_type], operator_attributes(node)
        self._device = device
        self.shapes = [tuple(shapes[name]) for name in node.input]
        ports = list(zip(self.spec.inputs, node.input, strict=False))
        constants = {item.name: item for item in model.graph.initializer}
        self.weights = {port.name: self._tensor(constants[name]) for port, name in ports if port.role is Role.WEIGHT}
        self.masks = {port.name: tuple(shapes[name]) for port, name in ports if port.role is Role.MASK}
        twin = next(item for item in packed.graph.node if item.name == node.name)
        held = {item.name: item for item in packed.graph.initializer}
        self._native = [self._tensor(held[name]) for name in twin.input if name in held]
        self.label = f"{node.op_type} {self.shapes[0][1]} x {self.shapes[0][2]}, {self.shapes[0][3]} channels"

    def _tensor(self, item: onnx.TensorProto) -> Tensor:
        return torch.from_numpy(np.array(numpy_helper.to_array(item))).to(self._device.name)

    def run(self, kernels: Kernels, x: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """The kernels: x (N, H, W, C) in half."""
        return kernels.run(self.spec, [x, *(masks[name] for name in self.masks), *self._native], self.attributes)

    def dense(self, fused: bool) -> Callable[[Tensor], Tensor]:
        """The static block as a function of x (N, C, H, W), channels last."""
        half = {}
        for name, value in self.weights.items():
            value = value.half()
            if name[0] == "w":
                value = (value if value.ndim == 4 else value[:, :, None, None]).contiguous(memory_format=_LAST)
            half[name] = value
        stride, dilation = list(self.attributes["strides"]), list(self.attributes["dilations"])
        plain: Geometry = ([1, 1], [0, 0], [1, 1], 1)
        middle: Geometry = (stride, dilation, dilation, int(self.attributes["group"]))
        shortcut: Geometry = (stride, [0, 0], [1, 1], 1)

        def run(x: Tensor) -> Tensor:
            h = convolution_relu(x, half["w1"], half["b1"], plain, fused=fused)
            h = convolution_relu(h, half["w2"], half["b2"], middle, fused=fused)
            if "wd" in half:
                x = torch.nn.functional.conv2d(x, half["wd"], half["bd"], *shortcut)
            return convolution_relu(h, half["w3"], half["b3"], plain, x, fused=fused)

        return run

    def reference(self, x: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """The operator's definition in float, with weights rounded as the kernels have them."""
        weights = [v.half().float() if name[0] == "w" else v for name, v in self.weights.items()]
        with torch.no_grad():
            result: Tensor = self.spec.reference(
                x.float(), *(masks[name] for name in self.masks), *weights, **self.attributes
            )
        return result

    def ideal(self, batch: int, masks: Mapping[str, np.ndarray]) -> float:
        """How many times fewer multiplications masks leave."""
        shapes = [(batch, *shape[1:]) if index <= len(self.masks) else shape for index, shape in enumerate(self.shapes)]
        counts = self.spec.counts(shapes, self.attributes, masks)
        needed = float(np.mean(self.spec.work(shapes, self.attributes, counts, 2.0).macs))
        return float(np.mean(self.spec.dense_work(shapes, self.attributes, 2.0).macs)) / needed


def blocks_of(bundle: Bundle, device: Device) -> list[Block]:
    """One block of every kind and size that a bundle has."""
    infos = bundle.manifest.masks
    model = replace_masks(bundle.load_model(), infos)
    packed, shapes = tensorrt_model(model, PLAN), static_shapes(model)
    shapes = {**shapes, **{PREFIX + info.name: info.shape for info in infos}}
    shapes |= {item.name: tuple(item.dims) for item in model.graph.initializer}
    found: dict[Any, Block] = {}
    for index, node in enumerate(model.graph.node):
        if not is_dynamic(node) or OPERATORS[node.op_type].decides:
            continue
        key = node.op_type, tuple(shapes[node.input[0]]), str(operator_attributes(node))
        if key not in found:
            found[key] = Block(model, packed, index, shapes, device)
    return list(found.values())


def block_rows(
    device: Device,
    kernels: Kernels,
    bundle: Bundle,
    *,
    batches: Sequence[int] = BATCHES,
    rates: Sequence[float] = RATES,
    seconds: float,
    add: Callable[[Sequence[Row]], None],
) -> None:
    """Time single blocks with forced masks beside cuDNN; ``seconds`` are those of one block and batch size."""
    generator = torch.Generator().manual_seed(0)
    blocks = blocks_of(bundle, device)
    for batch in batches:
        for block in blocks:
            _, height, width, channels = block.shapes[0]
            x = torch.randn(batch, height, width, channels, generator=generator).abs().half().to(device.name)
            masks = {rate: _block_masks(block, batch, rate, seed) for seed, rate in enumerate(rates)}
            buffers = {name: value.clone().to(device.name) for name, value in masks[rates[0]].items()}

            def load(rate: float, buffers: Any = buffers, masks: Any = masks) -> None:
                for name, value in masks[rate].items():
                    buffers[name].copy_(value)

            def dynamic(block: Block = block, x: Tensor = x, buffers: Any = buffers) -> Tensor:
                for _ in range(device.repeats):
                    y = block.run(kernels, x, buffers)
                return y

            def static(run: Callable[[Tensor], Tensor], x: Tensor = x) -> Callable[[], Tensor]:
                maps = x.permute(0, 3, 1, 2)

                def repeated() -> Tensor:
                    with torch.no_grad():
                        for _ in range(device.repeats):
                            y = run(maps)
                    return y

                return repeated

            replay, output = device.capture(dynamic)
            twins = _Twins(device, {PLAIN: static(block.dense(False)), FUSED: static(block.dense(True))})
            errors = {}
            for rate in rates:
                load(rate)
                replay()
                expected = block.reference(x, {name: value.to(device.name) for name, value in masks[rate].items()})
                errors[rate] = relative_error(output, expected)
            times, static_times = _in_turn(device, twins, replay, load, rates, seconds)
            scale = 1.0 / device.repeats
            rows = []
            for rate in rates:
                bits = {name: value.numpy() for name, value in masks[rate].items()}
                common: Row = {"what": block.label, "batch": batch, "left_out": twins.left_out}
                ms = [scale * value for value in times[rate]]
                dense = {name: [scale * value for value in values] for name, values in static_times.items()}
                rows.append(_row(common, rate, ms, dense, block.ideal(batch, bits), errors[rate]))
            add(rows)
            del replay, output, twins
            device.empty()


def _block_masks(block: Block, batch: int, rate: float, seed: int) -> dict[str, Tensor]:
    """Masks of a rate: of a decision for the whole block, that share of the images; else of every image."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, shape in block.masks.items():
        size = (batch, *shape[1:])
        whole = block.spec.gates[name].whole
        bits = np.zeros((1, batch) if whole else (batch, int(np.prod(shape[1:]))), np.float32)
        for row in bits:
            row[rng.permutation(bits.shape[1])[: max(1, round(rate * bits.shape[1]))]] = 1
        masks[name] = torch.from_numpy(bits.reshape(size))
    return masks


def wrong(rows: Sequence[Row], tolerance: float) -> str | None:
    """What is said where results are not right; None where all are."""
    for row in rows:
        if not row["error"] <= tolerance:
            return f"{row['what']}, batch {row['batch']}, rate {row['rate']:g}: error {row['error']:.2g} of the largest"
    return None
