"""Recipes: everything that a training run depends on, read from YAML and checked before any work begins."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.files import shipped_folder
from dyndeploy.nets import model_info
from dyndeploy.training.schedules import SCHEDULES

DATASETS = ("digits", "imagefolder")

_SUFFIXES = (".yaml", ".yml")
_Section = TypeVar("_Section")


@dataclass(frozen=True)
class ModelRecipe:
    """The network.

    Attributes:
        name: A registered model.
        options: Keywords of :func:`dyndeploy.nets.create_model`.
        input_size: (height, width) in pixels; None for the model's own.
        initial_weights: Checkpoint to start from; None for random weights.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None
    initial_weights: str | None = None


@dataclass(frozen=True)
class DataRecipe:
    """The images.

    Attributes:
        dataset: "digits" (scikit-learn's, nothing to download) or "imagefolder".
        folder: For "imagefolder": a folder with ``train`` and ``val`` in it, each with one sub-folder of
            images per class.
        augment: Vary the training images: random crops and mirroring for "imagefolder", shifts by up to a
            sixteenth of the side for "digits".
        workers: Processes that read images; 0 reads in the training process.
    """

    dataset: str
    folder: str | None = None
    augment: bool = True
    workers: int = 0


@dataclass(frozen=True)
class OptimizerRecipe:
    """SGD with Nesterov momentum; the learning rate falls to 0 along a cosine, per iteration.

    Attributes:
        lr: Learning rate at the start.
        momentum: In [0, 1).
        weight_decay: On all parameters, batch norm and biases included, as in the LAUDNet reference code.
    """

    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0


@dataclass(frozen=True)
class SparsityRecipe:
    """The FLOPs budget.

    Attributes:
        target: FLOPs of the network over those of its static twin, in (0, 1].
        weight: Factor of the sparsity loss.
        bounds_until: Fraction of training, above 0, after which single blocks are free; above 1 they stay
            bounded to the end.
    """

    target: float = 0.5
    weight: float = 10.0
    bounds_until: float = 0.33


@dataclass(frozen=True)
class TemperatureRecipe:
    """Temperature of the Gumbel-softmax, changed every iteration.

    Attributes:
        schedule: "exp", "linear" or "cosine".
        start: First value, above 0.
        end: Last value, above 0.
    """

    schedule: str = "exp"
    start: float = 5.0
    end: float = 0.1


@dataclass(frozen=True)
class DistillationRecipe:
    """Learning from the static network of the same initial weights.

    Attributes:
        weight: Factor of the distillation loss.
        temperature: Of both softmaxes, above 0.
    """

    weight: float = 0.5
    temperature: float = 4.0


@dataclass(frozen=True)
class CheckpointRecipe:
    """Published weights of this recipe.

    Attributes:
        url: Where they can be downloaded; None where there is no address that a program can read.
        note: What else one has to know about them.
        accuracy: Published top-1 accuracy, a fraction; None where it is not known.
    """

    url: str | None = None
    note: str | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        name: Its name; output folders are named after it.
        description: One sentence.
        model: The network.
        data: The images.
        epochs: Passes over the training images.
        batch_size: Images per iteration; an incomplete last batch is dropped.
        optimizer: Optimizer and learning rate.
        sparsity: FLOPs budget.
        temperature: Gumbel-softmax temperature.
        distillation: None trains on labels alone.
        seed: Seed of weights, order, augmentation, sampling and split.
        checkpoint: Published weights.
    """

    name: str
    description: str
    model: ModelRecipe
    data: DataRecipe
    epochs: int
    batch_size: int
    optimizer: OptimizerRecipe
    sparsity: SparsityRecipe = SparsityRecipe()
    temperature: TemperatureRecipe = TemperatureRecipe()
    distillation: DistillationRecipe | None = None
    seed: int = 0
    checkpoint: CheckpointRecipe = CheckpointRecipe()

    def __post_init__(self) -> None:
        """Check the values that a type does not settle.

        Raises:
            UsageError: Naming the key, its value and what is valid.
        """
        info = model_info(self.model.name)
        for option in self.model.options:
            if option not in info.defaults:
                raise unknown_name(f"argument of {self.model.name}", option, info.defaults)
        info.config_type(**{**info.defaults, **self.model.options})
        if self.data.dataset not in DATASETS:
            raise unknown_name("dataset", self.data.dataset, DATASETS)
        if self.temperature.schedule not in SCHEDULES:
            raise unknown_name("temperature.schedule", self.temperature.schedule, SCHEDULES)
        _require("epochs", self.epochs, self.epochs >= 1, "at least 1")
        # Batch norm cannot learn from one image on a map of one pixel.
        _require("batch_size", self.batch_size, self.batch_size >= 2, "at least 2")
        _require("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295")
        _require("data.workers", self.data.workers, self.data.workers >= 0, "at least 0")
        if self.model.input_size is not None:
            _require("model.input_size", self.model.input_size, min(self.model.input_size) >= 1, "at least 1 each")
        _require("optimizer.lr", self.optimizer.lr, self.optimizer.lr > 0, "above 0")
        # Nesterov's momentum is not defined at 0.
        _require("optimizer.momentum", self.optimizer.momentum, 0 < self.optimizer.momentum < 1, "between 0 and 1")
        _require("optimizer.weight_decay", self.optimizer.weight_decay, self.optimizer.weight_decay >= 0, "at least 0")
        _require("sparsity.target", self.sparsity.target, 0 < self.sparsity.target <= 1, "above 0 and at most 1")
        _require("sparsity.weight", self.sparsity.weight, self.sparsity.weight >= 0, "at least 0")
        until = self.sparsity.bounds_until
        _require("sparsity.bounds_until", until, until > 0, "above 0")
        _require("temperature.start", self.temperature.start, self.temperature.start > 0, "above 0")
        _require("temperature.end", self.temperature.end, self.temperature.end > 0, "above 0")
        if self.distillation is not None:
            _require("distillation.weight", self.distillation.weight, self.distillation.weight >= 0, "at least 0")
            kd = self.distillation.temperature
            _require("distillation.temperature", kd, kd > 0, "above 0")
        accuracy = self.checkpoint.accuracy
        if accuracy is not None:
            _require("checkpoint.accuracy", accuracy, 0 < accuracy <= 1, "a fraction above 0 and at most 1")

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) that the network is trained at."""
        return self.model.input_size or model_info(self.model.name).input_size

    def with_changes(
        self, *, epochs: int | None = None, folder: str | None = None, initial_weights: str | None = None
    ) -> Recipe:
        """Return a copy with what a user may say beside the recipe; None leaves a value alone.

        Args:
            epochs: Passes over the training images.
            folder: Folder with the images; see :class:`DataRecipe`.
            initial_weights: Checkpoint to start from.

        Raises:
            UsageError: A value that is not valid.
        """
        recipe = self
        if epochs is not None:
            recipe = dataclasses.replace(recipe, epochs=epochs)
        if folder is not None:
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folder=folder))
        if initial_weights is not None:
            model = dataclasses.replace(recipe.model, initial_weights=initial_weights)
            recipe = dataclasses.replace(recipe, model=model)
        return recipe

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON types; :meth:`from_dict` rebuilds it."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_dict(cls, value: Any, source: str = "recipe") -> Recipe:
        """Build a recipe from plain data.

        Args:
            value: Nested dicts, as YAML or JSON give them.
            source: What to call it in messages.

        Raises:
            UsageError: An unknown or missing key, or a value of the wrong type or range.
        """
        try:
            return _parse(cls, value, "")
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error


