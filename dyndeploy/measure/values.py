"""Reading numbers and lists from JSON that somebody may have edited.

Every function raises ``TypeError`` or ``ValueError`` with what is wrong; the caller knows where.
"""

from __future__ import annotations

from typing import Any

_SMALLEST, _LARGEST = 1e-12, 1e18
_LARGEST_COUNT = 1 << 20


def number(value: Any) -> float:
    """Zero, or a positive number between 1e-12 and 1e18: sums and quotients of such numbers stay finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {value!r:.80}")
    if value != 0 and not _SMALLEST <= value <= _LARGEST:
        raise ValueError("a number is negative, or too small or too large for a measurement")
    return float(value)


def positive(value: Any) -> float:
    """As :func:`number`, without zero."""
    result = number(value)
    if result == 0:
        raise ValueError("expected a positive number, got 0")
    return result


def share(value: Any) -> float:
    """A number in [0, 1]."""
    result = number(value)
    if result > 1:
        raise ValueError(f"expected a number in [0, 1], got {result:g}")
    return result


def count(value: Any, least: int = 0) -> int:
    """A whole number from ``least`` to 2^20."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r:.80}")
    if not least <= value <= _LARGEST_COUNT:
        raise ValueError(f"expected a whole number from {least} to {_LARGEST_COUNT}")
    return value


def items(value: Any) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r:.80}")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r:.80}")
    return value


def text(value: Any) -> str:
    """Text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r:.80}")
    value.encode()
    return value


def texts(value: Any) -> list[str]:
    """A list of texts."""
    return [text(item) for item in items(value)]
