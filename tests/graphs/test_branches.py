"""Blocks that are skipped per image: the branch computes what PyTorch computes, and is left out where it is skipped."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.bundle import MaskInfo
from dyndeploy.errors import BundleError, ExportError, UsageError
from dyndeploy.graphs.branches import flattened, insert_branches, is_skip
from dyndeploy.graphs.forced import PREFIX, forced_feeds, overlay_forced_masks, replace_masks
from dyndeploy.graphs.inspect import CALL, CONDITIONAL, all_nodes, foreign_operators
from dyndeploy.graphs.labels import LabelledGraph
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.graphs.passes.finish import strip_metadata
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.graphs.skipping import captured, exported, make_net

CHANNELS, SIDE = 8, 8
PLAIN = SIDE * SIDE * CHANNELS * CHANNELS * 9 + CHANNELS * CHANNELS
"""MACs of a plain body: its convolution and its squeeze."""
GATE = CHANNELS
MASKER = CHANNELS * 16


def images(batch: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, SIDE, SIDE, generator=generator) + 4 * torch.randn(batch, 3, 1, 1, generator=generator)


@cache
def graph(batch: int, lazy: bool) -> bytes:
    return exported(make_net(), images(batch, 0), lazy=lazy).SerializeToString()


def model_of(batch: int, lazy: bool = True) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(graph(batch, lazy))


def infos(model: onnx.ModelProto) -> list[MaskInfo]:
    result = []
    for value in model.graph.output[1:]:
        _, block, kind = value.name.split("/")
        shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        result.append(MaskInfo(value.name, block, kind, shape))
    return result


def test_weights_stand_beside_the_nodes_that_read_them() -> None:
    model = model_of(1)
    outside = {item.name for item in model.graph.initializer}
    branches = [
        next(a.g for a in node.attribute if a.name == "then_branch") for node in model.graph.node if is_skip(node)
    ]
    assert branches
    for branch in branches:
        inside = {item.name for item in branch.initializer}
        weights = {node.input[1] for node in branch.node if node.op_type == "Conv"}
        assert weights and weights <= inside and not weights & outside
    everything = {item.name for item in flattened(model).model.graph.initializer}
    assert everything >= outside | {item.name for branch in branches for item in branch.initializer}


@pytest.mark.parametrize("native", ["off", "auto"])
@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_and_masks_are_those_of_pytorch(batch: int, lazy: bool, native: str) -> None:
    net, model = make_net(), model_of(batch, lazy)
    assert any(map(is_skip, all_nodes(model.graph))) == lazy
    decisions = set()
    with OnnxRuntimeSession(model, native=native) as session:
        for seed in range(25):
            x = images(batch, seed)
            expected, masks = net.run(x)
            got = session.run({"input": x.numpy()})
            np.testing.assert_allclose(got["y"], expected.numpy(), rtol=1e-4, atol=1e-5)
            assert set(got) == {"y", *masks}
            for name, mask in masks.items():
                np.testing.assert_array_equal(got[name], mask.numpy())
            decisions |= {
                tuple(row) for row in torch.cat([masks["mask/b/block"], masks["mask/b.inner/block"]], 1).tolist()
            }
    assert decisions == {(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)}


def test_a_skipped_block_does_not_run(tmp_path: Path) -> None:
    labelled = LabelledGraph(model_of(1), bodies=True)
    onnx.checker.check_model(labelled.model)
    assert labelled.groups == ("stem", "a", "b", "b.inner", "head")
    ran: dict[tuple[float, ...], int] = {}
    for seed in range(25):
        x = images(1, seed)
        decided = tuple(float(mask) for name, mask in make_net().run(x)[1].items() if name.endswith("block"))
        if decided in ran:
            continue
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / f"profile{seed}")
        session = onnxruntime.InferenceSession(labelled.model.SerializeToString(), options)
        session.run(None, {"input": x.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
        kernels = [event for event in events if event["name"].endswith("_kernel_time")]
        ran[decided] = sum("Conv" in event["args"]["op_name"] for event in kernels)
    assert len(ran) > 2
    for decided, convolutions in ran.items():
        # The stem, four convolutions in a, a bottleneck with a projection, and one in each of b and b.inner.
        assert convolutions == 1 + np.dot((4, 1, 1), decided), ran


def test_nodes_and_names() -> None:
    model = model_of(3)
    skips = {node.name for node in all_nodes(model.graph) if is_skip(node)}
    assert skips == {"a/Skip", "b/Skip", "b.inner/Skip"}
    assert foreign_operators(model, OPERATORS, None) == []
    assert "ScatterND" in foreign_operators(model, OPERATORS, {"Conv"})
    assert {function.name for function in model.functions} == {"SpatialMasker", "SpatialBottleneck"}
    for node in all_nodes(model.graph):
        node.doc_string = "x"
    strip_metadata(model, None)  # type: ignore[arg-type]
    assert not any(node.doc_string for node in all_nodes(model.graph))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_flattened_graph_has_static_shapes_and_names_of_the_manifest(batch: int) -> None:
    model = model_of(batch)
    flat = flattened(model)
    assert not any(map(is_skip, flat.model.graph.node))
    onnx.checker.check_model(flat.model)
    shapes = static_shapes(model)
    made = {name for node in flat.model.graph.node for name in node.output}
    assert all(-1 not in shapes[name] for name in made)
    assert shapes["mask/b.inner.deep/spatial"] == (batch, 1, 4, 4)
    operators = {node.name: node for node in flat.model.graph.node if node.domain}
    assert operators["b.inner/SpatialBottleneck"].input[1] == "mask/b.inner.deep/spatial"
    assert flat.masks["b.inner/SpatialBottleneck"] == ("mask/b/block", "mask/b.inner/block")
    assert flat.conditions["b.inner/SpatialMasker"] == "mask/b.inner/block"
    assert flat.conditions["b.inner/gate"] == "mask/b/block"
    assert "a/gate" not in flat.conditions
    twin = model_of(batch, lazy=False)
    assert flattened(twin).model is twin


def macs_by_hand(masks: dict[str, np.ndarray]) -> np.ndarray:
    def bottleneck(name: str) -> np.ndarray:
        hidden, rows = CHANNELS // 2, []
        for mask in masks[name]:
            active = np.kron(mask[0], np.ones((2, 2)))
            padded = np.pad(active, 1)
            near = sum(padded[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)) > 0
            rows.append(near.sum() * CHANNELS * hidden + active.sum() * (9 * hidden * hidden + hidden * CHANNELS))
        return MASKER + np.array(rows)

    a, b, inner = (masks[f"mask/{name}/block"][:, 0] for name in ("a", "b", "b.inner"))
    stem, head = SIDE * SIDE * 27 * CHANNELS, 5 * CHANNELS
    within = PLAIN + bottleneck("mask/b.inner.deep/spatial")
    return stem + head + 2 * GATE + a * PLAIN + b * (PLAIN + GATE + bottleneck("mask/b.last/spatial") + inner * within)


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_by_hand(batch: int) -> None:
    net, model = make_net(), model_of(batch)
    counter, dense = MacCounter(model), MacCounter(model_of(batch, lazy=False))
    totals = set()
    for seed in range(10):
        masks = {name: mask.numpy() for name, mask in net.run(images(batch, seed))[1].items()}
        count = counter.count(masks)
        np.testing.assert_allclose(count.per_sample, macs_by_hand(masks))
        assert (dense.count(masks).per_sample >= count.per_sample).all()
        totals |= set(count.per_sample.tolist())
    assert len(totals) > 2
    with pytest.raises(UsageError, match="The mask 'mask/b/block' of node 'b/"):
        counter.count({name: mask for name, mask in masks.items() if name != "mask/b/block"})


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_masks_of_blocks_and_inside_them_can_be_forced(batch: int, lazy: bool) -> None:
    model = model_of(batch, lazy)
    masks = infos(model)
    x = images(batch, 3).numpy()
    before = model.SerializeToString(deterministic=True)
    generator = np.random.default_rng(0)
    with (
        OnnxRuntimeSession(model, native="off") as plain,
        OnnxRuntimeSession(overlay_forced_masks(model, masks), native="off") as overlay,
        OnnxRuntimeSession(replace_masks(model, masks), native="off") as replaced,
    ):
        own = plain.run({"input": x})
        untouched = overlay.run({"input": x, **forced_feeds(None, masks)})
        for name, value in own.items():
            np.testing.assert_array_equal(untouched[name], value)
        # Forcing what was decided anyway changes nothing.
        same = overlay.run({"input": x, **forced_feeds({m.name: own[m.name] for m in masks}, masks)})
        np.testing.assert_allclose(same["y"], own["y"], rtol=1e-5, atol=1e-6)
        results = []
        for _ in range(6):
            drawn = {m.name: generator.integers(0, 2, m.shape).astype(np.float32) for m in masks}
            feeds = {PREFIX + name: value for name, value in drawn.items()}
            got = replaced.run({"input": x, **feeds})
            again = overlay.run({"input": x, **forced_feeds(drawn, masks)})
            np.testing.assert_allclose(got["y"], again["y"], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(got["y"], forced_by_hand(batch, x, drawn), rtol=1e-4, atol=1e-4)
            results.append(got["y"])
        assert len({result.tobytes() for result in results}) > 1
    assert model.SerializeToString(deterministic=True) == before
    stranger = MaskInfo("mask/nowhere", "b", "block", (batch, 1))
    with pytest.raises(BundleError, match="does not use the masks mask/nowhere"):
        replace_masks(model, [*masks, stranger])
    with pytest.raises(BundleError, match="mask/nowhere"):
        overlay_forced_masks(model, [*masks, stranger])


def forced_by_hand(batch: int, x: np.ndarray, drawn: dict[str, np.ndarray]) -> np.ndarray:
    """PyTorch's answer with masks given: gates and maskers are replaced by functions that return them."""
    net = make_net()
    given = {name: torch.from_numpy(value) for name, value in drawn.items()}
    skip_outputs = {name: (given[f"mask/{name}/block"] * 2 - 1) for name in net.skips}
    for name, skip in net.skips.items():
        skip.gate.register_forward_hook(lambda module, inputs, output, name=name: skip_outputs[name])
    from dyndeploy.ops import spatial_masker

    waiting = [given["mask/b.inner.deep/spatial"], given["mask/b.last/spatial"]]
    original = OPERATORS["SpatialMasker"].reference
    object.__setattr__(OPERATORS["SpatialMasker"], "reference", lambda *args, **kwargs: waiting.pop(0))
    try:
        assert spatial_masker.NAME == "SpatialMasker"
        return net.run(torch.from_numpy(x))[0].numpy()
    finally:
        object.__setattr__(OPERATORS["SpatialMasker"], "reference", original)


