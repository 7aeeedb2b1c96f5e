from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import dyndeploy
from dyndeploy import ExportSettings
from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.inspect import operator_attributes
from dyndeploy.graphs.memory import Footprint, MemoryPrediction, model_footprint, require_memory
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.ops import OPERATORS
from dyndeploy.targets.devices import load_device
from tests.bundles import tiny_models


def graph(nodes: list[onnx.NodeProto], outputs: list[tuple[str, tuple[int, ...]]]) -> onnx.ModelProto:
    def info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    weight = numpy_helper.from_array(np.zeros((8, 4, 1, 1), np.float32), "w")
    flat = numpy_helper.from_array(np.array([1, -1]), "flat")
    made = helper.make_graph(nodes, "g", [info("x", (1, 4, 10, 10))], [info(*each) for each in outputs], [weight, flat])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])


def node(op_type: str, inputs: list[str], output: str) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"n/{output}")


def test_tensors_live_until_they_are_read_last() -> None:
    """x has 400 numbers, what the convolutions make 800 each."""
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Relu", ["a"], "b"),  # In the place of a.
        node("Conv", ["x", "w"], "c"),
        node("Reshape", ["c", "flat"], "view"),
        node("Reshape", ["view", "flat"], "again"),
        node("Softmax", ["b"], "d"),
        node("Softmax", ["again"], "y"),
    ]
    need = model_footprint(graph(nodes, [("y", (1, 800))]))
    # Inputs and outputs last: 400 and 800. Between them: b and c, and d, which nobody reads, while it is made.
    assert need == Footprint(weights=4 * 32, activations=4 * (400 + 800 + 3 * 800), workspace=0, peak="n/d")


def test_a_map_that_is_read_again_keeps_its_place() -> None:
    nodes = [node("Conv", ["x", "w"], "a"), node("Relu", ["a"], "b"), node("Concat", ["a", "b"], "y")]
    assert model_footprint(graph(nodes, [("y", (1, 16, 10, 10))])).activations == 4 * (400 + 1600 + 2 * 800)
    half = model_footprint(graph(nodes, [("y", (1, 16, 10, 10))]), "fp16")
    # What goes into an engine and comes out of it is float.
    assert (half.activations, half.weights) == (4 * (400 + 1600) + 2 * (2 * 800), 2 * 32)


def test_what_only_becomes_an_output_is_in_its_place() -> None:
    nodes = [node("Conv", ["x", "w"], "a"), node("Sigmoid", ["a"], "b"), node("Relu", ["b"], "y")]
    assert model_footprint(graph(nodes, [("y", (1, 8, 10, 10))])).activations == 4 * (400 + 800)
    nodes = [node("Conv", ["x", "w"], "a"), node("Sigmoid", ["a"], "b"), node("Mul", ["a", "b"], "y")]
    assert model_footprint(graph(nodes, [("y", (1, 8, 10, 10))])).activations == 4 * (400 + 800 + 800)


def test_what_follows_from_weights_is_no_activation() -> None:
    nodes = [node("Neg", ["w"], "v"), node("Conv", ["x", "v"], "y")]
    need = model_footprint(graph(nodes, [("y", (1, 8, 10, 10))]))
    assert need == Footprint(4 * 32, 4 * 1200, 0, "n/y")


def test_an_open_size_is_an_error() -> None:
    model = graph([node("Conv", ["x", "w"], "a"), node("NonZero", ["a"], "y")], [("y", ())])
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT64, None))
    with pytest.raises(BundleError, match=r"'y' along axis 1 is not static.*memory is not known"):
        model_footprint(model)


def test_scratch_memory_is_what_the_plugins_ask_for() -> None:
    model = tiny_models("channel")[0]
    asked = []
    for made in model.graph.node:
        if made.op_type.startswith("ChannelBottleneck"):
            spec = OPERATORS[made.op_type]
            shapes = static_shapes(model)
            sizes = [shapes[name] for name in made.input]
            attributes = operator_attributes(made)
            n, h, w, _ = sizes[0]
            hidden = sizes[spec.input_index("w1")][0]
            pixels = n * h * w * hidden + math.prod(shapes[made.output[0]][:3]) * hidden
            asked.append(spec.scratch(sizes, attributes, 4))
            # Two hidden maps, and lists of channels.
            assert 4 * pixels <= asked[-1] < 4 * pixels + 4096
    assert model_footprint(model).workspace >= max(asked) > 0


def test_two_graphs_share_their_largest_scratch_memory_only() -> None:
    assert Footprint(1, 2, 3, "a") + Footprint(10, 20, 1, "b") == Footprint(11, 22, 3, "b")


def test_what_does_not_fit_is_refused_with_every_number() -> None:
    nano = load_device("nano")
    need = Footprint(150_000_000, 1_700_000_000, 10_000_000, "conv")
    with pytest.raises(
        UsageError,
        match=r"big does not fit nano: it needs 2512 MB predicted \(weights 150, activations 1700, scratch 10, CUDA "
        r"652\), of 2500 MB that a process can have there; the device has 4 GB",
    ):
        require_memory("big", nano, need)
    fits = require_memory("small", nano, Footprint(150_000_000, 1_600_000_000, 10_000_000, "conv"))
    assert (fits.total, fits.limit, fits.kind) == (2_412_000_000, 2_500_000_000, "predicted")
    assert MemoryPrediction.from_json(fits.to_json()) == fits and fits.to_json()["total"] == 2_412_000_000
    here = require_memory("big", load_device("cpu"), need)
    assert here.limit is None and here.fits and "that a process can have" not in here.line


def test_export_refuses_what_the_target_cannot_hold(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 1024, 1), nn.ReLU())
    images = torch.zeros(1, 3, 800, 800)
    with pytest.raises(UsageError, match=r"Sequential does not fit nano: .*activations 26\d\d.* of 2500 MB"):
        dyndeploy.export_model(network, tmp_path / "b", ExportSettings(target="nano"), example_inputs=images)
    assert not (tmp_path / "b").exists()
