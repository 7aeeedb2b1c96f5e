"""The native operators inside ONNX Runtime: against PyTorch, on every instruction set, and against bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.ops import operator
from dyndeploy.runtimes.native import ISA_VARIABLE, LIBRARY_VARIABLE, find_cpu_library
from tests.plugins.reference import Layer, bottleneck, channel_logits, random_weights, spatial_logits

LIBRARY = find_cpu_library()
INSTRUCTION_SETS = ("avx512", "avx2", "neon", "generic")
THREADS_ENTRY = "dyndeploy.threads"
PRECISION_ENTRY = "dyndeploy.precision"
pytestmark = pytest.mark.skipif(
    LIBRARY is None, reason="native library not built: install with a compiler, or set DYNDEPLOY_CPU_LIBRARY"
)

Arrays = dict[str, np.ndarray]
QUICK = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def build_model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[Any, ...]],
    constants: Arrays,
    outputs: tuple[str, ...] = ("y",),
    types: dict[str, int] | None = None,
) -> bytes:
    """A model of these nodes; the shape of an input may hold names; ``types``: of inputs that are not float."""
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("dyndeploy", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def node(op: str, inputs: list[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        op, inputs, [output], domain="dyndeploy", plugin_version="1", plugin_namespace="", **attributes
    )


def open_session(model: bytes, threads: int = 1, precision: str | None = None) -> onnxruntime.InferenceSession:
    assert LIBRARY is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry(THREADS_ENTRY, str(threads))
    if precision is not None:
        options.add_session_config_entry(PRECISION_ENTRY, precision)
    options.register_custom_ops_library(str(LIBRARY.path))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_node(
    op: str,
    inputs: Arrays,
    constants: Arrays,
    threads: int = 1,
    precision: str | None = None,
    **attributes: Any,
) -> np.ndarray:
    model = build_model(
        [node(op, [*inputs, *constants], **attributes)],
        {name: value.shape for name, value in inputs.items()},
        constants,
        types={name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in inputs.items()},
    )
    return np.asarray(open_session(model, threads, precision).run(None, inputs)[0])


def conv_attributes(layer: Layer) -> dict[str, Any]:
    return {
        "strides": [layer.stride] * 2,
        "dilations": [layer.dilation] * 2,
        "pads": [layer.dilation] * 4,
        "group": layer.groups,
    }


def assert_agrees(actual: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    scale = max(1.0, float(np.abs(expected).max()))
    assert float(np.abs(actual - expected).max()) <= tolerance * scale


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    projection = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs = draw(st.integers(1, 70))
    return Layer(
        inputs=inputs,
        middle=groups * draw(st.integers(1, 40)),
        outputs=draw(st.integers(1, 70)) if projection else inputs,
        stride=draw(st.integers(1, 2)) if projection else 1,
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        projection=projection,
    )


@st.composite
def bottleneck_cases(draw: st.DrawFn) -> tuple[str, Layer, Arrays, Arrays]:
    """(operator, layer, x and masks, weights)"""
    layer = draw(layers())
    kind = draw(st.sampled_from(["Spatial", "Layer", "Channel", "SpatialChannel"]))
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 11)), draw(st.integers(1, 11))
    rate = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = np.abs(rng.standard_normal((batch, height, width, layer.inputs))).astype(np.float32)
    inputs = {"x": x}
    if kind != "Channel":
        out_height, out_width = (height - 1) // layer.stride + 1, (width - 1) // layer.stride + 1
        size = (1, 1)
        if kind != "Layer":
            size = (draw(st.integers(1, out_height)), draw(st.integers(1, out_width)))
        inputs["spatial_mask"] = (rng.random((batch, 1, *size)) < rate).astype(np.float32)
    if kind in ("Channel", "SpatialChannel"):
        divisors = [d for d in range(1, layer.middle + 1) if layer.middle % d == 0]
        groups = draw(st.sampled_from(divisors))
        inputs["channel_mask"] = (rng.random((batch, groups)) < rate).astype(np.float32)
    op = f"{kind}Bottleneck" + ("Projection" if layer.projection else "")
    return op, layer, inputs, random_weights(layer, rng)


def check_bottleneck(case: tuple[str, Layer, Arrays, Arrays], threads: int, constant: bool = True) -> None:
    op, layer, inputs, weights = case
    feeds = inputs if constant else {**inputs, **weights}
    actual = run_node(op, feeds, weights if constant else {}, threads, **conv_attributes(layer))
    expected = bottleneck(layer, weights, inputs["x"], inputs.get("spatial_mask"), inputs.get("channel_mask"))
    assert_agrees(actual, expected)


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that the machine runs, for sessions opened in the test."""
    assert LIBRARY is not None
    available = LIBRARY.instruction_sets()
    if request.param not in available:
        pytest.skip(f"left out: {request.param}, which this machine or library lacks; it runs {', '.join(available)}")
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return str(request.param)


