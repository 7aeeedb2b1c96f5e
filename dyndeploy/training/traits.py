"""What a recipe has to know of its network: asked of the network itself, before it is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_type_hints

import torch
from torch import nn

from dyndeploy.blocks import StagedNetwork, dynamic_blocks
from dyndeploy.errors import DyndeployError
from dyndeploy.nets import DEFAULT_PREPROCESSING, Preprocessing, model_info, preprocessing_at, registered
from dyndeploy.nets.factories import build_network


@dataclass(frozen=True)
class Traits:
    """What a network has use for.

    Attributes:
        budget: Whether what it computes can vary, so that a FLOPs budget and a temperature mean something to it.
        exits: Number of its exits; 1 where it has one result.
        input_size: (height, width) that it is made for; None where it does not say.
        preprocessing: How images become its input, at the size that it is trained at.
        detects: Whether it finds objects: it has a method ``detect``.
    """

    budget: bool
    exits: int
    input_size: tuple[int, int] | None
    preprocessing: Preprocessing
    detects: bool = False


def network_traits(
    name: str, options: Mapping[str, Any], imported: str | None, input_size: tuple[int, int] | None
) -> Traits:
    """Return what a network has use for; a network is built for it, without weights, only where its class cannot tell.

    Args:
        name: See :func:`dyndeploy.nets.factories.build_network`.
        options: See there.
        imported: See there.
        input_size: (height, width) that it is trained at; None for its own.

    Raises:
        UsageError: It cannot be built.
        InputError: See :func:`dyndeploy.nets.factories.build_network`.
    """
    if imported is None:
        info = model_info(name)
        network_type = get_type_hints(info.entry_point).get("return")
        exits, budget = getattr(network_type, "exits", 1), hasattr(network_type, "full_flops")
        if budget or (isinstance(exits, int) and exits > 1):
            preprocessing = preprocessing_at(info, input_size or info.input_size)
            return Traits(budget, exits, info.input_size, preprocessing, hasattr(network_type, "detect"))
    return _traits(name, json.dumps(options, sort_keys=True, default=list), imported, input_size)


@lru_cache(maxsize=64)
def _traits(name: str, options: str, imported: str | None, input_size: tuple[int, int] | None) -> Traits:
    plain = json.loads(options)
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                network = build_network(name, plain, imported)
            return _ask(network, input_size)
        except (DyndeployError, RuntimeError, ValueError, NotImplementedError):
            # Some modules compute with numbers while they are built, or while they run; mistakes show again.
            return _ask(build_network(name, plain, imported), input_size)


def _ask(network: nn.Module, input_size: tuple[int, int] | None) -> Traits:
    info = registered(network)
    own = getattr(network, "input_size", None if info is None else info.input_size)
    size = (int(own[0]), int(own[1])) if isinstance(own, (tuple, list)) and len(own) == 2 else None
    budget = hasattr(network, "full_flops") or any(True for _ in dynamic_blocks(network))
    shown = input_size or size
    preprocessing = DEFAULT_PREPROCESSING if shown is None else preprocessing_at(info, shown)
    detects = hasattr(network, "detect")
    return Traits(budget, 1 if detects else _exits(network, shown), size, preprocessing, detects)


def _exits(network: nn.Module, input_size: tuple[int, int] | None) -> int:
    if isinstance(network, StagedNetwork):
        return network.exits
    if input_size is None:
        return 1
    parameter = next(network.parameters(), torch.empty(0))
    images = torch.zeros(2, 3, *input_size, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), parameter.device:
            result = network.eval()(images)
    except Exception:
        if parameter.device.type == "meta":
            raise RuntimeError("It does not run without numbers.") from None
        return 1  # Training says what is wrong with it, on real images.
    found = list(result) if isinstance(result, (list, tuple)) and not hasattr(result, "outputs") else []
    alike = all(isinstance(item, torch.Tensor) and item.ndim == 2 and item.shape == found[0].shape for item in found)
    return len(found) if alike and len(found) > 1 else 1
