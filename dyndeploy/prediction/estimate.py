"""Predictions from kernels: any network, bundle or ONNX file on any device model, with intervals.

This is what a user gets by default. The LAUDNet predictor stays beside it as the reference
(:mod:`dyndeploy.prediction.laudnet.predictor`).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dyndeploy.bundle import Bundle
from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.prediction.architectures import network_graph, static_graph, static_name, static_names
from dyndeploy.prediction.calibrated import CalibratedModel, calibration_file, load_calibration
from dyndeploy.prediction.device_model import AnalyticalModel, Array, DeviceModel
from dyndeploy.prediction.kernels import ELEMENT_BYTES, UNKNOWN, Graph, GraphWalker, Kernel, has_dynamic_operators
from dyndeploy.prediction.laudnet.blocks import MODES, Rates, RateSamples, checked_rates
from dyndeploy.prediction.laudnet.network_spec import NetworkSpec, network_names, network_spec
from dyndeploy.prediction.laudnet.predictor import (
    CHANNELS_PER_GROUP,
    FOUR_STAGES,
    RateLike,
    block_rates,
    bundle_spec,
    is_size,
    per_stage_modes,
    per_stage_sizes,
    stated_rates,
)
from dyndeploy.prediction.results import BlockPrediction, Coverage, OperatorPrediction, Prediction
from dyndeploy.targets.devices import Device, device_names, load_device

if TYPE_CHECKING:
    import onnx

Network: TypeAlias = "str | NetworkSpec | Bundle | onnx.ModelProto | GraphWalker | Graph"

PRECISIONS = tuple(ELEMENT_BYTES)


@dataclass(frozen=True)
class Configuration:
    """How the dynamic blocks of a network run.

    Attributes:
        mode: Mode of all stages, or one per stage; None takes the network's own (a name: static).
        granularity: Side of a spatial patch, likewise (a name: 4, 4, 2, 1 for four stages, else 1).
        channel_granularity: Channels per dynamic group, likewise (a name: 2).
        rate: Activation rate of every mask, one entry per block, or :class:`RateSamples`, which state the rates image
            by image: the latency is then the mean over runs, not the latency of the mean image.
    """

    mode: str | Sequence[str] | None = None
    granularity: int | Sequence[int] | None = None
    channel_granularity: int | Sequence[int] | None = None
    rate: RateLike | RateSamples = 0.5


def load_device_model(
    device: str | Device,
    precision: str = "fp32",
    *,
    runtime: str | None = None,
    threads: int = 1,
    calibration: str | os.PathLike[str] | None = None,
) -> DeviceModel:
    """The model of a device: its calibration where there is one, else the analytical one.

    Args:
        device: A device or its name.
        precision: Of activations and weights.
        runtime: Which software runs the kernels; None takes the device's own.
        threads: Of a CPU.
        calibration: A file of ``dyndeploy calibrate-device``; None looks where that command leaves it.

    Raises:
        UsageError: Unknown device, precision or runtime; this machine is not calibrated.
        InputError: The calibration cannot be read.
    """
    device = load_device(device) if isinstance(device, str) else device
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    path = Path(calibration) if calibration is not None else calibration_file(device.name, threads)
    if calibration is None and not path.is_file():
        if device.is_local:
            raise UsageError(
                f"This machine is not calibrated for {threads} thread(s): what it can do is measured, not looked up. "
                f"Run 'dyndeploy calibrate-device --device {device.name}"
                + (f" --threads {threads}'." if threads != 1 else "' (up to 10 minutes).")
            )
        return AnalyticalModel(device, precision, runtime)
    if precision != "fp32":
        if device.is_local:
            raise UsageError(f"The calibration of {device.name} is for fp32: predict that.")
        return AnalyticalModel(device, precision, runtime)
    return CalibratedModel(load_calibration(path))


def known_devices(threads: int = 1) -> list[str]:
    """Names of all devices of which a latency can be predicted: all, but this machine only where it is calibrated."""
    return [
        name for name in device_names() if not load_device(name).is_local or calibration_file(name, threads).is_file()
    ]


class Estimator:
    """Predicts latencies on one device model.

    Args:
        device: A device, its name, or a model.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        batch: Images per run; None takes the network's own (a bundle, a file), else the device's usual one.
        runtime: Which software runs the kernels; None takes the device's own for static networks, and what dynamic
            operators are built for (TensorRT on GPUs) for networks that have some.
        threads: Of a CPU.
        calibration: A file of ``dyndeploy calibrate-device``; None looks where that command leaves it.

    Raises:
        UsageError: As :func:`load_device_model`; or the batch is not positive.
    """

    def __init__(
        self,
        device: str | Device,
        *,
        precision: str = "fp32",
        batch: int | None = None,
        runtime: str | None = None,
        threads: int = 1,
        calibration: str | os.PathLike[str] | None = None,
    ) -> None:
        if batch is not None and not is_size(batch):
            raise UsageError(f"The batch size must be a positive whole number, not {batch}.")
        self.device = load_device(device) if isinstance(device, str) else device
        self.precision, self.batch, self._runtime = precision, batch, runtime
        self._make = functools.lru_cache(None)(
            lambda name: load_device_model(
                self.device, precision, runtime=name, threads=threads, calibration=calibration
            )
        )
        self._make(self._static_runtime)

    @property
    def _static_runtime(self) -> str:
        if self._runtime is None and self.precision == "int8" and self.device.model.runtime == "pytorch":
            return "tensorrt"
        return self._runtime or self.device.model.runtime

    @property
    def _dynamic_runtime(self) -> str:
        return self._runtime or ("onnxruntime" if self.device.is_local else "tensorrt")

    def predict(
        self,
        network: Network,
        configuration: Configuration | None = None,
        *,
        input_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Predict a network.

        Args:
            network: A torchvision name, a name of the zoo, a description, a bundle, or an ONNX graph.
            configuration: Of its dynamic blocks.
            input_size: (height, width) of the image; None takes the network's own.

        Raises:
            UsageError: Unknown name or mode, a rate outside [0, 1], or a list of the wrong length.
            BundleError: A graph has no static shapes.
        """
        plan = self._plan(network, configuration or Configuration(), input_size)
        graphs = plan.graphs()
        model = self._make(plan.runtime)
        prices = _prices(model, graphs)
        return _prediction(self, plan, model, graphs, prices)

    def sweep(
        self,
        network: Network,
        configurations: Sequence[Configuration],
        *,
        input_size: tuple[int, int] | None = None,
    ) -> Array:
        """Latencies of many configurations of one network, in ms per image.

        Args:
            network: As in :meth:`predict`.
            configurations: Of its dynamic blocks.
            input_size: As in :meth:`predict`.

        Returns:
            Shape (configurations,).

        Raises:
            UsageError: As :meth:`predict`.
        """
        if isinstance(network, Bundle) and all(_as_exported(configuration) for configuration in configurations):
            network = network.load_model()
        if not isinstance(network, (str, NetworkSpec, Bundle, Graph, GraphWalker)):
            network = self._walker(network, input_size)
        # In pieces: millions of live objects would keep the garbage collector busy.
        pieces = [configurations[begin : begin + _PIECE] for begin in range(0, len(configurations), _PIECE)]
        return np.concatenate([np.zeros(0), *(self._sweep(network, piece, input_size) for piece in pieces)])

    def _sweep(
        self, network: Network, configurations: Sequence[Configuration], input_size: tuple[int, int] | None
    ) -> Array:
        latencies = np.zeros(len(configurations))
        by_runtime: dict[str, tuple[list[Graph], list[int]]] = {}
        for index, configuration in enumerate(configurations):
            plan = self._plan(network, configuration, input_size)
            graphs, owners = by_runtime.setdefault(plan.runtime, ([], []))
            made = plan.graphs()
            graphs += made
            owners += [index] * len(made)
        for runtime, (graphs, owners) in by_runtime.items():
            model = self._make(runtime)
            ms, _, _ = _prices(model, graphs)
            runs = np.repeat(np.arange(len(graphs)), [len(graph.kernels) for graph in graphs])
            totals = np.bincount(runs, ms, len(graphs)) + model.overhead_ms
            share = np.bincount(owners, minlength=len(configurations))
            batches = np.array([graph.batch for graph in graphs])
            latencies += np.bincount(owners, totals / batches, len(configurations)) / np.maximum(share, 1)
        return latencies

    # ------------------------------------------------------------ from a network to graphs

    def _plan(self, network: Network, configuration: Configuration, input_size: tuple[int, int] | None) -> _Plan:
        if isinstance(network, Graph):
            given = network
            return _Plan(given.name, self._static_runtime, given.batch, given.input_size, lambda rates: given)
        if isinstance(network, str):
            if configuration.mode in (None, "static") and static_name(network) is not None:
                return self._static(network, input_size)
            network = _described(network, input_size)
        elif isinstance(network, Bundle):
            network, configuration = self._bundled(network, configuration, input_size)
        if isinstance(network, NetworkSpec):
            return self._described(network, configuration)
        return self._walked(network, configuration, input_size)

    def _static(self, name: str, input_size: tuple[int, int] | None) -> _Plan:
        batch = self.batch or self.device.model.batch
        runtime = self._static_runtime
        graph = static_graph(name, batch=batch, input_size=input_size, precision=self.precision, runtime=runtime)
        return _Plan(graph.name, runtime, batch, graph.input_size, lambda rates: graph)

    def _bundled(
        self, bundle: Bundle, configuration: Configuration, input_size: tuple[int, int] | None
    ) -> tuple[NetworkSpec | onnx.ModelProto, Configuration]:
        """The bundle's graph, or its description where another mode than its own is asked for."""
        manifest = bundle.manifest
        if _as_exported(configuration):
            return bundle.load_model(), configuration
        spec = bundle_spec(bundle, input_size)
        network = manifest.network
        return spec, replace(
            configuration,
            mode=configuration.mode or tuple(network.mode.split("-")),
            granularity=configuration.granularity or network.granularity,
            channel_granularity=configuration.channel_granularity or network.channel_granularity,
        )

    def _described(self, spec: NetworkSpec, configuration: Configuration) -> _Plan:
        stages = len(spec.stages)
        modes = per_stage_modes(configuration.mode or "static", stages)
        for mode in modes:
            if mode not in MODES:
                raise unknown_name("mode", mode, MODES)
        usual = FOUR_STAGES if stages == len(FOUR_STAGES) else 1
        granularities = per_stage_sizes("granularity", configuration.granularity or usual, stages)
        channels = per_stage_sizes(
            "channel_granularity", configuration.channel_granularity or CHANNELS_PER_GROUP, stages
        )
        batch = self.batch or self.device.model.batch
        runtime = self._dynamic_runtime

        def graph(rates: Sequence[Rates]) -> Graph:
            return network_graph(
                spec,
                modes=modes,
                granularities=granularities,
                channel_granularities=channels,
                rates=rates,
                batch=batch,
                precision=self.precision,
                runtime=runtime,
            )

        names = [block.name for block in spec.blocks]
        rates = _runs(configuration.rate, names, batch)
        block_modes = {block.name: modes[stage] for block, stage in zip(spec.blocks, spec.stage_of_block, strict=True)}
        return _Plan(
            spec.name, runtime, batch, spec.input_size, graph, rates, names, block_modes, modes, granularities, channels
        )

    def _walked(
        self, model: onnx.ModelProto | GraphWalker, configuration: Configuration, input_size: tuple[int, int] | None
    ) -> _Plan:
        if not _as_exported(configuration):
            raise UsageError("Mode and granularity are those of the graph: give them with a network's name only.")
        walker = model if isinstance(model, GraphWalker) else self._walker(model, input_size)
        names = list(walker.dynamic_blocks)

        def graph(rates: Sequence[Rates]) -> Graph:
            return walker.graph(dict(zip(names, rates, strict=True)))

        rates = _runs(configuration.rate, names, walker.batch)
        modes = walker.dynamic_modes
        return _Plan(walker.name, walker.runtime, walker.batch, walker.input_size, graph, rates, names, modes)

    def _walker(self, model: onnx.ModelProto, input_size: tuple[int, int] | None) -> GraphWalker:
        runtime = self._dynamic_runtime if has_dynamic_operators(model) else self._static_runtime
        return GraphWalker(model, precision=self.precision, batch=self.batch, input_size=input_size, runtime=runtime)


