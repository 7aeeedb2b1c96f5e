"""Connections to boards, as commands use them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dyndeploy.cli._verbosity import note

if TYPE_CHECKING:
    from dyndeploy.remote import DeviceClient, DeviceEntry


def device_model(name: str) -> str:
    """The device model that a name means: its own, an alias, or what a board of 'device add' is."""
    from dyndeploy.targets import device_names, load_device

    if name not in device_names():
        from dyndeploy.remote import load_devices

        entry = load_devices().get(name)
        if entry is not None and entry.target is not None:
            return entry.target
    return load_device(name).name


@contextlib.contextmanager
def connected(board: DeviceEntry) -> Iterator[DeviceClient]:
    """Yield a client of a board's agent; what other programs there wrote meanwhile is shown at the end."""
    from dyndeploy.remote import DeviceClient
    from dyndeploy.remote.transport import readable

    client = DeviceClient(board.transport(), work=board.work)
    try:
        with client:
            yield client
    finally:
        printed = readable(client.foreign)
        if printed:
            note(f"other programs on {client.transport.label} wrote this, which was skipped: {printed}")


def telling_waits(progress: Callable[[str, float], None]) -> Callable[[str, float], None]:
    """A progress function that also tells once, where no bar is drawn, that a board is busy with something else."""
    from dyndeploy.remote.agent import WAITING

    told = sys.stderr.isatty()

    def show(message: str, fraction: float) -> None:
        nonlocal told
        if not told and WAITING in message:
            told = True
            note(message)
        progress(message, fraction)

    return show
