"""Reference tensors: real inputs with what PyTorch computes for them, so that a device verifies itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from dyndeploy.blocks import Tape, named_outputs
from dyndeploy.bundle.reference_names import EXACT, FORCED, MARGIN, unusable
from dyndeploy.errors import ExportError
from dyndeploy.finite import listed

FORCED_RATE = 0.5


@dataclass(frozen=True)
class Reference:
    """PyTorch's results for the reference inputs.

    Attributes:
        tensors: Every input and output by name, stacked over the samples (n, ...); every mask by its name, and its
            margin (compute logit minus skip logit) under ``margin/``; under ``forced/`` random masks of rate 0.5 with
            the outputs that they give, because a network's own masks may skip nothing on these inputs; under
            ``exact/`` the outputs under the own masks of what the network approximates, if it does.
        rates: Mean of every mask by name.
    """

    tensors: dict[str, npt.NDArray[Any]]
    rates: dict[str, float]


@torch.no_grad()
def compute_reference(network: nn.Module, inputs: Mapping[str, Tensor], seed: int = 0) -> Reference:
    """Run a network in evaluation, one sample at a time.

    Args:
        network: Any module. A method ``exact()`` gives what it approximates: a network with the same masks, or None.
        inputs: By name, in the order of its forward, (n, ...) each.
        seed: Of the random masks.

    Raises:
        ExportError: A result, a gate's decision or a result under random masks is NaN or infinite; the message names
            it, and the module where that begins.
    """
    generator = torch.Generator().manual_seed(seed)
    columns: dict[str, list[Tensor]] = {name: [value] for name, value in inputs.items()}

    def keep(name: str, value: Tensor) -> None:
        columns.setdefault(name, []).append(value)

    def random_mask(name: str, mask: Tensor) -> Tensor:
        bits = (torch.rand(mask.shape, generator=generator) < FORCED_RATE).to(mask.dtype)
        keep(f"{FORCED}{name}", bits)
        return bits

    exact = getattr(network, "exact", lambda: None)()
    for sample in zip(*(torch.split(value, 1) for value in inputs.values()), strict=True):
        with Tape(network) as own:
            outputs = named_outputs(network(*sample))
        for name, mask in own.masks.items():
            keep(name, mask)
        for name, margin in own.margins.items():
            keep(f"{MARGIN}{name}", margin)
        for name, value in outputs.items():
            keep(name, value)
        if exact is not None:
            with Tape(exact, force=own.masks):
                for name, value in named_outputs(exact(*sample)).items():
                    keep(f"{EXACT}{name}", value)
        if own.masks:
            with Tape(network, force=random_mask):
                for name, value in named_outputs(network(*sample)).items():
                    keep(f"{FORCED}{name}", value)
    tensors = {name: _single(torch.cat(parts)).numpy() for name, parts in columns.items()}
    found = unusable(tensors)
    if found or own.masks:
        everything, begin = _with_every_mask(network, [value[:1] for value in inputs.values()])
        found = found or (everything and f"with every mask set, {everything}")
        if found:
            raise ExportError(
                f"The network computes no usable result for the reference inputs: {found}.{begin} Mend that, or export "
                "a checkpoint from before training diverged."
            )
    rates = {name: float(tensors[name].mean()) for name in own.masks}
    return Reference(tensors, rates)


def _with_every_mask(network: nn.Module, sample: Sequence[Tensor]) -> tuple[str, str]:
    """Say which outputs are not finite where nothing is skipped, and in which module that begins; else empty."""
    begin: list[str] = []

    def look(path: str, module: nn.Module, args: Any, output: Any) -> None:
        if not begin and not _finite(output):
            where = "in" if _finite(args) else "before"
            begin.append(f" It begins {where} {path or 'its own forward'} ({type(module).__name__}).")

    handles = [
        module.register_forward_hook(lambda module, args, output, path=path: look(path, module, args, output))
        for path, module in network.named_modules()
    ]
    try:
        with Tape(network, force=lambda name, mask: torch.ones_like(mask)):
            outputs = named_outputs(network(*sample))
    finally:
        for handle in handles:
            handle.remove()
    return listed({name: _single(value).numpy() for name, value in outputs.items()}), "".join(begin)


def _finite(values: Any) -> bool:
    """Whether the tensors among what a module takes or gives are finite."""
    tensors = values if isinstance(values, (tuple, list)) else [values]
    return all(bool(torch.isfinite(value).all()) for value in tensors if isinstance(value, Tensor))


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
