"""Graphs in INT8 as TensorRT takes them: computed in ONNX Runtime beside the bundle's own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.errors import UsageError
from dyndeploy.graphs.inspect import attach_bodies, is_dynamic, operator_attributes
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.graphs.tensorrt_bytes import (
    as_words,
    blocks_in_floats,
    has_bytes,
    keeps_integers,
    with_plugin_bytes,
    word_shape,
)
from dyndeploy.ops import DOMAIN, OPERATORS, Element, Role
from dyndeploy.quantization import calibrate, quantize_model
from tests.bundles import MODES, tiny_bundle, tiny_models
from tests.ops.cases import Case, build, in_integers
from tests.quantization.test_graph import residual, run
from tests.quantized import samples, table_of


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def in_int8(folder: Path, mode: str = "spatial") -> onnx.ModelProto:
    bundle = tiny_bundle(folder / "b", mode=mode, batch=2)
    return quantize_model(bundle.load_model(), table_of(bundle))


def byte_tensors(model: onnx.ModelProto) -> list[str]:
    """Outputs of our operators that are bytes, in order."""
    return [
        node.output[0]
        for node in model.graph.node
        if is_dynamic(node) and OPERATORS[node.op_type].outputs[0].element is Element.UINT8
    ]


def begun_with(model: onnx.ModelProto, name: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """A graph in which a tensor of bytes is given, not made."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [node for node in copy.graph.node if name not in node.output]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    copy.graph.input.append(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))
    return copy


@pytest.mark.parametrize("mode", MODES)
def test_our_operators_compute_the_same_bits(mode: str, tmp_path: Path) -> None:
    model = in_int8(tmp_path, mode)
    made = with_plugin_bytes(model)
    onnx.checker.check_model(made)
    assert has_bytes(model) and not keeps_integers(model)
    # Bytes begin behind the stem and end before the head; nothing else stands between two blocks.
    assert kinds(made)["QuantizeBytes"] == kinds(made)["DequantizeBytes"] == 1
    assert not {"QuantizeLinear", "DequantizeLinear", "QuantizedImageConvolution"} & set(kinds(made))
    ours = [node.name for node in model.graph.node if is_dynamic(node)][1:]
    assert [node.name for node in made.graph.node if node.op_type.startswith("Quantized")] == ours
    assert not blocks_in_floats(model, made)

    stem, *blocks = byte_tensors(model)
    (feeds, *_) = samples(tiny_models(mode, 2)[0])
    masks = [value.name for value in model.graph.output if value.name.startswith("mask/")]
    before = run(model, feeds, stem, *blocks)
    # TensorRT's own layers do not round the image, so that a byte of theirs may be one off.
    behind = run(made, feeds, stem, *blocks)
    assert np.abs(behind[stem].astype(int) - before[stem].astype(int)).max() <= 1
    np.testing.assert_allclose(behind["logits"], before["logits"], rtol=0, atol=0.02 * np.abs(before["logits"]).max())
    # From the same bytes on everything is the same.
    same = run(begun_with(made, stem, before[stem].shape), {**feeds, stem: before[stem]}, *blocks)
    for name in (*blocks, *masks):
        np.testing.assert_array_equal(same[name], before[name], err_msg=name)
    np.testing.assert_array_equal(same["logits"], before["logits"])


def test_a_block_that_stays_in_fp32_stands_between_conversions(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", batch=2)
    table = replace(table_of(bundle), precision={"layer1.0": "fp32"})
    model = quantize_model(bundle.load_model(), table)
    made = with_plugin_bytes(model)
    assert kinds(made)["SpatialBottleneckProjection"] == kinds(made)["QuantizedSpatialBottleneck"] == 1
    (feeds, *_) = samples(bundle.load_model())
    before, behind = run(model, feeds)["logits"], run(made, feeds)["logits"]
    np.testing.assert_allclose(behind, before, rtol=0, atol=0.02 * np.abs(before).max())


def test_a_graph_without_bytes_is_left_alone() -> None:
    model = tiny_models("spatial")[0]
    assert with_plugin_bytes(model) is model and not has_bytes(model) and not keeps_integers(model)


# ---------------------------------------------------------------- one operator between conversions


def between(case: Case, scales: tuple[float, float] = (0.05, 0.02)) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """An operator in integers between QuantizeLinear and DequantizeLinear, and what it is fed with."""
    spec, names = case.spec, [port.name for port in case.spec.inputs]
    values = {name: tensor.numpy() for name, tensor in zip(names, case.inputs, strict=True)}
    x = values.pop("x")
    masks = {port.name: values.pop(port.name) for port in spec.inputs if port.role is Role.MASK}
    constants = [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in values.items()]
    constants += [numpy_helper.from_array(np.float32(s), n) for s, n in zip(scales, ("sx", "sy"), strict=True)]
    constants.append(numpy_helper.from_array(np.uint8(0), "zero"))
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "sx", "zero"], ["xq"], name="block/Quantize"),
        helper.make_node(
            spec.name, ["xq", *names[1:]], ["yq"], name="block/op", domain=DOMAIN, **case.attributes, **spec.bookkeeping
        ),
        helper.make_node("DequantizeLinear", ["yq", "sy", "zero"], ["y"], name="block/Dequantize"),
    ]
    given = {"input": x.astype(np.float32) * np.float32(scales[0]), **masks}
    shape = case.reference().shape
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in given.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    attach_bodies(model, 17)
    return model, given


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("SpatialSEBottleneckProjection", {}),
        ("ChannelSEBottleneck", {"channels": 12}),
        ("LayerSEBottleneck", {}),
        ("SpatialBottleneck", {"channels": 10}),
        ("SpatialChannelBottleneckProjection", {"out_channels": 18}),
        ("SpatialBottleneckProjection", {"hidden": 12, "group": 2, "stride": 2}),
    ],
)
def test_what_no_kernel_in_integers_takes_becomes_its_form_in_floats(name: str, changes: dict[str, Any]) -> None:
    case = in_integers(build(name, **{"channels": 8, "hidden": 24, "out_channels": 16, "size": (6, 5), **changes}), 3)
    model, feeds = between(case)
    made = with_plugin_bytes(model)
    onnx.checker.check_model(made)
    assert blocks_in_floats(model, made) == ["block"]
    (block,) = [node for node in made.graph.node if node.op_type == name]
    assert operator_attributes(block) == operator_attributes(model.graph.node[1])
    before, behind = run(model, feeds)["y"], run(made, feeds)["y"]
    # Inside, what is rounded to bytes is not; a step of each hidden map comes to a few of the output.
    assert np.abs(before - behind).max() < 8 * 0.02 and np.abs(before - behind).mean() < 0.02
    assert before.max() > 50 * 0.02


