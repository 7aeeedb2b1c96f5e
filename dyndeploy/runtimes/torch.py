"""PyTorch as the reference runtime: the network itself, behind the interface of every session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from dyndeploy.bundle import TensorInfo
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.nets import LaudResNet, model_info
from dyndeploy.nets.results import mask_name
from dyndeploy.runtimes.base import Array, Session, SessionInfo


class TorchSession(Session):
    """A network of the zoo in evaluation, with the inputs and outputs of its exported graph.

    Everything is computed densely and multiplied by the masks. The number of threads is PyTorch's own: it is a
    global setting, which a session leaves alone; ``info`` records it.

    Args:
        network: The network. It is put into evaluation mode; dtype and device are kept.
        batch: Batch size N.
        input_size: (H, W), or None for the network's default.

    Raises:
        UsageError: Bad batch or input size.
    """

    def __init__(self, network: LaudResNet, *, batch: int = 1, input_size: tuple[int, int] | None = None) -> None:
        height, width = input_size or model_info(network.name).input_size
        if min(batch, height, width) < 1:
            raise UsageError(f"Batch {batch} and input size {height}x{width} must be positive.")
        self._network: LaudResNet | None = network.eval()
        self._kinds = {name: block.spatial_kind for name, block in network.named_blocks()}
        parameter = next(network.parameters())
        self._device = parameter.device
        # One run tells names and shapes of the masks, so that no rule of the network is repeated here.
        example = self._forward(torch.zeros(batch, 3, height, width, dtype=parameter.dtype, device=self._device))
        dtype = str(parameter.dtype).removeprefix("torch.")
        super().__init__(
            [TensorInfo("input", (batch, 3, height, width), dtype)],
            [TensorInfo(name, tuple(value.shape), dtype) for name, value in example.items()],
            SessionInfo("torch", torch.__version__, torch.get_num_threads(), str(self._device)),
        )

    def __enter__(self) -> TorchSession:
        """Return the session."""
        return self

    @torch.no_grad()
    def _forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self._network is not None
        try:
            result = self._network(x)
        except RuntimeError as error:
            raise DyndeployError(f"PyTorch failed: {error}") from error
        values = {"logits": result.logits}
        for masks in result.masks:
            if masks.spatial is not None:
                values[mask_name(masks.name, self._kinds[masks.name])] = masks.spatial
            if masks.channel is not None:
                values[mask_name(masks.name, "channel")] = masks.channel
        return values

    def _run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        values = self._forward(torch.from_numpy(feeds["input"]).to(self._device))
        return {name: values[name].cpu().numpy() for name in outputs}

    def _bind(self, feeds: dict[str, Array], outputs: Mapping[str, Array | None]) -> Callable[[], None]:
        x = torch.from_numpy(feeds["input"]).to(self._device)
        into = {name: torch.from_numpy(array) for name, array in outputs.items() if array is not None}

        def call() -> None:
            values = self._forward(x)
            for name, array in into.items():
                array.copy_(values[name])

        return call

    def _release(self) -> None:
        self._network = None
