"""LAUD-RegNetY: RegNetYs that decide per image which patches, channels or blocks to compute.

Reference: "Latency-Aware Unified Dynamic Networks for Efficient Image Recognition" (Han et al., TPAMI 2024)
and its reference code. Parameter names equal the reference's, and torchvision's RegNet outside the maskers.
As for LAUD-ResNet, everything is computed densely here and multiplied by masks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from dyndeploy.blocks import ConvLinearChannelMasker, LoweredCall, MlpChannelMasker, SpatialMasker
from dyndeploy.blocks.gates import expand_groups
from dyndeploy.errors import UsageError
from dyndeploy.nets.backbone import ConvNormAct, convolutions
from dyndeploy.nets.laud import (
    LaudBlock,
    LaudConfig,
    LaudNetwork,
    StageConfig,
    channel_masker,
    check_choice,
    operator_of,
    spatial_masker,
)
from dyndeploy.nets.laud_checkpoints import RegNetRules
from dyndeploy.nets.registry import IMAGENET, SMALL_32, register_model
from dyndeploy.nets.regnet import (
    GENERATORS,
    STEM_CHANNELS,
    BottleneckTransform,
    Place,
    RegNetBlock,
    StageWidth,
    init_convolution,
    stage_blocks,
    stage_widths,
)
from dyndeploy.ops import OperatorSpec
from dyndeploy.ops.base import Shape
from dyndeploy.ops.masks import upsample_mask

SQUEEZE_EXCITATIONS = ("exact", "active")


@dataclass(frozen=True)
class LaudRegNetConfig(LaudConfig):
    """Every option of a LAUD-RegNetY: those of :class:`LaudConfig`, and how patches and pooling go together.

    Attributes:
        se: What a squeeze-and-excitation averages over in modes "spatial" and "both". "exact": the whole map, skipped
            positions included, as the reference code does; an image of which any patch is active then needs the first
            two convolutions everywhere, and only the last one skips. "active": active positions only, with which all
            three skip; it is another function, which has to be trained as such. Without meaning in the other modes.
    """

    se: str = "exact"

    def __post_init__(self) -> None:
        """Check every value that can be checked without the architecture; raises ``UsageError``."""
        super().__post_init__()
        check_choice("se", self.se, SQUEEZE_EXCITATIONS)

    def notes(self) -> tuple[str, ...]:
        """See :class:`LaudConfig`."""
        if self.se == "exact":
            return super().notes()
        patches = {"spatial", "both"} & set(self.stage_values("mode"))
        text = (
            "se=active averages over active positions: weights trained otherwise, as the reference code's, give other "
            "results than with se=exact"
            if patches
            else "there are no patches to average over: se=active has no use"
        )
        return (*super().notes(), text)


class LaudTransform(BottleneckTransform):
    """The residual branch, with the maskers where the reference code has them.

    Args:
        name: Dotted name of the block in its network.
        in_channels: Channels of the input.
        out_channels: Channels of everything after ``a``.
        stride: Stride of ``b``.
        group_width: Channels per group of ``b``.
        stage: Dynamic settings.
        mask_bias_fix: See :class:`LaudConfig`.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        stride: int,
        group_width: int,
        stage: StageConfig,
        mask_bias_fix: bool,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, group_width)
        self.masker_spatial = spatial_masker(name, in_channels, out_channels, stage, mask_bias_fix)
        self.masker_channel = channel_masker(name, in_channels, out_channels, stage, mask_bias_fix)