@pytest.fixture(params=["avx512", "generic"])
def bf16_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Likewise those for BF16, the emulation included."""
    assert LIBRARY is not None
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    if LIBRARY.instruction_set("bf16") is None:
        pytest.skip(f"left out: {request.param} for bf16, which this machine or library lacks")
    return str(request.param)


@QUICK
@given(case=bottleneck_cases())
def test_bottlenecks(isa: str, case: tuple[str, Layer, Arrays, Arrays]) -> None:
    check_bottleneck(case, threads=1)


@QUICK
@given(case=bottleneck_cases())
def test_bf16_bottlenecks(bf16_isa: str, case: tuple[str, Layer, Arrays, Arrays]) -> None:
    op, layer, inputs, weights = case
    actual = run_node(op, inputs, weights, precision="bf16", **conv_attributes(layer))
    masks = inputs.get("spatial_mask"), inputs.get("channel_mask")
    expected = bottleneck(layer, weights, inputs["x"], *masks, bf16=True)
    # Values beside the middle of two BF16 numbers may be rounded to the other one than in the reference, in both of the
    # hidden maps.
    assert_agrees(actual, expected, tolerance=2**-7)


def test_bf16_rounds_and_fp32_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "generic")
    # One channel, and identities: y = relu(x + relu(relu(x))) shows how x was rounded; 257 is a tie, to even.
    layer = Layer(inputs=1, middle=1, outputs=1)
    one, zero = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    weights = {"w1": one, "b1": zero, "w2": np.zeros((1, 1, 3, 3), np.float32), "b2": zero, "w3": one, "b3": zero}
    weights["w2"][0, 0, 1, 1] = 1
    x = np.array([1, 256, 257, 258, 259, 0.1], np.float32).reshape(1, 1, 6, 1)
    inputs = {"x": x, "mask": np.ones((1, 1, 1, 1), np.float32)}
    for precision, kept in (
        ("bf16", [1, 256, 256, 258, 260, 0.10009765625]),
        ("fp32", x.ravel()),
        (None, x.ravel()),
    ):
        y = run_node("LayerBottleneck", inputs, weights, precision=precision, **conv_attributes(layer))
        np.testing.assert_array_equal(y.ravel(), x.ravel() + np.array(kept, np.float32))


@QUICK
@given(case=bottleneck_cases(), threads=st.integers(2, 3))
def test_bottlenecks_on_several_threads(case: tuple[str, Layer, Arrays, Arrays], threads: int) -> None:
    check_bottleneck(case, threads)


@settings(QUICK, max_examples=15)
@given(case=bottleneck_cases())
def test_weights_may_be_computed_by_the_graph(case: tuple[str, Layer, Arrays, Arrays]) -> None:
    check_bottleneck(case, threads=1, constant=False)


@QUICK
@given(data=st.data())
def test_spatial_masker(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, height, width = (data.draw(st.integers(1, n)) for n in (3, 12, 12))
    channels, groups = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 3))
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    x = rng.standard_normal((batch, height, width, channels)).astype(np.float32)
    weight = rng.standard_normal((groups, channels)).astype(np.float32)
    bias = rng.standard_normal(groups).astype(np.float32)
    mask = run_node(
        "SpatialMasker", {"x": x}, {"weight": weight, "bias": bias}, mask_height=size[0], mask_width=size[1]
    )
    logits = spatial_logits(x, weight, bias, size)
    assert mask.shape == logits.shape
    sure = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(mask[sure], (logits >= 0)[sure].astype(np.float32))
    assert set(np.unique(mask)) <= {0.0, 1.0}


@QUICK
@given(data=st.data(), hidden=st.booleans())
def test_channel_masker(data: st.DataObject, hidden: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, height, width = (data.draw(st.integers(1, n)) for n in (3, 9, 9))
    channels, groups, units = (data.draw(st.integers(1, n)) for n in (90, 40, 20))
    x = rng.standard_normal((batch, height, width, channels)).astype(np.float32)
    constants = {}
    if hidden:
        constants["hidden_weight"] = rng.standard_normal((units, channels)).astype(np.float32)
        constants["hidden_bias"] = rng.standard_normal(units).astype(np.float32)
    constants["weight"] = rng.standard_normal((groups, units if hidden else channels)).astype(np.float32)
    constants["bias"] = rng.standard_normal(groups).astype(np.float32)
    mask = run_node("ChannelMaskerHidden" if hidden else "ChannelMasker", {"x": x}, constants)
    logits = channel_logits(x, **constants)
    assert mask.shape == logits.shape
    sure = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(mask[sure], (logits >= 0)[sure].astype(np.float32))


def test_ties_keep_the_patch() -> None:
    constants = {"weight": np.zeros((1, 4), np.float32), "bias": np.zeros(1, np.float32)}
    x = np.ones((1, 2, 2, 4), np.float32)
    mask = run_node("SpatialMasker", {"x": x}, constants, mask_height=2, mask_width=1)
    np.testing.assert_array_equal(mask, np.ones((1, 1, 2, 1), np.float32))


def chain(layer: Layer, count: int, rng: np.random.Generator) -> tuple[bytes, list[Arrays]]:
    """Masker and bottleneck, `count` times, with symbolic batch and image size."""
    nodes, constants, all_weights = [], {}, []
    tensor = "x"
    for i in range(count):
        weights = random_weights(layer, rng)
        weights["mask_weight"] = rng.standard_normal((1, layer.inputs)).astype(np.float32)
        weights["mask_bias"] = np.zeros(1, np.float32)
        names = {name: f"{name}_{i}" for name in weights}
        constants.update({names[name]: value for name, value in weights.items()})
        nodes.append(
            node(
                "SpatialMasker",
                [tensor, names["mask_weight"], names["mask_bias"]],
                f"mask_{i}",
                mask_height=4,
                mask_width=4,
            )
        )
        inputs = [tensor, f"mask_{i}", *(names[n] for n in ("w1", "b1", "w2", "b2", "w3", "b3"))]
        output = "y" if i == count - 1 else f"t_{i}"
        nodes.append(node("SpatialBottleneck", inputs, output, **conv_attributes(layer)))
        tensor = output
        all_weights.append(weights)
    return build_model(nodes, {"x": ("N", "H", "W", layer.inputs)}, constants), all_weights


def chain_reference(layer: Layer, all_weights: list[Arrays], x: np.ndarray) -> np.ndarray:
    for weights in all_weights:
        logits = spatial_logits(x, weights["mask_weight"], weights["mask_bias"], (4, 4))
        bare = {k: v for k, v in weights.items() if not k.startswith("mask")}
        x = bottleneck(layer, bare, x, (logits >= 0).astype(np.float32)).astype(np.float32)
    return x


def test_a_chain_keeps_its_input_and_takes_any_size() -> None:
    rng = np.random.default_rng(3)
    layer = Layer(inputs=40, middle=24, outputs=40)
    model, weights = chain(layer, 4, rng)
    session = open_session(model, threads=2)
    for shape in ((1, 8, 8), (3, 12, 9), (1, 8, 8), (2, 5, 7)):
        x = np.abs(rng.standard_normal((*shape, 40))).astype(np.float32)
        before = x.copy()
        y = session.run(None, {"x": x})[0]
        np.testing.assert_array_equal(x, before)
        assert_agrees(y, chain_reference(layer, weights, x))


def test_concurrent_runs_of_one_session() -> None:
    rng = np.random.default_rng(4)
    layer = Layer(inputs=48, middle=32, outputs=48)
    model, _ = chain(layer, 3, rng)
    session = open_session(model, threads=2)
    images = [np.abs(rng.standard_normal((1, 6 + i % 3, 8, 48))).astype(np.float32) for i in range(24)]
    expected = [session.run(None, {"x": x})[0] for x in images]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda x: session.run(None, {"x": x})[0], images))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_results_do_not_depend_on_threads_and_agree_for_any_batch() -> None:
    rng = np.random.default_rng(5)
    layer = Layer(inputs=96, middle=48, outputs=96)
    model, _ = chain(layer, 2, rng)
    x = np.abs(rng.standard_normal((3, 14, 14, 96))).astype(np.float32)
    together = open_session(model, threads=1).run(None, {"x": x})[0]
    np.testing.assert_array_equal(open_session(model, threads=2).run(None, {"x": x})[0], together)
    alone = np.concatenate([open_session(model).run(None, {"x": x[i : i + 1]})[0] for i in range(3)])
    # How many pixels there are decides whether a 3x3 runs by Winograd's sums, which round differently.
    assert_agrees(alone, together)


def test_nan_is_not_hidden() -> None:
    layer = Layer(inputs=16, middle=16, outputs=16)
    x = np.ones((1, 4, 4, 16), np.float32)
    x[0, 1, 1, 3] = np.nan
    weights = random_weights(layer, np.random.default_rng(0))
    mask = np.ones((1, 1, 4, 4), np.float32)
    y = run_node("SpatialBottleneck", {"x": x, "mask": mask}, weights, **conv_attributes(layer))
    assert np.isnan(y[0, 1, 1]).all()


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "1.5", "99999999999"])
def test_bad_thread_counts_are_refused(value: str) -> None:
    assert LIBRARY is not None
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(THREADS_ENTRY, value)
    with pytest.raises(Exception, match="expected a positive integer"):
        options.register_custom_ops_library(str(LIBRARY.path))


@pytest.mark.parametrize("value", ["fp16", "", "BF16"])
def test_unknown_precisions_are_refused(value: str) -> None:
    assert LIBRARY is not None
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(PRECISION_ENTRY, value)
    with pytest.raises(Exception, match="expected fp32, bf16 or int8"):
        options.register_custom_ops_library(str(LIBRARY.path))


def test_bf16_without_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    monkeypatch.setenv(ISA_VARIABLE, "avx2")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(PRECISION_ENTRY, "bf16")
    with pytest.raises(Exception, match="bf16 needs a CPU with AVX-512 BF16"):
        options.register_custom_ops_library(str(LIBRARY.path))


def refused_registration(precision: str = "fp32") -> str:
    """What the library says when a session cannot register it."""
    assert LIBRARY is not None
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(PRECISION_ENTRY, precision)
    with pytest.raises(Exception, match="dyndeploy: ") as caught:
        options.register_custom_ops_library(str(LIBRARY.path))
    return str(caught.value)


def test_the_library_names_its_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    available = LIBRARY.instruction_sets()
    assert available[-1] == "generic" and set(available) <= set(INSTRUCTION_SETS), "tests know every set"
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    assert LIBRARY.instruction_set() == available[0]
    for name in available:
        monkeypatch.setenv(ISA_VARIABLE, name)
        assert LIBRARY.instruction_set() == name
    monkeypatch.setenv(ISA_VARIABLE, "generic")
    assert LIBRARY.instruction_set("bf16") == "generic_bf16"


@pytest.mark.parametrize("name", [*INSTRUCTION_SETS, "vax", "AVX2", " avx2", "avx2 ", "avx512_bf16", "generic_bf16"])
def test_instruction_sets_that_cannot_run_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    monkeypatch.setenv(ISA_VARIABLE, name)
    if name in LIBRARY.instruction_sets():
        pytest.skip(f"this machine runs {name}")
    message = refused_registration()
    assert f"cannot run the instruction set '{name}' that DYNDEPLOY_CPU_ISA names" in message
    assert message.rstrip().endswith(f"it runs {', '.join(LIBRARY.instruction_sets())}")
    assert LIBRARY.instruction_set() is None
    if name != "vax":
        assert "bf16 needs" in refused_registration("bf16")


OPERATORS = [
    f"{kind}Bottleneck{projection}"
    for kind in ("Spatial", "Layer", "Channel", "SpatialChannel")
    for projection in ("", "Projection")
]


def given_case(op: str, rng: np.random.Generator, batch: int = 2) -> tuple[Layer, Arrays, Arrays]:
    """A layer of this operator, x and masks of zeros, weights: more than a panel wide, no multiple of a vector."""
    projection = op.endswith("Projection")
    layer = Layer(
        inputs=37, middle=44, outputs=51 if projection else 37, stride=2 if projection else 1, projection=projection
    )
    inputs = {"x": np.abs(rng.standard_normal((batch, 9, 7, 37))).astype(np.float32)}
    if not op.startswith("Channel"):
        inputs["spatial_mask"] = np.zeros((batch, 1, 1, 1) if op.startswith("Layer") else (batch, 1, 5, 4), np.float32)
    if "Channel" in op:
        inputs["channel_mask"] = np.zeros((batch, 11), np.float32)
    return layer, inputs, random_weights(layer, rng)


@pytest.mark.parametrize("op", OPERATORS)
def test_masks_that_keep_nothing(isa: str, op: str) -> None:
    layer, inputs, weights = given_case(op, np.random.default_rng(1))
    y = run_node(op, inputs, weights, **conv_attributes(layer))
    assert_agrees(y, bottleneck(layer, weights, inputs["x"], inputs.get("spatial_mask"), inputs.get("channel_mask")))
    if not (layer.projection or op.startswith("Channel")):
        np.testing.assert_array_equal(y, inputs["x"])
    for mask in ("spatial_mask", "channel_mask"):  # only one of the two
        if len(inputs) == 3:
            other = {**inputs, mask: np.ones_like(inputs[mask])}
            y = run_node(op, other, weights, **conv_attributes(layer))
            assert_agrees(y, bottleneck(layer, weights, other["x"], other["spatial_mask"], other["channel_mask"]))


@pytest.mark.parametrize("op", OPERATORS)
def test_masks_are_active_above_one_half(isa: str, op: str) -> None:
    rng = np.random.default_rng(2)
    layer, inputs, weights = given_case(op, rng)
    values = np.array(
        [np.nan, -1, 0, 0.3, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.7, 1, 2, np.inf, -np.inf]
    )
    odd = {k: v if k == "x" else rng.choice(values, v.shape).astype(np.float32) for k, v in inputs.items()}
    exact = {k: v if k == "x" else (v > 0.5).astype(np.float32) for k, v in odd.items()}
    y = run_node(op, odd, weights, **conv_attributes(layer))
    np.testing.assert_array_equal(y, run_node(op, exact, weights, **conv_attributes(layer)))
    assert np.isfinite(y).all()


@pytest.mark.parametrize("op", [*OPERATORS, "SpatialMasker", "ChannelMasker", "ChannelMaskerHidden"])
def test_empty_tensors_are_refused(isa: str, op: str) -> None:
    """Batch 0, and masks of no patch or no group."""
    if op in OPERATORS:
        layer, inputs, weights = given_case(op, np.random.default_rng(3), batch=0)
        attributes = conv_attributes(layer)
    else:
        inputs, weights, attributes = bad_case(op, {}, {"x": (0, 5, 5, 6)})
    with pytest.raises(Exception, match=rf"dyndeploy.{op}: input 0 \(x\) is empty: shape \(0, "):
        run_node(op, inputs, weights, **attributes)
    for name in ("spatial_mask", "channel_mask"):
        layer, inputs, weights = given_case(op, np.random.default_rng(3)) if op in OPERATORS else (GOOD, {}, {})
        if name in inputs and not op.startswith("Layer"):
            inputs[name] = inputs[name][..., :0]
            with pytest.raises(Exception, match=r"mask\) is empty: shape \(2"):
                run_node(op, inputs, weights, **attributes)


def unaligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins 4 bytes behind a cache line."""
    memory = np.zeros(array.size + 32, np.float32)
    start = (-memory.ctypes.data % 64) // 4 + 1
    copy = memory[start : start + array.size].reshape(array.shape)
    copy[...] = array
    assert copy.ctypes.data % 64 == 4
    return copy


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("op", OPERATORS)
def test_unaligned_tensors(isa: str, op: str, precision: str) -> None:
    assert LIBRARY is not None
    if LIBRARY.instruction_set(precision) is None:
        pytest.skip(f"left out: {isa} for {precision}, which this machine or library lacks")
    rng = np.random.default_rng(4)
    layer, inputs, weights = given_case(op, rng)
    inputs = {k: v if k == "x" else (rng.random(v.shape) < 0.6).astype(np.float32) for k, v in inputs.items()}
    expected = run_node(op, inputs, weights, precision=precision, **conv_attributes(layer))
    everything = {**inputs, **weights}
    shapes: dict[str, tuple[Any, ...]] = {name: value.shape for name, value in everything.items()}
    model = build_model([node(op, [*everything], **conv_attributes(layer))], shapes, {})
    session = open_session(model, precision=precision)
    binding = session.io_binding()
    kept = {name: onnxruntime.OrtValue.ortvalue_from_numpy(unaligned(value)) for name, value in everything.items()}
    y = unaligned(np.full_like(expected, np.nan))
    kept["y"] = onnxruntime.OrtValue.ortvalue_from_numpy(y)
    assert {value.data_ptr() % 64 for value in kept.values()} == {4}
    for name in everything:
        binding.bind_ortvalue_input(name, kept[name])
    binding.bind_ortvalue_output("y", kept["y"])
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(y, expected)


