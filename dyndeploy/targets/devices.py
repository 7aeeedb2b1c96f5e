"""Devices as data: one TOML file each in ``devices/``, read into typed records.

A file has up to five tables. ``[hardware]`` holds what the silicon is, in its fastest power mode;
``[power_modes.NAME]`` what another mode changes; ``[memory]`` what of its memory a network can have; ``[model]`` what
the predictor assumes of the software on it, with the constants that were fitted to published latencies; ``[laudnet]``
the ten parameters of the LAUDNet reference predictor, where it knows the device. They differ (the reference gives the
V100 700 GB/s, the board has 898), and all carry their source. What no source states is absent, never guessed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dyndeploy import files
from dyndeploy.errors import InputError, UsageError, unknown_name

_FOLDER = Path(__file__).parent / "devices"
_MODE = "@"  # Between the name of a device and that of a power mode.


@dataclass(frozen=True)
class PredictorParameters:
    """The ten numbers by which the LAUDNet predictor knows a device.

    Attributes:
        source: Where the numbers come from.
        n_pes: Processing elements (streaming multiprocessors) that work in parallel.
        pe_fp32s: FP32 lanes of one processing element; each does one multiply-accumulate per cycle.
        frequency_hz: Clock in Hz.
        mem_bandwidth_bytes_per_s: DRAM bandwidth in bytes per second.
        l2_speed_frac: L2 bandwidth as a multiple of the DRAM bandwidth.
        fp32_cycles: Elements per lane needed to keep a processing element busy.
        mem_concurrent_fp32: Floats in one memory sector; 1 switches the sector model off.
        memory_efficiency: Kept because the reference stores it; the reference never uses it.
        launch_time_s: Seconds to launch one operator.
        batch_size: Images per batch that the reference assumes for this device.
    """

    source: str
    n_pes: int
    pe_fp32s: int
    frequency_hz: float
    mem_bandwidth_bytes_per_s: float
    l2_speed_frac: float
    fp32_cycles: int
    mem_concurrent_fp32: int
    memory_efficiency: float
    launch_time_s: float
    batch_size: int

    @property
    def peak_macs_per_s(self) -> float:
        """FP32 multiply-accumulates per second with every lane busy."""
        return self.n_pes * self.pe_fp32s * self.frequency_hz


@dataclass(frozen=True)
class Hardware:
    """What the device really is. ``None`` means that no source was found.

    Rates are peak values: ``fp16_tflops`` is the vector rate, ``fp16_tensor_tflops`` and ``int8_tensor_tops`` are the
    dense tensor-core rates, ``int8_tops`` is the rate of a GPU that has INT8 instructions (DP4A) but no tensor cores
    for them. ``power_mode`` is the mode of ``nvpmodel`` in which a board has these clocks. ``derived`` says which
    values follow from others, and how.
    """

    source: str
    compute_capability: str | None = None
    sms: int | None = None
    fp32_lanes_per_sm: int | None = None
    boost_mhz: float | None = None
    fp32_tflops: float | None = None
    fp16_tflops: float | None = None
    fp16_tensor_tflops: float | None = None
    int8: bool | None = None
    dram_gb_per_s: float | None = None
    l2_mb: float | None = None
    l2_gb_per_s: float | None = None
    shared_memory_per_sm_kb: float | None = None
    tensor_cores: int | None = None
    int8_tensor_tops: float | None = None
    int8_tops: float | None = None
    power_mode: str | None = None
    derived: str | None = None


@dataclass(frozen=True)
class MemoryLimit:
    """What of a device's memory a process with a network can have.

    Attributes:
        source: Where the numbers come from.
        total_gb: All of it; of boards shared with the processor.
        limit_gb: Most that the process may take.
        context_mb: What CUDA and its libraries take of that before there is a network.
    """

    source: str
    total_gb: float
    limit_gb: float
    context_mb: float


@dataclass(frozen=True)
class ModelConstants:
    """What the predictor assumes of the software on a device.

    Attributes:
        source: Where the numbers come from; for fitted ones, what they were fitted to.
        runtime: With what the published latencies were taken that the constants were fitted to: ``"tensorrt"``,
            ``"pytorch"`` or ``"onnxruntime"``. What is predicted by default is :attr:`Device.runtime`.
        batch: Images per run unless the user says otherwise.
        compute_efficiency: Achieved over peak arithmetic rate in a kernel that fills the device.
        memory_efficiency: Achieved over peak DRAM bandwidth.
        launch_us: Gap between one kernel and the next.
        group_launch_us: Further cost of each group of a grouped convolution in a runtime that runs groups one by one,
            as that of published figures did.
        fitted: Names of the constants (two at most) that were fitted to measurements.
    """

    source: str
    runtime: str
    batch: int = 1
    compute_efficiency: float | None = None
    memory_efficiency: float | None = None
    launch_us: float | None = None
    group_launch_us: float = 0.0
    fitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Device:
    """One device model.

    Attributes:
        name: Canonical name, also the name of its TOML file; in another power mode than its fastest ``"name@mode"``.
        title: Full product name.
        aliases: Other accepted names.
        hardware: Real figures of the silicon.
        model: Assumptions about its software.
        laudnet: Parameters of the LAUDNet reference predictor; None where it does not know the device.
        memory: What of its memory a network can have; None where that is not known, as of this machine.
        gpu_names: How CUDA calls this GPU, as shell patterns; empty where that name is not this device's alone.
        slower: The device in its other power modes, by mode.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    hardware: Hardware
    model: ModelConstants
    laudnet: PredictorParameters | None = None
    memory: MemoryLimit | None = None
    gpu_names: tuple[str, ...] = ()
    slower: Mapping[str, Device] = field(default_factory=dict)

    @property
    def board(self) -> str:
        """Its name whatever its power mode: that of its target, where it is one."""
        return self.name.partition(_MODE)[0]

    @property
    def runtime(self) -> str:
        """What runs networks there, static and dynamic ones alike, unless the user says otherwise."""
        return "onnxruntime" if self.is_local else "tensorrt"

    @property
    def is_local(self) -> bool:
        """Whether this is the machine itself, of which nothing is known before it was calibrated."""
        return self.hardware.sms is None

    def reference(self) -> PredictorParameters:
        """Parameters of the reference predictor; raises ``UsageError`` where it does not know the device."""
        if self.laudnet is None:
            known = ", ".join(name for name in device_names() if load_device(name).laudnet is not None)
            raise UsageError(
                f"The reference predictor knows nothing of {self.name}, only {known}. Predict without "
                "'--predictor reference'."
            )
        return self.laudnet


