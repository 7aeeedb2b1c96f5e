"""QuantizeBytes and DequantizeBytes: where bytes begin and end in a graph for TensorRT.

What ONNX's QuantizeLinear and DequantizeLinear compute with a zero point of 0, on maps with the channels last. TensorRT
would take those for its own INT8, which has a sign and scales of the builder's choice; a plugin's bytes it only moves.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, numpy_helper

from dyndeploy.errors import UsageError
from dyndeploy.ops import _quantized as integers
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops._launches import conversion_launches
from dyndeploy.ops.base import (
    Attribute,
    Attributes,
    Counts,
    Element,
    KernelSpec,
    OperatorSpec,
    Port,
    Rates,
    Role,
    Shape,
    Work,
    no_counts,
    per_image,
)

if TYPE_CHECKING:
    import torch

QUANTIZE = "QuantizeBytes"
DEQUANTIZE = "DequantizeBytes"


def quantize(x: torch.Tensor, *, scale: float) -> torch.Tensor:
    """``round_half_even(x / scale)`` in [0, 255].

    Args:
        x: (N, H, W, C), float or half; NaN counts as 0, infinite values are cut off like others.
        scale: Finite and positive.

    Returns:
        (N, H, W, C) uint8.
    """
    import torch

    most = float(integers.ACTIVATION_LIMIT)
    steps = (x.to(torch.float32) / float(np.float32(scale))).nan_to_num(0.0, most, 0.0)
    return steps.clamp(0.0, most).round().to(torch.uint8)


def dequantize(x: torch.Tensor, *, scale: float) -> torch.Tensor:
    """``scale * x``.

    Args:
        x: (N, H, W, C) uint8.
        scale: Finite and positive.

    Returns:
        (N, H, W, C) float32.
    """
    import torch

    return x.to(torch.float32) * float(np.float32(scale))


def _quantize_body(b: Body, inputs: Mapping[str, Value]) -> Value:
    zero = b.op("Constant", value=numpy_helper.from_array(np.asarray(np.uint8(0))))
    return b.op("QuantizeLinear", b.op("Cast", inputs["x"], to=TensorProto.FLOAT), b.number("scale"), zero)


def _dequantize_body(b: Body, inputs: Mapping[str, Value]) -> Value:
    return b.op("DequantizeLinear", inputs["x"], b.number("scale"))


def _infer_shape(name: str, shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    scale = float(attributes["scale"])
    if len(shapes[0]) != 4:
        raise UsageError(f"{name}: x must be (N, H, W, C), not {shapes[0]}.")
    if not math.isfinite(scale) or scale < float(np.finfo(np.float32).tiny):
        raise UsageError(f"{name}: the scale is {scale}, and must be finite and positive.")
    return shapes[0]


def _sizes(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Mapping[str, float]:
    return dict(zip(("batch", "h", "w", "cin"), map(float, shapes[0]), strict=True))


def _spec(name: str, summary: str, *, begins: bool) -> OperatorSpec:
    x, y = (
        Port(port, role, ("N", "H", "W", "C"), element)
        for port, role, element in (
            ("x", Role.ACTIVATION, Element.DATA if begins else Element.UINT8),
            ("y", Role.ACTIVATION, Element.UINT8 if begins else Element.DATA),
        )
    )

    def work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
        count = float(math.prod(shapes[0]))
        read, written = (element, 1.0) if begins else (1.0, element)
        return Work(per_image(0, shapes), read * count, written * count, 0.0)

    kernel = KernelSpec(precisions=("int8",), launches=conversion_launches)
    return OperatorSpec(
        name=name,
        version=1,
        kind="quantize_bytes" if begins else "dequantize_bytes",
        summary=summary,
        inputs=(x,),
        outputs=(y,),
        attributes=(Attribute("scale", type=float),),
        gates={},
        reference=quantize if begins else dequantize,
        infer_shape=functools.partial(_infer_shape, name),
        body=_quantize_body if begins else _dequantize_body,
        counts=no_counts,
        expected=no_counts,
        work=work,
        sizes=_sizes,
        kernels={"cuda": kernel, "tensorrt": kernel},
    )


SPECS = (
    _spec(QUANTIZE, "Floats to bytes of a scale, channels last.", begins=True),
    _spec(DEQUANTIZE, "Bytes of a scale to floats, channels last.", begins=False),
)
