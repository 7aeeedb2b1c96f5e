"""LAUD-ResNet: residual networks that decide per image which patches, channels or blocks to compute.

Reference: "Latency-Aware Unified Dynamic Networks for Efficient Image Recognition" (Han et al., TPAMI 2024)
and its reference code. Parameter names equal the reference's, and torchvision's ResNet outside the maskers.
Here, as in the reference, everything is computed densely and multiplied by masks: this is the network that
is trained and that defines the right answer. Skipping begins with the export.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dyndeploy.blocks import LoweredCall
from dyndeploy.blocks.gates import expand_groups
from dyndeploy.errors import UsageError
from dyndeploy.nets.laud import (
    STAGES,
    LaudBlock,
    LaudConfig,
    LaudNetwork,
    StageConfig,
    channel_masker,
    check_bool,
    check_positive_int,
    operator_of,
    spatial_masker,
)
from dyndeploy.nets.laud_checkpoints import ResNetRules
from dyndeploy.nets.registry import IMAGENET, SMALL_32, SMALL_64, register_model
from dyndeploy.nets.resnet import EXPANSION, Architecture, BottleneckLayers, init_convolution
from dyndeploy.ops import OperatorSpec
from dyndeploy.ops.base import Shape
from dyndeploy.ops.masks import upsample_mask


@dataclass(frozen=True)
class LaudResNetConfig(LaudConfig):
    """Every option of a LAUD-ResNet: those of :class:`LaudConfig`, and of the architecture.

    Attributes:
        width_mult: Multiplies all widths.
        groups: Groups of the 3x3 convolutions; the bottleneck width is multiplied by it, as in ResNeXt.
        replace_stride_with_dilation: For stages 2 to 4: keep the resolution and dilate instead.
        zero_init_residual: Start every residual branch at zero.
    """

    width_mult: float = 1.0
    groups: int = 1
    replace_stride_with_dilation: Sequence[bool] = (False, False, False)
    zero_init_residual: bool = False

    def __post_init__(self) -> None:
        """Check every value that can be checked without the architecture.

        Raises:
            UsageError: Naming the option, its value and what is valid.
        """
        super().__post_init__()
        check_positive_int("groups", self.groups)
        width_mult = self.width_mult
        if (
            isinstance(width_mult, bool)
            or not isinstance(width_mult, (int, float))
            or not (math.isfinite(width_mult) and width_mult > 0)
        ):
            raise UsageError(f"width_mult={width_mult!r} is not valid: give a positive number.")
        check_bool("zero_init_residual", self.zero_init_residual)
        dilate = self.replace_stride_with_dilation
        if (
            not isinstance(dilate, (tuple, list))
            or len(dilate) != STAGES - 1
            or not all(isinstance(d, bool) for d in dilate)
        ):
            raise UsageError(
                f"replace_stride_with_dilation={dilate!r} is not valid: give three booleans (stages 2 to 4)."
            )
        self._set("replace_stride_with_dilation", tuple(dilate))


class LaudBottleneck(LaudBlock, BottleneckLayers):
    """1x1 -> 3x3 -> 1x1 bottleneck with maskers on its input.

    ``y = relu(shortcut(x) + S * bn3(conv3(relu(bn2(C * conv2(relu(bn1(C * conv1(x)))))))))`` with the channel
    mask C and the spatial mask S, each absent where the mode has none. C sits before the batch norm: a
    skipped channel is the constant relu(bn(0)), not 0.

    Args:
        name: Dotted name of the block in its network, reported with the masks.
        in_channels: Channels of the input.
        planes: A quarter of the output channels.
        stage: Dynamic settings.
        stride: Stride of the 3x3 convolution.
        dilation: Dilation of the 3x3 convolution.
        groups: Groups of the 3x3 convolution; the width is planes * groups.
        mask_bias_fix: See :class:`LaudResNetConfig`.
        flops_gradient: See :class:`LaudResNetConfig`.

    Attributes:
        mode: "spatial", "channel", "layer", "both" or "static".
        granularity: Patch side in output pixels, or None where the block has no patches.
        width: Channels of the 3x3 convolution.
        masker_spatial: :class:`SpatialMasker` or None.
        masker_channel: A channel masker or None.
        downsample: 1x1 convolution and BN of the shortcut, or None for the identity.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        planes: int,
        stage: StageConfig,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        mask_bias_fix: bool = True,
        flops_gradient: str = "full",
    ) -> None:
        super().__init__(in_channels, planes, stride, dilation, groups)
        self.name = name
        self.mode = stage.mode
        self.granularity = stage.granularity if stage.mode in ("spatial", "both") else None
        self.flops_gradient = flops_gradient

        self.masker_spatial = spatial_masker(name, in_channels, self.out_channels, stage, mask_bias_fix)
        self.masker_channel = channel_masker(name, in_channels, self.width, stage, mask_bias_fix)

    def compute(
        self,
        x: Tensor,
        spatial: Tensor | None = None,
        channel: Tensor | None = None,
        layer: Tensor | None = None,
    ) -> Tensor:
        """Return the block's output under given masks.

        Args:
            x: Input (N, C, H, W).
            spatial: 0/1 mask (N, g, mh, mw) for any patch grid, or None for everywhere.
            channel: 0/1 mask (N, G), or None for all channels.
            layer: 0/1 mask (N, g, 1, 1), or None for all images.

        Returns:
            Output (N, planes * 4, Ho, Wo).
        """
        keep = None if channel is None else expand_groups(channel[:, :, None, None], self.width)
        z = self.conv1(x)
        z = self.relu(self.bn1(z if keep is None else z * keep))
        z = self.conv2(z)
        z = self.relu(self.bn2(z if keep is None else z * keep))
        z = self.bn3(self.conv3(z))
        spatial = layer if spatial is None else spatial
        if spatial is not None:
            pixels = upsample_mask(spatial, z.shape[2], z.shape[3])
            z = z * expand_groups(pixels, self.out_channels)
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(z + shortcut)
        return y

    def lower(self, *shapes: Shape) -> LoweredCall:
        """Return the fused operator of the block's mode.

        Raises:
            UsageError: More than one spatial mask group, for which there is no operator.
        """
        layers = {"1": (self.conv1, self.bn1), "2": (self.conv2, self.bn2), "3": (self.conv3, self.bn3)}
        if self.downsample is not None:
            conv, norm = self.downsample[0], self.downsample[1]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            layers["d"] = (conv, norm)
        return self.lowered(layers, {})

    @property
    def operator(self) -> OperatorSpec:
        """See :class:`LaudBlock`."""
        return operator_of(_OPERATORS, self.mode, self.projected)

    @property
    def projected(self) -> bool:
        """See :class:`LaudBlock`."""
        return self.downsample is not None


