"""PyTorch as the reference runtime: the network itself, behind the interface of every session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dyndeploy.blocks import Tape, named_outputs
from dyndeploy.bundle import TensorInfo
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.nets import registered
from dyndeploy.runtimes.base import Array, Session, SessionInfo


class TorchSession(Session):
    """Any network in evaluation, with the inputs and outputs of its exported graph: its own, then the masks.

    Everything is computed densely and multiplied by the masks. The number of threads is PyTorch's own: it is a
    global setting, which a session leaves alone; ``info`` records it.

    Args:
        network: The network. It is put into evaluation mode; dtype and device are kept.
        batch: Batch size N.
        input_size: (H, W) of images, or None for the network's default.
        inputs: Example inputs by name in the order of ``forward``, of batch N; None for images (N, 3, H, W).

    Raises:
        UsageError: Bad batch or input size, or a network that does not say what it takes.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        batch: int = 1,
        input_size: tuple[int, int] | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        parameter = next(network.parameters(), torch.zeros(0))
        if inputs is None:
            info = registered(network)
            size = input_size or (None if info is None else info.input_size)
            if size is None:
                raise UsageError(f"{type(network).__name__} does not say what it takes: give inputs or input_size.")
            if min(batch, *size) < 1:
                raise UsageError(f"Batch {batch} and input size {size[0]}x{size[1]} must be positive.")
            inputs = {"input": torch.zeros(batch, 3, *size, dtype=parameter.dtype)}
        self._network: nn.Module | None = network.eval()
        self._device = parameter.device
        # One run tells names and shapes of outputs and masks, so that no rule of the network is repeated here.
        example = self._forward([value.to(self._device) for value in inputs.values()])
        super().__init__(
            [_info(name, value) for name, value in inputs.items()],
            [_info(name, value) for name, value in example.items()],
            SessionInfo("torch", torch.__version__, torch.get_num_threads(), str(self._device)),
        )

    def __enter__(self) -> TorchSession:
        """Return the session."""
        return self

    @torch.no_grad()
    def _forward(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        assert self._network is not None
        try:
            with Tape(self._network) as tape:
                outputs = named_outputs(self._network(*inputs))
        except RuntimeError as error:
            raise DyndeployError(f"PyTorch failed: {error}") from error
        return {**outputs, **tape.masks}

    def _tensors(self, feeds: dict[str, Array]) -> list[Tensor]:
        return [torch.from_numpy(feeds[info.name]).to(self._device) for info in self.inputs]

    def _run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        values = self._forward(self._tensors(feeds))
        return {name: values[name].cpu().numpy() for name in outputs}

    def _bind(self, feeds: dict[str, Array], outputs: Mapping[str, Array | None]) -> Callable[[], None]:
        inputs = self._tensors(feeds)
        into = {name: torch.from_numpy(array) for name, array in outputs.items() if array is not None}

        def call() -> None:
            values = self._forward(inputs)
            for name, array in into.items():
                array.copy_(values[name])

        return call

    def _release(self) -> None:
        self._network = None


def _info(name: str, value: Tensor) -> TensorInfo:
    return TensorInfo(name, tuple(value.shape), np.dtype(str(value.dtype).removeprefix("torch.")).name)
