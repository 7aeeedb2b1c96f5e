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
from dyndeploy.prediction.architectures import REGNETS_Y

_LARGEST = 1 << 16
_LARGEST_KERNEL = 1 << 8
_CHANNEL_MASKERS = ("mlp", "conv_linear")


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
    """How the maskers of a stage's blocks are built.

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
        maskers: Maskers of the dynamic blocks of each stage; a single entry stands for all stages.
    """

    name: str
    input_size: tuple[int, int]
    stem: StemSpec | None
    stages: tuple[int, ...]
    blocks: tuple[BlockSpec, ...]
    classes: int = 1000
    maskers: tuple[MaskerSpec, ...] = (MaskerSpec(),)

    def __post_init__(self) -> None:
        """Check that the parts fit together; raises ``UsageError``."""
        self._check_values()
        if sum(self.stages) != len(self.blocks) or not self.blocks or min(self.stages) < 1:
            raise UsageError(
                f"Network '{self.name}': stages {self.stages} do not add up to its {len(self.blocks)} blocks."
            )
        if len(self.maskers) == 1:
            object.__setattr__(self, "maskers", self.maskers * len(self.stages))
        if len(self.maskers) != len(self.stages):
            raise UsageError(
                f"Network '{self.name}': {len(self.maskers)} maskers for {len(self.stages)} stages; give one per stage."
            )
        for block in self.blocks:
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

    def _check_values(self) -> None:
        """Check every value on its own: descriptions are read from files that anybody may have edited."""
        where = f"Network {self.name!r:.80}"
        if not isinstance(self.name, str):
            raise UsageError(f"{where}: the name of a network is text.")
        for what, value, least in (
            ("input height", self.input_size[0], 1),
            ("input width", self.input_size[1], 1),
            ("classes", self.classes, 0),
        ):
            _check_size(where, what, value, least)
        for count in self.stages:
            _check_size(where, "the number of blocks of a stage", count, 1)
        if self.stem is not None:
            for key in ("c_in", "c_out", "stride"):
                _check_size(f"{where}, stem", key, getattr(self.stem, key), 1)
            _check_size(f"{where}, stem", "kernel", self.stem.kernel, 1, _LARGEST_KERNEL)
            _check_size(f"{where}, stem", "pool_stride", self.stem.pool_stride, 0)
        for block in self.blocks:
            part = f"{where}, block {block.name!r:.80}"
            if not isinstance(block.name, str):
                raise UsageError(f"{part}: the name of a block is text.")
            for key in ("c_in", "width", "c_out", "height", "map_width", "stride", "groups"):
                _check_size(part, key, getattr(block, key), 1)
            for key in ("kernel", "dilation"):
                _check_size(part, key, getattr(block, key), 1, _LARGEST_KERNEL)
            _check_size(part, "squeezed", block.squeezed, 0)
            for key in ("projection", "mask_before_norm"):
                if not isinstance(getattr(block, key), bool):
                    raise UsageError(f"{part}: {key} is true or false, not {getattr(block, key)!r:.80}.")
        for masker in self.maskers:
            if masker.channel not in _CHANNEL_MASKERS:
                raise UsageError(f"{where}: a channel masker is one of {', '.join(_CHANNEL_MASKERS)}.")
            _check_size(where, "layers of a masker", masker.layers, 1, 2)
            for key in ("reduction", "spatial_groups"):
                _check_size(where, f"{key} of a masker", getattr(masker, key), 1)

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
                    "input_size": (values["input_size"][0], values["input_size"][1]),
                    "stem": None if stem is None else StemSpec(**_known(StemSpec, stem)),
                    "stages": tuple(values["stages"]),
                    "blocks": tuple(BlockSpec(**_known(BlockSpec, block)) for block in values["blocks"]),
                    "maskers": tuple(MaskerSpec(**_known(MaskerSpec, item)) for item in values["maskers"]),
                }
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UsageError(f"The network description is not valid: {error!r}.") from error


def _check_size(where: str, what: str, value: object, least: int, most: int = _LARGEST) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{where}: {what} must be a whole number from {least} to {most}, not {value!r:.40}.")


def _known(cls: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"The network description is not valid: {cls.__name__} is no object.")
    surplus = sorted(set(value) - {f.name for f in fields(cls)})
    if surplus:
        raise UsageError(f"The network description has unknown fields in {cls.__name__}: {', '.join(surplus)}.")
    return dict(value)


@dataclass(frozen=True)
class _Family:
    stages: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int = 0  # 0: a ResNet
    stem: StemSpec = StemSpec(3, 64, 7, 2, pool_stride=2)
    input_size: tuple[int, int] = (224, 224)
    classes: int = 1000


_RESNET_WIDTHS = (256, 512, 1024, 2048)
_REGNET_STEM = StemSpec(3, 32, 3, 2)
_REGNETS = ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf")
_FAMILIES: dict[str, _Family] = {
    # The small networks, as dyndeploy.nets.laud_resnet registers them; a test holds both together.
    "resnet14_small": _Family(
        (1, 1, 1, 1), (96, 160, 256, 512), stem=StemSpec(3, 96, 3, 1), input_size=(32, 32), classes=10
    ),
    "resnet26_small": _Family(
        (2, 2, 2, 2), (96, 192, 384, 768), stem=StemSpec(3, 96, 3, 2), input_size=(64, 64), classes=10
    ),
    "resnet50": _Family((3, 4, 6, 3), _RESNET_WIDTHS),
    "resnet101": _Family((3, 4, 23, 3), _RESNET_WIDTHS),
    **{f"regnety_{size}": _Family(*REGNETS_Y[size], _REGNET_STEM) for size in _REGNETS},
}
_TIMM_NAMES = {"regnety004": "regnety_400mf", "regnety008": "regnety_800mf"}


@functools.lru_cache(maxsize=1)
def published_blocks() -> frozenset[tuple[int, int, int]]:
    """(inputs, width, outputs) of the blocks of all published networks."""
    return frozenset(
        (block.c_in, block.width, block.c_out) for name in network_names() for block in network_spec(name).blocks
    )


def is_network_name(name: str) -> bool:
    """Whether :func:`network_spec` knows the name."""
    return _family_name(name) is not None


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
def network_spec(name: str, input_size: tuple[int, int] | None = None, classes: int | None = None) -> NetworkSpec:
    """Describe a registered or published network.

    Args:
        name: ``laud_resnet50``, ``laud_resnet101``, ``laud_regnety_400mf``, ...; also the static names
            (``resnet50``, ``regnet_y_400mf``, ``regnety004``) and those of the reference code (``uni_resnet50``,
            ``lad_regnet_y_400mf``).
        input_size: (height, width) of the image; ``None`` takes the network's own.
        classes: Outputs of the classifier; ``None`` takes the network's own.

    Raises:
        UsageError: Unknown name, or a size that is not positive.
    """
    key = _family_name(name)
    if key is None:
        raise unknown_name("network", name, [*network_names(), *_FAMILIES, *_TIMM_NAMES])
    family = _FAMILIES[key]
    input_size = family.input_size if input_size is None else input_size
    if min(input_size) < 1:
        raise UsageError(f"The input size must be positive, not {input_size[0]}x{input_size[1]}.")
    is_resnet, stem = not family.group_width, family.stem
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
                projection=stride != 1 or channels != c_out,
                mask_before_norm=is_resnet,
            )
            blocks.append(block)
            channels = c_out
            height, map_width = block.out_size
    outputs = family.classes if classes is None else classes
    return NetworkSpec(name, input_size, stem, family.stages, tuple(blocks), outputs)
