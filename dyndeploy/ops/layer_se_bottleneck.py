"""LayerSEBottleneck: a bottleneck with squeeze-and-excitation that each sample computes entirely or skips entirely.

Source: LAUD-RegNetY (Han et al., TPAMI 2024) with a spatial mask of one patch, (N, 1, 1, 1); a sample is computed where
it is above 0.5 (NaN is not). Whatever is computed at all is computed whole, and so is its mean.
"""

from __future__ import annotations

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._excitation import reference_of
from dyndeploy.ops._quantized_bottleneck import quantization
from dyndeploy.ops.gates import BLOCK
from dyndeploy.ops.layer_bottleneck import MASK, layer_body, layer_geometry

SPECS = shared.bottleneck_specs(
    "LayerSEBottleneck",
    "Bottleneck with squeeze-and-excitation that each sample computes or skips as a whole",
    masks=(MASK,),
    gates={"mask": BLOCK},
    reference=reference_of((BLOCK.name,)),
    geometry=layer_geometry,
    body=layer_body,
    excites=True,
    quantization=quantization,
    skipped_kind="layer_skipped",
)
