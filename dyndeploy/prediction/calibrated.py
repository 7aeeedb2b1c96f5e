"""A device model fitted to measurements: a few constants per class of kernels, and what they leave, by trees.

``time = (constants . terms) * exp(trees(features))``. The terms are what a kernel needs (multiply-accumulates by part,
bytes, weights that have to come from memory), so the constants are rates that the device achieves. The trees know what
the terms do not: tile sizes, channel counts that fit no vector, maps of few pixels.
"""

from __future__ import annotations

import fnmatch
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy import files
from dyndeploy.errors import InputError, UsageError
from dyndeploy.prediction.kernels import REORDER, Kernel
from dyndeploy.prediction.rates import Rates
from dyndeploy.prediction.trees import Trees

_LOG = logging.getLogger("dyndeploy.prediction")

SCHEMA = 4
FORMAT = "dyndeploy-calibration"

CACHE_BYTES = 16 * 2**20
"""Weights of a network beyond which most of them are no longer in a processor's last cache when their turn comes. A
scale, not a device's cache size: the trees see the real number and correct for it."""

MAP_BYTES = 2**20
"""Activations of a kernel beyond which most of them leave the caches of a core: a scale, like :data:`CACHE_BYTES`."""

_FLOAT = 4.0
_SLOWNESS = {2.0: 1.0, 3.0: 2.0, 4.0: 15.0, 5.0: 100.0}
"""Of pointwise operators by their cost: how their time per element goes, about; the constant is fitted."""

Array = npt.NDArray[np.float64]


def class_of(kernel: Kernel) -> str:
    """Class of kernels that share constants: a kind, or a part of one that runs other code."""
    f = kernel.features
    if kernel.call is not None and kernel.call.spec.skipped_kind is not None and _whole_rate(kernel) == 0.0:
        return kernel.call.spec.skipped_kind
    if kernel.kind == "pool":
        return "pool_global" if f.get("global") else "pool"
    if kernel.kind == "elementwise":
        return "elementwise_function" if f.get("cost", 1.0) > 2 else "elementwise"
    if kernel.kind == "depthwise" and f["axes"] == 1:
        return "depthwise_line"
    if kernel.kind != "conv":
        return kernel.kind
    if f["transposed"]:
        return "conv_transposed"
    if f["axes"] == 1:
        return "conv_line"
    if not f["blocked"]:
        return "conv_plain"
    if f["cin"] <= 4:
        return "conv_image"
    if f["groups"] > 1:
        return "conv_grouped"
    return "conv_pointwise" if f["k"] == 1 else "conv_spatial"


# ---------------------------------------------------------------- what a kernel is described by


_BLOCK = 16  # Channels that the runtime's convolutions compute at a time: the rest of the last block is for nothing.


def _padded(channels: float, step: int) -> float:
    return math.ceil(channels / step) * step


def _whole_rate(kernel: Kernel) -> float | None:
    """Rate of the decisions on a whole dynamic operator; None where it has none."""
    if kernel.call is None or kernel.rates is None:
        return None
    rates = [kernel.rates.of(kind) for kind in kernel.call.spec.gates.values() if kind.whole]
    return math.prod(rates) if rates else None


def _counted_terms(kernel: Kernel, cold: float) -> list[float] | None:
    """The terms that the operator's own kernels count; None where they count none."""
    library = None if kernel.call is None else kernel.call.spec.kernels.get("cpu")
    if library is None or library.terms is None:
        return None
    counted = library.terms(kernel.features)
    return [1.0, *(value * cold if name.endswith("_cold") else value for name, value in counted.items())]


_STANDARD_TERMS = (
    "call", "macs", "block_macs", "edge_macs", "read", "written", "weights", "weights_cold", "operators", "window",
    "far", "slow",
)  # fmt: skip


def term_names(kernel: Kernel) -> tuple[str, ...]:
    """Names of the columns of :func:`terms`; those that end in ``macs`` are arithmetic."""
    library = None if kernel.call is None else kernel.call.spec.kernels.get("cpu")
    if library is None or library.terms is None:
        return _STANDARD_TERMS
    return ("call", *library.terms(kernel.features))