@dataclass(frozen=True)
class _Plan:
    """A network that only lacks rates.

    Attributes:
        name: Of the network.
        runtime: Whose fusions apply.
        batch: Images per run.
        input_size: Of the image.
        graph: ``rates of each block -> kernels``.
        rates: Of each block, for every run over which the latency is averaged.
        blocks: Names of the blocks that ``rates`` are of.
        block_modes: Mode by block.
        modes: Mode of each stage.
        granularity: Of each stage.
        channel_granularity: Of each stage.
    """

    name: str
    runtime: str
    batch: int
    input_size: tuple[int, int] | None
    graph: Callable[[Sequence[Rates]], Graph]
    rates: Sequence[Sequence[Rates]] = ((),)
    blocks: Sequence[str] = ()
    block_modes: Mapping[str, str] = field(default_factory=dict)
    modes: tuple[str, ...] = ("static",)
    granularity: tuple[int, ...] = ()
    channel_granularity: tuple[int, ...] = ()

    def graphs(self) -> list[Graph]:
        return [self.graph(rates) for rates in self.rates]


def _as_exported(configuration: Configuration) -> bool:
    """Whether nothing but rates is asked for."""
    asked = (configuration.mode, configuration.granularity, configuration.channel_granularity)
    return asked == (None, None, None)


