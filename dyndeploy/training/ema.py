"""An exponential moving average of a network: weights and batch-norm statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """``average = decay * average + (1 - decay) * value`` for everything that a network's state holds.

    Counters, which have no average, are copied (the Dyn-Perceiver reference code averages them as well,
    rounding to whole numbers at every step).

    Args:
        network: Its present state is where the average starts.
        decay: Share of the average that stays, in [0, 1).

    Attributes:
        state: The averages by their names in the network's state.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, Tensor] = {key: value.detach().clone() for key, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the network's present state into the average."""
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - self.decay)
            else:
                self.state[key].copy_(value)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from an average saved earlier."""
        for key, average in self.state.items():
            average.copy_(state[key])

    @contextlib.contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Let the network have the averages in the block, and its own state again afterwards."""
        own = {key: value.detach().clone() for key, value in network.state_dict().items()}
        network.load_state_dict(self.state)
        try:
            yield
        finally:
            network.load_state_dict(own)
