"""Predictions from kernels: any network, bundle or ONNX file on any device model, with intervals.

This is what a user gets. The reproduction of the LAUDNet predictor stands apart
(:mod:`dyndeploy.prediction.laudnet`).
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dyndeploy.bundle import SAVES_NOTHING, Bundle
from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.graphs.memory import Footprint, require_memory
from dyndeploy.graphs.passes.boxes import lacking
from dyndeploy.graphs.reading import read_graph
from dyndeploy.graphs.tensorrt_bytes import with_plugin_bytes
from dyndeploy.ops.gates import GateKind
from dyndeploy.prediction.architectures import static_graph, static_name
from dyndeploy.prediction.calibrated import CalibratedModel, Installation, find_calibrations, load_calibration
from dyndeploy.prediction.device_model import AnalyticalModel, Array, DeviceModel
from dyndeploy.prediction.integers import IntegerModel
from dyndeploy.prediction.kernels import ELEMENT_BYTES, MODELLED, UNKNOWN, Graph, GraphWalker, Kernel
from dyndeploy.prediction.nodes import DOCUMENT, NodeGraph, read_nodes
from dyndeploy.prediction.rates import RateLike, Rates, RateSamples, block_rates, checked_rates, mean_rates
from dyndeploy.prediction.results import (
    BlockPrediction,
    Coverage,
    ExitPrediction,
    OperatorPrediction,
    Prediction,
)
from dyndeploy.prediction.staged import StagedNodes, exit_shares
from dyndeploy.prediction.zoo import lacking_operators, zoo_network
from dyndeploy.targets import load_target, target_names
from dyndeploy.targets.devices import Device, device_names, load_device

if TYPE_CHECKING:
    import onnx

_LOG = logging.getLogger("dyndeploy.prediction")


Network: TypeAlias = "str | Bundle | onnx.ModelProto | NodeGraph | StagedNodes | GraphWalker | Graph"

PRECISIONS = tuple(ELEMENT_BYTES)
DEFAULT_RATE = 0.5
"""Of every mask, where none is given."""


@dataclass(frozen=True)
class Configuration:
    """How the dynamic blocks of a network run.

    Attributes:
        mode: Mode of all stages, or one per stage; None takes the network's own (a name: static).
        granularity: Side of a spatial patch, likewise (a name: what the network is built with by default).
        channel_granularity: Channels per dynamic group, likewise.
        rate: Activation rate of every mask; one entry per dynamic block (or per block of the network, by position),
            rates by name of the block, or :class:`RateSamples`, which state the rates image by image: the latency is
            then the mean over runs, not the latency of the mean image. None is :data:`DEFAULT_RATE`, but 1 for the
            branches of a file of another origin.
        exit_mix: Share of images that leaves at each exit of a network that exits early; None takes the shares that
            its thresholds were calibrated with, else equal ones.
        exits: Exits to keep of a network that exits early, the last one included, as an export with ``--exits`` does;
            None for all. The mix still has a share for each of the network's exits.
    """

    mode: str | Sequence[str] | None = None
    granularity: int | Sequence[int] | None = None
    channel_granularity: int | Sequence[int] | None = None
    rate: RateLike | RateSamples | Mapping[str, float | Rates] | None = None
    exit_mix: Sequence[float] | None = None
    exits: Sequence[int] | None = None


def load_device_model(
    device: str | Device,
    precision: str = "fp32",
    *,
    runtime: str | None = None,
    threads: int = 1,
    calibration: str | os.PathLike[str] | None = None,
    graph: bool = True,
) -> DeviceModel:
    """The model of a device: its calibration where there is one, else the analytical one.

    Args:
        device: A device or its name.
        precision: Of activations and weights.
        runtime: Which software runs the kernels; None takes the device's own.
        threads: Of a CPU.
        calibration: A file of ``dyndeploy calibrate-device``; None looks where that command leaves it.
        graph: Engines run as a CUDA graph.

    Raises:
        UsageError: Unknown device, precision or runtime; this machine is not calibrated.
        InputError: The calibration cannot be read.
    """
    device = load_device(device) if isinstance(device, str) else device
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    paths = [Path(calibration)] if calibration is not None else find_calibrations(device.name, threads)
    if not paths:
        if device.is_local:
            raise UsageError(
                f"This machine is not calibrated for {threads} thread(s): what it can do is measured, not looked up. "
                f"Run 'dyndeploy calibrate-device --device {device.name}"
                + (f" --threads {threads}'." if threads != 1 else "' (up to 10 minutes).")
            )
        return AnalyticalModel(device, precision, runtime, graph=graph)
    if precision == "fp32":
        return CalibratedModel(load_calibration(paths[0]))
    if not device.is_local:
        return AnalyticalModel(device, precision, runtime, graph=graph)
    if precision == "int8":
        return IntegerModel(load_calibration(paths[0]))
    raise UsageError(f"The calibration of {device.name} is for fp32 (int8 is modelled from it): predict one of these.")


def known_devices(threads: int = 1, precision: object = "fp32") -> list[str]:
    """Names of all devices of which a latency can be predicted: all, but this machine only where it is calibrated.

    Args:
        threads: Of this machine.
        precision: What a profile computed in: devices that do not compute in INT8, or of which no source says how fast
            they do, are left out. Other precisions leave none out.
    """
    return [
        name
        for name in device_names()
        if (_calibrated(name, threads) if load_device(name).is_local else precision != "int8" or _has_int8(name))
    ]


def _has_int8(name: str) -> bool:
    hardware = load_device(name).hardware
    return hardware.int8 is not False and bool(hardware.int8_tensor_tops or hardware.int8_tops)


def _calibrated(device: str, threads: int) -> bool:
    try:
        return [load_calibration(path) for path in find_calibrations(device, threads)] != []
    except InputError as error:
        _LOG.warning("Note: this machine's calibration is left out: %s", error)
        return False


_FOREIGN = (
    "The stages were exported for {}: an export for {} (--target) has other graphs, with layer norms written out where "
    "the board has none, and may be slower. Predict that one."
)


_AS_IF = (
    "Priced as if all of it computed in INT8. A bundle in INT8 keeps its head and its decisions in FP32, and is priced "
    "as it is."
)
_NO_FORM = "{} have no form in INT8 in this release: priced as if they had."


def _integer_notes(graph: Graph) -> tuple[str, ...]:
    """What a reader of a prediction in INT8 should know of a network that was not quantised."""
    if any(kernel.precision != "int8" for kernel in graph.kernels):
        return ()
    specs = {kernel.call.spec.name: kernel.call.spec for kernel in graph.kernels if kernel.call is not None}
    lacking = sorted(name for name, spec in specs.items() if spec.gates and spec.quantization is None)
    return (_AS_IF, *([_NO_FORM.format(", ".join(lacking))] if lacking else []))


def _modelled_notes(graph: Graph) -> tuple[str, ...]:
    """What a reader should know of kernels that no device was measured with."""
    counts = Counter(kernel.kind for kernel in graph.kernels if kernel.kind in MODELLED)
    said = ", ".join(f"{count} of {kind}" for kind, count in sorted(counts.items()))
    return (f"Modelled by the traffic of their work, measured on no device: {said}.",) if counts else ()


class Estimator:
    """Predicts latencies on one device model.

    Args:
        device: A device, its name, or a model.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``: of all of the network, but of a graph in INT8 what it keeps in
            FP32 is priced in FP32.
        batch: Images per run; None takes the network's own (a bundle, a file), else the device's usual one.
        runtime: Which software runs the kernels, of static and dynamic networks alike; None takes the device's own
            (:attr:`~dyndeploy.targets.devices.Device.runtime`).
        threads: Of a CPU.
        calibration: A file of ``dyndeploy calibrate-device``; None looks where that command leaves it.
        installation: What a calibration has to fit, or predictions say that it does not; None: this machine now.

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
        installation: Installation | None = None,
    ) -> None:
        if batch is not None and (isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 1):
            raise UsageError(f"The batch size must be a positive whole number, not {batch}.")
        self.device = load_device(device) if isinstance(device, str) else device
        self.precision, self.batch, self.runtime = precision, batch, runtime or self.device.runtime
        self._installation = installation
        self._make = functools.lru_cache(None)(
            lambda name: load_device_model(
                self.device, precision, runtime=name, threads=threads, calibration=calibration
            )
        )
        self._walkers: dict[int, GraphWalker] = {}
        self._make(self.runtime)

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """Why the calibration that prices may not fit; empty where it does, and for devices without one."""
        model = self._make(self.runtime)
        if not isinstance(model, CalibratedModel) or not self.device.is_local:
            return ()
        return tuple(model.calibration.warnings(self._installation))

    def predict(
        self,
        network: Network,
        configuration: Configuration | None = None,
        *,
        input_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Predict a network.

        Args:
            network: A torchvision name, a name of the zoo, a bundle, an ONNX graph, or nodes that were read of one.
            configuration: Of its dynamic blocks.
            input_size: (height, width) of the image; None takes the network's own.

        Raises:
            UsageError: Unknown name or mode, a rate outside [0, 1], a list of the wrong length, or a network that
                needs more memory than the device has.
            BundleError: A graph has no static shapes.
        """
        plan = self._plan(network, configuration or Configuration(), input_size)
        graphs = plan.graphs()
        model = self._make(plan.runtime)
        prices = _prices(model, graphs)
        found = _prediction(self, plan, model, graphs, prices)
        if isinstance(network, Bundle) and network.manifest.exits is not None and self._foreign(network):
            found = replace(found, notes=(*found.notes, _FOREIGN.format(network.manifest.target, self.device.board)))
        notes = _integer_notes(graphs[0]) if self.precision == "int8" else ()
        notes += _modelled_notes(graphs[0])
        memory = require_memory(plan.name, self.device, plan.footprint(graphs[0]))
        return replace(found, notes=(*found.notes, *notes, *self._not_exported(graphs[0])), memory=memory)

    def _not_exported(self, graph: Graph) -> tuple[str, ...]:
        """That a network cannot be exported for the device, or in the precision: then nothing runs what is priced."""
        if self.device.board not in target_names():
            return ()
        target = load_target(self.device.board)
        if any(kernel.kind in ("suppression", "regions") for kernel in graph.kernels) and lacking(target.runtime):
            return (f"Not to be had yet on {self.device.board}: {lacking(target.runtime)}",)
        if all(kernel.call is None for kernel in graph.kernels):
            return ()
        rule = target.precisions[self.precision]
        return () if rule.supported else (f"Not to be had yet: for {self.device.board}, {rule.reason}.",)

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
        # Read once for all.
        if isinstance(network, Bundle) and all(_as_exported(configuration) for configuration in configurations):
            network = bundle_nodes(network, self.batch, input_size, self.runtime)
        elif not isinstance(network, (str, Bundle, NodeGraph, StagedNodes, Graph, GraphWalker)):
            network = read_nodes(network, batch=self.batch, input_size=input_size)
        if isinstance(network, NodeGraph):
            network = self._walker(network)
        # In pieces: millions of live objects would keep the garbage collector busy.
        pieces = [configurations[begin : begin + _PIECE] for begin in range(0, len(configurations), _PIECE)]
        return np.concatenate([np.zeros(0), *(self._sweep(network, piece, input_size) for piece in pieces)])

    def _sweep(
        self, network: Network, configurations: Sequence[Configuration], input_size: tuple[int, int] | None
    ) -> Array:
        latencies = np.zeros(len(configurations))
        by_runtime: dict[str, tuple[list[Graph], list[int], list[Array]]] = {}
        for index, configuration in enumerate(configurations):
            plan = self._plan(network, configuration, input_size)
            graphs, owners, shares = by_runtime.setdefault(plan.runtime, ([], [], []))
            made = plan.graphs()
            graphs += made
            owners += [index] * len(made)
            shares += [plan.reach(len(made[0].kernels))] * len(made)
            latencies[index] += self._make(plan.runtime).overhead_ms * plan.runs_of_stages / made[0].batch
        for runtime, (graphs, owners, shares) in by_runtime.items():
            ms, _, _ = _prices(self._make(runtime), graphs)
            runs = np.repeat(np.arange(len(graphs)), [len(graph.kernels) for graph in graphs])
            totals = np.bincount(runs, ms * np.concatenate(shares), len(graphs))
            count = np.bincount(owners, minlength=len(configurations))
            batches = np.array([graph.batch for graph in graphs])
            latencies += np.bincount(owners, totals / batches, len(configurations)) / np.maximum(count, 1)
        return latencies

    # ------------------------------------------------------------ from a network to graphs

    def _plan(self, network: Network, configuration: Configuration, input_size: tuple[int, int] | None) -> _Plan:
        if isinstance(network, Graph):
            given = network
            return _Plan(given.name, self.runtime, given.batch, given.input_size, lambda rates: given)
        if isinstance(network, str):
            return self._named(network, configuration, input_size)
        if isinstance(network, Bundle):
            if not _as_exported(configuration):
                return self._rebuilt(network, configuration, input_size)
            network = bundle_nodes(network, self.batch, input_size, self.runtime)
        elif not _as_exported(configuration):
            raise UsageError("Mode and granularity are those of the graph: give them with a network's name only.")
        if isinstance(network, StagedNodes):
            return self._staged(network, configuration)
        if isinstance(network, GraphWalker):
            return self._walked(network.name, [network], configuration)
        if not isinstance(network, NodeGraph):
            network = read_nodes(network, batch=self.batch, input_size=input_size)
        return self._walked(network.name, [self._walker(network)], configuration)

    def _named(self, name: str, configuration: Configuration, input_size: tuple[int, int] | None) -> _Plan:
        static = _single(configuration.mode) in (None, "static")
        known = static_name(name)
        if static and known is not None:
            runtime, batch = self.runtime, self.batch or self.device.model.batch
            graph = static_graph(known, batch=batch, input_size=input_size, precision=self.precision, runtime=runtime)
            return _Plan(graph.name, runtime, batch, graph.input_size, lambda rates: graph)
        if known is not None:
            raise UsageError(f"{name} has no dynamic form in the zoo: predict it with mode static.")
        return self._of_zoo(name, {}, configuration, input_size)

    def _rebuilt(self, bundle: Bundle, configuration: Configuration, input_size: tuple[int, int] | None) -> _Plan:
        """The network of a bundle in another mode than it was exported in."""
        from dyndeploy.nets import model_names

        network, size = bundle.manifest.network, bundle.manifest.input_size
        if network.name not in model_names():
            raise UsageError(
                f"{network.name} in {bundle.path} is no network of the zoo: mode and granularity are those that it was "
                "exported with."
            )
        if input_size is not None and size is not None and tuple(input_size) != size:
            raise UsageError(
                f"The bundle {bundle.path} was exported for {size[0]}x{size[1]} images. Leave the input size out, or "
                "predict the network by its name."
            )
        return self._of_zoo(network.name, network.options, configuration, size, self.batch or bundle.manifest.batch)

    def _of_zoo(
        self,
        name: str,
        options: Mapping[str, Any],
        configuration: Configuration,
        input_size: tuple[int, int] | None,
        batch: int | None = None,
    ) -> _Plan:
        asked = {
            "mode": configuration.mode,
            "granularity": configuration.granularity,
            "channel_granularity": configuration.channel_granularity,
        }
        from dyndeploy.nets import model_info, model_names

        given = {key: _single(value) for key, value in asked.items() if value is not None}
        batch = batch or self.batch or self.device.model.batch
        info = model_info(name) if name in model_names() else None
        known = {"mode": None} if info is None else info.defaults
        words = {} if info is None else getattr(info.config_type, "mode_options", {})
        if "mode" in known:
            given = {"mode": "static", **options, **given}
        elif words and set(given) <= {"mode"}:
            word = given.pop("mode", "static")
            if word not in words:
                raise unknown_name("mode", str(word), words)
            given = {**options, **words[word]}
        elif given.pop("mode", "static") != "static" or given:
            raise UsageError(f"{name} has neither modes nor granularities: leave them out.")
        nodes = zoo_network(name, given, batch=batch, input_size=input_size, lacks=lacking_operators(self.device.name))
        if isinstance(nodes, StagedNodes):
            return self._staged(nodes, replace(configuration, mode=None))
        walker = self._walkers.get(id(nodes))
        if walker is None:
            walker = self._walkers[id(nodes)] = self._walker(nodes)
        return self._walked(name, [walker], configuration)

    def _staged(self, network: StagedNodes, configuration: Configuration) -> _Plan:
        count = len(network.exits)
        shares = exit_shares(configuration.exit_mix or network.shares or (1.0,) * count, count)
        network = replace(network, shares=shares)
        if configuration.exits is not None:
            network = network.keep(configuration.exits)
        walkers = [self._walker(nodes) for _, nodes in network.stages]
        return self._walked(
            network.name, walkers, configuration, tuple(zip(network.exits, network.shares or (), strict=True))
        )

    def _walked(
        self,
        name: str,
        walkers: Sequence[GraphWalker],
        configuration: Configuration,
        exits: tuple[tuple[int, float], ...] = (),
    ) -> _Plan:
        if not exits and (configuration.exit_mix is not None or configuration.exits is not None):
            raise UsageError(f"{name} has no exits: leave the exits and their mix out.")
        gates: dict[str, tuple[GateKind, ...]] = {}
        for walker in walkers:
            gates |= walker.gates
        runtime, first = walkers[0].runtime, walkers[0]
        branches, reason = self._takes_branches(runtime)
        skipped = dict.fromkeys(block for w in walkers for node in w.record.nodes for block in node.conditions)
        notes: tuple[str, ...] = (
            (f"{', '.join(skipped)}: always computed, so that nothing is saved there: {reason}",)
            if skipped and not branches
            else ()
        )
        notes += tuple(dict.fromkeys(note for walker in walkers for note in walker.record.notes))
        blocks = list(gates)

        def graph(rates: Sequence[Rates]) -> Graph:
            by_block = dict(zip(blocks, rates, strict=True))
            graphs = [walker.graph(by_block, branches=branches) for walker in walkers]
            if not exits:
                return graphs[0]
            kernels = [
                kernel if kernel.block is not None else replace(kernel, block=f"exit {number}")
                for part, (number, _) in zip(graphs, exits, strict=True)
                for kernel in part.kernels
            ]
            return Graph(name, tuple(kernels), first.batch, first.input_size, self.precision)

        every = list(dict.fromkeys(block for walker in walkers for block in walker.record.blocks))
        foreign = {block for walker in walkers for block in walker.record.branches}
        return _Plan(
            name,
            runtime,
            first.batch,
            first.input_size,
            graph,
            _runs(configuration.rate, blocks, every, foreign, first.batch),
            gates,
            _listed(configuration.mode),
            _listed(configuration.granularity),
            _listed(configuration.channel_granularity),
            notes,
            exits,
            tuple(len(walker.graph().kernels) for walker in walkers) if exits else (),
            tuple(walkers),
        )

    def _takes_branches(self, runtime: str) -> tuple[bool, str]:
        """Whether the platform runs one branch of an ``If`` only, and the reason."""
        if self.device.board in target_names():
            target = load_target(self.device.board)
            if target.runtime == runtime:
                return target.takes_branches()
        return runtime != "tensorrt", "TensorRT may run both branches"

    def _foreign(self, bundle: Bundle) -> bool:
        """Whether stages were exported for a CPU and are priced for a board, whose export writes other operators."""
        return bundle.manifest.target == "cpu" and self.device.name != "cpu" and self.device.board in target_names()

    def _walker(self, nodes: NodeGraph) -> GraphWalker:
        return GraphWalker(nodes, precision=self.precision, runtime=self.runtime)


def bundle_nodes(
    bundle: Bundle,
    batch: int | None = None,
    input_size: tuple[int, int] | None = None,
    runtime: str = "onnxruntime",
) -> NodeGraph | StagedNodes:
    """What pricing needs of a bundle.

    Args:
        bundle: Of any network.
        batch: Images per run; None takes the bundle's.
        input_size: (height, width); None takes the bundle's.
        runtime: What runs it: of a graph in INT8, TensorRT is given a form of its own.

    Raises:
        BundleError: A graph cannot be read.
    """
    manifest = bundle.manifest
    name, batch = manifest.network.name, batch or manifest.batch
    notes = tuple(note for note in manifest.notes if SAVES_NOTHING in note)

    def nodes(model: onnx.ModelProto, size: tuple[int, int] | None) -> NodeGraph:
        found = read_nodes(_as_run(model, runtime), batch=batch, input_size=size, name=name)
        return replace(found, notes=(*notes, *found.notes))

    if manifest.exits is None:
        return nodes(bundle.load_model(), input_size)
    stages = tuple(
        (info.exit, nodes(model, input_size if index == 0 else None))
        for index, (info, model) in enumerate(zip(manifest.exits.stages, bundle.load_stages(), strict=True))
    )
    calibrated = manifest.exits.thresholds
    known = calibrated.get(manifest.precision) or next(iter(calibrated.values()), None)
    return StagedNodes(name, stages, None if known is None else known.exit_shares)


def _as_run(model: onnx.ModelProto, runtime: str) -> onnx.ModelProto:
    return with_plugin_bytes(model) if runtime == "tensorrt" else model


def bundle_record(bundle: Bundle) -> dict[str, Any]:
    """What a profile keeps of a bundle's graphs, as plain JSON types: ``dynamic`` and, of a twin, ``static``.

    Raises:
        BundleError: A graph cannot be read.
    """
    batch = 1 if bundle.manifest.exits is not None and bundle.manifest.exits.dynamic_batch else None
    runtime, name = load_target(bundle.manifest.target).runtime, bundle.manifest.network.name
    nodes = bundle_nodes(bundle, batch, runtime=runtime)
    record: dict[str, Any] = {"dynamic": nodes.to_json()}
    if bundle.static is not None:
        record["static"] = read_nodes(_as_run(bundle.load_static(), runtime), batch=batch, name=name).to_json()
    return record


def recorded_nodes(record: Mapping[str, Any] | None, part: str, source: str = "The profile") -> NodeGraph | StagedNodes:
    """The graph that a profile keeps.

    Args:
        record: What :func:`bundle_record` gave.
        part: ``"dynamic"`` or ``"static"``.
        source: What to call it in messages.

    Raises:
        InputError: There is none, or it is malformed.
    """
    if record is None or part not in record:
        raise InputError(
            f"{source} does not hold the graph that was measured, as those of release 0.1.0 do not: profile the bundle "
            "again."
        )
    value = DOCUMENT.root(record)[part].facts()
    return StagedNodes.from_json(value) if "stages" in value else NodeGraph.from_json(value)


@dataclass(frozen=True)
class _Plan:
    """A network that only lacks rates.

    Attributes:
        name: Of the network.
        runtime: Whose fusions apply.
        batch: Images per run.
        input_size: Of the image.
        graph: ``rates of each dynamic block -> kernels``.
        rates: Of each dynamic block, for every run over which the latency is averaged.
        gates: Kinds of decisions by dynamic block.
        modes: As asked for.
        granularity: As asked for.
        channel_granularity: As asked for.
        notes: What a reader should know.
        exits: Number and share of each exit.
        kernels: Of each stage.
        walkers: Of each graph; empty for a network that is written down as kernels.
    """

    name: str
    runtime: str
    batch: int
    input_size: tuple[int, int] | None
    graph: Callable[[Sequence[Rates]], Graph]
    rates: Sequence[Sequence[Rates]] = ((),)
    gates: Mapping[str, tuple[GateKind, ...]] = field(default_factory=dict)
    modes: tuple[str, ...] = ()
    granularity: tuple[int, ...] = ()
    channel_granularity: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    exits: tuple[tuple[int, float], ...] = ()
    kernels: tuple[int, ...] = ()
    walkers: tuple[GraphWalker, ...] = ()

    def footprint(self, graph: Graph) -> Footprint:
        """What it needs of memory; of kernels without tensors, activations are those of the largest one."""
        if self.walkers:
            first, *others = (walker.footprint for walker in self.walkers)
            return sum(others, first)
        largest = max(graph.kernels, key=lambda kernel: kernel.read_bytes + kernel.written_bytes)
        weights = math.fsum(kernel.weight_bytes for kernel in graph.kernels)
        return Footprint(int(weights), int(largest.read_bytes + largest.written_bytes), 0, largest.name)

    def graphs(self) -> list[Graph]:
        return [self.graph(rates) for rates in self.rates]

    @property
    def stage_shares(self) -> Array:
        """Share of images that runs each stage."""
        shares = np.array([share for _, share in self.exits] or [1.0])
        return shares[::-1].cumsum()[::-1]

    @property
    def runs_of_stages(self) -> float:
        return float(self.stage_shares.sum())

    def reach(self, kernels: int) -> Array:
        """Share of images that runs each kernel's stage."""
        return np.repeat(self.stage_shares, self.kernels or (kernels,))


def _as_exported(configuration: Configuration) -> bool:
    """Whether nothing but rates and the exit mix is asked for."""
    asked = (configuration.mode, configuration.granularity, configuration.channel_granularity)
    return asked == (None, None, None)


def _single(value: Any) -> Any:
    """What a list of one entry holds: one value for all stages."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _listed(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


_PIECE = 10
"""Configurations of a sweep that are priced together."""

_RUNS = 32
"""Runs over which a distribution of rates is averaged."""


def _runs(
    rate: RateLike | RateSamples | Mapping[str, float | Rates] | None,
    blocks: Sequence[str],
    every: Sequence[str],
    foreign: Iterable[str],
    batch: int,
) -> list[tuple[Rates, ...]]:
    """Rates of the dynamic ``blocks`` for every run; a list may also go by ``every`` block of the network."""
    if rate is None:
        usual = checked_rates(DEFAULT_RATE)
        return [tuple(Rates() if block in foreign else usual for block in blocks)]
    if isinstance(rate, Mapping):
        return [tuple(checked_rates(rate.get(block, 1.0)) for block in blocks)]
    if not isinstance(rate, RateSamples):
        if isinstance(rate, Sequence) and len(rate) == len(every) != len(blocks):
            by_name = dict(zip(every, block_rates(rate, len(every)), strict=True))
            return [tuple(by_name[block] for block in blocks)]
        return [tuple(block_rates(rate, len(blocks)))]
    if not rate.images:
        raise UsageError("The rates of no image are no distribution: give at least one image.")
    if any(len(image) != len(blocks) for image in rate.images):
        raise UsageError(f"Every image needs rates for each of the {len(blocks)} dynamic blocks: {', '.join(blocks)}.")
    checked = RateSamples(tuple(tuple(map(checked_rates, image)) for image in rate.images))
    return checked.batches(batch, _RUNS)


# ---------------------------------------------------------------- from prices to a prediction


def _prices(model: DeviceModel, graphs: Sequence[Graph]) -> tuple[Array, Array, Array]:
    kernels = [kernel for graph in graphs for kernel in graph.kernels]
    resident = [math.fsum(kernel.weight_bytes for kernel in graph.kernels) for graph in graphs]
    prices = model.price(kernels, np.repeat(resident, [len(graph.kernels) for graph in graphs]))
    share = np.array([kernel.share for kernel in kernels])
    ms, low, high = (share * values for values in prices)
    return ms, low, high


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
    each = tuple(values.reshape(len(graphs), -1).mean(0) for values in prices)
    macs = np.array([[kernel.macs * kernel.share for kernel in one.kernels] for one in graphs]).mean(0)
    reach = plan.reach(len(graph.kernels))
    ms, low, high = (values * reach for values in each)
    scale = 1.0 / plan.batch
    rates = dict(zip(plan.gates, map(mean_rates, zip(*plan.rates, strict=True)), strict=True))
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
                float(macs[i] * reach[i]) * scale,
                (float(low[i]) * scale, float(high[i]) * scale),
            )
            for i in members
        )
        kinds = plan.gates.get(part, ())
        blocks.append(
            BlockPrediction(
                part,
                "+".join(kind.name for kind in kinds) or "static",
                {kind.name: float(rates[part].of(kind)) for kind in kinds},
                math.fsum(o.latency_ms or 0.0 for o in operators),
                operators,
                _interval(model, ms[members], low[members], high[members], scale),
            )
        )
    overhead = model.overhead_ms * scale * plan.runs_of_stages
    latency = math.fsum(block.latency_ms for block in blocks) + overhead
    whole = _interval(model, ms, low, high, scale)
    return Prediction(
        network=plan.name,
        device=estimator.device.name,
        mode=plan.modes or ("static",),
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
        notes=(*plan.notes, *estimator.warnings),
        exits=tuple(_exits(plan, model, *each)),
    )


def _exits(plan: _Plan, model: DeviceModel, ms: Array, low: Array, high: Array) -> Iterable[ExitPrediction]:
    """What images that leave at each exit take."""
    scale = 1.0 / plan.batch
    for index, (number, share) in enumerate(plan.exits):
        run = slice(0, sum(plan.kernels[: index + 1]))
        overhead = model.overhead_ms * scale * (index + 1)
        below, above = _interval(model, ms[run], low[run], high[run], scale)
        latency = float(ms[run].sum()) * scale + overhead
        yield ExitPrediction(number, share, latency, (below + overhead, above + overhead))


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
    precision: str | None = None,
    batch: int | None = None,
    runtime: str | None = None,
    threads: int = 1,
    calibration: str | os.PathLike[str] | None = None,
    input_size: tuple[int, int] | None = None,
    mode: str | Sequence[str] | None = None,
    granularity: int | Sequence[int] | None = None,
    channel_granularity: int | Sequence[int] | None = None,
    rate: RateLike | RateSamples | Mapping[str, float | Rates] | None = None,
    exit_mix: Sequence[float] | None = None,
    dims: Mapping[str, int] | None = None,
    exits: Sequence[int] | None = None,
) -> Prediction:
    """Predict the latency of a network on a device.

    Args:
        network: A name (torchvision's or the zoo's), a bundle, an ONNX graph, nodes that were read of one, or the path
            of a bundle or an ``.onnx`` file.
        device: A device or its name.
        precision: As in :class:`Estimator`; None takes a bundle's own, else FP32.
        batch: As in :class:`Estimator`.
        runtime: As in :class:`Estimator`.
        threads: As in :class:`Estimator`.
        calibration: As in :class:`Estimator`.
        input_size: (height, width) of the image; None takes the network's own.
        mode: As in :class:`Configuration`.
        granularity: As in :class:`Configuration`.
        channel_granularity: As in :class:`Configuration`.
        rate: As in :class:`Configuration`.
        exit_mix: As in :class:`Configuration`.
        dims: Sizes that an ONNX graph leaves open, by name, besides the batch and the input size.
        exits: As in :class:`Configuration`.

    Raises:
        UsageError: Unknown name, device or precision, a value out of range, or a device that is not calibrated; a rate
            for a network that skips nothing; or sizes by name of what is no ONNX graph.
        BundleError: A bundle or a file that cannot be read.

    Example:
        >>> 20 < predict("resnet50", "tx2", batch=1).latency_ms < 35
        True
    """
    if isinstance(network, os.PathLike):
        network = open_network(network)
    if precision is None:
        precision = network.manifest.precision if isinstance(network, Bundle) else "fp32"
    estimator = Estimator(
        device, precision=precision, batch=batch, runtime=runtime, threads=threads, calibration=calibration
    )
    configuration = Configuration(mode, granularity, channel_granularity, rate, exit_mix, exits)
    if dims:
        if isinstance(network, (str, Bundle, NodeGraph, StagedNodes, GraphWalker, Graph)):
            raise UsageError("Only an ONNX file has sizes to give by name: leave --dim out.")
        network = read_nodes(network, batch=batch, input_size=input_size, dims=dims)
        input_size = None
    prediction = estimator.predict(network, configuration, input_size=input_size)
    if rate is not None:
        prediction.require_rates()
    return prediction


def open_network(source: str | os.PathLike[str]) -> Bundle | onnx.ModelProto:
    """The bundle or the graph at a path; weights in files of their own are not read.

    Raises:
        BundleError: The folder is no bundle.
        InputError: The file cannot be read as an ONNX graph.
    """
    path = Path(source)
    return Bundle.open(path) if path.is_dir() or path.suffix != ".onnx" else read_graph(path, weights=False)
