"""Networks of the zoo by name: their nodes as the exporter would write them, without exporting anything."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.prediction.nodes import NodeGraph, read_nodes

_TARGET = "cpu"


def zoo_nodes(
    name: str,
    options: Mapping[str, Any],
    *,
    batch: int = 1,
    input_size: tuple[int, int] | None = None,
    dense: Sequence[str] = (),
) -> NodeGraph:
    """Nodes of a registered network; the same question is answered once in a process.

    Args:
        name: Registered name.
        options: Of :func:`~dyndeploy.nets.create_model`.
        batch: Images per run.
        input_size: (height, width); None takes the network's own.
        dense: Blocks that run densely whatever their mode.

    Raises:
        UsageError: Unknown name or option, or a network that cannot be written as one graph.
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
    return _nodes(name, fixed, batch, (size[0], size[1]), tuple(dense))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


@functools.lru_cache(maxsize=256)
def _nodes(
    name: str, options: tuple[tuple[str, Any], ...], batch: int, size: tuple[int, int], dense: tuple[str, ...]
) -> NodeGraph:
    import torch

    from dyndeploy.blocks.block import run_dense
    from dyndeploy.export.graph import build_graph
    from dyndeploy.nets import create_model
    from dyndeploy.prediction.tracing import Sizes, UntraceableError, trace
    from dyndeploy.targets import load_target

    def created() -> torch.nn.Module:
        network = create_model(name, **dict(options)).eval()
        run_dense(network, dense)
        return network

    try:
        with torch.device("meta"):
            with Sizes():
                network = created()
            return trace(network, torch.zeros(batch, 3, *size), name=name)
    except UntraceableError:
        model, _ = build_graph(created(), load_target(_TARGET), batch, size, static=False)
        return read_nodes(model, name=name)