def _standard_terms(kernel: Kernel, cold: float) -> list[float]:
    f = kernel.features
    blocks = edge = 0.0
    if kernel.macs and "groups" in f:
        inputs, outputs = f["cin"] / f["groups"], f["cout"] / f["groups"]
        blocks = kernel.macs * _padded(outputs, _BLOCK) / outputs * _padded(inputs, _BLOCK) / inputs
        edge = kernel.macs * _edge(f)
    window = kernel.written_bytes * f.get("k", 0.0) ** 2 if kernel.kind == "pool" else 0.0
    if kernel.macs and not f.get("blocked", 1.0):
        # Every window is written out before it is multiplied, unless it is a single pixel.
        taps = f["k"] * f["kw"]
        window = kernel.macs / f["cout"] * f["groups"] * _FLOAT if taps > 1 or f["stride"] > 1 else 0.0
    # What does not fit the caches of a core on its way from one kernel to the next.
    moved = kernel.read_bytes + kernel.written_bytes
    far = moved * moved / (moved + MAP_BYTES)
    slow = kernel.written_bytes * _SLOWNESS.get(f.get("cost", 1.0), 0.0)
    return [
        1.0, kernel.macs, blocks, edge, kernel.read_bytes, kernel.written_bytes, kernel.weight_bytes,
        kernel.weight_bytes * cold, f.get("operators", 1.0) - 1.0, window, far, slow,
    ]  # fmt: skip


def _edge(f: Mapping[str, float]) -> float:
    """Share of a convolution's output pixels whose window leaves the map: they are computed with checks."""
    reach = f["k"] // 2 * 2 / f["stride"]
    inner = max(f["oh"] - reach, 0.0) * max(f["ow"] - reach, 0.0)
    return 1.0 - inner / (f["oh"] * f["ow"])


def terms(kernels: Sequence[Kernel], resident: Array) -> Array:
    """What the constants multiply, (kernels, terms): as many as the class has.

    Args:
        kernels: Of one class.
        resident: Bytes of weights that a run of each kernel's network touches, (kernels,).
    """
    cold = (resident / (resident + CACHE_BYTES)).tolist()
    return np.array(
        [_counted_terms(k, share) or _standard_terms(k, share) for k, share in zip(kernels, cold, strict=True)]
    )


_LOGS = (
    "batch", "h", "w", "oh", "ow", "cin", "cmid", "cout", "groups", "rows", "count", "mask_h", "mask_w",
    "channel_groups", "patch",
)  # fmt: skip
_PLAIN = (
    "k", "kw", "stride", "dilation", "rate", "rate_conv1", "channel_rate", "projection", "residual", "activation",
    "operators", "global", "blocked", "axes", "cost", "inputs", "broadcast", "inward", "linear", "run",
)  # fmt: skip
_DERIVED = (
    "macs", "dense_macs", "read", "written", "weights", "resident", "macs_per_byte", "macs_per_weight",
    "inputs_per_group", "outputs_per_group", "inputs_mod_16", "outputs_mod_16", "outputs_mod_32", "blocks_mod_4",
    "columns_mod_6", "edge", "rows1", "rows2", "rows1_tile", "rows2_tile", "hidden", "hidden_mod_32",
)  # fmt: skip
_OWN = len(_LOGS) + len(_PLAIN) + len(_DERIVED)
_TERMS = 20
_SHARES = tuple(f"share{index}" for index in range(_TERMS))
FEATURES = (*_LOGS, *_PLAIN, *_DERIVED, *_SHARES, "base")
"""Columns that the trees see; sizes as logarithms, so that a tree's cut is a ratio. The shares are those of the terms
in what the constants say: a kernel that waits for memory errs otherwise than one that computes."""


def _derived(kernel: Kernel, resident: float) -> list[float]:
    f, bytes_ = kernel.features, max(kernel.bytes, 1.0)
    groups = f.get("groups", 1.0)
    cin, cout = f.get("cin", 0.0), f.get("cout", 0.0)
    row = [
        math.log1p(kernel.macs), math.log1p(kernel.dense_macs), math.log1p(kernel.read_bytes),
        math.log1p(kernel.written_bytes), math.log1p(kernel.weight_bytes), math.log1p(resident),
        math.log1p(kernel.macs / bytes_), math.log1p(kernel.macs / max(kernel.weight_bytes, 1.0)),
        math.log1p(cin / groups), math.log1p(cout / groups), (cin / groups) % 16, (cout / groups) % 16, cout % 32,
        math.ceil(cout / _BLOCK) % 4, f.get("ow", 0.0) % 6, _edge(f) if "kw" in f else 0.0,
    ]  # fmt: skip
    rows1, rows2, hidden = (f.get(name, 0.0) for name in ("rows1", "rows2", "hidden"))
    tiles = ((-rows1) % 14 / max(rows1, 1.0), (-rows2) % 14 / max(rows2, 1.0))
    return [*row, math.log1p(rows1), math.log1p(rows2), *tiles, math.log1p(hidden), hidden % 32]


