"""Every exception that dyndeploy raises on purpose.

A message says what is wrong, why, and what to do next. ``exit_code`` is what the command line returns:
2 for wrong usage or an impossible request, 1 for a failure while doing a possible one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

_SLIP = 0.7
"""Likeness, in [0, 1], of two words of which one is the other mistyped."""
_JOINED = 0.9
"""The same of whole names of several words that were joined or parted in another way."""


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
    meant = nearest_name(name, names)
    hint = "" if meant is None else f" Did you mean '{meant}'?"
    return UsageError(f"Unknown {kind} '{name}'.{hint} Known: {', '.join(names) or '(none)'}.")


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """Find the known name that was probably meant, or None where a guess could lead astray.

    Boards and networks that differ in one word or number are different things: every word of a suggestion must stand
    in ``name`` but for slips of the pen, and no number may be another one. So "jetson-nano" means "nano", never
    "orin-nano", and "rtx4080" nothing that is called "rtx4090". Words may be left out where only one name has the rest.
    """
    typed = _words(name)
    found = []
    for candidate in known:
        words = _words(candidate)
        likeness = min(max(_likeness(word, other) for other in (*typed, "")) for word in words)
        joined = _likeness("".join(words), "".join(typed))
        numbers = _same_numbers(name, candidate) or not any(map(str.isdigit, candidate))
        if (likeness >= _SLIP or joined >= _JOINED) and numbers:
            found.append((max(likeness, joined), len(words), candidate))
    if found:
        return max(found)[-1]
    longer = [candidate for candidate in known if typed and {*typed} <= {*_words(candidate)}]
    return longer[0] if len(longer) == 1 else None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _likeness(one: str, other: str) -> float:
    """Likeness of the letters in [0, 1]: digits are compared apart, since "v100" is no slip of "a100"."""
    letters, others = (re.sub(r"[0-9]", "", text) for text in (one, other))
    if not letters or not others:
        return float(one == other)
    if sorted(letters) == sorted(others):
        return 1.0  # two letters in the wrong order are the commonest slip
    return difflib.SequenceMatcher(None, letters, others).ratio()


def _same_numbers(one: str, other: str) -> bool:
    """Whether the digits of one are those of the other in another order, or with one left out."""
    short, long = sorted(("".join(filter(str.isdigit, text)) for text in (one, other)), key=len)
    rest = iter(long)
    slipped = len(long) - len(short) <= 1 and all(digit in rest for digit in short)
    return slipped or sorted(short) == sorted(long)
