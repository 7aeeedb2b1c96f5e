"""TokenMasker: decides which tokens of a transformer block are computed.

Source: AdaViT (Meng et al., CVPR 2022), token policy in evaluation: one linear layer on the normalised input of the
block, and a threshold. The leading tokens (the class token) always stay. The affine part of the LayerNorm and the
threshold are folded into the linear layer by whoever lowers it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnx import TensorProto

from dyndeploy.errors import UsageError
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops._transformer import EPSILON, masker_sizes, normalised
from dyndeploy.ops._transformer_body import layer_norm
from dyndeploy.ops._transformer_gpu import masker_kernels
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

NAME = "TokenMasker"
KERNELS: Mapping[str, KernelSpec] = {"cpu": KernelSpec(), **masker_kernels()}


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, epsilon: float, normalise: int, kept: int
) -> torch.Tensor:
    """Compute the mask, in float at least.

    Args:
        x: (N, T, D), the block's input.
        weight: (D,).
        bias: (1,).
        epsilon: Of the LayerNorm.
        normalise: 1: a LayerNorm without weights comes first; 0: ``x`` is read as it is.
        kept: Leading tokens that always stay, 0 to T.

    Returns:
        (N, T) float32: 1 where ``x weight + bias >= 0`` and for the leading tokens, else 0 (NaN is not kept).
    """
    import torch

    x, weight, bias = (item.to(torch.promote_types(item.dtype, torch.float32)) for item in (x, weight, bias))
    rows = normalised(x, epsilon) if normalise else x
    mask = ((rows @ weight + bias) >= 0).to(torch.float32)
    mask[:, :kept] = 1
    return mask


def _infer_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    x, weight, bias = shapes
    if len(x) != 3 or weight != x[2:] or bias != (1,):
        raise UsageError(f"{NAME}: x {x}, weight {weight} and bias {bias} do not fit (N, T, D), (D,), (1,).")
    if not 0 <= attributes["kept"] <= x[1]:
        raise UsageError(f"{NAME}: {attributes['kept']} leading tokens cannot be kept of {x[1]}.")
    require_normalisation(NAME, attributes)
    return x[:2]


def require_normalisation(name: str, attributes: Attributes) -> None:
    """Raise ``UsageError`` for attributes that name no LayerNorm."""
    if attributes["normalise"] not in (0, 1) or not attributes["epsilon"] > 0:
        raise UsageError(
            f"{name}: normalise is 0 or 1 and epsilon above 0, not {attributes['normalise']} and "
            f"{attributes['epsilon']}."
        )


def _work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
    batch, tokens = _infer_shape(shapes, attributes)
    width = shapes[0][2]
    return Work(
        macs=per_image((tokens - int(attributes["kept"])) * width, shapes),
        read=element * math.prod(shapes[0]),
        written=4.0 * batch * tokens,
        weights=4.0 * width,
    )


def _sizes(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Mapping[str, float]:
    batch, tokens, width = shapes[0]
    return masker_sizes(batch, tokens, width, 1)


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    x, weight, bias = (b.op("Cast", inputs[name], to=TensorProto.FLOAT) for name in ("x", "weight", "bias"))
    ones = b.op("Exp", b.zeros_like(weight))
    rows = b.branch(b.op("Equal", b.integer("normalise"), 1), lambda inner: layer_norm(inner, x, ones), lambda inner: x)
    logits = b.op("MatMul", rows, weight)
    keep = b.op("GreaterOrEqual", logits, b.op("Neg", bias))
    leading = b.op("Less", b.arange(b.dim(x, 1)), b.integer("kept"))
    return b.op("Cast", b.op("Or", keep, leading), to=TensorProto.FLOAT)


SPECS = (
    OperatorSpec(
        name=NAME,
        version=1,
        kind="token_masker",
        summary="Token mask from the block's input: a linear layer behind a LayerNorm >= 0, leading tokens stay.",
        inputs=(
            Port("x", Role.ACTIVATION, ("N", "T", "D")),
            Port("weight", Role.WEIGHT, ("D",), Element.FLOAT),
            Port("bias", Role.WEIGHT, ("1",), Element.FLOAT),
        ),
        outputs=(Port("mask", Role.MASK, ("N", "T"), Element.FLOAT),),
        attributes=(EPSILON, Attribute("normalise"), Attribute("kept")),
        gates={},
        reference=reference,
        infer_shape=_infer_shape,
        body=_body,
        counts=no_counts,
        expected=no_counts,
        work=_work,
        sizes=_sizes,
        kernels=KERNELS,
    ),
)
