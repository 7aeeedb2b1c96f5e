"""What of a detector stays float under FP16, node by node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.graphs.kept_float import CURVES, DECISIONS, MOVES, PRODUCTS, SAMPLERS, STATISTICS
from dyndeploy.graphs.rounding import rounded_model
from dyndeploy.graphs.tensorrt import PrecisionPlan, float_nodes, tensorrt_model
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.runtimes.tensorrt_reference import check_types, evaluate

Shapes = dict[str, tuple[int, ...]]
TYPED = PrecisionPlan("fp16", typed=True)


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"heads/{output}", **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto], inputs: Shapes, outputs: Shapes, constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    def infos(shapes: Shapes) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    made = helper.make_graph(
        list(nodes),
        "part",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    own = sorted({each.op_type for each in nodes if each.domain})
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)],
        functions=[OPERATORS[name].function(17) for name in own],
        ir_version=8,
    )
    return onnx.shape_inference.infer_shapes(model)


def kept(model: onnx.ModelProto) -> set[str]:
    return {name.removeprefix("heads/") for name in float_nodes(model)}


def test_towers_are_half_up_to_the_host() -> None:
    """A RetinaNet's: products, activations and what only moves their results."""
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Relu", ["a"], "b"),
        node("Conv", ["b", "w"], "c"),
        node("Transpose", ["c"], "d", perm=[0, 2, 3, 1]),
        node("Reshape", ["d", "flat"], "logits"),
    ]
    constants = {"w": np.zeros((4, 4, 1, 1), np.float32), "flat": np.array([1, -1])}
    assert kept(graph(nodes, {"x": (1, 4, 8, 8)}, {"logits": (1, 256)}, constants)) == set()


def test_maps_are_summed_in_half() -> None:
    nodes = [
        node("Conv", ["x", "w"], "fine"),
        node("MaxPool", ["x"], "pooled", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["pooled", "w"], "coarse"),
        node("Resize", ["coarse", "", "scales"], "up", mode="nearest"),
        node("Add", ["fine", "up"], "sum"),
        node("Conv", ["sum", "w"], "p2"),
    ]
    constants = {"w": np.zeros((4, 4, 1, 1), np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    # What is pooled is the image itself, which comes as float.
    assert kept(graph(nodes, {"x": (1, 4, 8, 8)}, {"p2": (1, 4, 8, 8)}, constants)) == {"pooled"}


def test_a_normalisation_and_what_it_adds_stay_float() -> None:
    """A transformer's: x + attention, normalised, through one more product."""
    nodes = [
        node("MatMul", ["x", "w"], "q"),
        node("MatMul", ["q", "w"], "attention"),
        node("Add", ["x", "attention"], "residual"),
        node("ReduceMean", ["residual"], "mean", axes=[-1]),
        node("Sub", ["residual", "mean"], "centred"),
        node("Mul", ["centred", "centred"], "squares"),
        node("ReduceMean", ["squares"], "variance", axes=[-1]),
        node("Sqrt", ["variance"], "deviation"),
        node("Div", ["centred", "deviation"], "normed"),
        node("Mul", ["normed", "scale"], "scaled"),
        node("MatMul", ["scaled", "w"], "hidden"),
        node("Relu", ["hidden"], "active"),
        node("MatMul", ["active", "w"], "y"),
    ]
    constants = {"w": np.eye(4, dtype=np.float32), "scale": np.ones(4, np.float32)}
    model = graph(nodes, {"x": (1, 5, 4)}, {"y": (1, 5, 4)}, constants)
    assert kept(model) == {"residual", "mean", "centred", "squares", "variance", "deviation", "normed", "scaled"}
    # Squares of 300 would run over in half.
    x = np.random.default_rng(0).normal(0, 300, (1, 5, 4)).astype(np.float32)
    typed = tensorrt_model(model, TYPED)
    check_types(typed)
    exact, half = (evaluate(each, {"x": x})["y"] for each in (model, typed))
    np.testing.assert_allclose(half, exact, atol=4e-3)
    assert np.abs(half - exact).max() > 0


def test_a_box_is_refined_in_float_and_its_product_is_half() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "delta"),
        node("Reshape", ["delta", "same"], "rows"),
        node("Log", ["box"], "logit"),
        node("Add", ["rows", "logit"], "moved"),
        node("Sigmoid", ["moved"], "boxes"),
        node("Concat", ["boxes", "boxes"], "twice", axis=-1),
        node("Mul", ["twice", "two"], "placed"),
    ]
    constants = {"w": np.eye(4, dtype=np.float32), "same": np.array([1, 5, 4]), "two": np.float32([2])}
    inputs = {"x": (1, 5, 4), "box": (1, 5, 4)}
    model = graph(nodes, inputs, {"placed": (1, 5, 8)}, constants)
    # What is moved loses nothing in half; the product made it so.
    assert kept(model) == {"logit", "moved", "boxes", "twice", "placed"}


def test_what_decides_sees_what_was_not_rounded() -> None:
    """Mask2Former's attention: which pixels a query looks at."""
    nodes = [
        node("MatMul", ["q", "maps"], "logits"),
        node("Mul", ["logits", "scale"], "scaled"),
        node("Sigmoid", ["scaled"], "probability"),
        node("Less", ["probability", "half"], "hidden"),
        node("Where", ["hidden", "never", "logits"], "masked"),
        node("Softmax", ["masked"], "y", axis=-1),
    ]
    constants = {
        "scale": np.float32([0.5]),
        "half": np.float32([0.5]),
        # Beyond the range of half, and no error: it stays float.
        "never": np.float32([-3e38]),
    }
    model = graph(nodes, {"q": (1, 3, 4), "maps": (1, 4, 9)}, {"y": (1, 3, 9)}, constants)
    assert kept(model) == {"scaled", "probability", "hidden", "masked", "y"}
    check_types(tensorrt_model(model, TYPED))


