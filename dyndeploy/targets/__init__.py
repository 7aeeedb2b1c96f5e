"""Platforms that bundles are made for, and device models that latencies are predicted for; both as data."""

from dyndeploy.targets.devices import Device, device_names, load_device, read_device
from dyndeploy.targets.laziness import (
    BranchTimes,
    LayerSkipping,
    LazinessRecord,
    layer_skipping,
    load_record,
)
from dyndeploy.targets.platforms import PrecisionRule, Target, load_target, target_names

__all__ = [
    "BranchTimes",
    "Device",
    "LayerSkipping",
    "LazinessRecord",
    "PrecisionRule",
    "Target",
    "device_names",
    "layer_skipping",
    "load_device",
    "load_record",
    "load_target",
    "read_device",
    "target_names",
]
