"""Connections to boards, as commands use them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._verbosity import note, tell
from dyndeploy.errors import InputError, UsageError, unknown_name

if TYPE_CHECKING:
    from dyndeploy.bundle import Bundle
    from dyndeploy.remote import DeviceClient, DeviceEntry
    from dyndeploy.runtimes.choice import RuntimeChoice

THIS_MACHINE = "cpu"

Host = Annotated[
    str | None,
    typer.Option(
        "--host", metavar="USER@ADDRESS", help="Address of the board or workstation. (default: that of 'device add')"
    ),
]


def chosen_board(device: str | None, host: str | None) -> DeviceEntry | None:
    """The board or workstation that ``--device`` and ``--host`` name; None is this machine.

    A card without an address is one of this machine.

    Raises:
        UsageError: No address is known for it.
        InputError: The list of devices cannot be read.
    """
    from dyndeploy.targets import device_names, load_target, target_names

    models, targets = device_names(), target_names()
    if device in (None, THIS_MACHINE) and host is None:
        return None
    device = device or THIS_MACHINE
    from dyndeploy.remote import DeviceEntry, load_devices

    try:
        known = load_devices()
    except InputError as error:
        if host is None:
            raise
        known = {}
        note(error)
    board = known.get(device)
    if board is None and host is None:
        if device not in {*models, *targets}:
            raise unknown_name("device", device, {THIS_MACHINE, *known, *models, *targets})
        if device in targets and load_target(device).is_card:
            return None
        model = device if device in models else "nano"
        raise UsageError(
            f"No address is known for the device '{device}'. Give it with --host user@address, or once and for all "
            f"with 'dyndeploy device add {device} user@address'. Without a board, 'dyndeploy predict BUNDLE --device "
            f"{model}' predicts a latency."
        )
    if board is None:
        name = "board" if device == THIS_MACHINE else device
        return DeviceEntry(name, host or "", device if device in targets and device != THIS_MACHINE else None)
    if host is None:
        return board
    return replace(board, host=host)


def chosen_here(bundle: Bundle, device: str | None, runtime: str, *, told: bool) -> RuntimeChoice:
    """What runs a bundle on this machine, on the device that was named; says so in a line where ``told``.

    Raises:
        UsageError: The device is not here, or the runtime cannot be had.
    """
    from dyndeploy.runtimes.base import ONNXRUNTIME
    from dyndeploy.runtimes.choice import choose_runtime, require_this_gpu
    from dyndeploy.targets import load_device

    if device == THIS_MACHINE:
        if runtime not in ("auto", ONNXRUNTIME):
            raise UsageError(f"--device {THIS_MACHINE} is the processor, which {runtime} does not use: leave one out.")
        runtime = ONNXRUNTIME
    elif device is not None:
        name = load_device(device).name
        if bundle.manifest.target != name:
            raise UsageError(
                f"The bundle was exported for {bundle.manifest.target}, not for {name}: export it again with --target "
                f"{name}."
            )
        if runtime == ONNXRUNTIME:
            raise UsageError(f"--device {device} is a GPU, which {ONNXRUNTIME} does not use: leave one out.")
        require_this_gpu(name)
    choice = choose_runtime(bundle, runtime)
    if device not in (None, THIS_MACHINE) and choice.gpu is None:
        raise UsageError(f"Nothing here runs the bundle on {device}: {choice.reason}.")
    if told:
        tell(choice.line)
    return choice


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
