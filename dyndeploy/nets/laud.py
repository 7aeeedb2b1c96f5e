"""What the LAUD families share: options, the accounting of a dynamic block, the way of a batch through the stages.

Reference: "Latency-Aware Unified Dynamic Networks for Efficient Image Recognition" (Han et al., TPAMI 2024)
and its reference code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dyndeploy.blocks import ConvLinearChannelMasker, Gate, LoweredCall, MlpChannelMasker, SpatialMasker
from dyndeploy.blocks.block import run_dense
from dyndeploy.blocks.folding import fold_batch_norm
from dyndeploy.blocks.gates import Temperature
from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.nets.checkpoint_rules import joined
from dyndeploy.nets.results import BlockMasks, Densities, DynamicOutput, Features, NetworkFacts
from dyndeploy.ops import OperatorSpec, operator
from dyndeploy.ops.base import Shape
from dyndeploy.ops.masks import dilate_mask, upsample_mask

MODES = ("spatial", "channel", "layer", "both", "static")
CHANNEL_MASKERS = ("mlp", "conv_linear")
FLOPS_GRADIENTS = ("full", "reference")

STAGES = 4
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
    """The settings of one stage; the meaning of each is that of :class:`LaudConfig`."""

    mode: str
    granularity: int
    channel_granularity: int
    channel_masker: str
    channel_masker_layers: int
    reduction: int
    spatial_groups: int


@dataclass(frozen=True)
class LaudConfig:
    """The options of every LAUD family. Where it says "per stage", give one value or a sequence of four.

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
        mask_bias_fix: Initialise all mask biases as intended; False reproduces the reference code, which
            leaves the first "skip" bias random.
        flops_gradient: "full" lets the gradient of the FLOPs reach a spatial masker through all three
            convolutions; "reference" only through the last, as the reference code does. The values are equal.
    """

    modes: ClassVar[tuple[str, ...]] = MODES
    mode: str | Sequence[str] = "spatial"
    granularity: int | Sequence[int] = (4, 4, 2, 1)
    channel_granularity: int | Sequence[int] = (2, 2, 2, 2)
    channel_masker: str | Sequence[str] = "mlp"
    channel_masker_layers: int | Sequence[int] = 2
    reduction: int | Sequence[int] = 16
    spatial_groups: int | Sequence[int] = 1
    num_classes: int = 1000
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
                check_choice(name, value, known)
        check_choice("flops_gradient", self.flops_gradient, FLOPS_GRADIENTS)
        for name in ("granularity", "channel_granularity", "reduction", "spatial_groups"):
            for value in getattr(self, name):
                check_positive_int(name, value)
        for value in self.stage_values("channel_masker_layers"):
            if value not in (1, 2) or isinstance(value, bool):
                raise UsageError(f"channel_masker_layers={value!r} is not valid: give 1 or 2.")
        check_positive_int("num_classes", self.num_classes)
        check_bool("mask_bias_fix", self.mask_bias_fix)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def stage_values(self, name: str) -> tuple[Any, ...]:
        """Return the four values of a per-stage option."""
        values: tuple[Any, ...] = getattr(self, name)
        return values

    def stages(self) -> tuple[StageConfig, ...]:
        """Return the settings of the four stages."""
        return tuple(StageConfig(**{name: self.stage_values(name)[i] for name in _PER_STAGE}) for i in range(STAGES))

    def notes(self) -> tuple[str, ...]:
        """What has to be said of the options where a network is exported: phrases without a full stop."""
        modes, sides = self.stage_values("mode"), self.stage_values("granularity")
        usual = _per_stage("granularity", LaudConfig.granularity)
        unused = "layer" in modes and not {"spatial", "both"} & set(modes) and sides != usual
        return (
            (f"mode layer decides on whole blocks: the granularity {joined(list(sides))} has no use",) if unused else ()
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all options as plain JSON types; ``create_model(name, **config.as_dict())`` rebuilds."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _per_stage(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        if len(value) != STAGES:
            raise UsageError(f"{name}={value!r} has {len(value)} entries: give one value, or four (one per stage).")
        return tuple(value)
    return (value,) * STAGES


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ``UsageError`` unless the value of an option is one of the known texts."""
    if not isinstance(value, str):
        raise UsageError(f"{name}={value!r} is not valid: give one of {', '.join(known)}.")
    if value not in known:
        raise unknown_name(name, value, known)


