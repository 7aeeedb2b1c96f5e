"""What a network returns, as named tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from dyndeploy.errors import UsageError

LOGITS = "logits"


@runtime_checkable
class HasOutputs(Protocol):
    """A result that says itself which of its tensors are outputs of the deployed network."""

    def outputs(self) -> dict[str, Tensor]:
        """Return them by name."""


def named_outputs(result: Any) -> dict[str, Tensor]:
    """The tensors that a network returns, by name, in order.

    A single tensor is ``"logits"`` where it is (N, classes), else ``"output"``; entries of lists and tuples are
    numbered (``"output0"``), those of dictionaries, named tuples and dataclasses have their own names; names of nested
    containers are joined by ``/``.

    Raises:
        UsageError: Something that is no tensor, no tensor at all, or two with the same name.
    """
    if isinstance(result, HasOutputs):
        return dict(result.outputs())
    if isinstance(result, Tensor):
        return {LOGITS if result.ndim == 2 else "output": result}
    found: dict[str, Tensor] = {}
    for name, value in _walk(result, ""):
        if not isinstance(value, Tensor):
            at = f" as '{name}'" if name else ""
            raise UsageError(
                f"The network returns {type(value).__name__}{at}: outputs must be tensors. Return it from "
                "another method, or leave it out in evaluation."
            )
        if name in found or "\0" in name or not name:
            raise UsageError(f"The network returns two outputs with the name '{name}': give each a name of its own.")
        found[name] = value
    if not found:
        raise UsageError(f"The network returns no tensor, but {type(result).__name__}.")
    return found


def _walk(value: Any, name: str) -> list[tuple[str, Any]]:
    entries: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        entries = [(str(key), item) for key, item in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        entries = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (list, tuple)):
        entries = [(f"output{index}" if not name else str(index), item) for index, item in enumerate(value)]
    else:
        return [(name, value)]
    prefix = f"{name}/" if name else ""
    return [pair for key, item in entries if item is not None for pair in _walk(item, prefix + key)]
