"""The operators in integers inside ONNX Runtime: to the bit against PyTorch, on every instruction set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from dyndeploy.ops import OPERATORS, Element, Role
from dyndeploy.runtimes.native import ISA_VARIABLE, find_cpu_library
from tests.ops.cases import QUANTIZED, Case, any_case, build, in_integers
from tests.ops.test_operators import run_body, single_node_model

LIBRARY = find_cpu_library()
INSTRUCTION_SETS = ("avx512_vnni", "avx_vnni", "avx2", "neon_dot", "neon", "generic")
FLOATS_BESIDE = {"avx512_vnni": "avx512", "avx_vnni": "avx2", "neon_dot": "neon"}
"""What computes floats where one for integers is named."""
pytestmark = pytest.mark.skipif(
    LIBRARY is None or "int8" not in LIBRARY.precisions(),
    reason="no native library with operators in integers: install with a compiler, or set DYNDEPLOY_CPU_LIBRARY",
)

OPERATORS_IN_INTEGERS = [
    name for name, spec in OPERATORS.items() if name.startswith(QUANTIZED) and "cpu" in spec.kernels
]
BOTTLENECKS = [name for name in OPERATORS_IN_INTEGERS if "Bottleneck" in name]
MASKERS = [name for name in OPERATORS_IN_INTEGERS if "Masker" in name]
QUICK = settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set for integers that the machine runs, for sessions opened in the test."""
    assert LIBRARY is not None
    available = LIBRARY.instruction_sets("int8")
    if request.param not in available:
        pytest.skip(f"left out: {request.param}, which this machine or library lacks; it runs {', '.join(available)}")
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return str(request.param)


