"""What a kernel costs on a device: the protocol of all device models, and the analytical model of GPUs.

A kernel is one to four *phases* (a dynamic bottleneck lists its pixels, then multiplies three times; anything else is
one phase). A phase costs a launch and the slowest of three things, which overlap:

- arithmetic: a matrix product in tiles; the busiest multiprocessor decides, so tiles and waves are whole numbers;
- the second-level cache, through which every tile's operands come;
- memory: what does not fit that cache. Weights come from memory in every run unless all weights of the network fit.

Peak rates are those of the device's file; what software reaches of them are its two efficiencies. What our own kernels
reach stands in a table that is made of their machine code (:mod:`dyndeploy.prediction.own_kernels`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import UsageError
from dyndeploy.ops.base import Launch
from dyndeploy.prediction.densities import ExpectedBusiestTile
from dyndeploy.prediction.kernels import (
    ELEMENT_BYTES,
    MODELLED,
    REORDER,
    UNKNOWN,
    Kernel,
    floats_beside_integers,
    fused_by,
)
from dyndeploy.prediction.own_kernels import WINOGRAD, own_kernels, winograd_launches
from dyndeploy.targets.devices import Device, Hardware

Array: TypeAlias = npt.NDArray[np.float64]


class DeviceModel(Protocol):
    """Prices kernels on one device.

    Attributes:
        name: Of the device.
        basis: What the model rests on, in a sentence.
        overhead_ms: Of a run, beside its kernels.
        correlation: How much of a kernel's error is common to all kernels, in [0, 1].
    """

    @property
    def name(self) -> str: ...

    @property
    def basis(self) -> str: ...

    @property
    def overhead_ms(self) -> float: ...

    @property
    def correlation(self) -> float: ...

    def price(self, kernels: Sequence[Kernel], resident: Array | None = None) -> tuple[Array, Array, Array]:
        """Milliseconds of kernels: expected, and a 90 % interval (low, high), each (kernels,).

        Args:
            kernels: Of one run of a network, or of many.
            resident: Bytes of weights that a run of each kernel's network touches, (kernels,): they decide whether
                weights stay in a cache. None: all kernels are of one run.
        """
        ...


LANES_EFFICIENCY, MEMORY_EFFICIENCY = 0.6, 0.8
TENSOR_EFFICIENCY = {"tensorrt": 0.6, "onnxruntime": 0.6, "pytorch": 0.6}
"""Where nothing was fitted: about the middle of what was on other devices (tensor cores: TensorRT at batch 1, PyTorch
at large batches)."""

_LAUNCH_US = 3.0
"""Gap between two kernels of a stream: 2.2 to 3.1 us on a V100 (TVM's measurements)."""

_GRAPH_US = 1.3
"""The same between two kernels of a CUDA graph, as which engines run: a node of a graph of 2000 small additions takes
1.1 to 1.3 us, the addition included (pytorch/pytorch#161104). An empty kernel takes 0.58 us of a node on an RTX 5070 Ti
Laptop (ahrefs/ocannl#488), so it is no less than the gap. No figure was found of a board: those keep theirs."""

_EARLY_US = 0.96
"""What of that a kernel saves which is put onto the GPU while the one before it still runs (programmatic dependent
launch): measured of two empty kernels (pegainfer-project/pegainfer#569)."""
_EARLY_FROM, _JOINS_FROM = 9.0, 8.0
"""Compute capability from which our own kernels do that, and from which lists stand in the launch that follows."""

_DISPATCH_US = {"pytorch": 10.0}
"""A framework that dispatches every operator from Python needs 5 to 15 us for each; a GPU that is faster waits."""

WINOGRAD_GAIN = {"tensorrt": 1.5, "onnxruntime": 1.5, "pytorch": 2.25}
"""Of 3x3 convolutions of stride 1 on lanes: F(2x2, 3x3) has 2.25 times fewer products, of which the transforms and
their traffic eat a third; cuDNN, which PyTorch calls, also has F(4x4, 3x3). Tensor cores use neither. Both figures were
chosen in view of the published latencies (TensorRT's of the two networks on a Nano, PyTorch's of one on a V100)."""

_HALF_LANES = 0.87
"""FP16 on lanes against twice the FP32 rate: sums in halves must be settled in floats before they lose digits.
Chosen in view of ResNet-50 in both precisions on a TX2."""

_TILES = ((128, 128, 1.0), (128, 64, 0.95), (64, 64, 0.85), (32, 64, 0.65), (32, 32, 0.5), (1, 128, 0.25))
"""(rows, columns, share of the arithmetic rate that such a tile reaches): small tiles load more per product. The last
is the product of a matrix and a vector."""

_SPLITS = (1, 2, 4, 8)
"""Into how many pieces a long sum may be cut to busy more multiprocessors."""

_RAMP_LANES = 16
RAMP_TENSOR = {"tensorrt": 256, "onnxruntime": 256, "pytorch": 48}
"""Depth of a sum that would take as long as a tile's begin and end. On tensor cores that of TensorRT at batch 1 was
chosen in view of ResNet-50 and VGG-16 on an AGX Xavier: with 48, what fits one misses the other by a factor of 1.5."""

_L2_BYTES_PER_CYCLE = 25.6
"""Of each multiprocessor where no source gives the bandwidth: the V100's, the lowest that is known."""

_DEPTHWISE_COMPUTE, _DEPTHWISE_MEMORY = 0.25, 0.6
"""Share of rate and bandwidth that depthwise convolutions reach of what others do: a product per load, short rows."""

_SPREAD_FITTED, _SPREAD_ASSUMED = 0.15, 0.45
"""Half width of the interval (logarithm) where constants were fitted to this device, and where they were not."""

_SPREAD_DYNAMIC, _SPREAD_UNKNOWN = 0.5, 1.2
_SPREAD_KIND = {
    "depthwise": 0.5,
    "gemm": 0.25,
    "pool": 0.25,
    "elementwise": 0.2,
    # Sorting and suppression go step by step, of which bytes tell little.
    **dict.fromkeys(MODELLED, _SPREAD_UNKNOWN),
}


_LAYERS = ("", "conv1", "conv2", "conv3", "projection", "linear", "attention", "sampling", "regions", WINOGRAD)
_TRIED = ("tried_all", "tried_half", "tried_quarter")
_NARROW_GROUP = 31
"""Channels of a group up to which another kernel runs the 3x3, of which the table has no figures."""


class _Unit(NamedTuple):
    """What multiplies matrices on a multiprocessor: its lanes, or its tensor cores."""

    rate: float
    """Multiply-accumulates per second that software reaches."""
    ramp: int
    step: int
    """The depth of a sum is filled up to a multiple of this."""
    winograd: bool


class _Phase(NamedTuple):
    """One launch. A matrix product has ``products`` times (rows x depth) x (depth x columns); others have none."""

    kernel: int
    rows: float = 0.0
    columns: float = 0.0
    depth: float = 0.0
    products: float = 1.0
    taps: float = 1.0
    """Products that share a loaded input: the taps of a convolution find it in the first-level cache."""
    gain: float = 1.0
    moved: float = 0.0
    """Bytes of activations, read and written."""
    weights: float = 0.0
    depthwise: float = 0.0
    slowest: float = 1.0
    """Cost of the most expensive tile in units of the mean one."""
    groups: float = 0.0
    """Groups beyond the first of a grouped convolution."""
    share: float = 1.0
    """Probability that there is any work."""
    layer: float = 0.0
    """Of our own kernels, as a place in :data:`_LAYERS`; 0: none of these."""
    tried_all: float = 0.0
    tried_half: float = 0.0
    tried_quarter: float = 0.0
    """Rows that our own kernels choose their tile for; zeros: as many as there are."""
    early: float = 0.0
    """1: it may begin early, because the one before is of the same operator."""
    opens: float = 0.0
    """1: its blocks make their lists themselves."""
    continues: float = 0.0
    """1: no gap, begin or end is its own."""


class LaunchTime(NamedTuple):
    """Where the time of one launch goes, in milliseconds.

    Attributes:
        kernel: Which kernel of the run launches it.
        layer: Of our own kernels, as their table has it; empty for anything else.
        whole: The sum of all parts below.
        bound: What cannot be beaten: its gap, and the longer of its products at the peak rate and of its bytes at the
            memory's. Of a runtime's own kernels their whole time, which no work on ours shortens.
        products: At the peak rate.
        padding: Rows, columns and inputs that fill up tiles, at the peak rate.
        loop: What the main loop takes beyond the peak rate.
        tails: What the last blocks take longer because few of them share a multiprocessor.
        ends: Begin and end of blocks.
        gaps: Between launches, those of further tiles included.
        rest: What is no product of ours: copies, lists, transforms, waiting for bytes, and a runtime's own kernels.
    """

    kernel: int
    layer: str
    whole: float
    bound: float
    products: float = 0.0
    padding: float = 0.0
    loop: float = 0.0
    tails: float = 0.0
    ends: float = 0.0
    gaps: float = 0.0
    rest: float = 0.0


_TIMES = ("products", "padding", "loop", "tails", "ends", "gaps")


class AnalyticalModel:
    """Prices kernels on a GPU from its data sheet.

    Args:
        device: The device.
        precision: Of activations and weights.
        runtime: Which software runs the kernels; None takes the device's own.
        groups_in_turn: The runtime is one that runs the groups of a convolution one by one, as that of some published
            figures did.
        end: Of the modelled figures of our own kernels, from 0 (optimistic) to 1 (pessimistic).
        graph: Engines of TensorRT run as a CUDA graph, as they do where nobody switches it off.

    Raises:
        UsageError: The device has no data sheet, no hardware for the precision, or no source states its rate.
    """

    def __init__(
        self, device: Device, precision: str = "fp32", runtime: str | None = None, *, groups_in_turn: bool = False,
        end: float = 0.5, graph: bool = True,
    ) -> None:  # fmt: skip
        hardware, constants = device.hardware, device.model
        if device.is_local:
            raise UsageError(f"Nothing is known of {device.name} before 'dyndeploy calibrate-device' has measured it.")
        if precision == "int8" and hardware.int8 is False:
            raise UsageError(f"{device.title} has no INT8 arithmetic: predict fp16 or fp32.")
        int8 = hardware.int8_tensor_tops or hardware.int8_tops
        if precision == "int8" and int8 is None:
            raise UsageError(
                f"No source states how fast {device.title} computes in INT8, and none is guessed: predict fp16 or fp32."
            )
        assert hardware.sms and hardware.fp32_lanes_per_sm and hardware.fp32_tflops and hardware.dram_gb_per_s
        self.name = device.name
        self.precision = precision
        self.runtime = runtime or device.runtime
        fused_by(self.runtime)  # Refuses what it does not know.
        self.overhead_ms = 0.0
        self.correlation = 0.8
        fitted = self.runtime == constants.runtime and bool(constants.fitted)
        mode = f" in power mode {hardware.power_mode}" if hardware.power_mode else ""
        # The files' sources begin with the constants' names, which are told already.
        fitted_to = constants.source.removeprefix(f"fitted ({', '.join(constants.fitted)}): ")
        self.basis = (
            f"data sheet{mode}, {' and '.join(constants.fitted)} fitted to {fitted_to}"
            if fitted
            else f"data sheet{mode} alone, nothing fitted to {self.runtime} on this device"
        )
        compute = constants.compute_efficiency if self.runtime == constants.runtime else None
        memory = constants.memory_efficiency if self.runtime == constants.runtime else None
        self._memory_peak = hardware.dram_gb_per_s * 1e9
        self._bandwidth = hardware.dram_gb_per_s * 1e9 * (memory or MEMORY_EFFICIENCY)
        engine = self.runtime == "tensorrt"
        self._launch = (constants.launch_us or (_GRAPH_US if engine and graph else _LAUNCH_US)) * 1e-6
        capability = float(hardware.compute_capability or 0)
        overlaps = engine and capability >= _EARLY_FROM and constants.launch_us is None
        self._early = _EARLY_US * 1e-6 if overlaps else 0.0
        self._joins = capability >= _JOINS_FROM and precision == "fp16"
        self._dispatch = _DISPATCH_US.get(self.runtime, 0.0) * 1e-6
        self._group_launch = constants.group_launch_us * 1e-6
        self._in_turn = groups_in_turn
        self._sms = hardware.sms
        self._units = self._units_of(hardware, precision, compute)
        # The first lanes: of what has no matrix product.
        self._lanes = next(unit for unit in self._units if unit.ramp == _RAMP_LANES).rate
        self._element = ELEMENT_BYTES[precision]
        self._l2 = (hardware.l2_mb or 0.0) * 2**20
        clock = hardware.fp32_tflops * 5e11 / self._sms / hardware.fp32_lanes_per_sm
        self._l2_bandwidth = (
            hardware.l2_gb_per_s * 1e9
            if hardware.l2_gb_per_s
            else max(_L2_BYTES_PER_CYCLE * clock * self._sms, 2 * hardware.dram_gb_per_s * 1e9)
        )
        self._spread = _SPREAD_FITTED if fitted else _SPREAD_ASSUMED
        # A rate that no source states may be several times the one that stands in for it.
        modern = capability >= 7.0
        self._faster = 4.0 if precision == "fp16" and modern and hardware.fp16_tensor_tflops is None else 1.0
        self._busiest = ExpectedBusiestTile()
        self._clock = 1e6 * hardware.boost_mhz if hardware.boost_mhz else clock
        self._own = own_kernels(hardware.compute_capability, precision, end=end)
        # A network in INT8 keeps some kernels in floats.
        self._floats = (
            AnalyticalModel(
                device,
                floats_beside_integers(self.runtime),
                runtime,
                groups_in_turn=groups_in_turn,
                end=end,
                graph=graph,
            )
            if precision == "int8"
            else None
        )

    def gaps(self, kernels: Sequence[Kernel]) -> tuple[int, float]:
        """How many launches kernels are, and the milliseconds of the gaps between these.

        Of halves on boards, where the device chooses between tiles, only the launch that has work is counted.
        """
        phases = [phase for index, kernel in enumerate(kernels) for phase in self._phases(index, kernel)]
        launches = [phase for phase in phases if not phase.continues]
        return len(launches), 1e3 * sum(self._launch - phase.early * self._early for phase in launches)

    def _units_of(self, hardware: Hardware, precision: str, fitted: float | None) -> list[_Unit]:
        """What may compute a matrix product in the precision; a runtime times its kernels and takes the fastest."""
        on_lanes, on_tensor_cores = fitted or LANES_EFFICIENCY, fitted or TENSOR_EFFICIENCY[self.runtime]
        ramp = RAMP_TENSOR[self.runtime]

        def lanes(tera: float, *, winograd: bool = True) -> _Unit:
            return _Unit(tera * 5e11 / self._sms * on_lanes, _RAMP_LANES, 8, winograd)

        def tensor_cores(tera: float) -> _Unit:
            return _Unit(tera * 5e11 / self._sms * on_tensor_cores, ramp, 16, False)

        single = hardware.fp32_tflops or 0.0
        if precision == "fp32":
            return [lanes(single)]
        units = [lanes(max((hardware.fp16_tflops or single) * _HALF_LANES, single))]
        if precision == "int8" and hardware.int8_tops:
            units.append(lanes(hardware.int8_tops, winograd=False))
        tensor = hardware.int8_tensor_tops if precision == "int8" else hardware.fp16_tensor_tflops
        return units if tensor is None else [*units, tensor_cores(tensor)]

    def price(self, kernels: Sequence[Kernel], resident: Array | None = None) -> tuple[Array, Array, Array]:
        """See :class:`DeviceModel`."""
        if resident is None:
            resident = np.full(len(kernels), sum(kernel.weight_bytes for kernel in kernels), np.float64)
        kept = [] if self._floats is None else [i for i, kernel in enumerate(kernels) if kernel.precision != "int8"]
        if self._floats is None or not kept:
            return self._price(kernels, resident)
        others = sorted(set(range(len(kernels))) - set(kept))
        ms, low, high = (np.zeros(len(kernels)) for _ in range(3))
        for model, members in ((self._floats, kept), (self, others)):
            priced = model._price([kernels[index] for index in members], resident[members])
            for values, found in zip((ms, low, high), priced, strict=True):
                values[members] = found
        return ms, low, high

    def _price(self, kernels: Sequence[Kernel], resident: Array) -> tuple[Array, Array, Array]:
        phases: list[_Phase] = []
        for index, kernel in enumerate(kernels):
            phases.extend(self._phases(index, kernel))
        if not phases:
            nothing = np.zeros(len(kernels))
            return nothing, nothing, nothing
        table = np.array(phases, np.float64)
        column = {name: table[:, index] for index, name in enumerate(_Phase._fields)}
        owner = column["kernel"].astype(np.int64)
        seconds, arithmetic = self._seconds(column, resident[owner])
        ms: Array = np.bincount(owner, seconds, len(kernels)).astype(np.float64) * 1e3
        share = np.bincount(owner, np.minimum(arithmetic, seconds), len(kernels)) * 1e3 / np.maximum(ms, 1e-12)
        spread = np.array([self._spread_of(kernel) for kernel in kernels])
        low: Array = ms * np.exp(-spread) * (1.0 - share * (1.0 - 1.0 / self._faster))
        high: Array = ms * np.exp(spread)
        # Another version of the runtime may run the groups of a convolution one by one.
        in_turn = np.bincount(owner, column["groups"] * self._group_launch, len(kernels)) * 1e3
        if self._in_turn:
            ms = ms + in_turn
        high = np.maximum(high, ms + (0.0 if self._in_turn else in_turn) * np.exp(spread))
        return ms, low, high

    def _spread_of(self, kernel: Kernel) -> float:
        if kernel.kind.startswith(UNKNOWN):
            return _SPREAD_UNKNOWN
        if kernel.call is not None:
            return max(self._spread, _SPREAD_DYNAMIC if kernel.launches is not None else _SPREAD_UNKNOWN)
        return max(self._spread, _SPREAD_KIND.get(kernel.kind, 0.0))

    def parts(self, kernels: Sequence[Kernel]) -> Sequence[LaunchTime]:
        """Where the time of every launch of one run goes, and what it cannot beat.

        Args:
            kernels: Of one run of a network.
        """
        phases = [phase for index, kernel in enumerate(kernels) for phase in self._phases(index, kernel)]
        table = np.array(phases, np.float64).reshape(len(phases), len(_Phase._fields))
        p = {name: table[:, index] for index, name in enumerate(_Phase._fields)}
        resident = np.full(len(phases), sum(kernel.weight_bytes for kernel in kernels), np.float64)
        seconds, _ = self._seconds(p, resident)
        cycles = np.zeros((len(phases), 6))
        self._own_products(p, *self._products(p), cycles)
        gap = (self._launch - p["early"] * self._early) * (1.0 - p["continues"])
        arithmetic = cycles / self._clock
        outside, cold = self._uncached(p["moved"], resident)
        bytes_ = (p["moved"] * outside + p["weights"] * cold) / self._memory_peak
        least = gap + np.maximum(arithmetic[:, 0], bytes_)
        found = []
        for index, phase in enumerate(phases):
            own = kernels[int(phase.kernel)].launches is not None
            share, (products, padding, loop, tails, ends, tiles) = phase.share, arithmetic[index]
            whole = seconds[index]
            spent = np.array([products, padding, loop, tails, ends, gap[index] + tiles]) * share
            times = {name: 1e3 * float(value) for name, value in zip(_TIMES, spent, strict=True)}
            rest = 1e3 * float(whole - spent.sum())
            found.append(
                LaunchTime(
                    int(phase.kernel), _LAYERS[int(phase.layer)], 1e3 * float(whole),
                    1e3 * float(least[index] * share if own else whole), **times, rest=rest,
                )
            )  # fmt: skip
        return found

    # ------------------------------------------------------------ time of phases

    def _seconds(self, p: dict[str, Array], resident: Array) -> tuple[Array, Array]:
        """Seconds of every phase, and how many of them its arithmetic alone takes."""
        busy, tile_bytes = self._products(p)
        dense = p["depthwise"] == 0
        busy = np.where(
            dense,
            busy,
            p["rows"] * p["columns"] * p["depth"] * p["products"]
            / (self._lanes * self._sms * _DEPTHWISE_COMPUTE),
        )  # fmt: skip
        busy, tile_bytes = self._own_products(p, busy, tile_bytes)
        moved, weights = p["moved"], p["weights"]
        outside, cold = self._uncached(moved, resident)
        bandwidth = self._bandwidth * np.where(dense, 1.0, _DEPTHWISE_MEMORY)
        memory = (moved * outside + weights * cold) / bandwidth
        cache = np.maximum(tile_bytes, moved + weights) / self._l2_bandwidth
        gap = (self._launch - p["early"] * self._early) * (1.0 - p["continues"])
        launch = gap * np.where(moved + weights + busy > 0, 1.0, 0.0)
        seconds = launch + np.maximum(np.maximum(busy, memory), cache)
        return np.maximum(seconds, self._dispatch) * p["share"], busy * p["share"]

    def _uncached(self, moved: Array, resident: Array) -> tuple[Array, Array]:
        """Shares of the bytes of activations, and of weights, that come from memory.

        What a kernel leaves in the cache the next one finds there, unless the kernel itself pushes it out.
        """
        cache = max(self._l2, 1.0)
        outside: Array = np.clip(moved / cache - 1.0, 0.0, 1.0)
        cold: Array = np.clip(2.0 * resident / cache - 1.0, 0.0, 1.0)
        return outside, cold

    def _products(self, p: dict[str, Array]) -> tuple[Array, Array]:
        """Seconds of arithmetic and bytes through the second-level cache, with the best unit and tile for each."""
        rows, columns, count = p["rows"], p["columns"], p["products"]
        best = np.full(rows.shape, np.inf)
        traffic = np.zeros(rows.shape)
        for unit, (height, width, reached), split in itertools.product(self._units, _TILES, _SPLITS):
            depth = np.ceil(p["depth"] / unit.step) * unit.step
            blocks = np.ceil(rows / height) * np.ceil(columns / width) * count * split
            turns = np.ceil(blocks / self._sms)
            per_tile = height * width * (depth / split + unit.ramp) / (unit.rate * reached)
            # The slowest tile ends the last turn.
            seconds = (turns + p["slowest"] - 1.0) * per_tile / (p["gain"] if unit.winograd else 1.0)
            summed = (split > 1) * 2.0 * split * rows * columns * count * 4.0
            loaded = blocks * depth / split * (height / p["taps"] + width) * self._element + summed
            total = np.maximum(seconds, loaded / self._l2_bandwidth)
            better = total < best
            best = np.where(better, total, best)
            traffic = np.where(better, loaded, traffic)
        some = rows * columns * count > 0
        arithmetic = np.where(some, best, 0.0)
        return arithmetic, np.where(some, traffic, 0.0)

    def _own_products(
        self, p: dict[str, Array], busy: Array, tile_bytes: Array, parts: Array | None = None
    ) -> tuple[Array, Array]:
        """The same with the launches of our own kernels at their own figures.

        ``parts`` (launches, 6) gets where their cycles go, as :class:`Cycles` has it, and gaps of further tiles.
        """
        for place, layer in enumerate(_LAYERS):
            if self._own is None or not self._own.serves(layer):
                continue
            mine = (p["layer"] == place) & ((p["products"] <= 1) | (p["columns"] > _NARROW_GROUP))
            mine &= p["rows"] * p["columns"] * p["depth"] > 0
            if not mine.any():
                continue
            rows, columns, depth, products, taps = (
                p[name][mine] for name in ("rows", "columns", "depth", "products", "taps")
            )
            tried = np.stack([p[name][mine] for name in _TRIED], 1)
            # The slowest image of a batch has tiles of its own, whose sums are longer.
            slowest = p["slowest"][mine]
            priced = self._own.price(
                layer,
                rows,
                columns,
                depth * slowest,
                products,
                taps,
                self._sms,
                tried,
                slowest > 1,
                p["opens"][mine] > 0,
                p["continues"][mine],
            )
            busy, tile_bytes = busy.copy(), tile_bytes.copy()
            busy[mine] = priced.cycles.all / self._clock + (priced.kernels - 1.0) * self._launch
            tile_bytes[mine] = priced.loaded / slowest * self._element
            if parts is not None:
                parts[mine] = np.stack([*priced.cycles, (priced.kernels - 1.0) * self._launch * self._clock], 1)
        return busy, tile_bytes

    # ------------------------------------------------------------ phases of kernels

    def _phases(self, index: int, kernel: Kernel) -> list[_Phase]:
        f = kernel.features
        if kernel.kind == REORDER:
            return []  # No GPU keeps channels in these blocks.
        moved, weights = kernel.read_bytes + kernel.written_bytes, kernel.weight_bytes
        if kernel.kind in ("conv", "depthwise"):
            groups, taps = f["groups"], f["k"] * f["kw"]
            winograd = taps == 9 and f["k"] == 3 and f["stride"] == f["dilation"] == groups == 1
            return [
                _Phase(
                    index,
                    f["batch"] * f["oh"] * f["ow"],
                    f["cout"] / groups,
                    f["cin"] / groups * taps,
                    groups,
                    taps,
                    WINOGRAD_GAIN[self.runtime] if winograd and f["cin"] >= 16 else 1.0,
                    moved,
                    weights,
                    float(kernel.kind == "depthwise"),
                    1.0,
                    groups - 1.0,
                )
            ]
        if kernel.kind == "gemm":
            return [_Phase(index, f["rows"], f["cout"], f["cin"], f["count"], moved=moved, weights=weights)]
        launches = kernel.launches
        if launches is not None:
            slowest = self._slowest(kernel) if any(launch.uneven for launch in launches) else 1.0
            return [
                _Phase(
                    index, launch.rows, launch.columns, launch.depth, launch.products, launch.taps, moved=launch.moved,
                    weights=launch.weights, slowest=slowest if launch.uneven else 1.0, share=launch.share,
                    layer=float(_LAYERS.index(launch.layer)), early=float(place > 0), opens=float(opens),
                    continues=float(launch.continues),
                    **dict(zip(_TRIED, launch.tried, strict=False)),
                )
                for place, (launch, opens) in enumerate(self._launches_here(launches))
            ]  # fmt: skip
        if kernel.macs:
            return [_Phase(index, kernel.macs / 64, 8.0, 8.0, moved=moved, weights=weights)]
        return [_Phase(index, moved=moved, weights=weights)]

    def _launches_here(self, launches: Sequence[Launch]) -> Iterable[tuple[Launch, bool]]:
        """What the kernels launch on this device, and whether it makes the lists of the launch before, too.

        By Winograd's algorithm where they have figures of it.
        """
        joined = 0.0
        for launch in launches:
            if launch.joins and self._joins:
                joined = launch.moved
            elif launch.patches > 0 and self._own is not None and self._own.serves(WINOGRAD):
                yield from ((each, False) for each in winograd_launches(launch, self._element))
            else:
                yield launch._replace(moved=launch.moved + joined), joined > 0
                joined = 0.0

    def _slowest(self, kernel: Kernel) -> float:
        """The batch's most expensive sample over its mean one, where tiles of different samples differ (channels)."""
        f = kernel.features
        given = f.get("channel_rate_slowest")
        rate, batch = f["channel_rate"], int(f["batch"])
        if batch < 2 or not 0.0 < rate < 1.0:
            return 1.0
        if given is not None:
            return max(1.0, given / rate)
        groups = int(f["channel_groups"])
        return max(1.0, self._busiest(batch, groups, rate, 1) / rate)
