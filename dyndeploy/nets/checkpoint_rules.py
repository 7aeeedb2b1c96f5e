"""What a family of networks says about files of weights: what they may lack, and how one is made to fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

# torchvision's first published ResNet weights are older than this counter, which inference does not use.
OPTIONAL_SUFFIX = ".num_batches_tracked"


class CheckpointRules:
    """The rules of any network: its files hold all of its weights and nothing else.

    A family with others returns a subclass from a method ``checkpoint_rules()`` of its networks.

    Attributes:
        preferred: Name of the entry that its files mean where they hold several sets of weights; None for the usual.
    """

    preferred: str | None = None

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a file's weights as the network has them, where other tools keep several in one or in other shapes."""
        return dict(weights)

    def start_values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of weights that a file lacks, where those that the network was created with will not do."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """What has to be said of the file that was loaded last: phrases without a full stop."""
        return ()

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

    def untold(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Options that decide what these weights compute, and that no name and no shape among them tells."""
        return ()

    def assumed(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Options that are not told either, and that have one value in nearly all files: the network's default."""
        return ()

    def classifiers(self, network: nn.Module, classes: int) -> tuple[str, ...]:
        """Modules whose weights have shapes that follow from the number of classes, by their dotted names.

        Training that starts from weights for other classes leaves these fresh. A network that does not say has those
        linear layers and convolutions whose output is as wide as there are classes.

        Args:
            network: It.
            classes: Its number of classes.
        """
        return tuple(
            name
            for name, module in network.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.shape[0] == classes
        )

    def other_names(self) -> Mapping[str, str]:
        """What else weights are called in files of other tools -> names here."""
        return {}

    def start_names(self) -> Mapping[str, str]:
        """Names of weights in files that training can start from, such as a static backbone's -> names here."""
        return {}

    def start_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of a file's weights, under the network's names, that training starts from."""
        return dict(weights)

    def may_start_without(self, key: str, weights: Mapping[str, Tensor]) -> bool:
        """Whether training can start from a file that lacks this weight, and whose weights are these."""
        return False


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
