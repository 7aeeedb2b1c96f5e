"""SpatialSEBottleneck: a bottleneck with squeeze-and-excitation on the active patches of a spatial mask.

Source: LAUD-RegNetY, spatial mode (Han et al., TPAMI 2024). Its squeeze-and-excitation averages over the whole map: at
``pool_active = 0``, what trained networks mean, conv1 and conv2 compute every pixel of an image of which any patch is
active, and only conv3 follows the mask. With ``pool_active = 1`` the mean is that of active pixels, another function,
and conv1 is needed on the dilated active set and conv2 on the active set.
"""

from __future__ import annotations

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._excitation import per_sample_body, reference_of
from dyndeploy.ops._quantized_bottleneck import quantization
from dyndeploy.ops.gates import PATCH
from dyndeploy.ops.spatial_bottleneck import MASK, spatial_geometry

SPECS = shared.bottleneck_specs(
    "SpatialSEBottleneck",
    "Bottleneck with squeeze-and-excitation on the active patches of a spatial mask",
    masks=(MASK,),
    gates={"mask": PATCH},
    reference=reference_of((PATCH.name,)),
    geometry=spatial_geometry,
    body=per_sample_body({PATCH.name: "mask"}),
    excites=True,
    quantization=quantization,
)
