"""What a family of networks says about files of weights: what they may lack, and how one is made to fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

# torchvision's first published ResNet weights are older than this counter, which inference does not use.
OPTIONAL_SUFFIX = ".num_batches_tracked"


class CheckpointRules:
    """The rules of any network: its files hold all of its weights and nothing else.

    A family with others returns a subclass from a method ``checkpoint_rules()`` of its networks.
    """

    def may_lack(self, key: str) -> bool:
        """Whether a file may lack this weight of the network, which then keeps its values."""
        return False

    def may_ignore(self, key: str) -> bool:
        """Whether a file may hold this weight, which the network lacks."""
        return False

    def another_architecture(self, weights: Mapping[str, Tensor]) -> str | None:
        """Say how a file differs that lacks weights or holds foreign ones: a sentence that goes on after its name."""
        return None

    def conflict(self, weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> str | None:
        """Say what forbids weights whose names fit: a sentence that goes on after the file's name.

        Args:
            weights: Of the file, under the network's names.
            options: That the network in the file was built with; {} where the file does not say.
        """
        return None

    def hint(self, weights: Mapping[str, Tensor], key: str) -> str | None:
        """Say which option would make a weight of another shape fit: a sentence."""
        return None


def listing(items: Iterable[Any], limit: int = 4) -> str:
    """Return the first items of many, separated by commas."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + more


def joined(value: Any) -> str:
    """Return a per-stage option as users write it: one value where all stages agree."""
    if isinstance(value, list) and value:
        return str(value[0]) if all(v == value[0] for v in value) else "-".join(map(str, value))
    return str(value)
