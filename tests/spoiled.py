"""Bundles that compute what is not finite, as damaged files and networks that diverged do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from dyndeploy.bundle import Bundle
from tests.bundles import resealed

BAD = (float("nan"), float("inf"), float("-inf"))


def weight_of(bundle: Bundle, file: str, shape: tuple[int, ...]) -> str:
    """Name of the first weight of a shape in a graph."""
    return next(t.name for t in onnx.load(bundle.path / file).graph.initializer if tuple(t.dims) == shape)


def spoiled(bundle: Bundle, file: str, weight: str, value: float, *, everywhere: bool = False) -> Bundle:
    """The bundle with the first value, or all, of one weight of one graph replaced, and checksums that fit."""
    path = Path(bundle.path, file)
    model = onnx.load(path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == weight]
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[: None if everywhere else 1] = value
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), weight))
    onnx.save(model, path)
    return resealed(bundle)
