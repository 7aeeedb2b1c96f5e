"""Every exception that dyndeploy raises on purpose.

A message says what is wrong, why, and what to do next. ``exit_code`` is what the command line returns:
2 for wrong usage or an impossible request, 1 for a failure while doing a possible one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DyndeployError(Exception):
    """Root of all errors raised by dyndeploy."""

    exit_code = 1


class UsageError(DyndeployError):
    """The request cannot be met as stated: an unknown name, a bad value, an impossible combination."""

    exit_code = 2


class InputError(DyndeployError):
    """A user's file (image, data folder, JSON, recipe) is missing, unreadable or of the wrong shape."""


class CheckpointError(DyndeployError):
    """A checkpoint is missing, damaged, hostile, not finite, or does not fit the network."""


class ExportError(DyndeployError):
    """A network could not be turned into a valid graph for the target."""


class BundleError(DyndeployError):
    """A bundle is incomplete, damaged, or of a schema version that this release cannot read."""


class NotFiniteError(DyndeployError):
    """A network, or something computed from one, gave NaN or infinite values: that is no result."""


class VerificationError(DyndeployError):
    """A bundle's outputs do not agree with its reference tensors."""


class DeviceError(DyndeployError):
    """A board cannot be reached, refuses, or fails at what it was asked to do."""


class ConnectionLostError(DeviceError):
    """The connection to a board ended; what it was doing goes on there, and the same command continues it."""


class UnreachableError(DeviceError):
    """A connection to a board did not come about: nothing was begun there."""


class OutputError(DyndeployError):
    """A result could not be written (read-only or full file system, existing path in the way)."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that is not registered.

    Args:
        kind: What the name stands for, e.g. ``"model"``.
        name: The name as the user wrote it.
        known: All valid names.

    Returns:
        A :class:`UsageError` that suggests the nearest name and lists the known ones.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    hint = ""
    if near:
        match = next(n for n in names if n.lower() == near[0])
        hint = f" Did you mean '{match}'?"
    return UsageError(f"Unknown {kind} '{name}'.{hint} Known: {', '.join(names) or '(none)'}.")