def described(kernels: Sequence[Kernel], resident: Array, constants: Array, floor_ms: float) -> tuple[Array, Array]:
    """What the constants say in milliseconds, (kernels,), and the rows for the trees, (kernels, len(FEATURES)).

    Args:
        kernels: Of one class.
        resident: Bytes of weights that a run of each kernel's network touches, (kernels,).
        constants: Milliseconds per unit of each term.
        floor_ms: No kernel is faster.
    """
    return shared_out(terms(kernels, resident), features(kernels, resident), constants, floor_ms)


def features(kernels: Sequence[Kernel], resident: Array) -> Array:
    """The columns of :data:`FEATURES` that no constants decide on, (kernels, columns)."""
    rows = [
        [
            *(math.log1p(kernel.features.get(name, 0.0)) for name in _LOGS),
            *(kernel.features.get(name, 0.0) for name in _PLAIN),
            *_derived(kernel, touched),
        ]
        for kernel, touched in zip(kernels, resident.tolist(), strict=True)
    ]
    return np.array(rows, np.float64).reshape(len(kernels), _OWN)


def shared_out(matrix: Array, own: Array, constants: Array, floor_ms: float) -> tuple[Array, Array]:
    """As :func:`described`, of the results of :func:`terms` and :func:`features`."""
    parts = matrix * constants
    base = np.maximum(parts.sum(1), floor_ms)
    rows = np.zeros((len(parts), len(FEATURES)))
    rows[:, :_OWN] = own
    rows[:, _OWN : _OWN + parts.shape[1]] = parts / base[:, None]
    rows[:, -1] = np.log(base)
    return base, rows


# ---------------------------------------------------------------- the model


@dataclass(frozen=True)
class ClassModel:
    """What was fitted to one class of kernels.

    Attributes:
        constants: Milliseconds per unit of each term, (terms,), none negative.
        floor_ms: No kernel of the class is faster.
        trees: Logarithm of measured time over what the constants say; None where too little was measured.
        low: Lowest value of each feature that was measured, (features,).
        high: Highest, (features,).
        interval: 5th and 95th percentile of ``log(measured / predicted)`` over kernels that were not fitted.
        samples: Measured kernels.
        mape: Mean absolute relative error over kernels that were not fitted.
        within_5: Their share within 5 %.
        within_10: Their share within 10 %.
    """

    constants: Array
    floor_ms: float
    trees: Trees | None
    low: Array
    high: Array
    interval: tuple[float, float]
    samples: int
    mape: float
    within_5: float
    within_10: float

    def price(self, kernels: Sequence[Kernel], resident: Array) -> tuple[Array, Array]:
        """Milliseconds of each kernel, and how far each lies outside what was measured (in e-foldings of sizes)."""
        base, rows = described(kernels, resident, self.constants, self.floor_ms)
        outside = np.maximum(self.low - rows, 0.0) + np.maximum(rows - self.high, 0.0)
        # Only sizes: a remainder or a flag that was not seen says nothing about extrapolation.
        far: Array = outside[:, _SIZES].max(1)
        return base if self.trees is None else base * np.exp(self.trees(rows)), far

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "samples": self.samples,
            "mape": round(self.mape, 5),
            "within_5": round(self.within_5, 4),
            "within_10": round(self.within_10, 4),
            "interval": [round(value, 5) for value in self.interval],
            "floor_ms": float(f"{self.floor_ms:.5g}"),
            "constants": [float(f"{value:.6g}") for value in self.constants],
            "low": [float(f"{value:.6g}") for value in self.low],
            "high": [float(f"{value:.6g}") for value in self.high],
            "trees": None if self.trees is None else self.trees.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClassModel:
        """Read what :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: A field is missing or malformed.
        """
        arrays = {name: np.asarray(value[name], np.float64) for name in ("constants", "low", "high")}
        if any(array.ndim != 1 or not np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("expected lists of finite numbers")
        if (arrays["constants"] < 0).any() or not {len(arrays["low"]), len(arrays["high"])} == {len(FEATURES)}:
            raise ValueError("a constant is negative, or the ranges are not those of this release's features")
        numbers = [value[name] for name in ("floor_ms", "mape", "within_5", "within_10", *())]
        low, high = value["interval"]
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in (*numbers, low, high)) or numbers[0] <= 0:
            raise ValueError("a number is missing or not finite")
        if not isinstance(value["samples"], int) or low > high:
            raise ValueError("samples must be a whole number, and the interval's ends in order")
        trees = None if value["trees"] is None else Trees.from_json(value["trees"], len(FEATURES))
        return cls(
            arrays["constants"], float(numbers[0]), trees, arrays["low"], arrays["high"], (float(low), float(high)),
            value["samples"], *(float(x) for x in numbers[1:]),
        )  # fmt: skip


