"""Platforms that bundles are made for, and device models that latencies are predicted for; both as data."""

from dyndeploy.targets.devices import Device, device_names, load_device, read_device
from dyndeploy.targets.platforms import Precision, Target, load_target, target_names

__all__ = [
    "Device",
    "Precision",
    "Target",
    "device_names",
    "load_device",
    "load_target",
    "read_device",
    "target_names",
]
