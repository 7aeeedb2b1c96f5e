"""The native operators inside ONNX Runtime: against PyTorch, on every instruction set, and against bad input."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.runtimes.native import find_cpu_library
from tests.plugins.reference import Layer, bottleneck, channel_logits, random_weights, spatial_logits

LIBRARY = find_cpu_library()
ISA_VARIABLE = "DYNDEPLOY_CPU_ISA"
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
) -> bytes:
    """A model of these nodes; the shape of an input may hold names."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
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


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "neon"])
@QUICK
@given(case=bottleneck_cases())
def test_bottlenecks(isa: str, case: tuple[str, Layer, Arrays, Arrays], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    try:
        check_bottleneck(case, threads=1)
    except Exception as error:
        if "cannot run the instruction set" in str(error):
            pytest.skip(f"this machine has no {isa}")
        raise


@pytest.mark.parametrize("isa", ["generic", "avx512"])
@QUICK
@given(case=bottleneck_cases())
def test_bf16_bottlenecks(isa: str, case: tuple[str, Layer, Arrays, Arrays], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    op, layer, inputs, weights = case
    try:
        actual = run_node(op, inputs, weights, precision="bf16", **conv_attributes(layer))
    except Exception as error:
        if "bf16 needs" in str(error):
            pytest.skip(f"this machine has no {isa} for bf16")
        raise
    masks = inputs.get("spatial_mask"), inputs.get("channel_mask")
    expected = bottleneck(layer, weights, inputs["x"], *masks, bf16=True)
    # A value beside the middle of two BF16 numbers may be rounded to the other one than in the reference.
    assert_agrees(actual, expected, tolerance=2**-8)


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
    with pytest.raises(Exception, match="expected fp32 or bf16"):
        options.register_custom_ops_library(str(LIBRARY.path))


def test_bf16_without_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    monkeypatch.setenv(ISA_VARIABLE, "avx2")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(PRECISION_ENTRY, "bf16")
    with pytest.raises(Exception, match="bf16 needs a CPU with AVX-512 BF16"):
        options.register_custom_ops_library(str(LIBRARY.path))


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    monkeypatch.setenv(ISA_VARIABLE, "vax")
    with pytest.raises(Exception, match="instruction set"):
        onnxruntime.SessionOptions().register_custom_ops_library(str(LIBRARY.path))


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
