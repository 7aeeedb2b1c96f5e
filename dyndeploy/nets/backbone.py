"""What every convolutional backbone consists of, and the parts that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Backbone:
    """A convolutional network cut where another branch can attach to it.

    Attributes:
        stem: Images (N, 3, H, W) to the input of stage 1.
        stages: The four stages.
        channels: Channels entering stages 1 to 4, and those that stage 4 returns.
        head_channels: Hidden width of the classifier, or None where the classifier is one linear layer.
    """

    stem: nn.Sequential
    stages: Sequence[nn.Sequential]
    channels: tuple[int, int, int, int, int]
    head_channels: int | None = None


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, activation; the names are the positions 0, 1 and 2.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Kernel size, odd; the padding keeps the size.
        stride: Stride.
        groups: Groups.
        activation: Class of the activation, or None.
        eps: Of the batch norm.
        momentum: Of the batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Callable[..., nn.Module] | None = nn.ReLU,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        padding = (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum),
            *(() if activation is None else (activation(inplace=True),)),
        )


class SqueezeExcitation(nn.Module):
    """Scale every channel by a gate computed from the means of all channels.

    Args:
        channels: Channels of the map.
        squeeze: Hidden width.
        gate: Class of the last activation.
    """

    def __init__(self, channels: int, squeeze: int, gate: Callable[[], nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """Scale a map.

        Args:
            x: (N, C, H, W).
            active: 0/1 map (N, 1, H, W) of the positions that the means are taken over; None for all. The mean of no
                position is 0.

        Returns:
            A map of the shape of x.
        """
        if active is None:
            mean = x.mean((2, 3), keepdim=True)
        else:
            # Sums over a map leave the range of half precision.
            wide = torch.promote_types(x.dtype, torch.float32)
            count = active.to(wide).sum((2, 3), keepdim=True).clamp(min=1)
            mean = ((x.to(wide) * active.to(wide)).sum((2, 3), keepdim=True) / count).to(x.dtype)
        y: Tensor = x * self.gate(self.fc2(F.relu(self.fc1(mean))))
        return y


def make_divisible(value: float, divisor: int) -> int:
    """Round a number of channels to the nearest multiple, but not below nine tenths of it (torchvision's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def convolutions(*parts: nn.Module) -> list[nn.Conv2d]:
    """Return all convolutions of the given parts, in order."""
    return [module for part in parts for module in part.modules() if isinstance(module, nn.Conv2d)]