def test_a_dense_graph_has_a_tensorrt_copy_and_a_lazy_one_too() -> None:
    for lazy in (True, False):
        copy = tensorrt_model(model_of(1, lazy), PrecisionPlan("fp32", typed=False))
        assert not copy.functions
        names = {item.name for item in copy.graph.initializer}
        assert {"b.last" in name or "b/SpatialBottleneck/w1" in name for name in names} == {True, False}


# ---------------------------------------------------------------- by hand


def by_hand(
    body_nodes: list[onnx.NodeProto], batch: int, **weights: np.ndarray
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A network that is one placeholder with its mask as input, and its body from ``input`` to ``out``."""

    def model(
        nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, ...]], output: str, **constants: np.ndarray
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, (batch, 4))],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    call = helper.make_node(CALL, ["x", "mask"], ["y"], name="block/Call", domain=CONDITIONAL, block="block")
    network = model([call], {"x": (batch, 4), "mask": (batch, 1)}, "y")
    network.opset_import.append(helper.make_opsetid(CONDITIONAL, 1))
    return network, model(body_nodes, {"input": (batch, 4)}, "out", **weights)


def test_only_the_images_that_compute_are_computed() -> None:
    # The body fails on a negative index that only a skipped image would have.
    nodes = [
        helper.make_node("Cast", ["input"], ["whole"], name="block/Cast", to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "whole"], ["found"], name="block/Gather"),
        helper.make_node("Add", ["found", "input"], ["out"], name="block/Add"),
    ]
    network, body = by_hand(nodes, 3, table=np.arange(10, dtype=np.float32) * 100)
    insert_branches(network, {"block": body}, lazy=True)
    x = np.full((3, 4), 2, np.float32)
    x[1] = -1000
    with OnnxRuntimeSession(network, native="off") as session:
        mask = np.array([[1], [0], [1]], np.float32)
        assert session.run({"x": x, "mask": mask})["y"].tolist() == [[202] * 4, [-1000] * 4, [202] * 4]
        assert session.run({"x": x, "mask": mask * 0})["y"].tolist() == x.tolist()
        with pytest.raises(Exception, match="Gather"):
            session.run({"x": x, "mask": mask * 0 + 1})


def test_a_body_that_returns_its_input_and_a_body_of_a_constant() -> None:
    network, body = by_hand([helper.make_node("Relu", ["input"], ["unused"], name="block/Relu")], 2)
    body.graph.output[0].name = "input"
    insert_branches(network, {"block": body}, lazy=True)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    with OnnxRuntimeSession(network, native="off") as session:
        np.testing.assert_array_equal(session.run({"x": x, "mask": np.ones((2, 1), np.float32)})["y"], x)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("ReduceMean", ["input"], "m", {"axes": [0]}), ("Add", ["input", "m"], "out", {})], "block/0 gives shape"),
        ([("Add", ["input", "each"], "out", {})], "for 1"),
        ([("Reshape", ["input", "mixed"], "m", {}), ("Reshape", ["m", "back"], "out", {})], "block/0"),
    ],
)
def test_bodies_that_need_the_whole_batch_are_refused(
    nodes: list[tuple[str, list[str], str, dict[str, list[int]]]], message: str
) -> None:
    made = [
        helper.make_node(kind, inputs, [output], name=f"block/{index}", **attributes)
        for index, (kind, inputs, output, attributes) in enumerate(nodes)
    ]
    weights = {
        "each": np.ones((3, 4), np.float32),
        "mixed": np.array([2, 6]),
        "back": np.array([3, 4]),
    }
    network, body = by_hand(made, 3, **weights)
    with pytest.raises(ExportError, match=message) as error:
        insert_branches(network, {"block": body}, lazy=True)
    assert "Export with batch 1" in str(error.value)
    network, body = by_hand(made, 3, **weights)
    insert_branches(network, {"block": body}, lazy=False)


def test_placeholders_without_a_fitting_body_are_refused() -> None:
    network, body = by_hand([helper.make_node("Relu", ["input"], ["out"], name="block/Relu")], 1)
    with pytest.raises(ExportError, match="there is no body for block 'block'"):
        insert_branches(network, {}, lazy=True)
    body.opset_import[0].version = 13
    with pytest.raises(ExportError, match="opset 13, 1 inputs and 1 outputs; expected 17"):
        insert_branches(network, {"block": body}, lazy=True)


def test_of_a_strangers_branches_the_larger_counts() -> None:
    def branch(name: str, *sizes: int) -> onnx.GraphProto:
        nodes, last = [], "x"
        for index, size in enumerate(sizes):
            nodes.append(helper.make_node("MatMul", [last, f"w{size}"], [f"{name}{index}"], name=f"{name}/{index}"))
            last = f"{name}{index}"
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(last, TensorProto.FLOAT, (1, 8))])

    nodes = [
        helper.make_node("If", ["c"], ["y"], name="s/If", then_branch=branch("t", 4, 8), else_branch=branch("e", 8))
    ]
    weights = {"w4": np.ones((4, 4), np.float32), "w8": np.ones((4, 8), np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4)),
            helper.make_tensor_value_info("c", TensorProto.BOOL, ()),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert MacCounter(model).count().per_sample.tolist() == [16 + 32]
    assert flattened(model).model is model


def test_bodies_are_not_changed() -> None:
    model, bodies = captured(make_net(), images(3, 0))
    before = {name: body.SerializeToString() for name, body in bodies.items()}
    insert_branches(model, bodies, lazy=True)
    assert {name: body.SerializeToString() for name, body in bodies.items()} == before
