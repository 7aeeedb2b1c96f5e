"""Platforms that bundles are made for, and device models that latencies are predicted for; both as data."""

from dyndeploy.targets.devices import Device, device_names, device_of_gpu, load_device, read_device
from dyndeploy.targets.laziness import BranchTimes, LazinessRecord, load_record
from dyndeploy.targets.platforms import PORTABLE, Placement, PowerMode, PrecisionRule, Target, load_target, target_names

__all__ = [
    "PORTABLE",
    "BranchTimes",
    "Device",
    "LazinessRecord",
    "Placement",
    "PowerMode",
    "PrecisionRule",
    "Target",
    "device_names",
    "device_of_gpu",
    "load_device",
    "load_record",
    "load_target",
    "read_device",
    "target_names",
]
