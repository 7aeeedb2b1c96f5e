"""LayerBottleneck: a residual bottleneck that each sample computes entirely or skips entirely.

Source: LAUDNet (TPAMI 2024), layer mode: the spatial mask (N, 1, 1, 1) of one patch that covers the whole map;
a sample is computed where it is above 0.5 (NaN is not).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import TensorProto

from dyndeploy.errors import UsageError
from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops._geometry import Geometry, bottleneck_geometry
from dyndeploy.ops._quantized_bottleneck import quantization
from dyndeploy.ops.base import Attributes, Element, Port, Role, Shape
from dyndeploy.ops.gates import BLOCK
from dyndeploy.ops.spatial_bottleneck import reference

NAME = "LayerBottleneck"
MASK = Port("mask", Role.MASK, ("N", "1", "1", "1"), Element.FLOAT)


def layer_geometry(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Geometry:
    """Sizes of a bottleneck behind a layer mask; raises ``UsageError`` where the inputs do not fit."""
    geometry = bottleneck_geometry(name, shapes[0], shapes[2:], attributes)
    expected = (geometry.batch, 1, 1, 1)
    if shapes[1] != expected:
        raise UsageError(f"{name}: the layer mask must be {expected}, not {shapes[1]}.")
    return geometry


def layer_body(b: Body, inputs: Mapping[str, Value]) -> Value:
    """The body: samples that run are gathered, and computed densely."""
    sizes = shared.body_sizes(b, inputs)
    pixels_per_sample = sizes.out_height * sizes.out_width

    def skip(inner: Body) -> Value:
        identity = shared.shortcut_rows(inner, inputs, sizes)
        return inner.op("Relu", identity) if "wd" in inputs else identity

    def run_all(inner: Body) -> Value:
        return shared.dense_map(inner, inputs, sizes, inputs["x"])

    def run_some(inner: Body) -> Value:
        samples = inner.reshape(inner.op("NonZero", inner.reshape(inputs["mask"], -1)), -1)
        first = inner.unsqueeze(samples, 1) * pixels_per_sample
        pixels = inner.reshape(first + inner.arange(pixels_per_sample), -1, 1)
        updated = shared.dense_map(inner, inputs, sizes, inner.gather(inputs["x"], samples))
        updated = inner.reshape(updated, -1, sizes.out_channels)
        return inner.op("ScatterND", skip(inner), pixels, updated)

    def run_any(inner: Body) -> Value:
        return inner.branch(shared.all_ones(inner, inputs["mask"]), run_all, run_some)

    def run(inner: Body) -> Value:
        # A batch of one that is known in advance keeps one copy of the weights.
        return inner.branch(inner.op("Equal", sizes.batch, 1), run_all, run_any)

    running = b.op("Cast", b.op("ReduceMax", inputs["mask"], keepdims=0), to=TensorProto.BOOL)
    return shared.to_map(b, b.branch(running, run, skip), sizes)


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck that each sample computes or skips as a whole",
    masks=(MASK,),
    gates={"mask": BLOCK},
    reference=reference,
    geometry=layer_geometry,
    body=layer_body,
    skipped_kind="layer_skipped",
    quantization=quantization,
)