class LaudRegNetBlock(LaudBlock, RegNetBlock):  # type: ignore[misc]
    """RegNetY block with maskers on its input.

    ``y = relu(shortcut(x) + S * c(se(C * b(C * a(x)))))`` with the channel mask C and the spatial mask S, each absent
    where the mode has none. C stands behind the ReLUs of ``a`` and ``b``: a skipped channel is 0.

    Args:
        name: Dotted name of the block in its network, reported with the masks.
        in_channels: Channels of the input.
        out_channels: Channels of the output and of the 3x3.
        stride: Stride of the 3x3.
        group_width: Channels per group of the 3x3.
        stage: Dynamic settings.
        config: Options of the network.

    Attributes:
        f: The residual branch, with the maskers.
        se: See :class:`LaudRegNetConfig`.
    """

    f: LaudTransform

    def __init__(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        stride: int,
        group_width: int,
        stage: StageConfig,
        config: LaudRegNetConfig,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, group_width)
        self.f = LaudTransform(name, in_channels, out_channels, stride, group_width, stage, config.mask_bias_fix)
        self.name = name
        self.mode = stage.mode
        self.granularity = stage.granularity if stage.mode in ("spatial", "both") else None
        self.flops_gradient = config.flops_gradient
        self.se = config.se
        self.in_channels, self.width, self.out_channels = in_channels, out_channels, out_channels
        self.stride, self.dilation, self.groups = stride, 1, out_channels // group_width
        self.squeezed = self.f.se.fc1.out_channels

    @property
    def masker_spatial(self) -> SpatialMasker | None:  # type: ignore[override]
        """The masker of patches or of the whole block, or None."""
        return self.f.masker_spatial

    @property
    def masker_channel(self) -> MlpChannelMasker | ConvLinearChannelMasker | None:  # type: ignore[override]
        """The masker of channels, or None."""
        return self.f.masker_channel

    @property
    def projected(self) -> bool:
        """See :class:`LaudBlock`."""
        return self.proj is not None

    @property
    def operator(self) -> OperatorSpec:
        """See :class:`LaudBlock`."""
        return operator_of(_OPERATORS, self.mode, self.projected)

    @property
    def attributes(self) -> dict[str, Any]:
        """See :class:`LaudBlock`."""
        further = {"pool_active": int(self.se == "active")}
        declared = {attribute.name for attribute in self.operator.attributes}
        return super().attributes | {name: value for name, value in further.items() if name in declared}

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
            Output (N, out_channels, Ho, Wo).
        """
        keep = None if channel is None else expand_groups(channel[:, :, None, None], self.width)
        z = self.f.a(x)
        z = self.f.b(z if keep is None else z * keep)
        z = z if keep is None else z * keep
        mask = layer if spatial is None else spatial
        pixels = None if mask is None else upsample_mask(mask, z.shape[2], z.shape[3])
        pooled = None
        # Of a single patch, all is active or nothing is asked for.
        if spatial is not None and self.se == "active" and spatial.shape[2:] != (1, 1):
            pooled = upsample_mask(spatial, z.shape[2], z.shape[3]).amax(1, keepdim=True)
        z = self.f.c(self.f.se(z, pooled))
        if pixels is not None:
            z = z * expand_groups(pixels, self.out_channels)
        shortcut = x if self.proj is None else self.proj(x)
        y: Tensor = self.activation(shortcut + z)
        return y

    def lower(self, *shapes: Shape) -> LoweredCall:
        """Return the fused operator of the block's mode.

        Raises:
            UsageError: More than one spatial mask group, for which there is no operator.
        """
        layers: dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]] = {}
        for name, layer in {"1": self.f.a, "2": self.f.b, "3": self.f.c, "d": self.proj}.items():
            if isinstance(layer, ConvNormAct):
                conv, norm = layer[0], layer[1]
                assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
                layers[name] = (conv, norm)
        further: dict[str, Tensor] = {}
        for name, linear in (("s", self.f.se.fc1), ("e", self.f.se.fc2)):
            assert linear.bias is not None
            further |= {f"w{name}": linear.weight.detach().flatten(1), f"b{name}": linear.bias.detach()}
        return self.lowered(layers, further)


_OPERATORS: Mapping[str, str] = {
    "spatial": "SpatialSEBottleneck",
    "layer": "LayerSEBottleneck",
    "channel": "ChannelSEBottleneck",
    "both": "SpatialChannelSEBottleneck",
}
"""Operator of each mode; with a projection shortcut its name ends in ``Projection``."""


class LaudRegNet(LaudNetwork):
    """A LAUD-RegNetY: stem, four stages of :class:`LaudRegNetBlock`, average pool, classifier.

    Args:
        name: Registered name.
        widths: Its stages.
        config: Options.
        stem_channels: Outputs of the first convolution.
        stem_stride: Its stride.

    Attributes:
        stem: 3x3 convolution, BN, ReLU.
        trunk_output: ``block1`` to ``block4``, the stages.
        avgpool, fc: The head.
    """

    config: LaudRegNetConfig

    def __init__(
        self,
        name: str,
        widths: Sequence[StageWidth],
        config: LaudRegNetConfig,
        stem_channels: int = STEM_CHANNELS,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.stem_stride = stem_stride
        self.stem = ConvNormAct(3, stem_channels, 3, stem_stride)
        settings = config.stages()

        def block(where: Place, in_channels: int, out_channels: int, stride: int, group_width: int) -> nn.Module:
            full = f"trunk_output.block{where.stage + 1}.{where.name}"
            stage = settings[where.stage]
            return LaudRegNetBlock(full, in_channels, out_channels, stride, group_width, stage, config)

        self.trunk_output = nn.ModuleDict(
            {
                f"block{index + 1}": nn.ModuleDict(blocks)
                for index, blocks in enumerate(stage_blocks(stem_channels, widths, block))
            }
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1].channels, config.num_classes)
        # As torchvision's RegNet; the maskers keep the initialisation of their own.
        maskers = {
            id(module)
            for _, block in self.named_blocks()
            for gate in block.gates().values()
            for module in gate.modules()
        }
        for convolution in convolutions(self):
            if id(convolution) not in maskers:
                init_convolution(convolution)
                if convolution.bias is not None:
                    nn.init.zeros_(convolution.bias)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def stages(self) -> tuple[tuple[LaudRegNetBlock, ...], ...]:
        """Return the blocks of the four stages."""
        stages = []
        for stage in self.trunk_output.values():
            assert isinstance(stage, nn.ModuleDict)
            stages.append(tuple(block for block in stage.values() if isinstance(block, LaudRegNetBlock)))
        return tuple(stages)

    def exact(self) -> LaudRegNet | None:
        """What the network approximates: a copy with ``se="exact"``, or None where it is that itself."""
        if self.config.se == "exact" or not any(block.granularity for _, block in self.named_blocks()):
            return None
        twin = copy.deepcopy(self)
        twin.config = replace(self.config, se="exact")
        for _, block in twin.named_blocks():
            assert isinstance(block, LaudRegNetBlock)
            block.se = "exact"
        return twin

    def checkpoint_rules(self) -> RegNetRules:
        """Return what its files of weights may lack, and how one is made to fit."""
        return RegNetRules(self)

    def describe(self, input_size: tuple[int, int]) -> dict[str, Any] | None:
        """Return the network's shapes as the paper's predictor reads them, or None for a subclass, which may differ."""
        if type(self) is not LaudRegNet:
            return None
        channels = self.stem[0].out_channels
        stem = {"c_in": 3, "c_out": channels, "kernel": 3, "stride": self.stem_stride, "pool_stride": 0}
        return self.described(input_size, stem, before_norm=False)

    def stem_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the stem convolution's output."""
        return (height - 1) // self.stem_stride + 1, (width - 1) // self.stem_stride + 1

    def stem_macs(self, height: int, width: int) -> int:
        """Return the MACs of the stem convolution."""
        rows, columns = self.stem_size(height, width)
        return 3 * int(self.stem[0].out_channels) * 9 * rows * columns  # type: ignore[arg-type]

    @property
    def smallest_input(self) -> int:
        """Smallest height and width: what is left of it behind the last stage is one pixel."""
        return self.stem_stride * math.prod(stage[0].stride for stage in self.stages())

    def forward_stem(self, x: Tensor) -> Tensor:
        """Return the input of the first block for images (N, 3, H, W).

        Raises:
            UsageError: Images that are smaller than the strides of the network.
        """
        least = self.smallest_input
        if min(x.shape[2], x.shape[3]) < least:
            raise UsageError(
                f"{self.name} halves its input down to 1 / {least}, and got {x.shape[2]} x {x.shape[3]} pixels: give "
                f"images of at least {least} x {least}."
            )
        y: Tensor = self.stem(x)
        return y

    def forward_head(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) for the output of the last block."""
        y: Tensor = self.fc(self.avgpool(x).flatten(1))
        return y


def _published(size: str, config: LaudRegNetConfig) -> LaudRegNet:
    return LaudRegNet(f"laud_regnety_{size}", stage_widths(GENERATORS[f"regnet_y_{size}"]), config)


@register_model(family="laud_regnet", config_type=LaudRegNetConfig, input_size=(224, 224), preprocessing=IMAGENET)
def laud_regnety_400mf(config: LaudRegNetConfig) -> LaudRegNet:
    """LAUD-RegNetY-400MF for 224x224 images."""
    return _published("400mf", config)


@register_model(family="laud_regnet", config_type=LaudRegNetConfig, input_size=(224, 224), preprocessing=IMAGENET)
def laud_regnety_800mf(config: LaudRegNetConfig) -> LaudRegNet:
    """LAUD-RegNetY-800MF for 224x224 images."""
    return _published("800mf", config)


@register_model(family="laud_regnet", config_type=LaudRegNetConfig, input_size=(224, 224), preprocessing=IMAGENET)
def laud_regnety_1_6gf(config: LaudRegNetConfig) -> LaudRegNet:
    """LAUD-RegNetY-1.6GF for 224x224 images."""
    return _published("1_6gf", config)


@register_model(family="laud_regnet", config_type=LaudRegNetConfig, input_size=(224, 224), preprocessing=IMAGENET)
def laud_regnety_3_2gf(config: LaudRegNetConfig) -> LaudRegNet:
    """LAUD-RegNetY-3.2GF for 224x224 images."""
    return _published("3_2gf", config)


@register_model(family="laud_regnet", config_type=LaudRegNetConfig, input_size=(224, 224), preprocessing=IMAGENET)
def laud_regnety_8gf(config: LaudRegNetConfig) -> LaudRegNet:
    """LAUD-RegNetY-8GF for 224x224 images."""
    return _published("8gf", config)


@register_model(family="laud_regnet", config_type=LaudRegNetConfig, input_size=(224, 224), preprocessing=IMAGENET)
def laud_regnety_16gf(config: LaudRegNetConfig) -> LaudRegNet:
    """LAUD-RegNetY-16GF for 224x224 images."""
    return _published("16gf", config)


@register_model(
    family="laud_regnet",
    config_type=LaudRegNetConfig,
    input_size=(32, 32),
    preprocessing=SMALL_32,
    defaults={"num_classes": 10},
)
def laud_regnety_small(config: LaudRegNetConfig) -> LaudRegNet:
    """LAUD-RegNetY for 32x32 images: eight blocks on maps of 16, 8, 4 and 2 pixels."""
    widths = [StageWidth(2, channels, 8) for channels in (32, 64, 96, 160)]
    return LaudRegNet("laud_regnety_small", widths, config, stem_channels=24, stem_stride=1)
