"""What a dynamic network returns: plain tuples, so that ``torch.export`` can flatten them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from dyndeploy.blocks.outputs import LOGITS


class NetworkFacts(NamedTuple):
    """What a network says of itself for a bundle; see :class:`dyndeploy.bundle.NetworkInfo`.

    Attributes:
        mode: What it skips; None leaves it to the kinds of its gates.
        granularity: Patch side of every stage.
        channel_granularity: Channels per group of every stage.
        options: Every option that it was built with, as plain JSON types.
        notes: What has to be said of them: phrases without a full stop.
        parts: Of a network that consists of parts (:mod:`dyndeploy.tasks.parts`), the part of each of its modules by
            name; what it computes in none of them is post-processing.
    """

    mode: str | None = None
    granularity: tuple[int, ...] = ()
    channel_granularity: tuple[int, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    parts: Mapping[str, str] = MappingProxyType({})


class BlockMasks(NamedTuple):
    """The decisions of one block, one row per sample of the batch.

    Attributes:
        name: Dotted module name, e.g. ``"layer1.0"``.
        spatial: 0/1 mask of shape (N, g, mh, mw), or None where the block has no spatial masker.
            mh x mw counts patches, not pixels; layer skipping is the case 1 x 1.
        channel: 0/1 mask of shape (N, G), or None where the block has no channel masker.
    """

    name: str
    spatial: Tensor | None
    channel: Tensor | None


class Densities(NamedTuple):
    """Fractions computed, averaged over the batch; 1 means everything.

    Each attribute is a list with one tensor of shape (blocks,) per stage.

    Attributes:
        conv3: Mean of the spatial mask itself (over patches).
        conv2: Mean of the mask on the output pixels, united over spatial groups.
        conv1: Mean of the dilated mask on the input pixels, i.e. what the 3x3 convolution reads.
        channel: Mean of the channel mask.
    """

    conv3: list[Tensor]
    conv2: list[Tensor]
    conv1: list[Tensor]
    channel: list[Tensor]


class Features(NamedTuple):
    """What the stages of a LAUD network give, and what their blocks decided and computed.

    Attributes:
        maps: The map that each stage ends with, (N, C, H, W).
        masks: One :class:`BlockMasks` per residual block, in order of execution; none while a graph is captured.
        densities: Batch averages per convolution and block.
        macs: Computed MACs per image of each block, (blocks,).
        flops_ratio: Computed divided by dense MACs of each block, (blocks,).
        fixed_macs: MACs per image of what is always computed and of no block: the stem.
        dense_macs: MACs per image of everything, maskers included, as the reference code's detectors count them.
    """

    maps: tuple[Tensor, ...]
    masks: tuple[BlockMasks, ...]
    densities: Densities
    macs: Tensor
    flops_ratio: Tensor
    fixed_macs: int
    dense_macs: int

    @property
    def flops(self) -> Tensor:
        """MACs per image, 0-d."""
        return self.macs.sum() + self.fixed_macs


class DynamicOutput(NamedTuple):
    """Result of one forward pass.

    Attributes:
        logits: Class scores, shape (N, num_classes).
        masks: One :class:`BlockMasks` per residual block, in order of execution.
        densities: Batch averages per convolution and block.
        flops: Multiply-accumulates per image, a 0-d tensor (batch average; float32, or float64 for a
            float64 network). Convention of the LAUDNet reference code: convolutions, maskers, the max pool
            and the classifier; no batch norm, activation or addition.
        flops_ratio: Shape (blocks,), computed divided by dense MACs of each block, maskers included in both.
    """

    logits: Tensor
    masks: tuple[BlockMasks, ...]
    densities: Densities
    flops: Tensor
    flops_ratio: Tensor

    def outputs(self) -> dict[str, Tensor]:
        """Return what a deployed network gives: the logits."""
        return {LOGITS: self.logits}


class AdaVitOutput(NamedTuple):
    """Result of one forward pass of an adaptive vision transformer, one row per image of the batch.

    Attributes:
        logits: Class scores (N, classes).
        token: 0/1 decisions (N, blocks with a token policy, tokens), the class token first, which always stays; None
            without such a policy.
        head: The same of heads, (N, blocks with a head policy, heads).
        layer: The same of attention and MLP, (N, blocks with a sublayer policy, 2).
    """

    logits: Tensor
    token: Tensor | None = None
    head: Tensor | None = None
    layer: Tensor | None = None

    def outputs(self) -> dict[str, Tensor]:
        """Return what a deployed network gives: the logits."""
        return {LOGITS: self.logits}


class ExitOutput(NamedTuple):
    """Result of one forward pass of a network with early exits.

    Attributes:
        logits: Class scores (N, num_classes) of the last exit.
        exits: Class scores of every exit, in the official order, which is that of their cost.
    """

    logits: Tensor
    exits: tuple[Tensor, ...]

    @classmethod
    def of(cls, exits: Sequence[Tensor]) -> ExitOutput:
        """Return the result of a network with these logits, the last exit's last."""
        return cls(exits[-1], tuple(exits))

    def outputs(self) -> dict[str, Tensor]:
        """Return what a deployed network gives: the logits of every exit."""
        return {f"exit{number}": logits for number, logits in enumerate(self.exits, start=1)}