_SIZES = np.array(
    [index for index, name in enumerate(FEATURES) if name in (*_LOGS, "macs", "read", "written", "weights")]
)

_UNKNOWN_SPREAD = 0.7
"""Least half width of an interval (logarithm) for kernels of classes that were not measured: a factor of two."""

_OUTSIDE = 0.35
"""By how much an interval's sides (logarithms) grow for each e-folding of a size beyond what was measured: the terms
are proportional to what a kernel does, so that they also hold there, but less well."""

WIDEST = math.log(3.0)
"""Largest side of a kernel's interval (logarithm): the few outliers of a class with few samples say no more."""

GENERAL = "general"
"""Class that prices kernels of classes that were not measured, by multiply-accumulates and bytes alone."""


@dataclass(frozen=True)
class Installation:
    """What times depend on beside the graph: a machine and what runs there.

    Attributes:
        machine: Facts from :func:`~dyndeploy.runtimes.machine.machine_facts`.
        runtime_version: Of ONNX Runtime; None where there is none.
        native: ``sha256`` and ``instruction_set`` of the operator library (None: there is none); None where a profile
            does not tell.
    """

    machine: Mapping[str, Any]
    runtime_version: str | None
    native: Mapping[str, Any] | None

    @classmethod
    def here(cls) -> Installation:
        """What a session opened now would run on and with."""
        from dyndeploy.runtimes.machine import machine_facts
        from dyndeploy.runtimes.native import find_cpu_library

        machine, library = machine_facts(), find_cpu_library()
        sha256, used = (None, None) if library is None else (library.sha256, library.instruction_set())
        return cls(machine, machine["versions"]["onnxruntime"], {"sha256": sha256, "instruction_set": used})


