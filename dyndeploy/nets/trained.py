"""What a checkpoint of ours remembers of its network beside the weights, so that nobody has to say it again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyndeploy.data import INTERPOLATIONS
from dyndeploy.errors import CheckpointError, UsageError
from dyndeploy.fields import Document, Field
from dyndeploy.nets.checkpoint_files import read_checkpoint
from dyndeploy.nets.checkpoints import FORMAT
from dyndeploy.nets.registry import Preprocessing

CHECKPOINT = "checkpoint.pt"
"""File of a training run's folder: the last complete epoch, with all that is needed to go on."""
BEST = "best.pt"
"""File of a training run's folder: the best epoch; it is missing where none kept the FLOPs target."""

TRAINED = "trained"
"""Key of a :class:`TrainedNetwork` among what is kept beside the weights."""


@dataclass(frozen=True)
class TrainedNetwork:
    """How a network was built and what it was shown.

    Attributes:
        name: Registered name, or the function or class of ``imported`` that makes it; None where the file does not say.
        imported: A ``.py`` file or a module; None for networks that come with dyndeploy.
        options: Every option that it was built with, as far as it is known.
        input_size: (height, width) that it was trained at.
        preprocessing: How images became its input.
        class_names: Names of its classes in the order of its logits; empty where they are not known.
        category_ids: COCO's category of each class of a detector; empty where they are not known.
    """

    name: str | None = None
    imported: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what :func:`~dyndeploy.nets.save_checkpoint` keeps under :data:`TRAINED`."""
        preprocessing = self.preprocessing
        return {
            "name": self.name,
            "import": self.imported,
            "options": self.options,
            "input_size": None if self.input_size is None else list(self.input_size),
            "preprocessing": None
            if preprocessing is None
            else {
                "mean": list(preprocessing.mean),
                "std": list(preprocessing.std),
                "resize": preprocessing.resize,
                "interpolation": preprocessing.interpolation,
            },
            "class_names": list(self.class_names),
            **({"category_ids": list(self.category_ids)} if self.category_ids else {}),
        }

    def preprocessing_at(self, input_size: tuple[int, int] | None) -> Preprocessing | None:
        """Return the preprocessing for another input size: the shorter side grows and shrinks with it."""
        if self.preprocessing is None or self.input_size is None or input_size is None:
            return self.preprocessing
        return self.preprocessing.scaled(self.input_size, input_size)


def checkpoint_of_run(folder: str | os.PathLike[str], weights: str | None = None) -> Path:
    """Return the file of a training run's folder whose weights are meant: the best epoch's, else the last one's.

    Args:
        folder: What ``dyndeploy train -o`` wrote.
        weights: Name of a set of weights, which only the last epoch's file has several of; None for the usual.

    Raises:
        UsageError: The folder holds neither.
    """
    root = Path(folder)
    last, best = root / CHECKPOINT, root / BEST
    if weights is None and best.is_file():
        return best
    if last.is_file():
        return last
    raise UsageError(
        f"{root} is a folder, and no training run: it holds no {CHECKPOINT}. Give the name of a network, or the folder "
        "that 'dyndeploy train' wrote (-o)."
    )


def read_trained(path: str | os.PathLike[str]) -> TrainedNetwork:
    """Return what a checkpoint remembers; of a file of another tool nothing.

    Raises:
        CheckpointError: The file is missing, damaged or hostile, or what it says makes no sense.
    """
    source = Path(path)
    content = read_checkpoint(source)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        return TrainedNetwork()
    root = Document(str(source), "Train again, or name the network and its options yourself.", CheckpointError).root
    extra = content.get("extra")
    kept = extra.get(TRAINED) if isinstance(extra, Mapping) else None
    whole = root(dict(content))
    name, options = whole.get("model").optional(Field.text), whole.get("options").optional(Field.facts) or {}
    if kept is None:
        return TrainedNetwork(name, options=options)
    fields = root(kept)
    return TrainedNetwork(
        name=fields.get("name").optional(Field.text) or name,
        imported=fields.get("import").optional(Field.text),
        options=options | (fields.get("options").optional(Field.facts) or {}),
        input_size=fields.get("input_size").optional(_size),
        preprocessing=fields.get("preprocessing").optional(_preprocessing),
        class_names=fields.get("class_names").optional(lambda names: names.sequence(Field.text)) or (),
        category_ids=fields.get("category_ids").optional(
            lambda numbers: numbers.sequence(lambda number: number.count(0))
        )
        or (),
    )


def _size(item: Field) -> tuple[int, int]:
    height, width = item.sequence(Field.count, length=2)
    return height, width


def _preprocessing(item: Field) -> Preprocessing:
    red, green, blue = item["mean"].sequence(Field.number, length=3)
    spread = item["std"].sequence(Field.number, length=3)
    item["std"].require(min(spread) > 0, "three numbers above 0")
    return Preprocessing(
        mean=(red, green, blue),
        std=(spread[0], spread[1], spread[2]),
        resize=item["resize"].count(),
        interpolation=item["interpolation"].one_of(*INTERPOLATIONS),
    )
