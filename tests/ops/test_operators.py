"""Every operator of the registry, every face, against its PyTorch reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from dyndeploy.errors import UsageError
from dyndeploy.ops import DOMAIN, OPERATORS, Role, Work, operator
from tests.ops.cases import CONVERSIONS, QUANTIZED, Case, any_case, build

OPSETS = (13, 18)


def _info(name: str, tensor: torch.Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype), tensor.shape)


def single_node_model(case: Case, opset: int, *, constant_weights: bool = True) -> onnx.ModelProto:
    opset = max(opset, case.spec.least_opset)
    names = [port.name for port in case.spec.inputs]
    node = helper.make_node(
        case.spec.name, names, ["result"], domain=DOMAIN, plugin_version="1", plugin_namespace="", **case.attributes
    )
    weights = {
        port.name: tensor.numpy()
        for port, tensor in zip(case.spec.inputs, case.inputs, strict=True)
        if port.role is Role.WEIGHT and constant_weights
    }
    graph = helper.make_graph(
        [node],
        "one",
        [_info(name, tensor) for name, tensor in zip(names, case.inputs, strict=True) if name not in weights],
        [_info("result", case.reference())],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[case.spec.function(opset)])
    model.ir_version = 8 if opset < 18 else 10
    return model


def run_body(case: Case, opset: int, *, constant_weights: bool = True) -> np.ndarray:
    model = single_node_model(case, opset, constant_weights=constant_weights)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {item.name for item in session.get_inputs()}
    feeds = {
        port.name: tensor.numpy()
        for port, tensor in zip(case.spec.inputs, case.inputs, strict=True)
        if port.name in wanted
    }
    return session.run(None, feeds)[0]


def assert_body_agrees(case: Case, opset: int) -> None:
    expected = case.reference().numpy()
    if case.spec.decides:
        # A bit may differ only where the logit is within rounding of zero: exclude those bits, keep the rest exact.
        double = Case(case.spec, tuple(_in_double(tensor) for tensor in case.inputs), case.attributes)
        bias = double.inputs[-1]
        sure = np.ones_like(expected, dtype=bool)
        for shift in (-1e-4, 1e-4):
            moved = Case(case.spec, (*double.inputs[:-1], bias + shift), case.attributes)
            sure &= moved.reference().numpy() == expected
        np.testing.assert_array_equal(run_body(case, opset)[sure], expected[sure])
    else:
        assert_agree(run_body(case, opset), expected, near=has_sigmoid(case))


def has_sigmoid(case: Case) -> bool:
    """Whether bits depend on how a library rounds a sigmoid: a squeeze-and-excitation in integers."""
    return case.spec.name.startswith(QUANTIZED) and "SE" in case.spec.name


def _in_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def assert_agree(found: np.ndarray, expected: np.ndarray, *, near: bool = False) -> None:
    """Integers to the bit, floats within rounding."""
    assert found.dtype == expected.dtype
    if near:
        steps = np.abs(found.astype(np.int64) - expected)
        assert steps.max(initial=0) <= 2 and (steps > 0).mean() <= 0.02
        return
    exact = np.issubdtype(expected.dtype, np.integer)
    np.testing.assert_allclose(found, expected, **({"rtol": 0} if exact else {"rtol": 2e-4, "atol": 2e-4}))


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_body_agrees_with_reference(name: str, data: st.DataObject) -> None:
    assert_body_agrees(data.draw(any_case(name)), data.draw(st.sampled_from(OPSETS)))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", OPERATORS)
def test_body_at_extreme_rates(name: str, rate: float, batch: int, opset: int) -> None:
    case = build(name, batch=batch, rate=rate, size=(9, 7), mask_size=(3, 2), stride=2, seed=batch)
    assert_body_agrees(case, opset)


ODD_BITS = torch.tensor([float("nan"), -1.0, 0.0, 0.3, 0.5, 0.7, 1.0, 2.0, float("inf"), -float("inf")])


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [name for name, spec in OPERATORS.items() if spec.mask_inputs()])
def test_masks_are_active_above_one_half(name: str, stride: int, opset: int) -> None:
    case = build(name, batch=3, size=(9, 7), mask_size=(4, 3), channel_groups=6, stride=stride, seed=stride)
    masks = [case.spec.input_index(port) for port in case.spec.mask_inputs()]
    generator = torch.Generator().manual_seed(opset)
    odd, exact = list(case.inputs), list(case.inputs)
    for index in masks:
        odd[index] = ODD_BITS[torch.randint(len(ODD_BITS), case.inputs[index].shape, generator=generator)]
        exact[index] = (odd[index] > 0.5).float()
    expected = Case(case.spec, tuple(exact), case.attributes).reference()
    given = Case(case.spec, tuple(odd), case.attributes)
    assert torch.equal(given.reference(), expected)
    assert_agree(run_body(given, opset), expected.numpy(), near=has_sigmoid(given))


@pytest.mark.parametrize("name", OPERATORS)
def test_body_does_not_need_constant_weights(name: str) -> None:
    case = build(name, batch=2)
    expected = case.reference().numpy()
    assert_agree(run_body(case, 13, constant_weights=False), expected, near=has_sigmoid(case))


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_shape_inference_is_the_reference_shape(name: str, data: st.DataObject) -> None:
    case = data.draw(any_case(name))
    assert case.spec.infer_shape(case.shapes, case.attributes) == tuple(case.reference().shape)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_face_is_there(name: str) -> None:
    spec = operator(name)
    assert spec.name == name
    assert spec.version >= 1
    assert spec.summary.endswith(".")
    assert spec.inputs[0].role is Role.ACTIVATION
    # Static shapes are for targets that have no kernels of ours.
    families = (
        set()
        if spec.overflows or has_sigmoid(build(name))
        else {"cpu"}
        if name.startswith(f"{QUANTIZED}Image")
        else {"cuda", "tensorrt"}
        if name in CONVERSIONS
        else {"cpu", "cuda", "tensorrt"}
    )
    assert set(spec.kernels) == families
    assert spec.quantization is None or operator(spec.quantization.operator).kind == f"quantized_{spec.kind}"
    with pytest.raises(UsageError, match=f"needs opset {spec.least_opset} or later"):
        spec.function(spec.least_opset - 1)
    function = spec.function(spec.least_opset)
    assert list(function.input) == [port.name for port in spec.inputs]
    assert list(function.attribute) == [attribute.name for attribute in spec.attributes]
    assert {node.domain for node in function.node} == {""}, "a body may use standard operators only"


@pytest.mark.parametrize("name", OPERATORS)
def test_wrong_shapes_and_attributes_are_refused(name: str) -> None:
    case = build(name)
    with pytest.raises(UsageError, match=name.removesuffix("Hidden")):
        case.spec.infer_shape([(1, 2, 3), *case.shapes[1:]], case.attributes)
    with pytest.raises(UsageError, match="needs the attributes"):
        case.spec.emit(case.inputs, {**case.attributes, "surprise": 1})
    for index in range(1, len(case.inputs)):
        shapes = list(case.shapes)
        shapes[index] = (*shapes[index][:-1], shapes[index][-1] + 100)
        with pytest.raises(UsageError):
            case.spec.infer_shape(shapes, case.attributes)


def test_unknown_operator_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'SpatialBottleneck'"):
        operator("SpatialBotleneck")


def work(case: Case, masks: dict[str, np.ndarray]) -> Work:
    return case.spec.work(case.shapes, case.attributes, case.spec.counts(case.shapes, case.attributes, masks), 4.0)


BOTTLENECKS = [name for name in OPERATORS if "Bottleneck" in name]


@pytest.mark.parametrize("name", BOTTLENECKS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_work_counts_what_the_masks_leave(name: str, data: st.DataObject) -> None:
    case = data.draw(any_case(name))
    some = work(case, case.masks())
    everything = work(case, {k: np.ones_like(v) for k, v in case.masks().items()})
    nothing = work(case, {k: np.zeros_like(v) for k, v in case.masks().items()})
    np.testing.assert_allclose(nothing.macs, counted_macs(case, "shortcut"))
    np.testing.assert_allclose(case.spec.dense_work(case.shapes, case.attributes).macs, counted_macs(case, "dense"))
    assert np.all(nothing.macs <= some.macs)
    assert np.all(some.macs <= everything.macs)
    assert np.all(everything.macs <= counted_macs(case, "dense") * (1 + 1e-12))
    assert some.weights <= everything.weights
    size = case.inputs[0].element_size()
    assert some.read == everything.read == size * np.prod(case.shapes[0])
    assert some.written == size * case.reference().numel()


@pytest.mark.parametrize("name", BOTTLENECKS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_one_formula_for_arrays_and_tensors(name: str, data: st.DataObject) -> None:
    case = data.draw(any_case(name))
    tensors = {key: torch.from_numpy(mask).double().requires_grad_() for key, mask in case.masks().items()}
    expected, found = work(case, case.masks()), work(case, tensors)
    np.testing.assert_allclose(found.macs.detach().numpy(), expected.macs, rtol=1e-12)
    assert float(found.weights.detach()) == pytest.approx(expected.weights, rel=1e-12)
    found.macs.sum().backward()
    assert all(torch.isfinite(mask.grad).all() for mask in tensors.values() if mask.grad is not None)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_expected_counts_are_the_mean_over_random_masks(name: str) -> None:
    case = build(name, size=(12, 10), mask_size=(4, 3), channel_groups=6, hidden=12, out_channels=8, stride=2)
    generator = np.random.default_rng(0)
    rates = {kind.name: 0.5 for kind in case.spec.gates.values()}

    def drawn(port: str, shape: tuple[int, ...]) -> np.ndarray:
        if case.spec.gates[port].name == "channel":  # exactly half of the groups, as forced masks have them
            return generator.permutation(np.arange(shape[1]) % 2).reshape(shape).astype(np.float32)
        return (generator.random(shape) < 0.5).astype(np.float32)

    draws = [work(case, {k: drawn(k, v.shape) for k, v in case.masks().items()}).macs for _ in range(400)]
    expected = case.spec.work(
        case.shapes, case.attributes, case.spec.expected(case.shapes, case.attributes, rates), 4.0
    )
    assert expected.macs == pytest.approx(np.mean(draws), rel=0.1)


def counted_macs(case: Case, part: str) -> float:
    """Multiply-accumulates from the shapes alone, written independently of the operators."""
    _, height, width, channels = case.shapes[0]
    _, out_height, out_width, out_channels = case.reference().shape
    ports = zip(case.spec.inputs, case.shapes, strict=True)
    weights = [shape for port, shape in ports if port.role is Role.WEIGHT and not port.name.startswith("m")]
    excitation = "ws" in [port.name for port in case.spec.inputs]
    projection = len(weights) == (12 if excitation else 8)
    shortcut = float(out_height * out_width * channels * out_channels) if projection else 0.0
    if part == "shortcut":
        return shortcut
    hidden = weights[0][0]
    per_out_pixel = 9 * hidden * hidden / case.attributes["group"] + hidden * out_channels
    squeeze = 2 * hidden * weights[4][0] if excitation else 0
    return height * width * channels * hidden + out_height * out_width * per_out_pixel + squeeze + shortcut


def test_spatial_work_of_one_patch_by_hand() -> None:
    # 8x8 map, one active 4x4 patch in the corner: conv1 on 5x5 pixels, conv2 and conv3 on 4x4.
    case = build("SpatialBottleneck", channels=8, hidden=6, mask_size=(2, 2))
    mask = np.zeros((1, 1, 2, 2), np.float32)
    mask[0, 0, 0, 0] = 1
    found = work(case, {"mask": mask})
    assert found.macs.tolist() == [25 * 8 * 6 + 16 * (9 * 6 * 6 + 6 * 8)]
    assert found.weights == 4 * (8 * 6 + 9 * 36 + 6 * 8)
    assert case.spec.achieved_rates(case.shapes, case.attributes, {"mask": mask}) == {
        "spatial": 0.25,
        "conv1": 25 / 64,
        "conv2": 0.25,
    }


@pytest.mark.parametrize(("pool_active", "pixels"), [(0, (64, 64, 16)), (1, (25, 16, 16))])
def test_squeeze_and_excitation_of_one_patch_by_hand(pool_active: int, pixels: tuple[int, int, int]) -> None:
    # 8x8 map, one active 4x4 patch. A mean over the whole map needs all pixels of conv1 and conv2.
    case = build("SpatialSEBottleneck", batch=2, channels=8, hidden=6, mask_size=(2, 2), pool_active=pool_active)
    mask = np.zeros((2, 1, 2, 2), np.float32)
    mask[0, 0, 0, 0] = 1
    conv1, conv2, conv3 = pixels
    found = work(case, {"mask": mask})
    assert found.macs.tolist() == [conv1 * 8 * 6 + conv2 * 9 * 6 * 6 + conv3 * 6 * 8 + 2 * 6 * 3, 0]
    assert found.weights == 4 * (8 * 6 + 9 * 36 + 2 * 6 * 3 + 6 * 8)
    rates = case.spec.achieved_rates(case.shapes, case.attributes, {"mask": mask})
    assert rates == {"spatial": 16 / 128, "conv1": conv1 / 128, "conv2": conv2 / 128}
    expected = case.spec.expected(case.shapes, case.attributes, {"spatial": 0.5})
    assert expected["excited"] == 1 - 0.5**4
    if not pool_active:
        assert expected["conv1_pixels"] == expected["conv2_pixels"] == 64 * (1 - 0.5**4)
        assert expected["conv3_pixels"] == 32


def test_squeeze_and_excitation_pools_over_what_its_attribute_says() -> None:
    whole, active = (build("SpatialSEBottleneck", size=(5, 7), mask_size=(2, 2), pool_active=p, seed=3) for p in (0, 1))
    mask = whole.inputs[1]
    assert 0 < mask.mean() < 1
    assert not torch.allclose(whole.reference(), active.reference(), atol=1e-3)
    everything = (torch.ones_like(mask),)
    dense = [Case(c.spec, (c.inputs[0], *everything, *c.inputs[2:]), c.attributes).reference() for c in (whole, active)]
    torch.testing.assert_close(*dense)


@pytest.mark.parametrize("group", [2, 4])
@pytest.mark.parametrize("channel_groups", [3, 6])
def test_channel_groups_across_groups_of_the_3x3(group: int, channel_groups: int) -> None:
    # 12 channels: groups of 4 or 2 of the mask, groups of 6 or 3 of the 3x3.
    drawn = build("ChannelSEBottleneck", hidden=12, group=group, channel_groups=channel_groups, seed=2)
    alternating = (torch.arange(channel_groups) % 2).float()
    mask = torch.stack([alternating if n % 2 == 0 else 1 - alternating for n in range(len(drawn.inputs[1]))])
    case = Case(drawn.spec, (drawn.inputs[0], mask, *drawn.inputs[2:]), drawn.attributes)
    _, mask, w1, b1, w2, b2, ws, bs, we, be, w3, b3 = case.inputs
    bits = mask.repeat_interleave(12 // channel_groups, 1)[0].bool()
    assert 0 < bits.sum() < 12
    # Channels that are taken out of every weight: what is skipped is zero for all who read it.
    spread = torch.zeros(12, 12, 3, 3)
    for out in range(12):
        first = out // (12 // group) * (12 // group)
        spread[out, first : first + 12 // group] = w2[out]
    cut = (w1[bits], b1[bits], spread[bits][:, bits], b2[bits], ws[:, bits], bs, we[bits], be[bits], w3[:, bits], b3)
    small = case.spec.reference(case.inputs[0], torch.ones(1, 1), *cut, **{**case.attributes, "group": 1})
    torch.testing.assert_close(small, case.reference(), rtol=1e-4, atol=1e-5)
    pairs = sum(int(part.sum()) ** 2 for part in bits.reshape(group, -1))
    found = work(case, case.masks()).macs.tolist()
    kept = int(bits.sum())
    assert found == [64 * (8 * kept + 9 * pairs + 8 * kept) + 2 * 3 * kept]


def test_channel_work_by_hand() -> None:
    # 6 hidden channels in 3 groups, one group on: 2 channels.
    case = build("ChannelBottleneck", channels=8, hidden=6, channel_groups=3)
    found = work(case, {"mask": np.array([[1, 0, 0]], np.float32)})
    assert found.macs.tolist() == [64 * (8 * 2 + 9 * 2 * 2 + 2 * 8)]


@pytest.mark.parametrize(
    "name", [name for name in OPERATORS if not name.startswith(QUANTIZED) and name not in CONVERSIONS]
)
def test_reference_in_double_and_half(name: str) -> None:
    case = build(name)
    double = Case(case.spec, tuple(tensor.double() for tensor in case.inputs), case.attributes).reference()
    torch.testing.assert_close(double.float(), case.reference(), rtol=1e-4, atol=1e-4)
    half = Case(case.spec, tuple(tensor.half() for tensor in case.inputs), case.attributes).reference()
    assert half.dtype == (torch.float32 if case.spec.decides else torch.float16)
    if not case.spec.decides:
        torch.testing.assert_close(half.float(), case.reference(), rtol=2e-2, atol=2e-2)
