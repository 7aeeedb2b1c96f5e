"""SpatialMasker: decides which patches of a block's output are computed.

Source: LAUDNet (TPAMI 2024), spatial and layer masker in evaluation: adaptive average pooling of the block input to
the mask size, a 1x1 convolution to a compute and a skip logit, and compute where its logit is not smaller. The
operator takes the difference of the two logits' weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnx import TensorProto

from dyndeploy.errors import UsageError
from dyndeploy.ops._body import Body, Value
from dyndeploy.ops._launches import spatial_masker_launches
from dyndeploy.ops._quantized_masker import masker_quantization
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

NAME = "SpatialMasker"
MASKER_KERNELS = {
    "cpu": KernelSpec(),
    "cuda": KernelSpec(precisions=("fp32", "fp16"), launches=spatial_masker_launches),
    "tensorrt": KernelSpec(precisions=("fp32", "fp16"), launches=spatial_masker_launches),
}
"""Every family decides in float; ``fp16`` means that the block input may be half."""


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, mask_height: int, mask_width: int
) -> torch.Tensor:
    """Compute the mask.

    Args:
        x: (N, H, W, C), the block input.
        weight: (g, C), weight of the compute logit minus that of the skip logit, per mask group.
        bias: (g,), likewise.
        mask_height: mh <= H; adaptive average pooling with PyTorch's bins.
        mask_width: mw <= W.

    Returns:
        (N, g, mh, mw) float32: 1 where the logit difference is >= 0, else 0.
    """
    import torch
    import torch.nn.functional as F

    pooled = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (mask_height, mask_width))
    logits = F.conv2d(pooled, weight[:, :, None, None], bias)
    return (logits >= 0).to(torch.float32)


def _infer_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    x, weight, bias = shapes
    mask_height, mask_width = int(attributes["mask_height"]), int(attributes["mask_width"])
    if len(x) != 4 or len(weight) != 2 or weight[1] != x[3] or bias != weight[:1]:
        raise UsageError(f"{NAME}: x {x}, weight {weight} and bias {bias} do not fit (N, H, W, C), (g, C), (g,).")
    if not (1 <= mask_height <= x[1] and 1 <= mask_width <= x[2]):
        raise UsageError(f"{NAME}: a mask of {mask_height} x {mask_width} does not fit a map of {x[1]} x {x[2]}.")
    return x[0], weight[0], mask_height, mask_width


def _work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
    batch, groups, mask_height, mask_width = _infer_shape(shapes, attributes)
    weights, positions = groups * shapes[0][3], mask_height * mask_width
    return Work(
        macs=per_image(weights * positions, shapes),
        read=element * math.prod(shapes[0]),
        written=4.0 * batch * groups * positions,
        weights=element * weights,
    )


def _sizes(shapes: Sequence[Shape], attributes: Attributes, rates: Rates) -> Mapping[str, float]:
    batch, groups, mask_height, mask_width = _infer_shape(shapes, attributes)
    _, height, width, channels = shapes[0]
    return masker_sizes(batch, (height, width), channels, 0, groups, (mask_height, mask_width))


def masker_sizes(
    batch: int, size: tuple[int, int], cin: int, cmid: int, cout: int, mask_size: tuple[int, int] = (1, 1)
) -> Mapping[str, float]:
    """Sizes of a masker: of its input, its hidden layer (0: none), its decisions and its mask."""
    return {
        "batch": batch,
        "h": size[0],
        "w": size[1],
        "cin": cin,
        "cout": cout,
        "cmid": cmid,
        "mask_h": mask_size[0],
        "mask_w": mask_size[1],
    }


def _body(b: Body, inputs: Mapping[str, Value]) -> Value:
    # Pooling and the dot product commute: one channel is pooled instead of C, by two products with the matrices
    # of the adaptive bins, which handle every ratio of sizes.
    x = b.op("Cast", inputs["x"], to=TensorProto.FLOAT)
    weight = b.op("Cast", inputs["weight"], to=TensorProto.FLOAT)
    bias = b.op("Cast", inputs["bias"], to=TensorProto.FLOAT)
    height, width = b.dim(x, 1), b.dim(x, 2)
    mask_height, mask_width = b.integer("mask_height"), b.integer("mask_width")

    def bins(size: Value, count: Value) -> Value:
        """Averaging matrix (count, size)."""
        index, position = b.unsqueeze(b.arange(count), 1), b.arange(size)
        start, end = index * size // count, ((index + 1) * size + count - 1) // count
        inside = b.op("And", b.op("Less", start - 1, position), b.op("Less", position, end))
        weights = b.op("Cast", inside, to=TensorProto.FLOAT)
        return b.op("Div", weights, b.op("Cast", end - start, to=TensorProto.FLOAT))

    # The few mask groups as rows of the product: runtimes are several times slower with them as columns.
    logits = b.op("Gemm", weight, b.reshape(x, -1, b.dim(x, 3)), transB=1)
    logits = b.reshape(logits, b.dim(weight, 0), b.dim(x, 0), height, width)
    logits = b.op("Transpose", logits, perm=[1, 0, 2, 3])
    columns = b.op("Transpose", bins(width, mask_width), perm=[1, 0])
    logits = b.op("MatMul", b.op("MatMul", bins(height, mask_height), logits), columns)
    keep = b.op("GreaterOrEqual", logits, b.op("Neg", b.unsqueeze(bias, 1, 2)))
    return b.op("Cast", keep, to=TensorProto.FLOAT)


SPECS = (
    OperatorSpec(
        name=NAME,
        version=1,
        kind="spatial_masker",
        summary="Spatial mask from the block input: pooled logit difference >= 0.",
        inputs=(
            Port("x", Role.ACTIVATION, ("N", "H", "W", "C")),
            Port("weight", Role.WEIGHT, ("g", "C"), Element.FLOAT),
            Port("bias", Role.WEIGHT, ("g",), Element.FLOAT),
        ),
        outputs=(Port("mask", Role.MASK, ("N", "g", "mh", "mw"), Element.FLOAT),),
        attributes=(Attribute("mask_height"), Attribute("mask_width")),
        gates={},
        reference=reference,
        infer_shape=_infer_shape,
        body=_body,
        counts=no_counts,
        expected=no_counts,
        work=_work,
        sizes=_sizes,
        kernels=MASKER_KERNELS,
        quantization=masker_quantization(NAME, "weight", reference, ("x", "weight", "bias")),
    ),
)
