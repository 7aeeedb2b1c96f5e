"""MobileNetV3-Large.

Reference: "Searching for MobileNetV3" (Howard et al., ICCV 2019). Definition, parameter names and
initialisation are torchvision's.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from dyndeploy.nets.backbone import Backbone, ConvNormAct, SqueezeExcitation, convolutions, make_divisible

_DIVISOR = 8
_ConvNormAct = partial(ConvNormAct, eps=1e-3, momentum=0.01)
_STAGE_STARTS = (3, 5, 8, 14)
"""Layers, counting from the first convolution, with which the stages begin; what comes before is the stem."""


class BlockShape(NamedTuple):
    """One inverted residual block at width 1: channels, and whether it excites and uses Hardswish."""

    in_channels: int
    kernel: int
    expanded: int
    out_channels: int
    excite: bool
    hardswish: bool
    stride: int


LARGE = (
    BlockShape(16, 3, 16, 16, False, False, 1),
    BlockShape(16, 3, 64, 24, False, False, 2),
    BlockShape(24, 3, 72, 24, False, False, 1),
    BlockShape(24, 5, 72, 40, True, False, 2),
    BlockShape(40, 5, 120, 40, True, False, 1),
    BlockShape(40, 5, 120, 40, True, False, 1),
    BlockShape(40, 3, 240, 80, False, True, 2),
    BlockShape(80, 3, 200, 80, False, True, 1),
    BlockShape(80, 3, 184, 80, False, True, 1),
    BlockShape(80, 3, 184, 80, False, True, 1),
    BlockShape(80, 3, 480, 112, True, True, 1),
    BlockShape(112, 3, 672, 112, True, True, 1),
    BlockShape(112, 5, 672, 160, True, True, 2),
    BlockShape(160, 5, 960, 160, True, True, 1),
    BlockShape(160, 5, 960, 160, True, True, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection, as ``block``.

    Args:
        shape: The block, with its channels already multiplied.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        activation = nn.Hardswish if shape.hardswish else nn.ReLU
        layers: list[nn.Module] = []
        if shape.expanded != shape.in_channels:
            layers.append(_ConvNormAct(shape.in_channels, shape.expanded, activation=activation))
        layers.append(
            _ConvNormAct(
                shape.expanded,
                shape.expanded,
                shape.kernel,
                shape.stride,
                groups=shape.expanded,
                activation=activation,
            )
        )
        if shape.excite:
            layers.append(
                SqueezeExcitation(shape.expanded, make_divisible(shape.expanded // 4, _DIVISOR), nn.Hardsigmoid)
            )
        layers.append(_ConvNormAct(shape.expanded, shape.out_channels, activation=None))
        self.block = nn.Sequential(*layers)
        self.residual = shape.stride == 1 and shape.in_channels == shape.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, Ho, Wo) for x (N, C, H, W)."""
        y: Tensor = self.block(x)
        return x + y if self.residual else y


def mobilenet_v3_large(width_mult: float = 1.0) -> Backbone:
    """Build MobileNetV3-Large without its classifier, initialised as torchvision does.

    Args:
        width_mult: Multiplies all widths; the products are rounded to multiples of 8.

    Returns:
        Stem (the first convolution and two blocks), stages, channels and the classifier's hidden width.
    """

    def scaled(channels: int) -> int:
        return make_divisible(channels * width_mult, _DIVISOR)

    channels = scaled(LARGE[0].in_channels)
    layers: list[nn.Module] = [_ConvNormAct(3, channels, 3, 2, activation=nn.Hardswish)]
    outputs = [channels]
    for shape in LARGE:
        shape = shape._replace(
            in_channels=scaled(shape.in_channels),
            expanded=scaled(shape.expanded),
            out_channels=scaled(shape.out_channels),
        )
        layers.append(InvertedResidual(shape))
        outputs.append(shape.out_channels)
    last = 6 * outputs[-1]
    layers.append(_ConvNormAct(outputs[-1], last, activation=nn.Hardswish))
    for convolution in convolutions(*layers):
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
    starts = (*_STAGE_STARTS, len(layers))
    stages = [nn.Sequential(*layers[start:end]) for start, end in itertools.pairwise(starts)]
    c1, c2, c3, c4 = (outputs[start - 1] for start in _STAGE_STARTS)
    return Backbone(nn.Sequential(*layers[: starts[0]]), stages, (c1, c2, c3, c4, last), head_channels=scaled(1280))
