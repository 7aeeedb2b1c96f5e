"""``dyndeploy device``: the user's boards by name."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._boards import connected
from dyndeploy.cli._options import AsJson, complete_target, option
from dyndeploy.errors import UsageError, unknown_name


class Action(str, Enum):
    """What to do."""

    ADD = "add"
    LIST = "list"
    REMOVE = "remove"
    PROBE = "probe"
    CLEAN = "clean"


def device(
    action: Annotated[
        Action,
        typer.Argument(
            help="add NAME HOST; list; remove NAME; probe NAME: what it is; clean NAME: remove what was sent there."
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="The board's name, as for 'dyndeploy profile --device'.")] = None,
    host: Annotated[
        str | None, typer.Argument(help="user@address, a host of your ssh configuration, or ssh://user@address:port.")
    ] = None,
    target: Annotated[
        str | None, option("--target", detail="(default: what the board says it is)", autocompletion=complete_target)
    ] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="Another ssh configuration file than yours.")] = None,
    work: Annotated[str | None, typer.Option(help="Folder of the agent on the board. (default: ~/.cache)")] = None,
    python: Annotated[str | None, typer.Option(help="Python on the board. (default: python3)")] = None,
    as_json: AsJson = False,
) -> None:
    """Name the boards that 'dyndeploy profile --device NAME' measures on, and look after them."""
    from dyndeploy.remote import DeviceEntry, devices_file, load_devices, remove_device, save_device

    if action is Action.LIST:
        known = load_devices()
        if as_json:
            print_json({key: entry.to_json() for key, entry in known.items()})
        elif known:
            rows = [(entry.name, entry.host, entry.target or "as it says") for entry in known.values()]
            print_table(("device", "host", "target"), rows)
        else:
            typer.echo("No devices. Add one with 'dyndeploy device add NAME user@address'.")
        return
    if name is None or (action is Action.ADD and host is None):
        wanted = "NAME HOST" if action is Action.ADD else "NAME"
        raise UsageError(f"'dyndeploy device {action.value}' needs {wanted}.")
    if action is Action.ADD:
        config = None if ssh_config is None else str(ssh_config.absolute())
        entry = DeviceEntry(name, host or "", target, config, work, python)
        save_device(entry)
        if as_json:
            print_json({name: entry.to_json()})
        else:
            typer.echo(f"{name}: {entry.host}, kept in {devices_file()}. 'dyndeploy device probe {name}' looks at it.")
        return
    known = load_devices()
    if action is Action.REMOVE:
        remove_device(name)
        if as_json:
            print_json({"removed": name})
        return
    if name not in known:
        raise unknown_name("device", name, known)
    entry = known[name]
    with connected(entry) as client:
        if action is Action.CLEAN:
            freed = client.clean()
            if as_json:
                print_json({"freed_mb": freed})
            else:
                typer.echo(f"{name}: {freed} MB freed.")
            return
        facts = client.probe()
    if as_json:
        print_json(facts)
        return
    from dyndeploy.remote.profiling import device_warnings, machine_name

    modules = {key: value.get("version", "-") for key, value in facts["modules"].items()}
    mode = facts["power_mode"]
    lines = [
        ("board", f"{machine_name(facts)} ({facts['target'] or 'no known device'})"),
        *(("card", _card(gpu)) for gpu in facts["gpus"]),
        ("system", f"{facts['os']}, L4T {facts['l4t'] or '-'}, JetPack {facts['jetpack'] or '-'}"),
        ("software", ", ".join(f"{key} {version}" for key, version in {"python": facts["python"], **modules}.items())),
        ("build", f"CUDA {facts['cuda']['version'] or '-'}, CMake {facts['cmake'] or '-'}"),
        ("power mode", "-" if mode is None else mode["name"]),
        ("memory", f"{facts['memory']['available_mb']} of {facts['memory']['total_mb']} MB free"),
        ("disk", f"{facts['disk_free_mb']} MB free, {facts['work_mb']} MB used by dyndeploy"),
    ]
    print_table(("device", name), lines)
    for warning in device_warnings(facts, {}):
        typer.echo(f"Note: {warning}")


def _card(gpu: Mapping[str, Any]) -> str:
    known = (("compute capability", "compute_capability"), ("driver", "driver"), ("memory MB", "memory_mb"))
    return ", ".join([str(gpu["name"]), *(f"{what} {gpu[key]}" for what, key in known if gpu[key] is not None)])
