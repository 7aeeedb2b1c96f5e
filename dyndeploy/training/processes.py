"""Training on several processes, on one host or many, so that their number changes nothing but the time.

torchrun starts the processes and tells them of each other; without it there is one. A batch of the recipe is
always the batch of all processes together. What normally depends on how it is split does not here: the order
of the images, mixing, the Gumbel noise of the masks, the averages that the FLOPs are computed from and, where
the recipe synchronizes it, batch norm. Dropout and stochastic depth are drawn by each process for itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyndeploy.errors import UsageError

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_T = TypeVar("_T")


class Part(NamedTuple):
    """What one process computes at once of a batch: rows ``start`` to ``stop`` of ``batch``."""

    start: int
    stop: int
    batch: int


class Processes:
    """The processes of a run, seen from one of them.

    Args:
        rank: Number of this process; 0 is the one that writes.
        size: Number of processes.
        device: Where this process computes.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    def parts(self, batch_size: int, accumulation: int, *, pairs: bool = False) -> tuple[Part, ...]:
        """Return this process's parts of a batch, in the order in which it computes them.

        Args:
            batch_size: Images of a batch over all processes.
            accumulation: Parts per process.
            pairs: Images are mixed in pairs, which no part may split.

        Raises:
            UsageError: The batch has no equal parts of at least two images.
        """
        size, rest = divmod(batch_size, accumulation * self.size)
        if rest or size < 2 or (pairs and size % 2):
            wanted = "an even number of images, to be mixed in pairs" if pairs else "at least two images"
            raise UsageError(
                f"batch_size: {batch_size} does not split into {self.size} processes x {accumulation} parts of "
                f"{wanted}: give a multiple of {2 * accumulation * self.size}."
            )
        starts = [(part * self.size + self.rank) * size for part in range(accumulation)]
        return tuple(Part(start, start + size, batch_size) for start in starts)

    def average(self, values: Tensor) -> Tensor:
        """Return the mean of the processes' values, element by element; gradients flow through all of them."""
        if self.size == 1:
            return values
        averaged: Tensor = _Average.apply(values, self.size)  # type: ignore[no-untyped-call]
        return averaged

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of the elements of all processes, which hold equally many."""
        return self.average(values.mean())

    def gather(self, value: _T) -> list[_T]:
        """Return every process's value, in order of rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first(self, read: Callable[[], _T]) -> _T:
        """Return what the first process reads; what it raises is raised in all."""
        if self.size == 1:
            return read()
        message: list[Any] = [None, None]
        if self.rank == 0:
            try:
                message[0] = read()
            except Exception as error:
                message[1] = error
        dist.broadcast_object_list(message, src=0, device=self.device)
        if message[1] is not None:
            raise message[1]
        value: _T = message[0]
        return value

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's buffers (batch norm's running statistics)."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int) -> Tensor:
        ctx.size = size
        return _sum(values) / size

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum(gradients[0]) / ctx.size, None


def _sum(values: Tensor) -> Tensor:
    total = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@contextlib.contextmanager
def join_processes(device: str | None = None) -> Iterator[Processes]:
    """Join the processes that torchrun started with this one; without torchrun there is only this one.

    Joins within a join share it. Several runs in a row need that: processes that part and join again may meet
    what the first join left behind.

    Args:
        device: "cpu" or "cuda"; None takes a GPU where there is one. Processes of a host take one GPU each.

    Raises:
        UsageError: An unknown device, or one that this machine lacks.
    """
    several = all(name in os.environ for name in _TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1
    chosen = _device(device, int(os.environ["LOCAL_RANK"]) if several else 0)
    if not several:
        yield Processes(0, 1, chosen)
        return
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str | None, local_rank: int) -> torch.device:
    if name not in (None, "cpu", "cuda"):
        raise UsageError(f"Training on {name!r} is not possible: give cpu or cuda.")
    gpus = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cuda" and not gpus:
        raise UsageError("PyTorch finds no GPU on this machine: train with --accelerator cpu.")
    if not gpus:
        return torch.device("cpu")
    if local_rank >= gpus:
        raise UsageError(f"torchrun started more processes than this host has GPUs ({gpus}): lower --nproc-per-node.")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


class SharedNoise:
    """Gumbel noise drawn for a whole batch, of which a process uses the rows of its part.

    Every process draws the same numbers, from a generator of its own that is seeded anew for every part: the
    masks of an image do not depend on how its batch is split.

    Args:
        device: Where the logits are.
    """

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator(device)
        self._part = Part(0, 0, 0)

    def begin(self, part: Part, seed: int) -> None:
        """Start a part; parts of the same batch are given the same seed."""
        self._part = part
        self._generator.manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return noise of the logits' shape."""
        noise = logits.new_empty((self._part.batch, *logits.shape[1:]))
        noise.exponential_(generator=self._generator)
        return -noise[self._part.start : self._part.stop].log()


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes, which hold equally many.

    The same as ``torch.nn.SyncBatchNorm``, which computes on GPUs only.

    Args:
        source: Batch norm whose parameters and statistics it takes over.
        processes: The run's.
    """

    def __init__(self, source: _BatchNorm, processes: Processes) -> None:
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self._parameters = source._parameters
        self._buffers = source._buffers
        self._processes = processes

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions (got {input.dim()})")

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input (N, C, ...)."""
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        # Under autocast the input may be half precision, which statistics need more than.
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = self._processes.average(wide.mean(axes))
        centred = wide - mean.view(shape)
        variance = self._processes.average(centred.square().mean(axes))
        self._track(mean.detach(), variance.detach(), input.numel() // input.shape[1] * self._processes.size)
        result = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


def synchronize_batch_norm(network: nn.Module, processes: Processes) -> None:
    """Replace every batch norm by one over all processes; names, parameters and statistics stay."""
    if processes.size == 1:
        return
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                if processes.device.type == "cuda":
                    setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
                else:
                    setattr(parent, name, SynchronizedBatchNorm(child, processes))


def freeze_batch_norm(network: nn.Module) -> None:
    """Let every batch norm of a network in training mode use its running statistics and leave them as they are."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def stream_seed(*numbers: int) -> int:
    """Return a seed for a random stream of its own, from numbers that name it (seed, iteration, rank, ...)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
