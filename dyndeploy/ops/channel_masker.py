"""ChannelMasker: decides which groups of hidden channels are computed.

Source: LAUDNet (TPAMI 2024), MLP channel masker in evaluation: global average pooling, one or two linear layers to a
compute and a skip logit per group, compute where its logit is not smaller. The operator takes the difference of the
two logits' weights. The convolutional masker is a 1x1 convolution and ReLU in front of the one-layer form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onnx import TensorProto

from dyndeploy.errors import UsageError
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops._launches import channel_masker_launches
from dyndeploy.ops._quantized_masker import masker_quantization
from dyndeploy.ops._workspace import channel_masker_workspace
from dyndeploy.ops.base import (
    Attributes,
    Counts,
    Element,
    OperatorSpec,
    Port,
    Rates,
    Role,
    Shape,
    Work,
    no_counts,
    per_image,
)
from dyndeploy.ops.spatial_masker import MASKER_KERNELS, masker_sizes

if TYPE_CHECKING:
    import torch

NAME = "ChannelMasker"
KERNELS = {
    "cpu": MASKER_KERNELS["cpu"],
    **{
        family: replace(MASKER_KERNELS[family], launches=channel_masker_launches, workspace=channel_masker_workspace)
        for family in ("cuda", "tensorrt")
    },
}
HIDDEN = (
    Port("hidden_weight", Role.WEIGHT, ("h", "C"), Element.FLOAT),
    Port("hidden_bias", Role.WEIGHT, ("h",), Element.FLOAT),
)


def reference(x: torch.Tensor, *layers: torch.Tensor) -> torch.Tensor:
    """Compute the mask.

    Args:
        x: (N, H, W, C), the block input.
        layers: ``weight, bias`` or ``hidden_weight, hidden_bias, weight, bias`` with weight (G, C or h).

    Returns:
        (N, G) float32: 1 where the logit difference is >= 0, else 0.
    """
    import torch
    import torch.nn.functional as F

    features = x.mean((1, 2))
    *hidden, weight, bias = layers
    if hidden:
        features = F.relu(F.linear(features, *hidden))
    return (F.linear(features, weight, bias) >= 0).to(torch.float32)


def _infer_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    x, *layers = shapes
    width = x[-1]
    fits = len(x) == 4
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        fits = fits and len(weight) == 2 and weight[1] == width and bias == weight[:1]
        width = weight[0]
    if not fits:
        raise UsageError(f"{NAME}: x {x} and layers {layers} do not fit (N, H, W, C), (out, in), (out,), ...")
    return x[0], width


def _work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
    batch, groups = _infer_shape(shapes, attributes)
    weights = sum(math.prod(shape) for shape in shapes[1::2])
    return Work(
        macs=per_image(weights, shapes),
        read=element * math.prod(shapes[0]),
        written=4.0 * batch * groups,
        weights=element * weights,
    )


def _sizes(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Mapping[str, float]:
    batch, groups = _infer_shape(shapes, attributes)
    _, height, width, channels = shapes[0]
    return masker_sizes(batch, (height, width), channels, shapes[1][0] if len(shapes) > 3 else 0, groups)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    values = {name: b.op("Cast", value, to=TensorProto.FLOAT) for name, value in inputs.items()}
    x = values["x"]
    channels = b.dim(x, 3)
    # The mean as a product with a constant row: runtimes reduce leading axes of channels-last maps many times slower.
    pixels = b.dim(x, 1) * b.dim(x, 2)
    ones = b.op("Expand", b.op("Cast", [1], to=TensorProto.FLOAT), b.unsqueeze(pixels, 0))
    average = b.unsqueeze(b.op("Div", ones, b.op("Cast", pixels, to=TensorProto.FLOAT)), 0)
    features = b.op("MatMul", average, b.op("Reshape", x, b.op("Concat", [0, -1], b.unsqueeze(channels, 0), axis=0)))
    features = b.reshape(features, -1, channels)
    if "hidden_weight" in values:
        features = b.op("Relu", b.linear(features, values["hidden_weight"], values["hidden_bias"]))
    logits = b.linear(features, values["weight"], values["bias"])
    keep = b.op("GreaterOrEqual", logits, b.zeros_like(values["bias"]))
    return b.op("Cast", keep, to=TensorProto.FLOAT)


def _spec(name: str, hidden: bool) -> OperatorSpec:
    width = "h" if hidden else "C"
    weights = (
        *(HIDDEN if hidden else ()),
        Port("weight", Role.WEIGHT, ("G", width), Element.FLOAT),
        Port("bias", Role.WEIGHT, ("G",), Element.FLOAT),
    )
    return OperatorSpec(
        name=name,
        version=1,
        kind="channel_masker",
        summary="Channel mask from the pooled block input: logit difference >= 0"
        + (", with a hidden layer." if hidden else "."),
        inputs=(
            Port("x", Role.ACTIVATION, ("N", "H", "W", "C")),
            *weights,
        ),
        outputs=(Port("mask", Role.MASK, ("N", "G"), Element.FLOAT),),
        attributes=(),
        gates={},
        reference=reference,
        infer_shape=_infer_shape,
        body=_body,
        counts=no_counts,
        expected=no_counts,
        work=_work,
        sizes=_sizes,
        kernels=KERNELS,
        quantization=masker_quantization(name, weights[0].name, reference, ("x", *(port.name for port in weights))),
    )


SPECS = (_spec(NAME, hidden=False), _spec(f"{NAME}Hidden", hidden=True))
