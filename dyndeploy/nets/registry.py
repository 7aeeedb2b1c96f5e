"""The model registry: entry-point functions announce themselves with :func:`register_model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from dyndeploy.errors import unknown_name

if TYPE_CHECKING:
    from torch import nn

_EntryPoint = TypeVar("_EntryPoint", bound=Callable[[Any], Any])


@dataclass(frozen=True)
class Preprocessing:
    """How an 8-bit RGB image becomes the network's input.

    The shorter side is resized to ``resize`` pixels, the centre is cropped to the input size, values are
    divided by 255, then ``(value - mean) / std`` is taken per channel.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int
    interpolation: str = "bilinear"

    def scaled(self, base: tuple[int, int], size: tuple[int, int]) -> Preprocessing:
        """Return the preprocessing for inputs of another size: the shorter side is resized in proportion.

        Args:
            base: (height, width) that this preprocessing is for.
            size: (height, width) wanted.
        """
        return replace(self, resize=max(1, round(self.resize * min(size) / min(base))))


IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256)
SMALL_32 = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize=32)
DEFAULT_PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize=1)
"""Of a network that does not say: the shorter side becomes that of the input, values lie in [-1, 1]."""
SMALL_64 = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize=64)


@dataclass(frozen=True)
class ModelInfo:
    """What the registry knows about one model.

    Attributes:
        name: The name given to :func:`create_model`.
        family: Networks that share their building blocks and their options, e.g. ``"laud_resnet"``.
        description: One sentence.
        input_size: Default (height, width) in pixels.
        preprocessing: Default preprocessing of images.
        defaults: Every keyword of :func:`create_model` with its default.
        config_type: Dataclass that validates those keywords.
        entry_point: Builds the network from such a dataclass.
    """

    name: str
    family: str
    description: str
    input_size: tuple[int, int]
    preprocessing: Preprocessing
    defaults: Mapping[str, Any]
    config_type: type[Any]
    entry_point: Callable[[Any], nn.Module]

    def builds(self, network: nn.Module) -> bool:
        """Whether the network is of this model's own code, and no subclass written elsewhere."""
        return type(network).__module__ == self.entry_point.__module__


_MODELS: dict[str, ModelInfo] = {}


def register_model(
    *,
    family: str,
    config_type: type[Any],
    input_size: tuple[int, int],
    preprocessing: Preprocessing,
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[_EntryPoint], _EntryPoint]:
    """Register the decorated function under its own name.

    Args:
        family: Family name.
        config_type: Dataclass whose fields are the keywords of the model; all fields need defaults.
        input_size: Default (height, width).
        preprocessing: Default preprocessing.
        defaults: Defaults of this model that differ from those of ``config_type``.

    Returns:
        A decorator that leaves the function as it is. Its docstring's first line becomes the description.
    """
    options = {f.name: f.default for f in fields(config_type)}
    required = [name for name, default in options.items() if default is MISSING]
    if required:
        raise TypeError(f"{config_type.__name__} has fields without a default: {required}")
    options |= defaults or {}

    def decorate(entry_point: _EntryPoint) -> _EntryPoint:
        name = entry_point.__name__
        if name in _MODELS:
            raise ValueError(f"A model named {name} is already registered.")
        _MODELS[name] = ModelInfo(
            name=name,
            family=family,
            description=(entry_point.__doc__ or "").strip().split("\n")[0],
            input_size=input_size,
            preprocessing=preprocessing,
            defaults=MappingProxyType(options),
            config_type=config_type,
            entry_point=entry_point,
        )
        return entry_point

    return decorate


def model_names(family: str | None = None) -> tuple[str, ...]:
    """Return the names of all registered models, or of one family's, sorted."""
    return tuple(sorted(name for name, info in _MODELS.items() if family in (None, info.family)))


def model_info(name: str) -> ModelInfo:
    """Return what is known about a model without building it.

    Raises:
        UsageError: The name is not registered; the nearest name is suggested.
    """
    try:
        return _MODELS[name]
    except KeyError:
        raise unknown_name("model", name, _MODELS) from None


def preprocessing_at(info: ModelInfo | None, size: tuple[int, int]) -> Preprocessing:
    """Return how images become inputs of (height, width) for a model, or for a network that nothing is known of."""
    if info is None:
        return replace(DEFAULT_PREPROCESSING, resize=min(size))
    return info.preprocessing.scaled(info.input_size, size)


def registered(network: nn.Module) -> ModelInfo | None:
    """Return what is known about the model that a network was built as, or is a subclass of; None if nothing is."""
    name = getattr(network, "name", None)
    return _MODELS.get(name) if isinstance(name, str) else None


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a registered network with freshly initialised weights, in training mode.

    Args:
        name: One of :func:`model_names`.
        **options: Keywords of the model's family; ``model_info(name).defaults`` lists them, and
            ``model_info(name).config_type`` describes them.

    Returns:
        The network.

    Raises:
        UsageError: Unknown name, unknown keyword, or a value that the network cannot be built with.

    Example:
        >>> from dyndeploy.nets import create_model
        >>> model = create_model("laud_resnet14_small", mode="spatial", granularity=(4, 4, 2, 1))
    """
    info = model_info(name)
    for option in options:
        if option not in info.defaults:
            raise unknown_name(f"argument of {name}", option, info.defaults)
    network = info.entry_point(info.config_type(**{**info.defaults, **options}))
    if not hasattr(network, "name"):
        network.name = name  # type: ignore[assignment]
    return network
