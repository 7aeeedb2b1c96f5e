"""RegNetY: residual stages of grouped convolutions with squeeze-and-excitation.

Reference: "Designing Network Design Spaces" (Radosavovic et al., CVPR 2020). Definition, parameter names and
initialisation are torchvision's; ``trunk`` is what torchvision calls ``trunk_output``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from dyndeploy.errors import unknown_name
from dyndeploy.nets.backbone import Backbone, ConvNormAct, SqueezeExcitation, convolutions, make_divisible

STEM_CHANNELS = 32
SE_RATIO = 0.25

_QUANTUM = 8


class Generator(NamedTuple):
    """The numbers from which the paper's rule derives depths and widths."""

    depth: int
    w_0: int
    w_a: float
    w_m: float
    group_width: int


class StageWidth(NamedTuple):
    """Blocks, channels and channels per group of one stage."""

    blocks: int
    channels: int
    group_width: int


GENERATORS: Mapping[str, Generator] = MappingProxyType(
    {
        "regnet_y_400mf": Generator(16, 48, 27.89, 2.09, 8),
        "regnet_y_800mf": Generator(14, 56, 38.84, 2.4, 16),
        "regnet_y_1_6gf": Generator(27, 48, 20.71, 2.65, 24),
        "regnet_y_3_2gf": Generator(21, 80, 42.63, 2.66, 24),
        "regnet_y_8gf": Generator(17, 192, 76.82, 2.19, 56),
        "regnet_y_16gf": Generator(18, 200, 106.23, 2.48, 112),
    }
)


def stage_widths(generator: Generator) -> tuple[StageWidth, ...]:
    """Return the stages that a generator stands for (equations 2 to 4 of the paper)."""
    widths = []
    for block in range(generator.depth):
        linear = generator.w_0 + generator.w_a * block
        step = round(math.log(linear / generator.w_0) / math.log(generator.w_m))
        widths.append(round(generator.w_0 * generator.w_m**step / _QUANTUM) * _QUANTUM)
    stages = []
    for width in sorted(set(widths)):
        group_width = min(generator.group_width, width)
        # The width that the rule gives need not hold whole groups.
        stages.append(StageWidth(widths.count(width), make_divisible(width, group_width), group_width))
    return tuple(stages)


class BottleneckTransform(nn.Module):
    """The residual branch: 1x1 ``a``, grouped 3x3 ``b``, squeeze-and-excitation ``se``, 1x1 ``c``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of everything after ``a``.
        stride: Stride of ``b``.
        group_width: Channels per group of ``b``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.a = ConvNormAct(in_channels, out_channels)
        self.b = ConvNormAct(out_channels, out_channels, 3, stride, groups=out_channels // group_width)
        self.se = SqueezeExcitation(out_channels, round(SE_RATIO * in_channels))
        self.c = ConvNormAct(out_channels, out_channels, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, Ho, Wo) for x (N, C, H, W)."""
        y: Tensor = self.c(self.se(self.b(self.a(x))))
        return y


class RegNetBlock(nn.Module):
    """``y = relu(shortcut(x) + f(x))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride.
        group_width: Channels per group of the 3x3 convolution.

    Attributes:
        proj: 1x1 convolution and BN of the shortcut, or None for the identity.
        f: The residual branch.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.proj: ConvNormAct | None = None
        if stride != 1 or in_channels != out_channels:
            self.proj = ConvNormAct(in_channels, out_channels, stride=stride, activation=None)
        self.f = BottleneckTransform(in_channels, out_channels, stride, group_width)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, Ho, Wo) for x (N, C, H, W)."""
        shortcut = x if self.proj is None else self.proj(x)
        y: Tensor = self.activation(shortcut + self.f(x))
        return y


def regnet(name: str) -> Backbone:
    """Build a RegNetY without its classifier, initialised as torchvision does.

    Args:
        name: One of :data:`GENERATORS`.

    Returns:
        Stem, stages (their blocks are named ``block1-0``, ``block1-1``, ...) and channels.

    Raises:
        UsageError: Unknown name.
    """
    if name not in GENERATORS:
        raise unknown_name("RegNet", name, GENERATORS)
    stem = ConvNormAct(3, STEM_CHANNELS, 3, 2)
    widths = stage_widths(GENERATORS[name])

    def block(where: Place, in_channels: int, out_channels: int, stride: int, group_width: int) -> nn.Module:
        return RegNetBlock(in_channels, out_channels, stride, group_width)

    stages = [nn.Sequential(blocks) for blocks in stage_blocks(STEM_CHANNELS, widths, block)]
    for convolution in convolutions(stem, *stages):
        init_convolution(convolution)
    channels = [STEM_CHANNELS, *(stage.channels for stage in widths)]
    return Backbone(stem, stages, (channels[0], channels[1], channels[2], channels[3], channels[4]))


class Place(NamedTuple):
    """Where a block stands: its stage, from 0, and its name in the stage."""

    stage: int
    name: str


def stage_blocks(
    channels: int, widths: Sequence[StageWidth], block: Callable[[Place, int, int, int, int], nn.Module]
) -> list[OrderedDict[str, nn.Module]]:
    """Build the blocks of all stages, the first of each with stride 2.

    Args:
        channels: Outputs of the stem.
        widths: Of the stages.
        block: ``(place, inputs, outputs, stride, channels per group) -> block``.

    Returns:
        Blocks by their names, ``block1-0``, ``block1-1``, ..., per stage.
    """
    stages = []
    for index, stage in enumerate(widths):
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for number in range(stage.blocks):
            name = f"block{index + 1}-{number}"
            stride = 2 if number == 0 else 1
            blocks[name] = block(Place(index, name), channels, stage.channels, stride, stage.group_width)
            channels = stage.channels
        stages.append(blocks)
    return stages


def init_convolution(convolution: nn.Conv2d) -> None:
    """Initialise a convolution as torchvision does: He's normal distribution, groups not counted."""
    fan_out = convolution.kernel_size[0] * convolution.kernel_size[1] * convolution.out_channels
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / fan_out))


def trunk(backbone: Backbone) -> nn.Sequential:
    """Return the stages under one module with torchvision's names: ``block1`` to ``block4``."""
    return nn.Sequential(OrderedDict((f"block{index + 1}", stage) for index, stage in enumerate(backbone.stages)))
