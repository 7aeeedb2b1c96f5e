"""What is exported: a copy of the network with its example inputs and everything that is known of it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from dyndeploy.bundle import INPUT
from dyndeploy.errors import ExportError, UsageError
from dyndeploy.export.detection import check_size, inputs_of
from dyndeploy.nets import NetworkFacts, Preprocessing, preprocessing_at, registered
from dyndeploy.nets.usable import unusable_state
from dyndeploy.tasks.detection import DetectionTask

ExampleInputs: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""Inputs of a network's forward: one, several in order, or by the names of its parameters."""


@runtime_checkable
class HasFacts(Protocol):
    """A network that says how it was built."""

    def facts(self) -> NetworkFacts:
        """Return what a bundle says of it."""


@runtime_checkable
class Detects(Protocol):
    """A network that finds objects: it takes images (N, 3, H, W) and their sizes before padding, (N, 2).

    Attributes:
        task: How images become its inputs, and its outputs detections.
        config: Its options, among them ``num_classes``, ``detections`` and ``score_threshold``.
    """

    task: DetectionTask
    config: Any


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        network: A copy in evaluation and single precision.
        name: Registered name, or name of its class.
        inputs: Example inputs by name, of the batch that is exported.
        input_size: (H, W) of images; None where the inputs are none.
        preprocessing: How images become the input; None where the inputs are none, and of detectors.
        facts: What the network says of itself.
        assumed: Whether the preprocessing was nobody's choice.
        task: Of a detector, else None.
    """

    network: nn.Module
    name: str
    inputs: dict[str, Tensor]
    input_size: tuple[int, int] | None
    preprocessing: Preprocessing | None
    facts: NetworkFacts
    assumed: bool = False
    task: DetectionTask | None = None

    @property
    def examples(self) -> list[Tensor]:
        """The inputs in the order of ``forward``."""
        return list(self.inputs.values())


def make_subject(
    network: nn.Module,
    *,
    batch: int,
    input_size: tuple[int, int] | None = None,
    example_inputs: ExampleInputs | None = None,
    preprocessing: Preprocessing | None = None,
) -> Subject:
    """Look at a network before anything is done.

    Args:
        network: Of any dtype and in any mode; it is not changed.
        batch: Images per run.
        input_size: (H, W); None for the network's own, or that of the example inputs.
        example_inputs: What its forward takes; None for images (N, 3, H, W).
        preprocessing: How images become the input; None for the network's own.

    Raises:
        UsageError: Inputs are missing, of the wrong type, on another device, or contradict ``input_size``.
        ExportError: A weight is NaN or infinite, or a variance is negative.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(f"A network is a torch.nn.Module, not {type(network).__name__}.")
    _require_usable(network)
    info = registered(network)
    facts = network.facts() if isinstance(network, HasFacts) else NetworkFacts()
    name = type(network).__name__ if info is None or not info.builds(network) else info.name
    own_size = getattr(network, "input_size", None if info is None else info.input_size)
    if isinstance(network, Detects):
        return _detector(network, name, input_size or own_size, batch, example_inputs, preprocessing, facts)
    if example_inputs is None:
        size = input_size or own_size
        if size is None:
            raise UsageError(
                f"{name} does not say what it takes: give example_inputs (or --input-size HxW for images of three "
                "channels)."
            )
        inputs = {INPUT: torch.zeros(batch, 3, *size)}
    else:
        inputs = {key: _of_batch(key, value, batch) for key, value in _named(network, example_inputs).items()}
    size = _image_size(inputs)
    if size is not None and input_size is not None and size != input_size:
        raise UsageError(
            f"The example inputs are {size[0]}x{size[1]} images, and the input size was said to be "
            f"{input_size[0]}x{input_size[1]}: give one of them."
        )
    assumed = False
    if size is None:
        if preprocessing is not None:
            raise UsageError(f"{name} takes no images of three channels: leave the preprocessing out.")
    elif preprocessing is None:
        assumed = info is None
        preprocessing = preprocessing_at(info, size)
    # A copy in single precision: whatever dtype and mode the caller's network is in, it stays so.
    twin = copy.deepcopy(network).cpu().float().eval()
    return Subject(twin, name, inputs, size, preprocessing, facts, assumed)