def check_positive_int(name: str, value: Any) -> None:
    """Raise ``UsageError`` unless the value of an option is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value!r} is not valid: give whole numbers of at least 1.")


def check_bool(name: str, value: Any) -> None:
    """Raise ``UsageError`` unless the value of an option is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}={value!r} is not valid: give True or False.")


class BlockRecord(NamedTuple):
    """What one block reports.

    Attributes:
        masks: Its masks.
        conv3, conv2, conv1, channel: Four batch-mean densities (0-d).
        macs: Computed MACs (0-d).
        dense_macs: MACs of everything.
        further_macs: MACs that count for the network and that the block's ratio leaves out, as the reference code
            leaves out a squeeze-and-excitation.
    """

    masks: BlockMasks
    conv3: Tensor
    conv2: Tensor
    conv1: Tensor
    channel: Tensor
    macs: Tensor
    dense_macs: int
    further_macs: int = 0


class Parts(NamedTuple):
    """Dense MACs of a block's parts."""

    conv1: int
    conv2: int
    conv3: int
    shortcut: int
    excitation: int


class LaudBlock:
    """What every LAUD block does besides computing; a base beside ``nn.Module``.

    Attributes:
        name: Dotted name of the block in its network, reported with the masks.
        mode: "spatial", "channel", "layer", "both" or "static".
        granularity: Patch side in output pixels, or None where the block has no patches.
        flops_gradient: See :class:`LaudConfig`.
        in_channels: Channels of the input.
        width: Channels of the 3x3 convolution.
        out_channels: Channels of the output.
        stride: Stride of the 3x3 convolution and of a projection.
        dilation: Dilation of the 3x3 convolution.
        groups: Groups of the 3x3 convolution.
        squeezed: Hidden channels of a squeeze-and-excitation; 0 where there is none.
        masker_spatial: Or None.
        masker_channel: Or None.
    """

    name: str
    mode: str
    granularity: int | None
    flops_gradient: str
    in_channels: int
    width: int
    out_channels: int
    stride: int
    dilation: int
    groups: int
    squeezed: int = 0
    masker_spatial: SpatialMasker | None
    masker_channel: MlpChannelMasker | ConvLinearChannelMasker | None
    compute: Callable[..., Tensor]

    @property
    def projected(self) -> bool:
        """Whether the shortcut is a convolution."""
        raise NotImplementedError

    @property
    def operator(self) -> OperatorSpec:
        """The fused operator that the block becomes; of a static block one with equal dense work."""
        raise NotImplementedError

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the operator."""
        return {
            "strides": [self.stride] * 2,
            "dilations": [self.dilation] * 2,
            "pads": [self.dilation] * 4,
            "group": self.groups,
        }

    def lowered(
        self, layers: Mapping[str, tuple[nn.Conv2d, nn.BatchNorm2d]], further: Mapping[str, Tensor]
    ) -> LoweredCall:
        """Return the call of the fused operator.

        Args:
            layers: Convolutions with their BatchNorm, which is folded into them, by the last letter of the operator's
                weight: ``1``, ``2``, ``3``, and ``d`` for a projection.
            further: Other weights of the operator, by name.

        Raises:
            UsageError: More than one spatial mask group, for which there is no operator.
        """
        self.check_spatial_groups()
        tensors: dict[str, Tensor] = {}
        for name, (conv, norm) in layers.items():
            weight, bias = fold_batch_norm(conv, norm)
            tensors |= {f"w{name}": weight if name == "2" else weight.flatten(1), f"b{name}": bias}
        return LoweredCall(
            self.operator.name,
            tensors | dict(further),
            self.attributes,
            channels_last=True,
            rectified=self.masker_spatial is not None and not self.projected,
        )

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

    def check_spatial_groups(self) -> None:
        """Raise ``UsageError`` where there are several spatial mask groups, for which there is no operator."""
        if self.masker_spatial is not None and self.masker_spatial.groups != 1:
            raise UsageError(
                f"{self.name} has {self.masker_spatial.groups} spatial mask groups: the operators skip whole pixels "
                "and need spatial_groups=1 (as all published LAUDNet models have)."
            )

    def _shapes(self, height: int, width: int) -> list[Shape]:
        """Shapes of the operator's inputs for one image of height x width."""
        sizes = {"N": 1, "H": height, "W": width, "C": self.in_channels, "M": self.width, "Co": self.out_channels}
        sizes |= {"M/group": self.width // self.groups, "S": self.squeezed, "3": 3, "1": 1, "mh": 1, "mw": 1, "G": 1}
        return [tuple(sizes[axis] for axis in port.shape) for port in self.operator.inputs]

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
        return int(self.operator.dense_work(self._shapes(height, width), self.attributes).macs)

    def _parts(self, height: int, width: int) -> Parts:
        """Dense MACs of the parts, each as the operator's work of it alone."""
        shapes, attributes, spec = self._shapes(height, width), self.attributes, self.operator
        counts = spec.expected(shapes, attributes, {})
        nothing = {**counts, **dict.fromkeys(("conv1_pixels", "conv2_pixels", "conv3_pixels", "excited"), 0)}
        shortcut = int(spec.work(shapes, attributes, nothing, 4.0).macs)

        def part(name: str) -> int:
            alone = {**nothing, name: counts.get(name, 0)}
            return int(spec.work(shapes, attributes, alone, 4.0).macs) - shortcut

        return Parts(part("conv1_pixels"), part("conv2_pixels"), part("conv3_pixels"), shortcut, part("excited"))

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
        parts = self._parts(height, width)
        maskers = self.masker_macs(height, width)
        # In the order of the reference code: another one rounds differently, and training follows the rounding.
        macs = maskers + parts.conv1 * c * d1 + parts.conv2 * (c * c) * d2 + parts.conv3 * c * d3 + parts.shortcut
        dense = parts.conv1 + parts.conv2 + parts.conv3 + parts.shortcut + maskers
        masks = BlockMasks(self.name, spatial, channel)
        return BlockRecord(masks, d3, d2, d1, c, macs, dense, parts.excitation)

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
            The output (N, out_channels, Ho, Wo) and the block's record, which is None while a graph is captured.
        """
        size = self.mask_size(x.shape[2], x.shape[3])
        masks = {name: gate(x, size, temperature) for name, gate in self.gates().items()}
        y = self.compute(x, **masks)
        if torch.onnx.is_in_onnx_export():
            return y, None
        return y, self.record(x, masks.get("layer", masks.get("spatial")), masks.get("channel"))


def spatial_masker(
    name: str, in_channels: int, out_channels: int, stage: StageConfig, mask_bias_fix: bool
) -> SpatialMasker | None:
    """Build the spatial masker of a block, or None where its mode has none.

    Raises:
        UsageError: ``spatial_groups`` does not divide the output channels.
    """
    if stage.mode not in ("spatial", "layer", "both"):
        return None
    if out_channels % stage.spatial_groups:
        raise UsageError(
            f"spatial_groups={stage.spatial_groups} does not divide the {out_channels} output "
            f"channels of {name}: give a divisor of {out_channels}."
        )
    return SpatialMasker(in_channels, stage.spatial_groups, mask_bias_fix, whole=stage.mode == "layer")


def channel_masker(
    name: str, in_channels: int, width: int, stage: StageConfig, mask_bias_fix: bool
) -> MlpChannelMasker | ConvLinearChannelMasker | None:
    """Build the channel masker of a block, or None where its mode has none.

    Raises:
        UsageError: ``channel_granularity`` does not split the width into equal groups, or ``reduction`` leaves a
            convolutional masker no channel.
    """
    if stage.mode not in ("channel", "both"):
        return None
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


def operator_of(names: Mapping[str, str], mode: str, projection: bool) -> OperatorSpec:
    """The operator of a mode; a static block has the work of any of them with every mask bit set."""
    name = names.get(mode, names["spatial"])
    return operator(f"{name}Projection" if projection else name)


class LaudNetwork(nn.Module):
    """A network of four stages of LAUD blocks between a stem and a head, which subclasses write.

    Attributes:
        name: Registered name.
        config: The options it was built with.
        fc: The classifier.
    """

    name: str
    config: LaudConfig
    fc: nn.Linear

    def stages(self) -> Sequence[Any]:
        """Return the blocks of the four stages."""
        raise NotImplementedError

    def stem_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the stem convolution's output."""
        raise NotImplementedError

    def stem_macs(self, height: int, width: int) -> int:
        """Return the MACs of the stem convolution."""
        raise NotImplementedError

    def forward_stem(self, x: Tensor) -> Tensor:
        """Return the input of the first block for images (N, 3, H, W)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) for the output of the last block."""
        raise NotImplementedError

    def block_inputs(self, height: int, width: int) -> Iterator[tuple[LaudBlock, int, int]]:
        """Iterate over (block, input height, input width) for images of height x width."""
        height, width = self.first_size(height, width)
        for _, block in self.named_blocks():
            yield block, height, width
            height, width = block.output_size(height, width)

    def first_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the first block's input."""
        return self.stem_size(height, width)

    def named_blocks(self) -> Iterator[tuple[str, LaudBlock]]:
        """Iterate over (dotted name, block) in order of execution."""
        for stage in self.stages():
            for block in stage:
                yield block.name, block

    def run_dense(self, names: Sequence[str]) -> None:
        """Let blocks compute everything, whatever their maskers say; see :func:`dyndeploy.blocks.block.run_dense`."""
        run_dense(self, names)

    def facts(self) -> NetworkFacts:
        """Return what a bundle says of the network."""
        modes = self.config.stage_values("mode")
        return NetworkFacts(
            mode=modes[0] if len(set(modes)) == 1 else "-".join(modes),
            granularity=self.config.stage_values("granularity"),
            channel_granularity=self.config.stage_values("channel_granularity"),
            options=self.config.as_dict(),
            notes=self.config.notes(),
        )

    def full_flops(self, input_size: tuple[int, int]) -> int:
        """Return what the network's FLOPs are divided by for images of (height, width); see :func:`full_flops`."""
        return full_flops(self, input_size)

    def described(self, input_size: tuple[int, int], stem: Mapping[str, Any], *, before_norm: bool) -> dict[str, Any]:
        """Return the network's shapes as the paper's predictor reads them.

        Args:
            input_size: (height, width).
            stem: Of the predictor's description.
            before_norm: Whether channel masks stand before the batch norm.
        """
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
                "squeezed": block.squeezed,
                "projection": block.projected,
                "mask_before_norm": before_norm,
            }
            for block, height, width in self.block_inputs(*input_size)
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
        return {
            "name": self.name,
            "input_size": list(input_size),
            "stem": dict(stem),
            "stages": [len(stage) for stage in self.stages()],
            "blocks": blocks,
            "classes": self.fc.out_features,
            "maskers": maskers,
        }

    def pool_macs(self, height: int, width: int) -> int:
        """Return the MACs of a pool within the stem as the reference code counts them."""
        return 0

    def features(self, x: Tensor, temperature: Temperature = None) -> Features:
        """Return the maps that the stages end with, and what the blocks decided and computed.

        Args:
            x: Images (N, 3, H, W) of any size, of the network's dtype.
            temperature: Gumbel-softmax temperature of the maskers, used in training mode only; None is 1.
        """
        y = self.forward_stem(x)
        fixed = self.stem_macs(x.shape[2], x.shape[3]) + self.pool_macs(x.shape[2], x.shape[3])
        maps: list[Tensor] = []
        densities = Densities([], [], [], [])
        masks: list[BlockMasks] = []
        macs: list[Tensor] = []
        ratios: list[Tensor] = []
        dense = fixed
        for stage in self.stages():
            records: list[BlockRecord] = []
            for block in stage:
                y, record = block(y, temperature)
                records += [] if record is None else [record]
            maps.append(y)
            if not records:
                continue
            densities.conv3.append(torch.stack([r.conv3 for r in records]))
            densities.conv2.append(torch.stack([r.conv2 for r in records]))
            densities.conv1.append(torch.stack([r.conv1 for r in records]))
            densities.channel.append(torch.stack([r.channel for r in records]))
            masks += [r.masks for r in records]
            macs += [r.macs for r in records]
            ratios += [r.macs / r.dense_macs for r in records]
            fixed += sum(r.further_macs for r in records)
            dense += sum(r.dense_macs + r.further_macs for r in records)
        nothing = y.new_zeros(0)
        return Features(
            maps=tuple(maps),
            masks=tuple(masks),
            densities=densities,
            macs=torch.stack(macs) if macs else nothing,
            flops_ratio=torch.stack(ratios) if ratios else nothing,
            fixed_macs=fixed,
            dense_macs=dense,
        )

    def forward(self, x: Tensor, temperature: float | Tensor | None = None) -> DynamicOutput:
        """Classify a batch of images.

        Args:
            x: Images (N, 3, H, W) of any size, of the network's dtype.
            temperature: Gumbel-softmax temperature of the maskers, used in training mode only; None is 1.

        Returns:
            Logits, per-sample masks, densities and MACs.
        """
        found = self.features(x, temperature)
        fixed = found.fixed_macs + self.fc.in_features + self.fc.in_features * self.fc.out_features
        return DynamicOutput(
            logits=self.forward_head(found.maps[-1]),
            masks=found.masks,
            densities=found.densities,
            # Of a captured graph there is no account.
            flops=found.macs.sum() + fixed if found.masks else found.macs,
            flops_ratio=found.flops_ratio,
        )


