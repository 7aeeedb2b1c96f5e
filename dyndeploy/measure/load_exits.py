"""Reading the profile of a network that exits early."""

from __future__ import annotations

import os
from typing import Any

from dyndeploy import files
from dyndeploy.errors import DyndeployError, InputError
from dyndeploy.measure import values
from dyndeploy.measure.exits import KIND, SCHEMA_VERSION, ExitProfile, ExitTimes, MixResult
from dyndeploy.measure.profile import read_machine
from dyndeploy.measure.samples import Samples


def load_exit_profile(path: str | os.PathLike[str]) -> ExitProfile:
    """Read the profile of a network that exits early from a JSON file; statistics are derived again from the samples.

    Raises:
        InputError: The file is missing, is not JSON, is no such profile, has another schema version, or a field is
            missing or malformed; the message names the file.
    """
    value = files.read_json(path)
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise InputError(
            f"{path} is no profile of a network that exits early. Write one with 'dyndeploy profile BUNDLE --json F'."
        )
    if value.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {value.get('schema_version')!r}; this release reads version {SCHEMA_VERSION}. "
            "Profile the bundle again with this release."
        )
    try:
        return _profile(value)
    except (KeyError, TypeError, ValueError, AttributeError, DyndeployError) as error:
        raise InputError(f"{path} is malformed ({type(error).__name__}: {error}). Profile the bundle again.") from error


def _profile(value: dict[str, Any]) -> ExitProfile:
    notes = values.texts(value["warnings"])
    exits = tuple(_times(item) for item in values.items(value["exits"]))
    profile = ExitProfile(
        bundle=_named(value["bundle"], "name", "precision"),
        machine=read_machine(value["machine"]),
        runtime=_named(value["runtime"], "name", "version"),
        threads=values.count(value["threads"], 1),
        settings=values.mapping(value["settings"]),
        whole_macs=int(values.positive(value["whole_macs"])),
        whole=Samples.from_json(value["whole"]),
        exits=exits,
        staging=_times(value["staging"]),
        branched=None if value["branched"] is None else _times(value["branched"]),
        mixes=tuple(_mix(item, len(exits)) for item in values.items(value["mixes"])),
    )
    if not exits:
        raise ValueError("there are no exits")
    # Only the note itself is not among what the profile derives.
    own = [note for note in notes if note not in profile.warnings()]
    return ExitProfile(**{**vars(profile), "note": " ".join(own)})


def _named(value: Any, *texts: str) -> dict[str, Any]:
    facts = values.mapping(value)
    for key in texts:
        values.text(facts[key])
    return facts


def _times(value: Any) -> ExitTimes:
    cpu = value["relative_cpu"]
    return ExitTimes(
        exit=values.count(value["exit"], 1),
        macs=int(values.positive(value["macs"])),
        samples=Samples.from_json(value),
        relative=values.positive(value["relative"]),
        relative_cpu=None if cpu is None else values.positive(cpu),
    )


def _mix(value: Any, exits: int) -> MixResult:
    shares = tuple(values.share(item) for item in values.items(value["shares"]))
    if len(shares) != exits:
        raise ValueError("the shares of a mix do not fit the exits")
    return MixResult(
        name=values.text(value["name"]),
        shares=shares,
        mean_ms=values.positive(value["mean_ms"]),
        mean_macs=values.positive(value["mean_macs"]),
        ideal_speedup=values.positive(value["ideal_speedup"]),
        realised_speedup=values.positive(value["realised_speedup"]),
    )
