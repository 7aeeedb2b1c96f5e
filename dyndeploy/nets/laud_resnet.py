"""LAUD-ResNet: residual networks that decide per image which patches, channels or blocks to compute.

Reference: "Latency-Aware Unified Dynamic Networks for Efficient Image Recognition" (Han et al., TPAMI 2024)
and its reference code. Parameter names equal the reference's, and torchvision's ResNet outside the maskers.
Here, as in the reference, everything is computed densely and multiplied by masks: this is the network that
is trained and that defines the right answer. Skipping begins with the export.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dyndeploy.blocks import ConvLinearChannelMasker, Gate, LoweredCall, MlpChannelMasker, SpatialMasker
from dyndeploy.blocks.block import run_dense
from dyndeploy.blocks.folding import fold_batch_norm
from dyndeploy.blocks.gates import Temperature, expand_groups
from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.nets.laud_checkpoints import LaudRules
from dyndeploy.nets.registry import IMAGENET, SMALL_32, SMALL_64, register_model
from dyndeploy.nets.resnet import EXPANSION, Architecture, BottleneckLayers, init_convolution
from dyndeploy.nets.results import BlockMasks, Densities, DynamicOutput, NetworkFacts
from dyndeploy.ops import OperatorSpec, operator
from dyndeploy.ops.base import Shape
from dyndeploy.ops.masks import dilate_mask, upsample_mask

MODES = ("spatial", "channel", "layer", "both", "static")
CHANNEL_MASKERS = ("mlp", "conv_linear")
FLOPS_GRADIENTS = ("full", "reference")

_STAGES = 4
_PER_STAGE = (
    "mode",
    "granularity",
    "channel_granularity",
    "channel_masker",
    "channel_masker_layers",
    "reduction",
    "spatial_groups",
)


@dataclass(frozen=True)
class StageConfig:
    """The settings of one stage; the meaning of each is that of :class:`LaudResNetConfig`."""

    mode: str
    granularity: int
    channel_granularity: int
    channel_masker: str
    channel_masker_layers: int
    reduction: int
    spatial_groups: int


@dataclass(frozen=True)
class LaudResNetConfig:
    """Every option of a LAUD-ResNet. Where it says "per stage", give one value or a sequence of four.

    After construction the per-stage options are tuples of four.

    Attributes:
        mode: Per stage: "spatial" (skip patches), "channel" (skip channel groups of the bottleneck), "layer"
            (skip the block), "both" (patches and channel groups) or "static" (no maskers).
        granularity: Per stage: side of a square patch in pixels of the block's output. The mask has
            max(1, size // granularity) rows and columns. Unused in mode "layer" (mask 1x1).
        channel_granularity: Per stage: channels per group, for the channel masks.
        channel_masker: Per stage: "mlp" or "conv_linear".
        channel_masker_layers: Per stage: 1 or 2, for "mlp".
        reduction: Per stage: reduction of the channel masker's hidden width.
        spatial_groups: Per stage: groups of output channels with a spatial mask of their own.
        num_classes: Classes.
        width_mult: Multiplies all widths.
        groups: Groups of the 3x3 convolutions; the bottleneck width is multiplied by it, as in ResNeXt.
        replace_stride_with_dilation: For stages 2 to 4: keep the resolution and dilate instead.
        zero_init_residual: Start every residual branch at zero.
        mask_bias_fix: Initialise all mask biases as intended; False reproduces the reference code, which
            leaves the first "skip" bias random.
        flops_gradient: "full" lets the gradient of the FLOPs reach a spatial masker through all three
            convolutions; "reference" only through the last, as the reference code does. The values are equal.
    """

    mode: str | Sequence[str] = "spatial"
    granularity: int | Sequence[int] = (4, 4, 2, 1)
    channel_granularity: int | Sequence[int] = (2, 2, 2, 2)
    channel_masker: str | Sequence[str] = "mlp"
    channel_masker_layers: int | Sequence[int] = 2
    reduction: int | Sequence[int] = 16
    spatial_groups: int | Sequence[int] = 1
    num_classes: int = 1000
    width_mult: float = 1.0
    groups: int = 1
    replace_stride_with_dilation: Sequence[bool] = (False, False, False)
    zero_init_residual: bool = False
    mask_bias_fix: bool = True
    flops_gradient: str = "full"

    def __post_init__(self) -> None:
        """Check every value that can be checked without the architecture.

        Raises:
            UsageError: Naming the option, its value and what is valid.
        """
        for name in _PER_STAGE:
            self._set(name, _per_stage(name, getattr(self, name)))
        for name, known in (("mode", MODES), ("channel_masker", CHANNEL_MASKERS)):
            for value in getattr(self, name):
                _check_choice(name, value, known)
        _check_choice("flops_gradient", self.flops_gradient, FLOPS_GRADIENTS)
        for name in ("granularity", "channel_granularity", "reduction", "spatial_groups"):
            for value in getattr(self, name):
                _check_positive_int(name, value)
        for value in self.stage_values("channel_masker_layers"):
            if value not in (1, 2) or isinstance(value, bool):
                raise UsageError(f"channel_masker_layers={value!r} is not valid: give 1 or 2.")
        for name in ("num_classes", "groups"):
            _check_positive_int(name, getattr(self, name))
        width_mult = self.width_mult
        if (
            isinstance(width_mult, bool)
            or not isinstance(width_mult, (int, float))
            or not (math.isfinite(width_mult) and width_mult > 0)
        ):
            raise UsageError(f"width_mult={width_mult!r} is not valid: give a positive number.")
        for name in ("zero_init_residual", "mask_bias_fix"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r} is not valid: give True or False.")
        dilate = self.replace_stride_with_dilation
        if (
            not isinstance(dilate, (tuple, list))
            or len(dilate) != _STAGES - 1
            or not all(isinstance(d, bool) for d in dilate)
        ):
            raise UsageError(
                f"replace_stride_with_dilation={dilate!r} is not valid: give three booleans (stages 2 to 4)."
            )
        self._set("replace_stride_with_dilation", tuple(dilate))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def stage_values(self, name: str) -> tuple[Any, ...]:
        """Return the four values of a per-stage option."""
        values: tuple[Any, ...] = getattr(self, name)
        return values

    def stages(self) -> tuple[StageConfig, ...]:
        """Return the settings of the four stages."""
        return tuple(StageConfig(**{name: self.stage_values(name)[i] for name in _PER_STAGE}) for i in range(_STAGES))

    def as_dict(self) -> dict[str, Any]:
        """Return all options as plain JSON types; ``create_model(name, **config.as_dict())`` rebuilds."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _per_stage(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        if len(value) != _STAGES:
            raise UsageError(f"{name}={value!r} has {len(value)} entries: give one value, or four (one per stage).")
        return tuple(value)
    return (value,) * _STAGES


def _check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{name}={value!r} is not valid: give one of {', '.join(known)}.")
    if value not in known:
        raise unknown_name(name, value, known)


def _check_positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value!r} is not valid: give whole numbers of at least 1.")


