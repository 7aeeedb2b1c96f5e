"""Reading JSON that somebody may have edited: every complaint names the document, the field and what was wanted."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dyndeploy.errors import DyndeployError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SMALLEST, _LARGEST = 1e-12, 1e18
_LARGEST_COUNT = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """What a JSON value is part of.

    Attributes:
        name: How a complaint calls it, e.g. ``"bundle.json"`` or ``"The profile"``.
        advice: What a reader can do about a malformed one, as a sentence.
        error: Class of the complaints.
    """

    name: str
    advice: str
    error: type[DyndeployError]

    def root(self, value: Any) -> Field:
        """The whole value."""
        return Field(self, "", value)

    def complaint(self, what: str) -> DyndeployError:
        """The error that says ``what`` is wrong with it."""
        return self.error(f"{self.name} is malformed: {what}. {self.advice}")


@dataclass(frozen=True)
class Field:
    """A value with its place in a document.

    Every reader raises the document's error where the value is not what it reads.

    Attributes:
        document: What it is part of.
        place: Path from the root, e.g. ``"rates[0].samples_ms"``; empty for the root itself.
        value: What stands there.
    """

    document: Document
    place: str
    value: Any

    def require(self, condition: bool, wanted: str) -> None:
        """Complain that the value must be ``wanted`` unless the condition holds."""
        if not condition:
            # Cut before it is printed: an integer of thousands of digits has no text.
            large = isinstance(self.value, int) and abs(self.value) > 10**60
            shown = "a huge number" if large else ascii(self.value)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            raise self.document.complaint(f"{self.place or 'it'} must be {wanted}, not {shown}")

    def checked(self, make: Callable[[], T]) -> T:
        """Call ``make``; what it refuses with an error of this package is a complaint about this field."""
        try:
            return make()
        except DyndeployError as error:
            if isinstance(error, self.document.error) and str(error).startswith(self.document.name):
                raise
            raise self.document.complaint(f"{self.place or 'it'}: {str(error).rstrip('.')}") from error

    def __getitem__(self, key: str) -> Field:
        """Field of an object; it must be there."""
        found = self.get(key)
        if key not in self.value:
            raise self.document.complaint(f"{found.place} is missing")
        return found

    def get(self, key: str) -> Field:
        """As ``[key]``; what is missing is None."""
        self.require(isinstance(self.value, dict), "an object")
        return Field(self.document, f"{self.place}.{key}" if self.place else key, self.value.get(key))

    def optional(self, read: Callable[[Field], T]) -> T | None:
        """None stays None; anything else is read."""
        return None if self.value is None else read(self)

    def sequence(self, read: Callable[[Field], T], *, at_least: int = 0, length: int | None = None) -> tuple[T, ...]:
        """A list, each item read."""
        self.require(isinstance(self.value, (list, tuple)), "a list")
        self.require(len(self.value) >= at_least, "a list that is not empty")
        self.require(length in (None, len(self.value)), f"a list of {length}")
        return tuple(
            read(Field(self.document, f"{self.place}[{index}]", item)) for index, item in enumerate(self.value)
        )

    def mapping(self, read: Callable[[Field], T]) -> dict[str, T]:
        """An object by key, each value read."""
        self.require(isinstance(self.value, dict), "an object")
        return {
            Field(self.document, f"{self.place}[{key!r}]", key).label(): read(
                Field(self.document, f"{self.place}[{key!r}]", item)
            )
            for key, item in self.value.items()
        }

    def facts(self) -> dict[str, Any]:
        """An object whose content is only carried along."""
        return self.mapping(lambda item: item.value)

    def label(self) -> str:
        """Text that can be written as UTF-8; it may be empty."""
        self.require(_encodable(self.value), "text")
        return str(self.value)

    def text(self) -> str:
        """As :meth:`label`, not empty."""
        self.require(_encodable(self.value) and self.value != "", "a non-empty text")
        return str(self.value)

    def one_of(self, *known: str) -> str:
        """One of some texts."""
        self.require(isinstance(self.value, str) and self.value in known, f"one of {', '.join(known)}")
        return str(self.value)

    def boolean(self) -> bool:
        """True or false."""
        self.require(isinstance(self.value, bool), "true or false")
        return bool(self.value)

    def count(self, least: int = 1, most: int | None = None) -> int:
        """A whole number from ``least``, to ``most`` where that is given."""
        wanted = f"a whole number of at least {least}" + ("" if most is None else f" and at most {most}")
        self.require(type(self.value) is int and self.value >= least and (most is None or self.value <= most), wanted)
        return int(self.value)

    def tally(self, least: int = 0) -> int:
        """A whole number from ``least`` to 2^20: how often something was done."""
        return self.count(least, _LARGEST_COUNT)

    def number(self, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number in ``[least, most]``."""
        # Compared with the largest float, since a JSON integer may be finite and still be none.
        finite = type(self.value) in (int, float) and abs(self.value) <= sys.float_info.max
        self.require(finite and least <= self.value <= most, f"a finite number in [{least:g}, {most:g}]")
        return float(self.value)

    def share(self) -> float:
        """Zero, or a number in [1e-12, 1]."""
        return self.amount(1.0)

    def amount(self, most: float = _LARGEST) -> float:
        """Zero, or a number in [1e-12, 1e18]: sums and quotients of such measurements stay finite."""
        known = type(self.value) in (int, float)
        fits = known and (self.value == 0 or _SMALLEST <= self.value <= most)
        self.require(fits, f"0 or a number in [{_SMALLEST:g}, {most:g}]")
        return float(self.value)

    def positive(self) -> float:
        """As :meth:`amount`, without zero."""
        self.require(self.value != 0, "a positive number")
        return self.amount()

    def sha256(self) -> str:
        """A SHA-256 in lower-case hex."""
        self.require(isinstance(self.value, str) and bool(_SHA256.fullmatch(self.value)), "a SHA-256 in hex")
        return str(self.value)


def _encodable(value: Any) -> bool:
    """Whether it is text without half a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
