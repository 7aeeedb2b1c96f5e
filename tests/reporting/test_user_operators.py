"""An operator that a user registers, with a kind of gate of its own: priced and compared without any other edit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.measure import Profile
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.base import OperatorSpec, Port, Role, Work
from dyndeploy.ops.gates import GATE_KINDS, GateKind
from dyndeploy.ops.registry import register_operator
from dyndeploy.prediction import GraphWalker, Rates, predict, read_nodes
from dyndeploy.reporting import compare_profile, predict_profile

ROWS = GateKind("toyrow", ("N", "R"), "row of a matrix")
BATCH, COUNT, WIDTH = 2, 64, 256


def _work(shapes: Any, attributes: Any, counts: Any, element: float) -> Work:
    batch, rows, width = shapes[0]
    size = element * batch * rows * width
    return Work(counts["rows"] * width * width, size, size, element * math.prod(shapes[2]))


TOY = OperatorSpec(
    name="ToyRows",
    version=1,
    kind="toy_rows",
    summary="A product of the rows that are kept.",
    inputs=(
        Port("x", Role.ACTIVATION, ("N", "R", "C")),
        Port("keep", Role.MASK, ("N", "R")),
        Port("w", Role.WEIGHT, ("C", "C")),
    ),
    outputs=(Port("y", Role.ACTIVATION, ("N", "R", "C")), Port("norms", Role.ACTIVATION, ("N", "R"))),
    attributes=(),
    gates={"keep": ROWS},
    reference=lambda x, keep, w: (x @ w * keep[..., None], x.norm(dim=-1)),
    infer_shape=lambda shapes, attributes: (shapes[0], shapes[0][:2]),
    body=lambda b, inputs: (inputs["x"], b.op("ReduceL2", inputs["x"], axes=[-1], keepdims=0)),
    counts=lambda shapes, attributes, masks: {"rows": masks["keep"].sum(1)},
    expected=lambda shapes, attributes, rates: {"rows": shapes[0][1] * rates.get("toyrow", 1.0)},
    work=_work,
)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_operator(TOY)
    yield
    OPERATORS.remove(TOY.name)
    GATE_KINDS.remove(ROWS.name)


def toy_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="stem/Relu"),
        helper.make_node("ToyRows", ["h", "mask/rows.0/toyrow", "w"], ["y", "norms"], "rows.0/ToyRows", domain=DOMAIN),
        helper.make_node("MatMul", ["y", "v"], ["z"], name="head/MatMul"),
        helper.make_node("Softmax", ["norms"], ["p"], name="head/Softmax"),
    ]
    tensor = helper.make_tensor_value_info
    inputs = [("x", (BATCH, COUNT, WIDTH)), ("mask/rows.0/toyrow", (BATCH, COUNT))]
    graph = helper.make_graph(
        nodes,
        "toy",
        [tensor(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [tensor("z", TensorProto.FLOAT, (BATCH, COUNT, 10)), tensor("p", TensorProto.FLOAT, (BATCH, COUNT))],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name)
         for name, shape in (("w", (WIDTH, WIDTH)), ("v", (WIDTH, 10)))],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)])


def test_it_is_priced_by_its_own_work() -> None:
    walker = GraphWalker(toy_model())
    assert walker.gates == {"rows.0": (ROWS,)}
    graph = walker.graph(Rates(toyrow=0.25))
    assert not graph.unknown
    kernel = graph.kernels[1]
    assert (kernel.kind, kernel.block) == ("toy_rows", "rows.0")
    assert (kernel.macs, kernel.dense_macs) == (BATCH * COUNT * WIDTH**2 / 4, BATCH * COUNT * WIDTH**2)
    assert (kernel.read_bytes, kernel.weight_bytes) == (4 * BATCH * COUNT * WIDTH, 4 * WIDTH**2)
    assert [k.kind for k in graph.kernels] == ["elementwise", "toy_rows", "gemm", "softmax"]


@pytest.mark.parametrize("device", ["nano", "h100"])
def test_it_is_predicted_with_a_wide_interval(device: str) -> None:
    low, high = (predict(toy_model(), device, rate=rate) for rate in (0.1, 0.9))
    assert low.latency_ms < high.latency_ms and low.coverage.by_time == 1.0 and not low.coverage.unknown
    block = next(block for block in high.blocks if block.name == "rows.0")
    assert (block.mode, block.rates) == ("toyrow", {"toyrow": 0.9})
    assert block.interval_ms is not None and block.interval_ms[1] > 3 * block.latency_ms


def test_a_profile_of_it_is_compared(profile: Profile) -> None:
    record = read_nodes(toy_model()).to_json()
    masks = [{"name": "mask/rows.0/toyrow", "block": "rows.0", "kind": "toyrow"}]

    def of_toy(result: Any) -> Any:
        return replace(result, mask_rates={"mask/rows.0/toyrow": result.rate})

    measured = replace(
        profile,
        batch=BATCH,
        bundle={**profile.bundle, "masks": masks},
        rates=tuple(map(of_toy, profile.rates)),
        data=of_toy(profile.data),
        graph={"dynamic": record, "static": record},
    )
    measured = Profile.from_json(json.loads(json.dumps(measured.to_json())))
    sweep = predict_profile(measured, "nano")
    for predicted, result in zip(sweep.rates, measured.rates, strict=True):
        assert predicted == predict(toy_model(), "nano", rate=result.rate)
    comparison = compare_profile(measured, sweep)
    assert comparison.coverage.unknown == () and len(comparison.rates) == 4