class BlockRecord(NamedTuple):
    """What one block reports: its masks, four batch-mean densities (0-d), computed MACs (0-d), dense MACs."""

    masks: BlockMasks
    conv3: Tensor
    conv2: Tensor
    conv1: Tensor
    channel: Tensor
    macs: Tensor
    dense_macs: int


class LaudBottleneck(BottleneckLayers):
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

        self.masker_spatial: SpatialMasker | None = None
        if stage.mode in ("spatial", "layer", "both"):
            if self.out_channels % stage.spatial_groups:
                raise UsageError(
                    f"spatial_groups={stage.spatial_groups} does not divide the {self.out_channels} output "
                    f"channels of {name}: give a divisor of {self.out_channels}."
                )
            self.masker_spatial = SpatialMasker(
                in_channels, stage.spatial_groups, mask_bias_fix, whole=stage.mode == "layer"
            )
        self.masker_channel: MlpChannelMasker | ConvLinearChannelMasker | None = None
        if stage.mode in ("channel", "both"):
            self.masker_channel = _channel_masker(name, in_channels, self.width, stage, mask_bias_fix)

    def gates(self) -> Mapping[str, Gate]:
        """Return the maskers: ``spatial`` or ``layer``, and ``channel``; nothing in mode "static"."""
        maskers = (
            (self.masker_spatial, "layer" if self.mode == "layer" else "spatial"),
            (self.masker_channel, "channel"),
        )
        return {name: masker for masker, name in maskers if masker is not None}

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the block's output (height, width) for an input of height x width."""
        return (height - 1) // self.stride + 1, (width - 1) // self.stride + 1

    def mask_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the spatial mask's (rows, columns) for an input of height x width."""
        if self.granularity is None:
            return 1, 1
        out_height, out_width = self.output_size(height, width)
        return max(1, out_height // self.granularity), max(1, out_width // self.granularity)

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
        if self.masker_spatial is not None and self.masker_spatial.groups != 1:
            raise UsageError(
                f"{self.name} has {self.masker_spatial.groups} spatial mask groups: the operators skip whole pixels "
                "and need spatial_groups=1 (as all published LAUDNet models have)."
            )
        layers = {"1": (self.conv1, self.bn1), "2": (self.conv2, self.bn2), "3": (self.conv3, self.bn3)}
        if self.downsample is not None:
            conv, norm = self.downsample[0], self.downsample[1]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            layers["d"] = (conv, norm)
        tensors: dict[str, Tensor] = {}
        for name, (conv, norm) in layers.items():
            weight, bias = fold_batch_norm(conv, norm)
            tensors |= {f"w{name}": weight if name == "2" else weight.flatten(1), f"b{name}": bias}
        return LoweredCall(
            self._operator.name,
            tensors,
            self._attributes,
            channels_last=True,
            rectified=self.masker_spatial is not None and self.downsample is None,
        )

    @property
    def _operator(self) -> OperatorSpec:
        # A static block has the work of any of them with every mask bit set.
        name = _OPERATORS.get(self.mode, "SpatialBottleneck")
        return operator(name if self.downsample is None else f"{name}Projection")

    @property
    def _attributes(self) -> dict[str, Any]:
        return {
            "strides": [self.stride] * 2,
            "dilations": [self.dilation] * 2,
            "pads": [self.dilation] * 4,
            "group": self.groups,
        }

    def _shapes(self, height: int, width: int) -> list[Shape]:
        """Shapes of the operator's inputs for one image of height x width."""
        sizes = {"N": 1, "H": height, "W": width, "C": self.in_channels, "M": self.width, "Co": self.out_channels}
        sizes |= {"M/group": self.width // self.groups, "3": 3, "1": 1, "mh": 1, "mw": 1, "G": 1}
        return [tuple(sizes[axis] for axis in port.shape) for port in self._operator.inputs]

    def masker_macs(self, height: int, width: int) -> int:
        """MACs of the maskers per image for an input of height x width, as the reference code counts them."""
        spatial, channel = self.masker_spatial, self.masker_channel
        deciding = self.gates()
        macs = 0
        if spatial is not None and deciding:
            macs += spatial.macs(self.mask_size(height, width))
        if channel is not None and deciding:
            macs += channel.macs(height, width)
        return macs

    def dense_macs(self, height: int, width: int) -> int:
        """MACs of the convolutions per image with everything computed, for an input of height x width."""
        return int(self._operator.dense_work(self._shapes(height, width), self._attributes).macs)

    def _parts(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Dense MACs of the three convolutions and the shortcut, each as the operator's work of it alone."""
        shapes, attributes = self._shapes(height, width), self._attributes
        counts = self._operator.expected(shapes, attributes, {})
        pixels = ("conv1_pixels", "conv2_pixels", "conv3_pixels")
        nothing = {**counts, **dict.fromkeys(pixels, 0)}
        shortcut = int(self._operator.work(shapes, attributes, nothing, 4.0).macs)
        conv1, conv2, conv3 = (
            int(self._operator.work(shapes, attributes, {**nothing, name: counts[name]}, 4.0).macs) - shortcut
            for name in pixels
        )
        return conv1, conv2, conv3, shortcut

    def record(self, x: Tensor, spatial: Tensor | None, channel: Tensor | None) -> BlockRecord:
        """Return densities and MACs for an input and its masks."""
        height, width = x.shape[2], x.shape[3]
        # Counts of MACs overflow half precision.
        dtype = torch.promote_types(x.dtype, torch.float32)
        one = torch.ones((), dtype=dtype, device=x.device)
        d1 = d2 = d3 = c = one
        mean = self._mean()
        if channel is not None:
            c = mean(channel.to(dtype))
        out_height, out_width = self.output_size(height, width)
        if spatial is not None:
            spatial_wide = spatial.to(dtype)
            d3 = mean(spatial_wide)
            counted = spatial_wide if self.flops_gradient == "full" else spatial_wide.detach()
            # The groups share conv1 and conv2: what any of them needs is computed.
            united = upsample_mask(counted.amax(1, keepdim=True), out_height, out_width)
            d2 = mean(united)
            d1 = mean(dilate_mask(united, height, width, self.stride, self.dilation))
        conv1, conv2, conv3, shortcut = self._parts(height, width)
        maskers = self.masker_macs(height, width)
        # In the order of the reference code: another one rounds differently, and training follows the rounding.
        macs = maskers + conv1 * c * d1 + conv2 * (c * c) * d2 + conv3 * c * d3 + shortcut
        dense = conv1 + conv2 + conv3 + shortcut + maskers
        return BlockRecord(BlockMasks(self.name, spatial, channel), d3, d2, d1, c, macs, dense)

    def _mean(self) -> Callable[[Tensor], Tensor]:
        """How a mask is averaged over the batch: as the tape that records does it."""
        tapes = [gate.tape for gate in self.gates().values() if gate.tape is not None]
        return tapes[0].mean if tapes else torch.mean

    def forward(self, x: Tensor, temperature: Temperature = None) -> tuple[Tensor, BlockRecord | None]:
        """Decide, compute and account.

        Args:
            x: Input (N, C, H, W).
            temperature: Gumbel-softmax temperature, used in training mode only; None is the tape's, else 1.

        Returns:
            The output (N, planes * 4, Ho, Wo) and the block's record, which is None while a graph is captured.
        """
        size = self.mask_size(x.shape[2], x.shape[3])
        masks = {name: gate(x, size, temperature) for name, gate in self.gates().items()}
        y = self.compute(x, **masks)
        if torch.onnx.is_in_onnx_export():
            return y, None
        return y, self.record(x, masks.get("layer", masks.get("spatial")), masks.get("channel"))


_OPERATORS = {
    "spatial": "SpatialBottleneck",
    "layer": "LayerBottleneck",
    "channel": "ChannelBottleneck",
    "both": "SpatialChannelBottleneck",
}
"""Operator of each mode; with a projection shortcut its name ends in ``Projection``."""


def _channel_masker(
    name: str, in_channels: int, width: int, stage: StageConfig, mask_bias_fix: bool
) -> MlpChannelMasker | ConvLinearChannelMasker:
    granularity = stage.channel_granularity
    valid = [d for d in range(1, width + 1) if width % d == 0]
    if granularity > width or width % (width // granularity):
        raise UsageError(
            f"channel_granularity={granularity} does not split the {width} channels of {name} into equal "
            f"groups: give one of {', '.join(map(str, valid))}."
        )
    groups = width // granularity
    if stage.channel_masker == "mlp":
        return MlpChannelMasker(in_channels, groups, stage.channel_masker_layers, stage.reduction, mask_bias_fix)
    if stage.reduction > in_channels:
        raise UsageError(
            f"reduction={stage.reduction} leaves no channel of the {in_channels} that the conv_linear masker "
            f"of {name} reads: give at most {in_channels}."
        )
    return ConvLinearChannelMasker(in_channels, groups, stage.reduction, mask_bias_fix)


class LaudResNet(nn.Module):
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
                nn.init.zeros_(block.bn3.weight)

    def stages(self) -> tuple[nn.ModuleList, ...]:
        """Return the four lists of blocks."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def named_blocks(self) -> Iterator[tuple[str, LaudBottleneck]]:
        """Iterate over ("layer1.0", block), ... in order of execution."""
        for stage in self.stages():
            for block in stage:
                assert isinstance(block, LaudBottleneck)
                yield block.name, block

    def run_dense(self, names: Sequence[str]) -> None:
        """Let blocks compute everything, whatever their maskers say; see :func:`dyndeploy.blocks.block.run_dense`."""
        run_dense(self, names)

    def full_flops(self, input_size: tuple[int, int]) -> int:
        """Return what the network's FLOPs are divided by for images of (height, width); see :func:`full_flops`."""
        return full_flops(self, input_size)

    def checkpoint_rules(self) -> LaudRules:
        """Return what its files of weights may lack, and how one is made to fit."""
        return LaudRules(self)

    def facts(self) -> NetworkFacts:
        """Return what a bundle says of the network."""
        modes = self.config.stage_values("mode")
        return NetworkFacts(
            mode=modes[0] if len(set(modes)) == 1 else "-".join(modes),
            granularity=self.config.stage_values("granularity"),
            channel_granularity=self.config.stage_values("channel_granularity"),
            options=self.config.as_dict(),
        )

    def describe(self, input_size: tuple[int, int]) -> dict[str, Any] | None:
        """Return the network's shapes as the paper's predictor reads them, or None for a subclass, which may differ."""
        if type(self) is not LaudResNet:
            return None
        architecture = self.architecture
        blocks = [
            {
                "name": block.name,
                "c_in": block.in_channels,
                "width": block.width,
                "c_out": block.out_channels,
                "height": height,
                "map_width": width,
                "stride": block.stride,
                "groups": block.groups,
                "dilation": block.dilation,
                "projection": block.downsample is not None,
                "mask_before_norm": True,
            }
            for block, height, width in block_inputs(self, *input_size)
        ]
        maskers = [
            {
                "channel": stage.channel_masker,
                "layers": stage.channel_masker_layers,
                "reduction": stage.reduction,
                "spatial_groups": stage.spatial_groups,
            }
            for stage in self.config.stages()
        ]
        stem = {
            "c_in": 3,
            "c_out": self.conv1.out_channels,
            "kernel": architecture.stem_kernel,
            "stride": architecture.stem_stride,
            "pool_stride": 2 if architecture.stem_pool else 0,
        }
        return {
            "name": self.name,
            "input_size": list(input_size),
            "stem": stem,
            "stages": list(architecture.blocks),
            "blocks": blocks,
            "classes": self.fc.out_features,
            "maskers": maskers,
        }

    def forward_stem(self, x: Tensor) -> Tensor:
        """Return the input of the first block for images (N, 3, H, W)."""
        y: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return y

    def forward_head(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) for the output of the last block."""
        y: Tensor = self.fc(self.avgpool(x).flatten(1))
        return y

    def forward(self, x: Tensor, temperature: float | Tensor | None = None) -> DynamicOutput:
        """Classify a batch of images.

        Args:
            x: Images (N, 3, H, W) of any size, of the network's dtype.
            temperature: Gumbel-softmax temperature of the maskers, used in training mode only; None is 1.

        Returns:
            Logits, per-sample masks, densities and MACs.
        """
        y = self.forward_stem(x)
        pool_macs = y.shape[1] * y.shape[2] * y.shape[3] * 9 if self.architecture.stem_pool else 0
        fixed = _stem_macs(self, x.shape[2], x.shape[3]) + pool_macs + self.fc.in_features
        fixed += self.fc.in_features * self.fc.out_features
        densities = Densities([], [], [], [])
        masks: list[BlockMasks] = []
        macs: list[Tensor] = []
        ratios: list[Tensor] = []
        for stage in self.stages():
            records: list[BlockRecord] = []
            for block in stage:
                y, record = block(y, temperature)
                records += [] if record is None else [record]
            if not records:
                continue
            densities.conv3.append(torch.stack([r.conv3 for r in records]))
            densities.conv2.append(torch.stack([r.conv2 for r in records]))
            densities.conv1.append(torch.stack([r.conv1 for r in records]))
            densities.channel.append(torch.stack([r.channel for r in records]))
            masks += [r.masks for r in records]
            macs += [r.macs for r in records]
            ratios += [r.macs / r.dense_macs for r in records]
        if not macs:
            nothing = y.new_zeros(0)
            return DynamicOutput(self.forward_head(y), (), densities, nothing, nothing)
        return DynamicOutput(
            logits=self.forward_head(y),
            masks=tuple(masks),
            densities=densities,
            flops=torch.stack(macs).sum() + fixed,
            flops_ratio=torch.stack(ratios),
        )


def _size(input_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if min(height, width) < 1:
        raise UsageError(f"input_size={input_size!r} is not valid: give (height, width), at least 1 each.")
    return height, width


def _stem_size(model: LaudResNet, height: int, width: int) -> tuple[int, int]:
    stride = model.architecture.stem_stride
    return (height - 1) // stride + 1, (width - 1) // stride + 1


def _stem_macs(model: LaudResNet, height: int, width: int) -> int:
    rows, columns = _stem_size(model, height, width)
    return 3 * model.conv1.out_channels * model.architecture.stem_kernel**2 * rows * columns


def block_inputs(model: LaudResNet, height: int, width: int) -> Iterator[tuple[LaudBottleneck, int, int]]:
    """Iterate over (block, input height, input width)."""
    height, width = _stem_size(model, height, width)
    if model.architecture.stem_pool:
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    for _, block in model.named_blocks():
        yield block, height, width
        height, width = block.output_size(height, width)


def static_macs(model: LaudResNet, input_size: int | tuple[int, int]) -> int:
    """Return the MACs per image of the static twin: all convolutions and the classifier, nothing else.

    Args:
        model: The network, of any mode; its maskers are not counted.
        input_size: (height, width), or one number for both.

    Raises:
        UsageError: A size below 1.
    """
    height, width = _size(input_size)
    total = _stem_macs(model, height, width) + model.fc.in_features * model.fc.out_features
    return total + sum(block.dense_macs(rows, columns) for block, rows, columns in block_inputs(model, height, width))


def full_flops(model: LaudResNet, input_size: int | tuple[int, int]) -> int:
    """Return what the LAUDNet reference code divides a network's FLOPs by.

    Its counter hooks the static twin: MACs of convolutions, one per element of every ReLU, the input elements
    of the final average pool, weights and biases of the classifier; batch norm and max pool are free.

    Args:
        model: The network, of any mode.
        input_size: (height, width), or one number for both.

    Raises:
        UsageError: A size below 1.
    """
    height, width = _size(input_size)
    rows, columns = _stem_size(model, height, width)
    total = static_macs(model, (height, width)) + model.fc.out_features
    total += model.conv1.out_channels * rows * columns
    for block, rows, columns in block_inputs(model, height, width):
        out_rows, out_columns = block.output_size(rows, columns)
        total += block.width * rows * columns + (block.width + block.out_channels) * out_rows * out_columns
        last = block.out_channels * out_rows * out_columns
    return total + last


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
