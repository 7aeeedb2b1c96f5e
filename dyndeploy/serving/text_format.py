"""Protobuf's text format, in which Triton's configurations are written.

Triton's schema comes with its client, which the package does not need; the tests read what is written here with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class Word(str):
    """A name of an enumeration, which stands without quotes."""

    __slots__ = ()


def text_format(message: Mapping[str, Any], indent: str = "") -> str:
    """Write a message in protobuf's text format.

    Args:
        message: Fields by name: numbers, truth values, strings, :class:`Word` for enumerations, messages as mappings,
            and lists of these for repeated fields.
        indent: In front of every line.
    """
    lines = []
    for name, value in message.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{text_format(item, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}\n")
    return "".join(lines)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # JSON escapes what protobuf's text format does; other letters are UTF-8 in both.
    quoted = isinstance(value, str) and not isinstance(value, Word)
    return json.dumps(value, ensure_ascii=False) if quoted else str(value)