_PIECE = 50
"""Configurations of a sweep that are priced together."""

_RUNS = 32
"""Runs over which a distribution of rates is averaged."""


def _runs(rate: RateLike | RateSamples, names: Sequence[str], batch: int) -> list[tuple[Rates, ...]]:
    if not isinstance(rate, RateSamples):
        return [tuple(block_rates(rate, len(names)))]
    if not rate.images:
        raise UsageError("The rates of no image are no distribution: give at least one image.")
    if any(len(image) != len(names) for image in rate.images):
        raise UsageError(f"Every image needs rates for each of the {len(names)} dynamic blocks: {', '.join(names)}.")
    checked = RateSamples(tuple(tuple(map(checked_rates, image)) for image in rate.images))
    return checked.batches(batch, _RUNS)


def _described(name: str, input_size: tuple[int, int] | None) -> NetworkSpec:
    try:
        return network_spec(name, None if input_size is None else (input_size[0], input_size[1]))
    except UsageError:
        if static_name(name) is not None:
            raise UsageError(f"{name} has no dynamic form in the zoo: predict it with mode static.") from None
        if input_size is not None and min(input_size) < 1:
            raise
        raise unknown_name("network", name, [*network_names(), *static_names()]) from None


# ---------------------------------------------------------------- from prices to a prediction


