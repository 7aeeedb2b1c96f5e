"""What the TensorRT adapter says of the operators, against ``dyndeploy.ops``; needs a compiler, not TensorRT."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dyndeploy.errors import UsageError
from dyndeploy.graphs.tensorrt_bytes import word_shape
from dyndeploy.ops import OPERATORS, OperatorSpec
from dyndeploy.ops.base import WORD_BYTES
from tests.ops.cases import QUANTIZED

PLUGINS = {name: spec for name, spec in OPERATORS.items() if "tensorrt" in spec.kernels}
"""Operators that have a plugin."""

HERE = Path(__file__).parent
ADAPTER = HERE.parents[1] / "plugins" / "adapters" / "tensorrt"
KERNELS = HERE.parents[1] / "plugins" / "kernels" / "cuda"
SOURCES = (
    *("operators.cpp", "bottleneck.cpp", "conversions.cpp", "maskers.cpp", "regions.cpp", "sampling.cpp"),
    *("token_maskers.cpp", "transformer.cpp"),
)
COMPILER = shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

Shapes = list[tuple[int, ...]]


class Described:
    """The compiled description: a table, and shapes on request."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.attributes: dict[str, list[tuple[str, int]]] = {}
        self.inputs: dict[str, list[list[str]]] = {}
        self.output: dict[str, list[str]] = {}
        while line := self._read():
            name, attributes, inputs, output = (part.strip() for part in line.split("|"))
            pairs = [entry.split(":") for entry in attributes.split()]
            self.attributes[name] = [(attribute, int(length)) for attribute, length in pairs]
            self.inputs[name] = [entry.split(":") for entry in inputs.split()]
            self.output[name] = output.split(":")

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, name: str, attributes: dict[str, Any], shapes: Shapes) -> tuple[int, ...] | str:
        """The output's shape, or what is wrong."""
        values = [value for key, _ in self.attributes[name] for value in _integers(attributes[key])]  # reals as bits
        sizes = [size for shape in shapes for size in (len(shape), *shape)]
        assert self.process.stdin is not None
        print(name, *values, *sizes, file=self.process.stdin, flush=True)
        kind, _, rest = self._read().partition(" ")
        return tuple(map(int, rest.split())) if kind == "shape" else rest

    def close(self) -> None:
        """End the program."""
        self.process.communicate(timeout=10)
        assert self.process.returncode == 0


