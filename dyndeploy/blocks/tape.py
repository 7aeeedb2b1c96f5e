"""A tape records what the gates of any module decide, and may decide in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from dyndeploy.blocks.block import dynamic_blocks, mask_name
from dyndeploy.blocks.gates import Gate, Noise, Temperature
from dyndeploy.errors import UsageError
from dyndeploy.ops.base import Shape

Force = Callable[[str, Tensor], Tensor | None]
"""``(name of a mask, the gate's own mask) -> mask to use instead``, or None to keep it."""


@dataclass(frozen=True)
class Call:
    """One call of a block's ``compute``.

    Attributes:
        inputs: Shapes of its tensors.
        masks: Masks that it was given, by keyword.
        nonnegative: Whether its first tensor held no negative number; False where gradients are recorded, which nobody
            asks about, and where looking at the numbers would take time.
    """

    inputs: tuple[Shape, ...]
    masks: Mapping[str, Tensor]
    nonnegative: bool


@dataclass(frozen=True)
class Decision:
    """One decision of a gate.

    Attributes:
        block: Dotted path of its block.
        gate: Name of the gate in its block.
        kind: Name of its kind.
        size: (rows, columns) that the block asked for, or None.
        mask: What was decided, (N, ...).
        margin: Compute logit minus skip logit, of the mask's shape.
    """

    block: str
    gate: str
    kind: str
    size: tuple[int, int] | None
    mask: Tensor
    margin: Tensor


class Tape:
    """A context around a module that records its decisions; with every call of the module the record starts anew.

    Args:
        module: Any module; blocks are found in it, at any depth.
        force: Masks by name, or a function that gives them; see :data:`Force`.
        temperature: Gumbel-softmax temperature of gates in training mode that are not given one.
        noise: Gumbel noise of training; None leaves the gates their own.
        mean: Averages a mask over the batch where FLOPs are counted; a trainer puts one here that knows the whole batch
            where several processes hold parts of it (products of averages are not averages of products).

    Attributes:
        decisions: By mask name, in order of execution.
        calls: Calls of ``compute`` by dotted path of the block, in order of execution.

    Raises:
        UsageError: While the module runs: a block that is used twice in one pass, or a mask of another shape.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        force: Mapping[str, Tensor] | Force | None = None,
        temperature: Temperature = None,
        noise: Noise | None = None,
        mean: Callable[[Tensor], Tensor] = torch.mean,
    ) -> None:
        self.module = module
        self.temperature = temperature
        self.mean = mean
        self.decisions: dict[str, Decision] = {}
        self.calls: dict[str, Call] = {}
        self._noise = noise
        self._force: Force = (lambda name, mask: None) if force is None else force if callable(force) else _given(force)
        self._gates: dict[Gate, tuple[str, str]] = {}
        self._undo: list[Callable[[], None]] = []

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by name; a mask inside a skipped block is 0 for the images that skip it, as nothing is computed."""
        return {name: decision.mask * self._enclosing(decision) for name, decision in self.decisions.items()}

    @property
    def margins(self) -> dict[str, Tensor]:
        """Margins by mask name; 0 where an enclosing block is skipped."""
        return {name: decision.margin * self._enclosing(decision) for name, decision in self.decisions.items()}

    def _enclosing(self, decision: Decision) -> Tensor | float:
        """Product of the whole-block masks around a block, for each image, broadcast to the decision's mask."""
        product: Tensor | float = 1.0
        for other in self.decisions.values():
            inside = decision.block.startswith(f"{other.block}.") if other.block else bool(decision.block)
            if inside and other.mask.numel() == len(other.mask):
                product = product * other.mask.reshape(-1, *[1] * (decision.mask.ndim - 1))
        return product

    def __enter__(self) -> Tape:
        """Start recording; raises ``UsageError`` for gates that two blocks share, or that another tape records."""
        try:
            self._undo.append(self.module.register_forward_pre_hook(self._start).remove)
            for path, block, gates in dynamic_blocks(self.module):
                for name, gate in gates.items():
                    if gate.tape is not None:
                        other = self._gates.get(gate)
                        where = "another tape records it" if other is None else f"{other[0]} has it too"
                        raise UsageError(f"The gate '{name}' of {path or 'the network'} cannot be recorded: {where}.")
                    self._gates[gate] = (path, name)
                    self._undo.append(partial(setattr, gate, "noise", gate.noise))
                    self._undo.append(partial(setattr, gate, "tape", None))
                    gate.tape, gate.noise = self, self._noise or gate.noise
                self._undo.append(replace_attribute(block, "compute", partial(self._compute, path, block.compute)))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop recording; the record stays."""
        while self._undo:
            self._undo.pop()()
        self._gates.clear()

    def _start(self, module: nn.Module, inputs: Any) -> None:
        self.decisions, self.calls = {}, {}

    def see(self, gate: Gate, logits: Tensor, mask: Tensor) -> Tensor:
        """Record a decision, and return the mask to use: the gate's own or the forced one."""
        block, name = self._gates[gate]
        label = mask_name(block, name)
        if label in self.decisions:
            raise UsageError(
                f"The block {block or 'at the root'} is used twice in one pass: it has one set of masks only. Make one "
                "instance for each use (copy.deepcopy gives one with equal weights)."
            )
        forced = self._force(label, mask)
        if forced is not None:
            if forced.shape != mask.shape:
                raise UsageError(
                    f"The mask {label} is {tuple(mask.shape)}, and {tuple(forced.shape)} was to be forced."
                )
            mask = forced.to(mask)
        size = (int(mask.shape[-2]), int(mask.shape[-1])) if mask.ndim == 4 else None
        self.decisions[label] = Decision(block, name, gate.kind.name, size, mask, logits[:, 0] - logits[:, 1])
        return mask

    def _compute(self, path: str, compute: Callable[..., Any], *inputs: Tensor, **masks: Tensor) -> Any:
        result = compute(*inputs, **masks)
        shapes = tuple(tuple(item.shape) for item in inputs)
        nonnegative = inputs[0].is_meta or (not torch.is_grad_enabled() and bool((inputs[0] >= 0).all()))
        self.calls[path] = Call(shapes, masks, nonnegative)
        return result


def replace_attribute(owner: object, name: str, value: object) -> Callable[[], None]:
    """Give one object, not its class, another attribute; return what puts back what it had, itself or by its class."""
    own = {name: owner.__dict__[name]} if name in owner.__dict__ else {}
    object.__setattr__(owner, name, value)

    def put_back() -> None:
        owner.__dict__.pop(name, None)
        owner.__dict__.update(own)

    return put_back


def _given(masks: Mapping[str, Tensor]) -> Force:
    return lambda name, mask: masks.get(name)