@pytest.mark.parametrize("name", ["SpatialMasker", "ChannelMaskerHidden"])
def test_maskers_of_odd_channels_read_floats(name: str) -> None:
    case = in_integers(build(name, channels=6), 3)
    model, feeds = between(case)
    # A mask is no byte: it is the output itself.
    model.graph.node[1].output[0] = "y"
    del model.graph.node[2]
    made = with_plugin_bytes(model)
    assert kinds(made)[name] == 1 and blocks_in_floats(model, made) == ["block"]
    np.testing.assert_array_equal(run(made, feeds)["y"], run(model, feeds)["y"])


def test_what_has_no_form_is_refused() -> None:
    model, _ = between(in_integers(build("LayerBottleneck", channels=8, hidden=8), 1))
    model.graph.node.append(helper.make_node("Cast", ["yq"], ["z"], name="block/Cast", to=TensorProto.FLOAT))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    with pytest.raises(UsageError, match=r"block/Cast: Cast reads bytes \(yq\), which has no form for TensorRT"):
        with_plugin_bytes(model)


# ---------------------------------------------------------------- the copy


def test_bytes_of_a_row_are_little_endian_words() -> None:
    value = np.array([[1, 2, 3, -4, 0, 0, 0, 127]], np.int8)
    words = as_words(value)
    assert words.dtype == np.int32 and words.tolist() == [[0xFC030201 - 2**32, 0x7F000000]]
    np.testing.assert_array_equal(words.view(np.int8), value)
    assert word_shape(Element.INT8, (1, 8)) == (1, 2) and word_shape(Element.FLOAT, (1, 8)) == (1, 8)
    with pytest.raises(ValueError, match="6 bytes in a row"):
        as_words(value[:, :6].copy())


@pytest.mark.parametrize("typed", [False, True])
def test_the_copy_has_words_and_nothing_of_eight_bits(typed: bool, tmp_path: Path) -> None:
    model = in_int8(tmp_path, "both")
    copy = tensorrt_model(with_plugin_bytes(model), PrecisionPlan("int8", typed=typed))
    types = {item.name: item.data_type for item in copy.graph.initializer}
    assert not {TensorProto.INT8, TensorProto.UINT8} & set(types.values()) and not copy.functions
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    packed = {item.name: numpy_helper.to_array(item) for item in copy.graph.initializer}
    for node in model.graph.node:
        spec = OPERATORS.get(node.op_type)
        if spec is None or "tensorrt" not in spec.kernels or spec.kernels["tensorrt"].pack is None:
            continue
        given = dict(zip((port.name for port in spec.inputs), node.input, strict=True))
        w1, w2 = weights[given["w1"]], weights[given["w2"]]
        np.testing.assert_array_equal(packed[f"{node.name}/w1"].view(np.int8), w1)
        taps = packed[f"{node.name}/w2"].view(np.int8)
        np.testing.assert_array_equal(taps[:, 3 * 1 + 2], w2[:, :, 1, 2])
        np.testing.assert_array_equal(packed[f"{node.name}/b2"], weights[given["b2"]])
        np.testing.assert_array_equal(packed[f"{node.name}/m3"], weights[given["m3"]])


# ---------------------------------------------------------------- TensorRT's own integers


def test_a_graph_without_our_operators_keeps_integers_with_a_sign() -> None:
    source = residual()
    table = calibrate(source, samples(source), method="minmax")
    model = quantize_model(source, table)
    assert keeps_integers(model)
    made = with_plugin_bytes(model)
    onnx.checker.check_model(made)
    values = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    zeros = [values[n.input[2]] for n in made.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(zeros) >= 8 and all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    # Every convolution and sum that was in integers reads and gives what is dequantised and quantised.
    makers = {name: node for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        if node.name in ("a/conv", "b/conv", "b/add", "c/conv"):
            read = [makers[name].op_type for name in node.input if name in makers]
            assert read and set(read) == {"DequantizeLinear"}, node.name
    # Scales reach as far as the bytes did, with 127 steps.
    own = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    quantised = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for name, node in quantised.items():
        scale, zero = own[node.input[1]], int(own[node.input[2]])
        assert values[f"{name}/scale"] == pytest.approx(scale * max(zero, 255 - zero) / 127)
    (feeds, *_) = samples(source, seed=9)
    before, behind = run(source, feeds)["logits"], run(made, feeds)["logits"]
    assert np.abs(before - behind).max() < 0.08 * np.abs(before).max()


def test_the_precision_plan_of_both_kinds() -> None:
    ours, own = PrecisionPlan("int8", typed=True), PrecisionPlan("int8", typed=True, integers=True)
    assert ours.half and not own.half and PrecisionPlan("int8", typed=False, integers=True).half
    assert "int8, types in the graph: operators of ours compute in integers" in ours.description
