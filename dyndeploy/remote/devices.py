"""The user's boards by name: a small JSON file in the user's configuration folder."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dyndeploy import files
from dyndeploy.errors import InputError, OutputError, UsageError, unknown_name
from dyndeploy.fields import Document, Field
from dyndeploy.remote.transport import LocalTransport, SshTransport, Transport
from dyndeploy.targets import load_target

VARIABLE = "DYNDEPLOY_DEVICES"
"""Environment variable that names another file."""

THIS_MACHINE = "cpu"
"""Reserved: what ``dyndeploy profile`` measures without a board."""

LOCAL_HOST = "local:"
"""As host: this machine, through an agent process."""


@dataclass(frozen=True)
class DeviceEntry:
    """A board that the user named.

    Attributes:
        name: As given to ``--device``.
        host: ``user@address``, a host of the ssh configuration, ``ssh://user@address:port``, or ``local:``.
        target: Name of its target, or None where only the board itself tells.
        ssh_config: Another ssh configuration file than the user's, or None.
        work: The agent's folder on the board, or None for its default.
        python: Interpreter there, or None for ``python3``.
    """

    name: str
    host: str
    target: str | None = None
    ssh_config: str | None = None
    work: str | None = None
    python: str | None = None

    def __post_init__(self) -> None:
        """Refuse names and addresses that cannot work; raises ``UsageError``."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.name) or self.name == THIS_MACHINE:
            raise UsageError(
                f"'{self.name}' cannot be a device's name: use letters, digits, '_', '.', '-'; '{THIS_MACHINE}' is "
                "this machine."
            )
        if self.target is not None:
            load_target(self.target)
        for value in (self.host, self.ssh_config, self.work, self.python):
            if value is not None and value != files.shown(value):
                raise UsageError(f"{value} is no UTF-8, in which devices are kept: give another name.")
        self.transport()

    def transport(self) -> Transport:
        """The way to the board."""
        if self.host == LOCAL_HOST:
            return LocalTransport(self.python or sys.executable)
        return SshTransport(self.host, self.ssh_config, self.python or "python3")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without what is not set."""
        value = {key: item for key, item in asdict(self).items() if key != "name"}
        return {key: item for key, item in value.items() if item is not None}


def devices_file() -> Path:
    """Where the boards are kept: ``DYNDEPLOY_DEVICES``, else ``dyndeploy/devices.json`` in the configuration folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    folder = files.user_folder("XDG_CONFIG_HOME", ".config")
    if folder is None:
        raise UsageError(f"There is no home folder to keep devices in: set HOME, XDG_CONFIG_HOME or {VARIABLE}.")
    return folder / "devices.json"


def load_devices(path: Path | None = None) -> dict[str, DeviceEntry]:
    """Read the boards; none where there is no file, or no home to keep one in.

    Raises:
        InputError: The file cannot be read or is damaged; the message names it.
    """
    if path is None and not os.environ.get(VARIABLE) and files.user_folder("XDG_CONFIG_HOME", ".config") is None:
        return {}
    source = path or devices_file()
    if files.unreadable(source) == "":
        return {}
    document = Document(str(source), "Correct it, or remove it and add the devices again.", InputError)
    devices = document.root(files.read_json(source))["devices"]
    return {name: _entry(name, devices[name]) for name in devices.facts()}


def _entry(name: str, item: Field) -> DeviceEntry:
    texts = item.mapping(Field.text)
    known = {each.name for each in fields(DeviceEntry)} - {"name"}
    item.require("host" in texts and set(texts) <= known, f"an object with host and perhaps {', '.join(sorted(known))}")
    return item.checked(lambda: DeviceEntry(name=name, **texts))


def save_device(entry: DeviceEntry, path: Path | None = None) -> None:
    """Add a board, or replace the one of its name."""
    with files.locked(path or devices_file()):
        _write({**load_devices(path), entry.name: entry}, path)


def remove_device(name: str, path: Path | None = None) -> None:
    """Remove a board; raises ``UsageError`` if there is none of this name."""
    with files.locked(path or devices_file()):
        devices = load_devices(path)
        if name not in devices:
            raise unknown_name("device", name, devices)
        del devices[name]
        _write(devices, path)


def _write(devices: dict[str, DeviceEntry], path: Path | None) -> None:
    content = {name: entry.to_json() for name, entry in sorted(devices.items())}
    try:
        files.write_json(path or devices_file(), {"devices": content})
    except OutputError as error:
        raise OutputError(f"{error} {VARIABLE} may name another file.") from error