_OPERATORS = {
    "spatial": "SpatialBottleneck",
    "layer": "LayerBottleneck",
    "channel": "ChannelBottleneck",
    "both": "SpatialChannelBottleneck",
}
"""Operator of each mode; with a projection shortcut its name ends in ``Projection``."""


class LaudResNet(LaudNetwork):
    """A LAUD-ResNet: stem, four stages of :class:`LaudBottleneck`, average pool, classifier.

    Args:
        name: Registered name.
        architecture: Fixed part.
        config: Options.

    Attributes:
        name: Registered name.
        config: The options it was built with.
        conv1, bn1, relu, maxpool: The stem (``maxpool`` is an Identity where there is none).
        layer1, layer2, layer3, layer4: ModuleLists of blocks.
        avgpool, fc: The head.
    """

    config: LaudResNetConfig
    layer1: nn.ModuleList
    layer2: nn.ModuleList
    layer3: nn.ModuleList
    layer4: nn.ModuleList

    def __init__(self, name: str, architecture: Architecture, config: LaudResNetConfig) -> None:
        super().__init__()
        self.name = name
        self.architecture = architecture
        self.config = config

        channels = int(architecture.stem_channels * config.width_mult)
        widths = [int(planes * config.width_mult) for planes in architecture.planes]
        if min(channels, *widths) < 1:
            raise UsageError(f"width_mult={config.width_mult} leaves a stage of {name} without channels.")
        kernel = architecture.stem_kernel
        self.conv1 = nn.Conv2d(3, channels, kernel, stride=architecture.stem_stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if architecture.stem_pool else nn.Identity()
        dilation = 1
        for index, stage in enumerate(config.stages()):
            stride = 1 if index == 0 else 2
            previous_dilation = dilation
            if index > 0 and config.replace_stride_with_dilation[index - 1]:
                dilation *= stride
                stride = 1
            blocks = nn.ModuleList()
            for position in range(architecture.blocks[index]):
                first = position == 0
                blocks.append(
                    LaudBottleneck(
                        name=f"layer{index + 1}.{position}",
                        in_channels=channels,
                        planes=widths[index],
                        stage=stage,
                        stride=stride if first else 1,
                        dilation=previous_dilation if first else dilation,
                        groups=config.groups,
                        mask_bias_fix=config.mask_bias_fix,
                        flops_gradient=config.flops_gradient,
                    )
                )
                channels = widths[index] * EXPANSION
            self.add_module(f"layer{index + 1}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, config.num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        # As torchvision's ResNet; the maskers keep the initialisation of their own.
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and ".masker_" not in name:
                init_convolution(module)
        if self.config.zero_init_residual:
            for _, block in self.named_blocks():
                assert isinstance(block, LaudBottleneck)
                nn.init.zeros_(block.bn3.weight)

    def stages(self) -> tuple[nn.ModuleList, ...]:
        """Return the four lists of blocks."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def checkpoint_rules(self) -> ResNetRules:
        """Return what its files of weights may lack, and how one is made to fit."""
        return ResNetRules(self)

    def describe(self, input_size: tuple[int, int]) -> dict[str, Any] | None:
        """Return the network's shapes as the paper's predictor reads them, or None for a subclass, which may differ."""
        if type(self) is not LaudResNet:
            return None
        stem = {
            "c_in": 3,
            "c_out": self.conv1.out_channels,
            "kernel": self.architecture.stem_kernel,
            "stride": self.architecture.stem_stride,
            "pool_stride": 2 if self.architecture.stem_pool else 0,
        }
        return self.described(input_size, stem, before_norm=True)

    def stem_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the stem convolution's output."""
        stride = self.architecture.stem_stride
        return (height - 1) // stride + 1, (width - 1) // stride + 1

    def first_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the first block's input."""
        height, width = self.stem_size(height, width)
        if self.architecture.stem_pool:
            height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
        return height, width

    def stem_macs(self, height: int, width: int) -> int:
        """Return the MACs of the stem convolution."""
        rows, columns = self.stem_size(height, width)
        return 3 * self.conv1.out_channels * self.architecture.stem_kernel**2 * rows * columns

    def pool_macs(self, height: int, width: int) -> int:
        """Return the MACs of the max pool as the reference code counts them."""
        rows, columns = self.first_size(height, width)
        return self.conv1.out_channels * rows * columns * 9 if self.architecture.stem_pool else 0

    def forward_stem(self, x: Tensor) -> Tensor:
        """Return the input of the first block for images (N, 3, H, W)."""
        y: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return y

    def forward_head(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) for the output of the last block."""
        y: Tensor = self.fc(self.avgpool(x).flatten(1))
        return y


@register_model(family="laud_resnet", config_type=LaudResNetConfig, input_size=(224, 224), preprocessing=IMAGENET)
def laud_resnet50(config: LaudResNetConfig) -> LaudResNet:
    """LAUD-ResNet-50 for 224x224 images."""
    return LaudResNet("laud_resnet50", Architecture(blocks=(3, 4, 6, 3)), config)


@register_model(family="laud_resnet", config_type=LaudResNetConfig, input_size=(224, 224), preprocessing=IMAGENET)
def laud_resnet101(config: LaudResNetConfig) -> LaudResNet:
    """LAUD-ResNet-101 for 224x224 images."""
    return LaudResNet("laud_resnet101", Architecture(blocks=(3, 4, 23, 3)), config)


@register_model(
    family="laud_resnet",
    config_type=LaudResNetConfig,
    input_size=(32, 32),
    preprocessing=SMALL_32,
    defaults={"num_classes": 10},
)
def laud_resnet14_small(config: LaudResNetConfig) -> LaudResNet:
    """LAUD-ResNet-14 for 32x32 images: four blocks on maps of 32, 16, 8 and 4 pixels."""
    # A stem as wide as the first stage's output makes the first block's shortcut the identity, so that the
    # block with the most pixels can really be skipped.
    small = Architecture(
        blocks=(1, 1, 1, 1),
        planes=(24, 40, 64, 128),
        stem_channels=96,
        stem_kernel=3,
        stem_stride=1,
        stem_pool=False,
    )
    return LaudResNet("laud_resnet14_small", small, config)


@register_model(
    family="laud_resnet",
    config_type=LaudResNetConfig,
    input_size=(64, 64),
    preprocessing=SMALL_64,
    defaults={"num_classes": 10},
)
def laud_resnet26_small(config: LaudResNetConfig) -> LaudResNet:
    """LAUD-ResNet-26 for 64x64 images: eight blocks on maps of 32, 16, 8 and 4 pixels."""
    small = Architecture(
        blocks=(2, 2, 2, 2),
        planes=(24, 48, 96, 192),
        stem_channels=96,
        stem_kernel=3,
        stem_stride=2,
        stem_pool=False,
    )
    return LaudResNet("laud_resnet26_small", small, config)
