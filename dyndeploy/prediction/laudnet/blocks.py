"""From a block and a mode to the operators that execute it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dyndeploy.ops.densities import dilated_density
from dyndeploy.prediction.densities import union
from dyndeploy.prediction.laudnet.fixes import Fix
from dyndeploy.prediction.laudnet.network_spec import BlockSpec, MaskerSpec, NetworkSpec
from dyndeploy.prediction.laudnet.operators import Operator
from dyndeploy.prediction.rates import Rates

MODES = ("static", "spatial", "channel", "layer", "both")


@dataclass(frozen=True)
class BlockPlan:
    """A block with everything that decides which operators run: hashable, so that equal blocks are priced once.

    Attributes:
        block: Shapes; its name is left out of comparisons by the caller.
        mode: One of :data:`MODES`.
        granularity: Side of a spatial patch on the output map.
        channel_granularity: Channels per dynamic group.
        rates: Activation rates.
        masker: How the masks are made.
    """

    block: BlockSpec
    mode: str
    granularity: int
    channel_granularity: int
    rates: Rates
    masker: MaskerSpec

    @property
    def mask_size(self) -> tuple[int, int]:
        """(rows, columns) of the spatial mask."""
        height, width = self.block.out_size
        return max(1, height // self.granularity), max(1, width // self.granularity)


def block_operators(plan: BlockPlan, fixes: frozenset[Fix]) -> list[Operator]:
    """Return the operators of one block in execution order."""
    block, mode = plan.block, plan.mode
    if mode == "static":
        return [*_static_convolutions(block), *_projection(block, fixes)]
    if mode == "layer":
        return _layer(plan, fixes)
    if Fix.UNIFIED_CONV not in fixes and mode == "spatial":
        return _reference_spatial(plan, fixes)
    if Fix.UNIFIED_CONV not in fixes and mode == "channel":
        return _reference_channel(plan, fixes)
    return _masked(plan, fixes)


def network_ends(network: NetworkSpec) -> tuple[list[Operator], list[Operator]]:
    """Return the operators before the first and after the last block."""
    before, after = [], []
    stem = network.stem
    if stem is not None:
        height, width = (-(-side // stem.stride) for side in network.input_size)
        before.append(
            Operator(
                "conv",
                "stem",
                {
                    "c_in": stem.c_in,
                    "c_out": stem.c_out,
                    "height": height,
                    "width": width,
                    "kernel": stem.kernel,
                    "stride": stem.stride,
                },
            )
        )
        if stem.pool_stride:
            shape = {"channels": stem.c_out, "height": height, "width": width}
            out = {
                "out_height": -(-height // stem.pool_stride),
                "out_width": -(-width // stem.pool_stride),
            }
            before.append(Operator("pool", "maxpool", {**shape, **out}))
    if network.classes:
        last = network.blocks[-1]
        height, width = last.out_size
        after.append(Operator("pool", "avgpool", {"channels": last.c_out, "height": height, "width": width}))
        after.append(Operator("linear", "classifier", {"c_in": last.c_out, "c_out": network.classes}))
    return before, after


def _conv_shapes(block: BlockSpec) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    out_height, out_width = block.out_size
    conv1 = {"c_in": block.c_in, "c_out": block.width, "height": block.height, "width": block.map_width}
    conv2 = {
        "c_in": block.width,
        "c_out": block.width,
        "height": out_height,
        "width": out_width,
        "kernel": block.kernel,
        "stride": block.stride,
        "groups": block.groups,
    }
    if block.dilation > 1:
        conv2["dilation"] = block.dilation
    conv3 = {"c_in": block.width, "c_out": block.c_out, "height": out_height, "width": out_width}
    return conv1, conv2, conv3


def _out_map(block: BlockSpec, channels: int) -> dict[str, Any]:
    height, width = block.out_size
    return {"channels": channels, "height": height, "width": width}


def _squeeze(block: BlockSpec, active: float = 1.0) -> list[Operator]:
    if not block.squeezed:
        return []
    shape = {**_out_map(block, block.width), "squeezed": block.squeezed}
    return [Operator("squeeze_excite", "se", shape, active=active)]


def _projection(block: BlockSpec, fixes: frozenset[Fix]) -> list[Operator]:
    if not block.projection or (Fix.ALL_PROJECTIONS not in fixes and block.stride == 1):
        return []
    height, width = block.out_size
    shape = {
        "c_in": block.c_in,
        "c_out": block.c_out,
        "height": height,
        "width": width,
        "stride": block.stride,
    }
    return [Operator("conv", "downsample", shape)]


def _static_convolutions(block: BlockSpec, active: float = 1.0) -> list[Operator]:
    conv1, conv2, conv3 = _conv_shapes(block)
    return [
        Operator("conv", "conv1", conv1, active=active),
        Operator("conv", "conv2", conv2, active=active),
        *_squeeze(block, active),
        Operator("conv", "conv3", conv3, active=active),
        Operator("add", "add", _out_map(block, block.c_out), active=active),
    ]


def _spatial_masker(plan: BlockPlan, mask_size: tuple[int, int], fixes: frozenset[Fix]) -> list[Operator]:
    block = plan.block
    height, width = block.height, block.map_width
    outputs = 2 * plan.masker.spatial_groups
    operators = []
    if Fix.POOLED_MASKER in fixes and mask_size != (height, width):
        pooled = {"out_height": mask_size[0], "out_width": mask_size[1]}
        shape = {"channels": block.c_in, "height": height, "width": width}
        operators.append(Operator("pool", "masker.pool", {**shape, **pooled}))
        height, width = mask_size
    shape = {"c_in": block.c_in, "c_out": outputs, "height": height, "width": width}
    operators.append(Operator("conv", "masker.conv", shape))
    if Fix.MASK_INDICES in fixes:
        index = {"positions": mask_size[0] * mask_size[1] * plan.masker.spatial_groups}
        operators.append(Operator("mask_index", "masker.index", index))
    return operators


def _channel_masker(plan: BlockPlan, fixes: frozenset[Fix]) -> list[Operator]:
    block, masker = plan.block, plan.masker
    pool = {"channels": block.c_in, "height": block.height, "width": block.map_width}
    if Fix.CHANNEL_GRANULARITY in fixes:
        groups = max(1, block.width // plan.channel_granularity)
        hidden = max(groups // masker.reduction, 16)
        outputs = 2 * groups
    else:
        groups = block.c_in // plan.channel_granularity
        if groups <= 1:
            return []
        hidden = groups // min(masker.reduction, groups)
        outputs = groups
    operators = []
    if masker.channel == "conv_linear":
        hidden = max(1, block.c_in // masker.reduction)
        shape = {"c_in": block.c_in, "c_out": hidden, "height": block.height, "width": block.map_width}
        operators.append(Operator("conv", "masker.conv", shape))
        operators.append(Operator("pool", "masker.pool", {**pool, "channels": hidden}))
        operators.append(Operator("linear", "masker.fc", {"c_in": hidden, "c_out": outputs}))
    else:
        operators.append(Operator("pool", "masker.pool", pool))
        if masker.layers == 2:
            operators.append(Operator("linear", "masker.fc1", {"c_in": block.c_in, "c_out": hidden}))
            operators.append(Operator("linear", "masker.fc2", {"c_in": hidden, "c_out": outputs}))
        else:
            operators.append(Operator("linear", "masker.fc", {"c_in": block.c_in, "c_out": outputs}))
    if Fix.MASK_INDICES in fixes:
        operators.append(Operator("mask_index", "masker.index", {"positions": groups}))
    return operators


def _layer(plan: BlockPlan, fixes: frozenset[Fix]) -> list[Operator]:
    block = plan.block
    if Fix.POOLED_MASKER in fixes:
        masker = _spatial_masker(plan, (1, 1), fixes)
    else:
        # The reference takes the masker for a part of conv1 that reads the input and writes nothing.
        shape, _, _ = _conv_shapes(block)
        fused = {**shape, "c_out": block.width + 1, "out_channel_density": 0.0}
        masker = [Operator("conv", "masker", fused)]
    rate = plan.rates.spatial
    return [*masker, *_projection(block, fixes), *_static_convolutions(block, active=rate)]


def _reference_spatial(plan: BlockPlan, fixes: frozenset[Fix]) -> list[Operator]:
    block, rates, side = plan.block, plan.rates, plan.granularity
    conv1_rate, conv2_rate = rates.get("conv1"), rates.get("conv2")
    d1 = rates.spatial if conv1_rate is None else conv1_rate
    d2 = rates.spatial if conv2_rate is None else conv2_rate
    d3 = rates.spatial
    conv1, conv2, conv3 = _conv_shapes(block)
    conv2.pop("dilation", None)
    operators = [
        Operator("masker_conv1", "masker+conv1", {**conv1, "side": side, "density": d1}),
        Operator("patch_conv", "conv2", {**conv2, "side": side, "density": d2}),
    ]
    if block.squeezed:
        shape = {**_out_map(block, block.width), "squeezed": block.squeezed, "side": side, "density": d1}
        operators.append(Operator("patch_squeeze_excite", "se", shape))
    operators += [
        Operator("patch_conv", "conv3", {**conv3, "side": side, "density": d3, "gathered": True}),
        Operator("patch_add", "add", {**_out_map(block, block.c_out), "side": side, "density": d3}),
    ]
    return [*operators, *_projection(block, fixes)]


def _reference_channel(plan: BlockPlan, fixes: frozenset[Fix]) -> list[Operator]:
    block, rate = plan.block, plan.rates.channel
    conv1, conv2, conv3 = _conv_shapes(block)
    whole = {"side": 1, "density": 1.0}
    operators = [
        Operator("conv", "conv1", {**conv1, "out_channel_density": rate}),
        *_channel_masker(plan, fixes),
        Operator("conv", "conv2", {**conv2, "in_channel_density": rate, "out_channel_density": rate}),
    ]
    if block.squeezed:
        shape = {**_out_map(block, block.width), "squeezed": block.squeezed, **whole}
        operators.append(Operator("patch_squeeze_excite", "se", shape))
    operators += [
        Operator("conv", "conv3", {**conv3, "in_channel_density": rate}),
        Operator("patch_add", "add", {**_out_map(block, block.c_out), **whole}),
    ]
    return [*operators, *_projection(block, fixes)]


def _masked(plan: BlockPlan, fixes: frozenset[Fix]) -> list[Operator]:
    """Operators of the repaired model for the modes spatial, channel and both."""
    block, rates = plan.block, plan.rates
    conv1, conv2, conv3 = _conv_shapes(block)
    mask_size = plan.mask_size
    out_size, in_size = block.out_size, (block.height, block.map_width)
    operators: list[Operator] = []
    add = _out_map(block, block.c_out)
    squeeze_active = 1.0

    if plan.mode in ("spatial", "both"):
        operators += _spatial_masker(plan, mask_size, fixes)
        d3 = rates.spatial
        conv1_rate, conv2_rate = rates.get("conv1"), rates.get("conv2")
        squeezed_dense = bool(block.squeezed) and Fix.DENSE_SQUEEZE in fixes and conv2_rate is None
        masked: dict[str, Any] = {"patches": mask_size}
        inner, inner_mask = masked, mask_size
        d2 = d3 if conv2_rate is None else conv2_rate
        if squeezed_dense:
            # The squeeze-excite pools the whole map of every image that has an active patch.
            d2 = union(d3, mask_size[0] * mask_size[1])
            inner, inner_mask = {"patches": (1, 1)}, (1, 1)
            squeeze_active = d2
        if conv1_rate is not None:
            d1 = conv1_rate
        elif Fix.DILATED_CONV1 in fixes:
            d1 = dilated_density(
                d2,
                in_size=in_size,
                out_size=out_size,
                mask_size=inner_mask,
                stride=block.stride,
                kernel=block.kernel,
                dilation=block.dilation,
            )
        else:
            d1 = d2
        conv1 |= {**inner, "density": d1, "in_density": d1}
        conv2 |= {**inner, "density": d2, "in_density": d1}
        conv3 |= {**masked, "density": d3, "in_density": d3}
        add |= {**masked, "density": d3}

    constants: list[Operator] = []
    if plan.mode in ("channel", "both"):
        operators += _channel_masker(plan, fixes)
        rate = rates.channel
        grouped = {"channel_granularity": plan.channel_granularity}
        conv1 |= {**grouped, "out_channel_density": rate}
        conv2 |= {**grouped, "in_channel_density": rate, "out_channel_density": rate}
        conv3 |= {**grouped, "in_channel_density": rate}
        if block.mask_before_norm and Fix.CHANNEL_CONSTANTS in fixes:
            border_classes = 9 if block.stride == 1 else 4
            shape = {**_out_map(block, block.width), "border_classes": border_classes}
            constants = [Operator("channel_constants", "constants", shape)]

    return [
        *operators,
        Operator("conv", "conv1", conv1),
        Operator("conv", "conv2", conv2),
        *constants,
        *_squeeze(block, active=squeeze_active),
        Operator("conv", "conv3", conv3),
        Operator("add", "add", add),
        *_projection(block, fixes),
    ]
