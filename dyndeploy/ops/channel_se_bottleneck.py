"""ChannelSEBottleneck: a bottleneck with squeeze-and-excitation that skips groups of hidden channels, exactly.

Source: LAUD-RegNetY, channel mode (Han et al., TPAMI 2024). The mask stands behind the ReLUs of conv1 and conv2: what
it skips is zero, and there are no constants. Groups of the mask may cross the groups of the 3x3.
"""

from __future__ import annotations

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._excitation import per_sample_body, reference_of
from dyndeploy.ops._quantized_bottleneck import quantization
from dyndeploy.ops.channel_bottleneck import MASK, channel_geometry
from dyndeploy.ops.gates import CHANNEL

SPECS = shared.bottleneck_specs(
    "ChannelSEBottleneck",
    "Bottleneck with squeeze-and-excitation on the active hidden channels",
    masks=(MASK,),
    gates={"mask": CHANNEL},
    reference=reference_of((CHANNEL.name,)),
    geometry=channel_geometry,
    body=per_sample_body({CHANNEL.name: "mask"}),
    excites=True,
    quantization=quantization,
)
