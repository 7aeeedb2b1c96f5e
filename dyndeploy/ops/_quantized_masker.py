"""Maskers that read bytes: how an FP32 masker becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dyndeploy.errors import UsageError
from dyndeploy.ops import _quantized as integers
from dyndeploy.ops.base import Array, Attributes, Counts, Element, KernelSpec, OperatorSpec, Quantization, Shape, Work

if TYPE_CHECKING:
    import torch

PREFIX = "Quantized"


def masker_quantization(
    operator: str, first: str, reference: Callable[..., torch.Tensor], inputs: Sequence[str]
) -> Quantization:
    """How an FP32 masker becomes one that reads bytes.

    Args:
        operator: ``op_type`` of the FP32 masker.
        first: Its weight that multiplies ``x``; it takes the scale of ``x``.
        reference: Of the FP32 masker.
        inputs: Names of its inputs, ``x`` first.
    """
    return Quantization(
        operator=f"{PREFIX}{operator}",
        points=(),
        output=False,
        shared=False,
        observe=lambda inputs, attributes: {},
        convert=partial(_convert, operator, first),
        simulate=partial(_simulate, first, reference, tuple(inputs)),
        restore=lambda weights: weights,
    )


def _convert(
    operator: str, first: str, weights: Mapping[str, Array], scales: Mapping[str, float], weight_bits: int
) -> dict[str, Array]:
    integers.weight_limit(weight_bits)
    integers.require_scales(operator, scales, ("x",))
    integers.require_finite(operator, weights)
    result = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    with np.errstate(over="ignore"):
        result[first] = result[first] * np.float32(scales["x"])
    integers.require_finite(operator, result)
    return result


def _simulate(
    first: str,
    reference: Callable[..., torch.Tensor],
    names: Sequence[str],
    inputs: Sequence[torch.Tensor],
    attributes: Attributes,
    scales: Mapping[str, float],
    weight_bits: int,
) -> torch.Tensor:
    integers.weight_limit(weight_bits)
    values = dict(zip(names, inputs, strict=True))
    values["x"] = integers.quantize_activation(values["x"], scales["x"])
    values[first] = values[first] * float(np.float32(scales["x"]))
    return reference(*values.values(), **attributes)


def quantized_masker(spec: OperatorSpec) -> OperatorSpec:
    """The masker of bytes from the one of floats; its weights stay floats.

    Its reference takes ``x`` as (N, H, W, C) bytes, whose scale is in the first weight, and converts it to the
    weights' type.
    """

    def reference(x: torch.Tensor, *weights: torch.Tensor, **attributes: Any) -> torch.Tensor:
        result: torch.Tensor = spec.reference(x.to(weights[0].dtype), *weights, **attributes)
        return result

    def infer_shape(shapes: Sequence[Shape], attributes: Attributes) -> Any:
        try:
            return spec.infer_shape(shapes, attributes)
        except UsageError as error:
            raise UsageError(f"{PREFIX}{error}") from None

    def work(shapes: Sequence[Shape], attributes: Attributes, counts: Counts, element: float) -> Work:
        found = spec.work(shapes, attributes, counts, 1.0)
        return found._replace(weights=4.0 * found.weights)

    return replace(
        spec,
        name=f"{PREFIX}{spec.name}",
        kind=f"quantized_{spec.kind}",
        summary=f"{spec.summary.removesuffix('.')}, from bytes.",
        inputs=(replace(spec.inputs[0], element=Element.UINT8), *spec.inputs[1:]),
        reference=reference,
        infer_shape=infer_shape,
        work=work,
        kernels={
            family: KernelSpec(precisions=("int8",)) if family == "cpu" else replace(kernel, precisions=("int8",))
            for family, kernel in spec.kernels.items()
        },
        quantization=None,
    )