@dataclass(frozen=True)
class Calibration:
    """What ``dyndeploy calibrate-device`` found out about a device.

    Attributes:
        device: Its name.
        threads: Threads that computed.
        machine: What it was measured on (:func:`~dyndeploy.runtimes.machine.machine_facts`).
        runtime: Runtime with version, and the operator library with checksum and instruction set.
        measured: Date, seconds, graphs, samples, repeatability, what was left out.
        overhead_ms: Of a run, beside its kernels.
        correlation: How much of a kernel's error all kernels of a graph have in common, in [0, 1].
        classes: Fitted models by class.
    """

    device: str
    threads: int
    machine: Mapping[str, Any]
    runtime: Mapping[str, Any]
    measured: Mapping[str, Any]
    overhead_ms: float
    correlation: float
    classes: Mapping[str, ClassModel]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` reads them back."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "device": self.device,
            "threads": self.threads,
            "machine": dict(self.machine),
            "runtime": dict(self.runtime),
            "measured": dict(self.measured),
            "overhead_ms": float(f"{self.overhead_ms:.5g}"),
            "correlation": round(self.correlation, 4),
            "features": list(FEATURES),
            "classes": {name: model.to_json() for name, model in self.classes.items()},
        }

    @classmethod
    def from_json(cls, value: Any, source: str = "The calibration") -> Calibration:
        """Read what :meth:`to_json` wrote.

        Args:
            value: The JSON value.
            source: What to call it in messages.

        Raises:
            InputError: It is no calibration, of another schema version, or damaged.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise InputError(f"{source} is not a calibration: 'dyndeploy calibrate-device' writes one.")
        if value.get("schema") != SCHEMA or value.get("features") != list(FEATURES):
            raise InputError(
                f"{source} was written by another release (schema {value.get('schema')!r:.20}, this one reads "
                f"{SCHEMA}) or with other features. Calibrate again."
            )
        try:
            classes = {str(name): ClassModel.from_json(item) for name, item in value["classes"].items()}
            overhead, threads = float(value["overhead_ms"]), value["threads"]
            common = float(value["correlation"])
            if GENERAL not in classes or not math.isfinite(overhead) or overhead < 0 or not isinstance(threads, int):
                raise ValueError("the general class, the overhead or the threads are missing")
            if not 0.0 <= common <= 1.0:
                raise ValueError("the correlation must lie between 0 and 1")
            described = {name: dict(value[name]) for name in ("machine", "runtime", "measured")}
            return cls(
                str(value["device"]), threads, **described, overhead_ms=overhead, correlation=common, classes=classes
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source} is damaged: {error!r:.200}. Calibrate again.") from error

    def foreign(self, other: Installation) -> list[str]:
        """How another machine or installation differs from the calibrated one; empty where nothing does."""
        found = []
        for key, what in (("cpu", "processor"), ("architecture", "architecture"), ("usable_cores", "number of cores")):
            if self.machine.get(key) != other.machine.get(key):
                found.append(f"{what}: calibrated on {self.machine.get(key)}, not {other.machine.get(key)}")
        # A hypervisor may hide instructions of the same processor, and the runtime's own kernels go by them.
        had, has = (set(machine.get("isa") or ()) for machine in (self.machine, other.machine))
        if had and has and had != has:
            changes = [f"without {', '.join(sorted(had - has))}"] * bool(had - has)
            changes += [f"with {', '.join(sorted(has - had))}"] * bool(has - had)
            found.append(f"vector instructions: calibrated on a processor that now is {' and '.join(changes)}")
        if self.runtime.get("version") != other.runtime_version:
            found.append(f"ONNX Runtime: calibrated with {self.runtime.get('version')}, not {other.runtime_version}")
        if other.native is None:
            return found
        if self.runtime.get("native_sha256") != other.native.get("sha256"):
            found.append("the operator library is another one than was calibrated")
        used, uses = self.runtime.get("instruction_set"), other.native.get("instruction_set")
        if used is not None and uses is not None and used != uses:
            found.append(f"instruction set of the operator library: calibrated with {used}, not {uses}")
        return found

    def warnings(self, other: Installation | None = None) -> list[str]:
        """Sentences for whoever uses the calibration for ``other`` (None: here); empty where it fits."""
        return [f"the calibration may not fit, {item}." for item in self.foreign(other or Installation.here())]


def calibrations_folder() -> Path | None:
    """Where calibrations are kept, which need not exist; None for a user without a home."""
    folder = files.user_folder("XDG_CONFIG_HOME", ".config")
    return None if folder is None else folder / "calibrations"


def calibration_file(device: str, threads: int = 1) -> Path:
    """Where the calibration of a device is kept; raises ``UsageError`` for a user without a home."""
    folder = calibrations_folder()
    if folder is None:
        raise UsageError(
            "There is no home folder to keep calibrations in: set HOME or XDG_CONFIG_HOME, or name a file."
        )
    return folder / f"{device}-{threads}t.json"


def find_calibrations(device: str, threads: int | None = None) -> list[Path]:
    """The calibrations of a device, for one number of threads or for any; the log names those that cannot be read."""
    folder = calibrations_folder()
    if folder is None:
        return []
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        _LOG.warning("Note: the calibrations in %s are left out: %s.", folder, error.strerror)
        return []
    paths = [folder / name for name in fnmatch.filter(names, f"{device}-{threads or '*'}t.json")]
    faults = {path: files.unreadable(path) for path in paths}
    for path, fault in faults.items():
        if fault is not None:
            _LOG.warning("Note: the calibration %s is left out: %s.", path, fault)
    return [path for path in paths if faults[path] is None]


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration; raises ``InputError`` if it is missing, foreign or damaged."""
    return Calibration.from_json(files.read_json(path), str(path))


class CalibratedModel:
    """Prices kernels by a calibration (a :class:`~dyndeploy.prediction.device_model.DeviceModel`).

    Attributes:
        calibration: What was fitted.
        name: Of the device.
        basis: What the model rests on, in a sentence.
        overhead_ms: Of a run, beside its kernels.
        correlation: How much of a kernel's error is common to all kernels.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.name = calibration.device
        self.overhead_ms = calibration.overhead_ms
        self.correlation = calibration.correlation
        date = str(calibration.machine.get("date"))[:10]
        self.basis = (
            f"calibrated on {calibration.machine.get('cpu')} with {calibration.threads} thread(s) on {date}: "
            f"{calibration.measured.get('samples')} measured kernels"
        )

    def price(self, kernels: Sequence[Kernel], resident: Array | None = None) -> tuple[Array, Array, Array]:
        """Milliseconds of kernels: expected, and a 90 % interval (low, high), each (kernels,).

        Args:
            kernels: Of one run of a network, or of many.
            resident: Bytes of weights that a run of each kernel's network touches, (kernels,): they decide whether
                weights stay in a cache. None: all kernels are of one run.
        """
        if resident is None:
            resident = np.full(len(kernels), sum(kernel.weight_bytes for kernel in kernels))
        # What is decided on as a whole runs or does not: what it takes at a rate between is the mean of both.
        whole = [_whole_rate(kernel) for kernel in kernels]
        between = [index for index, rate in enumerate(whole) if rate is not None and 0.0 < rate < 1.0]
        rates = np.array([whole[index] for index in between], np.float64)
        both = list(kernels) + [_decided(kernels[index], 0.0) for index in between]
        for index in between:
            both[index] = _decided(kernels[index], 1.0)
        priced = self._price(both, np.concatenate([resident, resident[between]]))
        for values in priced:
            values[between] = rates * values[between] + (1 - rates) * values[len(kernels) :]
        ms, low, high = (values[: len(kernels)] for values in priced)
        return ms, low, high

    def _price(self, kernels: Sequence[Kernel], resident: Array) -> tuple[Array, Array, Array]:
        # The blocks of a stage are alike: each kind of kernel is priced once.
        kinds: dict[tuple[float | str, ...], int] = {}
        owner = np.empty(len(kernels), np.intp)
        first: list[int] = []
        for index, (k, touched) in enumerate(zip(kernels, resident.tolist(), strict=True)):
            sizes = (k.kind, touched, k.macs, k.read_bytes, k.written_bytes, k.weight_bytes)
            owner[index] = number = kinds.setdefault((*sizes, *k.features.values()), len(kinds))
            if number == len(first):
                first.append(index)
        ms, low, high = self._price_each([kernels[index] for index in first], resident[first])
        return ms[owner], low[owner], high[owner]

    def _knows(self, name: str, kernel: Kernel) -> bool:
        """Whether the class was measured, on kernels that are described by as many terms."""
        model = self.calibration.classes.get(name)
        return model is not None and terms([kernel], np.zeros(1)).shape[1] == len(model.constants)

    def _price_each(self, kernels: Sequence[Kernel], resident: Array) -> tuple[Array, Array, Array]:
        ms, low, high = (np.zeros(len(kernels)) for _ in range(3))
        groups: dict[str, list[int]] = {}
        for index, kernel in enumerate(kernels):
            groups.setdefault(class_of(kernel), []).append(index)
        for name, members in groups.items():
            chosen = [kernels[index] for index in members]
            known = self._knows(name, chosen[0])
            if name == REORDER and not known:
                continue  # Where the calibration met none, the runtime keeps all maps plain.
            model = self.calibration.classes[name if known else GENERAL]
            if not known:
                chosen = [general(kernel) for kernel in chosen]
            expected, far = model.price(chosen, resident[members])
            ms[members] = expected
            least = 0.0 if known else _UNKNOWN_SPREAD
            # The expected time lies inside, also where a class is mostly predicted too high or too low.
            low[members] = expected * np.exp(-np.minimum(max(-model.interval[0], least) + _OUTSIDE * far, WIDEST))
            high[members] = expected * np.exp(np.minimum(max(model.interval[1], least) + _OUTSIDE * far, WIDEST))
        return ms, low, high


def _decided(kernel: Kernel, rate: float) -> Kernel:
    """A dynamic operator that runs as a whole, or does not."""
    assert kernel.call is not None and kernel.rates is not None
    whole = {kind.name: rate for kind in kernel.call.spec.gates.values() if kind.whole}
    rates = Rates(**{**dict(kernel.rates.named), **whole}, default=kernel.rates.default)
    return kernel.call.kernel(kernel.name, kernel.block, rates)


def general(kernel: Kernel) -> Kernel:
    """A kernel reduced to its multiply-accumulates and bytes."""
    return Kernel(
        kernel.name, kernel.block, GENERAL, kernel.macs, kernel.dense_macs, kernel.read_bytes, kernel.written_bytes,
        kernel.weight_bytes, {},
    )  # fmt: skip
