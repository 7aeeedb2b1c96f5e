from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.errors import UsageError
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.graphs.inspect import group_of, is_dynamic, operator_attributes
from dyndeploy.ops import OPERATORS, Element
from dyndeploy.quantization import (
    CalibrationTable,
    TensorScale,
    calibrate,
    quantize_model,
    quantize_twin,
    runtime_integers,
    standard_layers,
    weights_sha256,
)
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.bundles import MODES, tiny_bundle, tiny_models
from tests.quantized import samples, table_of, with_scales


def exposed(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    have = {value.name for value in (*model.graph.input, *model.graph.output)}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - have))
    return copy


def run(model: onnx.ModelProto, feeds: Any, *names: str) -> dict[str, np.ndarray]:
    with OnnxRuntimeSession(exposed(model, set(names)), native="off") as session:
        return session.run({info.name: feeds[info.name] for info in session.inputs})


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.fixture(scope="module")
def spatial(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, CalibrationTable]:
    bundle = tiny_bundle(tmp_path_factory.mktemp("graph") / "b")
    return bundle.load_model(), table_of(bundle)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_hand_each_other_bytes(mode: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", mode=mode, batch=2)
    model, table = bundle.load_model(), table_of(bundle)
    made = quantize_model(model, table)
    onnx.checker.check_model(made)
    stem, *dynamic = (node for node in made.graph.node if is_dynamic(node))
    assert stem.op_type == "QuantizedImageConvolution" and stem.input[0] == "input"
    assert [f"Quantized{node.op_type}" for node in model.graph.node if is_dynamic(node)] == [
        node.op_type for node in dynamic
    ]
    assert [group_of(node.name) for node in dynamic] == [info.block for info in bundle.manifest.operators]
    # Nothing stands between two blocks; the stem makes bytes, and the last block's output has the only border.
    assert kinds(made)["QuantizeLinear"] == 0 and kinds(made)["DequantizeLinear"] == 1
    assert list(runtime_integers(made)) == []
    bytes_read = {node.input[0] for node in dynamic}
    types = {value.name: value.type.tensor_type.elem_type for value in made.graph.output}
    assert all(name.endswith("/uint8") for name in bytes_read) and set(types.values()) == {TensorProto.FLOAT}
    assert [v.name for v in made.graph.output] == [v.name for v in model.graph.output]

    masks = bundle.manifest.masks
    (feeds, *_) = samples(model)
    own = run(model, feeds)
    forced = {**feeds, **forced_feeds({mask.name: own[mask.name] for mask in masks}, masks)}
    overlay = overlay_forced_masks(made, masks)
    constants = {item.name: numpy_helper.to_array(item) for item in overlay.graph.initializer}
    nodes = [node for node in overlay.graph.node if is_dynamic(node)]
    found = run(
        overlay, forced, *(name for node in nodes for name in (*node.input, *node.output) if name not in constants)
    )
    # Every operator computes what its reference does, to the bit, and the whole comes close to FP32.
    known = {**feeds, **constants, **found}
    for node in nodes:
        inputs = [torch.from_numpy(np.array(known[name])) for name in node.input]
        expected = OPERATORS[node.op_type].reference(*inputs, **operator_attributes(node))
        assert np.array_equal(found[node.output[0]], expected.numpy()), node.name
    error = np.abs(found["logits"] - own["logits"]).max() / np.abs(own["logits"]).max()
    assert 0 < error < 0.1


@pytest.fixture(scope="module")
def between(spatial: tuple[onnx.ModelProto, CalibrationTable]) -> tuple[onnx.ModelProto, CalibrationTable]:
    """With one scale for all channels of a standard convolution, which no operator of ours takes."""
    return spatial[0], replace(spatial[1], per_channel=False)


def test_the_stem_becomes_one_operator(spatial: tuple[onnx.ModelProto, CalibrationTable]) -> None:
    model, table = spatial
    made = quantize_model(model, table)
    (stem,) = (node for node in made.graph.node if node.op_type == "QuantizedImageConvolution")
    attributes = operator_attributes(stem)
    assert group_of(stem.name) == "stem" and stem.output[0].endswith("/uint8")
    assert np.float32(attributes["scale"]) == np.float32(table.scale("stem/conv1:x"))
    assert attributes["zero_point"] == table.zero_point("stem/conv1:x") > 0
    assert attributes["pool_shape"] == [1, 1]
    constants = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    steps = np.abs(weights["stem.w"]).reshape(8, -1).max(1) / np.float32(64)
    w, _, m = (constants[name] for name in stem.input[1:])
    assert w.dtype == np.int8 and np.abs(w.reshape(8, -1)).max(1).tolist() == [64] * 8
    expected = table.scale("stem/conv1:x") * steps / table.scale("layer1.0/x")
    np.testing.assert_allclose(m, expected, rtol=1e-6)
    assert "stem.w" not in constants


def test_what_stands_at_the_borders(between: tuple[onnx.ModelProto, CalibrationTable]) -> None:
    model, table = between
    made = quantize_model(model, table)
    producers = {name: node for node in made.graph.node for name in node.output}
    (transpose,) = (node for node in made.graph.node if node.op_type == "Transpose")
    quantise = producers[transpose.input[0]]
    constants = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    assert quantise.op_type == "QuantizeLinear" and producers[quantise.input[0]].op_type == "Relu"
    assert constants[quantise.input[1]] == np.float32(table.scale("layer1.0/x"))
    assert constants[quantise.input[2]] == 0 and constants[quantise.input[2]].dtype == np.uint8
    (image,) = (node for node in made.graph.node if node.input[0] == "input")
    assert constants[image.input[1]] == np.float32(table.scale("stem/conv1:x"))
    assert constants[image.input[2]] == table.zero_point("stem/conv1:x") > 0
    # The classifier's mean reads what the last block's bytes stand for, under the name that it had.
    mean = next(node for node in made.graph.node if node.name == "head/mean")
    assert producers[mean.input[0]].op_type == "DequantizeLinear"
    assert constants[producers[mean.input[0]].input[1]] == np.float32(table.scale("layer2.0/y"))
    weights = {item.name: item for item in made.graph.initializer}
    assert weights["stem/conv1/w"].data_type == TensorProto.INT8 and constants["stem/conv1/w_scale"].shape == ()
    assert np.abs(constants["stem/conv1/w"]).max() == 64
    assert "stem.w" not in weights and "layer1.0.w1" not in weights and "head.w" in weights


def test_the_runtime_takes_the_stem_for_an_integer_convolution(
    between: tuple[onnx.ModelProto, CalibrationTable], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 4
    made = quantize_model(*between)
    assert list(runtime_integers(made)) == ["stem/conv1"]
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = kinds(onnx.load(tmp_path / "o.onnx"))
    assert found["QLinearConv"] == 1 and found["Conv"] == found["FusedConv"] == 0


def test_a_block_left_in_fp32_has_borders_of_its_own(spatial: tuple[onnx.ModelProto, CalibrationTable]) -> None:
    model, table = spatial
    made = quantize_model(model, replace(table, precision={"layer2.0": "fp32"}))
    names = {node.op_type: node for node in made.graph.node if is_dynamic(node)}
    assert set(names) == {
        "QuantizedImageConvolution",
        *("QuantizedSpatialMasker", "QuantizedSpatialBottleneckProjection", "SpatialMasker", "SpatialBottleneck"),
    }
    producers = {name: node for node in made.graph.node for name in node.output}
    assert producers[names["SpatialBottleneck"].input[0]].op_type == "DequantizeLinear"
    assert names["SpatialMasker"].input[0] == names["SpatialBottleneck"].input[0]
    every = quantize_model(model, replace(table, precision=dict.fromkeys(("stem", "layer1.0", "layer2.0"), "fp32")))
    assert [node.op_type for node in every.graph.node] == [node.op_type for node in model.graph.node]
    (feeds, *_) = samples(model)
    assert np.array_equal(run(every, feeds)["logits"], run(model, feeds)["logits"])


def test_a_pooled_stem_stays_in_bytes(spatial: tuple[onnx.ModelProto, CalibrationTable]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(spatial[0])
    (relu,) = (node for node in model.graph.node if node.name == "stem/relu")
    index = list(model.graph.node).index(relu)
    pool = helper.make_node("MaxPool", ["r0"], ["x0"], name="stem/pool", kernel_shape=[3, 3], pads=[1] * 4)
    relu.output[0] = "r0"
    model.graph.node.insert(index + 1, pool)
    table = calibrate(model, samples(model), method="minmax")
    assert table.scale("stem/conv1:y") == table.scale("layer1.0/x")
    whole = quantize_model(model, table)
    assert operator_attributes(whole.graph.node[0])["pool_shape"] == [3, 3]
    assert {"Conv", "Relu", "MaxPool", "Transpose"}.isdisjoint(kinds(whole))
    layers = quantize_model(model, replace(table, per_channel=False))
    chain = [node.op_type for node in layers.graph.node if not is_dynamic(node)]
    assert chain[5:9] == ["Relu", "QuantizeLinear", "MaxPool", "Transpose"]
    (feeds, *_) = samples(model)
    before = run(model, feeds)["logits"]
    for made in (whole, layers):
        assert 0 < np.abs(before - run(made, feeds)["logits"]).max() < 0.1 * np.abs(before).max()
    # Windows that count rounded up are no windows of the operator.
    next(node for node in model.graph.node if node.op_type == "MaxPool").attribute.append(
        helper.make_attribute("ceil_mode", 1)
    )
    table = replace(table, weights_sha256=weights_sha256(model))
    assert "QuantizedImageConvolution" not in kinds(quantize_model(model, table))


def test_weights_per_tensor_and_of_eight_bits(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    table = table_of(bundle, weight_bits=8, per_channel=False)
    made = quantize_model(bundle.load_model(), table)
    constants = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    assert constants["stem/conv1/w_scale"].shape == () and np.abs(constants["stem/conv1/w"]).max() == 127
    assert np.abs(constants["layer1.0/SpatialBottleneckProjection/w1"]).max(1).tolist() == [127] * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer1_0__h1": 0.0}, "scale 0 for layer1.0/h1"),
        ({"layer1_0__h1": float("nan")}, "scale nan for layer1.0/h1"),
        ({"layer2_0__x": 0.5}, r"different scales for layer2\.0/x .* copies what it skips"),
        ({"layer2_0__x": 0.5, "layer2_0__y": 0.5}, r"different scales .*layer1\.0/y.*one tensor"),
        ({"layer1_0__h2": 1e-12}, "layer1.0 cannot be quantised.*range of 32-bit integers"),
    ],
)
def test_scales_that_do_not_do_are_refused(
    change: dict[str, float], said: str, spatial: tuple[onnx.ModelProto, CalibrationTable]
) -> None:
    model, table = spatial
    with pytest.raises(UsageError, match=said):
        quantize_model(model, with_scales(table, **change))


@pytest.mark.parametrize("point", ["layer1.0/h1", "layer2.0/x", "stem/conv1:x"])
def test_a_point_that_is_missing_is_named(point: str, spatial: tuple[onnx.ModelProto, CalibrationTable]) -> None:
    model, table = spatial
    tensors = {name: item for name, item in table.tensors.items() if name != point}
    with pytest.raises(UsageError, match=f"no scale for {point}, and leaves the block .* in INT8"):
        quantize_model(model, replace(table, tensors=tensors))


def test_another_network_is_refused(spatial: tuple[onnx.ModelProto, CalibrationTable]) -> None:
    with pytest.raises(UsageError, match="other weights"):
        quantize_model(tiny_models("channel")[0], spatial[1])
    zero = {point: replace(item, zero_point=3) for point, item in spatial[1].tensors.items()}
    with pytest.raises(UsageError, match=r"zero point 3 for layer1\.0/x, and dynamic operators take 0"):
        quantize_model(spatial[0], replace(spatial[1], tensors=zero))


def test_weights_that_the_graph_computes_are_refused(spatial: tuple[onnx.ModelProto, CalibrationTable]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(spatial[0])
    bottleneck = next(node for node in model.graph.node if node.op_type == "SpatialBottleneck")
    bottleneck.input[bottleneck.input[:].index("layer2.0.w1")] = "negative"
    model.graph.node.insert(0, helper.make_node("Neg", ["layer2.0.w1"], ["negative"], name="layer2.0/Neg"))
    table = replace(spatial[1], weights_sha256=weights_sha256(model))
    with pytest.raises(UsageError, match=r"weights that the graph computes \(negative\).*Leave the block layer2\.0"):
        quantize_model(model, table)


def residual() -> onnx.ModelProto:
    """Two convolutions around a sum, then one that reads the sum: a graph without dynamic operators."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((random.standard_normal(shape) / 3).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "wa", "ba"], ["a"], name="a/conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["ar"], name="a/relu"),
        helper.make_node("Conv", ["ar", "wb"], ["b"], name="b/conv", pads=[0, 1, 1, 0], group=2),
        helper.make_node("Add", ["b", "ar"], ["s"], name="b/add"),
        helper.make_node("Relu", ["s"], ["sr"], name="b/relu"),
        helper.make_node("Conv", ["sr", "wc"], ["c"], name="c/conv", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], name="head/pool"),
        helper.make_node("Conv", ["g", "wd"], ["logits"], name="head/conv"),
    ]
    weights = [weight("wa", 4, 3, 3, 3), weight("ba", 4), weight("wb", 4, 2, 2, 2), weight("wc", 6, 4, 1, 1)]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 5, 1, 1))],
        [*weights, weight("wd", 5, 6, 1, 1)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_sums_between_convolutions_are_computed_in_integers(tmp_path: Path) -> None:
    model = residual()
    assert [(node.name, x, y) for node, x, y in standard_layers(model)] == [
        ("a/conv", "input", "ar"),
        ("b/conv", "ar", "b"),
        ("c/conv", "sr", "c"),
    ]
    table = calibrate(model, samples(model), method="minmax")
    made = quantize_model(model, table)
    assert list(runtime_integers(made)) == ["a/conv", "b/conv", "b/add", "c/conv"]
    (feeds, *_) = samples(model, seed=9)
    before, behind = run(model, feeds)["logits"], run(made, feeds)["logits"]
    assert np.abs(before - behind).max() < 0.05 * np.abs(before).max()
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 4
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = kinds(onnx.load(tmp_path / "o.onnx"))
    assert (found["QLinearConv"], found["QLinearAdd"], found["Relu"]) == (3, 1, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_twin_has_the_scales_of_the_same_tensors(mode: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", mode=mode, batch=2)
    model, twin, table = bundle.load_model(), bundle.load_static(), table_of(bundle)
    made = quantize_twin(twin, model, bundle.manifest.masks, table, samples(model))
    constants = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    scale = {
        node.output[0].removesuffix("/uint8"): float(constants[node.input[1]])
        for node in made.graph.node
        if node.op_type == "QuantizeLinear"
    }
    for tensor, point in {
        "input": "stem/conv1:x",
        "x0": "layer1.0/x",
        "layer1.0/1": "layer1.0/h1",
        "layer1.0/2": "layer1.0/h2",
        "x1": "layer2.0/x",
        "layer2.0/1": "layer2.0/h1",
        "layer2.0/2": "layer2.0/h2",
    }.items():
        assert scale[tensor] == np.float32(table.scale(point)), tensor
    # What a dynamic operator does not round has a range of its own.
    assert {"layer1.0/c3", "layer1.0/shortcut", "layer2.0/c3"} <= set(scale)
    with pytest.raises(UsageError, match="at least one sample"):
        quantize_twin(twin, model, bundle.manifest.masks, table, [])


def test_every_operator_in_integers_says_the_types_of_its_ports() -> None:
    integers = {name: spec for name, spec in OPERATORS.items() if name.startswith("Quantized")}
    assert integers
    for spec in integers.values():
        image = spec.name == "QuantizedImageConvolution"
        assert spec.inputs[0].element is (Element.FLOAT if image else Element.UINT8) and spec.quantization is None


def test_hand_made_scales_do_as_well() -> None:
    model = residual()
    one = TensorScale(0.05, 128, -6.4, 6.35, 1)
    points = [f"{name}/conv:{end}" for name in "abc" for end in "xy"]
    table = CalibrationTable(
        network="residual", mode="", granularity=(), channel_granularity=(), weights_sha256=weights_sha256(model),
        weight_bits=7, per_channel=True, method="minmax", settings={}, data="none", images=1, precision={},
        tensors=dict.fromkeys(points, one), tools={},
    )  # fmt: skip
    (feeds, *_) = samples(model)
    before, behind = run(model, feeds)["logits"], run(quantize_model(model, table), feeds)["logits"]
    assert np.abs(before - behind).max() < 0.1 * np.abs(before).max()