def test_unaligned_maskers(isa: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 9, 7, 37)).astype(np.float32)
    weight, bias = rng.standard_normal((11, 37)).astype(np.float32), rng.standard_normal(11).astype(np.float32)
    for op, attributes in (("SpatialMasker", {"mask_height": 4, "mask_width": 3}), ("ChannelMasker", {})):
        tensors = {"x": x, "weight": weight, "bias": bias}
        expected = run_node(op, tensors, {}, **attributes)
        given = {name: unaligned(value) for name, value in tensors.items()}
        np.testing.assert_array_equal(run_node(op, given, {}, **attributes), expected)


TOO_LARGE: list[tuple[str, dict[str, tuple[int, ...]], dict[str, Any], str]] = [
    # (operator, shapes, attributes, what the message says); each has more than 2^31 - 1 numbers somewhere
    ("LayerBottleneck", {"x": (1, 46341, 46341, 1)}, {}, "input 0 (x) is too large: shape (1, 46341, 46341, 1)"),
    ("SpatialBottleneck", {"mask": (1, 1, 46341, 46341)}, {}, "input 1 (mask) is too large"),
    (
        "SpatialBottleneck",
        {"x": (1, 8192, 8192, 1), "w1": (33, 1)},
        {},
        "the map between the convolutions is too large",
    ),
    ("ChannelBottleneck", {"x": (64, 1024, 1024, 1), "w1": (40, 1)}, {}, "67108864 pixels of 48 channels"),
    ("LayerBottleneckProjection", {"x": (1, 8192, 8192, 1), "w3": (33, 4)}, {}, "the output is too large"),
    ("SpatialMasker", {"x": (2, 1, 1, 6)}, {"mask_height": 65536, "mask_width": 32768}, "the mask is too large"),
    ("ChannelMasker", {"x": (65536, 1, 1, 6), "weight": (65536, 6)}, {}, "the mask is too large"),
]