def image_size(input_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of one number or two; raises ``UsageError`` for a size below 1."""
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if min(height, width) < 1:
        raise UsageError(f"input_size={input_size!r} is not valid: give (height, width), at least 1 each.")
    return height, width


def static_macs(model: LaudNetwork, input_size: int | tuple[int, int]) -> int:
    """Return the MACs per image of the static twin: all convolutions and the classifier, nothing else.

    Args:
        model: The network, of any mode; its maskers are not counted.
        input_size: (height, width), or one number for both.

    Raises:
        UsageError: A size below 1.
    """
    height, width = image_size(input_size)
    total = model.stem_macs(height, width) + model.fc.in_features * model.fc.out_features
    return total + sum(block.dense_macs(rows, columns) for block, rows, columns in model.block_inputs(height, width))


def full_flops(model: LaudNetwork, input_size: int | tuple[int, int]) -> int:
    """Return what the LAUDNet reference code divides a network's FLOPs by.

    Its counter hooks the static twin: MACs of convolutions, one per element of every ReLU and two of every sigmoid, the
    input elements of average pools, weights and biases of the classifier; batch norm and max pool are free.

    Args:
        model: The network, of any mode.
        input_size: (height, width), or one number for both.

    Raises:
        UsageError: A size below 1.
    """
    height, width = image_size(input_size)
    rows, columns = model.stem_size(height, width)
    total = static_macs(model, (height, width)) + model.fc.out_features
    total += _stem_channels(model) * rows * columns
    last = 0
    for block, rows, columns in model.block_inputs(height, width):
        out_rows, out_columns = block.output_size(rows, columns)
        total += block.width * rows * columns + (block.width + block.out_channels) * out_rows * out_columns
        if block.squeezed:
            total += block.width * out_rows * out_columns + block.squeezed + 2 * block.width
        last = block.out_channels * out_rows * out_columns
    return total + last


def _stem_channels(model: LaudNetwork) -> int:
    return next(block.in_channels for _, block in model.named_blocks())
