"""QuantizedLayerBottleneck: a residual bottleneck that each sample computes entirely or skips entirely, in integers.

What :mod:`dyndeploy.ops.layer_bottleneck` computes in floats.
The arithmetic is that of :mod:`dyndeploy.ops._quantized`; activations are bytes.
"""

from __future__ import annotations

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._quantized_body import layer_body
from dyndeploy.ops.gates import BLOCK
from dyndeploy.ops.layer_bottleneck import MASK, layer_geometry
from dyndeploy.ops.quantized_spatial_bottleneck import reference

NAME = "QuantizedLayerBottleneck"


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck that each sample computes or skips as a whole, in integers",
    masks=(MASK,),
    gates={"mask": BLOCK},
    reference=reference,
    geometry=layer_geometry,
    body=layer_body,
    skipped_kind="quantized_layer_skipped",
    quantized=True,
)
