"""Shapes of a bottleneck, and the checks of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dyndeploy.errors import UsageError
from dyndeploy.ops.base import Attributes, Shape


@dataclass(frozen=True)
class Geometry:
    """Sizes of a bottleneck 1x1 -> 3x3 -> 1x1.

    Attributes:
        batch: N.
        height: H of the input.
        width: W of the input.
        channels: C of the input.
        hidden: M, channels between the convolutions.
        out_channels: Co.
        stride: Of the 3x3 (and of the projection).
        dilation: Of the 3x3; its padding is the same.
        group: Convolution groups of the 3x3.
        projection: Whether the shortcut is a 1x1 convolution.
        squeezed: S, hidden channels of a squeeze-and-excitation behind the 3x3; 0 where there is none.
    """

    batch: int
    height: int
    width: int
    channels: int
    hidden: int
    out_channels: int
    stride: int
    dilation: int
    group: int
    projection: bool
    squeezed: int = 0

    @property
    def out_height(self) -> int:
        """Ho = floor((H - 1) / stride) + 1."""
        return (self.height - 1) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Wo = floor((W - 1) / stride) + 1."""
        return (self.width - 1) // self.stride + 1

    @property
    def output_shape(self) -> Shape:
        """(N, Ho, Wo, Co)."""
        return self.batch, self.out_height, self.out_width, self.out_channels


def _require(condition: bool, operator: str, message: str) -> None:
    if not condition:
        raise UsageError(f"{operator}: {message}.")


def bottleneck_geometry(operator: str, x: Shape, weights: Sequence[Shape], attributes: Attributes) -> Geometry:
    """Check the shapes of ``x``, ``w1, b1, w2, b2[, ws, bs, we, be], w3, b3[, wd, bd]`` against the attributes.

    Raises:
        UsageError: Naming the operator and the input that does not fit.
    """
    _require(len(x) == 4, operator, f"x must be (N, H, W, C), not {x}")
    w1, b1, w2, b2, *excitation = weights[: len(weights) - (4 if len(weights) in (8, 12) else 2)]
    w3, b3, *shortcut = weights[4 + len(excitation) :]
    batch, height, width, channels = x
    _require(len(w1) == 2 and w1[1] == channels, operator, f"w1 must be (M, {channels}), not {w1}")
    hidden = w1[0]
    strides, dilations, pads = attributes["strides"], attributes["dilations"], attributes["pads"]
    group, stride, dilation = int(attributes["group"]), int(strides[0]), int(dilations[0])
    _require(list(strides) == [stride] * 2 and stride in (1, 2), operator, f"strides {list(strides)}")
    _require(list(dilations) == [dilation] * 2 and dilation > 0, operator, f"dilations {list(dilations)}")
    _require(list(pads) == [dilation] * 4, operator, f"pads {list(pads)} must equal the dilation")
    _require(group > 0 and hidden % group == 0, operator, f"group {group} does not divide {hidden}")
    expected = (hidden, hidden // group, 3, 3)
    _require(w2 == expected, operator, f"w2 must be {expected}, not {w2}")
    _require(len(w3) == 2 and w3[1] == hidden, operator, f"w3 must be (Co, {hidden}), not {w3}")
    out_channels = w3[0]
    for name, shape, size in (("b1", b1, hidden), ("b2", b2, hidden), ("b3", b3, out_channels)):
        _require(shape == (size,), operator, f"{name} must be ({size},), not {shape}")
    squeezed = 0
    if excitation:
        ws, bs, we, be = excitation
        _require(len(ws) == 2 and ws[1] == hidden, operator, f"ws must be (S, {hidden}), not {ws}")
        squeezed = ws[0]
        _require(bs == (squeezed,), operator, f"bs must be {(squeezed,)}, not {bs}")
        _require(we == (hidden, squeezed), operator, f"we must be {(hidden, squeezed)}, not {we}")
        _require(be == (hidden,), operator, f"be must be {(hidden,)}, not {be}")
    if shortcut:
        wd, bd = shortcut
        _require(wd == (out_channels, channels), operator, f"wd must be {(out_channels, channels)}, not {wd}")
        _require(bd == (out_channels,), operator, f"bd must be {(out_channels,)}, not {bd}")
    else:
        _require(
            stride == 1 and out_channels == channels,
            operator,
            f"without a projection the stride must be 1 and Co = C, not stride {stride}, "
            f"C {channels}, Co {out_channels}",
        )
    projection = bool(shortcut)
    return Geometry(batch, height, width, channels, hidden, out_channels, stride, dilation, group, projection, squeezed)


def require_spatial_mask(operator: str, mask: Shape, geometry: Geometry) -> None:
    """Raise ``UsageError`` unless ``mask`` is (N, 1, mh, mw) with 1 <= mh <= Ho and 1 <= mw <= Wo."""
    _require(
        len(mask) == 4
        and mask[:2] == (geometry.batch, 1)
        and 1 <= mask[2] <= geometry.out_height
        and 1 <= mask[3] <= geometry.out_width,
        operator,
        f"the spatial mask must be ({geometry.batch}, 1, 1..{geometry.out_height}, 1..{geometry.out_width}), "
        f"not {mask}",
    )


def require_channel_mask(operator: str, mask: Shape, geometry: Geometry) -> None:
    """Raise ``UsageError`` unless ``mask`` is (N, G) with M divisible by G."""
    _require(
        len(mask) == 2 and mask[0] == geometry.batch and mask[1] >= 1 and geometry.hidden % mask[1] == 0,
        operator,
        f"the channel mask must be ({geometry.batch}, G) with {geometry.hidden} % G == 0, not {mask}",
    )
