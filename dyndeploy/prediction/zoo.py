"""Networks of the zoo by name: their nodes as the exporter would write them, without exporting anything."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.prediction.nodes import SPELT_OUT, NodeGraph, read_nodes
from dyndeploy.prediction.staged import StagedNodes
from dyndeploy.targets import load_target, target_names

_TARGET = "cpu"


def predicted_only(name: str) -> str | None:
    """Why a name that ``predict`` knows is no network to plan, train or export; None for every other name."""
    from dyndeploy.nets import model_names
    from dyndeploy.prediction.architectures import static_name
    from dyndeploy.prediction.laudnet import is_network_name

    if name in model_names():
        return None
    if static_name(name) is not None:
        return (
            f"{name} is known to 'predict' only: its layers are written down for pricing, and there is no network of "
            "that name to run. 'dyndeploy models' lists those that there are; your own goes by --import."
        )
    if is_network_name(name):
        return (
            f"{name} is known to the reference predictor only ('predict --predictor reference'): there is no such "
            "network to price the kernels of. 'dyndeploy models' lists those that there are."
        )
    return None


def predict_only_names() -> dict[str, str]:
    """Names that are no registered networks, and what ``predict`` knows of each."""
    from dyndeploy.nets import model_names
    from dyndeploy.prediction.architectures import static_names
    from dyndeploy.prediction.laudnet import network_names

    known = set(model_names())
    static = dict.fromkeys(static_names(), "Static network, written down for pricing.")
    reference = dict.fromkeys(network_names(), "With --predictor reference: as the LAUDNet predictor sees it.")
    return {name: text for name, text in {**static, **reference}.items() if name not in known}


def require_registered(name: str) -> None:
    """Raise ``UsageError`` for a name that is no registered network, with the reason where ``predict`` knows it."""
    from dyndeploy.nets import model_names

    reason = predicted_only(name)
    if reason is not None:
        raise UsageError(reason)
    if name not in model_names():
        raise unknown_name("network", name, model_names())


def lacking_operators(device: str) -> tuple[str, ...]:
    """Operators that graphs for a device are written without; none where it is no target of its own."""
    if device not in target_names():
        return ()
    allowed = load_target(device).allowed_operators
    return () if allowed is None else tuple(name for name in SPELT_OUT if name not in allowed)


def zoo_nodes(
    name: str,
    options: Mapping[str, Any],
    *,
    batch: int = 1,
    input_size: tuple[int, int] | None = None,
    dense: Sequence[str] = (),
) -> NodeGraph:
    """Nodes of a registered network that is one graph; the same question is answered once in a process.

    Args:
        name: Registered name.
        options: Of :func:`~dyndeploy.nets.create_model`.
        batch: Images per run.
        input_size: (height, width); None takes the network's own.
        dense: Blocks that run densely whatever their mode.

    Raises:
        UsageError: Unknown name or option, or a network that cannot be written as one graph.
    """
    found = zoo_network(name, options, batch=batch, input_size=input_size, dense=dense)
    if isinstance(found, StagedNodes):
        raise UsageError(f"{name} exits early: it is no single graph.")
    return found


def zoo_network(
    name: str,
    options: Mapping[str, Any],
    *,
    batch: int = 1,
    input_size: tuple[int, int] | None = None,
    dense: Sequence[str] = (),
    lacks: Collection[str] = (),
) -> NodeGraph | StagedNodes:
    """As :func:`zoo_nodes`, for any registered network: of one that exits early, its stages.

    Args:
        name: Registered name.
        options: As for :func:`zoo_nodes`, like all that follow.
        batch: Images per run.
        input_size: (height, width); None takes the network's own.
        dense: Blocks that run densely whatever their mode.
        lacks: Operators that the platform does not have: export writes them as several.

    Raises:
        UsageError: Unknown name or option.
    """
    from dyndeploy.nets import model_info, model_names

    if name not in model_names():
        from dyndeploy.prediction.architectures import static_names
        from dyndeploy.prediction.laudnet import is_network_name

        if is_network_name(name):
            raise UsageError(
                f"{name} is known to the reference predictor only: there is no such network to price the kernels of. "
                "Give --predictor reference."
            )
        raise unknown_name("network", name, [*model_names(), *static_names()])
    size = input_size or model_info(name).input_size
    if min(size) < 1:
        raise UsageError(f"The input size must be positive, not {size[0]}x{size[1]}.")
    fixed = tuple(sorted((key, _hashable(value)) for key, value in options.items()))
    return _network(name, fixed, batch, (size[0], size[1]), tuple(dense), tuple(sorted(lacks)))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


@functools.lru_cache(maxsize=256)
def _network(
    name: str,
    options: tuple[tuple[str, Any], ...],
    batch: int,
    size: tuple[int, int],
    dense: tuple[str, ...],
    lacks: tuple[str, ...],
) -> NodeGraph | StagedNodes:
    import torch

    from dyndeploy.blocks import StagedNetwork, confidence_of
    from dyndeploy.blocks.block import run_dense
    from dyndeploy.export.graph import build_graph
    from dyndeploy.export.staged import build_stages
    from dyndeploy.export.subject import Detects
    from dyndeploy.nets import create_model
    from dyndeploy.prediction.tracing import Sizes, UntraceableError, trace, trace_stages

    def created() -> torch.nn.Module:
        network = create_model(name, **dict(options)).eval()
        run_dense(network, dense)
        return network

    try:
        with torch.device("meta"):
            with Sizes():
                network = created()
            if isinstance(network, Detects):
                raise UntraceableError
            image = torch.zeros(batch, 3, *size)
            if not isinstance(network, StagedNetwork):
                return trace(network, image, name=name, lacks=lacks)
            segments = network.segments(tuple(range(1, network.exits + 1)))
            traced = trace_stages(segments, image, name=name, measure=confidence_of(network), lacks=lacks)
            return StagedNodes(name, tuple(traced))
    except UntraceableError:
        network = created()
        if not isinstance(network, StagedNetwork):
            model, _ = build_graph(network, load_target(_TARGET), batch, size, static=False)
            return read_nodes(model, name=name)
        built = build_stages(network, load_target(_TARGET), None, batch, size)
        return StagedNodes(name, tuple((stage.exit, read_nodes(stage.model, name=name)) for stage in built))