def sampling() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Deformable attention whose places are computed from a product, and from a size."""
    name, levels = "MultiscaleDeformableAttention3", 3
    nodes = [
        node("MatMul", ["x", "w"], "offsets"),
        node("Reshape", ["offsets", "as_points"], "points"),
        node("Div", ["points", "size"], "relative"),
        node("Add", ["relative", "centre"], "locations"),
        node("MatMul", ["value", "w8"], "mixed"),
        node("Reshape", ["mixed", "as_cells"], "cells"),
        helper.make_node(
            name,
            ["cells", "locations", "weights"],
            ["sampled"],
            name="heads/sampled",
            domain=DOMAIN,
            sizes=[16, 16, 8, 8, 4, 4],
            plugin_version="1",
            plugin_namespace="",
        ),
        node("Reshape", ["sampled", "as_rows"], "rows"),
        node("MatMul", ["rows", "w8"], "y"),
    ]
    generator = np.random.default_rng(1)
    queries, cells = 5, 16 * 16 + 64 + 16
    constants = {
        "w": generator.normal(0, 0.5, (4, levels * 2)).astype(np.float32),
        "w8": generator.normal(0, 0.5, (8, 8)).astype(np.float32),
        "as_points": np.array([1, queries, 1, levels, 1, 2]),
        "as_cells": np.array([1, cells, 1, 8]),
        "as_rows": np.array([1, queries, 8]),
    }
    inputs = {
        "x": (1, queries, 4),
        "size": (1,),
        "centre": (1, queries, 1, levels, 1, 2),
        "value": (1, cells, 8),
        "weights": (1, queries, 1, levels, 1),
    }
    feeds = {key: generator.uniform(0.2, 0.8, shape).astype(np.float32) for key, shape in inputs.items()}
    feeds["size"] = np.float32([640.0])
    return graph(nodes, inputs, {"y": (1, queries, 8)}, constants), feeds


def test_places_where_maps_are_read_stay_float() -> None:
    model, feeds = sampling()
    assert kept(model) == {"relative", "locations"}
    typed = tensorrt_model(model, TYPED)
    # The plugin reads cells as half, places and weights as float: the evaluator asserts it.
    exact, half = (evaluate(each, feeds)["y"] for each in (tensorrt_model(model, PrecisionPlan("fp32", True)), typed))
    assert 0 < np.abs(half - exact).max() < 4e-3 * np.abs(exact).max()


def test_the_simulation_rounds_what_the_plan_makes_half() -> None:
    """It computes what the typed copy does, up to the order of sums."""
    model, feeds = sampling()
    typed = evaluate(tensorrt_model(model, TYPED), feeds)["y"]
    found = []
    for each in (model, rounded_model(model, (), half_maskers=False)):
        with OnnxRuntimeSession(each, native="off") as session:
            found.append(session.run(feeds)["y"])
    exact, rounded = found
    off, same = (float(np.abs(each - typed).max()) for each in (exact, rounded))
    # One bit of a rounding may fall the other way.
    assert same <= 2**-10 * np.abs(exact).max()
    assert np.abs(rounded - typed).mean() < 0.2 * np.abs(exact - typed).mean() and off > 0


def test_the_simulation_can_keep_fewer_bits_and_spare_nothing() -> None:
    model, feeds = sampling()
    found = {}
    for name, options in {"plan": {}, "coarse": {"bits": 9}, "all": {"exact_parts": False}}.items():
        rounded = rounded_model(model, (), half_maskers=False, **options)
        with OnnxRuntimeSession(rounded, native="off") as session:
            found[name] = session.run(feeds)["y"]
    with OnnxRuntimeSession(model, native="off") as session:
        off = {name: float(np.abs(value - session.run(feeds)["y"]).mean()) for name, value in found.items()}
    assert 2 < off["coarse"] / off["plan"] < 8, "two bits are a factor of four"
    # Places on maps of 16 cells lose little; on large ones they lose pixels.
    assert off["all"] > 1.05 * off["plan"]
    nine = found["coarse"].astype(np.float64)
    exponents = np.floor(np.log2(np.abs(nine)))
    scaled = nine / 2.0 ** (exponents - 8)
    np.testing.assert_array_equal(scaled, np.round(scaled))


def test_regions_of_boxes_are_rows_of_half() -> None:
    """The boxes of an R-CNN are no batch of images: its layers, which are most of the work, are no head of vectors."""
    nodes = [node("Gemm", ["x", "w"], "a"), node("Relu", ["a"], "b"), node("Gemm", ["b", "w"], "y")]
    model = graph(nodes, {"x": (100, 4)}, {"y": (100, 4)}, {"w": np.eye(4, dtype=np.float32)})
    assert kept(model) == set()


def test_a_classifier_keeps_its_own_rule() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="stem/a"),
        helper.make_node("Sigmoid", ["a"], ["b"], name="layer1.0/b"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], name="head/c"),
        helper.make_node("Flatten", ["c"], ["y"], name="head/y"),
    ]
    model = graph(nodes, {"x": (1, 4, 8, 8)}, {"y": (1, 4)}, {"w": np.zeros((4, 4, 1, 1), np.float32)})
    assert float_nodes(model) == {"head/c", "head/y"}


@pytest.mark.parametrize("kinds", [STATISTICS, CURVES, DECISIONS, SAMPLERS])
def test_kinds_are_operators_that_onnx_has_and_no_kind_is_two(kinds: frozenset[str]) -> None:
    assert all(onnx.defs.has(name) for name in kinds)
    assert not kinds & (PRODUCTS | MOVES)
