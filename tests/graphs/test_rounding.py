"""The simulation of FP16 rounds what an engine stores, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.graphs.rounding import rounded_model
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.runtimes.tensorrt_reference import masker


def half(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).astype(np.float32)


def test_stored_values_pass_through_half() -> None:
    generator = np.random.default_rng(0)
    weight = (generator.standard_normal((4, 3, 1, 1)) + 1e-4).astype(np.float32)
    # Weights that cancel on activations that are nearly equal: rounding decides every bit.
    decision = np.array([[1.0, -1.0, 1.0, -1.0]], np.float32)
    bias = np.zeros(1, np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["c"], name="stem/Conv"),
        helper.make_node("Transpose", ["c"], ["x"], name="stem/Transpose", perm=[0, 2, 3, 1]),
        helper.make_node(
            "SpatialMasker",
            ["x", "decision", "bias"],
            ["mask/a/spatial"],
            name="a/SpatialMasker",
            domain=DOMAIN,
            mask_height=8,
            mask_width=8,
        ),
        helper.make_node("ReduceMean", ["x"], ["logits"], name="head/mean", axes=[1, 2], keepdims=0),
    ]
    shape = (16, 3, 8, 8)
    outputs = {"logits": (16, 4), "mask/a/spatial": (16, 1, 8, 8), "x": (16, 8, 8, 4)}
    graph = helper.make_graph(
        nodes,
        "rounding",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in (("weight", weight), ("decision", decision), ("bias", bias))],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)],
        functions=[OPERATORS["SpatialMasker"].function(17)],
        ir_version=8,
    )
    weight[:] = weight[:1] + 1e-4 * generator.standard_normal(weight.shape)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "weight"))
    image = generator.standard_normal(shape).astype(np.float32)

    def run(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
        with OnnxRuntimeSession(graph, native="off") as session:
            return session.run({"input": image})

    exact = run(model)
    for half_maskers in (False, True):
        rounded = run(rounded_model(model, (), half_maskers=half_maskers))
        np.testing.assert_array_equal(rounded["x"], half(rounded["x"]))
        expected = half(np.einsum("nchw,oc->nhwo", half(image), half(weight[:, :, 0, 0])))
        assert np.abs(rounded["x"] - expected).max() <= 2**-10 * np.abs(expected).max()
        assert np.abs(rounded["x"] - exact["x"]).max() > 0
        # The head reads half, but computes in float.
        np.testing.assert_allclose(rounded["logits"], rounded["x"].mean((1, 2)), rtol=1e-5, atol=1e-6)
        if not half_maskers:
            bits = masker("SpatialMasker", rounded["x"], [decision, bias], {"mask_height": 8, "mask_width": 8})
            assert (bits != rounded["mask/a/spatial"]).mean() < 0.01
            assert 0.1 < (rounded["mask/a/spatial"] != exact["mask/a/spatial"]).mean() < 0.9