def recipe_folder() -> Path:
    """Return the folder of the recipes that come with dyndeploy."""
    return shipped_folder("models")


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with dyndeploy, sorted."""
    return tuple(sorted(path.stem for path in recipe_folder().glob("*.yaml")))


def load_recipe(recipe: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Args:
        recipe: One of :func:`recipe_names`, or the path of a YAML file (ending in .yaml or .yml).

    Raises:
        UsageError: An unknown name, an unknown or missing key, or a bad value; the key is named.
        InputError: The file is missing or is not YAML.
    """
    path = Path(recipe)
    if path.suffix.lower() not in _SUFFIXES:
        name = os.fspath(recipe)
        if name not in recipe_names():
            raise unknown_name("recipe", name, recipe_names())
        path = recipe_folder() / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no recipe {path}. `dyndeploy train --help` says how to name one.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the recipe {path}: {error}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    return Recipe.from_dict(content, path.name)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that :func:`load_recipe` reads back equal."""
    return yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True)


def differences(one: Recipe, other: Recipe) -> tuple[str, ...]:
    """Return the dotted keys in which two recipes differ."""
    a, b = _flat(one.as_dict()), _flat(other.as_dict())
    return tuple(key for key in {**a, **b} if a.get(key) != b.get(key))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {f"{prefix}{key}": entry}
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _require(key: str, value: Any, valid: bool, wanted: str) -> None:
    if not valid:
        shown = list(value) if isinstance(value, tuple) else value
        raise UsageError(f"{key}: {shown} is not valid: give a value {wanted}.")


def _parse(section: type[_Section], value: Any, prefix: str) -> _Section:
    """Build a dataclass from a dict, going down into the dataclasses among its fields."""
    where = prefix.rstrip(".") or "the file"
    if not isinstance(value, dict):
        raise UsageError(f"{where} is not a mapping of keys to values but {value!r}.")
    types = get_type_hints(section)
    known = {f.name: f for f in dataclasses.fields(section)}  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise unknown_name(f"key in {where}", str(key), known)
    missing = [
        name
        for name, f in known.items()
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(prefix + name for name in missing)}.")
    return section(**{key: _value(types[key], entry, prefix + key) for key, entry in value.items()})


def _value(declared: Any, value: Any, key: str) -> Any:
    choices = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    if value is None and type(None) in choices:
        return None
    wanted = next(choice for choice in choices if choice is not type(None))
    if dataclasses.is_dataclass(wanted):
        assert isinstance(wanted, type)
        return _parse(wanted, value, f"{key}.")
    convert, description = _TYPES[wanted]
    converted = convert(value)
    if converted is None:
        raise UsageError(f"{key}: {value!r} is not valid: give {description}.{_hint(wanted, value)}")
    return converted


def _hint(wanted: Any, value: Any) -> str:
    # YAML 1.1 reads 5e-5, without a decimal point, as text.
    if wanted is float and isinstance(value, str):
        with contextlib.suppress(InvalidOperation):
            return f" YAML takes {value} for text: write {Decimal(value):f}."
    return ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None


def _pair(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    first, second = _whole(value[0]), _whole(value[1])
    return None if first is None or second is None else (first, second)


def _mapping(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else None


# How the fields' types are read: a converter that returns None for what it does not take, and words for it.
_TYPES: Mapping[Any, tuple[Callable[[Any], Any], str]] = MappingProxyType(
    {
        str: (_text, "a text"),
        bool: (_flag, "true or false"),
        int: (_whole, "a whole number"),
        float: (_number, "a number"),
        tuple[int, int]: (_pair, "two whole numbers, [height, width]"),
        dict[str, Any]: (_mapping, "a mapping of keys to values"),
    }
)
