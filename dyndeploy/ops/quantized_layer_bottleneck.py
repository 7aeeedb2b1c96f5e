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
    mask, x, sizes = inputs["mask"], inputs["x"], shared.body_sizes(b, inputs)

    def skip(inner: Body) -> Value:
        return integers.skipped_map(inner, inputs, x)

    def run_all(inner: Body) -> Value:
        return integers.dense_map(inner, inputs, sizes, x)

    def run_some(inner: Body) -> Value:
        samples = inner.reshape(inner.op("NonZero", inner.reshape(mask, -1)), -1)
        updated = integers.dense_map(inner, inputs, sizes, inner.gather(x, samples))
        return inner.op("ScatterND", skip(inner), inner.unsqueeze(samples, 1), updated)

    def run_any(inner: Body) -> Value:
        return inner.branch(shared.all_ones(inner, mask), run_all, run_some)

    def run(inner: Body) -> Value:
        # A batch of one that is known in advance keeps one copy of the weights.
        return inner.branch(inner.op("Equal", sizes.batch, 1), run_all, run_any)

    return shared.to_map(b, b.branch(integers.any_active(b, mask), run, skip), sizes)


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
