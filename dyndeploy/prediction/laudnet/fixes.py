"""The two readings of the LAUDNet predictor: as its code computes, and with its known faults repaired.

There is one cost model. Each repair is a :class:`Fix` that the model consults at the one place where it matters;
``compat="laudnet"`` is the model with no fix applied, the default is the model with all of them. A prediction
lists the fixes that were in force.
"""

from __future__ import annotations

from enum import Enum

from dyndeploy.errors import unknown_name


class Fix(Enum):
    """A repaired fault of the reference predictor. ``value`` is its name, ``summary`` says what changes."""

    summary: str

    def __new__(cls, name: str, summary: str) -> Fix:
        """Store ``summary`` beside the name, so that documentation and code cannot drift apart."""
        member = object.__new__(cls)
        member._value_ = name
        member.summary = summary
        return member

    CHANNEL_COMPUTE = (
        "channel_compute",
        "A channel-mode convolution computes (active inputs) x (active outputs); the reference charges "
        "inputs squared x outputs, so conv2 and conv3 of every block are too cheap.",
    )
    LINEAR_TILES = (
        "linear_tiles",
        "A linear layer has ceil(out/o) x ceil(in/i) tiles and reads its weights once per batch; the reference "
        "counts o x i tiles (compute independent of the size) and reads the weights once per image.",
    )
    CHANNEL_GRANULARITY = (
        "channel_granularity",
        "Channels are skipped in groups, so the busiest tile is computed with whole groups, and the masker has "
        "width/granularity outputs; in the reference the convolutions ignore the granularity and the masker is "
        "sized by the block's input.",
    )
    WEIGHT_SLICES = (
        "weight_slices",
        "With per-image channel masks a batch needs the union of its images' weight slices, 1 - (1 - rate)^batch "
        "of the weights; the reference takes the mean rate at batch 1 and everything otherwise.",
    )
    CHANNEL_CONSTANTS = (
        "channel_constants",
        "LAUD-ResNet masks before the batch norm, so a skipped channel is a constant that the next convolution "
        "sees: its static bias map is read and one subtraction per element is done. Free in the reference.",
    )
    CONV_EXTENTS = (
        "conv_extents",
        "A tile of t outputs reads (t - 1) x stride + kernel input rows, and a strided 1x1 convolution skips "
        "input rows; the reference reads (t + kernel - 1) x stride and every row.",
    )
    ALL_PROJECTIONS = (
        "all_projections",
        "Every projection shortcut is priced; the reference omits the one of ResNet's first stage.",
    )
    STEM_AND_HEAD = (
        "stem_and_head",
        "Stem, pooling and classifier are part of the network; the reference sums the residual blocks only.",
    )
    DILATED_CONV1 = (
        "dilated_conv1",
        "conv1 is computed wherever conv2 reads: its density is the expected 3x3 dilation of random patches at "
        "the given rate and granularity (or the measured one). The reference is fed the undilated rate.",
    )
    UNIFIED_CONV = (
        "unified_conv",
        "Static and masked convolutions are one formula that agrees at density 1, with tiles searched at the "
        "actual density and expectations over random masks instead of one rounded mean image; the reference "
        "prices the two by different rules, 0.7x to 6.5x apart at density 1.",
    )
    POOLED_MASKER = (
        "pooled_masker",
        "The spatial masker pools its input to the mask's size and then convolves, as the network does; the "
        "reference convolves at full resolution, or fuses the masker into conv1 for free.",
    )
    MASK_INDICES = (
        "mask_indices",
        "Turning logits into index lists costs a launch and its bytes in every dynamic block. Free in the reference.",
    )
    LAYER_BATCH = (
        "layer_batch",
        "A skipped layer runs on the batch's active images: nothing if there are none, else a smaller batch with "
        "full launches. The reference scales the full batch's latency by the rate.",
    )
    DENSE_SQUEEZE = (
        "dense_squeeze",
        "Squeeze-excite pools the dense map, as the trained RegNet does; with more than one patch, conv1 and "
        "conv2 are therefore computed everywhere. The reference pools active patches only.",
    )


#: Names accepted for ``compat``, with the fixes that each reading applies.
READINGS: dict[str | None, frozenset[Fix]] = {None: frozenset(Fix), "laudnet": frozenset()}


def fixes_for(compat: str | None) -> frozenset[Fix]:
    """Return the fixes in force for ``compat`` (``None``: all of them; ``"laudnet"``: none).

    Raises:
        UsageError: ``compat`` is neither.
    """
    if compat not in READINGS:
        raise unknown_name("compat", str(compat), [name for name in READINGS if name])
    return READINGS[compat]