def _detector(
    network: nn.Module,
    name: str,
    size: tuple[int, int] | None,
    batch: int,
    example_inputs: ExampleInputs | None,
    preprocessing: Preprocessing | None,
    facts: NetworkFacts,
) -> Subject:
    """As :func:`make_subject`, of a network that finds objects."""
    assert isinstance(network, Detects)
    if example_inputs is not None or preprocessing is not None:
        raise UsageError(
            f"{name} is a detector, which says itself how images become its inputs: leave example_inputs and "
            "preprocessing out, and give input_size."
        )
    if size is None:
        raise UsageError(f"{name} does not say how large its inputs are: give input_size (--input-size HxW).")
    check_size(name, network.task, size)
    twin = copy.deepcopy(network).cpu().float().eval()
    return Subject(twin, name, inputs_of(size, batch), size, None, facts, task=network.task)


def _named(network: nn.Module, inputs: ExampleInputs) -> dict[str, Any]:
    if isinstance(inputs, Tensor):
        return {INPUT: inputs}
    names = [
        name
        for name, parameter in inspect.signature(network.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if isinstance(inputs, Mapping):
        unknown = sorted(set(inputs) - set(names))
        if unknown or not inputs or list(inputs) != [name for name in names if name in inputs]:
            raise UsageError(
                f"{type(network).__name__}.forward takes {', '.join(names)}, in this order; the example inputs are "
                f"{', '.join(map(str, inputs)) or 'none'}."
            )
        return dict(inputs)
    if not isinstance(inputs, (list, tuple)) or not inputs:
        raise UsageError(f"example_inputs is a tensor, a tuple of tensors or tensors by name, not {inputs!r:.60}.")
    if len(inputs) == 1:
        return {INPUT: inputs[0]}
    variadic = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(network.forward).parameters.values())
    if len(names) < len(inputs) and variadic:
        names += [f"input{index}" for index in range(len(names), len(inputs))]
    if len(names) < len(inputs):
        raise UsageError(f"{type(network).__name__}.forward takes {len(names)} inputs, and {len(inputs)} are given.")
    return dict(zip(names, inputs, strict=False))


def _of_batch(name: str, value: Any, batch: int) -> Tensor:
    """The first samples of an example, or copies of it, as many as the batch."""
    if not isinstance(value, Tensor):
        raise UsageError(f"The example input '{name}' is {type(value).__name__}: give a tensor.")
    if value.device.type != "cpu":
        raise UsageError(f"The example input '{name}' is on {value.device}: give it on the CPU (value.cpu()).")
    if value.ndim < 1 or not len(value):
        raise UsageError(
            f"The example input '{name}' has shape {tuple(value.shape)}: its first axis must be the batch."
        )
    if value.dtype in (torch.float64, torch.float16, torch.bfloat16):
        value = value.float()
    if value.dtype not in (torch.float32, torch.int64, torch.int32, torch.bool, torch.uint8):
        raise UsageError(f"The example input '{name}' is {value.dtype}: no runtime takes that. Give float32 or int64.")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise UsageError(f"The example input '{name}' holds NaN or infinite values.")
    copies = -(-batch // len(value))
    filled: Tensor = value.detach().repeat(copies, *[1] * (value.ndim - 1))[:batch].contiguous()
    return filled


def _image_size(inputs: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(H, W) where the only input is a batch of images of three channels."""
    if len(inputs) != 1:
        return None
    (value,) = inputs.values()
    fits = value.ndim == 4 and value.shape[1] == 3 and value.dtype == torch.float32
    return (int(value.shape[2]), int(value.shape[3])) if fits else None


def _require_usable(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise ExportError(f"{name} is on the meta device and holds no values: load the weights first.")
    problem = unusable_state(network, network.state_dict())
    if problem:
        raise ExportError(f"{problem}: the network is not usable. Export a checkpoint from before training diverged.")
