"""Operators in integers: their arithmetic, and how FP32 operators become them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.errors import UsageError
from dyndeploy.ops import OPERATORS, Role
from dyndeploy.ops import _quantized as integers
from tests.ops.cases import QUANTIZED, Case, any_case, build, in_integers
from tests.ops.test_operators import assert_agree, has_sigmoid

FLOATS = [name for name, spec in OPERATORS.items() if spec.quantization]
BOTTLENECKS = [name for name in FLOATS if "Bottleneck" in name]
MASKERS = [name for name in FLOATS if "Masker" in name]


def face(case: Case) -> Any:
    assert case.spec.quantization is not None
    return case.spec.quantization


def weights_of(case: Case) -> dict[str, np.ndarray]:
    pairs = zip(case.spec.inputs, case.inputs, strict=True)
    return {port.name: value.numpy() for port, value in pairs if port.role is Role.WEIGHT}


def scales_of(case: Case) -> dict[str, float]:
    """From the largest value that is computed."""
    values = {"x": case.inputs[0], **face(case).observe(case.inputs, case.attributes)}
    if "y" in values and face(case).shared:
        values["x"] = values["y"] = torch.cat([values["x"].flatten(), values["y"]])
    return {name: float(value.max()) / 200 if value.numel() else 0.01 for name, value in values.items()}


def converted(case: Case, scales: dict[str, float], weight_bits: int = 7) -> Case:
    """The case of the operator in integers."""
    given_ = dict(zip([port.name for port in case.spec.inputs], case.inputs, strict=True))
    constants = face(case).convert(weights_of(case), scales, weight_bits)
    given_ |= {name: torch.from_numpy(value) for name, value in constants.items()}
    given_["x"] = (case.inputs[0] / float(np.float32(scales["x"]))).round().clamp(0, 255).to(torch.uint8)
    spec = OPERATORS[face(case).operator]
    return Case(spec, tuple(given_[port.name] for port in spec.inputs), case.attributes)


# ---------------------------------------------------------------- the arithmetic


def test_requantisation_by_hand() -> None:
    sums = torch.tensor([[5, 7, -5, 10, 2**24 + 1, -(2**30), 300]], dtype=torch.float64)
    bias = torch.tensor([0, 0, 0, -3, 0, 0, -300], dtype=torch.float64)
    multiplier = torch.tensor([0.5, 0.5, 0.5, 0.1, 1 / 1024, 1.0, 1.0])
    found = integers.requantise(sums, bias, multiplier)
    # Ties to even; 7 * float32(0.1) is 0.7; 2^24 + 1 becomes 2^24 as a float; saturated to 16 bits.
    assert found.tolist() == [[2, 4, -2, 1, 16384, -32768, 0]]


@pytest.mark.parametrize(("bits", "limit"), [(7, 64), (8, 127)])
def test_weights_by_hand(bits: int, limit: int) -> None:
    weight = torch.tensor([[1.0, -0.5, 0.26], [0.0, 0.0, 0.0], [-3e-40, 0.0, 0.0]])
    scales = integers.weight_scales(weight, bits)
    np.testing.assert_array_equal(scales, np.array([1 / limit, 1, 1], np.float32))
    found = integers.quantize_weight(weight, scales, bits)
    assert found.tolist() == [[limit, -32 if bits == 7 else -64, round(0.26 * limit)], [0, 0, 0], [0, 0, 0]]
    assert weight_products_fit(limit) == (bits == 7)


def weight_products_fit(limit: int) -> bool:
    return 2 * 255 * limit <= np.iinfo(np.int16).max


def test_other_bits_are_refused() -> None:
    with pytest.raises(UsageError, match="Weights have 7 or 8 bits, not 4"):
        integers.weight_limit(4)


def naive(case: Case) -> np.ndarray:
    """The operator in integers pixel by pixel, written from its definition alone."""
    given_ = dict(zip([port.name for port in case.spec.inputs], case.inputs, strict=True))
    values = {name: value.numpy() for name, value in given_.items()}
    x = values["x"].astype(np.int64)
    stride, dilation, group = case.attributes["strides"][0], case.attributes["dilations"][0], case.attributes["group"]
    images, height, width, _ = x.shape
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    hidden, result = len(values["w1"]), np.empty(tuple(case.reference().shape), np.uint8)

    def requantised(sums: np.ndarray, name: str) -> np.ndarray:
        total = (sums + values[f"b{name}"]).astype(np.int32).astype(np.float32)
        return np.clip(np.rint(total * values[f"m{name}"]), -32768, 32767).astype(np.int64)

    for n in range(images):
        bits = np.ones(hidden, bool)
        spatial = np.ones((1, 1), bool)
        for name, kind in case.spec.gates.items():
            mask = values[name][n] > 0.5
            if kind.name == "channel":
                bits = np.repeat(mask, hidden // mask.size)
            else:
                spatial = mask[0]
        first = np.zeros((height + 2 * dilation, width + 2 * dilation, hidden), np.int64)
        for i in range(height):
            for j in range(width):
                sums = np.where(bits, values["w1"].astype(np.int64) @ x[n, i, j], 0)
                first[dilation + i, dilation + j] = np.clip(requantised(sums, "1"), 0, 255)
        excites, behind = "ws" in values, np.ones(hidden, bool)
        per_group = hidden // group
        if excites:  # the mask stands behind the ReLUs
            bits, behind = behind, bits
            for i in range(height):
                for j in range(width):
                    sums = values["w1"].astype(np.int64) @ x[n, i, j]
                    first[dilation + i, dilation + j] = np.clip(requantised(sums, "1"), 0, 255) * behind
        maps = np.empty((out_height, out_width, hidden), np.int64)
        active = np.empty((out_height, out_width, 1), bool)
        for i in range(out_height):
            for j in range(out_width):
                sums = np.zeros(hidden, np.int64)
                for m in range(hidden):
                    inputs = slice(m // per_group * per_group, (m // per_group + 1) * per_group)
                    for dy in range(3):
                        for dx in range(3):
                            pixel = first[i * stride + dy * dilation, j * stride + dx * dilation, inputs]
                            sums[m] += values["w2"][m, :, dy, dx].astype(np.int64) @ pixel
                maps[i, j] = np.clip(requantised(np.where(bits, sums, 0), "2"), 0, 255) * behind
                active[i, j] = spatial[i * len(spatial) // out_height, j * spatial.shape[1] // out_width]
        if excites:
            pooled = active if case.attributes.get("pool_active") else np.ones_like(active)
            mean = ((maps * pooled).sum((0, 1)) / max(pooled.sum(), 1)).astype(np.float32)
            squeezed = np.maximum(values["ws"] @ mean + values["bs"], 0)
            gate = 1 / (1 + np.exp(-(values["we"] @ squeezed + values["be"])))
            maps = np.clip(np.rint(maps.astype(np.float32) * (gate * values["me"])), 0, 255).astype(np.int64)
        for i in range(out_height):
            for j in range(out_width):
                identity = x[n, i * stride, j * stride]
                if "wd" in values:
                    identity = requantised(values["wd"].astype(np.int64) @ identity, "d")
                branch = requantised(values["w3"].astype(np.int64) @ maps[i, j], "3")
                result[n, i, j] = np.clip(identity + branch * active[i, j], 0, 255)
    return result


@pytest.mark.parametrize("name", BOTTLENECKS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_the_reference_is_the_definition(name: str, data: st.DataObject) -> None:
    case = data.draw(any_case(QUANTIZED + name))
    assert_agree(naive(case), case.reference().numpy(), near=has_sigmoid(case))


@pytest.mark.parametrize("name", ["ChannelBottleneck", "SpatialChannelBottleneckProjection"])
def test_sums_past_what_floats_hold(name: str) -> None:
    # 255s times 127s over 9 * 600 products: sums of 175 million, which float32 would round.
    twin = build(name, size=(3, 3), hidden=600, channels=4, out_channels=4, rate=1.0, mask_size=(1, 1))
    case = in_integers(twin, 0)
    values = dict(zip([port.name for port in case.spec.inputs], case.inputs, strict=True))
    generator = torch.Generator().manual_seed(0)
    values["x"] = torch.full_like(values["x"], 255)
    values["w1"] = torch.full_like(values["w1"], 127)
    values["m1"] = torch.full_like(values["m1"], 1.0)
    values["w2"] = torch.full_like(values["w2"], 127)
    values["w2"][:, :, 1, 1] -= torch.randint(0, 3, (600, 600), generator=generator, dtype=torch.int8)
    values["b2"] = torch.full_like(values["b2"], -174_500_000)
    values["m2"] = torch.full_like(values["m2"], 1e-3)
    case = Case(case.spec, tuple(values[port.name] for port in case.spec.inputs), case.attributes)
    total = (values["w2"].double().sum((1, 2, 3)) * 255).max()
    assert 2**24 < total < 2**31
    reference = case.reference()
    np.testing.assert_array_equal(reference.numpy(), naive(case))
    assert len(reference[0, 1, 1].unique()) > 1, "the centre must not be saturated"


# ---------------------------------------------------------------- conversion


def test_constants_by_hand() -> None:
    case = build("SpatialBottleneckProjection", channels=2, hidden=2, out_channels=2)
    weights = weights_of(case)
    weights["w1"] = np.array([[0.64, -0.32], [0.0, 0.0]], np.float32)
    weights["b1"] = np.array([0.1, 0.25], np.float32)
    found = face(case).convert(weights, {"x": 0.5, "h1": 0.25, "h2": 1.0, "y": 2.0}, 7)
    assert found["w1"].tolist() == [[64, -32], [0, 0]]
    assert found["b1"].tolist() == [20, 2**30], "0.1 / (0.5 * 0.01); a bias alone is as fine as it can be"
    np.testing.assert_allclose(found["m1"], [0.02, 2.0**-30], rtol=1e-6)
    assert {name: value.dtype.name for name, value in found.items()} == {
        name: {"w": "int8", "b": "int32", "m": "float32"}[name[0]] for name in found
    }
    assert list(found) == [port.name for port in OPERATORS[face(case).operator].inputs if port.role is Role.WEIGHT]


def test_a_channel_that_is_all_bias_keeps_it() -> None:
    # Batch norm leaves channels whose weights are nothing beside their bias: in units of such weights, a bias of 0.5
    # would not fit 32 bits.
    case = build("SpatialBottleneckProjection", channels=2, hidden=2, out_channels=2)
    weights = weights_of(case)
    weights["w1"] = np.array([[1e-13, -1e-13], [0.3, 0.3]], np.float32)
    weights["b1"] = np.array([0.5, 0.5], np.float32)
    found = face(case).convert(weights, {"x": 0.02, "h1": 0.01, "h2": 1.0, "y": 2.0}, 7)
    np.testing.assert_allclose(found["b1"] * found["m1"].astype(np.float64), [50, 50], rtol=1e-4)
    assert np.abs(found["w1"][1]).tolist() == [64, 64]


@pytest.mark.parametrize("name", BOTTLENECKS)
@pytest.mark.parametrize("bits", [7, 8])
def test_the_operator_in_integers_is_near_the_one_of_floats(name: str, bits: int) -> None:
    case = build(name, size=(12, 10), mask_size=(3, 2), channels=32, hidden=36, out_channels=32, stride=2, seed=5)
    scales = scales_of(case)
    found = converted(case, scales, bits).reference().double() * scales["y"]
    error = (found - case.reference()).abs()
    # Steps of y: the weights and both hidden maps are rounded, too.
    assert error.mean() < 1.5 * scales["y"]
    assert error.max() < 8 * scales["y"]


SCALES = {"x": 0.1, "h1": 0.1, "h2": 0.1, "h3": 0.1, "y": 0.1}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf"), 1e-50, 1e39])
def test_scales_that_are_none_are_refused(name: str, wrong: float) -> None:
    case = build(name)
    for point in ("x", *face(case).points, *(["y"] if face(case).output else [])):
        with pytest.raises(UsageError, match=rf"^{name} cannot be quantised: the scale of {point} is"):
            face(case).convert(weights_of(case), {**SCALES, point: wrong}, 7)
        with pytest.raises(UsageError, match=f"no scale of {point}"):
            face(case).convert(weights_of(case), {k: v for k, v in SCALES.items() if k != point}, 7)


@pytest.mark.parametrize("name", FLOATS)
def test_weights_that_are_not_finite_are_refused(name: str) -> None:
    case = build(name)
    for port, value in weights_of(case).items():
        broken = value.copy()
        broken.reshape(-1)[-1] = np.nan
        with pytest.raises(UsageError, match=f"{port} has values that are not finite"):
            face(case).convert({**weights_of(case), port: broken}, SCALES, 7)


def test_an_identity_needs_one_scale() -> None:
    case = build("LayerBottleneck")
    with pytest.raises(UsageError, match=r"input and output need one scale, not 0\.1 and 0\.2"):
        face(case).convert(weights_of(case), {**SCALES, "y": 0.2}, 7)
    assert face(case).shared and not face(build("LayerBottleneckProjection")).shared


def test_constants_beyond_32_bits_are_refused() -> None:
    case = build("SpatialBottleneckProjection", hidden=6)
    # Of so many products of 255 and 64 nobody knows that their sum fits.
    weights = weights_of(case)
    weights["wd"], weights["w1"] = np.ones((12, 140_000), np.float32), np.full((6, 140_000), 1e-6, np.float32)
    with pytest.raises(UsageError, match="sums of w1 could leave"):
        face(case).convert(weights, SCALES, 7)


@pytest.mark.parametrize("bits", [7, 8])
def test_units_of_sums_are_at_most_a_step_of_the_output(bits: int) -> None:
    """Rows of channels that are never computed may hold anything: their bias is what counts."""
    weight, bias = torch.tensor([[282.0, -3.0], [0.5, 0.1]]), torch.tensor([0.37, 0.37])
    w, b, m = integers.linear_constants(weight, bias, (0.5, 0.03), bits)
    limit = integers.weight_limit(bits)
    assert m.tolist() == pytest.approx([1.0, 0.5 * 0.5 / limit / 0.03])
    assert w[0].tolist() == [limit, -round(3.0 / 0.06)] and b[0] == round(0.37 / 0.03)
    # Zeros leave the bias alone, which keeps its own precision.
    w, b, m = integers.linear_constants(torch.zeros(1, 2), bias[:1], (0.5, 0.03), bits)
    assert w.tolist() == [[0.0, 0.0]] and float(b[0] * m[0]) == pytest.approx(0.37 / 0.03, abs=0.5)


# ---------------------------------------------------------------- simulation


@pytest.mark.parametrize("name", BOTTLENECKS)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), bits=st.sampled_from([7, 8]))
def test_simulation_is_the_operator_in_integers(name: str, data: st.DataObject, bits: int) -> None:
    case = data.draw(any_case(name))
    scales = scales_of(case)
    if any(scale < 1e-6 for scale in scales.values()):
        return
    expected = converted(case, scales, bits).reference().numpy()
    for dtype in (torch.float32, torch.float64):
        inputs = [case.inputs[0].to(dtype), *case.inputs[1:]]
        found = face(case).simulate(inputs, case.attributes, scales, bits)
        assert found.dtype == dtype
        np.testing.assert_allclose(found.numpy(), expected * np.float32(scales["y"]), rtol=1e-6)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_gradients_pass_straight_through(name: str) -> None:
    case = build(name, size=(8, 6), batch=2, channels=16, hidden=24, out_channels=16, rate=0.7, seed=3)
    scales = scales_of(case)

    def gradients(simulated: bool) -> dict[str, torch.Tensor]:
        inputs = [value.clone().requires_grad_() for value in case.inputs]
        if simulated:
            result = face(case).simulate(inputs, case.attributes, scales, 8)
        else:
            result = case.spec.reference(*inputs, **case.attributes)
        probe = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
        (result * probe).sum().backward()
        return {p.name: v.grad for p, v in zip(case.spec.inputs, inputs, strict=True) if v.grad is not None}

    found, exact = gradients(True), gradients(False)
    assert set(found) == {port.name for port in case.spec.inputs}, "masks have gradients, too"
    for port, gradient in exact.items():
        assert torch.isfinite(found[port]).all()
        if not gradient.any():  # a squeeze whose ReLU passes nothing
            assert port in ("ws", "bs", "we") and not found[port].any()
            continue
        likeness = torch.nn.functional.cosine_similarity(found[port].flatten(), gradient.flatten(), dim=0)
        assert likeness > 0.9, (port, float(likeness))
    assert all(float(found[name].abs().sum()) > 0 for name in case.spec.mask_inputs())


@pytest.mark.parametrize("name", MASKERS)
def test_maskers_take_the_scale_of_x_into_their_weights(name: str) -> None:
    case = build(name, batch=3, size=(9, 7), channels=24, mask_size=(3, 2), channel_groups=6, seed=7)
    scale = float(case.inputs[0].max()) / 255
    found = converted(case, {"x": scale}).reference()
    assert torch.equal(face(case).simulate(case.inputs, case.attributes, {"x": scale}, 7), found)
    assert 0 < found.mean() < 1
    assert (found != case.reference()).float().mean() < 0.05
    weights, constants = weights_of(case), face(case).convert(weights_of(case), {"x": 0.5}, 7)
    first = next(iter(weights))
    for port, value in weights.items():
        np.testing.assert_array_equal(constants[port], value * (0.5 if port == first else 1))


# ---------------------------------------------------------------- observation


def test_observation_of_one_patch() -> None:
    case = build("SpatialBottleneck", channels=8, hidden=6, mask_size=(2, 2))
    mask = torch.zeros(1, 1, 2, 2)
    mask[0, 0, 0, 0] = 1
    inputs = (case.inputs[0], mask, *case.inputs[2:])
    found = face(case).observe(inputs, case.attributes)
    # 8 x 8 map: conv1 on 5 x 5 pixels, conv2 and conv3 on 4 x 4.
    assert {name: len(value) for name, value in found.items()} == {"h1": 25 * 6, "h2": 16 * 6, "y": 16 * 8}
    _, w1, b1 = inputs[0], inputs[2], inputs[3]
    first = torch.relu(torch.nn.functional.linear(inputs[0][0, :5, :5], w1, b1))
    torch.testing.assert_close(found["h1"], first.flatten())
    assert torch.equal(found["y"], case.spec.reference(*inputs, **case.attributes)[0, :4, :4].flatten())


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_what_is_not_computed_is_not_observed(name: str) -> None:
    case = build(name, batch=2, size=(9, 7), mask_size=(3, 2), channels=8, hidden=12, out_channels=8, stride=2, seed=2)
    quiet = face(case).observe(case.inputs, case.attributes)
    counts = case.spec.counts(case.shapes, case.attributes, case.masks())
    for point, pixels in (("h1", "conv1_pixels"), ("h2", "conv2_pixels")):
        assert len(quiet[point]) == int(np.sum(counts[pixels] * counts["channels"]))
    everything = tuple(
        torch.zeros_like(value) if port.role is Role.MASK else value
        for port, value in zip(case.spec.inputs, case.inputs, strict=True)
    )
    nothing = face(case).observe(everything, case.attributes)
    assert len(nothing["h1"]) == len(nothing["h2"]) == 0
    # A projection is computed, and rounded to the scale of y, wherever the block is skipped.
    channels_only = set(case.spec.gates.values()) == {OPERATORS["ChannelBottleneck"].gates["mask"]}
    whole = case.reference().numel()
    assert len(nothing["y"]) == (whole if channels_only or name.endswith("Projection") else 0)


def test_specs_in_integers_have_no_face_of_their_own() -> None:
    for name in FLOATS:
        assert OPERATORS[QUANTIZED + name].quantization is None
        assert OPERATORS[QUANTIZED + name].gates == OPERATORS[name].gates