MAP_NORESERVE = 0x4000  # Of Linux: memory that nobody touches need not exist. The module has it from Python 3.13 on.


def refusal_of_large_sizes(number: int) -> str:
    """The message; the process may take 256 MiB more of address space than the inputs, which nothing ever touches."""
    import mmap
    import resource

    op, shapes, attributes, _ = TOO_LARGE[number]
    x = shapes.get("x", (1, 4, 4, 1))
    if "Bottleneck" in op:
        middle, outputs = shapes.get("w1", (4, 1))[0], shapes.get("w3", (x[3], 4))[0]
        layer = Layer(x[3], middle, outputs, projection=op.endswith("Projection"))
        mask = (x[0], 4) if op.startswith("Channel") else (x[0], 1, 1, 1)
        inputs = {"x": x, "mask": shapes.get("mask", mask)}
        weights = random_weights(layer, np.random.default_rng(0))
        attributes = conv_attributes(layer)
    else:
        inputs, weight = {"x": x}, shapes.get("weight", (1, x[3]))
        weights = {"weight": np.zeros(weight, np.float32), "bias": np.zeros(weight[0], np.float32)}
    names = {name: tuple(f"{name}{axis}" for axis in range(len(shape))) for name, shape in inputs.items()}
    model = build_model([node(op, [*inputs, *weights], **attributes)], {**names}, weights)
    session = open_session(model)
    feeds = {}
    for name, shape in inputs.items():
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = mmap.mmap(-1, 4 * int(np.prod(shape)), flags=flags)
        feeds[name] = np.frombuffer(memory, np.float32).reshape(shape)
    used = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    try:
        session.run(None, feeds)
    except Exception as error:
        return str(error)
    return "it ran"


