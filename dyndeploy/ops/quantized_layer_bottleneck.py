"""QuantizedLayerBottleneck: a residual bottleneck that each sample computes entirely or skips entirely, in integers.

What :mod:`dyndeploy.ops.layer_bottleneck` computes in floats.
The arithmetic is that of :mod:`dyndeploy.ops._quantized`; activations are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops import _quantized_bottleneck as integers
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops.gates import BLOCK
from dyndeploy.ops.layer_bottleneck import MASK, layer_geometry
from dyndeploy.ops.quantized_spatial_bottleneck import reference

NAME = "QuantizedLayerBottleneck"


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    return integers.dense_body(b, inputs, shared.body_sizes(b, inputs), spatial=inputs["mask"])


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck that each sample computes or skips as a whole, in integers",
    masks=(MASK,),
    gates={"mask": BLOCK},
    reference=reference,
    geometry=layer_geometry,
    body=_body,
    skipped_kind="quantized_layer_skipped",
    quantized=True,
)
