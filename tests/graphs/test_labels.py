from __future__ import annotations

import numpy as np
import onnx
import pytest

from dyndeploy.graphs.labels import UNMAPPED, LabelledGraph
from dyndeploy.runtimes import NodeTime, OnnxRuntimeSession
from tests.bundles import MODES, SIZE, tiny_models


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bodies", [True, False])
def test_a_labelled_graph_computes_the_same(mode: str, bodies: bool) -> None:
    model, _, _ = tiny_models(mode)
    labelled = LabelledGraph(model, bodies=bodies)
    onnx.checker.check_model(labelled.model)
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    with (
        OnnxRuntimeSession(model, native="off") as plain,
        OnnxRuntimeSession(labelled.model, native="off") as marked,
    ):
        expected, got = plain.run({"input": x}), marked.run({"input": x})
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("mode", MODES)
def test_nearly_all_nodes_inside_bodies_find_their_block(mode: str) -> None:
    labelled = LabelledGraph(tiny_models(mode)[0], bodies=True)
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    with OnnxRuntimeSession(labelled.model, native="off", profile=True) as session:
        for _ in range(2):
            session.run({"input": x})
        nodes = session.node_times()
    unmapped = [node for node in nodes if labelled.group_times([node])[UNMAPPED] > 0]
    # Only layout changes that the runtime itself inserted.
    assert {node.op_type for node in unmapped} <= {"ReorderOutput", "ReorderInput", "Transpose"}
    times = labelled.group_times(nodes)
    assert list(times) == ["stem", "layer1.0", "layer2.0", "head", UNMAPPED]
    assert all(times[group] > 0 for group in ("stem", "layer1.0", "layer2.0", "head"))
    assert sum(times.values()) == pytest.approx(sum(node.fastest for node in nodes) / 1000)


def test_fused_and_renamed_nodes_keep_their_mark() -> None:
    labelled = LabelledGraph(tiny_models()[1], bodies=True)
    assert labelled.groups == ("stem", "layer1.0", "layer2.0", "head")
    nodes = [
        NodeTime("~1~conv2_nchwc", "Conv", 1500.0, 1000.0),
        NodeTime("fused ~2~layer2.0/conv1_token_3", "FusedGemm", 2000.0, 2000.0),
        NodeTime("_inline_~3~x", "Gemm", 700.0, 500.0),
        NodeTime("ReorderOutput", "ReorderOutput", 250.0, 250.0),
    ]
    assert labelled.group_times(nodes) == {
        "stem": 0.0,
        "layer1.0": 1.0,
        "layer2.0": 2.0,
        "head": 0.5,
        UNMAPPED: 0.25,
    }
