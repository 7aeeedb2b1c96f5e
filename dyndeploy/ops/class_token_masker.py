"""ClassTokenHeadMasker and ClassTokenLayerMasker: decide by the class token which heads, or which sublayers, run.

Source: AdaViT (Meng et al., CVPR 2022), head and layer policies in evaluation: one linear layer on the first token of
the block's input, behind a LayerNorm of its own where there is one, and a threshold. The affine part of the LayerNorm
and the threshold are folded into the linear layer by whoever lowers it.
"""

from __future__ import annotations

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
from dyndeploy.ops.token_masker import require_normalisation

if TYPE_CHECKING:
    import torch

HEADS, LAYER = "ClassTokenHeadMasker", "ClassTokenLayerMasker"
KERNELS: Mapping[str, KernelSpec] = {"cpu": KernelSpec(), **masker_kernels()}


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, epsilon: float, normalise: int
) -> torch.Tensor:
    """Compute the decisions, in float at least.

    Args:
        x: (N, T, D), the block's input, of which token 0 is read.
        weight: (A, D).
        bias: (A,).
        epsilon: Of the LayerNorm.
        normalise: 1: a LayerNorm without weights comes first; 0: ``x`` is read as it is.

    Returns:
        (N, A) float32: 1 where ``x[:, 0] weight^T + bias >= 0``, else 0 (NaN is not kept). A layer masker has one
        decision, (N, 1, 1, 1).
    """
    import torch
    import torch.nn.functional as F

    x, weight, bias = (item.to(torch.promote_types(item.dtype, torch.float32)) for item in (x, weight, bias))
    row = normalised(x[:, 0], epsilon) if normalise else x[:, 0]
    return (F.linear(row, weight, bias) >= 0).to(torch.float32)


def _layer_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, epsilon: float, normalise: int
) -> torch.Tensor:
    return reference(x, weight, bias, epsilon=epsilon, normalise=normalise).reshape(-1, 1, 1, 1)


def _spec(name: str, summary: str, *, layer: bool) -> OperatorSpec:
    decisions = "1" if layer else "A"

    def infer_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
        x, weight, bias = shapes
        fits = len(x) == 3 and x[1] > 0 and len(weight) == 2 and weight[1] == x[2] and bias == weight[:1]
        if not fits or (layer and weight[0] != 1):
            raise UsageError(
                f"{name}: x {x}, weight {weight} and bias {bias} do not fit (N, T, D), ({decisions}, D), "
                f"({decisions},)."
            )
        require_normalisation(name, attributes)
        return (x[0], 1, 1, 1) if layer else (x[0], weight[0])

    def work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
        batch, rows = infer_shape(shapes, attributes)[:2]
        width = shapes[0][2]
        return Work(
            macs=per_image(rows * width, shapes),
            read=element * batch * width,
            written=4.0 * batch * rows,
            weights=4.0 * rows * width,
        )

    def sizes(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Mapping[str, float]:
        return masker_sizes(shapes[0][0], 1, shapes[0][2], shapes[1][0])

    def body(b: Body, inputs: Mapping[str, Value]) -> Value:
        x = b.op("Cast", b.gather(inputs["x"], b.value(0), axis=1), to=TensorProto.FLOAT)
        weight, bias = (b.op("Cast", inputs[port], to=TensorProto.FLOAT) for port in ("weight", "bias"))
        ones = b.op("Exp", b.zeros_like(b.gather(weight, b.value(0))))
        row = b.branch(
            b.op("Equal", b.integer("normalise"), 1), lambda inner: layer_norm(inner, x, ones), lambda inner: x
        )
        keep = b.op("GreaterOrEqual", b.linear(row, weight, bias), b.zeros_like(bias))
        mask = b.op("Cast", keep, to=TensorProto.FLOAT)
        return b.reshape(mask, -1, 1, 1, 1) if layer else mask

    return OperatorSpec(
        name=name,
        version=1,
        kind="class_token_masker",
        summary=summary,
        inputs=(
            Port("x", Role.ACTIVATION, ("N", "T", "D")),
            Port("weight", Role.WEIGHT, (decisions, "D"), Element.FLOAT),
            Port("bias", Role.WEIGHT, (decisions,), Element.FLOAT),
        ),
        outputs=(Port("mask", Role.MASK, ("N", "1", "1", "1") if layer else ("N", "A"), Element.FLOAT),),
        attributes=(EPSILON, Attribute("normalise")),
        gates={},
        reference=_layer_reference if layer else reference,
        infer_shape=infer_shape,
        body=body,
        counts=no_counts,
        expected=no_counts,
        work=work,
        sizes=sizes,
        kernels=KERNELS,
    )


SPECS = (
    _spec(HEADS, "Head mask from the first token of the block's input: a linear layer >= 0.", layer=False),
    _spec(
        LAYER, "Whether a sublayer runs, from the first token of the block's input: a linear layer >= 0.", layer=True
    ),
)
