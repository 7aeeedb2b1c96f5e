from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import dyndeploy
from dyndeploy.errors import InputError
from dyndeploy.export import build_graph
from dyndeploy.ops.gates import BLOCK
from dyndeploy.prediction import GraphWalker, NodeGraph, Rates, predict, read_nodes
from dyndeploy.prediction.kernels import REORDER
from dyndeploy.targets import load_target
from tests.bundles import MODES, tiny_models


@pytest.mark.parametrize("mode", MODES)
def test_a_record_is_priced_as_its_graph(mode: str) -> None:
    model, static, _ = tiny_models(mode, batch=2)
    for graph in (model, static):
        read = NodeGraph.from_json(json.loads(json.dumps(read_nodes(graph).to_json())))
        for precision in ("fp32", "fp16"):
            for runtime in ("onnxruntime", "tensorrt"):
                options = {"precision": precision, "runtime": runtime}
                rates = {"layer1.0": Rates(0.25, 0.5)}
                assert GraphWalker(read, **options).graph(rates) == GraphWalker(graph, **options).graph(rates)


@pytest.mark.parametrize("damage", [{"nodes": 3}, {"shapes": None}, {"batch": 0}, {"nodes": [{"op_type": "Relu"}]}])
def test_damaged_records_are_refused(damage: dict[str, object]) -> None:
    value = read_nodes(tiny_models()[0]).to_json()
    with pytest.raises(InputError, match="malformed"):
        NodeGraph.from_json({**value, **damage})
    with pytest.raises(InputError, match="malformed"):
        NodeGraph.from_json([])


def branching(large: int, small: int) -> onnx.ModelProto:
    """A foreign file: a 1x1 convolution in each branch of an ``If``, of ``large`` and ``small`` kernel sides."""

    def branch(name: str, side: int) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.zeros((8, 8, side, side), np.float32), f"{name}.w")
        node = helper.make_node("Conv", ["h", f"{name}.w"], [f"{name}.y"], name=f"{name}/Conv", pads=[side // 2] * 4)
        value = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, (1, 8, 6, 6))
        return helper.make_graph([node], name, [], [value], [weight])

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="stem/Conv"),
        helper.make_node(
            "If", ["flag"], ["y"], name="decide", then_branch=branch("then", large), else_branch=branch("else", small)
        ),
        helper.make_node("Relu", ["y"], ["z"], name="head/Relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, 6, 6)),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, (1,)),
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 8, 6, 6))],
        [numpy_helper.from_array(np.zeros((8, 8, 1, 1), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("sides", [(3, 1), (1, 3)])
def test_the_larger_branch_of_a_foreign_file_stands_for_both(sides: tuple[int, int]) -> None:
    read = read_nodes(branching(*sides))
    walker = GraphWalker(read)
    assert read.branches == ("decide",) == walker.dynamic_blocks
    kernels = [kernel for kernel in walker.graph(0.25).kernels if kernel.kind != REORDER]
    assert [kernel.macs for kernel in kernels][:2] == [36 * 64, 36 * 64 * 9]
    assert [kernel.share for kernel in kernels][:2] == [1.0, 0.25]
    assert {kernel.share for kernel in walker.graph(0.25, branches=False).kernels} == {1.0}


def test_branches_count_at_their_rate_where_the_platform_takes_them() -> None:
    model = branching(3, 1)
    whole, half, none = (
        predict(model, "tx2", runtime="onnxruntime", rate=rate).latency_ms for rate in (None, 0.5, 0.0)
    )
    assert none < half < whole and half == pytest.approx((whole + none) / 2)
    refused = predict(model, "tx2", runtime="tensorrt", rate=0.5)
    assert refused.latency_ms == predict(model, "tx2", runtime="tensorrt").latency_ms
    assert len(refused.notes) == 1 and refused.notes[0].startswith("decide: always computed")
    assert predict(model, "tx2", runtime="onnxruntime").notes == ()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_skipped_block_counts_at_the_rate_of_its_gate(batch: int) -> None:
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 1))
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), dyndeploy.skip(body), torch.nn.Flatten())
    model, masks = build_graph(network.eval(), load_target("cpu"), batch, (32, 32), static=False)
    (block,) = (mask.block for mask in masks)
    walker = GraphWalker(model)
    assert walker.gates[block] == (BLOCK,)
    whole, some = (walker.graph(rate).kernels for rate in (1.0, 0.25))
    convolutions = [kernel for kernel in some if kernel.kind == "conv" and kernel.share == 0.25]
    assert [kernel.macs for kernel in convolutions] == [batch * 1024 * 64 * 9, batch * 1024 * 64]
    assert all(kernel.share == 1.0 for kernel in whole)
    taken = [predict(model, "tx2", runtime="onnxruntime", rate=rate).latency_ms for rate in (0.0, 0.5, 1.0)]
    assert taken[0] < taken[1] < taken[2] and taken[1] == pytest.approx((taken[0] + taken[2]) / 2)
    board = predict(model, "nano", rate=0.0)
    assert board.latency_ms == predict(model, "nano", rate=1.0).latency_ms
    assert board.notes[0].startswith(f"{block}: always computed")
