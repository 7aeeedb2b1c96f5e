"""The benchmark of vision transformers: its masks, its limits and the fused form of the static twin."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.bundle.manifest import MaskInfo
from dyndeploy.runtimes import OnnxRuntimeSession


@pytest.fixture
def vit(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "cpu"))
    return importlib.import_module("vit")


def attention_graph(rng: np.random.Generator) -> onnx.ModelProto:
    """One attention as the networks are exported: 3 heads of 4."""
    shape = {"heads": np.array([0, 0, 3, 4], np.int64), "flat": np.array([0, 0, 12], np.int64)}
    constants = {**shape, "scale": np.float32(0.3)}
    nodes = []
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        constants[f"w_{part}"] = rng.standard_normal((12, 12)).astype(np.float32)
        constants[f"b_{part}"] = rng.standard_normal(12).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", ["x", f"w_{part}"], [f"{part}1"]),
            helper.make_node("Add", [f"{part}1", f"b_{part}"], [f"{part}2"]),
            helper.make_node("Reshape", [f"{part}2", "heads"], [f"{part}3"]),
            helper.make_node("Transpose", [f"{part}3"], [part], perm=order),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "flat"], ["y"]),
    ]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "attention", [tensor("x", TensorProto.FLOAT, (2, 7, 12))], [tensor("y", TensorProto.FLOAT, (2, 7, 12))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_fused_attention_is_the_same(vit: Any) -> None:
    rng = np.random.default_rng(0)
    model = attention_graph(rng)
    x = rng.standard_normal((2, 7, 12)).astype(np.float32)
    results = []
    fused = vit.fused_attention(onnx.ModelProto.FromString(model.SerializeToString()))
    for form in (model, fused):
        with OnnxRuntimeSession(form, native="off") as session:
            results.append(session.run({"x": x})["y"])
    assert [node.op_type for node in fused.graph.node].count("MultiHeadAttention") == 1
    assert not {"Softmax", "Transpose"} & {node.op_type for node in fused.graph.node}
    np.testing.assert_allclose(results[0], results[1], atol=2e-6)


def test_masks_by_kind_and_by_image(vit: Any) -> None:
    masks = [
        MaskInfo(f"mask/blocks.{block}/{kind}", f"blocks.{block}", kind, (4, size))
        for block in range(2)
        for kind, size in (("token", 100), ("head", 10))
    ]
    drawn = vit._masks(masks, {"token": (0.4, 1.0)}, seed=0)
    assert drawn["mask/blocks.1/token"].sum(1).tolist() == [40, 60, 80, 100]
    assert drawn["mask/blocks.0/head"].sum(1).tolist() == [10] * 4
    assert vit._masks(masks, {"head": 0.7}, seed=0)["mask/blocks.0/head"].sum(1).tolist() == [7] * 4


def test_limits_and_page(vit: Any) -> None:
    row = {
        "network": "ada_deit_small", "batch": 1, "threads": 1, "contestant": "best", "case": "head 0.7", "share": 0.96,
        "instruction_set": "avx512", "median_ms": 2.0, "static_ms": 3.0, "static_form": "as exported", "speedup": 1.5,
        "ideal_speedup": 1.25, "spread": [1.4, 1.6], "load": 0.5,
    }  # fmt: skip
    assert vit.least_of(row) == 0.97
    assert vit.least_of({**row, "threads": 2}) == pytest.approx(0.93)
    assert vit.least_of({**row, "contestant": "avx2"}) is None
    assert vit.least_of({**row, "batch": 8}) is None and vit.least_of({**row, "batch": 8, "case": "token 0.7"}) == 0.95
    machine = {"cpu": "a CPU", "date": "today"}
    assert "| 0.97 | **missed** |" in vit.page({"machine": machine, "rows": [row]})
    assert "| 0.97 | met |" in vit.page({"machine": machine, "rows": [{**row, "share": 0.97}]})
