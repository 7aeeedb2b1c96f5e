"""Reading the profile of a network that exits early."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from dyndeploy import files
from dyndeploy.errors import InputError
from dyndeploy.fields import Document, Field
from dyndeploy.measure.energy import Energy
from dyndeploy.measure.exits import KIND, SCHEMA_VERSION, ExitProfile, ExitTimes, MixResult
from dyndeploy.measure.profile import read_machine, read_native
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
    return _profile(Document(str(path), "Profile the bundle again.", InputError).root(value))


def _profile(root: Field) -> ExitProfile:
    notes = root["warnings"].sequence(Field.label)
    exits = root["exits"].sequence(_times, at_least=1)
    profile = ExitProfile(
        bundle=_named(root["bundle"], "name", "precision"),
        machine=read_machine(root["machine"]),
        device=root.get("device").optional(Field.label) or "cpu",
        runtime=_named(root["runtime"], "name", "version"),
        threads=root["threads"].tally(1),
        settings=root["settings"].facts(),
        whole_macs=int(root["whole_macs"].positive()),
        whole=Samples.read(root["whole"]),
        exits=exits,
        staging=_times(root["staging"]),
        branched=root["branched"].optional(_times),
        mixes=root["mixes"].sequence(lambda item: _mix(item, len(exits))),
        graph=root.get("graph").optional(Field.facts),
        native=root.get("native").optional(read_native) or {},
        energy=root.get("energy").optional(Energy.read),
    )
    # Only the note itself is not among what the profile derives.
    own = [note for note in notes if note not in profile.warnings()]
    return replace(profile, note=" ".join(own))


def _named(item: Field, *texts: str) -> dict[str, Any]:
    for key in texts:
        item[key].label()
    return item.facts()


def _times(item: Field) -> ExitTimes:
    return ExitTimes(
        exit=item["exit"].tally(1),
        macs=int(item["macs"].positive()),
        samples=Samples.read(item),
        relative=item["relative"].positive(),
        relative_cpu=item["relative_cpu"].optional(Field.positive),
        relative_spread=item.get("relative_spread").optional(_spread),
    )


def _spread(item: Field) -> tuple[float, float]:
    low, high = item.sequence(Field.positive, length=2)
    item.require(low <= high, "two numbers in order")
    return low, high


def _mix(item: Field, exits: int) -> MixResult:
    return MixResult(
        name=item["name"].label(),
        shares=item["shares"].sequence(Field.share, length=exits),
        mean_ms=item["mean_ms"].positive(),
        mean_macs=item["mean_macs"].positive(),
        ideal_speedup=item["ideal_speedup"].positive(),
        realised_speedup=item["realised_speedup"].positive(),
    )
