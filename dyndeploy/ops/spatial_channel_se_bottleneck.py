"""SpatialChannelSEBottleneck: a bottleneck with squeeze-and-excitation on active patches and active hidden channels.

Source: LAUD-RegNetY, mode "both" (Han et al., TPAMI 2024). Masks act as in ``SpatialSEBottleneck`` and in
``ChannelSEBottleneck``.
"""

from __future__ import annotations

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._excitation import per_sample_body, reference_of
from dyndeploy.ops._quantized_bottleneck import quantization
from dyndeploy.ops.gates import CHANNEL, PATCH
from dyndeploy.ops.spatial_channel_bottleneck import MASKS, spatial_channel_geometry

SPECS = shared.bottleneck_specs(
    "SpatialChannelSEBottleneck",
    "Bottleneck with squeeze-and-excitation on active patches and active hidden channels",
    masks=MASKS,
    gates={"spatial_mask": PATCH, "channel_mask": CHANNEL},
    reference=reference_of((PATCH.name, CHANNEL.name)),
    geometry=spatial_channel_geometry,
    body=per_sample_body({PATCH.name: "spatial_mask", CHANNEL.name: "channel_mask"}),
    excites=True,
    quantization=quantization,
)