def open_kernels(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session in which the library has to run the operators: the model's function bodies are left out."""
    assert LIBRARY is not None
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.functions[:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("dyndeploy.threads", str(threads))
    options.register_custom_ops_library(str(LIBRARY.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_kernel(case: Case, threads: int = 1, *, constant_weights: bool = True) -> np.ndarray:
    session = open_kernels(single_node_model(case, 17, constant_weights=constant_weights), threads)
    wanted = {item.name for item in session.get_inputs()}
    values = zip(case.spec.inputs, case.inputs, strict=True)
    feeds = {port.name: value.numpy() for port, value in values if port.name in wanted}
    return np.asarray(session.run(None, feeds)[0])


def assert_kernel_agrees(case: Case, threads: int = 1) -> None:
    """To the bit; of decisions, those whose logit is not within rounding of zero."""
    found, expected = run_kernel(case, threads), case.reference().numpy()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if not case.spec.decides:
        np.testing.assert_array_equal(found, expected)
        return
    wide = replace(case, inputs=tuple(v.double() if v.is_floating_point() else v for v in case.inputs))
    sure = np.ones_like(expected, dtype=bool)
    for shift in (-1e-4, 1e-4):
        moved = replace(wide, inputs=(*wide.inputs[:-1], wide.inputs[-1] + shift))
        sure &= moved.reference().numpy() == expected
    np.testing.assert_array_equal(found[sure], expected[sure])


@pytest.mark.parametrize("name", OPERATORS_IN_INTEGERS)
@QUICK
@given(data=st.data())
def test_kernels_agree_with_the_reference(name: str, isa: str, data: st.DataObject) -> None:
    assert_kernel_agrees(data.draw(any_case(name)), data.draw(st.sampled_from([1, 2])))


@pytest.mark.parametrize("limit", [64, 127])
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_wide_blocks_of_both_kinds_of_weights(name: str, limit: int, isa: str) -> None:
    """More than a panel of channels, a batch, two threads; and the bodies give the same bits."""
    twin = build(
        name.removeprefix(QUANTIZED), seed=limit, batch=3, size=(9, 7), channels=80, hidden=72, out_channels=132,
        stride=2, mask_size=(3, 2), channel_groups=12,
    )  # fmt: skip
    case = in_integers(twin, limit, limit=limit)
    for threads in (1, 2):
        assert_kernel_agrees(case, threads)
    if limit == 64:
        np.testing.assert_array_equal(run_body(case, 17), case.reference().numpy())


@pytest.mark.parametrize("name", OPERATORS_IN_INTEGERS)
def test_weights_may_be_computed_by_the_graph(name: str) -> None:
    case = build(name, batch=2)
    np.testing.assert_array_equal(run_kernel(case, constant_weights=False), run_kernel(case))


@pytest.mark.parametrize("name", MASKERS)
def test_maskers_of_many_pixels_and_channels(name: str, isa: str) -> None:
    """Sums of more pixels than 16 bits hold, of whole vectors of channels and of the rest."""
    case = build(name, size=(33, 31), channels=150, mask_size=(2, 1), seed=3)
    bright = torch.full_like(case.inputs[0], 255)
    for x in (case.inputs[0], bright):
        assert_kernel_agrees(replace(case, inputs=(x, *case.inputs[1:])), threads=2)


def chain(count: int) -> tuple[onnx.ModelProto, Case]:
    """Blocks one after the other, the first of which may write over its input."""
    case = build("QuantizedSpatialBottleneck", size=(8, 8), channels=24, hidden=12, mask_size=(4, 4), seed=7)
    one = single_node_model(case, 17)
    names = [f"x{i}" for i in range(count)] + ["result"]
    node = one.graph.node[0]
    nodes = [
        helper.make_node(
            node.op_type, [names[i], *node.input[1:]], [names[i + 1]], domain=node.domain, **{
                attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
            },
        )
        for i in range(count)
    ]  # fmt: skip
    nodes.insert(0, helper.make_node("Identity", ["x"], ["x0"]))
    del one.graph.node[:]
    one.graph.node.extend(nodes)
    return one, case


def test_a_chain_keeps_its_input() -> None:
    model, case = chain(3)
    x, mask = (tensor.numpy() for tensor in case.inputs[:2])
    kept = x.copy()
    found = open_kernels(model).run(None, {"x": x, "mask": mask})[0]
    expected = case
    for _ in range(3):
        expected = replace(expected, inputs=(expected.reference(), *expected.inputs[1:]))
    np.testing.assert_array_equal(found, expected.inputs[0].numpy())
    np.testing.assert_array_equal(x, kept)


def test_results_follow_neither_threads_nor_batch() -> None:
    case = build("QuantizedSpatialChannelBottleneck", batch=3, size=(14, 14), channels=96, hidden=48, seed=5)
    together = run_kernel(case)
    np.testing.assert_array_equal(run_kernel(case, 2), together)
    batched = [port.name in ("x", *case.spec.mask_inputs()) for port in case.spec.inputs]
    for i in range(3):
        alone = tuple(v[i : i + 1] if of_image else v for v, of_image in zip(case.inputs, batched, strict=True))
        np.testing.assert_array_equal(run_kernel(replace(case, inputs=alone)), together[i : i + 1])


@pytest.mark.parametrize("name", OPERATORS_IN_INTEGERS)
def test_the_library_tells_the_shape(name: str) -> None:
    case = build(name, batch=2, stride=2, size=(9, 7))
    model = single_node_model(case, 17)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    output = open_kernels(model).get_outputs()[0]
    expected = case.reference()
    assert output.shape == list(expected.shape)
    assert output.type == {torch.uint8: "tensor(uint8)", torch.float32: "tensor(float)"}[expected.dtype]


BAD: list[tuple[str, dict[str, Any], dict[str, tuple[int, ...]], str]] = [
    # (operator, attributes, changed shapes, what the message says)
    ("QuantizedSpatialBottleneck", {"strides": [2, 2]}, {}, "needs a projection"),
    ("QuantizedSpatialBottleneck", {"dilations": [-1, -1]}, {}, "dilations"),
    ("QuantizedSpatialBottleneck", {"pads": [0, 0, 0, 0]}, {}, "pads"),
    ("QuantizedSpatialBottleneck", {"group": 5}, {}, "group"),
    ("QuantizedSpatialBottleneck", {"group": "one"}, {}, "group has the wrong type"),
    ("QuantizedSpatialBottleneck", {}, {"x": (1, 5, 5, 7)}, r"input 0 \(x\)"),
    ("QuantizedSpatialBottleneck", {}, {"x": (0, 5, 5, 8)}, r"input 0 \(x\) is empty"),
    ("QuantizedSpatialBottleneck", {}, {"mask": (2, 1, 2, 2)}, r"input 1 \(mask\)"),
    ("QuantizedLayerBottleneck", {}, {"mask": (1, 1, 2, 1)}, r"input 1 \(mask\)"),
    ("QuantizedChannelBottleneck", {}, {"mask": (1, 4)}, "4 groups"),
    ("QuantizedSpatialBottleneck", {}, {"b1": (3,)}, r"input 3 \(b1\)"),
    ("QuantizedSpatialBottleneck", {}, {"m1": (7,)}, r"input 4 \(m1\)"),
    ("QuantizedSpatialBottleneck", {}, {"w2": (6, 6, 3, 2)}, r"input 5 \(w2\)"),
    ("QuantizedSpatialBottleneck", {}, {"m3": (1,)}, r"input 10 \(m3\)"),
    ("QuantizedSpatialBottleneckProjection", {}, {"wd": (12, 7)}, r"input 11 \(wd\)"),
    ("QuantizedSpatialBottleneckProjection", {}, {"md": (5,)}, r"input 13 \(md\)"),
    ("QuantizedSpatialMasker", {"mask_height": 0}, {}, "mask_height"),
    ("QuantizedSpatialMasker", {}, {"weight": (1, 5)}, r"input 1 \(weight\)"),
    ("QuantizedChannelMasker", {}, {"bias": (2,)}, r"input 2 \(bias\)"),
    ("QuantizedChannelMaskerHidden", {}, {"hidden_bias": (2,)}, r"input 2 \(hidden_bias\)"),
]


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "computed"])
@pytest.mark.parametrize(("name", "attributes", "shapes", "message"), BAD)
def test_bad_nodes_end_in_an_error(
    name: str, attributes: dict[str, Any], shapes: dict[str, tuple[int, ...]], message: str, constant: bool
) -> None:
    case = build(name)
    model = single_node_model(case, 17)
    inputs = [port.name for port in case.spec.inputs if not constant or port.role is not Role.WEIGHT]
    arrays = {port.name: value.numpy() for port, value in zip(case.spec.inputs, case.inputs, strict=True)}
    arrays |= {key: np.ones(shape, arrays[key].dtype) for key, shape in shapes.items()}
    del model.graph.initializer[:], model.graph.input[:], model.graph.node[0].attribute[:]
    model.graph.initializer.extend(
        numpy_helper.from_array(value, key) for key, value in arrays.items() if key not in inputs
    )
    # Sizes that only a run tells.
    model.graph.input.extend(
        helper.make_tensor_value_info(
            key,
            helper.np_dtype_to_tensor_dtype(arrays[key].dtype),
            [f"{key}{axis}" for axis in range(arrays[key].ndim)],
        )
        for key in inputs
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    merged = {**case.attributes, **attributes}
    model.graph.node[0].attribute.extend(helper.make_attribute(key, value) for key, value in merged.items())
    with pytest.raises(Exception, match=message) as caught:
        open_kernels(model).run(None, {key: arrays[key] for key in inputs})
    assert f"dyndeploy.{name}" in str(caught.value)


@pytest.mark.parametrize("element", [Element.UINT8, Element.INT8, Element.INT32, Element.FLOAT])
def test_other_types_are_refused(element: Element) -> None:
    case = build("QuantizedSpatialBottleneck")
    ports = case.spec.inputs
    index = next(i for i, port in enumerate(ports) if port.element is element and port.name != "mask")
    given = tuple(v.double() if i == index else v for i, v in enumerate(case.inputs))
    with pytest.raises(Exception, match=r"[Tt]ype.*double|double.*[Tt]ype"):
        run_kernel(replace(case, inputs=given))


def test_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    available = LIBRARY.instruction_sets("int8")
    assert available[-1] == "generic" and set(available) <= set(INSTRUCTION_SETS), "tests know every set"
    assert LIBRARY.instruction_set("int8") == available[0]
    for name in available:
        monkeypatch.setenv(ISA_VARIABLE, name)
        assert LIBRARY.instruction_set("int8") == name
        # Floats take what goes with it.
        assert LIBRARY.instruction_set() == FLOATS_BESIDE.get(name, name)
    for name in LIBRARY.instruction_sets():
        monkeypatch.setenv(ISA_VARIABLE, name)
        assert LIBRARY.instruction_set("int8") in available
    if "avx2" in available:
        monkeypatch.setenv(ISA_VARIABLE, "avx2")
        assert LIBRARY.instruction_set("int8") == "avx2"
