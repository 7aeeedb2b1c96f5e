"""Random instances of every dynamic operator, for the tests of all its faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from dyndeploy.ops import OPERATORS, OperatorSpec


@dataclass(frozen=True, repr=False)
class Case:
    """One operator with concrete inputs (in ONNX order) and attributes."""

    spec: OperatorSpec
    inputs: tuple[torch.Tensor, ...]
    attributes: dict[str, Any]

    def __repr__(self) -> str:
        return f"Case({self.spec.name}, shapes={self.shapes}, {self.attributes})"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(tensor.shape) for tensor in self.inputs]

    def reference(self) -> torch.Tensor:
        return self.spec.reference(*self.inputs, **self.attributes)

    def masks(self) -> dict[str, Any]:
        return {name: self.inputs[self.spec.input_index(name)].numpy() for name in self.spec.mask_inputs()}


def _bits(generator: torch.Generator, shape: tuple[int, ...], rate: float) -> torch.Tensor:
    return (torch.rand(*shape, generator=generator) < rate).float()


def build(
    name: str,
    *,
    seed: int = 0,
    batch: int = 1,
    size: tuple[int, int] = (8, 8),
    channels: int = 8,
    hidden: int = 6,
    out_channels: int = 12,
    stride: int = 1,
    dilation: int = 1,
    group: int = 1,
    mask_size: tuple[int, int] = (2, 2),
    channel_groups: int = 3,
    rate: float = 0.5,
    pool_active: int = 1,
) -> Case:
    """Build a case; parameters that an operator does not have are ignored."""
    spec = OPERATORS[name]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(batch, *size, channels).relu()
    if name == "SpatialMasker":
        attributes = {"mask_height": min(mask_size[0], size[0]), "mask_width": min(mask_size[1], size[1])}
        return Case(spec, (x, normal(2, channels), normal(2) * 0.1), attributes)
    if name.startswith("ChannelMasker"):
        layers = [normal(5, channels), normal(5)] if name.endswith("Hidden") else []
        width = 5 if layers else channels
        return Case(spec, (x, *layers, normal(channel_groups, width), normal(channel_groups) * 0.1), {})
    projection, excites = name.endswith("Projection"), "SE" in name
    if not projection:
        stride, out_channels = 1, channels
    out_size = [(extent - 1) // stride + 1 for extent in size]
    spatial = _bits(generator, (batch, 1, *(min(m, o) for m, o in zip(mask_size, out_size, strict=True))), rate)
    channel = _bits(generator, (batch, channel_groups), rate)
    masks = {
        "Spatial": [spatial],
        "Layer": [_bits(generator, (batch, 1, 1, 1), rate)],
        "Channel": [channel],
        "SpatialChannel": [spatial, channel],
    }[name.removesuffix("Projection").removesuffix("Bottleneck").removesuffix("SE")]
    weights = [
        normal(hidden, channels) / channels**0.5,
        normal(hidden),
        normal(hidden, hidden // group, 3, 3) / (9 * hidden // group) ** 0.5,
        normal(hidden),
        *((normal(3, hidden), normal(3), normal(hidden, 3), normal(hidden)) if excites else ()),
        normal(out_channels, hidden) / hidden**0.5,
        normal(out_channels),
    ]
    if projection:
        weights += [normal(out_channels, channels) / channels**0.5, normal(out_channels)]
    attributes = {
        "strides": [stride] * 2,
        "dilations": [dilation] * 2,
        "pads": [dilation] * 4,
        "group": group,
    }
    if excites and "Spatial" in name:
        attributes["pool_active"] = pool_active
    return Case(spec, (x, *masks, *weights), attributes)


@st.composite
def any_case(draw: st.DrawFn, name: str) -> Case:
    """Random sizes, odd and non-square ones included; rates 0, 1 and between."""
    group = draw(st.sampled_from([1, 1, 2, 3]))
    hidden = 6 * draw(st.integers(1, 2))
    return build(
        name,
        seed=draw(st.integers(0, 2**31)),
        batch=draw(st.integers(1, 3)),
        size=(draw(st.integers(1, 13)), draw(st.integers(1, 13))),
        channels=draw(st.integers(1, 9)),
        hidden=hidden,
        out_channels=draw(st.integers(1, 9)),
        stride=draw(st.sampled_from([1, 2])),
        dilation=draw(st.sampled_from([1, 1, 2])),
        group=group,
        mask_size=(draw(st.integers(1, 7)), draw(st.integers(1, 7))),
        channel_groups=draw(st.sampled_from([1, 2, 3, 6])),
        rate=draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])),
        pool_active=draw(st.sampled_from([0, 1])),
    )
