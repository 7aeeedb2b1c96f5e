"""LayerBottleneck: a residual bottleneck that each sample computes entirely or skips entirely.

Source: LAUDNet (TPAMI 2024), layer mode: the spatial mask (N, 1, 1, 1) of one patch that covers the whole map;
a sample is computed where it is above 0.5 (NaN is not).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dyndeploy.errors import UsageError
from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops._geometry import Geometry, bottleneck_geometry
from dyndeploy.ops.base import Attributes, Element, Port, Role, Shape
from dyndeploy.ops.gates import BLOCK
from dyndeploy.ops.spatial_bottleneck import reference

NAME = "LayerBottleneck"
MASK = Port("mask", Role.MASK, ("N", "1", "1", "1"), Element.FLOAT)


def _geometry(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Geometry:
    geometry = bottleneck_geometry(name, shapes[0], shapes[2:], attributes)
    expected = (geometry.batch, 1, 1, 1)
    if shapes[1] != expected:
        raise UsageError(f"{name}: the layer mask must be {expected}, not {shapes[1]}.")
    return geometry


def _dense(b: Body, inputs: Mapping[str, Value], sizes: shared.Sizes, x: Value, identity: Value) -> Value:
    """``relu(identity + f(x))`` as rows, for whole samples ``x`` (K, H, W, C)."""
    rows = b.reshape(x, -1, sizes.channels)
    hidden = b.op("Relu", b.linear(rows, inputs["w1"], inputs["b1"]))
    hidden = b.op("Transpose", b.reshape(hidden, -1, sizes.height, sizes.width, sizes.hidden), perm=[0, 3, 1, 2])
    convolved = b.op(
        "Conv",
        hidden,
        inputs["w2"],
        inputs["b2"],
        strides=AttributeRef("strides"),
        dilations=AttributeRef("dilations"),
        pads=AttributeRef("pads"),
        group=AttributeRef("group", AttributeRef.INT),
    )
    hidden = b.op("Transpose", b.op("Relu", convolved), perm=[0, 2, 3, 1])
    output = b.linear(b.reshape(hidden, -1, sizes.hidden), inputs["w3"], inputs["b3"])
    return b.op("Relu", b.op("Add", output, identity))


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    sizes = shared.body_sizes(b, inputs)
    projection = "wd" in inputs
    identity = shared.shortcut_rows(b, inputs, sizes)
    samples = b.reshape(b.op("NonZero", b.reshape(inputs["mask"], -1)), -1)
    running = b.dim(samples, 0)
    pixels_per_sample = sizes.out_height * sizes.out_width

    def skip(inner: Body) -> Value:
        return inner.op("Relu", identity) if projection else inner.op("Identity", identity)

    def run_all(inner: Body) -> Value:
        return _dense(inner, inputs, sizes, inputs["x"], identity)

    def run_some(inner: Body) -> Value:
        first = inner.unsqueeze(samples, 1) * pixels_per_sample
        pixels = inner.reshape(first + inner.arange(pixels_per_sample), -1, 1)
        x = inner.gather(inputs["x"], samples)
        updated = _dense(inner, inputs, sizes, x, inner.op("GatherND", identity, pixels))
        return inner.op("ScatterND", skip(inner), pixels, updated)

    def run_any(inner: Body) -> Value:
        return inner.branch(inner.op("Equal", running, sizes.batch), run_all, run_some)

    return shared.to_map(b, b.branch(b.op("Less", 0, running), run_any, skip), sizes)


SPECS = shared.bottleneck_specs(
    NAME,
    "Residual bottleneck that each sample computes or skips as a whole",
    masks=(MASK,),
    gates={"mask": BLOCK},
    reference=reference,
    geometry=_geometry,
    body=_body,
    skipped_kind="layer_skipped",
)