def _table(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(cls)}
    surplus = sorted(set(values) - known)
    if surplus:
        raise InputError(f"{where} has unknown keys: {', '.join(surplus)}. Known: {', '.join(sorted(known))}.")
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(f"{where} is incomplete: {error}.") from error


def read_device(path: str | Path) -> Device:
    """Read a device file, e.g. a model of your own board.

    Raises:
        InputError: The file is missing, is not TOML, or lacks or misspells a key.
    """
    source = Path(path)
    data = files.read_toml(source)
    for key in ("name", "title", "hardware", "model"):
        if key not in data:
            raise InputError(f"The device file {source} has no '{key}'.")
    modes = {f"power_modes.{mode}": table for mode, table in data.get("power_modes", {}).items()}
    for table, values in {
        **{name: data.get(name, {}) for name in ("laudnet", "hardware", "memory", "model")},
        **modes,
    }.items():
        for key, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise InputError(f"[{table}] of {source.name}: {key} must be positive, not {value!r}.")
    model = {**data["model"], "fitted": tuple(data["model"].get("fitted", ()))}
    laudnet, memory = data.get("laudnet"), data.get("memory")
    device = Device(
        name=str(data["name"]),
        title=str(data["title"]),
        aliases=tuple(data.get("aliases", ())),
        hardware=_table(Hardware, data["hardware"], f"[hardware] of {source.name}"),
        model=_table(ModelConstants, model, f"[model] of {source.name}"),
        laudnet=None if laudnet is None else _table(PredictorParameters, laudnet, f"[laudnet] of {source.name}"),
        memory=None if memory is None else _table(MemoryLimit, memory, f"[memory] of {source.name}"),
        gpu_names=tuple(data.get("gpu_names", ())),
    )
    slower = {
        mode: replace(
            device,
            name=f"{device.name}{_MODE}{mode}",
            aliases=(),
            gpu_names=(),
            hardware=_table(
                Hardware, {**data["hardware"], **values, "power_mode": mode}, f"[power_modes.{mode}] of {source.name}"
            ),
        )
        for mode, values in data.get("power_modes", {}).items()
    }
    return replace(device, slower=slower)


@functools.lru_cache(maxsize=1)
def _devices() -> dict[str, Device]:
    return {device.name: device for device in map(read_device, sorted(_FOLDER.glob("*.toml")))}


def device_names() -> list[str]:
    """Return the canonical names of all device models, sorted."""
    return sorted(_devices())


def device_of_gpu(gpu: str) -> str | None:
    """Name of the device model of a GPU.

    Args:
        gpu: As CUDA calls it, e.g. ``"NVIDIA H200"``.

    Returns:
        The model's name, or None where no model, or more than one, goes by that name.
    """
    found = [device.name for device in _devices().values() if any(fnmatchcase(gpu, name) for name in device.gpu_names)]
    return found[0] if len(found) == 1 else None


def load_device(name: str) -> Device:
    """Return the device model called ``name`` (or having it as an alias; upper and lower case are the same).

    A board is taken in its fastest power mode; ``"name@mode"`` is the board in another one.

    Raises:
        UsageError: No such device, or no such mode of it; the message suggests the nearest name.
    """
    devices = _devices()
    wanted, at, mode = name.lower().partition(_MODE)
    for device in devices.values():
        if wanted == device.name or wanted in device.aliases:
            return _in_mode(device, mode) if at else device
    raise unknown_name("device", name, devices)


def _in_mode(device: Device, mode: str) -> Device:
    known = {str(device.hardware.power_mode): device, **device.slower}
    found = {name.lower(): value for name, value in known.items()}
    if device.hardware.power_mode is None:
        raise UsageError(f"Nothing is known of power modes of {device.name}: leave '{_MODE}{mode}' out.")
    if mode not in found:
        raise unknown_name(f"power mode of {device.name}", mode, known)
    return found[mode]