REFUSAL = """
import sys
from tests.plugins.test_ort_cpu import refusal_of_large_sizes
print(refusal_of_large_sizes(int(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
@pytest.mark.parametrize("number", range(len(TOO_LARGE)), ids=[f"{case[0]}-{case[3]}" for case in TOO_LARGE])
def test_sizes_beyond_32_bits_are_refused_without_allocating(isa: str, number: int) -> None:
    assert LIBRARY is not None
    environment = {**os.environ, ISA_VARIABLE: isa, LIBRARY_VARIABLE: str(LIBRARY.path)}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", REFUSAL, str(number)], capture_output=True, text=True, cwd=root, env=environment
    )
    assert f"dyndeploy.{TOO_LARGE[number][0]}: " in done.stdout and TOO_LARGE[number][3] in done.stdout, done.stderr


GOOD = Layer(inputs=6, middle=4, outputs=6)
BAD_NODES: list[tuple[str, dict[str, Any], dict[str, tuple[int, ...]], str]] = [
    # (operator, attributes, changed shapes, what the message says)
    ("SpatialBottleneck", {"strides": [2, 2]}, {}, "needs a projection"),
    ("SpatialBottleneck", {"strides": [1, 2]}, {}, "strides"),
    ("SpatialBottleneck", {"strides": [1]}, {}, "strides"),
    ("SpatialBottleneck", {"strides": [0, 0]}, {}, "strides"),
    ("SpatialBottleneck", {"strides": [1.0, 1.0]}, {}, "strides has the wrong type"),
    ("SpatialBottleneck", {"strides": "1"}, {}, "strides has the wrong type"),
    ("SpatialBottleneck", {"dilations": [-1, -1]}, {}, "dilations"),
    ("SpatialBottleneck", {"dilations": [2**40, 2**40]}, {}, "dilations"),
    ("SpatialBottleneck", {"pads": [0, 0, 0, 0]}, {}, "pads"),
    ("SpatialBottleneck", {"pads": [2, 2, 2, 2]}, {}, "pads"),
    ("SpatialBottleneck", {"group": 0}, {}, "group"),
    ("SpatialBottleneck", {"group": 3}, {}, "group"),
    ("SpatialBottleneck", {"group": 2}, {}, r"input 4 \(w2\)"),
    ("SpatialBottleneck", {"group": "one"}, {}, "group has the wrong type"),
    ("SpatialBottleneck", {}, {"x": (1, 5, 5, 7)}, r"input 0 \(x\)"),
    ("SpatialBottleneck", {}, {"x": (5, 5, 6)}, r"input 0 \(x\)"),
    ("SpatialBottleneck", {}, {"x": (0, 5, 5, 6)}, r"input 0 \(x\) is empty"),
    ("SpatialBottleneck", {}, {"mask": (2, 1, 2, 2)}, r"input 1 \(mask\)"),
    ("SpatialBottleneck", {}, {"mask": (1, 2, 2, 2)}, r"input 1 \(mask\)"),
    ("SpatialBottleneck", {}, {"mask": (1, 2)}, r"input 1 \(mask\)"),
    ("LayerBottleneck", {}, {"mask": (1, 1, 2, 1)}, r"input 1 \(mask\)"),
    ("ChannelBottleneck", {}, {"mask": (1, 3)}, "3 groups"),
    ("ChannelBottleneck", {}, {"mask": (1, 0)}, "is empty"),
    ("ChannelBottleneck", {}, {"mask": (2, 4)}, r"input 1 \(mask\)"),
    ("SpatialBottleneck", {}, {"w1": (4, 5)}, "channels"),
    ("SpatialBottleneck", {}, {"w1": (4, 6, 1, 1)}, r"input 2 \(w1\)"),
    ("SpatialBottleneck", {}, {"b1": (3,)}, r"input 3 \(b1\)"),
    ("SpatialBottleneck", {}, {"w2": (4, 4, 3, 2)}, r"input 4 \(w2\)"),
    ("SpatialBottleneck", {}, {"w2": (4, 4, 5, 5)}, r"input 4 \(w2\)"),
    ("SpatialBottleneck", {}, {"b2": (5,)}, r"input 5 \(b2\)"),
    ("SpatialBottleneck", {}, {"w3": (6, 3)}, r"input 6 \(w3\)"),
    ("SpatialBottleneck", {}, {"b3": (4,)}, r"input 7 \(b3\)"),
    ("SpatialBottleneckProjection", {}, {"wd": (6, 5)}, r"input 8 \(wd\)"),
    ("SpatialBottleneckProjection", {}, {"bd": (5,)}, r"input 9 \(bd\)"),
    ("SpatialMasker", {"mask_height": 0}, {}, "mask_height"),
    ("SpatialMasker", {"mask_width": -3}, {}, "mask_width"),
    ("SpatialMasker", {"mask_width": 2.5}, {}, "mask_width has the wrong type"),
    ("SpatialMasker", {}, {"weight": (1, 5)}, r"input 1 \(weight\)"),
    ("SpatialMasker", {}, {"bias": (2,)}, r"input 2 \(bias\)"),
    ("ChannelMasker", {}, {"weight": (6,)}, r"input 1 \(weight\)"),
    ("ChannelMaskerHidden", {}, {"hidden_bias": (2,)}, r"input 2 \(hidden_bias\)"),
    ("ChannelMaskerHidden", {}, {"weight": (2, 4)}, r"input 3 \(weight\)"),
]


def bad_case(
    op: str, attributes: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """Inputs, constants and attributes that are right but for the changes."""
    rng = np.random.default_rng(0)
    layer = Layer(**{**GOOD.__dict__, "projection": op.endswith("Projection")})
    inputs: Arrays = {"x": np.ones((1, 5, 5, 6), np.float32)}
    constants: Arrays
    if "Bottleneck" in op:
        if not op.startswith("Channel"):
            size = (1, 1) if op.startswith("Layer") else (2, 2)
            inputs["mask"] = np.ones((1, 1, *size), np.float32)
        else:
            inputs["mask"] = np.ones((1, 4), np.float32)
        constants = random_weights(layer, rng)
        right: dict[str, Any] = conv_attributes(layer)
    else:
        constants = {"weight": np.ones((1, 6), np.float32), "bias": np.ones(1, np.float32)}
        if op == "ChannelMaskerHidden":
            constants = {
                "hidden_weight": np.ones((3, 6), np.float32),
                "hidden_bias": np.ones(3, np.float32),
                "weight": np.ones((2, 3), np.float32),
                "bias": np.ones(2, np.float32),
            }
        right = {"mask_height": 2, "mask_width": 2} if op == "SpatialMasker" else {}
    for name, shape in shapes.items():
        (inputs if name in inputs else constants)[name] = np.ones(shape, np.float32)
    return inputs, constants, {**right, **attributes}


@pytest.mark.parametrize(("op", "attributes", "shapes", "message"), BAD_NODES)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "computed"])
def test_bad_nodes_end_in_an_error(
    op: str,
    attributes: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    message: str,
    constant: bool,
) -> None:
    inputs, constants, merged = bad_case(op, attributes, shapes)
    feeds = inputs if constant else {**inputs, **constants}
    with pytest.raises(Exception, match=message) as caught:
        run_node(op, feeds, constants if constant else {}, **merged)
    assert f"dyndeploy.{op}" in str(caught.value)


@pytest.mark.parametrize("op", ["SpatialBottleneck", "ChannelMasker"])
def test_other_types_are_refused(op: str) -> None:
    inputs, constants, attributes = bad_case(op, {}, {})
    doubles = {name: value.astype(np.float64) for name, value in constants.items()}
    with pytest.raises(Exception, match=r"[Tt]ype"):
        run_node(op, inputs, doubles, **attributes)


REGION_STRIDES = [4, 8, 16, 32]


def regions(rng: np.random.Generator, *, channels: int = 5, count: int = 30) -> Arrays:
    """Boxes on a pyramid, some beyond its edges, some empty."""
    sizes = [(50, 76), (25, 38), (13, 19), (7, 10)]
    inputs = {
        f"p{level}": rng.standard_normal((1, channels, *size)).astype(np.float32) for level, size in enumerate(sizes)
    }
    corners = rng.uniform(-20, 320, (count, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    boxes[::3] = boxes[::3].round()
    boxes[::7, 2] = boxes[::7, 0]
    return inputs | {"boxes": boxes.astype(np.float32), "levels": rng.integers(-1, 5, count)}


@pytest.mark.parametrize("size", [1, 7, 14])
@pytest.mark.parametrize("threads", [1, 2])
def test_regions_are_those_of_the_reference(isa: str, threads: int, size: int) -> None:
    inputs = regions(np.random.default_rng(size))
    found = run_node("PyramidRoiAlign", inputs, {}, threads, strides=REGION_STRIDES, size=size)
    expected = operator("PyramidRoiAlign").reference(
        *map(torch.from_numpy, inputs.values()), strides=REGION_STRIDES, size=size
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "attributes", "message"),
    [
        ({"p2": (1, 4, 13, 19)}, {}, r"input 2 \(p2\)"),
        ({"p1": (2, 5, 25, 38)}, {}, r"input 1 \(p1\)"),
        ({"boxes": (30, 5)}, {}, r"input 4 \(boxes\)"),
        ({"levels": (29,)}, {}, r"input 5 \(levels\)"),
        ({"boxes": (0, 4)}, {}, "is empty"),
        ({}, {"strides": [4, 8, 16]}, "strides"),
        ({}, {"strides": [4, 8, 16, 0]}, "strides"),
        ({}, {"size": 0}, "size"),
        ({}, {"size": 2**14}, "too many"),
    ],
)
def test_bad_regions_end_in_an_error(
    change: dict[str, tuple[int, ...]], attributes: dict[str, Any], message: str
) -> None:
    inputs = regions(np.random.default_rng(0))
    for name, shape in change.items():
        inputs[name] = np.ones(shape, inputs[name].dtype)
    with pytest.raises(Exception, match=message) as caught:
        run_node("PyramidRoiAlign", inputs, {}, **{"strides": REGION_STRIDES, "size": 7, **attributes})
    assert "dyndeploy.PyramidRoiAlign" in str(caught.value)


FUZZ = """
import sys
from tests.plugins.test_ort_cpu import fuzz
print("refused", fuzz(seed=int(sys.argv[1]), rounds=int(sys.argv[2])))
"""


def fuzz(seed: int, rounds: int) -> int:
    """Change shapes and attributes at random; count how many nodes were refused with a message."""
    rng = np.random.default_rng(seed)
    ops = sorted({case[0] for case in BAD_NODES})
    refused = 0
    for _ in range(rounds):
        op = str(rng.choice(ops))
        inputs, constants, attributes = bad_case(op, {}, {})
        arrays = {**inputs, **constants}
        for name in rng.choice(list(arrays), int(rng.integers(0, 3)), replace=False):
            rank = int(rng.integers(0, 5)) if rng.random() < 0.3 else arrays[name].ndim
            shape = list(arrays[name].shape) if rank == arrays[name].ndim else [2] * rank
            for axis in range(rank):
                if rng.random() < 0.4:
                    shape[axis] = int(rng.integers(0, 9))
            (inputs if name in inputs else constants)[name] = np.ones(shape, np.float32)
        for name in attributes:
            if rng.random() < 0.2:
                value = int(rng.choice([-(2**62), -1, 0, 1, 2, 3, 2**31, 2**62]))
                count = int(rng.integers(0, 6))
                attributes[name] = [value] * count if count else value
        try:
            run_node(op, inputs, constants, threads=int(rng.integers(1, 3)), **attributes)
        except Exception as error:
            if "dyndeploy" not in str(error):
                raise
            refused += 1
    return refused


def test_fuzzed_nodes_never_crash() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "1", "400"], capture_output=True, text=True, cwd=root, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 100
