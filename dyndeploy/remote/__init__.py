"""Boards: the on-device agent, the way to it, and profiling there."""

from dyndeploy.remote.client import DeviceClient, JobResult, MissingError
from dyndeploy.remote.devices import DeviceEntry, devices_file, load_devices, remove_device, save_device
from dyndeploy.remote.exits import profile_exits_on_device
from dyndeploy.remote.profiling import DeviceReport, profile_on_device
from dyndeploy.remote.running import detect_on_device, run_inputs_on_device, run_on_device
from dyndeploy.remote.transport import LocalTransport, SshTransport, Transport

__all__ = [
    "DeviceClient",
    "DeviceEntry",
    "DeviceReport",
    "JobResult",
    "LocalTransport",
    "MissingError",
    "SshTransport",
    "Transport",
    "detect_on_device",
    "devices_file",
    "load_devices",
    "profile_exits_on_device",
    "profile_on_device",
    "remove_device",
    "run_inputs_on_device",
    "run_on_device",
    "save_device",
]
