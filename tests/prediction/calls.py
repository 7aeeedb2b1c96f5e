"""Dynamic bottlenecks by their sizes, for tests of prices."""

from __future__ import annotations

from dyndeploy.ops import OPERATORS
from dyndeploy.ops.gates import CHANNEL, PATCH
from dyndeploy.prediction import Kernel, Rates
from dyndeploy.prediction.kernels import ELEMENT_BYTES, OperatorCall

NAMES = {
    "spatial": "SpatialBottleneck",
    "layer": "LayerBottleneck",
    "channel": "ChannelBottleneck",
    "spatial_channel": "SpatialChannelBottleneck",
}


def bottleneck(
    kind: str = "spatial",
    *,
    batch: int = 1,
    size: tuple[int, int] = (28, 28),
    cin: int = 512,
    cmid: int = 128,
    cout: int = 512,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    projection: bool = False,
    mask_size: tuple[int, int] = (1, 1),
    channel_groups: int = 1,
    rates: Rates | None = None,
    precision: str = "fp32",
) -> Kernel:
    """The kernel of a bottleneck operator; sizes of masks that the kind does not have are ignored."""
    spec = OPERATORS[NAMES[kind] + ("Projection" if projection else "")]
    shapes = {
        "x": (batch, *size, cin),
        **{
            port: (batch, channel_groups)
            if gate == CHANNEL
            else (batch, 1, *(mask_size if gate == PATCH else (1, 1)))
            for port, gate in spec.gates.items()
        },
        "w1": (cmid, cin), "b1": (cmid,), "w2": (cmid, cmid // groups, 3, 3), "b2": (cmid,), "w3": (cout, cmid),
        "b3": (cout,), "wd": (cout, cin), "bd": (cout,),
    }  # fmt: skip
    attributes = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [dilation] * 4, "group": groups}
    call = OperatorCall(spec, tuple(shapes[port.name] for port in spec.inputs), attributes, ELEMENT_BYTES[precision])
    return call.kernel("b", "b", rates or Rates())