def _integers(value: Any) -> list[int]:
    if isinstance(value, float):
        return [int(np.float32(value).view(np.int32))]
    return [int(entry) for entry in value] if isinstance(value, list | tuple) else [int(value)]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Described]:
    program = tmp_path_factory.mktemp("describe") / "describe"
    sources = [
        HERE / "describe.cpp",
        HERE / "recording_kernels.cpp",
        *(ADAPTER / name for name in SOURCES),
    ]
    includes = [f"-I{folder}" for folder in (ADAPTER, KERNELS, HERE)]
    flags = ["-std=c++14", "-O0", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    assert COMPILER is not None
    subprocess.run([COMPILER, *flags, *includes, *sources, "-o", program], check=True)
    table = Described(program)
    yield table
    table.close()


def has_words(spec: OperatorSpec) -> bool:
    """Whether a plugin reads or writes bytes, in words."""
    return any(port.element.in_words for port in (*spec.inputs, *spec.outputs))


def tensorrt_inputs(spec: OperatorSpec) -> list[str]:
    """Names of the inputs of the node in the TensorRT copy of a graph."""
    return [port.name for port in spec.native_inputs("tensorrt")]


def repack(spec: OperatorSpec, shapes: Shapes, group: int) -> Shapes:
    """The shapes after the weights of a block are repacked for TensorRT; bytes stand in words."""
    by_name = dict(zip([port.name for port in spec.inputs], shapes, strict=True))
    if spec.name.startswith(QUANTIZED):
        if "w2" in by_name:
            outputs, inputs, _, _ = by_name["w2"]
            by_name["w2"] = (outputs, 9, inputs)
        return [word_shape(port.element, by_name[port.name]) for port in spec.inputs]
    if "w_qkv" in by_name:
        for name, inputs in (("w_qkv", 1), ("w_proj", 2), ("w_fc1", 1), ("w_fc2", 1)):
            by_name[name] = (*by_name[name][-inputs:], *by_name[name][:-inputs])
        return list(by_name.values())
    if "w1" not in by_name:
        return [word_shape(port.element, by_name[port.name]) for port in spec.inputs]
    for name in ("w1", "w3", "wd", "ws", "we"):
        if name in by_name:
            by_name[name] = by_name[name][::-1]
    outputs, inputs, _, _ = by_name["w2"]
    by_name["w2"] = (group, 9 * inputs, outputs // group)
    if "border_bias" in tensorrt_inputs(spec):
        by_name["border_bias"] = (16, by_name["b1"][0])
        by_name["skipped_output"] = by_name["b3"]
    return [by_name[name] for name in tensorrt_inputs(spec)]


@st.composite
def calls(draw: st.DrawFn, spec: OperatorSpec) -> tuple[dict[str, Any], Shapes]:
    """Attributes and input shapes, right ones, in the layout of ``dyndeploy.ops``; bytes come to whole words."""
    size, words = st.integers(1, 9), WORD_BYTES if has_words(spec) else 1
    sizes = {letter: draw(st.integers(1, 40)) for letter in ("H", "W")}
    sizes |= {letter: draw(size) for letter in ("N", "C", "g", "G", "h", "S", "T", "A", "d")}
    sizes["C"] *= words
    mode = draw(st.integers(0, 2))
    sizes |= {"D": sizes["A"] * sizes["d"] if mode == 0 else draw(size), "F": sizes["A"] * draw(size)}
    sizes |= {"Q": draw(size), "P": draw(size), "2": 2, "4": 4}
    stride_of_maps = draw(st.sampled_from([2, 4]))
    for level in range(4):
        sizes |= {f"{axis}{level}": -(-sizes[axis] // 2**level) for axis in ("H", "W")}
    group, stride, dilation = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2])), draw(st.integers(1, 3))
    projection = "wd" in {port.name for port in spec.inputs}
    stride = stride if projection else 1
    sizes["M"] = words * group * sizes["G"] * draw(st.integers(1, 3))
    sizes["Co"] = words * draw(size) if projection else sizes["C"]
    rows = -(-sizes["H"] // stride)
    columns = -(-sizes["W"] // stride)
    sizes["mh"], sizes["mw"] = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    sizes |= {"1": 1, "3": 3, "M/group": sizes["M"] // group}
    attributes: dict[str, Any] = {
        "strides": [stride] * 2,
        "dilations": [dilation] * 2,
        "pads": [dilation] * 4,
        "group": group,
        "mask_height": sizes["mh"],
        "mask_width": sizes["mw"],
        "pool_active": draw(st.sampled_from([0, 1])),
        "epsilon": draw(st.sampled_from([1e-6, 1e-5])),
        "scale": draw(st.sampled_from([0.125, 0.5, 1.0])),
        "token_mlp": draw(st.sampled_from([0, 1])),
        "head_mode": mode,
        "normalise": draw(st.sampled_from([0, 1])),
        "kept": draw(st.integers(0, sizes["T"])),
    }
    if spec.kind == "deformable_attention":
        levels = int(spec.inputs[1].shape[3])
        attributes["sizes"] = [draw(st.integers(1, 9)) for _ in range(2 * levels)]
        sizes["S"] = sum(map(math.prod, zip(attributes["sizes"][::2], attributes["sizes"][1::2], strict=True)))
    if spec.kind == "pyramid_regions":
        attributes |= {"strides": [stride_of_maps * 2**level for level in range(4)], "size": draw(size)}
    wanted = {attribute.name for attribute in spec.attributes}
    shapes = [tuple(sizes[letter] for letter in port.shape) for port in spec.inputs]
    return {name: value for name, value in attributes.items() if name in wanted}, shapes


def test_the_operators_are_the_same(described: Described) -> None:
    assert sorted(described.inputs) == sorted(PLUGINS)
    for name, spec in PLUGINS.items():
        assert described.attributes[name] == [(a.name, a.length or 1) for a in spec.attributes]
        assert [port for port, _, _ in described.inputs[name]] == tensorrt_inputs(spec)
        assert described.output[name][0] == spec.outputs[0].name


def test_element_types(described: Described) -> None:
    for name, spec in PLUGINS.items():
        weights = {"w1", "w2", "w3", "wd", "ws", "we", "w_qkv", "w_proj", "w_fc1", "w_fc2"}
        assert described.output[name][2] == spec.outputs[0].element.value
        if has_words(spec):
            elements = {port.name: port.element.value for port in spec.native_inputs("tensorrt")}
            assert {port: element for port, _, element in described.inputs[name]} == elements
            continue
        for port, _, element in described.inputs[name]:
            data = weights | {"x", "value", "p0", "p1", "p2", "p3"}
            assert element == ("data" if port in data else "index" if port == "levels" else "float"), (name, port)
        assert described.output[name][2] == ("float" if spec.decides else "data")


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_shapes_agree_with_the_operator(described: Described, name: str) -> None:
    spec = OPERATORS[name]

    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(calls(spec))
    def agree(call: tuple[dict[str, Any], Shapes]) -> None:
        attributes, shapes = call
        expected = word_shape(spec.outputs[0].element, tuple(spec.infer_shape(shapes, attributes)))
        repacked = repack(spec, shapes, attributes.get("group", 1))
        assert described.ask(name, attributes, repacked) == expected
        unknown = [(-1, *shape[1:]) if shape[0] == shapes[0][0] else shape for shape in repacked]
        answer = described.ask(name, attributes, unknown)
        assert isinstance(answer, tuple)
        assert all(size in (-1, right) for size, right in zip(answer, expected, strict=True))

    agree()


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_what_the_operator_refuses_is_refused(described: Described, name: str) -> None:
    spec = OPERATORS[name]

    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(calls(spec), st.data())
    def agree(call: tuple[dict[str, Any], Shapes], data: st.DataObject) -> None:
        attributes, shapes = call
        index = data.draw(st.integers(0, len(shapes) - 1))
        assume(spec.inputs[index].name != "w2")  # its kernel and groups have no such form in the TensorRT copy
        axis = data.draw(st.integers(0, len(shapes[index]) - 1))
        changed = list(shapes[index])
        last = spec.inputs[index].element.in_words and axis == len(changed) - 1
        changed[axis] += data.draw(st.sampled_from([1, 2, 5])) * (WORD_BYTES if last else 1)
        wrong = [*shapes]
        wrong[index] = tuple(changed)
        answer = described.ask(name, attributes, repack(spec, wrong, attributes.get("group", 1)))
        try:
            found = tuple(spec.infer_shape(wrong, attributes))
            expected: tuple[int, ...] | None = word_shape(spec.outputs[0].element, found)
            if spec.outputs[0].element.in_words and found[-1] % WORD_BYTES:
                expected = None
        except UsageError:
            expected = None
        if expected is None:
            assert isinstance(answer, str) and answer, (attributes, wrong)
        else:
            assert answer == expected, (attributes, wrong)

    agree()


def test_transformer_attributes(described: Described) -> None:
    attributes = {"epsilon": 1e-6, "scale": 0.125, "token_mlp": 1, "head_mode": 0}
    shapes: Shapes = [(2, 9, 12), (2, 3), (12,), (12,), (12, 3, 3, 4), (3, 3, 4), (3, 4, 12), (12,), (12,), (12,)]
    shapes += [(12, 20), (20,), (20, 12), (12,)]
    assert described.ask("HeadTransformerBlock", attributes, shapes) == (2, 9, 12)
    for name, value in (("epsilon", 0.0), ("epsilon", 1.5), ("scale", 0.0), ("token_mlp", 2), ("head_mode", -1)):
        answer = described.ask("HeadTransformerBlock", {**attributes, name: value}, shapes)
        assert isinstance(answer, str) and name in answer
    answer = described.ask("HeadTransformerBlock", {**attributes, "head_mode": 1}, shapes)
    assert answer == "3 heads do not divide the 20 hidden units, which head_mode 1 needs"
    narrow = [(2, 9, 10) if shape == (2, 9, 12) else tuple(10 if n == 12 else n for n in shape) for shape in shapes]
    answer = described.ask("HeadTransformerBlock", attributes, narrow)
    assert answer == "3 heads of 4 channels are not the 10 of x, which head_mode 0 needs"
    # The mode speaks of heads only where there is a mask of them.
    token = [narrow[0], (2, 9), *narrow[2:]]
    assert described.ask("TokenTransformerBlock", attributes, token) == (2, 9, 10)


def test_repacked_weights_must_have_their_layout(described: Described) -> None:
    attributes = {"strides": [1, 1], "dilations": [1, 1], "pads": [1] * 4, "group": 2}
    shapes: Shapes = [(1, 8, 8, 6), (1, 1, 1, 1), (6, 4), (4,), (2, 18, 2), (4,), (4, 6), (6,)]
    assert described.ask("LayerBottleneck", attributes, shapes) == (1, 8, 8, 6)
    for index, shape, word in (
        (2, (4, 6), "w1"),
        (4, (4, 2, 3, 3), "w2"),
        (4, (4, 18, 2), "w2"),
        (4, (2, 2, 18), "w2"),
        (6, (6, 4), "w3"),
    ):
        wrong = [*shapes]
        wrong[index] = shape
        answer = described.ask("LayerBottleneck", attributes, wrong)
        assert isinstance(answer, str) and word in answer, answer


def test_weights_of_winograd_may_stand_behind_those_of_the_taps(described: Described) -> None:
    attributes = {"strides": [1, 1], "dilations": [1, 1], "pads": [1] * 4, "group": 1}
    shapes: Shapes = [(1, 8, 8, 6), (1, 1, 1, 1), (6, 4), (4,), (1, 100, 4), (4,), (4, 6), (6,)]
    assert described.ask("LayerBottleneck", attributes, shapes) == (1, 8, 8, 6)
    shapes[4] = (2, 50, 2)
    answer = described.ask("LayerBottleneck", attributes | {"group": 2}, shapes)
    assert isinstance(answer, str) and "w2 is 50, expected 18" in answer, answer
