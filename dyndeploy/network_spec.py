"""Networks as the predictor sees them: a stem, residual blocks, a classifier, and nothing but shapes.

:func:`network_spec` builds the published networks. Any other residual network can be described by hand (or by
whoever exports it) as a :class:`NetworkSpec`; it travels as JSON in a bundle's manifest.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dyndeploy.errors import UsageError, unknown_name


@dataclass(frozen=True)
class StemSpec:
    """The convolution (and max pool) before the first block.

    Attributes:
        c_in: Channels of the image.
        c_out: Channels of the stem convolution.
        kernel: Side of its kernel.
        stride: Its stride; padding keeps ``ceil(size / stride)`` outputs.
        pool_stride: Stride of the max pool behind it; 0 when there is none.
    """

    c_in: int
    c_out: int
    kernel: int
    stride: int
    pool_stride: int = 0


@dataclass(frozen=True)
class BlockSpec:
    """One bottleneck block: 1x1, 3x3, 1x1 convolutions and a residual addition.

    Attributes:
        name: E.g. ``"layer1.0"``.
        c_in: Channels of the block's input.
        width: Channels between the three convolutions.
        c_out: Channels of the block's output.
        height: Rows of the block's input.
        map_width: Columns of the block's input.
        stride: Stride of the 3x3 and of the projection.
        groups: Groups of the 3x3.
        kernel: Kernel side of the middle convolution.
        dilation: Dilation of the middle convolution.
        squeezed: Hidden channels of a squeeze-excite behind the 3x3; 0 when there is none.
        projection: The shortcut has a 1x1 convolution of the same stride.
        mask_before_norm: Channel masks act before the batch norm (LAUD-ResNet), so that skipped channels are
            constants and not zero.
    """

    name: str
    c_in: int
    width: int
    c_out: int
    height: int
    map_width: int
    stride: int = 1
    groups: int = 1
    kernel: int = 3
    dilation: int = 1
    squeezed: int = 0
    projection: bool = False
    mask_before_norm: bool = False

    @property
    def out_size(self) -> tuple[int, int]:
        """(rows, columns) of the block's output."""
        return -(-self.height // self.stride), -(-self.map_width // self.stride)


@dataclass(frozen=True)
class MaskerSpec:
    """How the block's maskers are built.

    Attributes:
        channel: ``"mlp"`` or ``"conv_linear"``.
        layers: Linear layers of the MLP, 1 or 2.
        reduction: Divisor of the hidden width.
        spatial_groups: Channel groups that have a spatial mask of their own.
    """

    channel: str = "mlp"
    layers: int = 2
    reduction: int = 16
    spatial_groups: int = 1


@dataclass(frozen=True)
class NetworkSpec:
    """A residual network with its input size; all shapes are per image.

    Attributes:
        name: Name in the results.
        input_size: (height, width) of the image.
        stem: The stem, or ``None`` for a network that starts with a block.
        stages: Blocks per stage; their sum is ``len(blocks)``.
        blocks: The blocks in order.
        classes: Outputs of the linear classifier behind the global average pool; 0 when there is none.
        masker: Maskers of all dynamic blocks.
    """

    name: str
    input_size: tuple[int, int]
    stem: StemSpec | None
    stages: tuple[int, ...]
    blocks: tuple[BlockSpec, ...]
    classes: int = 1000
    masker: MaskerSpec = MaskerSpec()

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if sum(self.stages) != len(self.blocks) or not self.blocks or min(self.stages) < 1:
            raise UsageError(
                f"Network '{self.name}': stages {self.stages} do not add up to its {len(self.blocks)} blocks."
            )
        positive = ("c_in", "width", "c_out", "height", "map_width", "stride", "groups", "kernel", "dilation")
        for block in self.blocks:
            bad = [key for key in positive if getattr(block, key) < 1]
            if bad or block.squeezed < 0:
                raise UsageError(
                    f"Network '{self.name}', block '{block.name}': {', '.join(bad) or 'squeezed'} is not positive."
                )
            if block.width % block.groups:
                raise UsageError(
                    f"Network '{self.name}', block '{block.name}': width {block.width} is not divisible by its "
                    f"{block.groups} groups."
                )
        for before, after in zip(self.blocks, self.blocks[1:], strict=False):
            if before.c_out != after.c_in or before.out_size != (after.height, after.map_width):
                raise UsageError(
                    f"Network '{self.name}': block '{before.name}' gives {before.c_out} channels of "
                    f"{before.out_size}, block '{after.name}' takes {after.c_in} of "
                    f"{(after.height, after.map_width)}."
                )

    @property
    def stage_of_block(self) -> tuple[int, ...]:
        """Stage index (from 0) of each block."""
        return tuple(stage for stage, count in enumerate(self.stages) for _ in range(count))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; :meth:`from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NetworkSpec:
        """Read what :meth:`to_json` wrote.

        Raises:
            UsageError: A field is missing, unknown or of the wrong type.
        """
        try:
            values = _known(cls, value)
            stem = values["stem"]
            return cls(
                **{
                    **values,
                    "input_size": (int(values["input_size"][0]), int(values["input_size"][1])),
                    "stem": None if stem is None else StemSpec(**_known(StemSpec, stem)),
                    "stages": tuple(int(count) for count in values["stages"]),
                    "blocks": tuple(BlockSpec(**_known(BlockSpec, block)) for block in values["blocks"]),
                    "masker": MaskerSpec(**_known(MaskerSpec, values.get("masker", {}))),
                }
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"The network description is not valid: {error!r}.") from error


def _known(cls: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    surplus = sorted(set(value) - {f.name for f in fields(cls)})
    if surplus:
        raise UsageError(f"The network description has unknown fields in {cls.__name__}: {', '.join(surplus)}.")
    return dict(value)


@dataclass(frozen=True)
class _Family:
    stages: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int = 0  # 0: a ResNet


_RESNET_WIDTHS = (256, 512, 1024, 2048)
_FAMILIES: dict[str, _Family] = {
    "resnet50": _Family((3, 4, 6, 3), _RESNET_WIDTHS),
    "resnet101": _Family((3, 4, 23, 3), _RESNET_WIDTHS),
    "regnety_400mf": _Family((1, 3, 6, 6), (48, 104, 208, 440), 8),
    "regnety_800mf": _Family((1, 3, 8, 2), (64, 144, 320, 784), 16),
    "regnety_1_6gf": _Family((2, 6, 17, 2), (48, 120, 336, 888), 24),
    "regnety_3_2gf": _Family((2, 5, 13, 1), (72, 216, 576, 1512), 24),
    "regnety_8gf": _Family((2, 4, 10, 1), (224, 448, 896, 2016), 56),
    "regnety_16gf": _Family((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
}
_TIMM_NAMES = {"regnety004": "regnety_400mf", "regnety008": "regnety_800mf"}


def _family_name(name: str) -> str | None:
    plain = name.lower()
    for prefix in ("laud_", "lad_", "uni_"):
        plain = plain.removeprefix(prefix)
    plain = plain.replace("regnet_y_", "regnety_")
    plain = _TIMM_NAMES.get(plain, plain)
    return plain if plain in _FAMILIES else None


def network_names() -> list[str]:
    """Return the names that :func:`network_spec` documents; static and reference-code names work as well."""
    return [f"laud_{name}" for name in _FAMILIES]


@functools.lru_cache(maxsize=64)
def network_spec(name: str, input_size: tuple[int, int] = (224, 224), classes: int = 1000) -> NetworkSpec:
    """Describe a published network.

    Args:
        name: ``laud_resnet50``, ``laud_resnet101``, ``laud_regnety_400mf``, ...; also the static names
            (``resnet50``, ``regnet_y_400mf``, ``regnety004``) and those of the reference code (``uni_resnet50``,
            ``lad_regnet_y_400mf``).
        input_size: (height, width) of the image.
        classes: Outputs of the classifier.

    Raises:
        UsageError: Unknown name, or a size that is not positive.
    """
    key = _family_name(name)
    if key is None:
        raise unknown_name("network", name, [*network_names(), *_FAMILIES, *_TIMM_NAMES])
    if min(input_size) < 1:
        raise UsageError(f"The input size must be positive, not {input_size[0]}x{input_size[1]}.")
    family = _FAMILIES[key]
    is_resnet = not family.group_width
    stem = StemSpec(3, 64, 7, 2, pool_stride=2) if is_resnet else StemSpec(3, 32, 3, 2)
    shrink = stem.stride * max(1, stem.pool_stride)
    height, map_width = (-(-side // shrink) for side in input_size)
    channels = stem.c_out
    blocks = []
    for stage, (count, c_out) in enumerate(zip(family.stages, family.widths, strict=True)):
        for index in range(count):
            stride = 2 if index == 0 and not (is_resnet and stage == 0) else 1
            width = c_out // 4 if is_resnet else c_out
            block = BlockSpec(
                name=f"layer{stage + 1}.{index}",
                c_in=channels,
                width=width,
                c_out=c_out,
                height=height,
                map_width=map_width,
                stride=stride,
                groups=1 if is_resnet else width // family.group_width,
                squeezed=0 if is_resnet else round(0.25 * channels),
                projection=index == 0,
                mask_before_norm=is_resnet,
            )
            blocks.append(block)
            channels = c_out
            height, map_width = block.out_size
    return NetworkSpec(name, input_size, stem, family.stages, tuple(blocks), classes)
