"""Residual networks: the blocks and stages that LAUD-ResNets and Dynamic Perceivers are built from.

Reference: "Deep Residual Learning for Image Recognition" (He et al., CVPR 2016), with the stride in the 3x3
convolution as in torchvision and timm, whose parameter names the blocks have.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dyndeploy.nets.backbone import Backbone, convolutions

EXPANSION = 4
"""Output channels of a bottleneck per plane."""


@dataclass(frozen=True)
class Architecture:
    """The fixed part of a residual network.

    Attributes:
        blocks: Blocks per stage.
        planes: Planes per stage; a bottleneck has planes * 4 outputs, a basic block planes.
        stem_channels: Outputs of the first convolution.
        stem_kernel: Its kernel size.
        stem_stride: Its stride.
        stem_pool: Whether a 3x3 max pool of stride 2 follows.
    """

    blocks: tuple[int, int, int, int]
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem_channels: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole samples in training, and scale the kept ones up.

    Reference: "Deep Networks with Stochastic Depth" (Huang et al., ECCV 2016).

    Args:
        rate: Probability of dropping a sample's branch, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W) with whole samples zeroed."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        """Return the rate, for printing."""
        return f"rate={self.rate:g}"


class BasicBlock(nn.Module):
    """3x3 -> 3x3 block: ``y = relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))``.

    Args:
        in_channels: Channels of the input.
        planes: Channels of the output.
        stride: Stride of the first convolution.
        drop_path: Rate of stochastic depth.
    """

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, planes, stride)
        self.drop_path = StochasticDepth(drop_path)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, planes, Ho, Wo) for x (N, C, H, W)."""
        z = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.drop_path(z) + shortcut)
        return y


class BottleneckLayers(nn.Module):
    """The layers of a 1x1 -> 3x3 -> 1x1 block; how they are put together is up to the subclass.

    Args:
        in_channels: Channels of the input.
        planes: A quarter of the output channels.
        stride: Stride of the 3x3 convolution.
        dilation: Dilation of the 3x3 convolution.
        groups: Groups of the 3x3 convolution; the width is planes * groups.

    Attributes:
        width: Channels of the 3x3 convolution.
        out_channels: Channels of the output.
        downsample: 1x1 convolution and BN of the shortcut, or None for the identity.
    """

    def __init__(self, in_channels: int, planes: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        width = planes * groups
        out_channels = planes * EXPANSION
        self.in_channels = in_channels
        self.width = width
        self.out_channels = out_channels
        self.stride = stride
        self.dilation = dilation
        self.groups = groups

        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride=stride, padding=dilation, dilation=dilation, groups=groups, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, out_channels, stride)


class Bottleneck(BottleneckLayers):
    """1x1 -> 3x3 -> 1x1 block, its output added to the shortcut.

    Args:
        in_channels: Channels of the input.
        planes: A quarter of the output channels.
        stride: Stride of the 3x3 convolution.
        drop_path: Rate of stochastic depth.
    """

    expansion = EXPANSION

    def __init__(self, in_channels: int, planes: int, stride: int = 1, drop_path: float = 0.0) -> None:
        super().__init__(in_channels, planes, stride)
        self.drop_path = StochasticDepth(drop_path)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, planes * 4, Ho, Wo) for x (N, C, H, W)."""
        z = self.relu(self.bn1(self.conv1(x)))
        z = self.relu(self.bn2(self.conv2(z)))
        z = self.drop_path(self.bn3(self.conv3(z)))
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(z + shortcut)
        return y


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def resnet(
    architecture: Architecture,
    block: type[BasicBlock] | type[Bottleneck],
    width_mult: float = 1.0,
    drop_path_rate: float = 0.0,
) -> Backbone:
    """Build a residual network without its classifier, initialised as timm does.

    Args:
        architecture: Depths and widths.
        block: Kind of block.
        width_mult: Multiplies all widths.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Returns:
        Stem (convolution, BN, ReLU and, where there is one, the max pool), stages and channels.
    """
    channels = int(architecture.stem_channels * width_mult)
    kernel, stride = architecture.stem_kernel, architecture.stem_stride
    stem = nn.Sequential(
        nn.Conv2d(3, channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
    if architecture.stem_pool:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    last = max(1, sum(architecture.blocks) - 1)
    position = 0
    stages = []
    widths = [channels]
    for index, (count, planes) in enumerate(zip(architecture.blocks, architecture.planes, strict=True)):
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        planes = int(planes * width_mult)
        for number in range(count):
            stride = 2 if index > 0 and number == 0 else 1
            blocks[str(number)] = block(channels, planes, stride, drop_path_rate * position / last)
            channels = planes * block.expansion
            position += 1
        stages.append(nn.Sequential(blocks))
        widths.append(channels)
    for convolution in convolutions(stem, *stages):
        init_convolution(convolution)
    for stage in stages:
        for module in stage:
            assert isinstance(module, (BasicBlock, Bottleneck))
            nn.init.zeros_(module.last_norm.weight)
    return Backbone(stem, stages, (widths[0], widths[1], widths[2], widths[3], widths[4]))


def init_convolution(convolution: nn.Conv2d) -> None:
    """Initialise a convolution as all ResNets do: He's normal distribution over the fan-out."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
