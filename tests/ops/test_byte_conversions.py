"""Where bytes begin and end: the references against ONNX's own operators and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from dyndeploy.errors import UsageError
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.byte_conversions import DEQUANTIZE, QUANTIZE, dequantize, quantize
from dyndeploy.runtimes import OnnxRuntimeSession


def of_onnx(name: str, x: np.ndarray, scale: float) -> np.ndarray:
    """What the function body gives in ONNX Runtime."""
    spec = OPERATORS[name]
    types = (TensorProto.FLOAT, TensorProto.UINT8) if name == QUANTIZE else (TensorProto.UINT8, TensorProto.FLOAT)
    infos = [helper.make_tensor_value_info(n, kind, x.shape) for n, kind in zip("xy", types, strict=True)]
    node = helper.make_node(name, ["x"], ["y"], name="node", domain=DOMAIN, scale=scale)
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[spec.function(13)], ir_version=8)
    onnx.checker.check_model(model)
    with OnnxRuntimeSession(model, native="off") as session:
        return session.run({"x": x}, finite=False)["y"]


@pytest.mark.parametrize("scale", [0.5, 0.0371, 3.0])
def test_references_are_the_bodies(scale: float) -> None:
    random = np.random.default_rng(0)
    # Halves between two bytes, and what is cut off on both sides.
    x = (random.integers(-20, 600, (2, 3, 5, 8)) / 2 * scale).astype(np.float32)
    quantised = quantize(torch.from_numpy(x), scale=scale).numpy()
    np.testing.assert_array_equal(quantised, of_onnx(QUANTIZE, x, scale))
    assert quantised.min() == 0 and quantised.max() == 255
    restored = dequantize(torch.from_numpy(quantised), scale=scale).numpy()
    np.testing.assert_array_equal(restored, of_onnx(DEQUANTIZE, quantised, scale))
    np.testing.assert_array_equal(quantize(torch.from_numpy(restored).half(), scale=scale).numpy(), quantised)


def test_what_is_no_number_and_what_has_no_end() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.25, 3.75]).reshape(1, 1, 1, 5)
    assert quantize(x, scale=0.5).ravel().tolist() == [0, 255, 0, 2, 8]


@pytest.mark.parametrize("name", [QUANTIZE, DEQUANTIZE])
def test_what_does_not_fit_is_refused(name: str) -> None:
    spec = OPERATORS[name]
    assert spec.infer_shape([(2, 3, 4, 8)], {"scale": 0.1}) == (2, 3, 4, 8)
    with pytest.raises(UsageError, match=rf"{name}: x must be \(N, H, W, C\), not \(2, 8\)"):
        spec.infer_shape([(2, 8)], {"scale": 0.1})
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="must be finite and positive"):
            spec.infer_shape([(2, 3, 4, 8)], {"scale": scale})