def _prices(model: DeviceModel, graphs: Sequence[Graph]) -> tuple[Array, Array, Array]:
    kernels = [kernel for graph in graphs for kernel in graph.kernels]
    resident = [math.fsum(kernel.weight_bytes for kernel in graph.kernels) for graph in graphs]
    return model.price(kernels, np.repeat(resident, [len(graph.kernels) for graph in graphs]))


def _interval(model: DeviceModel, ms: Array, low: Array, high: Array, scale: float) -> tuple[float, float]:
    """90 % interval of a sum: errors add up as far as they are common, and in squares as far as they are not."""

    def side(distance: Array) -> float:
        common = model.correlation
        return math.sqrt(common * float(distance.sum()) ** 2 + (1.0 - common) * float((distance**2).sum()))

    total = float(ms.sum())
    return max(0.0, total - side(ms - low)) * scale, (total + side(high - ms)) * scale


def _prediction(
    estimator: Estimator,
    plan: _Plan,
    model: DeviceModel,
    graphs: Sequence[Graph],
    prices: tuple[Array, Array, Array],
) -> Prediction:
    graph = graphs[0]
    # All runs have the same kernels; what differs are the rates.
    ms, low, high = (values.reshape(len(graphs), -1).mean(0) for values in prices)
    macs = np.array([[kernel.macs for kernel in one.kernels] for one in graphs]).mean(0)
    scale = 1.0 / plan.batch
    rates = dict(zip(plan.blocks, map(_mean, zip(*plan.rates, strict=True)), strict=True))
    blocks = []
    for part, members in graph.parts.items():
        operators = tuple(
            OperatorPrediction(
                graph.kernels[i].name,
                graph.kernels[i].kind,
                float(ms[i]) * scale,
                None,
                None,
                None,
                float(macs[i]) * scale,
                (float(low[i]) * scale, float(high[i]) * scale),
            )
            for i in members
        )
        mode = plan.block_modes.get(part, "static")
        blocks.append(
            BlockPrediction(
                part,
                mode,
                stated_rates(mode, rates[part]) if part in rates else {},
                math.fsum(o.latency_ms or 0.0 for o in operators),
                operators,
                _interval(model, ms[members], low[members], high[members], scale),
            )
        )
    overhead = model.overhead_ms * scale
    latency = math.fsum(block.latency_ms for block in blocks) + overhead
    whole = _interval(model, ms, low, high, scale)
    return Prediction(
        network=plan.name,
        device=estimator.device.name,
        mode=plan.modes,
        granularity=plan.granularity,
        channel_granularity=plan.channel_granularity,
        batch=plan.batch,
        input_size=plan.input_size or (0, 0),
        compat=None,
        fixes=(),
        mem_concurrent=None,
        seed=None,
        latency_ms=latency,
        latency_batch_ms=latency * plan.batch,
        blocks=tuple(blocks),
        coverage=_coverage(graph.kernels, ms, macs),
        predictor="kernels",
        precision=estimator.precision,
        runtime=plan.runtime,
        interval_ms=(whole[0] + overhead, whole[1] + overhead),
        basis=model.basis,
    )


