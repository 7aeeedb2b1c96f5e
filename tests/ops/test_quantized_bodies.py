"""Bodies of the operators in integers: the same bits as the reference on ONNX Runtime, whatever is skipped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from dyndeploy.ops import DOMAIN, OPERATORS, Role
from tests.ops.cases import QUANTIZED, Case, build
from tests.ops.test_body import optimised_graphs
from tests.ops.test_operators import assert_agree, has_sigmoid, run_body, single_node_model

BOTTLENECKS = [name for name in OPERATORS if name.startswith(QUANTIZED) and "Bottleneck" in name]
CHANNELS = [name for name in BOTTLENECKS if "Channel" in name]


def replaced(case: Case, **inputs: torch.Tensor) -> Case:
    values = dict(zip([port.name for port in case.spec.inputs], case.inputs, strict=True)) | inputs
    return Case(case.spec, tuple(values[port.name] for port in case.spec.inputs), case.attributes)


def assert_same_bits(case: Case, opset: int = 18) -> None:
    assert_agree(run_body(case, opset), case.reference().numpy(), near=has_sigmoid(case))


# What decides which products a body chooses: hidden channels, pixels and the share of active channels.
@pytest.mark.parametrize("hidden", [12, 256])
@pytest.mark.parametrize("name", BOTTLENECKS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_bodies_give_the_bits_of_the_reference(name: str, hidden: int, data: st.DataObject) -> None:
    case = build(
        name,
        seed=data.draw(st.integers(0, 2**31)),
        batch=data.draw(st.integers(1, 3)),
        size=(data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))),
        channels=data.draw(st.sampled_from([1, 7, 32])),
        out_channels=data.draw(st.sampled_from([1, 9, 32])),
        hidden=hidden,
        stride=data.draw(st.sampled_from([1, 2])),
        dilation=data.draw(st.sampled_from([1, 2])),
        group=data.draw(st.sampled_from([1, 2, 4])),
        mask_size=(data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))),
        channel_groups=data.draw(st.sampled_from([1, 4, hidden // 2])),
        rate=data.draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])),
    )
    assert_same_bits(case, data.draw(st.sampled_from([13, 18, 21])))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_the_largest_sums(name: str, sign: int) -> None:
    # 255s times 64s: pairs of products fill 16 bits, sums pass 2^24.
    case = build(name, size=(5, 6), mask_size=(2, 3), channels=32, hidden=256, channel_groups=8, seed=4)
    constants = {
        port.name: torch.full_like(value, sign * 64)
        for port, value in zip(case.spec.inputs, case.inputs, strict=True)
        if port.name.startswith("w")
    }
    values = dict(zip([port.name for port in case.spec.inputs], case.inputs, strict=True))
    generator = torch.Generator().manual_seed(0)
    constants["x"] = torch.full_like(values["x"], 255)
    # The first layer saturates; the biases bring the sums of the others back to where multipliers tell them apart.
    constants["b1"] = torch.full_like(values["b1"], 2**30)
    constants["b2"] = (
        torch.randint(-2000, 2000, (256,), generator=generator, dtype=torch.int32) - sign * 255 * 64 * 2304
    )
    constants["m2"] = torch.full_like(values["m2"], 0.1)
    case = replaced(case, **constants)
    assert 255 * 64 * 2304 > 2**24
    assert_same_bits(case)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_residuals_that_saturate_at_16_bits(name: str) -> None:
    # Multipliers of 1: what is added reaches millions before it is saturated, on both sides of a projection.
    case = build(name, size=(6, 6), channels=16, out_channels=16, hidden=24, rate=0.7, seed=9)
    values = dict(zip([port.name for port in case.spec.inputs], case.inputs, strict=True))
    ones = {key: torch.ones_like(value) for key, value in values.items() if key in ("m3", "md")}
    case = replaced(case, **ones)
    reference = case.reference()
    assert {0, 255} <= set(reference.unique().tolist())
    assert_same_bits(case)


@pytest.mark.parametrize("groups", [2, 12])
@pytest.mark.parametrize("name", CHANNELS)
def test_every_number_of_active_channels(name: str, groups: int) -> None:
    for active in range(groups + 1):
        case = build(name, batch=2, size=(7, 5), hidden=24, channel_groups=groups, stride=2, dilation=2, seed=active)
        mask = torch.zeros(2, groups)
        mask[0, torch.randperm(groups, generator=torch.Generator().manual_seed(active))[:active]] = 1
        mask[1, : groups - active] = 1
        assert_same_bits(replaced(case, **{case.spec.mask_inputs()[-1]: mask}))


@pytest.mark.parametrize("name", [name for name in BOTTLENECKS if not name.endswith("Projection")])
def test_all_on_runs_convolutions_that_requantise(name: str, tmp_path: Path) -> None:
    # Channels last, without a copy between them; the residual is added in bytes.
    case = build(name, channels=32, hidden=32, mask_size=(2, 2), channel_groups=4)
    graphs = optimised_graphs(single_node_model(case, 18), tmp_path / "optimised.onnx")
    found = [Counter(node.op_type for node in graph.node) for graph in graphs]
    (dense,) = (
        nodes for nodes in found if nodes["QLinearConv"] == 4 and nodes["QLinearAdd"] == 2 and not nodes["Gather"]
    )
    if "SE" not in name:
        assert sum(dense.values()) == (8 if "Channel" in name else 6), dense
    assert "Transpose" not in dense and "ConvInteger" not in dense


def test_channels_are_gathered_where_few_are_active(tmp_path: Path) -> None:
    case = build("QuantizedChannelBottleneck", channels=32, hidden=32, channel_groups=4)
    graphs = optimised_graphs(single_node_model(case, 18), tmp_path / "optimised.onnx")
    found = [Counter(node.op_type for node in graph.node) for graph in graphs]
    (gathering,) = (nodes for nodes in found if nodes["MatMulInteger"] > 2)
    assert gathering["QLinearConv"] == 0
    assert gathering["Gather"] >= 10, "of three weights, their constants and the taps"


@pytest.mark.parametrize("pool_active", [0, 1])
def test_means_of_many_bytes_are_exact(pool_active: int) -> None:
    # 255 at 4096 pixels, all but one of them in the mean: sums of a million, a gate that is one half of everything.
    case = build("QuantizedSpatialSEBottleneck", size=(64, 64), mask_size=(64, 64), hidden=6, pool_active=pool_active)
    values = dict(zip([port.name for port in case.spec.inputs], case.inputs, strict=True))
    mask = torch.ones_like(values["mask"])
    mask[..., 5, 7] = 0
    saturated = {name: torch.full_like(values[name], 2**30) for name in ("b1", "b2")}
    ws = torch.full_like(values["ws"], 1.0)
    zeros = {name: torch.zeros_like(values[name]) for name in ("bs", "we", "be")}
    # The squeeze is on only if the mean of some channel is 255: 6 * 255 less 1529.5.
    zeros["bs"] -= 6 * 255 - 0.5
    we = torch.full_like(values["we"], 1e3)
    case = replaced(case, mask=mask, ws=ws, me=torch.ones_like(values["me"]), **saturated, **{**zeros, "we": we})
    reference = case.reference()
    dark = replaced(case, bs=zeros["bs"] - 1.0)
    assert not torch.equal(dark.reference(), reference)
    for each in (case, dark):
        np.testing.assert_array_equal(run_body(each, 18), each.reference().numpy())


def quantised_floats(scale: str, name: str) -> onnx.NodeProto:
    return helper.make_node("QuantizeLinear", [name, scale, "zero"], [f"{name}/bytes"])


@pytest.mark.parametrize("between", ["nothing", "another scale", "a pool"])
def test_neighbours_hand_bytes_to_each_other(between: str) -> None:
    # A runtime fuses what quantises and dequantises around and inside of the operators: the bits must stay.
    names = (
        "SpatialBottleneckProjection",
        "ChannelBottleneck",
        "LayerBottleneckProjection",
        "SpatialChannelBottleneck",
    )
    scales = {"scale": np.float32(0.0173), "other": np.float32(0.0211)}
    floats = {"channels": 16, "out_channels": 16, "hidden": 24, "size": (8, 8), "channel_groups": 6, "batch": 2}
    cases = [build(QUANTIZED + name, seed=seed, **floats) for seed, name in enumerate(names)]
    x = cases[0].inputs[0]
    nodes, held, feeds = (
        [quantised_floats("scale", "x")],
        {**scales, "zero": np.uint8(0)},
        {"x": x.numpy() * scales["scale"]},
    )
    value = "x/bytes"
    for index, case in enumerate(cases):
        inputs = [value]
        for port, tensor in list(zip(case.spec.inputs, case.inputs, strict=True))[1:]:
            inputs.append(f"{index}/{port.name}")
            (held if port.role is Role.WEIGHT else feeds)[inputs[-1]] = tensor.numpy()
        value = f"{index}/y"
        extra = {"domain": DOMAIN, "plugin_version": "1", "plugin_namespace": ""}
        nodes.append(helper.make_node(case.spec.name, inputs, [value], **extra, **case.attributes))
        x = replaced(case, x=x).reference()
        nodes.append(helper.make_node("DequantizeLinear", [value, "scale", "zero"], [f"{value}/floats"]))
        if index == len(cases) - 1 or between == "nothing":
            continue
        last, scale = f"{value}/floats", "scale"
        if between == "a pool":
            nodes.append(helper.make_node("Transpose", [last], [f"{last}/0"], perm=[0, 3, 1, 2]))
            pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
            nodes.append(helper.make_node("MaxPool", [f"{last}/0"], [f"{last}/1"], **pool))
            nodes.append(helper.make_node("Transpose", [f"{last}/1"], [f"{last}/2"], perm=[0, 2, 3, 1]))
            last = f"{last}/2"
            x = torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2).float(), 3, 1, 1).permute(0, 2, 3, 1).byte()
        else:
            scale = "other"
            x = (x * scales["scale"] / scales["other"]).round().clamp(0, 255).byte()
        nodes.append(quantised_floats(scale, last))
        value = f"{last}/bytes"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, feed.shape) for name, feed in feeds.items()],
        [helper.make_tensor_value_info(f"{len(cases) - 1}/y/floats", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)],
        functions=[case.spec.function(18) for case in cases],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, feeds)[0]
    assert len(x.unique()) > 20
    np.testing.assert_array_equal(np.rint(found / scales["scale"]), x.numpy())