def _mean(runs: Sequence[Rates]) -> Rates:
    return Rates(math.fsum(run.spatial for run in runs) / len(runs), math.fsum(run.channel for run in runs) / len(runs))


def _coverage(kernels: Sequence[Kernel], ms: Array, macs: Array) -> Coverage:
    unknown = [index for index, kernel in enumerate(kernels) if kernel.kind.startswith(UNKNOWN)]
    total = float(ms.sum())
    return Coverage(
        by_count=1.0 - len(unknown) / max(len(kernels), 1),
        # What an unknown operator computes is not known.
        by_flops=None if unknown else 1.0,
        operators=len(kernels),
        unknown=tuple(
            f"{kernels[i].block or 'network'}.{kernels[i].name} ({kernels[i].kind.removeprefix(UNKNOWN)})"
            for i in unknown
        ),
        by_time=1.0 - float(ms[unknown].sum()) / total if total > 0 else 1.0,
    )


def predict(
    network: Network | os.PathLike[str],
    device: str | Device,
    *,
    precision: str = "fp32",
    batch: int | None = None,
    runtime: str | None = None,
    threads: int = 1,
    calibration: str | os.PathLike[str] | None = None,
    input_size: tuple[int, int] | None = None,
    mode: str | Sequence[str] | None = None,
    granularity: int | Sequence[int] | None = None,
    channel_granularity: int | Sequence[int] | None = None,
    rate: RateLike | RateSamples = 0.5,
) -> Prediction:
    """Predict the latency of a network on a device.

    Args:
        network: A name (torchvision's or the zoo's), a description, a bundle, an ONNX graph, or the path of a bundle or
            an ``.onnx`` file.
        device: A device or its name.
        precision: As in :class:`Estimator`.
        batch: As in :class:`Estimator`.
        runtime: As in :class:`Estimator`.
        threads: As in :class:`Estimator`.
        calibration: As in :class:`Estimator`.
        input_size: (height, width) of the image; None takes the network's own.
        mode: As in :class:`Configuration`.
        granularity: As in :class:`Configuration`.
        channel_granularity: As in :class:`Configuration`.
        rate: As in :class:`Configuration`.

    Raises:
        UsageError: Unknown name, device or precision, a value out of range, or a device that is not calibrated.
        BundleError: A bundle or a file that cannot be read.

    Example:
        >>> 20 < predict("resnet50", "tx2", batch=1).latency_ms < 35
        True
    """
    estimator = Estimator(
        device, precision=precision, batch=batch, runtime=runtime, threads=threads, calibration=calibration
    )
    configuration = Configuration(mode, granularity, channel_granularity, rate)
    if isinstance(network, os.PathLike):
        network = _opened(Path(network))
    return estimator.predict(network, configuration, input_size=input_size)


def _opened(path: Path) -> Bundle | onnx.ModelProto:
    """The bundle or the graph at a path; weights in files of their own are not needed."""
    if path.is_dir() or path.suffix != ".onnx":
        return Bundle.open(path)
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError, DecodeError) as error:
        raise InputError(f"Cannot read {path} as an ONNX graph: {error}.") from error
    if not model.HasField("graph"):
        raise InputError(f"Cannot read {path} as an ONNX graph: it holds none.")
    if not model.graph.name or model.graph.name == "main_graph":
        model.graph.name = path.stem
    return model
